"""What records and links together say about the peers around: who is reachable, for how long not, whom to discover.

Feeds the routes from neighbour records, tells the records which origins are absent, and discovery whom it could dial.
Bodies that do not decode as what their kind promises come from a faulty or newer peer: they are carried, not used.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.limits import (
    DISCOVERY_ADDRESSES_MAX,
    DISCOVERY_INTERVAL_S,
    PEERS_MAX,
    RECORD_ABSENT_EXPIRY_S,
)
from weavenet.core.mesh.dialing import Dialer, Endpoint
from weavenet.core.mesh.links import Links
from weavenet.core.mesh.records import Applied, Origin, Records
from weavenet.core.mesh.routes import Routes
from weavenet.core.messages.gossip import (
    KIND_NEIGHBOUR,
    KIND_PEER,
    NeighbourRecord,
    PeerRecord,
    Record,
    record_body,
)
from weavenet.core.types import PeerId, is_ip_address

_EXPIRY_CHECK_S = 60.0
_PEERS_PER_INTERVAL = 100
"""Looking for candidates costs time per known peer; with many it is done less often."""

_peer_decoder = msgspec.msgpack.Decoder(PeerRecord)
_neighbour_decoder = msgspec.msgpack.Decoder(NeighbourRecord)


class Surroundings:
    def __init__(self, config: NodeConfig, records: Records, links: Links, dialer: Dialer) -> None:
        self._config = config
        self._records = records
        self._links = links
        self._dialer = dialer
        self.routes = Routes(config.peer)
        self.changed: set[PeerId] = set()
        """Origins whose records changed since somebody emptied it."""
        self.wishing: set[PeerId] = set()
        """Others that wait for the first division of addresses, reachable or not."""
        self._expired: set[PeerId] = set()
        self._peer_records: dict[PeerId, tuple[bytes, PeerRecord | None]] = {}
        self._started_at = 0.0
        self._expire_at = 0.0
        self._discover_at: float | None = None

    def start(self, now: float) -> None:
        self._started_at = now
        self._expire_at = now + _EXPIRY_CHECK_S

    # --- time ---

    def deadline(self) -> float | None:
        if len(self._records.origins) == 1:
            return self._discover_at
        return self._expire_at if self._discover_at is None else min(self._expire_at, self._discover_at)

    def tick(self, now: float) -> None:
        if self._discover_at is not None and now >= self._discover_at:
            self._discover_at = None
            self._discover(now)
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRY_CHECK_S
            for origin in self._records.expire(now):
                self._forget(origin)

    # --- records of others ---

    def applied(self, now: float, origin: PeerId, applied: Applied) -> None:
        """The records of ``origin`` changed."""
        self.changed.add(origin)
        self._expired.discard(origin)
        is_restarted = applied.before is not None and applied.before.incarnation != self.incarnation(origin)
        if is_restarted:  # Sequences begin anew, so the old ones have to go before.
            self._withdraw(origin, applied.removed)
        for record in applied.added:
            neighbour = _neighbour(record)
            if neighbour is not None:
                self.routes.publish(origin, record.sequence, neighbour.peer)
                self.want_discovery(now)
        if not is_restarted:  # A replaced record first comes and then goes, so the link it reports stays up.
            self._withdraw(origin, applied.removed)
        if any(record.kind == KIND_PEER for record in (*applied.added, *applied.removed)):
            self._follow_wish(origin)
        if origin in self.routes.reachable():
            self._records.set_reachable(now, origin, True)

    def _follow_wish(self, origin: PeerId) -> None:
        record = self.peer_record(origin)
        if record is not None and record.wants_genesis:
            self.wishing.add(origin)
        else:
            self.wishing.discard(origin)

    def _withdraw(self, origin: PeerId, records: Iterable[Record]) -> None:
        for record in records:
            neighbour = _neighbour(record)
            if neighbour is not None:
                self.routes.withdraw(origin, record.sequence, neighbour.peer)

    def banish(self, peer: PeerId) -> None:
        """Drop the records of a removed peer, for ever."""
        origin = self._records.discard(peer)
        if origin is not None:
            self._forget(origin)

    def _forget(self, origin: Origin) -> None:
        self._peer_records.pop(origin.peer, None)
        self.wishing.discard(origin.peer)
        self._withdraw(origin.peer, origin.live.values())
        self.changed.add(origin.peer)
        if len(self._expired) < PEERS_MAX:
            self._expired.add(origin.peer)

    # --- views ---

    def incarnation(self, origin: PeerId) -> int:
        return self._records.mark(origin).incarnation

    def peer_record(self, peer: PeerId) -> PeerRecord | None:
        held = self._records.origins.get(peer)
        bodies = None if held is None else held.by_kind.get(KIND_PEER)
        if not bodies:
            return None
        body = next(iter(bodies.values()))
        decoded = self._peer_records.get(peer)
        if decoded is None or decoded[0] is not body:  # asked for several times per event, changed rarely
            decoded = self._peer_records[peer] = body, _decode_peer(body)
        return decoded[1]

    def expired(self, now: float, peer: PeerId) -> bool:
        """``peer`` was gone so long that nobody remembers its records any more."""
        if peer in self._records.origins:
            return False
        return peer in self._expired or now >= self._started_at + RECORD_ABSENT_EXPIRY_S

    def unreachable_since(self, peer: PeerId) -> float | None:
        """None while ``peer`` is reachable; for one never heard of, since we started."""
        if peer in self.routes.reachable():
            return None
        held = self._records.origins.get(peer)
        return self._started_at if held is None or held.absent_since is None else held.absent_since

    # --- reachability and discovery ---

    def follow_reachability(self, now: float) -> None:
        if not self.routes.has_changed:
            return
        gained, lost = self.routes.take_reachability()
        for peer in gained:
            self._records.set_reachable(now, peer, True)
        for peer in lost:
            self._records.set_reachable(now, peer, False)
        if gained:
            self._dialer.kick(now)

    def want_discovery(self, now: float) -> None:
        if self._config.discovery and self._discover_at is None:
            crowd = 1 + len(self._records.origins) // _PEERS_PER_INTERVAL
            self._discover_at = now + DISCOVERY_INTERVAL_S * crowd

    def _discover(self, now: float) -> None:
        found: dict[PeerId, list[Endpoint]] = {}
        for peer in sorted(self._records.origins):
            if peer not in self._links.by_peer and peer != self._config.peer:
                endpoints = dict.fromkeys((record.host, record.port) for record in self.sightings(peer))
                found[peer] = list(endpoints)[:DISCOVERY_ADDRESSES_MAX]
        for endpoint, address in self._dialer.addresses.items():
            # Those who had a link to a lost peer withdraw it; where it was is still the best guess.
            if address.discovered is not None and found.get(address.discovered) == []:
                found[address.discovered].append(endpoint)
        self._dialer.discover(now, found)

    def sightings(self, peer: PeerId) -> list[NeighbourRecord]:
        """How others reach ``peer``, first those who called it: their address is known to lead there."""
        records = [self._neighbour_record(*sighting) for sighting in self.routes.sightings(peer)]
        return sorted((record for record in records if record is not None), key=lambda record: not record.outbound)

    def neighbours_of(self, origin: PeerId) -> list[NeighbourRecord]:
        """The links that ``origin`` reports."""
        records = [self._neighbour_record(origin, sequence) for _, sequence in self.routes.published(origin)]
        return [record for record in records if record is not None]

    def _neighbour_record(self, origin: PeerId, sequence: int) -> NeighbourRecord | None:
        record = self._records.origins[origin].live.get(sequence)
        return None if record is None else _neighbour(record)


def _neighbour(record: Record) -> NeighbourRecord | None:
    if record.kind != KIND_NEIGHBOUR:
        return None
    neighbour = record_body(_neighbour_decoder, record.body)
    return neighbour if neighbour is not None and is_ip_address(neighbour.host) else None


def _decode_peer(body: bytes) -> PeerRecord | None:
    return record_body(_peer_decoder, body)
