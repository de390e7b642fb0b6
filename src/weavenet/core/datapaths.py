"""When data paths open, whom they follow, which plane they are on, and when they close: handover, open paths,
heartbeats and the sleeve worker composed.

A path opens after the handover (:mod:`weavenet.core.overlay.handover`) unless a learnt removal shuts the gate; from
then on it follows its peer's addresses and endpoints, until the peer is removed, refused or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Endpoint, Outbox, SetPlane, SetSleeve
from weavenet.core.limits import SLEEVE_PROOF_S
from weavenet.core.membership import Membership
from weavenet.core.mesh.changes import MeshChanges
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages.gossip import KIND_ENDPOINT, EndpointRecord, record_body
from weavenet.core.overlay import choice
from weavenet.core.overlay.endpoints import Endpoints
from weavenet.core.overlay.handover import Handover
from weavenet.core.overlay.openplanes import OpenPlane, OpenPlanes
from weavenet.core.overlay.paths import Paths, PathState
from weavenet.core.overlay.planes import FASTDP, SLEEVE, WIREGUARD
from weavenet.core.overlay.sleeve import SleeveStatus
from weavenet.core.overlay.sleeveplane import SleevePlane
from weavenet.core.overlay.wireguardplane import WireguardPlane
from weavenet.core.ring import Ipam
from weavenet.core.seeding import Seeding
from weavenet.core.types import PeerId, is_ip_address, without_prefix

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
        self._reachable: frozenset[PeerId] = frozenset()
        self._use_changed = True
        self._stale: set[PeerId] = set()
        """Peers about which something is different since their plane was last chosen."""
        self._rebuilt: set[PeerId] = set()
        """Peers that the worker has to be told of anew, perhaps."""
        self._is_busy = False
        self._adopted: frozenset[PeerId] = frozenset()
        self._adopted_until = 0.0
        self.sleeve = SleevePlane(config=config, mesh=mesh, planes=planes)
        self.wireguard = WireguardPlane(config=config, mesh=mesh, planes=planes)

    def start(self, now: float) -> None:
        """The data paths of the previous start, unchanged, but for what this start's settings forbid."""
        self._seal_adopted()
        self._adopted = self._planes.peers
        self._adopted_until = now + SLEEVE_PROOF_S
        self._outbox.append(SetPlane(self._planes.desired()))
        self._planes.changed = False
        self._lower_sleeve(now, rows_changed=True)

    def sleeve_reported(self, now: float, status: SleeveStatus | None) -> None:
        """News from the sleeve worker, also when it only repeats itself: what is unproven gets older."""
        changed = self.sleeve.reported(now, status)
        if self._adopted and now >= self._adopted_until:
            changed |= self._adopted
            self._adopted = frozenset()
        self._stale |= changed
        self.sleeve.publish(now, changed)

    def wireguard_reported(self, now: float, keys: tuple[bytes, ...], port: int) -> None:
        """News of this host's WireGuard device, also when it only repeats itself."""
        if self.wireguard.reported(now, keys, port):
            self._stale |= self._planes.peers

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
        self._stale.update(changes.records, changes.touched, changes.links_up, changes.links_down)
        if changes.topology or changes.records or changes.links_up or changes.links_down:
            self.sleeve.topology_changed()
            self._stale |= self.sleeve.learnt(changes.records)
            if self.wireguard.is_on:
                self._stale |= self.wireguard.learnt(changes.records)
            self.sleeve.publish(now, changes.records.union(changes.links_up, changes.links_down))
        if self._membership.reopen:
            again, self._membership.reopen = self._membership.reopen, set()
            self._want_handovers(now, again)
        for peer in self._seeding.meet(changes.records):
            self._handover.forget(peer)
        reachable = self._mesh.reachable()
        toggled = frozenset() if reachable is self._reachable else reachable ^ self._reachable
        self._reachable = reachable
        self._stale |= toggled
        if toggled or changes.records or changes.links_up:
            self._want_handovers(now, toggled.union(changes.records, changes.links_up))
        if toggled or changes.touched or changes.records or self._handover.completed:
            stale = self._planes.peers if toggled else changes.touched | changes.records
            self._follow_peers(stale)
        share = self._ipam.seed_share
        if share.is_awaited and (
            share.is_taken or (self._seeding.has_met_seeds and self._seeding.is_enough(share.takers()))
        ):
            self._ipam.allow_binding(now)

    def settle(self, now: float) -> None:
        """The last word of an event: the plane of each open path, and heartbeats on those that VXLAN may take."""
        self._stale |= self._paths.changed
        self._paths.changed.clear()
        if self.sleeve.is_on:
            self._stale |= self.sleeve.route(now)
        if self._stale:
            stale, self._stale = self._stale, set()
            self._rebuilt |= stale
            chosen = self._planes.peers & stale
            self._choose(now, chosen.union(*map(self._at_the_same_address, chosen)))
        if self._use_changed:
            self._use_changed = False
            self._paths.set_peers(now, self._watched())

    def _watched(self) -> dict[PeerId, bool]:
        """Peers that VXLAN may reach → whether containers on both sides may be talking."""
        local = self._endpoints.any_live
        rows = ((peer, self._planes.get(peer)) for peer in sorted(self._planes.peers))
        return {peer: local and bool(row.endpoints) for peer, row in rows if row is not None and row.has_vxlan}

    def lower(self, now: float) -> None:
        """Append the planes' desired states if they changed."""
        rows_changed, self._planes.changed = self._planes.changed, False
        if rows_changed:
            self._outbox.append(SetPlane(self._planes.desired()))
        if self.sleeve.is_on and (rows_changed or self._rebuilt or self._is_busy != self._endpoints.any_live):
            self._lower_sleeve(now, rows_changed=rows_changed)

    def _lower_sleeve(self, now: float, *, rows_changed: bool) -> None:
        rebuilt, self._rebuilt = self._rebuilt, set()
        self._is_busy = self._endpoints.any_live
        if self.sleeve.is_on:
            desired = self.sleeve.desired(now, rebuilt, rows_changed=rows_changed, busy=self._is_busy)
            if desired is not None:
                self._outbox.append(SetSleeve(desired))

    # --- which plane ---

    def _choose(self, now: float, peers: Iterable[PeerId]) -> None:
        """Put these open paths on the best plane that works."""
        for peer in sorted(peers):
            row = self._planes.get(peer)
            record = self._mesh.peer_record(peer)
            if row is None:
                continue
            if self._is_succeeded(now, peer, row):
                self._planes.put_on(peer, SLEEVE)
                continue
            if record is None:
                continue  # nothing is known of it since the start: it stays where it was
            planes = choice.in_common(self._config.planes, record.planes)
            is_vxlan_allowed = FASTDP in planes and not self.must_seal(peer)
            tunnel = self.wireguard.tunnel(peer) if WIREGUARD in planes and not is_vxlan_allowed else None
            is_possible = {FASTDP: is_vxlan_allowed, WIREGUARD: tunnel is not None}
            if is_vxlan_allowed != row.is_vxlan_allowed or (tunnel is None) != (row.tunnel is None):
                self._paths.forget(peer)  # what was measured was another way
            elif tunnel != row.tunnel:
                self._paths.kick(now, peer)
            candidates = [
                (plane, self._presumed_state(now, peer, plane, row)) for plane in planes if is_possible.get(plane, True)
            ]
            plane = choice.best(candidates, row.plane) if candidates else row.plane
            relay = self.sleeve.relay(peer) if self.sleeve.is_running else PeerId(row.relay)
            self._use_changed |= self._planes.use(
                peer,
                plane,
                is_vxlan_allowed=is_vxlan_allowed,
                sleeve=self.sleeve.record(peer) if SLEEVE in planes else None,
                relay=relay or b"",
                tunnel=tunnel,
            )

    def _at_the_same_address(self, peer: PeerId) -> frozenset[PeerId]:
        row = self._planes.get(peer)
        return frozenset() if row is None or not self.sleeve.is_on else self._planes.at(row.host)

    def _is_succeeded(self, now: float, peer: PeerId, row: OpenPlane) -> bool:
        """Whether somebody else lives at its address now: its machine under a new identity. VXLAN's flood list knows
        addresses only, so what is flooded for ``peer`` would come to its successor, which may be on sleeve and get the
        same frame there, too (history: a disk lost while VXLAN's port was blocked)."""
        reachable = self._mesh.reachable()
        if peer in reachable or not self.sleeve.is_on:
            return False
        successors = self._planes.at(row.host) & reachable
        if not successors:
            return False
        name = self._membership.named(peer).name
        if name and any(self._membership.named(other).name == name for other in successors):
            return True
        return self._presumed_state(now, peer, FASTDP, row) is not PathState.WORKING  # else: two behind one NAT

    def _seal_adopted(self) -> None:
        """A password that is new, a subnet no longer trusted, or --no-fastdp counts at once, also towards peers of
        which nothing is heard: what an earlier start was allowed to send in clear to them may be forbidden now."""
        settings = self._config
        for peer in sorted(self._planes.peers):
            row = self._planes.get(peer)
            if row is None or not row.has_vxlan:
                continue
            is_trusted = not settings.authenticated or choice.covers(settings.trusted_subnets, row.host)
            if row.tunnel is not None:
                is_kept = WIREGUARD in settings.planes
            else:
                is_kept = FASTDP in settings.planes and is_trusted
            if not is_kept:
                self._planes.seal(peer, SLEEVE if SLEEVE in settings.planes else row.plane)

    def _presumed_state(self, now: float, peer: PeerId, plane: str, row: OpenPlane) -> PathState:
        """A plane that carried when we were started again counts as working until it had the time to show it."""
        state = self.plane_state(now, peer, plane)
        is_adopted = plane == row.plane and peer in self._adopted and now < self._adopted_until
        return PathState.WORKING if is_adopted and state is PathState.UNPROVEN else state

    def plane_state(self, now: float, peer: PeerId, plane: str) -> PathState:
        """Whether ``plane`` works to ``peer``, whichever is in use."""
        if plane == SLEEVE:
            return self.sleeve.state(now, peer)
        return self._paths.state(peer) or PathState.UNPROVEN

    def must_seal(self, peer: PeerId) -> bool:
        """Whether frames to ``peer`` have to be encrypted: there is a password, and not both ends trust the other's
        address. Both ends decide alike: what one sees of the other is what the other is told it looks like."""
        if not self._config.authenticated:
            return False
        record = self._mesh.peer_record(peer)
        if record is None or not record.trusts or not self._config.trusted_subnets:
            return True
        host = self._mesh.link_host(peer)
        ours = self._mesh.observed_host(peer)
        return not (
            host and choice.covers(self._config.trusted_subnets, host) and ours and choice.covers(record.trusts, ours)
        )

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

    def _follow_peers(self, stale: frozenset[PeerId]) -> None:
        """Open what the handover allows; let open paths to ``stale`` follow their peers' addresses and endpoints."""
        completed = self._handover.completed
        fresh = completed & self._planes.peers if self._membership.gate.is_shut else completed
        self._handover.completed = completed - fresh
        self._seeding.handed_over(sorted(fresh))
        self._use_changed = True
        self._stale |= fresh
        for peer in sorted(fresh | (self._planes.peers & stale)):
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
        bodies = (record_body(_endpoint_decoder, body) for body in self._mesh.records_of(peer, KIND_ENDPOINT))
        return tuple(
            Endpoint(record.mac, tuple(text for text in record.addresses if is_ip_address(without_prefix(text))))
            for record in bodies
            if record is not None
        )
