"""Which start of this peer it is: a persisted counter above 32 random bits, greater from start to start.

The whole number is persisted, not only the counter, before anything of the start is sent. So whatever others can know
of our starts is at most what the disk last held or this start itself; anything between or above is a start that this
disk has not seen, also when a copy of the disk counted to the same number.

A disk set back within one and the same start cannot be told from a restart by this.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from weavenet.core.effects import Change

_TABLE, _KEY = "meta", b"incarnation"
_RANDOM_BITS = 32


def last_incarnation(disk: Mapping[tuple[str, bytes], bytes]) -> int:
    """Of the start before this one; 0 without any."""
    return msgspec.msgpack.decode(disk.get((_TABLE, _KEY), b"\x00"), type=int)


def next_incarnation(disk: Mapping[tuple[str, bytes], bytes], rng: random.Random) -> int:
    return ((start_number(last_incarnation(disk)) + 1) << _RANDOM_BITS) | rng.getrandbits(_RANDOM_BITS)


def incarnation_row(incarnation: int) -> Change:
    return Change(_TABLE, _KEY, msgspec.msgpack.encode(incarnation))


def start_number(incarnation: int) -> int:
    """As shown to people."""
    return incarnation >> _RANDOM_BITS
