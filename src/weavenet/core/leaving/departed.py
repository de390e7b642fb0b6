"""Peers that left by themselves, as everybody else remembers them (spec 04, "reset").

A *custodian* of a leaver holds durably all that the leaver knew of ring and log. The first custodian stands for it, as
an heir does: what somebody gave it without knowing, or what it was to inherit, is this heir's. Whoever learns that a
peer has left, durably drops it: it owes no confirmation any more, and its custodians owe one in its place.

A leaver counts as gone when it says so, when a custodian publishes so, or, for a custodian that accepted the custody,
when it has been unreachable for LEFT_PRESUMED_S: it offers custody only after all custodians have everything, and it
has no containers by then.

Invariants: whoever is gone stays gone as long as anything hangs on it (it owns something in the ring, is named as heir
in the log or stands for another); the others are forgotten after the time in which records of absent peers expire.
A custodian that leaves hands its rows on. Does not close links and paths (``Membership``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from weavenet.core.deadlines import earliest
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import UNDECODABLE
from weavenet.core.limits import CUSTODY_ROWS_MAX, DEPARTED_MAX, LEFT_PRESUMED_S, RECORD_ABSENT_EXPIRY_S
from weavenet.core.messages.gossip import KIND_LEFT
from weavenet.core.messages.leaving import CustodyAccepted, CustodyOffer, LeftRecord
from weavenet.core.removal.naming import Named
from weavenet.core.ring.log import Log
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import PeerId
from weavenet.core.words import titled

TABLE = "left"
_CHECK_S = 1.0
_EXPIRY_CHECK_S = 60.0

_encode = msgspec.msgpack.Encoder().encode
_record_decoder = msgspec.msgpack.Decoder(LeftRecord)


class Row(msgspec.Struct, frozen=True, array_like=True):
    """``gone``: it has left; else this peer has accepted its custody."""

    gone: bool
    record: LeftRecord


_row_decoder = msgspec.msgpack.Decoder(Row)


class Publisher(Protocol):
    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...
    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...


class Departed:
    """``unreachable_for(now, peer)``: seconds, None while it is reachable. ``owns_space(peer)``: in the ring. Raises
    WeaveError for unreadable rows."""

    def __init__(
        self,
        *,
        me: PeerId,
        log: Log,
        rows: Iterable[tuple[bytes, bytes]],
        outbox: Outbox,
        publisher: Publisher,
        unreachable_for: Callable[[float, PeerId], float | None],
        owns_space: Callable[[PeerId], bool],
    ) -> None:
        self._me = me
        self._log = log
        self._outbox = outbox
        self._publisher = publisher
        self._unreachable_for = unreachable_for
        self._owns_space = owns_space
        self._known_at: dict[PeerId, float] = {}
        self._seen: dict[PeerId, frozenset[bytes]] = {}
        self._check_at: float | None = None
        self._expire_at: float | None = None
        self.gone: dict[PeerId, LeftRecord] = {}
        self.custody: dict[PeerId, LeftRecord] = {}
        """About to leave; all that they know is here."""
        self.fresh: set[PeerId] = set()
        """Learnt to be gone since somebody looked; the membership empties it."""
        for key, value in rows:
            try:
                row = _row_decoder.decode(value)
            except msgspec.DecodeError as error:
                raise unreadable_row(TABLE, key, str(error)) from error
            (self.gone if row.gone else self.custody)[row.record.peer] = row.record
        for peer, record in self.gone.items():
            self._log.depart(peer, _heir(record))
        self.fresh |= self.gone.keys()

    def names(self) -> dict[PeerId, Named]:
        """As they called themselves."""
        return {peer: Named(peer, record.name, record.nickname) for peer, record in self.gone.items()}

    def start(self, now: float) -> None:
        self._known_at = dict.fromkeys(self.gone, now)
        for record in self.gone.values():
            self._publish(now, record)
        self._schedule(now)

    # --- views ---

    @property
    def stand_ins(self) -> frozenset[PeerId]:
        """Who has to confirm in place of the departed."""
        return frozenset(custodian for record in self.gone.values() for custodian in record.custodians)

    @property
    def earlier(self) -> tuple[LeftRecord, ...]:
        """What a custodian of ours has to take over, the latest first."""
        mine = [record for peer, record in self.gone.items() if self._is_mine(record)]
        return tuple(reversed(mine))[:CUSTODY_ROWS_MAX]

    def deadline(self) -> float | None:
        return earliest((self._check_at, self._expire_at))

    # --- learning ---

    def learn(self, now: float, record: LeftRecord) -> None:
        """``record.peer`` has left; not to be called for ourselves."""
        known = self.gone.get(record.peer)
        if known == record or record.peer == self._me:
            return
        if known is not None and known > record:
            return  # two versions of one leave-taking; any total order will do
        self._make_room(now)
        self.custody.pop(record.peer, None)
        self.gone[record.peer] = record
        self._known_at[record.peer] = now
        self._log.depart(record.peer, _heir(record))
        self._outbox.persist(Change(TABLE, record.peer, _encode(Row(True, record))))
        if known is None:
            self._outbox.note("info", "leaving", f"{titled(record.name, record.nickname)} {record.peer.hex()} has left")
        self.fresh.add(record.peer)
        self._publish(now, record)
        self._schedule(now)

    def read(self, origin: PeerId, bodies: Iterable[bytes]) -> list[LeftRecord]:
        """What of the records that ``origin`` publishes is new since the last look. Others than ours decode, or come
        from a faulty peer and are not used."""
        present = frozenset(bodies)
        fresh = present - self._seen.get(origin, frozenset())
        if present:
            self._seen[origin] = present
        else:
            self._seen.pop(origin, None)
        found = []
        for body in sorted(fresh):
            try:
                found.append(_record_decoder.decode(body))
            except UNDECODABLE:
                self._outbox.note("warning", "leaving", f"{origin.hex()} publishes an unreadable departure")
        return found

    def offered(self, now: float, source: PeerId, offer: CustodyOffer) -> None:
        """Accept the custody of ``source``, durably. Not to be called while we leave ourselves."""
        record = offer.left
        if record.peer != source or self._me not in record.custodians or source in self.gone:
            return
        for earlier in offer.earlier:
            if earlier.peer not in self.gone and earlier.peer != self._me:
                self.learn(now, earlier)
        if self.custody.get(source) != record:
            self.custody[source] = record
            self._outbox.persist(Change(TABLE, source, _encode(Row(False, record))))
            self._schedule(now)
        self._outbox.unicast(source, CustodyAccepted(offer.session))

    # --- time ---

    def tick(self, now: float) -> None:
        if self._check_at is not None and now >= self._check_at:
            self._check_at = None
            for peer, record in list(self.custody.items()):
                absent_s = self._unreachable_for(now, peer)
                if absent_s is not None and absent_s >= LEFT_PRESUMED_S:
                    self.learn(now, record)
            self._schedule(now)
        if self._expire_at is not None and now >= self._expire_at:
            self._expire_at = now + _EXPIRY_CHECK_S
            for peer, known_at in list(self._known_at.items()):
                if now >= known_at + RECORD_ABSENT_EXPIRY_S and not self._is_needed(peer):
                    self._forget(now, peer)

    def _schedule(self, now: float) -> None:
        if self.custody and self._check_at is None:
            self._check_at = now + _CHECK_S
        if self.gone and self._expire_at is None:
            self._expire_at = now + _EXPIRY_CHECK_S

    def _is_needed(self, peer: PeerId) -> bool:
        """Something may still be looked for at ``peer``."""
        if self._owns_space(peer) or any(heir == peer for heir, _ in self._log.removed.values()):
            return True
        return any(peer in record.custodians for other, record in self.gone.items() if other != peer)

    def _make_room(self, now: float) -> None:
        if len(self.gone) < DEPARTED_MAX:
            return
        oldest = next((peer for peer in self.gone if not self._is_needed(peer)), None)
        if oldest is not None:
            self._forget(now, oldest)

    def _forget(self, now: float, peer: PeerId) -> None:
        record = self.gone.pop(peer)
        self._known_at.pop(peer, None)
        self._log.forget_departure(peer)
        self._outbox.persist(Change(TABLE, peer, None))
        if self._is_mine(record):
            self._publisher.withdraw(now, KIND_LEFT, peer)

    def forget_all(self) -> None:
        """This peer gave up its cluster for another."""
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in (*self.gone, *self.custody)))
        for peer in self.gone:
            self._log.forget_departure(peer)
        self.gone.clear()
        self._known_at.clear()
        self.custody.clear()
        self.fresh.clear()

    # --- publishing ---

    def _is_mine(self, record: LeftRecord) -> bool:
        """Whether it is on us to spread it: as custodian, or because we stand for one."""
        return any(self._log.heir(custodian) == self._me for custodian in record.custodians)

    def _publish(self, now: float, record: LeftRecord) -> None:
        if self._is_mine(record):
            self._publisher.publish(now, KIND_LEFT, record.peer, _encode(record))

    def republish(self, now: float) -> None:
        """Somebody went: what it spread may be on us now."""
        for record in self.gone.values():
            self._publish(now, record)


def _heir(record: LeftRecord) -> PeerId | None:
    return record.custodians[0] if record.custodians else None
