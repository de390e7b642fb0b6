"""Sorted disjoint intervals of free addresses.

Invariants: intervals are non-empty, disjoint and do not touch (touching ones are joined); ``total`` is their length.
Starts are kept in chunks of bounded length, so that every point operation costs a bisection and a short list shift,
also with a hundred thousand holes.

It does not know why an address is free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from weavenet.core.errors import InvariantBroken

CHUNK_MAX = 512
"""Starts per chunk; a longer chunk is halved. 512 keeps a shift within a few cache lines."""


class FreeSpace:
    """A mutable set of offsets, stored as intervals."""

    __slots__ = ("_chunks", "_end", "_firsts", "total")

    def __init__(self) -> None:
        self._chunks: list[list[int]] = []
        self._firsts: list[int] = []
        self._end: dict[int, int] = {}
        self.total = 0

    def __contains__(self, offset: int) -> bool:
        start = self._floor(offset)
        return start is not None and offset < self._end[start]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for chunk in self._chunks:
            for start in chunk:
                yield start, self._end[start]

    def clear(self) -> None:
        self._chunks, self._firsts, self._end, self.total = [], [], {}, 0

    def add(self, low: int, high: int) -> None:
        """Make [low, high) free; parts of it may be free already."""
        if low >= high:
            return
        for start, end in list(self._overlapping(low - 1, high + 1)):
            low, high = min(low, start), max(high, end)
            self._delete(start)
        self._insert(low, high)

    def remove(self, low: int, high: int) -> None:
        """Make [low, high) not free; parts of it may be so already."""
        if low >= high:
            return
        for start, end in list(self._overlapping(low, high)):
            self._delete(start)
            if start < low:
                self._insert(start, low)
            if end > high:
                self._insert(high, end)

    def take_lowest(self, low: int, high: int) -> int | None:
        """Remove and return the lowest free offset in [low, high), or None when there is none."""
        offset = self.lowest(low, high)
        if offset is not None:
            self._take(offset)
        return offset

    def lowest(self, low: int, high: int) -> int | None:
        """The lowest free offset in [low, high)."""
        for start, _ in self._overlapping(low, high):
            return max(start, low)
        return None

    def within(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Free intervals, cut to [low, high)."""
        for start, end in self._overlapping(low, high):
            yield max(start, low), min(end, high)

    def count(self, low: int, high: int) -> int:
        return sum(end - start for start, end in self.within(low, high))

    def biggest_block(self, low: int, high: int) -> tuple[int, int] | None:
        """The biggest free block in [low, high) whose length is a power of two and divides its start.

        Of equal ones the last: allocation starts from the low end. Linear in the intervals of the window.
        """
        best, best_size = None, 0
        for start, end in self.within(low, high):
            if end - start < best_size:
                continue
            block = aligned_block(start, end)
            if block[1] - block[0] >= best_size:
                best, best_size = block, block[1] - block[0]
        return best

    def check(self) -> None:
        """Raises InvariantBroken unless intervals are sorted, apart, and add up to ``total``."""
        previous_end, total = -1, 0
        for start, end in self:
            if not previous_end < start < end:
                raise InvariantBroken(f"free interval {start}..{end} after one that ends at {previous_end}")
            previous_end, total = end, total + end - start
        if total != self.total or len(self._end) != sum(map(len, self._chunks)):
            raise InvariantBroken(f"free space counts {self.total} addresses and has {total}")
        if self._firsts != [chunk[0] for chunk in self._chunks]:
            raise InvariantBroken("free space index is out of step")

    # --- the chunked list of starts ---

    def _place(self, offset: int) -> tuple[int, int]:
        """(chunk, index) of the last start at or before ``offset``; index -1 when there is none."""
        chunk = bisect_right(self._firsts, offset) - 1
        if chunk < 0:
            return 0, -1
        return chunk, bisect_right(self._chunks[chunk], offset) - 1

    def _floor(self, offset: int) -> int | None:
        chunk, index = self._place(offset)
        return None if index < 0 else self._chunks[chunk][index]

    def _overlapping(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Whole intervals that share an offset with [low, high)."""
        chunk, index = self._place(low)
        if index < 0 or self._end[self._chunks[chunk][index]] <= low:
            index += 1
        while chunk < len(self._chunks):
            starts = self._chunks[chunk]
            while index < len(starts):
                start = starts[index]
                if start >= high:
                    return
                yield start, self._end[start]
                index += 1
            chunk, index = chunk + 1, 0

    def _take(self, offset: int) -> None:
        """Remove one free offset; in place when it begins its interval, which it usually does."""
        chunk, index = self._place(offset)
        start = self._chunks[chunk][index]
        if start != offset or self._end[start] == offset + 1:
            self.remove(offset, offset + 1)
            return
        self._end[offset + 1] = self._end.pop(start)
        self._chunks[chunk][index] = offset + 1
        if index == 0:
            self._firsts[chunk] = offset + 1
        self.total -= 1

    def _insert(self, start: int, end: int) -> None:
        self._end[start] = end
        self.total += end - start
        if not self._chunks:
            self._chunks, self._firsts = [[start]], [start]
            return
        number, index = self._place(start)
        chunk = self._chunks[number]
        chunk.insert(index + 1, start)
        self._firsts[number] = chunk[0]
        if len(chunk) > CHUNK_MAX:
            half = len(chunk) // 2
            self._chunks[number : number + 1] = [chunk[:half], chunk[half:]]
            self._firsts[number : number + 1] = [chunk[0], chunk[half]]

    def _delete(self, start: int) -> None:
        self.total -= self._end.pop(start) - start
        number, index = self._place(start)
        chunk = self._chunks[number]
        del chunk[index]
        if chunk:
            self._firsts[number] = chunk[0]
        else:
            del self._chunks[number], self._firsts[number]


def aligned_block(start: int, end: int) -> tuple[int, int]:
    """The biggest aligned power-of-two block inside the non-empty [start, end); of equal ones the last."""
    size = 1 << ((end - start).bit_length() - 1)
    while True:
        low = (end - size) // size * size
        if low >= start:
            return low, low + size
        size //= 2
