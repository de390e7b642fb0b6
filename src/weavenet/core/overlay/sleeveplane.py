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
from typing import Protocol, TypeVar

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.limits import SLEEVE_PROOF_S
from weavenet.core.messages.gossip import KIND_SLEEVE, KIND_SLEEVE_PATH
from weavenet.core.overlay.choice import SLEEVE
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.paths import PathState
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

Body = TypeVar("Body")

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
        self._paths: dict[PeerId, SleevePath] = {}
        self._wanted_at: dict[PeerId, float] = {}
        self._decoded: dict[PeerId, tuple[list[bytes], SleeveRecord | None]] = {}
        self._said: dict[PeerId, SleevePathRecord] = {}
        self._exceptions: dict[PeerId, dict[PeerId, SleevePathRecord]] = {}
        self._own: SleeveRecord | None = None
        self._hops: dict[PeerId, PeerId] = {}
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

    def reported(self, status: SleeveStatus | None) -> bool:
        """True when something in it that was decided upon differs from before."""
        before, before_paths = self._status, self._paths
        self._was_heard = True
        self._status = status
        self._paths = {} if status is None else {path.peer: path for path in status.paths}
        if status is None or before is None:
            return status is not before
        if status.process != before.process or status.keys != before.keys or status.port != before.port:
            return True
        if before_paths.keys() != self._paths.keys():
            return True
        return any(
            path.works != before_paths[peer].works or path.endpoint != before_paths[peer].endpoint
            for peer, path in self._paths.items()
        )

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
            cached = self._decoded[peer] = bodies, _decoded(_record_decoder, bodies[0])
        return cached[1]

    def learnt(self, origins: Iterable[PeerId]) -> None:
        """Records of these changed."""
        for origin in origins:
            found = (_decoded(_path_decoder, body) for body in self._mesh.records_of(origin, KIND_SLEEVE_PATH))
            exceptions = {record.peer: record for record in found if record is not None}
            if exceptions:
                self._exceptions[origin] = exceptions
            else:
                self._exceptions.pop(origin, None)

    # --- next hops ---

    def route(self) -> None:
        """Compute next hops anew. Costs nothing while everybody is reached directly."""
        wanted = (self._planes.peers | self._mesh.reachable()) - {self._config.peer}
        direct = {peer for peer in wanted if self._is_direct(peer)}
        if direct == wanted or not direct:
            self._hops = {peer: peer for peer in direct}
        else:
            self._hops = next_hops(self._config.peer, direct, self._carrying_neighbours)

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

    def publish(self, now: float) -> None:
        """Our keys, and the links that are not as others assume."""
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
        for peer in sorted(linked):
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

    def desired(self, now: float, *, busy: bool) -> SleeveDesired | None:
        """The whole wanted state; None when it is the same as last time."""
        macs: dict[PeerId, list[bytes]] = {}
        for mac, peer in self._planes.macs().items():
            macs.setdefault(peer, []).append(mac)
        found = []
        wanted = (self._planes.peers | self._mesh.reachable()) - {self._config.peer}
        for peer in sorted(wanted):
            record = self.record(peer)
            if record is not None:
                self._wanted_at.setdefault(peer, now)
                found.append(self._peer(peer, record, macs.get(peer, [])))
        for peer in [peer for peer in self._wanted_at if peer not in wanted]:
            del self._wanted_at[peer]
        desired = SleeveDesired(self._config.peer, self._config.mtu, tuple(found), busy)
        if desired == self._desired:
            return None
        self._desired = desired
        return desired

    def _peer(self, peer: PeerId, record: SleeveRecord, macs: list[bytes]) -> SleevePeer:
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
            macs=tuple(sorted(macs)),  # also while another plane carries: what the bridge still sends is not lost
        )


def _decoded(decoder: msgspec.msgpack.Decoder[Body], body: bytes) -> Body | None:
    """None for a body of a faulty or newer peer."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
