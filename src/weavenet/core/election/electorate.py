"""How many electors there are, before there is a record that says so (spec "Genesis": N and its quorum).

N is the given ``consensus=N`` or the count from targets, raised to the largest N heard and to the electors met + 1.
What was heard and met, and what was given, is durable; the count from targets is taken anew at each start and fixed by
the first promise or proposal. N never shrinks within a start: a quorum counted against a smaller N could be a second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import ELECTORS_MAX
from weavenet.core.types import PeerId

TABLE = "election"
_MET = b"met"
_HEARD = b"heard"
_GIVEN = b"given"
NAMED_MAX = 5
"""Electors met that are named as the reason of a count."""


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """The largest count heard, and of whom."""

    n: int
    source: PeerId


def quorum(n: int) -> int:
    """Majority of ``n`` electors."""
    return n // 2 + 1


class Turnout(NamedTuple):
    """``missing``: voters that cannot be asked now. ``lacking``: how many of them would have to come back for a
    quorum."""

    missing: tuple[PeerId, ...]
    lacking: int


def turnout(voters: Collection[PeerId], address: Callable[[PeerId], PeerId | None]) -> Turnout:
    """``address(voter)``: the reachable peer that casts this vote, or None."""
    missing = tuple(voter for voter in voters if address(voter) is None)
    return Turnout(missing, max(0, quorum(len(voters)) - (len(voters) - len(missing))))


class Electorate:
    """``given``: N of ``consensus=N``, 0 when not given. One that differs from that of the start before is the
    operator's word on who still exists: what was heard and met until then counts no more (the living say it again)."""

    def __init__(self, *, me: PeerId, given: int, disk: Mapping[tuple[str, bytes], bytes], outbox: Outbox) -> None:
        self._me = me
        self._given = given
        self._outbox = outbox
        met, heard, last_given = (disk.get((TABLE, key)) for key in (_MET, _HEARD, _GIVEN))
        self._met: set[PeerId] = set(msgspec.msgpack.decode(met, type=list[PeerId])) if met else set()
        self._heard = msgspec.msgpack.decode(heard, type=Heard) if heard else Heard(0, me)
        if given != (msgspec.msgpack.decode(last_given, type=int) if last_given else 0):
            if given:
                self.forget()
            outbox.persist(Change(TABLE, _GIVEN, msgspec.msgpack.encode(given) if given else None))
        self._from_targets = 1
        self._fixed = False
        self.settled = given > 0

    @property
    def n(self) -> int:
        base = self._given or self._from_targets
        return min(max(base, self._heard.n, len(self._met) + 1), ELECTORS_MAX)

    @property
    def contradicted(self) -> int:
        """The N that was given and has no effect, since more were heard of or met; else 0."""
        return self._given if 0 < self._given < self.n else 0

    def why(self, name: Callable[[PeerId], str]) -> str:
        """Where :attr:`n` comes from, in words."""
        if self._given == self.n:
            return "--ipalloc-init consensus"
        if self._met and len(self._met) + 1 == self.n:
            return f"this host and {', '.join(name(peer) for peer in sorted(self._met)[:NAMED_MAX])}"
        if self._heard.n == self.n:
            return f"as {name(self._heard.source)} counts"
        return "this host and its targets"

    @property
    def quorum(self) -> int:
        return quorum(self.n)

    @property
    def announced(self) -> int:
        """What our record tells others: 0 until each target was tried, since one of them may be ourselves."""
        return self.n if self.settled else 0

    def count_targets(self, count: int, settled: bool) -> None:
        """``count``: electors that the targets stand for, ourselves included."""
        if self._given or self._fixed:
            return
        self._from_targets = count
        self.settled = self.settled or settled

    def fix(self) -> None:
        """From the first promise or proposal of this start the count from targets no longer moves."""
        self._fixed = True

    def heard(self, n: int, source: PeerId) -> None:
        """``source`` counts ``n`` electors."""
        if self._heard.n < n <= ELECTORS_MAX:
            self._heard = Heard(n, source)
            self._outbox.persist(Change(TABLE, _HEARD, msgspec.msgpack.encode(self._heard)))

    def met(self, elector: PeerId) -> None:
        if elector == self._me or elector in self._met or len(self._met) >= ELECTORS_MAX:
            return
        self._met.add(elector)
        self._outbox.persist(Change(TABLE, _MET, msgspec.msgpack.encode(sorted(self._met))))

    def forget(self) -> None:
        """A decided record makes the count pointless; a later cluster starts counting anew."""
        self._met.clear()
        self._heard = Heard(0, self._me)
        self._outbox.persist(Change(TABLE, _MET, None), Change(TABLE, _HEARD, None))
