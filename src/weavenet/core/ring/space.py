"""The addresses this peer may hand out: own in the ring, not in use, with those just freed set apart.

Invariants: ``free`` and ``resting`` are disjoint subsets of what the ring gives to us, without what containers use and
without what is ``held``: inherited from a removed peer and not usable before everybody known has confirmed it. A freed
address rests FREED_QUIET_S, so that what others remember of it fades first; until then it is handed out only when
nothing else is left, longest rest first.

It does not persist anything and does not change the ring.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from weavenet.core.errors import InvariantBroken
from weavenet.core.limits import FREED_QUIET_S
from weavenet.core.ranges import base
from weavenet.core.ring.free import FreeSpace
from weavenet.core.ring.holdings import Holdings
from weavenet.core.ring.segments import Ring
from weavenet.core.types import PeerId, Segment

WAKE_MAX = 256


class OwnSpace:
    """``ring`` is replaced through :meth:`follow` only, so that the free space always belongs to it."""

    def __init__(self, me: PeerId, holdings: Holdings) -> None:
        self._me = me
        self._holdings = holdings
        self.ring = Ring()
        self.free = FreeSpace()
        self.held = FreeSpace()
        self.resting: OrderedDict[int, float] = OrderedDict()  # a dict would walk what was deleted in front

    def rebuild(self, ring: Ring) -> None:
        """Start over with ``ring`` and the holdings as they are."""
        self.ring = ring
        self.free.clear()
        self.resting.clear()
        self._keep_owned()
        for low, high in ring.owned(self._me):
            self._add(low, high)

    def hold(self, intervals: Iterable[tuple[int, int]]) -> None:
        """These are not usable, ours already or about to be."""
        for low, high in intervals:
            self.held.add(low, high)
            self.free.remove(low, high)
            for offset in [each for each in self.resting if low <= each < high]:
                del self.resting[offset]

    def release(self) -> None:
        """All that was held is usable from now on."""
        released = list(self.held)
        self.held.clear()
        for low, high in released:
            self._add(low, high)

    def _keep_owned(self) -> None:
        """Nothing is held that is another's."""
        owned = self.ring.owned(self._me) if self.held.total else ()
        at, end = 0, base(len(self.ring.sizes))
        for low, high in (*owned, (end, end)):
            if at < low:
                self.held.remove(at, low)
            at = high

    def follow(self, ring: Ring, changed: Iterable[Segment]) -> None:
        """``ring`` differs from the present one only at ``changed`` (as merge returned it)."""
        self.ring = ring
        for piece in changed:
            self.free.remove(piece.start, piece.end)
            if piece.stamp.owner == self._me:
                self._add(piece.start, piece.end)
                continue
            if self.held.total:
                self.held.remove(piece.start, piece.end)
            if self.resting:
                for offset in [each for each in self.resting if piece.start <= each < piece.end]:
                    del self.resting[offset]

    def owns(self, offset: int) -> bool:
        """Ours, and not held."""
        stamp = self.ring.stamp_at(offset)
        return stamp is not None and stamp.owner == self._me and offset not in self.held

    def owns_all(self, low: int, high: int) -> bool:
        """All ours, and nothing of it held."""
        if self.held.total and self.held.count(low, high):
            return False
        at = low
        for segment in self.ring.within(low, high):
            if segment.start != at or segment.stamp.owner != self._me:
                return False
            at = segment.end
        return at == high

    def take(self, now: float, low: int, high: int) -> int | None:
        """The lowest usable offset in [low, high), which is no longer free then."""
        self.wake(now)
        offset = self.free.take_lowest(low, high)
        if offset is None and self.resting:
            offset = next((each for each in self.resting if low <= each < high), None)
            if offset is not None:
                del self.resting[offset]
        return offset

    def take_exactly(self, offset: int) -> None:
        """``offset``, which must be ours, is not free any more."""
        self.free.remove(offset, offset + 1)
        self.resting.pop(offset, None)

    def give_back(self, now: float, offset: int) -> None:
        """Nobody here holds ``offset`` any more."""
        if self.owns(offset):
            self.resting[offset] = now

    def wake(self, now: float) -> None:
        """What has rested long enough is free like any other; WAKE_MAX at a time, so that no one allocation pays for
        the release of thousands. What is left is still handed out when nothing else is."""
        for _ in range(WAKE_MAX):
            if not self.resting:
                return
            offset, freed_at = next(iter(self.resting.items()))
            if now < freed_at + FREED_QUIET_S:
                return
            del self.resting[offset]
            self.free.add(offset, offset + 1)

    def check(self) -> None:
        self.free.check()
        for low, high in self.free:
            if not self.owns_all(low, high):
                raise InvariantBroken(f"free addresses {low}..{high} are not all ours")
            if self._holdings.within(low, high):
                raise InvariantBroken(f"free addresses {low}..{high} are partly held")
        for offset in self.resting:
            if not self.owns(offset) or offset in self._holdings.by_offset or offset in self.free:
                raise InvariantBroken(f"resting address {offset} is free, held or not ours")

    def _add(self, low: int, high: int) -> None:
        """[low, high) is ours: free it except for what is held or resting."""
        at = low
        for offset in self._holdings.within(low, high):
            self.free.add(at, offset)
            at = offset + 1
        self.free.add(at, high)
        if self.held.total:
            for start, end in list(self.held):
                self.free.remove(max(start, low), min(end, high))
        for offset in self.resting:
            if low <= offset < high:
                self.free.remove(offset, offset + 1)
