"""Which container of this host uses which address: the durable table ``alloc`` and its two indexes.

Invariants: one row per (ident, address); an address taken inside the range has one holder. Outside the range nobody
checks, so several containers may hold the same one, also when the cluster turns out to have a range that includes it.

It does not decide whether an address may be used (``space``), nor when it is freed (``ipam``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from weavenet.core.effects import Change
from weavenet.core.errors import InvariantBroken
from weavenet.core.ranges import Ranges
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import Uint

ALLOC_TABLE = "alloc"

_encode = msgspec.msgpack.Encoder().encode


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """``ident`` uses ``address``. ``cidr`` is the subnet it was asked for in; ``claimed``: named, not chosen by us."""

    ident: str
    address: str
    cidr: str
    prefix_length: Uint
    claimed: bool

    @property
    def text(self) -> str:
        return f"{self.address}/{self.prefix_length}"


_decoder: msgspec.msgpack.Decoder[Holding] = msgspec.msgpack.Decoder(Holding)


def holding_key(ident: str, address: str) -> bytes:
    return f"{ident}\0{address}".encode()


def held_rows(holding: Holding) -> tuple[Change, ...]:
    """The rows that make a holding survive a crash."""
    return (Change(ALLOC_TABLE, holding_key(holding.ident, holding.address), _encode(holding)),)


def freed_rows(holding: Holding) -> tuple[Change, ...]:
    return (Change(ALLOC_TABLE, holding_key(holding.ident, holding.address), None),)


class Holdings:
    """All holdings of this host, by container and by offset in the ranges."""

    def __init__(self, disk: Mapping[tuple[str, bytes], bytes]) -> None:
        """Raises WeaveError for rows that are no holdings."""
        self.by_ident: dict[str, dict[str, Holding]] = {}
        self.by_offset: dict[int, Holding] = {}
        self._doubled: dict[int, list[Holding]] = {}
        self._area: Ranges | None = None
        for (table, key), value in disk.items():
            if table != ALLOC_TABLE:
                continue
            try:
                holding = _decoder.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise unreadable_row(ALLOC_TABLE, key, str(error)) from error
            if key != holding_key(holding.ident, holding.address):
                raise unreadable_row(ALLOC_TABLE, key, "the row names another container or address")
            self.by_ident.setdefault(holding.ident, {})[holding.address] = holding

    def __len__(self) -> int:
        return sum(map(len, self.by_ident.values()))

    def __iter__(self) -> Iterator[Holding]:
        for held in self.by_ident.values():
            yield from held.values()

    def enter(self, area: Ranges | None) -> None:
        """Index by offsets in ``area``. Raises WeaveError for a row whose address cannot be read."""
        self._area = area
        self.by_offset = {}
        self._doubled = {}
        for holding in self:
            try:
                offset = None if area is None else area.offset(holding.address)
            except ValueError as error:
                key = holding_key(holding.ident, holding.address)
                raise unreadable_row(ALLOC_TABLE, key, str(error)) from error
            if offset is None:
                continue
            if offset in self.by_offset:
                self._doubled.setdefault(offset, []).append(holding)
            else:
                self.by_offset[offset] = holding

    def put(self, holding: Holding, offset: int | None) -> None:
        self.by_ident.setdefault(holding.ident, {})[holding.address] = holding
        if offset in self._doubled:
            self.enter(self._area)
        elif offset is not None:
            self.by_offset[offset] = holding

    def drop(self, holding: Holding) -> int | None:
        """Forget a holding; its offset if that address is in the range and nobody holds it any more."""
        held = self.by_ident[holding.ident]
        del held[holding.address]
        if not held:
            del self.by_ident[holding.ident]
        offset = None if self._area is None else self._area.offset(holding.address)
        if offset is None:
            return None
        others = self._doubled.get(offset)
        if others is None:
            del self.by_offset[offset]
            return offset
        if holding in others:
            others.remove(holding)
        else:
            self.by_offset[offset] = others.pop(0)
        if not others:
            del self._doubled[offset]
        return None

    def holders(self, offset: int) -> tuple[Holding, ...]:
        """Everybody here who holds the address: one, or several who claimed it while it was outside the range."""
        first = self.by_offset.get(offset)
        return () if first is None else (first, *self._doubled.get(offset, ()))

    def find(self, ident: str, cidr: str) -> Holding | None:
        """What ``ident`` holds in exactly this subnet: the allocated one first, else the least claimed one."""
        held = self.by_ident.get(ident)
        if held is None:
            return None
        fitting = [holding for holding in held.values() if holding.cidr == cidr]
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        return min(fitting, key=lambda holding: (holding.claimed, holding.address))

    def of(self, ident: str) -> tuple[Holding, ...]:
        return tuple(self.by_ident.get(ident, {}).values())

    def within(self, low: int, high: int) -> list[int]:
        """Held offsets in [low, high), ascending; costs the smaller of the window and the number held."""
        if high - low <= len(self.by_offset):
            return [offset for offset in range(low, high) if offset in self.by_offset]
        return sorted(offset for offset in self.by_offset if low <= offset < high)

    def check(self) -> None:
        """Raises InvariantBroken when an index lost or invented a holding."""
        for offset, holding in self.by_offset.items():
            if self.by_ident.get(holding.ident, {}).get(holding.address) is not holding:
                raise InvariantBroken(f"offset {offset} is held by {holding.ident}, who does not know of it")
