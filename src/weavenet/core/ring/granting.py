"""The donor's side of space between peers: what to give, and remembering what was given.

Invariants: an answer that gave something is remembered durably per requester, with its request id, and repeated word
for word when asked again; a request older than the remembered one is ignored, since its answer was superseded. One row
per requester is enough because a requester has at most one request in flight to one donor; it goes with the requester.

It does not stamp or persist; ``ipam`` does both in one step with the answer's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from weavenet.core.effects import Change
from weavenet.core.limits import GRANT_ADDRESSES_MIN
from weavenet.core.ring.free import FreeSpace
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import PeerId, Segment, Stamp, Uint

GRANT_TABLE = "grants"

_encode = msgspec.msgpack.Encoder().encode


class Given(msgspec.Struct, frozen=True, array_like=True):
    """The last grant to one requester: ``segments`` of range number ``range_index``, counted from its start."""

    request: Uint
    segments: tuple[Segment, ...]
    range_index: Uint = 0


_decoder: msgspec.msgpack.Decoder[Given] = msgspec.msgpack.Decoder(Given)


class Grants:
    """What was last given to whom."""

    def __init__(self, disk: Mapping[tuple[str, bytes], bytes]) -> None:
        """Raises WeaveError for rows that are no grants."""
        self._given: dict[PeerId, Given] = {}
        for (table, key), value in disk.items():
            if table != GRANT_TABLE:
                continue
            try:
                self._given[PeerId(key)] = _decoder.decode(value)
            except msgspec.DecodeError as error:
                raise unreadable_row(GRANT_TABLE, key, str(error)) from error

    def last(self, requester: PeerId) -> Given | None:
        return self._given.get(requester)

    def remember(self, requester: PeerId, given: Given) -> Change:
        self._given[requester] = given
        return Change(GRANT_TABLE, requester, _encode(given))

    def forget(self, requesters: Iterable[PeerId]) -> list[Change]:
        """These ask no more."""
        gone = [requester for requester in sorted(requesters) if requester in self._given]
        for requester in gone:
            del self._given[requester]
        return [Change(GRANT_TABLE, requester, None) for requester in gone]

    def forget_all(self) -> list[Change]:
        return self.forget(tuple(self._given))


def choose_block(free: FreeSpace, low: int, high: int) -> tuple[int, int] | None:
    """What to give of the free space in [low, high): the biggest aligned block; its upper half if it is more than half
    of what is free there.

    A half smaller than GRANT_ADDRESSES_MIN is not worth a segment, so then the whole block goes. Blocks that small go
    only when no bigger one is left: whoever can be served is served.
    """
    block = free.biggest_block(low, high)
    if block is None:
        return None
    start, end = block
    half = (end - start) // 2
    if half >= GRANT_ADDRESSES_MIN and 2 * (end - start) > free.count(low, high):
        start += half
    return start, end


def next_stamp(pieces: Sequence[Segment], owner: PeerId) -> Stamp:
    """The stamp by which an owner passes on, or re-versions, the non-empty ``pieces`` of its own space: it beats each
    of them and is not ahead of the log."""
    stamps = [piece.stamp for piece in pieces]
    return Stamp(max(stamp.position for stamp in stamps), 1 + max(stamp.version for stamp in stamps), owner)
