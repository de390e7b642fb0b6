"""Frames sealed as a whole that arrive in fragments. Nothing of them is authenticated until the frame is complete:
anybody can send what looks like them, so they are bounded in number, bytes and time.
"""

from __future__ import annotations

from weavenet.sleeve.wire import FRAME_BYTES_MAX, HEADER_BYTES, INDEX_AT, LAST_AT, TAG_BYTES

PARTIAL_BYTES_MAX = FRAME_BYTES_MAX + TAG_BYTES


class Partial:
    """Fragments of one sealed frame that have arrived so far. ``pieces``: those up to ``next``; ``rest``: later ones,
    by index; ``size``: bytes of both, never much above PARTIAL_BYTES_MAX; ``is_old``: has seen a sweep."""

    __slots__ = ("base", "is_old", "last", "next", "pieces", "rest", "size")

    def __init__(self, base: int, last: int) -> None:
        self.base = base
        self.last = last
        self.pieces: list[bytes | memoryview] = []
        self.next = 0
        self.rest: dict[int, bytes] = {}
        self.size = 0
        self.is_old = False

    @property
    def is_too_large(self) -> bool:
        """Whether no frame has as much: some of it is forged, or its sender does not keep to the format."""
        return self.size > PARTIAL_BYTES_MAX

    def take_each(self, view: memoryview, start: bytes, at: int, length: int, stride: int) -> int:
        """Copy fragments in any order from ``view[at:length]``, datagrams of ``stride`` bytes. ``start``: the header
        up to the index. Returns where those of this frame end; ``at`` when the first contradicts what came before."""
        while at < length:
            end = min(at + stride, length)
            if view[at : at + INDEX_AT] != start or view[at + LAST_AT] != self.last:
                break
            index = view[at + INDEX_AT]
            if self.next <= index <= self.last and index not in self.rest:
                self.rest[index] = view[at + HEADER_BYTES : end].tobytes()
                self.size += end - at - HEADER_BYTES
                if self.is_too_large:
                    return end
            at = end
        while self.next in self.rest:
            self.pieces.append(self.rest.pop(self.next))
            self.next += 1
        return at
