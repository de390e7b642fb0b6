"""Leases of ephemeral peers: the holder against a clock, the voters against each other."""

from __future__ import annotations

import random

import pytest

from weavenet.core.effects import Outbox, Persist, Unicast
from weavenet.core.lease.holder import Lease
from weavenet.core.lease.voter import Leases
from weavenet.core.limits import LAPSE_CHECK_S, LEASE_SHARE, RENEW_SHARE
from weavenet.core.messages.lease import LapseAnswer, LapseQuery, LapseSettled, LeaseAnswer, LeaseRenew
from weavenet.core.removal import Attests
from weavenet.core.ring.log import Log, genesis_entry
from weavenet.core.types import Genesis, PeerId, Remove

A, B, C, X, Y = (PeerId(letter * 16) for letter in (b"a", b"b", b"c", b"x", b"y"))
VOTERS = (A, B, C)
TTL_S = 100
OVER_S = LEASE_SHARE * TTL_S


def log(outbox: Outbox) -> Log:
    made = Log((), outbox)
    made.merge(0, (genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/24",), VOTERS, VOTERS)),))
    outbox.drain()
    return made


def sent(outbox: Outbox) -> list[tuple[PeerId, object]]:
    return [(effect.destination, effect.body) for effect in outbox.drain() if isinstance(effect, Unicast)]


class Holder:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.lease = Lease(me=X, ttl_s=TTL_S, log=log(self.outbox), address=lambda voter: voter, outbox=self.outbox)
        self.lease.start(0.0)

    def renew(self, asked_at: float, answered_at: float, *voters: PeerId) -> None:
        self.lease.advance(asked_at)
        found = {peer: body for peer, body in sent(self.outbox) if isinstance(body, LeaseRenew)}
        assert found.keys() == set(VOTERS)
        for voter in voters:
            self.lease.answered(answered_at, LeaseAnswer(found[voter].number, voter))


def test_a_renewal_by_a_quorum_counts_from_when_it_was_asked_for() -> None:
    holder = Holder()
    holder.renew(10.0, 20.0, A)
    assert not holder.lease.may_allocate, "one of three"
    holder.renew(20.0, 29.0, B)
    assert holder.lease.may_allocate
    assert holder.lease.age_s(30.0) == 20.0, "the older of the two"
    assert holder.lease.deadline() == pytest.approx(29.0 + RENEW_SHARE * TTL_S)
    holder.lease.advance(10.0 + OVER_S - 0.1)
    assert holder.lease.may_allocate
    holder.lease.advance(10.0 + OVER_S)
    assert not holder.lease.may_allocate and not holder.lease.may_carry


def test_a_new_start_carries_on_and_gives_out_nothing() -> None:
    holder = Holder()
    holder.lease.advance(1.0)
    assert holder.lease.may_carry and not holder.lease.may_allocate
    holder.lease.advance(OVER_S)
    assert not holder.lease.may_carry


def test_an_answer_that_was_never_asked_for_or_of_no_voter_is_ignored() -> None:
    holder = Holder()
    holder.lease.advance(1.0)
    for voter in (A, B, C):
        holder.lease.answered(2.0, LeaseAnswer(99, voter))
    for stranger in (X, Y):
        holder.lease.answered(2.0, LeaseAnswer(1, stranger))
    assert not holder.lease.may_allocate


def test_whoever_is_not_ephemeral_needs_none() -> None:
    outbox = Outbox()
    lease = Lease(me=X, ttl_s=0, log=log(outbox), address=lambda voter: voter, outbox=outbox)
    lease.advance(1e9)
    assert lease.may_allocate and lease.may_carry and lease.deadline() is None
    assert not outbox.drain()


def test_one_that_came_to_vote_itself_counts_its_own_vote() -> None:
    """A removal that leaves no elector makes its heir one, ephemeral or not."""
    outbox = Outbox()
    alone = Log((), outbox)
    alone.merge(0, (genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/24",), (X,), (X,))),))
    lease = Lease(me=X, ttl_s=TTL_S, log=alone, address=lambda voter: voter, outbox=outbox)
    lease.start(0.0)
    for now in range(0, 5 * TTL_S, TTL_S // 20):
        lease.advance(float(now))
        assert lease.may_allocate and lease.may_carry
    assert not sent(outbox)


class Voter:
    """One of three, the first of which leads; everybody is reachable."""

    def __init__(self, me: PeerId, rows: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.me = me
        self.outbox = Outbox()
        self.log = log(self.outbox)
        self.attests = Attests((), self.outbox)
        self.leases = Leases(
            me=me,
            log=self.log,
            around=self,
            attests=self.attests,
            rows=rows,
            outbox=self.outbox,
            rng=random.Random(me[0]),
        )
        self.leases.advance(0.0)

    def votes_as(self) -> PeerId | None:
        return self.me

    def voter_address(self, voter: PeerId) -> PeerId | None:
        return voter

    def heir(self, without: frozenset[PeerId]) -> PeerId | None:
        return self.me

    def renewed(self, now: float, peer: PeerId) -> bool:
        self.leases.handle(now, peer, LeaseRenew(1))
        return bool(sent(self.outbox))


def made(*peers: PeerId) -> list[Voter]:
    voters = [Voter(voter) for voter in VOTERS]
    for voter in voters:
        for peer in peers:
            voter.leases.met(0.0, peer, TTL_S)
        voter.outbox.drain()
    return voters


def play(voters: list[Voter], now: float) -> list[type]:
    """Everything that is due at ``now``, and all messages; their kinds."""
    by_peer = {voter.me: voter for voter in voters}
    queue = []
    for voter in voters:
        voter.leases.advance(now)
        queue += [(voter.me, *each) for each in sent(voter.outbox)]
    kinds = []
    while queue:
        source, destination, body = queue.pop(0)
        kinds.append(type(body))
        assert isinstance(body, LapseQuery | LapseAnswer | LapseSettled)
        by_peer[destination].leases.handle(now, source, body)
        queue += [(destination, *each) for each in sent(by_peer[destination].outbox)]
    return kinds


def test_those_that_a_quorum_gave_up_are_removed_in_one_decree() -> None:
    voters = made(X, Y)
    assert play(voters, TTL_S - LAPSE_CHECK_S) == []
    play(voters, TTL_S)
    assert voters[0].leases.wanted(TTL_S) == Remove((X, Y), A)
    assert voters[1].leases.wanted(TTL_S) is None, "one of them proposes"


def test_whoever_gave_it_up_renews_no_more_until_a_quorum_did_renew_it() -> None:
    voters = made(X)
    assert all(voter.renewed(50.0, X) for voter in voters[1:])
    assert set(play(voters, TTL_S)) == {LapseQuery, LapseAnswer, LapseSettled}
    assert X not in voters[0].attests, "the other two renew it"
    assert voters[0].renewed(TTL_S + 1.0, X)
    assert voters[0].leases.wanted(TTL_S) is None


def test_one_of_three_does_not_remove_and_goes_on_refusing_while_nobody_answers() -> None:
    voters = made(X)
    leader = voters[0]
    leader.leases.advance(TTL_S)
    assert X in leader.attests
    assert leader.leases.wanted(TTL_S) is None
    sent(leader.outbox)
    assert not leader.renewed(TTL_S + 1.0, X)


def test_an_attest_is_durable_before_it_is_told() -> None:
    voter = made(X)[1]
    voter.leases.advance(TTL_S)
    voter.leases.handle(TTL_S, A, LapseQuery(7, (X, Y)))
    effects = voter.outbox.drain()
    assert [type(effect) for effect in effects] == [Persist, Unicast]
    assert effects[1] == Unicast(A, LapseAnswer(7, B, (X,))), "nothing is known of Y"


def test_a_new_start_waits_a_whole_term() -> None:
    rows = []
    voter = Voter(A)
    voter.leases.met(0.0, X, TTL_S)
    for effect in voter.outbox.drain():
        if isinstance(effect, Persist):
            rows += [(change.key, change.value or b"") for change in effect.changes]
    again = Voter(A, tuple(rows))
    assert not again.leases.has_lapsed(TTL_S - 1.0, X)
    assert again.leases.has_lapsed(TTL_S, X)
