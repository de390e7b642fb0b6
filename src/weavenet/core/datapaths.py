"""When data paths open, whom they follow, and when they close: handover, open paths and heartbeats composed.

A path opens after the handover (:mod:`weavenet.core.overlay.handover`) unless a learnt removal shuts the gate; from
then on it follows its peer's addresses and endpoints, until the peer is removed, refused or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Endpoint, Outbox, SetPlane
from weavenet.core.membership import Membership
from weavenet.core.mesh.changes import MeshChanges
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages.gossip import KIND_ENDPOINT, EndpointRecord
from weavenet.core.overlay.endpoints import Endpoints
from weavenet.core.overlay.handover import Handover
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.paths import Paths
from weavenet.core.ring import Ipam
from weavenet.core.seeding import Seeding
from weavenet.core.types import PeerId

_endpoint_decoder = msgspec.msgpack.Decoder(EndpointRecord)


class DataPaths:
    """``is_obligated``: whether a peer is remembered however long it is gone."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        mesh: Mesh,
        ipam: Ipam,
        membership: Membership,
        endpoints: Endpoints,
        handover: Handover,
        planes: OpenPlanes,
        paths: Paths,
        outbox: Outbox,
        is_obligated: Callable[[PeerId], bool],
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._ipam = ipam
        self._membership = membership
        self._endpoints = endpoints
        self._handover = handover
        self._planes = planes
        self._paths = paths
        self._outbox = outbox
        self._is_obligated = is_obligated
        self._seeding = Seeding(config, mesh.peer_record)
        self._topology_changed = True
        self._use_changed = True

    def start(self) -> None:
        """The data paths of the previous start, unchanged."""
        self._outbox.append(SetPlane(self._planes.desired()))
        self._planes.changed = False

    def use_changed(self) -> None:
        """A container came or went, so another path may be in use."""
        self._use_changed = True

    def restart(self) -> None:
        """Nothing that was agreed on with others holds any more."""
        self._handover.restart()
        for peer in sorted(self._planes.peers):
            self._planes.close(peer)

    def follow(self, now: float, changes: MeshChanges) -> None:
        """Act on what the mesh learnt."""
        if changes.topology or changes.links_up or changes.links_down:
            self._topology_changed = True
        if self._membership.reopen:
            again, self._membership.reopen = self._membership.reopen, set()
            self._want_handovers(now, again)
        for peer in self._seeding.to_repeat(changes.records):
            self._handover.forget(peer)
        if changes.topology or changes.records:
            self._want_handovers(now, self._mesh.known_peers() if changes.topology else changes.records)
        if self._topology_changed or changes.records or self._handover.completed:
            self._follow_peers(now, changes.records)

    def settle(self, now: float) -> None:
        """The last word of an event: heartbeats on what is open, and the desired state if it changed."""
        if self._use_changed:
            self._use_changed = False
            local = self._endpoints.any_live
            in_use = {peer: local and self._planes.has_endpoints(peer) for peer in sorted(self._planes.peers)}
            self._paths.set_peers(now, in_use)

    def lower(self) -> None:
        """Append the plane's desired state if it changed."""
        if self._planes.changed:
            self._planes.changed = False
            self._outbox.append(SetPlane(self._planes.desired()))

    def _want_handovers(self, now: float, peers: Iterable[PeerId]) -> None:
        reachable = self._mesh.reachable()
        ours = set(self._config.planes)
        for peer in sorted(peers):
            if peer == self._config.peer:
                continue
            record = self._mesh.peer_record(peer) if peer in reachable else None
            if record is not None and not ours.isdisjoint(record.planes):
                self._handover.want(now, peer, self._mesh.incarnation(peer))
            else:
                self._handover.unwant(peer)

    def _follow_peers(self, now: float, origins: frozenset[PeerId]) -> None:
        """Open what the handover allows; let open paths follow their peers' addresses and endpoints."""
        completed = self._handover.completed
        fresh = completed & self._planes.peers if self._membership.gate.is_shut else completed
        self._handover.completed = completed - fresh
        if self._seeding.handed_over(sorted(fresh)):
            self._ipam.allow_binding(now)
        self._use_changed = True
        stale = self._planes.peers if self._topology_changed else self._planes.peers & origins
        self._topology_changed = False
        for peer in sorted(fresh | stale):
            host = self._mesh.link_host(peer)
            if host is None and peer in self._planes:
                host = self._planes.host(peer)
            if host is None:
                self._handover.completed.add(peer)
                continue
            if not self._mesh.knows(peer):
                if peer in self._planes and self._mesh.expired(peer) and not self._is_obligated(peer):
                    self._planes.close(peer)
                continue
            self._planes.set(peer, host, self._endpoints_of(peer))

    def _endpoints_of(self, peer: PeerId) -> tuple[Endpoint, ...]:
        bodies = (_endpoint_decoder.decode(body) for body in self._mesh.records_of(peer, KIND_ENDPOINT))
        return tuple(Endpoint(record.mac, record.addresses) for record in bodies)
