"""The ring: who owns which address, as a canonical tuple of stamped segments of all ranges of a cluster.

A ring denotes a function f: offset → Stamp ∪ {⊥}. **Merge is the pointwise maximum** (⊥ least), so it is commutative,
associative, idempotent and total: there is no inconsistent ring, no refused merge, no deletion.

Invariants: segments are sorted and disjoint, each is non-empty and inside one range, and touching neighbours differ in
stamp. Hence equal functions have equal segments (the canonical form is unique) and equal hashes.

Cost: a merge walks the delta and what it overlaps, found by bisection; the rest is copied by slicing. Hashes are kept
per 1/64 of a range and only recomputed where something changed.

It does not know the log, its own peer, allocations, or whether a stamp may be made (see ``ipam``); it never makes one.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

import msgspec

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, InvariantBroken, WeaveError
from weavenet.core.limits import DIGEST_BUCKETS
from weavenet.core.ranges import RANGE_BITS, base, local, placed, told
from weavenet.core.types import PeerId, Segment, Stamp

RING_TABLE = "ring"

_end_of = attrgetter("end")
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Segment] = msgspec.msgpack.Decoder(Segment)


class SegmentsInvalid(Exception):
    """A segment is empty or not inside one range: input from elsewhere that must not be stored."""


def wins(new: Stamp, old: Stamp) -> bool:
    """The order that the merge takes the maximum of. It is total, so arrival order cannot matter."""
    return new > old


class Ring:
    """An immutable ring of ranges with so many addresses each (``sizes``); partial rings (deltas, pages) are rings
    too. The ring before genesis has no range."""

    __slots__ = ("_digests", "_hash", "_shares", "segments", "sizes")

    sizes: tuple[int, ...]
    segments: tuple[Segment, ...]

    def __init__(self, sizes: tuple[int, ...] = (), segments: Iterable[Segment] = ()) -> None:
        """``segments`` may come in any order and overlap: the larger stamp holds. Raises SegmentsInvalid."""
        self.sizes = sizes
        self.segments = canonical(sizes, tuple(segments))
        self._digests: list[bytes | None] = [None] * (DIGEST_BUCKETS * max(1, len(sizes)))
        self._hash: bytes | None = None
        self._shares: dict[PeerId, int] | None = None

    def merge(self, segments: Iterable[Segment]) -> tuple[Ring, tuple[Segment, ...]]:
        """The pointwise maximum, and the pieces of it that differ from this ring. Raises SegmentsInvalid."""
        merged, changed = _merge(self.segments, canonical(self.sizes, tuple(segments)))
        if not changed:
            return self, ()
        ring = Ring(self.sizes)
        ring.segments = tuple(merged)
        ring._digests = list(self._digests)
        for piece in changed:
            first, last = map(self._bucket, (piece.start, piece.end - 1))
            ring._digests[first : last + 1] = [None] * (last + 1 - first)
        return ring, tuple(changed)

    def stamp_at(self, offset: int) -> Stamp | None:
        index = bisect_right(self.segments, offset, key=_end_of)
        if index == len(self.segments) or self.segments[index].start > offset:
            return None
        return self.segments[index].stamp

    def within(self, low: int, high: int) -> tuple[Segment, ...]:
        """The part of the ring inside offsets [low, high), cut at its ends."""
        return tuple(_clipped(self.segments, low, high))

    def touching(self, low: int, high: int) -> tuple[Segment, ...]:
        """Whole segments that overlap [low, high) or touch it."""
        segments, found = self.segments, []
        for index in range(bisect_right(segments, low - 1, key=_end_of), len(segments)):
            if segments[index].start > high:
                break
            found.append(segments[index])
        return tuple(found)

    def owned(self, peer: PeerId) -> tuple[tuple[int, int], ...]:
        """Maximal intervals [low, high) whose stamp names ``peer``."""
        found: list[tuple[int, int]] = []
        for segment in self.segments:
            if segment.stamp.owner != peer:
                continue
            if found and found[-1][1] == segment.start:
                found[-1] = (found[-1][0], segment.end)
            else:
                found.append((segment.start, segment.end))
        return tuple(found)

    @property
    def shares(self) -> Mapping[PeerId, int]:
        """Owner → number of addresses stamped with it, of all ranges together."""
        if self._shares is None:
            self._shares = {}
            for segment in self.segments:
                owner = segment.stamp.owner
                self._shares[owner] = self._shares.get(owner, 0) + segment.end - segment.start
        return self._shares

    def shares_of(self, number: int) -> dict[PeerId, int]:
        """The same of range ``number`` alone."""
        shares: dict[PeerId, int] = {}
        for segment in self.segments:
            if segment.start >> RANGE_BITS == number:
                owner = segment.stamp.owner
                shares[owner] = shares.get(owner, 0) + segment.end - segment.start
        return shares

    @property
    def is_full(self) -> bool:
        """Whether every address has a stamp (true from genesis on)."""
        number, at = 0, 0
        for segment in self.segments:
            if number < len(self.sizes) and at == base(number) + self.sizes[number]:
                number, at = number + 1, base(number + 1)
            if segment.start != at:
                return False
            at = segment.end
        return not self.sizes or (number == len(self.sizes) - 1 and at == base(number) + self.sizes[number])

    @property
    def hash(self) -> bytes:
        """16 bytes; equal exactly when the rings are equal."""
        if self._hash is None:
            self._hash = hashlib.sha256(b"".join(self._bucket_digests())).digest()[:16]
        return self._hash

    def bucket_hashes(self, number: int = 0) -> tuple[bytes, ...]:
        """8 bytes for each 1/64 of range ``number``, for finding where two rings differ."""
        first = number * DIGEST_BUCKETS
        if first >= len(self._digests):
            return Ring().bucket_hashes()
        return tuple(digest[:8] for digest in self._bucket_digests()[first : first + DIGEST_BUCKETS])

    def bucket_bounds(self, bucket: int, number: int = 0) -> tuple[int, int]:
        """Offsets [low, high) of one 1/64 of range ``number``."""
        size = self.sizes[number] if number < len(self.sizes) else 0
        low = -(-bucket * size // DIGEST_BUCKETS)
        high = -(-(bucket + 1) * size // DIGEST_BUCKETS)
        return base(number) + low, base(number) + high

    def _bucket(self, offset: int) -> int:
        """The index in ``_digests`` that ``offset`` belongs to."""
        number = offset >> RANGE_BITS
        return number * DIGEST_BUCKETS + local(offset) * DIGEST_BUCKETS // self.sizes[number]

    def check(self) -> None:
        """Raises InvariantBroken unless the segments are canonical."""
        previous: Segment | None = None
        for segment in self.segments:
            if not _fits(self.sizes, segment):
                raise InvariantBroken(f"segment {segment} is empty or not inside one of {self.sizes}")
            if previous is not None and previous.end > segment.start:
                raise InvariantBroken(f"segments {previous} and {segment} overlap")
            if previous is not None and previous.end == segment.start and previous.stamp == segment.stamp:
                raise InvariantBroken(f"segments {previous} and {segment} should be one")
            previous = segment

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ring) and self.sizes == other.sizes and self.segments == other.segments

    def __hash__(self) -> int:
        return hash((self.sizes, self.segments))

    def __repr__(self) -> str:
        return f"Ring({self.sizes}, {self.segments!r})"

    def _bucket_digests(self) -> Sequence[bytes]:
        digests: list[bytes] = []
        for index, known in enumerate(self._digests):
            digest = known
            if digest is None:
                number, bucket = divmod(index, DIGEST_BUCKETS)
                content = told(number, self.within(*self.bucket_bounds(bucket, number)))
                digest = hashlib.sha256(_encode(content)).digest()[:16]
                self._digests[index] = digest
            digests.append(digest)
        return digests


def canonical(sizes: tuple[int, ...], segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Sorted, disjoint, joined form of any collection of segments. Raises SegmentsInvalid."""
    for segment in segments:
        if not _fits(sizes, segment):
            raise SegmentsInvalid(f"segment {segment.start}..{segment.end} is empty or not inside one of {sizes}")
    return _canonical(segments)


def _fits(sizes: tuple[int, ...], segment: Segment) -> bool:
    """Not empty, and inside one range."""
    number = segment.start >> RANGE_BITS
    return 0 <= number < len(sizes) and segment.start < segment.end <= base(number) + sizes[number]


def _canonical(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if _is_canonical(segments):
        return segments
    half = len(segments) // 2
    if half == 0:
        return segments
    return tuple(_merge(_canonical(segments[:half]), _canonical(segments[half:]))[0])


def _is_canonical(segments: tuple[Segment, ...]) -> bool:
    end, stamp = 0, None
    for segment in segments:
        if segment.start < end or (segment.start == end and segment.stamp == stamp):
            return False
        end, stamp = segment.end, segment.stamp
    return True


def _push(pieces: list[Segment], start: int, end: int, stamp: Stamp) -> None:
    """Append a piece, joined with the last one if they touch and carry the same stamp."""
    if pieces and pieces[-1].end == start and pieces[-1].stamp == stamp:
        pieces[-1] = Segment(pieces[-1].start, end, stamp)
    else:
        pieces.append(Segment(start, end, stamp))


def _copy(pieces: list[Segment], source: tuple[Segment, ...], first: int, last: int, cut: int) -> None:
    """Append ``source[first:last]``, of which everything below ``cut`` is already there."""
    if first < last:
        segment = source[first]
        _push(pieces, max(segment.start, cut), segment.end, segment.stamp)
        if first + 1 < last:
            segment = source[first + 1]
            _push(pieces, segment.start, segment.end, segment.stamp)
            pieces.extend(source[first + 2 : last])


def _merge(old: tuple[Segment, ...], delta: tuple[Segment, ...]) -> tuple[list[Segment], list[Segment]]:
    """Pointwise maximum of two canonical tuples, and where it differs from ``old``."""
    merged: list[Segment] = []
    changed: list[Segment] = []
    index, cut = 0, 0  # old[:index] is in merged, and old[index] up to offset ``cut``
    for new in delta:
        reached = bisect_right(old, new.start, lo=index, key=_end_of)
        if reached > index:
            _copy(merged, old, index, reached, cut)
            index, cut = reached, 0
        at = new.start
        while at < new.end:
            under = old[index] if index < len(old) else None
            if under is None or under.start > at:
                stop = new.end if under is None else min(new.end, under.start)
                _push(merged, at, stop, new.stamp)
                _push(changed, at, stop, new.stamp)
                at = stop
                continue
            begin = max(under.start, cut)
            if begin < at:
                _push(merged, begin, at, under.stamp)
            stop = min(under.end, new.end)
            if wins(new.stamp, under.stamp):
                _push(merged, at, stop, new.stamp)
                _push(changed, at, stop, new.stamp)
            else:
                _push(merged, at, stop, under.stamp)
            at = stop
            index, cut = (index + 1, 0) if stop == under.end else (index, stop)
    _copy(merged, old, index, len(old), cut)
    return merged, changed


def _clipped(segments: tuple[Segment, ...], low: int, high: int) -> Iterator[Segment]:
    if low >= high:
        return  # a bucket of a range with fewer addresses than buckets
    for index in range(bisect_right(segments, low, key=_end_of), len(segments)):
        segment = segments[index]
        if segment.start >= high:
            return
        if segment.start < low or segment.end > high:
            segment = Segment(max(segment.start, low), min(segment.end, high), segment.stamp)
        yield segment


# --- rows ---


def ring_key(start: int) -> bytes:
    """The number of the range, and the offset within it."""
    return start.to_bytes(9, "big")


def ring_rows(old: Ring, new: Ring, changed: Iterable[Segment]) -> list[Change]:
    """Row changes that turn the stored ``old`` into ``new``; they differ only at ``changed`` (as merge returned it)."""
    stale: dict[int, Segment] = {}
    fresh: dict[int, Segment] = {}
    for piece in changed:
        stale.update((segment.start, segment) for segment in old.touching(piece.start, piece.end))
        fresh.update((segment.start, segment) for segment in new.touching(piece.start, piece.end))
    rows = [Change(RING_TABLE, ring_key(start), None) for start in stale if start not in fresh]
    rows += [
        Change(RING_TABLE, ring_key(start), _encode(*told(start >> RANGE_BITS, (segment,))))
        for start, segment in fresh.items()
        if stale.get(start) != segment
    ]
    return rows


def load_ring(sizes: tuple[int, ...], disk: Mapping[tuple[str, bytes], bytes]) -> Ring:
    """The ring as persisted, empty when there are no rows. Raises WeaveError for rows that no ring can have."""
    segments: list[Segment] = []
    for (table, key), value in disk.items():
        if table == RING_TABLE:
            try:
                segment = _decoder.decode(value)
            except msgspec.DecodeError as error:
                raise unreadable_row(RING_TABLE, key, str(error)) from error
            if key[1:] != segment.start.to_bytes(8, "big"):
                raise unreadable_row(RING_TABLE, key, f"the row says it starts at {segment.start}")
            segments += placed(key[0], (segment,))
    segments.sort(key=attrgetter("start"))
    try:
        ring = Ring(sizes, segments)
    except SegmentsInvalid as error:
        raise unreadable_row(RING_TABLE, b"", str(error)) from error
    if ring.segments != tuple(segments):
        raise unreadable_row(RING_TABLE, b"", "rows overlap")
    return ring


def unreadable_row(table: str, key: bytes, found: str) -> WeaveError:
    """The error for stored state that cannot have been written by this program."""
    return WeaveError(
        Failure(
            Code.STORE_FAILED,
            expected=f"expected a readable row {key.hex() or '(all)'} in table {table} of the store",
            found=found,
            next_step="restore the data directory from a copy, or delete it and launch as a new peer",
        )
    )
