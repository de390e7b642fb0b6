"""What this peer durably has: its view of the ring, the addresses its containers hold, and whether any was ever used.

Invariants (spec: "IPAM state and merge"): the ring is full from genesis on and never ahead of the log (I3); an address
used inside the range is ours (and not of a range on hold) or blocked (I2). Each change is one Persist, complete before
anything that shows it. Everything is rebuilt from rows; what a crash between two persists can leave behind (a genesis
without its ring, a ring of a cluster that was given up) is put right at load.

It decides nothing: allocation, grants and binding are others' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import InvariantBroken
from weavenet.core.ranges import RANGE_BITS, Ranges, base
from weavenet.core.ring.blocking import Blocked
from weavenet.core.ring.genesis import initial_ring
from weavenet.core.ring.granting import next_stamp
from weavenet.core.ring.holdings import Holding, Holdings, freed_rows, held_rows
from weavenet.core.ring.log import Log
from weavenet.core.ring.segments import RING_TABLE, Ring, SegmentsInvalid, load_ring, ring_rows, unreadable_row
from weavenet.core.ring.space import OwnSpace
from weavenet.core.types import PeerId, Position, Segment, Stamp, Uint

META_TABLE = "meta"
_USED = b"used"
HELD_TABLE = "held"
_HELD = b"held"
_Intervals = tuple[tuple[Uint, Uint], ...]


class Estate:
    """Shared by the parts of IPAM; see the module for what it keeps true."""

    def __init__(self, config: NodeConfig, log: Log, disk: Mapping[tuple[str, bytes], bytes], outbox: Outbox) -> None:
        """Raises WeaveError for rows that this program cannot have written."""
        self.me = config.peer
        self.is_on = bool(config.ranges)
        self.is_leased = True
        self.log = log
        self.outbox = outbox
        self.used = (META_TABLE, _USED) in disk
        self._configured = Ranges.parse(config.ranges) if config.ranges else None
        self.area = self._area()
        self.holdings = Holdings(disk)
        self.space = OwnSpace(self.me, self.holdings)
        self.blocked = Blocked(self.holdings, disk)
        self.leaving = False
        """This peer gives its space away: it uses none of it for anything new."""
        self._checked: Ring | None = None
        self._inherits = False
        self._inherits_at: tuple[Ring | None, bytes, int] = (None, b"", 0)
        self.space.hold(_load_held(disk) if self.log.genesis is not None else ())
        ring, self._repairs = self._load(disk)
        self._occupy(ring)

    # --- views ---

    @property
    def ring(self) -> Ring:
        return self.space.ring

    @property
    def has_ring(self) -> bool:
        return bool(self.space.ring.segments)

    @property
    def may_use(self) -> bool:
        """False while we leave, without the lease we need, and once our own log says that we were removed."""
        return self.is_leased and not self.leaving and self.me not in self.log.removed

    def usable(self, offset: int) -> bool:
        """May this peer allocate or grant the address (not regarding whether somebody here holds it)?"""
        return self.may_use and self.space.owns(offset) and offset not in self.blocked

    # --- beginning, and beginning again ---

    def store_repairs(self) -> None:
        """Persist what loading had to put right."""
        self.outbox.persist(*self._repairs)
        self._repairs = []

    def adopt_genesis(self) -> None:
        """The log has a genesis: take its ranges and make its ring."""
        genesis = self.log.genesis
        if genesis is None or self.has_ring:
            return
        before = self.area
        self.area = self._area()
        if before is not None and self.area != before and self.area is not None:
            self.outbox.note("info", "ipam", f"the cluster divides {self.area.text}, not {before.text}: using that")
        ring = initial_ring(genesis)
        self._repairs += ring_rows(Ring(ring.sizes), ring, ring.segments)
        self._occupy(ring)
        self.store_repairs()

    def forget(self) -> None:
        """Give up the ring for another cluster's. Only before anything was used. The log is forgotten beside it."""
        if self.used:
            raise InvariantBroken("a peer whose addresses are in use cannot give up its ring")
        old = self.ring
        self.space.held.clear()
        self._repairs += self._held_rows()
        rows = ring_rows(Ring(old.sizes), old, old.segments)
        self._repairs += [Change(RING_TABLE, row.key, None) for row in rows]
        self.area = self._area()
        self._occupy(Ring())
        self.store_repairs()

    def _area(self) -> Ranges | None:
        genesis = self.log.genesis
        return self._configured if genesis is None else Ranges.parse(genesis.ranges)

    def _load(self, disk: Mapping[tuple[str, bytes], bytes]) -> tuple[Ring, list[Change]]:
        genesis, area = self.log.genesis, self.area
        if genesis is None or area is None:
            return Ring(), [Change(RING_TABLE, key, None) for table, key in disk if table == RING_TABLE]
        ring = load_ring(area.sizes, disk)
        if not ring.segments:
            ring = initial_ring(genesis)
            return ring, ring_rows(Ring(area.sizes), ring, ring.segments)
        if not ring.is_full:
            raise unreadable_row(RING_TABLE, b"", "rows are missing: some addresses have no owner")
        if self._is_ahead(ring.segments):
            raise unreadable_row(RING_TABLE, b"", "the ring refers to decrees that the log lacks")
        return ring, []

    def _occupy(self, ring: Ring) -> None:
        """Set up indexes, free space and blocks for ``ring`` in the present range."""
        self.holdings.enter(self.area if self.is_on else None)
        self.space.rebuild(ring)
        lost = [offset for offset in self.holdings.by_offset if not self.space.owns(offset)]
        self._repairs += self.blocked.replace(lost)

    # --- the ring ---

    def learn(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """Merge segments heard of and persist; the pieces that were new. Loud about segments nobody can have made."""
        changed, rows = self.merge(tuple(segments))
        self.outbox.persist(*rows)
        return changed

    # --- inheritance ---

    @property
    def inherits(self) -> bool:
        """Some range is still stamped with a removed peer that we stand for."""
        seen = self.ring, self.log.hash, self.log.departures
        if self._inherits_at[0] is not seen[0] or self._inherits_at[1:] != seen[1:]:
            self._inherits_at = seen
            self._inherits = any(self._is_inherited(owner) for owner in self.ring.shares)
        return self._inherits

    def inherit(self) -> tuple[Segment, ...]:
        """Stamp what belonged to those we stand for as our own, on hold; one step to disk. The pieces that changed."""
        pieces = [
            Segment(piece.start, piece.end, self._inherited_stamp(piece.stamp))
            for piece in self.ring.segments
            if self._is_inherited(piece.stamp.owner)
        ]
        if not pieces:
            return ()
        self.space.hold((piece.start, piece.end) for piece in pieces)
        changed, rows = self.merge(tuple(pieces))
        self.outbox.persist(*rows, *self._held_rows())
        return changed

    def _inherited_stamp(self, old: Stamp) -> Stamp:
        """Of the last removal on the chain of heirs from the owner to us, so that it beats what the removed gave away
        without anybody known hearing of it."""
        _, removed_at = self.log.succession(old.owner)
        position: Position = old.position if removed_at is None else max(old.position, removed_at)
        return Stamp(position, 1 + old.version, self.me)

    def _is_inherited(self, owner: PeerId) -> bool:
        """We stand for ``owner``, and somebody on the way was removed: others may still use what it gave away."""
        log = self.log
        if not log.is_gone(owner):
            return False
        heir, removed_at = log.succession(owner)
        return heir == self.me and removed_at is not None

    # --- leaving, and those who left ---

    def surrender(self, heirs: Mapping[PeerId, Sequence[int]]) -> tuple[Segment, ...]:
        """Give all our space to ``heirs`` (→ their free addresses of each range), each segment to whoever has least of
        that range by then; one step to disk. Raises InvariantBroken while addresses are in use or on hold."""
        if self.holdings.by_offset or self.space.held.total:
            raise InvariantBroken("space in use or on hold cannot be given away")
        numbers = range(len(self.ring.sizes))
        free = [{peer: has[number] if number < len(has) else 0 for peer, has in heirs.items()} for number in numbers]
        given: list[Segment] = []
        owned = [piece for piece in self.ring.segments if piece.stamp.owner == self.me]
        for piece in sorted(owned, key=lambda piece: (piece.start - piece.end, piece.start)):
            left = free[piece.start >> RANGE_BITS]
            heir = min(left, key=lambda peer: (left[peer], peer))
            left[heir] += piece.end - piece.start
            given.append(Segment(piece.start, piece.end, next_stamp((piece,), heir)))
        changed, rows = self.merge(tuple(given))
        self.outbox.persist(*rows, *self.use())
        return changed

    def succeed(self) -> tuple[Segment, ...]:
        """Take what is stamped with peers that left in our favour: given to them by somebody who did not know, and
        never theirs in their own eyes, since all they knew is merged here. The pieces that changed."""
        log = self.log
        heirs = {owner for owner in self.ring.shares if owner in log.departed} if self.may_use else set()
        heirs = {owner for owner in heirs if log.succession(owner) == (self.me, None)}
        pieces = [piece for piece in self.ring.segments if piece.stamp.owner in heirs] if heirs else []
        stamped = [Segment(piece.start, piece.end, next_stamp((piece,), self.me)) for piece in pieces]
        changed, rows = self.merge(tuple(stamped))
        self.outbox.persist(*rows)
        return changed

    def release(self) -> int:
        """What was on hold is usable, durably; the number of addresses."""
        released = list(self.space.held)
        total = self.space.held.total
        self.space.release()
        rows = self._held_rows()
        for low, high in released:
            for offset in self.holdings.within(low, high):
                rows += self.blocked.unblock(offset)
        self.outbox.persist(*rows)
        return total

    def _held_rows(self) -> list[Change]:
        """One row per range."""
        found: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(self.ring.sizes))}
        for low, high in self.space.held:
            number = low >> RANGE_BITS
            found[number].append((low - base(number), high - base(number)))
        return [
            Change(HELD_TABLE, _held_key(number), msgspec.msgpack.encode(held) if held else None)
            for number, held in found.items()
        ]

    def merge(self, segments: tuple[Segment, ...]) -> tuple[tuple[Segment, ...], list[Change]]:
        """The pieces of ``segments`` that were new, and the rows that store them: ring, and addresses lost or regained
        by it. The caller persists the rows with this event."""
        if self._is_ahead(segments):
            self.outbox.note("warning", "ipam", "ignored ring segments that refer to decrees our log lacks")
            return (), []
        old, held = self.ring, self.space.held.total
        try:
            new, changed = old.merge(segments)
        except SegmentsInvalid as error:
            self.outbox.note("warning", "ipam", f"ignored ring segments: {error}")
            return (), []
        if not changed:
            return (), []
        rows = ring_rows(old, new, changed)
        self.space.follow(new, changed)
        for piece in changed:
            for offset in self.holdings.within(piece.start, piece.end):
                rows += self.blocked.unblock(offset) if self.space.owns(offset) else self._block(offset)
        if self.space.held.total != held:
            rows += self._held_rows()
        return changed, rows

    def _block(self, offset: int) -> list[Change]:
        rows = self.blocked.block(offset)
        if rows:
            for holding in self.holdings.holders(offset):
                text = (
                    f"{holding.address} of {holding.ident} now belongs to another peer: blocked until it gives it back"
                )
                self.outbox.note("warning", "ipam", text)
        return rows

    def _is_ahead(self, segments: Iterable[Segment]) -> bool:
        limit = self.log.position
        return limit is None or any(segment.stamp.position > limit for segment in segments)

    # --- holdings ---

    def hold(self, holding: Holding, offset: int | None) -> None:
        """``holding`` is durable before anything said after this. In the range the address must be usable and taken
        out of the free space."""
        self.holdings.put(holding, offset)
        self.outbox.persist(*held_rows(holding), *self.use())

    def free(self, now: float, holdings: Iterable[Holding]) -> None:
        """Nobody uses these any more."""
        rows: list[Change] = []
        for holding in holdings:
            rows += freed_rows(holding)
            offset = self.holdings.drop(holding)
            if offset is None:
                self.blocked.touched()
            elif offset in self.blocked:
                rows += self.blocked.unblock(offset)
            else:
                self.space.give_back(now, offset)
        self.outbox.persist(*rows)

    def use(self) -> tuple[Change, ...]:
        """The row that says something was allocated, claimed or granted here, the first time."""
        if self.used:
            return ()
        self.used = True
        return (Change(META_TABLE, _USED, b"1"),)

    # --- invariants ---

    def check(self) -> None:
        """Raises InvariantBroken unless I1-I3 hold here."""
        ring = self.ring
        if ring is not self._checked:
            ring.check()
            if self.log.genesis is not None and not ring.is_full:
                raise InvariantBroken("the ring is not full after genesis")
            if ring.segments and self._is_ahead(ring.segments):
                raise InvariantBroken("the ring is ahead of the log")
            self._checked = ring
        self.space.check()
        self.holdings.check()
        for offset, holding in self.holdings.by_offset.items():
            if self.space.owns(offset) == (offset in self.blocked):
                raise InvariantBroken(f"{holding.address} of {holding.ident} is not ours and not blocked, or both")
        if self.holdings.by_offset and not self.used:
            raise InvariantBroken("addresses are held here, yet nothing counts as used")


def _held_key(number: int) -> bytes:
    return _HELD if number == 0 else _HELD + bytes([number])


def _load_held(disk: Mapping[tuple[str, bytes], bytes]) -> Iterator[tuple[int, int]]:
    """Raises WeaveError for a row that this program cannot have written."""
    for (table, key), row in disk.items():
        if table != HELD_TABLE:
            continue
        try:
            intervals = msgspec.msgpack.decode(row, type=_Intervals)
        except msgspec.DecodeError as error:
            raise unreadable_row(HELD_TABLE, key, str(error)) from error
        start = base(key[-1]) if key != _HELD else 0
        yield from ((start + low, start + high) for low, high in intervals)
