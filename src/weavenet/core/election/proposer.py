"""Leading the genesis election.

Phases: IDLE → PREPARING → ACCEPTING → IDLE (decided, or beaten by a higher ballot). The lowest reachable elector
leads at once, the others after a pause that grows with their rank, so that duels are rare and a dead leader is
replaced.

Invariants: our own promise and acceptance are persisted before any message of that phase; an accepted value reported by
a quorum is proposed again instead of ours; electors and owners of a new record are exactly those heard from.

Source: L. Lamport, "Paxos Made Simple" (2001). Ballots carry a nonce of this start, because a proposer that lost its
memory must not reuse a ballot.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

from weavenet.core.effects import Outbox
from weavenet.core.election.acceptor import Acceptor
from weavenet.core.election.electorate import Electorate
from weavenet.core.limits import ELECTION_GRACE_S, ELECTION_RETRY_S
from weavenet.core.messages.unicast import Accept, Accepted, Nack, Prepare, Promise
from weavenet.core.ranges import genesis_problem
from weavenet.core.types import ZERO_BALLOT, Ballot, Genesis, PeerId

RESEND_S = 0.25
"""Silent electors are asked again this often within one ballot."""


class Phase(Enum):
    IDLE = "idle"
    PREPARING = "preparing"
    ACCEPTING = "accepting"


class GenesisElection:
    """``draft(electors)`` makes the record we would propose. ``decided`` holds the outcome once a quorum accepted
    it."""

    def __init__(
        self,
        *,
        me: PeerId,
        electorate: Electorate,
        acceptor: Acceptor,
        outbox: Outbox,
        rng: random.Random,
        draft: Callable[[tuple[PeerId, ...]], Genesis],
    ) -> None:
        self._me = me
        self._electorate = electorate
        self._acceptor = acceptor
        self._outbox = outbox
        self._rng = rng
        self._draft = draft
        self._nonce = rng.randbytes(8)
        self._phase = Phase.IDLE
        self._ballot = Ballot(0, me, self._nonce)
        self._value: Genesis | None = None
        self._promises: dict[PeerId, Promise] = {}
        self._accepted: set[PeerId] = set()
        self._electors: tuple[PeerId, ...] = ()
        self._settled: frozenset[PeerId] = frozenset()
        self._highest_round = acceptor.state.promised.round
        self._start_at: float | None = None
        self._resend_at = 0.0
        self._give_up_at = 0.0
        self._grace_until: float | None = None
        self.decided: Genesis | None = None

    @property
    def has_promised(self) -> bool:
        """Durably: without this peer's disk the same vote could be given twice."""
        return self._acceptor.state.promised != ZERO_BALLOT

    @property
    def heard_from(self) -> tuple[PeerId, ...]:
        """Electors that answered the current ballot."""
        return tuple(sorted(self._promises))

    def deadline(self) -> float | None:
        if self._phase is Phase.IDLE:
            return self._start_at
        times = [self._resend_at, self._give_up_at]
        if self._grace_until is not None:
            times.append(self._grace_until)
        return min(times)

    def advance(
        self, now: float, *, wanted: bool, electors: tuple[PeerId, ...], settled: frozenset[PeerId] = frozenset()
    ) -> None:
        """``electors``: reachable ones, ourselves included, sorted; ``settled``: those known to have counted their
        targets, who were silent until then. Starts, resends, gives up or moves on as due."""
        self._electors = electors
        if not settled <= self._settled:
            self._resend_at = now
        self._settled = settled
        if self.decided is not None or not wanted or not self._electorate.settled:
            self._start_at = None
            if self._phase is not Phase.IDLE and not wanted:
                self._phase = Phase.IDLE
            return
        match self._phase:
            case Phase.IDLE:
                if len(electors) < self._electorate.quorum:
                    self._start_at = None
                    return
                if self._start_at is None:
                    rank = sum(1 for elector in electors if elector < self._me)
                    self._start_at = now if rank == 0 else now + rank * ELECTION_RETRY_S + self._jitter()
                if now >= self._start_at:
                    self._prepare(now)
            case Phase.PREPARING | Phase.ACCEPTING:
                if now >= self._give_up_at:
                    self._retire(now)
                elif self._phase is Phase.PREPARING and self._may_propose(now):
                    self._propose(now)
                elif now >= self._resend_at:
                    self._send(now)

    def handle(self, now: float, source: PeerId, message: Prepare | Promise | Accept | Accepted | Nack) -> None:
        """One election message. Proposals while our own count is unsettled are ignored: the proposer asks again."""
        value = message.value if isinstance(message, Accept) else None
        value = message.accepted if isinstance(message, Promise) else value
        if value is not None and (problem := genesis_problem(value)):
            self._outbox.note("warning", "election", f"ignored a proposal by way of {source.hex()[:12]}: {problem}")
            return
        match message:
            case Prepare() | Accept():
                self._highest_round = max(self._highest_round, message.ballot.round)
                if not self._electorate.settled:
                    return
                self._electorate.heard(message.n, source)
                self._electorate.fix()
                answer = (
                    self._acceptor.prepare(message, n=self._electorate.n)
                    if isinstance(message, Prepare)
                    else self._acceptor.accept(message, n=self._electorate.n)
                )
                self._outbox.unicast(source, answer)
                if isinstance(answer, Promise):
                    self._stand_aside(now)
            case Promise():
                if self._phase is Phase.PREPARING and message.ballot == self._ballot:
                    self._promises[source] = message
                    self._count(now, message.n, source)
            case Accepted():
                if self._phase is Phase.ACCEPTING and message.ballot == self._ballot:
                    self._accepted.add(source)
                    self._count(now, message.n, source)
            case Nack():
                self._highest_round = max(self._highest_round, message.promised.round)
                self._electorate.heard(message.n, source)
                if self._phase is not Phase.IDLE and message.ballot == self._ballot:
                    self._retire(now)

    def forget(self) -> None:
        """Leave a cluster (a yielding singleton): nothing is decided, wanted or promised any more."""
        self.decided = None
        self._phase = Phase.IDLE
        self._start_at = None
        self._value = None
        self._acceptor.forget()

    # --- phases ---

    def _prepare(self, now: float) -> None:
        self._electorate.fix()
        self._phase = Phase.PREPARING
        self._highest_round += 1
        self._ballot = Ballot(self._highest_round, self._me, self._nonce)
        self._promises, self._accepted, self._value = {}, set(), None
        self._grace_until = None
        self._give_up_at = now + 2 * ELECTION_GRACE_S + 2 * ELECTION_RETRY_S + self._jitter()
        own = self._acceptor.prepare(Prepare(self._ballot, self._electorate.n), n=self._electorate.n)
        if isinstance(own, Nack):
            self._retire(now)
            return
        self._promises[self._me] = own
        self._send(now)
        self._count(now, self._electorate.n, self._me)

    def _may_propose(self, now: float) -> bool:
        if len(self._promises) < self._electorate.quorum:
            self._grace_until = None  # a larger N was heard since the quorum stood: the grace begins when it does again
            return False
        if len(self._promises) >= self._electorate.n:
            return True
        if self._grace_until is None:
            self._grace_until = now + ELECTION_GRACE_S
        return now >= self._grace_until

    def _propose(self, now: float) -> None:
        accepted = [
            (promise.accepted_ballot, promise.accepted)
            for promise in self._promises.values()
            if promise.accepted_ballot is not None and promise.accepted is not None
        ]
        self._value = max(accepted, key=lambda pair: pair[0])[1] if accepted else self._draft(self.heard_from)
        self._phase = Phase.ACCEPTING
        self._grace_until = None
        own = self._acceptor.accept(Accept(self._ballot, self._electorate.n, self._value), n=self._electorate.n)
        if isinstance(own, Nack):
            self._retire(now)
            return
        self._accepted.add(self._me)
        self._send(now)
        self._count(now, self._electorate.n, self._me)

    def _count(self, now: float, n: int, source: PeerId) -> None:
        if n > self._electorate.n:
            self._electorate.heard(n, source)
            self._retire(now)
            return
        if self._phase is Phase.PREPARING and self._may_propose(now):
            self._propose(now)
        elif self._phase is Phase.ACCEPTING and self._is_chosen():
            self.decided = self._value
            self._phase = Phase.IDLE
            self._start_at = None

    def _is_chosen(self) -> bool:
        return len(self._accepted) >= self._electorate.quorum

    def _retire(self, now: float) -> None:
        """This ballot is lost or stuck: try again later with a higher one."""
        self._phase = Phase.IDLE
        self._grace_until = None
        self._start_at = now + ELECTION_RETRY_S * 0.5 + self._jitter()

    def _stand_aside(self, now: float) -> None:
        """Somebody leads with our promise: leave it the time that it may wait for the others of N (history *duel*:
        proposers that retry within each other's grace never let anybody finish)."""
        if self._phase is Phase.PREPARING:
            self._phase = Phase.IDLE
            self._grace_until = None
        if self._phase is Phase.IDLE:
            self._start_at = now + ELECTION_GRACE_S + ELECTION_RETRY_S + self._jitter()

    def _send(self, now: float) -> None:
        self._resend_at = now + RESEND_S
        silent = self._promises if self._phase is Phase.PREPARING else self._accepted
        for elector in self._electors:
            if elector == self._me or elector in silent:
                continue
            if self._phase is Phase.PREPARING:
                self._outbox.unicast(elector, Prepare(self._ballot, self._electorate.n))
            elif self._value is not None:
                self._outbox.unicast(elector, Accept(self._ballot, self._electorate.n, self._value))

    def _jitter(self) -> float:
        return self._rng.random() * ELECTION_RETRY_S
