"""How many electors there are, before there is a record that says so (spec "Genesis": N and its quorum).

N is the given ``consensus=N`` or the count from targets, raised to the largest N heard and to the electors met + 1.
What was heard and met is durable; the count from targets is taken anew at each start and fixed by the first promise or
proposal. N never shrinks within a start: a quorum counted against a smaller N could be a second one.
"""

from __future__ import annotations

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import ELECTORS_MAX
from weavenet.core.types import PeerId

TABLE = "election"
_MET = b"met"
_HEARD = b"heard"


def quorum(n: int) -> int:
    """Majority of ``n`` electors."""
    return n // 2 + 1


class Electorate:
    def __init__(
        self, *, me: PeerId, given: int, met_row: bytes | None, heard_row: bytes | None, outbox: Outbox
    ) -> None:
        self._me = me
        self._given = given
        self._outbox = outbox
        self._met: set[PeerId] = set(msgspec.msgpack.decode(met_row, type=list[PeerId])) if met_row else set()
        self._heard = msgspec.msgpack.decode(heard_row, type=int) if heard_row else 0
        self._from_targets = 1
        self._fixed = False
        self.settled = given > 0

    @staticmethod
    def disk_keys() -> tuple[tuple[str, bytes], tuple[str, bytes]]:
        return (TABLE, _MET), (TABLE, _HEARD)

    @property
    def n(self) -> int:
        base = self._given or self._from_targets
        return min(max(base, self._heard, len(self._met) + 1), ELECTORS_MAX)

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

    def heard(self, n: int) -> None:
        if n > self._heard and n <= ELECTORS_MAX:
            self._heard = n
            self._outbox.persist(Change(TABLE, _HEARD, msgspec.msgpack.encode(n)))

    def met(self, elector: PeerId) -> None:
        if elector == self._me or elector in self._met or len(self._met) >= ELECTORS_MAX:
            return
        self._met.add(elector)
        self._outbox.persist(Change(TABLE, _MET, msgspec.msgpack.encode(sorted(self._met))))

    def forget(self) -> None:
        """A decided record makes the count pointless; a later cluster starts counting anew."""
        self._met.clear()
        self._heard = 0
        self._outbox.persist(Change(TABLE, _MET, None), Change(TABLE, _HEARD, None))
