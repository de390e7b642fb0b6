"""The ranges that a cluster divides, as one space of offsets: an IPv4 range, an IPv6 range, or one of each.

Range number ``i`` has the offsets from ``i * 2^64`` on, so that one ring, one free space and one table of holdings
serve all of them, and nothing reaches from one range into the next: between the last offset of a range and the first of
the next one there is always a gap. On the wire and on disk an offset is told as the number of its range and the offset
within that range, since integers of msgpack stop at 2^64; this module translates.

Pure. It does not know who owns what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby

import msgspec

from weavenet.core.types import AddressRange, Genesis, Segment

RANGE_BITS = 64
IPV6_PREFIX_MIN = 64
"""A shorter prefix has more addresses than offsets can count; one subnet of 2^64 is enough for anybody."""


class Ranges(msgspec.Struct, frozen=True):
    """At least one range, at most one per address family."""

    areas: tuple[AddressRange, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(cidrs: tuple[str, ...]) -> Ranges:
        """Raises ValueError for texts that are no ranges of one cluster (:func:`ranges_problem`)."""
        problem = ranges_problem(cidrs)
        if problem or not cidrs:
            raise ValueError(problem or "expected a range to divide")
        return Ranges(tuple(map(AddressRange.parse, cidrs)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Addresses of each range."""
        return tuple(area.size for area in self.areas)

    @property
    def size(self) -> int:
        """Addresses of all ranges together."""
        return sum(self.sizes)

    @property
    def text(self) -> str:
        """As given to ``--ipalloc-range``."""
        return ",".join(area.cidr for area in self.areas)

    def address(self, offset: int) -> str:
        """Text form of the address at ``offset``."""
        return self.areas[offset >> RANGE_BITS].address(local(offset))

    def offset(self, address: str) -> int | None:
        """Offset of ``address``, or None when it is in no range. Raises ValueError when it is no address."""
        for number, area in enumerate(self.areas):
            found = area.offset(address)
            if found is not None:
                return base(number) + found
        return None

    def window(self, subnet: AddressRange) -> tuple[int, int] | None:
        """Offsets [low, high) of ``subnet``, clipped to the range of its family; None when they do not overlap."""
        for number, area in enumerate(self.areas):
            found = area.window(subnet)
            if found is not None:
                return base(number) + found[0], base(number) + found[1]
        return None


def base(number: int) -> int:
    """The first offset of range ``number``."""
    return number << RANGE_BITS


def local(offset: int) -> int:
    """``offset`` counted from the start of its range."""
    return offset & ((1 << RANGE_BITS) - 1)


def offset_key(offset: int) -> bytes:
    """Key of a row about one address: 8 bytes in the first range, the number of the range before them in others."""
    return offset.to_bytes(8 if offset < base(1) else 9, "big")


def by_range(segments: Iterable[Segment]) -> Iterator[tuple[int, tuple[Segment, ...]]]:
    """(number of the range, segments counted from its start), for each range that sorted ``segments`` touch."""
    for number, found in groupby(segments, key=lambda segment: segment.start >> RANGE_BITS):
        yield number, told(number, tuple(found))


def told(number: int, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """``segments`` of range ``number``, counted from its start: as they are told to others, and stored."""
    return placed(-number, segments)


def placed(number: int, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The reverse of :func:`told`."""
    if number == 0:
        return segments
    shift = base(number)
    return tuple(Segment(each.start + shift, each.end + shift, each.stamp) for each in segments)


def ranges_problem(ranges: Sequence[str]) -> str:
    """What keeps texts, of another peer perhaps, from being ranges to divide; empty when nothing does."""
    versions: set[int] = set()
    for text in ranges:
        try:
            area = AddressRange.parse(text)
        except ValueError as error:
            return str(error)
        if area.version in versions:
            return f"{text} is a second IPv{area.version} range"
        if area.version == 6 and area.prefix_length < IPV6_PREFIX_MIN:
            return f"{text} has more than 2^64 addresses"
        versions.add(area.version)
    return ""


def genesis_problem(genesis: Genesis) -> str:
    """Why ``genesis`` can be no cluster record; empty when it can. To be asked before it is accepted durably: a log
    refuses such a record, so electors that accepted one could never decide again."""
    if not genesis.ranges or not genesis.owners:
        return "the genesis divides no range, or among nobody"
    problem = ranges_problem(genesis.ranges)
    return f"the genesis has no readable range: {problem}" if problem else ""
