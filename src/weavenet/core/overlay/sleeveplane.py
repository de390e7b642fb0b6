"""The core's side of the sleeve worker: what it reported, what others published, what it is to do.

Three things come together here. *Works?* is what the worker measured of each peer. *Next hops*: a peer that no datagram
reaches directly is reached over others, along links that carry datagrams (``relays``). What others cannot know is
published, one small record per link that is not as everybody assumes: one that carries no datagrams, and one whose far
end shows another UDP endpoint than it knows of (a NAT in between), which is how two peers behind NATs learn where to
aim at each other.

Keys and port of a peer stay known when its records are replaced after a restart, and across our own: its worker goes on
forwarding meanwhile, and new keys arrive as a new record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.limits import HOPS_AT_ONCE_PEERS, HOPS_INTERVAL_S, SLEEVE_PROOF_S
from weavenet.core.messages.gossip import KIND_SLEEVE, KIND_SLEEVE_PATH, record_body
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.paths import PathState
from weavenet.core.overlay.planes import SLEEVE
from weavenet.core.overlay.relays import next_hops
from weavenet.core.overlay.sleeve import (
    CANDIDATES_MAX,
    SleeveDesired,
    SleeveEndpoint,
    SleevePath,
    SleevePathRecord,
    SleevePeer,
    SleeveRecord,
    SleeveStatus,
)
from weavenet.core.types import PeerId

_record_decoder = msgspec.msgpack.Decoder(SleeveRecord)
_path_decoder = msgspec.msgpack.Decoder(SleevePathRecord)
_encoder = msgspec.msgpack.Encoder()


class Around(Protocol):
    """What is asked of the mesh."""

    def reachable(self) -> frozenset[PeerId]: ...
    def established_peers(self) -> frozenset[PeerId]: ...
    def neighbours(self, peer: PeerId) -> list[PeerId]: ...
    def hosts_of(self, peer: PeerId) -> tuple[str, ...]: ...
    def records_of(self, origin: PeerId, kind: int) -> list[bytes]: ...
    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...
    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...


class SleevePlane:
    def __init__(self, *, config: NodeConfig, mesh: Around, planes: OpenPlanes) -> None:
        self._config = config
        self._mesh = mesh
        self._planes = planes
        self._status: SleeveStatus | None = None
        self._was_heard = False
        self._process = b""
        self._paths: dict[PeerId, SleevePath] = {}
        self._wanted_at: dict[PeerId, float] = {}
        self._decoded: dict[PeerId, tuple[list[bytes], SleeveRecord | None]] = {}
        self._said: dict[PeerId, SleevePathRecord] = {}
        self._exceptions: dict[PeerId, dict[PeerId, SleevePathRecord]] = {}
        self._own: SleeveRecord | None = None
        self._hops: dict[PeerId, PeerId] = {}
        self._are_hops_stale = False
        self._routed_at = float("-inf")
        self._macs: dict[PeerId, tuple[bytes, ...]] = {}
        self._built: dict[PeerId, SleevePeer] = {}
        self._young: set[PeerId] = set()
        """Peers that this worker was told of less than SLEEVE_PROOF_S ago."""
        self._desired: SleeveDesired | None = None

    @property
    def is_on(self) -> bool:
        return SLEEVE in self._config.planes

    @property
    def is_running(self) -> bool:
        return self._status is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        return () if self._status is None else self._status.warnings

    def path(self, peer: PeerId) -> SleevePath | None:
        """What the worker last measured."""
        return self._paths.get(peer)

    def relay(self, peer: PeerId) -> PeerId | None:
        """Through whom the worker of ``peer`` is reached; None: directly, or not at all."""
        hop = self._hops.get(peer)
        return hop if hop != peer else None

    # --- what the worker says ---

    def reported(self, now: float, status: SleeveStatus | None) -> set[PeerId]:
        """Peers about which something that was decided upon is different now, or that had the time to answer."""
        before, before_paths = self._status, self._paths
        self._was_heard = True
        self._status = status
        self._paths = {} if status is None else {path.peer: path for path in status.paths}
        if status is not None and status.process != self._process:
            self._process = status.process
            self._wanted_at = dict.fromkeys(self._wanted_at, now)  # it begins with nothing, and is told at once
            self._young = set(self._wanted_at)
        changed = {peer for peer in self._young if now >= self._wanted_at.get(peer, now) + SLEEVE_PROOF_S}
        self._young -= changed
        if (status is None) != (before is None) or (status and before and status.process != before.process):
            changed |= self._built.keys() | self._planes.peers
        for peer, path in self._paths.items():
            known = before_paths.get(peer)
            if known is None or known.works != path.works or known.endpoint != path.endpoint:
                changed.add(peer)
        changed |= before_paths.keys() - self._paths.keys()
        self._are_hops_stale = self._are_hops_stale or bool(changed)
        return changed

    def state(self, now: float, peer: PeerId) -> PathState:
        """Whether frames get to ``peer`` over sleeve, directly or relayed."""
        if self.record(peer) is None or (self._was_heard and not self.is_running):
            return PathState.BROKEN
        path = self._paths.get(peer)
        if path is not None and path.works:
            return PathState.WORKING
        wanted_at = self._wanted_at.get(peer)
        is_young = wanted_at is None or now < wanted_at + SLEEVE_PROOF_S
        return PathState.UNPROVEN if is_young else PathState.BROKEN

    def _is_direct(self, peer: PeerId) -> bool:
        path = self._paths.get(peer)
        return path is not None and path.works and path.endpoint is not None

    # --- what others say ---

    def record(self, peer: PeerId) -> SleeveRecord | None:
        """Keys and port of the worker of ``peer``, as last published."""
        bodies = self._mesh.records_of(peer, KIND_SLEEVE)
        row = self._planes.get(peer)
        if not bodies:
            return None if row is None else row.sleeve
        cached = self._decoded.get(peer)
        if cached is None or cached[0] != bodies:
            cached = self._decoded[peer] = bodies, record_body(_record_decoder, bodies[0])
        return cached[1]

    def learnt(self, origins: Iterable[PeerId]) -> set[PeerId]:
        """Records of these changed. Returns the peers that this is about, apart from the origins."""
        named: set[PeerId] = set()
        for origin in origins:
            found = (record_body(_path_decoder, body) for body in self._mesh.records_of(origin, KIND_SLEEVE_PATH))
            exceptions = {record.peer: record for record in found if record is not None}
            before = self._exceptions.pop(origin, {})
            if exceptions:
                self._exceptions[origin] = exceptions
            if before != exceptions:
                named |= before.keys() | exceptions.keys()
        return named

    def topology_changed(self) -> None:
        """Links came or went, anywhere."""
        self._are_hops_stale = True

    # --- next hops ---

    def route(self, now: float) -> set[PeerId]:
        """Compute next hops anew if something may have changed them; peers that have another one now. In a large
        cluster at most once per HOPS_INTERVAL_S; what came later is seen to with the next event, such as a report of
        the worker."""
        is_large = len(self._planes.peers) > HOPS_AT_ONCE_PEERS
        if not self._are_hops_stale or (is_large and now < self._routed_at + HOPS_INTERVAL_S):
            return set()
        self._routed_at = now
        wanted = (self._planes.peers | self._mesh.reachable()) - {self._config.peer}
        direct = {peer for peer in wanted if self._is_direct(peer)}
        if direct == wanted or not direct:
            hops = {peer: peer for peer in direct}
        else:
            hops = next_hops(self._config.peer, direct, self._carrying_neighbours)
        self._are_hops_stale = False
        before, self._hops = self._hops, hops
        return {peer for peer in before.keys() | hops.keys() if before.get(peer) != hops.get(peer)}

    def _carrying_neighbours(self, peer: PeerId) -> list[PeerId]:
        if self.record(peer) is None:
            return []
        return [
            other
            for other in self._mesh.neighbours(peer)
            if self._passes(peer, other) and self._passes(other, peer) and self.record(other) is not None
        ]

    def _passes(self, origin: PeerId, peer: PeerId) -> bool:
        exception = self._exceptions.get(origin, {}).get(peer)
        return exception is None or exception.passes

    # --- what we say ---

    def publish(self, now: float, peers: Iterable[PeerId]) -> None:
        """Our keys, and what is not as others assume of our links to ``peers``."""
        status = self._status
        if status is None:
            return
        if status.keys and status.port:
            own = SleeveRecord(status.keys, status.port)
            if own != self._own:
                self._own = own
                self._mesh.publish(now, KIND_SLEEVE, b"", _encoder.encode(own))
        linked = self._mesh.established_peers()
        for peer in sorted(self._said.keys() - linked):
            del self._said[peer]
            self._mesh.withdraw(now, KIND_SLEEVE_PATH, peer)
        for peer in sorted(linked.intersection(peers)):
            self._publish_path(now, peer)

    def _publish_path(self, now: float, peer: PeerId) -> None:
        record = self.record(peer)
        if record is None:
            return
        said = self._said.get(peer)
        exception: SleevePathRecord | None = None
        path = self._paths.get(peer)
        if path is not None and path.works and path.endpoint is not None:
            if path.endpoint not in self._usual(peer, record):
                exception = SleevePathRecord(peer, True, path.endpoint)
        elif self._wanted_at.get(peer, now) + SLEEVE_PROOF_S <= now:
            exception = SleevePathRecord(peer, False, None)
        else:
            return
        if exception == said:
            return
        if exception is None:
            del self._said[peer]
            self._mesh.withdraw(now, KIND_SLEEVE_PATH, peer)
        else:
            self._said[peer] = exception
            self._mesh.publish(now, KIND_SLEEVE_PATH, peer, _encoder.encode(exception))

    def _usual(self, peer: PeerId, record: SleeveRecord) -> tuple[SleeveEndpoint, ...]:
        """Where everybody would look for the worker of ``peer``."""
        hosts = self._mesh.hosts_of(peer)
        row = self._planes.get(peer)
        if not hosts and row is not None:
            hosts = (row.host,)
        return (*(SleeveEndpoint(host, record.port) for host in hosts), *record.endpoints)

    # --- what the worker is to do ---

    def desired(self, now: float, stale: Iterable[PeerId], *, rows_changed: bool, busy: bool) -> SleeveDesired | None:
        """The whole wanted state, where only ``stale`` peers are looked at anew; None when it is as last time.
        ``rows_changed``: open paths differ from last time."""
        changed = set(stale)
        if rows_changed:
            changed |= self._follow_rows()
        reachable = self._mesh.reachable()
        for peer in sorted(changed - {self._config.peer}):
            record = self.record(peer) if peer in reachable or peer in self._planes else None
            if record is None:
                self._built.pop(peer, None)
                self._wanted_at.pop(peer, None)
                self._young.discard(peer)
                continue
            if peer not in self._wanted_at:
                self._wanted_at[peer] = now
                self._young.add(peer)
            self._built[peer] = self._peer(peer, record, self._macs.get(peer, ()))
        desired = SleeveDesired(
            self._config.peer, self._config.mtu, tuple(self._built[peer] for peer in sorted(self._built)), busy
        )
        if desired == self._desired:
            return None
        self._desired = desired
        return desired

    def _follow_rows(self) -> set[PeerId]:
        """Peers whose open path, or what lives behind it, differs from what was built."""
        macs: dict[PeerId, list[bytes]] = {}
        for mac, peer in self._planes.macs().items():
            macs.setdefault(peer, []).append(mac)
        before, self._macs = self._macs, {peer: tuple(sorted(found)) for peer, found in macs.items()}
        changed = {peer for peer in before.keys() | macs.keys() if before.get(peer) != self._macs.get(peer)}
        is_shut = self._planes.is_shut
        changed |= {
            peer for peer, built in self._built.items() if built.is_open != (peer in self._planes and not is_shut)
        }
        return changed | (self._planes.peers - self._built.keys())

    def _peer(self, peer: PeerId, record: SleeveRecord, macs: tuple[bytes, ...]) -> SleevePeer:
        row = None if self._planes.is_shut else self._planes.get(peer)
        carries = row is not None and row.plane == SLEEVE
        candidates = [*self._usual(peer, record)]
        for exceptions in self._exceptions.values():
            seen = exceptions.get(peer)
            if seen is not None and seen.seen is not None:
                candidates.append(seen.seen)
        if row is not None and self._status is None:  # the hops of an adopted worker
            relay = PeerId(row.relay) if row.relay else None
        else:
            relay = self.relay(peer)
        return SleevePeer(
            peer=peer,
            keys=record.keys,
            endpoints=tuple(dict.fromkeys(candidates))[:CANDIDATES_MAX],
            relay=relay,
            is_open=row is not None,
            carries=carries,
            takes_groups=carries,
            macs=macs,  # also while another plane carries: what the bridge still sends is not lost
        )
