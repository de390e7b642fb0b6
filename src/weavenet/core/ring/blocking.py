"""Addresses that containers here hold although the ring gives them to somebody else.

A higher stamp took them (after a forced removal, a second binder of a seed, or a range we adopted). The bridge filters
their ports; they are claimed back from their owner one at a time, and stay blocked while he refuses.

Invariants: exactly the held in-range addresses that are not ours are blocked, durably (``ipam`` keeps it so).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from weavenet.core.effects import Change
from weavenet.core.limits import SPACE_RETRY_S
from weavenet.core.ranges import offset_key
from weavenet.core.ring.holdings import Holdings
from weavenet.core.ring.segments import unreadable_row

BLOCKED_TABLE = "blocked"
RECLAIM_RETRY_S = 30.0
"""A refused address is asked for again this often: its user there may have gone."""


class Block(msgspec.Struct):
    """``refusal``: the owner's words, or empty. ``retry_at``: not asked for again before (seconds)."""

    refusal: str = ""
    retry_at: float = 0.0


class Blocked:
    """Blocked addresses by offset in the ranges."""

    def __init__(self, holdings: Holdings, disk: Mapping[tuple[str, bytes], bytes]) -> None:
        """Raises WeaveError for rows that this program cannot have written."""
        self._holdings = holdings
        self._blocks: dict[int, Block] = {}
        self._sorted: tuple[tuple[str, str], ...] | None = None
        for (table, key), value in disk.items():
            if table == BLOCKED_TABLE:
                try:
                    self._blocks[int.from_bytes(key, "big")] = Block(msgspec.msgpack.decode(value, type=str))
                except msgspec.DecodeError as error:
                    raise unreadable_row(BLOCKED_TABLE, key, str(error)) from error

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, offset: int) -> bool:
        return offset in self._blocks

    def offsets(self) -> tuple[int, ...]:
        return tuple(self._blocks)

    def replace(self, offsets: Iterable[int]) -> list[Change]:
        """Exactly ``offsets`` are blocked; the rows that make the store say so."""
        wanted = set(offsets)
        rows = [change for offset in sorted(set(self._blocks) - wanted) for change in self.unblock(offset)]
        rows += [change for offset in sorted(wanted) for change in self.block(offset)]
        self._sorted = None  # the same offsets may be other addresses now
        return rows

    def block(self, offset: int) -> list[Change]:
        if offset in self._blocks:
            return []
        self._blocks[offset] = Block()
        self._sorted = None
        return [_row(offset, "")]

    def unblock(self, offset: int) -> list[Change]:
        if offset not in self._blocks:
            return []
        del self._blocks[offset]
        self._sorted = None
        return [Change(BLOCKED_TABLE, offset_key(offset), None)]

    def refused(self, now: float, offset: int, words: str) -> list[Change]:
        """The peer we asked did not give it back; ``words`` say who uses it there, or nothing if it is not the owner
        any more."""
        block = self._blocks[offset]
        block.retry_at = now + (RECLAIM_RETRY_S if words else SPACE_RETRY_S)
        if not words or block.refusal == words:
            return []
        block.refusal = words
        return [_row(offset, words)]

    def refusal(self, offset: int) -> str:
        return self._blocks[offset].refusal

    def due(self, now: float) -> list[int]:
        """Offsets to claim back, in order of address."""
        return sorted(offset for offset, block in self._blocks.items() if block.retry_at <= now)

    def deadline(self, now: float) -> float | None:
        """When a refused address is due again."""
        return min((block.retry_at for block in self._blocks.values() if block.retry_at > now), default=None)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(ident, address), sorted."""
        if self._sorted is None:
            self._sorted = tuple(
                sorted(
                    (holding.ident, holding.address)
                    for offset in self._blocks
                    for holding in self._holdings.holders(offset)
                )
            )
        return self._sorted

    def touched(self) -> None:
        """A holder of a blocked address came or went."""
        self._sorted = None


def _row(offset: int, words: str) -> Change:
    return Change(BLOCKED_TABLE, offset_key(offset), msgspec.msgpack.encode(words))
