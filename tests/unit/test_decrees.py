"""Decrees after genesis: voters of a log, one Paxos instance per position, acceptors that remember."""

from __future__ import annotations

import random
from collections import deque

import pytest

from weavenet.core.effects import Outbox, Persist, Unicast
from weavenet.core.election import DecreeAcceptor, DecreeElection
from weavenet.core.election.decrees import DecreeMessage, Vote
from weavenet.core.messages.unicast import DecreeAccept, DecreeNack, DecreePrepare, DecreePromise, Proposal
from weavenet.core.ring.log import Chain, Log, genesis_entry
from weavenet.core.types import ZERO8, Ballot, Electors, Genesis, LogEntry, PeerId, Position, Remove

PEERS = [PeerId(bytes([number]) * 16) for number in range(1, 10)]


def genesis(electors: list[PeerId]) -> LogEntry:
    return genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/24",), tuple(electors), tuple(electors)))


class Voter:
    """A peer with its log, acceptor and proposer; what it persists goes to ``disk``."""

    def __init__(
        self, me: PeerId, electors: list[PeerId], world: dict[PeerId, Voter], disk: dict[bytes, bytes]
    ) -> None:
        self.me, self.world, self.disk = me, world, disk
        self.outbox = Outbox()
        self.log = Log((), self.outbox)
        self.log.merge(0, (genesis(electors),))
        self.wish: Proposal | None = None
        self.election = DecreeElection(
            me=me,
            log=self.log,
            acceptor=DecreeAcceptor(list(disk.items()), self.outbox),
            outbox=self.outbox,
            rng=random.Random(me[0]),
            wanted=lambda now: self.wish,
            votes_as=lambda: me if me in self.log.voters else None,
            address=lambda voter: voter if voter in self.world else None,
        )

    def take(self) -> list[tuple[PeerId, DecreeMessage]]:
        found = []
        for effect in self.outbox.drain():
            if isinstance(effect, Persist):
                for change in effect.changes:
                    if change.table == "acceptor" and change.value is not None:
                        self.disk[change.key] = change.value
            elif isinstance(effect, Unicast):
                found.append((effect.destination, effect.body))
        return found  # type: ignore[return-value]


def cluster(count: int, electors: int | None = None) -> dict[PeerId, Voter]:
    world: dict[PeerId, Voter] = {}
    for peer in PEERS[:count]:
        world[peer] = Voter(peer, PEERS[: electors or count], world, {})
    return world


def run(world: dict[PeerId, Voter], until_s: float = 30.0) -> None:
    """Deliver everything at once, decided entries to everybody, in steps of a tenth of a second."""
    for tick in range(int(until_s * 10)):
        now = tick / 10
        queue: deque[tuple[PeerId, PeerId, DecreeMessage]] = deque()
        for voter in world.values():
            voter.election.advance(now)
            queue += [(voter.me, *sent) for sent in voter.take()]
        while queue:
            source, destination, body = queue.popleft()
            if destination in world:
                world[destination].election.handle(now, source, body)
                queue += [(destination, *sent) for sent in world[destination].take()]
        for voter in world.values():
            entry, voter.election.decided = voter.election.decided, None
            if entry is not None:
                for other in world.values():
                    other.log.merge(entry.position.number, (entry,))
                    other.wish = None if other.wish == entry.decree else other.wish


@pytest.mark.parametrize(("count", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (7, 7), (8, 7), (9, 7)])
def test_voters_are_odd_in_number_and_at_most_seven(count: int, voters: int) -> None:
    assert Chain([genesis(PEERS[:count])]).voters == tuple(PEERS[:voters])


def test_the_oldest_electors_vote() -> None:
    young, old = PEERS[0], PEERS[4:7]
    chain = Chain([genesis(old)]).with_decree(Position(0, ZERO8, 1), Electors((young, *old)))
    assert chain.electors == (young, *old)
    assert chain.voters == tuple(old)
    gone = chain.with_decree(Position(0, ZERO8, 2), Remove((old[0],), old[1]))
    assert gone.voters == (*old[1:], young)


def test_a_removal_of_the_last_elector_makes_its_heir_one() -> None:
    chain = Chain([genesis(PEERS[:1])]).with_decree(Position(0, ZERO8, 1), Remove((PEERS[0],), PEERS[1]))
    assert chain.voters == (PEERS[1],)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_wishes_of_all_are_decided_one_after_the_other(count: int) -> None:
    world = cluster(count)
    for voter in world.values():
        voter.wish = Remove((PeerId(voter.me[:8] + b"x" * 8),), voter.me)
    run(world)
    logs = {voter.log.hash for voter in world.values()}
    assert len(logs) == 1
    assert len(next(iter(world.values())).log) == 1 + count


def test_a_member_without_a_vote_may_propose() -> None:
    world = cluster(4, electors=3)
    world[PEERS[3]].wish = Electors(tuple(PEERS[:4]))
    run(world)
    assert all(PEERS[3] in voter.log.electors for voter in world.values())


def test_without_a_quorum_nothing_is_decided() -> None:
    world = cluster(5)
    for peer in PEERS[2:5]:
        del world[peer]
    world[PEERS[0]].wish = Remove((PEERS[4],), PEERS[0])
    run(world)
    assert len(world[PEERS[0]].log) == 1
    assert world[PEERS[0]].election.lacking == 1


def test_what_a_voter_accepted_survives_its_restart_and_is_finished_first() -> None:
    world = cluster(3)
    voter = world[PEERS[0]]
    position, ballot = voter.log.chain.next_position, Ballot(1, PEERS[2], b"n" * 8)
    value = Remove((PEERS[8],), PEERS[2])
    voter.election.handle(0.0, PEERS[2], DecreeAccept(position, voter.log.hash, ballot, value))
    voter.take()
    world[PEERS[0]] = Voter(PEERS[0], PEERS[:3], world, voter.disk)
    del world[PEERS[2]]
    world[PEERS[1]].wish = Remove((PEERS[7],), PEERS[1])
    run(world)
    decrees = [entry.decree for entry in world[PEERS[1]].log.entries[1:]]
    assert decrees == [value, Remove((PEERS[7],), PEERS[1])]


def test_a_voter_answers_only_for_the_position_after_its_own_log() -> None:
    voter = cluster(3)[PEERS[0]]
    here, ballot = voter.log.chain.next_position, Ballot(1, PEERS[1], b"n" * 8)
    later = Position(0, ZERO8, 2)
    voter.election.handle(0.0, PEERS[1], DecreePrepare(later, b"h" * 16, ballot))
    assert [type(body) for _, body in voter.take()] == [DecreeNack]
    voter.election.handle(0.0, PEERS[1], DecreePrepare(here, b"h" * 16, ballot))
    assert [type(body) for _, body in voter.take()] == [DecreeNack]
    voter.election.handle(0.0, PEERS[1], DecreePrepare(here, voter.log.hash, ballot))
    assert [type(body) for _, body in voter.take()] == [DecreePromise]


def test_a_lower_ballot_is_refused_after_a_promise() -> None:
    voter = cluster(3)[PEERS[0]]
    here = voter.log.chain.next_position
    voter.election.handle(0.0, PEERS[1], DecreePrepare(here, voter.log.hash, Ballot(5, PEERS[1], b"n" * 8)))
    voter.take()
    low = DecreeAccept(here, voter.log.hash, Ballot(4, PEERS[2], b"m" * 8), Remove((PEERS[8],), PEERS[2]))
    voter.election.handle(0.0, PEERS[2], low)
    assert [type(body) for _, body in voter.take()] == [DecreeNack]


def test_votes_of_lower_epochs_go_when_the_log_is_replaced() -> None:
    outbox = Outbox()
    acceptor = DecreeAcceptor((), outbox)
    low, high = Position(0, ZERO8, 3), Position(1, b"x" * 8, 2)
    vote = Vote(Ballot(1, PEERS[0], b"n" * 8), None, None)
    for position in (low, high):
        acceptor.votes[position] = vote
    outbox.drain()
    acceptor.abandon_below((1, b"x" * 8))
    assert acceptor.vote(high) == vote
    assert acceptor.vote(low) != vote
    assert [change.value for effect in outbox.drain() if isinstance(effect, Persist) for change in effect.changes] == [
        None
    ]
