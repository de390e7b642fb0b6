"""Records of every origin, with one gap-free mark each.

An origin numbers its changes 1, 2, 3 …: a record put takes the next number, and so does a withdrawal. ``top`` is the
mark. Only the origin writes. A record at or below the mark that is not held was deleted, so deletions need no
tombstone; what was deleted lately is remembered as *steps* so that a peer a little behind is told only what changed.

Why a step is more than a list of deletions: a peer that jumped from mark 5 to 9 never saw what was made and deleted
between. It can tell a peer at exactly 5 or at 9 what to delete, but not one at 7, which may hold such a record. So
``dropped`` is used only for a mark this peer itself once had, in an unbroken chain of steps since; everybody else gets
``live``, the list of what still exists. Deletion is final, so naming more than needed is always safe.

Invariants: sequences are unique and in 1 … top; ``live`` is ascending; steps are contiguous and end at ``top``;
bucket hashes are the XOR of the marks in them. Does not send, does not know links, keeps nothing on disk.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile

import msgspec

from weavenet.core.errors import InvariantBroken
from weavenet.core.limits import (
    DELETION_STEPS_MAX,
    DIGEST_BUCKETS,
    INCARNATION_MAX,
    PAGE_BYTES_MAX,
    PEERS_MAX,
    RECORD_ABSENT_EXPIRY_S,
    RECORD_AGE_MAX_S,
    RECORD_BYTES_MAX,
    RECORD_HELD_BYTES,
    RECORDS_BYTES_MAX,
    RECORDS_PER_ORIGIN_MAX,
    RECORDS_RESERVED,
)
from weavenet.core.messages.gossip import KIND_NEIGHBOUR, Mark, OriginDelta, Record
from weavenet.core.types import PeerId

_DROPPED_MAX = 4 * DELETION_STEPS_MAX
_UNINDEXED = frozenset({KIND_NEIGHBOUR})
"""Most records of a big mesh are of this kind, and nobody asks for them by kind."""
_RECORD_OVERHEAD_BYTES = 24
_PAGE_RECORDS_BYTES_MIN = 4096
_EXPIRY_MARGIN_S = 300.0
"""Records this close to their expiry are not taken in any more: rounding must not keep them alive by passing to and
fro (history *zombie-ping-pong*)."""


class MalformedDelta(Exception):
    """A delta that contradicts itself; only a faulty peer sends one."""


class RecordRefused(Exception):
    """A bound was reached; the text says which."""


class Origin(msgspec.Struct):
    """Everything known of one origin. ``absent_since``: when it was last reachable, None while it is."""

    peer: PeerId
    incarnation: int
    top: int = 0
    live: dict[int, Record] = msgspec.field(default_factory=dict)
    by_kind: dict[int, dict[int, bytes]] = msgspec.field(default_factory=dict)
    steps: deque[tuple[int, int, tuple[int, ...]]] = msgspec.field(default_factory=deque)
    dropped_count: int = 0
    absent_since: float | None = None
    held_bytes: int = 0

    def add(self, record: Record) -> None:
        self.live[record.sequence] = record
        self.held_bytes += _held_bytes(record)
        if record.kind not in _UNINDEXED:
            self.by_kind.setdefault(record.kind, {})[record.sequence] = record.body

    def remove(self, sequence: int) -> Record | None:
        record = self.live.pop(sequence, None)
        if record is not None:
            self.held_bytes -= _held_bytes(record)
        if record is not None and record.kind not in _UNINDEXED:
            kind = self.by_kind[record.kind]
            del kind[sequence]
            if not kind:
                del self.by_kind[record.kind]
        return record

    def bodies(self, kind: int) -> list[bytes]:
        """Of the live records of ``kind``."""
        if kind in _UNINDEXED:
            return [record.body for record in self.live.values() if record.kind == kind]
        return list(self.by_kind.get(kind, {}).values())

    def clear(self) -> None:
        """Forget all records, and what was deleted."""
        self.live.clear()
        self.by_kind.clear()
        self.held_bytes = 0
        self.forget_steps()

    def forget_steps(self) -> None:
        self.steps.clear()
        self.dropped_count = 0

    def add_step(self, base: int, top: int, dropped: tuple[int, ...]) -> None:
        self.steps.append((base, top, dropped))
        self.dropped_count += len(dropped)
        while self.steps and (len(self.steps) > DELETION_STEPS_MAX or self.dropped_count > _DROPPED_MAX):
            self.dropped_count -= len(self.steps.popleft()[2])


class Applied(msgspec.Struct, frozen=True):
    """Outcome of a delta. ``gap``: it starts beyond our mark, so the origin has to be pulled. ``behind``: the sender
    lacks what we have. ``equal``: it has what we have. ``before``: our mark beforehand, from which others are told."""

    new: bool = False
    gap: bool = False
    behind: bool = False
    equal: bool = False
    before: Mark | None = None
    added: tuple[Record, ...] = ()
    removed: tuple[Record, ...] = ()


_EQUAL = Applied(equal=True)


def _held_bytes(record: Record) -> int:
    return len(record.body) + RECORD_HELD_BYTES


def bucket_of(origin: PeerId) -> int:
    return origin[0] % DIGEST_BUCKETS


def _mark_hash(origin: PeerId, incarnation: int, top: int) -> int:
    data = origin + incarnation.to_bytes(8, "big") + top.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class Records:
    """The replicated store of one peer. ``own`` writes through :meth:`put` and :meth:`drop`; all others' through
    :meth:`apply`."""

    def __init__(
        self,
        own: PeerId,
        incarnation: int,
        obligated: Callable[[PeerId], bool],
        removed: Callable[[PeerId], bool] = lambda peer: False,
        *,
        last: int = 0,
        last_top: int = 0,
        reserve: Callable[[int], None] = lambda bound: None,
    ) -> None:
        """``removed(peer)``: its records are refused for ever. ``obligated(peer)``: they are kept while it is gone.
        ``last``: our incarnation before this one; ``last_top``: it published nothing beyond this. ``reserve(bound)``
        makes durable that this one publishes nothing beyond ``bound``."""
        self.own = own
        self._removed = removed
        self.origins: dict[PeerId, Origin] = {own: Origin(own, incarnation)}
        self._obligated = obligated
        self._keys: dict[tuple[int, bytes], int] = {}
        self._buckets = [0] * DIGEST_BUCKETS
        self._root: bytes | None = None
        self._others_bytes = 0
        self._last = last
        self._last_top = last_top
        self._reserve = reserve
        self._reserved = 0
        self._beyond = 0
        """The next own record gets a number above this one."""
        self.outlived = (0, 0)
        """What others hold of us beyond what we published: our disk was set back, or a copy of it runs elsewhere."""

    # --- own records ---

    @property
    def incarnation(self) -> int:
        return self.origins[self.own].incarnation

    def put(self, kind: int, key: bytes, body: bytes) -> Mark | None:
        """Publish ``body`` in place of the own record with equal (kind, key). Returns the mark before, or None when
        nothing changes. Raises RecordRefused at a bound."""
        origin = self.origins[self.own]
        old = self._keys.get((kind, key))
        if old is not None and origin.live[old].body == body:
            return None
        if len(body) > RECORD_BYTES_MAX:
            raise RecordRefused(f"own record of kind {kind} has {len(body)} bytes, at most {RECORD_BYTES_MAX} travel")
        if old is None and len(origin.live) >= RECORDS_PER_ORIGIN_MAX:
            raise RecordRefused(f"this peer already publishes {RECORDS_PER_ORIGIN_MAX} records")
        return self._write(kind, key, body)

    def _write(self, kind: int, key: bytes, body: bytes) -> Mark:
        """Publish ``body`` under the next number, in place of what (kind, key) had. Returns the mark before."""
        origin = self.origins[self.own]
        before = self.mark(self.own)
        old = self._keys.get((kind, key))
        sequence = self._next_sequence()
        if old is not None:
            origin.remove(old)
        origin.add(Record(sequence, kind, body))
        self._keys[kind, key] = sequence
        self._advance(origin, sequence, () if old is None else (old,))
        return before

    def drop(self, kind: int, key: bytes) -> Mark | None:
        """Withdraw the own record with (kind, key). Returns the mark before, or None when there was none."""
        old = self._keys.pop((kind, key), None)
        if old is None:
            return None
        origin = self.origins[self.own]
        before = self.mark(self.own)
        origin.remove(old)
        self._advance(origin, self._next_sequence(), (old,))
        return before

    def _next_sequence(self) -> int:
        sequence = max(self.origins[self.own].top, self._beyond) + 1
        if sequence > self._reserved:
            self._reserved = sequence + RECORDS_RESERVED
            self._reserve(self._reserved)
        return sequence

    def promised(self, kind: int, key: bytes) -> Mark | None:
        """Something others rely on goes to our disk: publish the record with (kind, key) again under a number that a
        disk set back to before it does not know of. Returns the mark before, or None when there is no such record."""
        self._beyond = self._reserved
        self._reserved += RECORDS_RESERVED
        self._reserve(self._reserved)
        old = self._keys.get((kind, key))
        return None if old is None else self._write(kind, key, self.origins[self.own].live[old].body)

    def told_of_us(self, incarnation: int, top: int) -> None:
        """Somebody holds (incarnation, top) of our own records; what we cannot have published ends this life."""
        mine = self.mark(self.own)
        is_ours = (
            incarnation < self._last
            or (incarnation == self._last and top <= self._last_top)
            or (incarnation == mine.incarnation and top <= mine.top)
        )
        if not is_ours and incarnation <= INCARNATION_MAX:
            self.outlived = max(self.outlived, (incarnation, top))

    def _advance(self, origin: Origin, top: int, dropped: tuple[int, ...]) -> None:
        origin.add_step(origin.top, top, dropped)
        self._set_mark(origin, origin.incarnation, top)

    def _set_mark(self, origin: Origin, incarnation: int, top: int) -> None:
        bucket = bucket_of(origin.peer)
        if origin.top:
            self._buckets[bucket] ^= _mark_hash(origin.peer, origin.incarnation, origin.top)
        origin.incarnation, origin.top = incarnation, top
        if top:
            self._buckets[bucket] ^= _mark_hash(origin.peer, incarnation, top)
        self._root = None

    # --- others' records ---

    def apply(self, now: float, delta: OriginDelta) -> Applied:
        """Take in what ``delta`` says of an origin that is not us. Raises MalformedDelta or RecordRefused; nothing
        is changed then."""
        held = self.origins.get(delta.origin)
        if held is not None and (delta.incarnation, delta.top) == (held.incarnation, held.top):
            # What it no longer lists we deleted ourselves when we reached our mark. Most of what a mesh hears.
            return _EQUAL
        living = self._validate(delta)
        if self._removed(delta.origin):
            raise RecordRefused("")  # whoever sends it has not heard of the removal yet
        if held is not None and delta.incarnation < held.incarnation:
            return Applied(behind=True)
        before = self.mark(delta.origin)
        is_fresh = held is None or delta.incarnation > held.incarnation
        top = 0 if held is None or is_fresh else held.top
        if delta.base > top:
            return Applied(gap=True, before=before)
        if not is_fresh and delta.top < top:
            return Applied(behind=True)
        self._admit(held, delta, () if is_fresh else living, top)
        removed: list[Record] = []
        self._others_bytes -= 0 if held is None else held.held_bytes
        seen_at = now - min(delta.age_s, RECORD_AGE_MAX_S)
        if held is None:
            held = Origin(delta.origin, delta.incarnation, absent_since=seen_at)
            self.origins[delta.origin] = held
        elif is_fresh:
            removed.extend(held.live.values())
            held.clear()
            self._set_mark(held, delta.incarnation, 0)
        if held.absent_since is not None:
            held.absent_since = max(held.absent_since, seen_at)
        removed.extend(self._delete(held, delta, living))
        added = tuple(record for record in delta.records if record.sequence > top)
        for record in added:
            held.add(record)
        self._others_bytes += held.held_bytes
        if delta.base == held.top and delta.live is None:
            held.add_step(held.top, delta.top, delta.dropped)
        else:
            held.forget_steps()
        self._set_mark(held, delta.incarnation, delta.top)
        return Applied(new=True, before=before, added=added, removed=tuple(removed))

    def _validate(self, delta: OriginDelta) -> tuple[int, ...]:
        """Raises MalformedDelta. Returns ``live`` as absolute sequences."""
        is_start = 1 <= delta.incarnation <= INCARNATION_MAX
        if not is_start or not delta.base <= delta.top < 1 << 63:
            raise MalformedDelta(f"marks {delta.incarnation}, {delta.base} to {delta.top} make no sense")
        last = delta.base
        for record in delta.records:
            if not last < record.sequence <= delta.top:
                raise MalformedDelta(f"record {record.sequence} is not between {last} and {delta.top}")
            last = record.sequence
        if any(not 0 < sequence <= delta.base for sequence in delta.dropped):
            raise MalformedDelta("a dropped record is not below the base")
        living: list[int] = []
        at = 0
        for distance in delta.live or ():
            at += distance
            if distance < 1 or at > delta.base:
                raise MalformedDelta("the living records are not ascending and below the base")
            living.append(at)
        return tuple(living)

    def _admit(self, held: Origin | None, delta: OriginDelta, living: tuple[int, ...], top: int) -> None:
        """Raises RecordRefused when a bound would be broken."""
        if held is None:
            if len(self.origins) >= PEERS_MAX:
                raise RecordRefused(f"records of {delta.origin.hex()}: {PEERS_MAX} peers are known already")
            if delta.age_s >= RECORD_ABSENT_EXPIRY_S - _EXPIRY_MARGIN_S and not self._obligated(delta.origin):
                raise RecordRefused("")  # Expiring everywhere; not worth a word.
        kept = 0 if held is None or top == 0 else (len(living) if delta.live is not None else len(held.live))
        if kept - len(delta.dropped) + len(delta.records) > RECORDS_PER_ORIGIN_MAX:
            raise RecordRefused(f"{delta.origin.hex()} publishes more than {RECORDS_PER_ORIGIN_MAX} records")
        new_bytes = sum([_held_bytes(record) for record in delta.records if record.sequence > top])
        replaced_bytes = held.held_bytes if held is not None and top == 0 else 0
        if new_bytes and self._others_bytes - replaced_bytes + new_bytes > RECORDS_BYTES_MAX:
            raise RecordRefused(
                f"records of {delta.origin.hex()}: {RECORDS_BYTES_MAX} bytes of all peers are held already"
            )

    def _delete(self, held: Origin, delta: OriginDelta, living: tuple[int, ...]) -> Iterator[Record]:
        gone = list(delta.dropped)
        if delta.live is not None:
            alive = set(living)
            gone.extend(s for s in takewhile(lambda s: s <= delta.base, held.live) if s not in alive)
        if delta.base < held.top:
            listed = {record.sequence for record in delta.records}
            gone.extend(s for s in takewhile(lambda s: s > delta.base, reversed(held.live)) if s not in listed)
        for sequence in gone:
            record = held.remove(sequence)
            if record is not None:
                yield record

    # --- deltas for others ---

    def mark(self, origin: PeerId) -> Mark:
        """Our mark of ``origin``; (0, 0) when nothing is held."""
        held = self.origins.get(origin)
        return Mark(origin, 0, 0) if held is None else Mark(origin, held.incarnation, held.top)

    def deltas(self, now: float, mark: Mark) -> Iterator[OriginDelta]:
        """What a peer at ``mark`` lacks, in pages that are to be applied in this order; nothing when it is not
        behind."""
        held = self.origins.get(mark.origin)
        if held is None or (mark.incarnation, mark.top) >= (held.incarnation, held.top):
            return
        base = mark.top if mark.incarnation == held.incarnation else 0
        fresh = list(takewhile(lambda record: record.sequence > base, reversed(held.live.values())))
        age_s = 0 if held.absent_since is None else max(0, int(now - held.absent_since) + 1)
        while True:
            dropped, live = self._deletions(held, base)
            budget = PAGE_BYTES_MAX - 2048 - 9 * len(dropped) - 3 * len(live or ())
            budget = max(budget, _PAGE_RECORDS_BYTES_MIN)
            page: list[Record] = []
            while fresh and budget > 0:
                record = fresh.pop()
                page.append(record)
                budget -= len(record.body) + _RECORD_OVERHEAD_BYTES
            top = page[-1].sequence if fresh else held.top
            yield OriginDelta(held.peer, held.incarnation, base, top, tuple(page), dropped, live, age_s)
            if not fresh:
                return
            base = top

    def _deletions(self, held: Origin, base: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """(dropped, live) for a peer at mark ``base``; see the module's text for which of the two is sound."""
        if base == 0:
            return (), None
        dropped: set[int] = set()
        for step_base, _, sequences in reversed(held.steps):
            if step_base < base:
                break
            dropped.update(sequence for sequence in sequences if sequence <= base)
            if step_base == base:
                return tuple(sorted(dropped)), None
        distances = []
        at = 0
        for sequence in takewhile(lambda s: s <= base, held.live):
            distances.append(sequence - at)
            at = sequence
        return (), tuple(distances)

    # --- digests ---

    @property
    def root(self) -> bytes:
        """8-byte hash of all marks."""
        if self._root is None:
            data = b"".join(bucket.to_bytes(8, "big") for bucket in self._buckets)
            self._root = hashlib.blake2b(data, digest_size=8).digest()
        return self._root

    def bucket_hashes(self) -> tuple[bytes, ...]:
        return tuple(bucket.to_bytes(8, "big") for bucket in self._buckets)

    def marks_by_bucket(self, buckets: set[int]) -> dict[int, list[Mark]]:
        found: dict[int, list[Mark]] = {bucket: [] for bucket in sorted(buckets)}
        for peer, held in self.origins.items():
            bucket = bucket_of(peer)
            if bucket in found and held.top:
                found[bucket].append(Mark(peer, held.incarnation, held.top))
        return found

    # --- absence ---

    def set_reachable(self, now: float, origin: PeerId, is_reachable: bool) -> None:
        held = self.origins.get(origin)
        if held is None:
            return
        if is_reachable:
            held.absent_since = None
        elif held.absent_since is None:
            held.absent_since = now

    def expire(self, now: float) -> list[Origin]:
        """Remove and return the origins absent for too long that carry no obligation."""
        gone = [
            held
            for held in self.origins.values()
            if held.absent_since is not None
            and held.peer != self.own
            and now - held.absent_since >= RECORD_ABSENT_EXPIRY_S
            and not self._obligated(held.peer)
        ]
        for held in gone:
            self._set_mark(held, held.incarnation, 0)
            self._others_bytes -= held.held_bytes
            del self.origins[held.peer]
        return gone

    def discard(self, peer: PeerId) -> Origin | None:
        """Drop everything of a removed peer; returns what was held."""
        held = self.origins.pop(peer, None)
        if held is not None:
            self._set_mark(held, held.incarnation, 0)
            self._others_bytes -= held.held_bytes
        return held

    def check(self) -> None:
        """Raises InvariantBroken."""
        buckets = [0] * DIGEST_BUCKETS
        if self._others_bytes != sum(held.held_bytes for peer, held in self.origins.items() if peer != self.own):
            raise InvariantBroken("bytes of others' records differ from their sum")
        for peer, held in self.origins.items():
            if held.held_bytes != sum(map(_held_bytes, held.live.values())):
                raise InvariantBroken(f"bytes of {peer.hex()} differ from those of its records")
            sequences = list(held.live)
            if sequences != sorted(set(sequences)) or (sequences and not 0 < sequences[0] <= sequences[-1] <= held.top):
                raise InvariantBroken(f"records of {peer.hex()} are not ascending within 1 … {held.top}")
            indexed = [sequence for sequence, record in held.live.items() if record.kind not in _UNINDEXED]
            if sorted(sequence for kind in held.by_kind.values() for sequence in kind) != indexed:
                raise InvariantBroken(f"records of {peer.hex()} differ from their index by kind")
            at = held.steps[0][0] if held.steps else held.top
            for base, top, _ in held.steps:
                if base != at or top < base:
                    raise InvariantBroken(f"steps of {peer.hex()} are not contiguous")
                at = top
            if at != held.top:
                raise InvariantBroken(f"steps of {peer.hex()} end at {at}, not at {held.top}")
            if held.top:
                buckets[bucket_of(peer)] ^= _mark_hash(peer, held.incarnation, held.top)
        if buckets != self._buckets:
            raise InvariantBroken("bucket hashes differ from the marks")
        own = self.origins[self.own]
        if sorted(self._keys.values()) != list(own.live):
            raise InvariantBroken("own keys differ from own records")
