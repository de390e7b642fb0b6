"""Frames sealed as a whole that arrive in fragments. Nothing of them is authenticated until the frame is complete:
anybody can send what looks like them, so they are bounded in number, bytes and time.
"""

from __future__ import annotations

from weavenet.sleeve.arrival import Arrival
from weavenet.sleeve.wire import FRAME_BYTES_MAX, TAG_BYTES

PARTIAL_BYTES_MAX = FRAME_BYTES_MAX + TAG_BYTES


class Partial:
    """Fragments of one sealed frame that have arrived so far. ``pieces``: those up to ``next``; ``rest``: later ones,
    by index; ``size``: bytes of both, never much above PARTIAL_BYTES_MAX; ``is_old``: has seen a sweep."""

    __slots__ = ("base", "is_old", "last", "next", "pieces", "rest", "size")

    def __init__(self, base: int, last: int) -> None:
        self.base = base
        self.last = last
        self.pieces: list[bytes] = []
        self.next = 0
        self.rest: dict[int, bytes] = {}
        self.size = 0
        self.is_old = False

    @property
    def is_too_large(self) -> bool:
        """Whether no frame has as much: some of it is forged, or its sender does not keep to the format."""
        return self.size > PARTIAL_BYTES_MAX

    def take(self, index: int, last: int, count: int, arrival: Arrival, number: int) -> bool:
        """Copy ``count`` fragments from ``index`` on, which are the datagrams from ``number`` on. False when that
        contradicts what came before."""
        if last != self.last:
            return False
        if index == self.next and not self.rest:
            piece = arrival.together(number, count).tobytes()
            self.pieces.append(piece)
            self.size += len(piece)
            self.next += count
            return True
        for at in range(index, index + count):
            if at >= self.next and at not in self.rest:
                self.rest[at] = arrival.body(number + at - index).tobytes()
                self.size += len(self.rest[at])
                if self.is_too_large:
                    return True
        while self.next in self.rest:
            self.pieces.append(self.rest.pop(self.next))
            self.next += 1
        return True
