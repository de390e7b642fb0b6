"""Which start of this peer it is: a persisted counter above 32 random bits, greater from start to start.

The whole number is persisted, not only the counter, before anything of the start is sent. So whatever others can know
of our starts is at most what the disk last held or this start itself; anything between or above is a start that this
disk has not seen, also when a copy of the disk counted to the same number.

A disk set back within one and the same start is told from a restart by the sequence numbers of our own records: the
disk always holds a bound (``published``) that no number told to anybody exceeds, raised in steps of RECORDS_RESERVED.
With each promise to others (a vote, a grant) the bound is raised in the same breath and the next number told lies
beyond the one before. So whoever has heard of us since that promise knows more than a disk set back behind it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from weavenet.core.effects import Change

_TABLE, _KEY = "meta", b"incarnation"
_PUBLISHED = b"published"
PROMISES = frozenset({"acceptor", "grants"})
"""Tables whose rows others rely on."""
_WITHOUT_BOUND = 1 << 63
_RANDOM_BITS = 32


def last_incarnation(disk: Mapping[tuple[str, bytes], bytes]) -> int:
    """Of the start before this one; 0 without any."""
    return msgspec.msgpack.decode(disk.get((_TABLE, _KEY), b"\x00"), type=int)


def last_published(disk: Mapping[tuple[str, bytes], bytes]) -> int:
    """What no sequence number exceeds that the start before this one told anybody."""
    row = disk.get((_TABLE, _PUBLISHED))
    if row is None:
        return _WITHOUT_BOUND if last_incarnation(disk) else 0
    incarnation, bound = msgspec.msgpack.decode(row, type=tuple[int, int])
    return bound if incarnation == last_incarnation(disk) else 0


def published_row(incarnation: int, bound: int) -> Change:
    return Change(_TABLE, _PUBLISHED, msgspec.msgpack.encode((incarnation, bound)))


def next_incarnation(disk: Mapping[tuple[str, bytes], bytes], rng: random.Random) -> int:
    return ((start_number(last_incarnation(disk)) + 1) << _RANDOM_BITS) | rng.getrandbits(_RANDOM_BITS)


def incarnation_row(incarnation: int) -> Change:
    return Change(_TABLE, _KEY, msgspec.msgpack.encode(incarnation))


def start_number(incarnation: int) -> int:
    """As shown to people."""
    return incarnation >> _RANDOM_BITS
