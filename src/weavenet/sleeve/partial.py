"""Frames sealed as a whole that arrive in fragments. Nothing of them is authenticated until the frame is complete."""

from __future__ import annotations

from weavenet.sleeve.wire import HEADER_BYTES, INDEX_AT, LAST_AT


class Partial:
    """Fragments of one sealed frame that have arrived so far. ``pieces``: those up to ``next``; ``rest``: later ones,
    by index."""

    __slots__ = ("base", "last", "next", "pieces", "rest")

    def __init__(self, base: int, last: int) -> None:
        self.base = base
        self.last = last
        self.pieces: list[bytes | memoryview] = []
        self.next = 0
        self.rest: dict[int, bytes] = {}

    def take_each(self, view: memoryview, start: bytes, at: int, length: int, stride: int) -> int:
        """Copy fragments in any order from ``view[at:length]``, datagrams of ``stride`` bytes. ``start``: the header
        up to the index. Returns where those of this frame end; ``at`` when the first contradicts what came before."""
        while at < length:
            end = min(at + stride, length)
            if view[at : at + INDEX_AT] != start or view[at + LAST_AT] != self.last:
                break
            index = view[at + INDEX_AT]
            if self.next <= index <= self.last:
                self.rest[index] = view[at + HEADER_BYTES : end].tobytes()
            at = end
        while self.next in self.rest:
            self.pieces.append(self.rest.pop(self.next))
            self.next += 1
        return at
