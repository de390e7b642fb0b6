"""Who may take a leaver's addresses and remember what it knows, by what they said lately.

Of peers that leave at the same time the one with the greater id counts as staying for the others, and only where nobody
really stays: so everybody may leave at once, and the last finds nobody left to wait for.
"""

from __future__ import annotations

from weavenet.core.leaving.phases import Surroundings
from weavenet.core.limits import CUSTODIANS_MIN, LEAVE_ANSWER_VALID_S
from weavenet.core.messages.leaving import LeaveAnswer
from weavenet.core.types import PeerId


class Prospects:
    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._answers: dict[PeerId, tuple[float, LeaveAnswer]] = {}

    def clear(self) -> None:
        self._answers.clear()

    def heard(self, now: float, source: PeerId, answer: LeaveAnswer) -> None:
        self._answers[source] = (now, answer)

    def _fresh(self, now: float) -> dict[PeerId, LeaveAnswer]:
        present = self._around.reachable() & self._around.acquaintances
        return {
            peer: answer
            for peer, (heard_at, answer) in sorted(self._answers.items())
            if peer in present and now < heard_at + LEAVE_ANSWER_VALID_S
        }

    def staying(self, now: float) -> dict[PeerId, LeaveAnswer]:
        """The best first: who really stays, electors, whoever has least space."""
        found = {peer: answer for peer, answer in self._fresh(now).items() if answer.stays}

        def rank(peer: PeerId) -> tuple[bool, bool, int, PeerId]:
            answer = found[peer]
            return answer.leaves, not answer.elector, answer.free, peer

        return {peer: found[peer] for peer in sorted(found, key=rank)}

    def heirs(self, now: float) -> dict[PeerId, LeaveAnswer]:
        """Of those the ones that may own space; nobody who leaves while somebody stays."""
        owners = {peer: answer for peer, answer in self.staying(now).items() if answer.owns}
        steady = {peer: answer for peer, answer in owners.items() if not answer.leaves}
        return steady or owners

    def expected(self, now: float) -> frozenset[PeerId]:
        """Everybody known who has not said lately that it leaves too."""
        leaving = {peer for peer, answer in self._fresh(now).items() if not answer.stays}
        return self._around.acquaintances - leaving

    def missing(self, now: float) -> frozenset[PeerId]:
        """Of those expected, who is silent or out of reach."""
        return self.expected(now) - self.staying(now).keys()

    def lacks_witness(self, now: float) -> bool:
        return len(self.staying(now)) < min(CUSTODIANS_MIN, len(self.expected(now)))
