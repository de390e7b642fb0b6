"""Decrees after genesis: one Paxos instance per position of the log, among exactly the voters before it (α = 1).

Any member may propose. A voter answers only for the position right after its own log and only to a proposer whose log
is the same (``predecessor``), so whoever decides position n durably knows everything before n, and both sides take the
voters from the same log. A proposer that meets an accepted value finishes that first and proposes its own at the next
position. Decided is what a quorum of the voters accepted; the node appends it to the log and spreads it. A decree that
makes no sense where it ended up is a no-op (see ``Log``).

Invariants: promise and acceptance are persisted before they are told, the proposer's own included; a ballot belongs to
one start of one peer (nonce). What was accepted for a position is forgotten only after the log holds that position: the
row of the next one replaces it. Of a log that was replaced by a greater epoch's nothing is answered any more, because
its positions never come up again.

``wanted`` is asked anew whenever a value is chosen: a removal whose evidence went stale is not proposed. What a
minority has already accepted can still be finished by somebody else later; Paxos cannot take that back, and it need
not: a removed peer that lives is fenced.

Source: L. Lamport, "Paxos Made Simple" (2001). What this does not do: say what should be decreed, act on decrees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.election.acceptor import TABLE
from weavenet.core.election.electorate import quorum, turnout
from weavenet.core.election.proposer import RESEND_S, Phase
from weavenet.core.limits import DECREE_PATIENCE_S, ELECTION_RETRY_S
from weavenet.core.messages.unicast import (
    DecreeAccept,
    DecreeAccepted,
    DecreeNack,
    DecreePrepare,
    DecreePromise,
    Proposal,
)
from weavenet.core.ring.log import Log
from weavenet.core.types import GENESIS_POSITION, ZERO16, ZERO_BALLOT, Ballot, LogEntry, PeerId, Position

DecreeMessage = DecreePrepare | DecreePromise | DecreeAccept | DecreeAccepted | DecreeNack


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """What a voter promised and accepted for one position, as stored."""

    promised: Ballot
    accepted_ballot: Ballot | None
    accepted: Proposal | None


_NO_VOTE = Vote(ZERO_BALLOT, None, None)
_encode = msgspec.msgpack.Encoder().encode
_vote_decoder = msgspec.msgpack.Decoder(Vote)
_position_decoder = msgspec.msgpack.Decoder(Position)


class DecreeAcceptor:
    """The durable half. ``rows`` are those of table ``acceptor``; the genesis' row there is another class's."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._outbox = outbox
        self.votes: dict[Position, Vote] = {}
        for key, value in rows:
            position = _position_decoder.decode(key)
            if position != GENESIS_POSITION:
                self.votes[position] = _vote_decoder.decode(value)

    def vote(self, position: Position) -> Vote:
        return self.votes.get(position, _NO_VOTE)

    def store(self, position: Position, vote: Vote) -> None:
        """``position`` must follow our log, so every other position is decided or abandoned by now."""
        stale = [each for each in self.votes if each != position]
        self.votes = {position: vote}
        self._outbox.persist(
            Change(TABLE, _encode(position), _encode(vote)), *(Change(TABLE, _encode(each), None) for each in stale)
        )

    def abandon_below(self, epoch: tuple[int, bytes]) -> None:
        """A log of ``epoch`` is ours: nothing of lower epochs is voted on any more."""
        gone = [each for each in self.votes if (each.epoch, each.epoch_id) < epoch]
        self._outbox.persist(*(Change(TABLE, _encode(each), None) for each in gone))
        for each in gone:
            del self.votes[each]

    def forget(self) -> None:
        """Drop all: this peer gave up its cluster for another."""
        self._outbox.persist(*(Change(TABLE, _encode(each), None) for each in self.votes))
        self.votes = {}


class DecreeElection:
    """``wanted(now)``: the decree this peer wants on top of its present log, or None. ``votes_as()``: the voter whose
    vote this peer casts, or None. ``address(voter)``: the reachable peer that casts this vote, or None. ``decided``
    holds an outcome until the node takes it."""

    def __init__(
        self,
        *,
        me: PeerId,
        log: Log,
        acceptor: DecreeAcceptor,
        outbox: Outbox,
        rng: random.Random,
        wanted: Callable[[float], Proposal | None],
        votes_as: Callable[[], PeerId | None],
        address: Callable[[PeerId], PeerId | None],
    ) -> None:
        self._me = me
        self._log = log
        self._acceptor = acceptor
        self._outbox = outbox
        self._rng = rng
        self._wanted = wanted
        self._votes_as = votes_as
        self._address = address
        self._nonce = rng.randbytes(8)
        self._phase = Phase.IDLE
        self._position = GENESIS_POSITION
        self._predecessor = ZERO16
        self._ballot = Ballot(0, me, self._nonce)
        self._value: Proposal | None = None
        self._is_own_value = False
        self._promises: dict[PeerId, DecreePromise] = {}
        self._accepted: set[PeerId] = set()
        self._highest_round = 0
        self._start_at: float | None = None
        self._resend_at = 0.0
        self._give_up_at = 0.0
        self.decided: LogEntry | None = None

    @property
    def lacking(self) -> int:
        """How many voters would have to come back for a quorum."""
        return turnout(self._log.voters, self._address).lacking

    def deadline(self) -> float | None:
        if self._phase is Phase.IDLE:
            return self._start_at
        return min(self._resend_at, self._give_up_at)

    def advance(self, now: float) -> None:
        """Start, resend, give up or drop the attempt as due. To be called whenever log or wishes may have changed."""
        if self._log.genesis is None or self.decided is not None:
            return
        if self._phase is not Phase.IDLE and not self._is_current():
            self._phase = Phase.IDLE  # decided or overtaken meanwhile: what is still wanted goes on top
            self._start_at = now
        wanted = self._wanted(now)
        if wanted is None and (self._phase is Phase.IDLE or self._phase is Phase.PREPARING or self._is_own_value):
            self._phase = Phase.IDLE
            self._start_at = None
            return
        if self._phase is Phase.IDLE:
            self._start(now)
        elif now >= self._give_up_at:
            self._retire(now)
        elif now >= self._resend_at:
            self._send(now)

    def handle(self, now: float, source: PeerId, message: DecreeMessage) -> None:
        match message:
            case DecreePrepare() | DecreeAccept():
                answer = self._vote(message)
                if answer is not None:
                    self._outbox.unicast(source, answer)
                if isinstance(answer, DecreePromise):
                    self._stand_aside(now)
            case DecreePromise():
                if self._is_mine(message.position, message.ballot, Phase.PREPARING, message.voter):
                    self._promises[message.voter] = message
                    self._count(now)
            case DecreeAccepted():
                if self._is_mine(message.position, message.ballot, Phase.ACCEPTING, message.voter):
                    self._accepted.add(message.voter)
                    self._count(now)
            case DecreeNack():
                self._nacked(now, message)

    def follow_log(self) -> None:
        """The log changed."""
        self._acceptor.abandon_below(self._log.chain.epoch)

    def forget(self) -> None:
        """Leave a cluster (a yielding singleton)."""
        self._phase = Phase.IDLE
        self._start_at = None
        self.decided = None
        self._acceptor.forget()

    # --- voting ---

    def _vote(self, message: DecreePrepare | DecreeAccept) -> DecreePromise | DecreeAccepted | DecreeNack | None:
        voter = self._votes_as()
        if self._log.genesis is None:
            return None
        current = self._log.chain.next_position
        if message.position != current or message.predecessor != self._log.hash:
            return DecreeNack(message.position, message.ballot, ZERO_BALLOT, len(self._log))
        if voter is None:
            return None
        self._highest_round = max(self._highest_round, message.ballot.round)
        vote = self._acceptor.vote(current)
        if message.ballot < vote.promised:
            return DecreeNack(current, message.ballot, vote.promised, len(self._log))
        if isinstance(message, DecreePrepare):
            self._acceptor.store(current, Vote(message.ballot, vote.accepted_ballot, vote.accepted))
            return DecreePromise(current, message.ballot, voter, vote.accepted_ballot, vote.accepted)
        self._acceptor.store(current, Vote(message.ballot, message.ballot, message.value))
        return DecreeAccepted(current, message.ballot, voter)

    # --- proposing ---

    def _is_current(self) -> bool:
        return self._position == self._log.chain.next_position and self._predecessor == self._log.hash

    def _is_mine(self, position: Position, ballot: Ballot, phase: Phase, voter: PeerId) -> bool:
        is_answer = self._phase is phase and (position, ballot) == (self._position, self._ballot)
        return is_answer and self._is_current() and voter in self._log.voters

    def _start(self, now: float) -> None:
        if self._start_at is None:
            # The voters' order spreads those who want something at the same moment, so that duels are rare.
            voters = self._log.voters
            voter = self._votes_as()
            rank = voters.index(voter) if voter in voters else len(voters)
            self._start_at = now if rank == 0 else now + (rank + self._rng.random()) * ELECTION_RETRY_S / 10
        if now < self._start_at:
            return
        if self.lacking:
            self._start_at = now + ELECTION_RETRY_S
            return
        self._phase = Phase.PREPARING
        self._position, self._predecessor = self._log.chain.next_position, self._log.hash
        self._highest_round = max(self._highest_round, self._acceptor.vote(self._position).promised.round) + 1
        self._ballot = Ballot(self._highest_round, self._me, self._nonce)
        self._promises, self._accepted, self._value, self._is_own_value = {}, set(), None, False
        self._give_up_at = now + DECREE_PATIENCE_S + self._jitter()
        own = self._vote(DecreePrepare(self._position, self._predecessor, self._ballot))
        if isinstance(own, DecreePromise):
            self._promises[own.voter] = own
        self._send(now)
        self._count(now)

    def _count(self, now: float) -> None:
        needed = quorum(len(self._log.voters))
        if self._phase is Phase.PREPARING and len(self._promises) >= needed:
            self._propose(now)
        if self._phase is Phase.ACCEPTING and len(self._accepted) >= needed and self._value is not None:
            self.decided = LogEntry(self._position, self._predecessor, self._value)
            self._phase = Phase.IDLE
            self._start_at = None

    def _propose(self, now: float) -> None:
        accepted = [
            (promise.accepted_ballot, promise.accepted)
            for promise in self._promises.values()
            if promise.accepted_ballot is not None and promise.accepted is not None
        ]
        self._is_own_value = not accepted
        self._value = max(accepted, key=lambda pair: pair[0])[1] if accepted else self._wanted(now)
        if self._value is None:
            self._phase = Phase.IDLE
            self._start_at = None
            return
        self._phase = Phase.ACCEPTING
        own = self._vote(DecreeAccept(self._position, self._predecessor, self._ballot, self._value))
        if isinstance(own, DecreeAccepted):
            self._accepted.add(own.voter)
        self._send(now)

    def _nacked(self, now: float, nack: DecreeNack) -> None:
        """Behind (or ahead of) the voter: gossip evens the logs out, and a longer log of ours ends this attempt."""
        if nack.position == self._position:
            self._highest_round = max(self._highest_round, nack.promised.round)
        is_answer = self._phase is not Phase.IDLE and (nack.position, nack.ballot) == (self._position, self._ballot)
        if is_answer and (nack.promised > self._ballot or nack.log_length > self._position.number):
            self._retire(now)

    def _retire(self, now: float) -> None:
        self._phase = Phase.IDLE
        self._start_at = now + self._jitter()

    def _stand_aside(self, now: float) -> None:
        """Somebody leads with our promise: leave it the time to finish (history *duel*)."""
        if self._phase is Phase.PREPARING:
            self._phase = Phase.IDLE
        if self._phase is Phase.IDLE and self._start_at is not None:
            self._start_at = max(self._start_at, now + ELECTION_RETRY_S + self._jitter())

    def _send(self, now: float) -> None:
        self._resend_at = now + RESEND_S
        answered = self._promises if self._phase is Phase.PREPARING else self._accepted
        for voter in self._log.voters:
            peer = self._address(voter)
            if voter in answered or peer is None or peer == self._me:
                continue
            if self._value is None:
                self._outbox.unicast(peer, DecreePrepare(self._position, self._predecessor, self._ballot))
            else:
                self._outbox.unicast(peer, DecreeAccept(self._position, self._predecessor, self._ballot, self._value))

    def _jitter(self) -> float:
        return (0.2 + self._rng.random()) * ELECTION_RETRY_S
