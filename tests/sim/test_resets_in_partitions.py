"""How long does `weave reset` wait during a partition, and what does it do (the seed's question)? A test per case."""

from __future__ import annotations

import pytest
from test_histories import unicast
from test_resets import NOTICED_S, end, formed, give_up, given_away, has_left, needs, phase, reset

from weavenet.core.commands import Allocate
from weavenet.core.errors import Failure
from weavenet.core.messages import Message
from weavenet.core.messages.leaving import CustodyAccepted
from weavenet.core.messages.unicast import SpaceGrant
from weavenet.core.ring.segments import load_ring
from weavenet.core.types import Stamp
from weavenet.sim.host import Host
from weavenet.sim.network import Station


@pytest.mark.parametrize("seed", range(3))
def test_reset_timeout_during_a_partition_isolated_changes_nothing(seed: int) -> None:
    """Without anybody to take the addresses nothing happens; after the timeout everything is as it was."""
    stage = formed(10 + seed)
    *rest, leaver = stage.hosts
    address = stage.allocate(leaver, "a")
    stage.partition(tuple(rest), (leaver,))
    stage.advance(NOTICED_S)
    request = reset(stage, leaver)
    stage.advance(5)
    refused = stage.answer(stage.ask(leaver, Allocate("b")))
    assert isinstance(refused, Failure), "no allocations while it tries"
    stage.advance(25)
    assert request not in stage.answers
    assert phase(stage, leaver) == "seeking"
    assert all(host.label in needs(stage, leaver) for host in rest)
    give_up(stage, leaver, request)
    assert phase(stage, leaver) == ""
    assert stage.allocate(leaver, "a") == address
    stage.allocate(leaver, "b")
    stage.reunite()
    end(stage)
    assert leaver.generation == 0
    assert stage.allocate(leaver, "a") == address


def test_reset_timeout_during_a_partition_a_voter_with_a_minority_waits_for_the_quorum() -> None:
    stage = formed(20)
    one, two, three, friend, leaver = stage.hosts
    stage.partition((one, two, three), (friend, leaver))
    stage.advance(NOTICED_S)
    request = reset(stage, leaver)
    stage.advance(30)
    assert request not in stage.answers
    assert phase(stage, leaver) == "seeking"
    give_up(stage, leaver, request)
    stage.reunite()
    stage.advance(NOTICED_S)
    has_left(stage, leaver, reset(stage, leaver))
    end(stage, leaver)


def test_reset_during_a_partition_partially_isolated_needs_an_heir_and_a_witness_only() -> None:
    """Who does not vote needs no quorum: two others are enough, on whichever side they are."""
    stage = formed(21, electors=3)
    *rest, heir, leaver = stage.hosts
    witness = rest.pop()
    addresses = stage.fill(leaver, 3, "a")
    stage.partition(tuple(rest), (heir, witness, leaver))
    stage.advance(NOTICED_S)
    has_left(stage, leaver, reset(stage, leaver))
    got = [*stage.fill(heir, 30, "b"), *stage.fill(witness, 30, "c")]
    assert set(addresses) <= set(got), "used again at once, without the others"
    end(stage, leaver)


def test_reset_during_a_partition_partially_isolated_with_one_peer_has_no_witness() -> None:
    stage = formed(22, electors=3)
    *rest, heir, leaver = stage.hosts
    stage.partition(tuple(rest), (heir, leaver))
    stage.advance(NOTICED_S)
    request = reset(stage, leaver)
    stage.advance(30)
    assert request not in stage.answers
    assert "second peer" in needs(stage, leaver)
    stage.reunite()
    has_left(stage, leaver, request)
    end(stage, leaver)


@pytest.mark.parametrize("seed", range(3))
def test_reset_during_a_partition_heir_dies_and_it_ends_when_somebody_else_is_met(seed: int) -> None:
    """Past the point of no return, with one other peer left on its side: it stays, says who is missing, and goes on by
    itself."""
    stage = formed(36 + seed, electors=3)
    *rest, one, other, leaver = stage.hosts
    stage.partition(tuple(rest), (one, other, leaver))
    stage.advance(NOTICED_S)
    stage.fill(leaver, 3, "a")
    request = reset(stage, leaver)
    heir = given_away(stage, leaver)[0]
    heir.kill(kernel_lost=True)
    stage.advance(60)
    assert request not in stage.answers
    assert phase(stage, leaver) == "surrendering"
    assert any(host.label in needs(stage, leaver) for host in (*rest, heir))
    stage.reunite()
    has_left(stage, leaver, request)
    heir.start()
    end(stage, leaver)


@pytest.mark.parametrize("leaver_learns", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_two_stand_ins(seed: int, leaver_learns: bool) -> None:
    """A custodian is cut off after it accepted and takes the leaver for gone. Space that strayed to the leaver, of
    which one after the other hears, is then for this custodian only: neither does the leaver give it on, nor does
    anybody take it whom the leaver named first later."""
    stage = formed(100 + seed)
    leaver, donor, *rest = stage.hosts
    armed: list[bool] = []

    def lose_grant(source: Station, message: Message) -> bool:
        if source is donor and isinstance(unicast(message), SpaceGrant):
            armed.append(True)
        return not (armed and source is donor)

    stage.network.intercept = lose_grant
    drain = [stage.ask(leaver, Allocate(f"d{number}")) for number in range(55)]  # more than everybody but the donor has
    stage.until(lambda: bool(armed), 30, "a grant of the donor", every_s=0.001)
    donor.kill()
    for each in drain:
        if each not in stage.answers:
            give_up(stage, leaver, each)
    old, granted = leaver.peer, load_ring(stage.area.sizes, donor.disk.durable)

    lost = [True]
    stage.network.intercept = lambda source, message: not (lost and isinstance(unicast(message), CustodyAccepted))
    request = reset(stage, leaver)
    custodies = [host.node.membership.departed.custody for host in rest if host.node is not None]
    stage.until(lambda: all(custodies), 30, "custody to be accepted", every_s=0.001)
    first = next(host for host in rest if host.peer == custodies[0][old].custodians[0])
    others = [host for host in rest if host is not first]
    assert leaver.node is not None
    stray = next(s for s in granted.segments if s.stamp.owner == old and s.stamp != leaver.node.ring.stamp_at(s.start))

    stage.partition((first,), (leaver, donor, *others))
    stage.advance(4)  # what it said of itself counts no more
    if not leaver_learns:
        lost.clear()
        has_left(stage, leaver, request)
    learner = leaver if leaver_learns else others[0]
    donor.start()

    def stray_at(host: Host) -> Stamp | None:
        return None if host.node is None else host.node.ring.stamp_at(stray.start)

    before = stray_at(learner)
    stage.until(lambda: stray_at(learner) != before, 60, "the news of the grant", every_s=0.0002)
    donor.kill()
    lost.clear()
    stage.advance(NOTICED_S)
    stage.network.blocked.clear()
    stage.partition((first, donor), (leaver, *others))
    donor.start()
    stage.until(lambda: stray_at(first) not in {before, stray.stamp}, 60, "the custodian to take it")
    stage.fill(first, 64, "f")
    for host in others:
        stage.fill(host, 64, f"o{host.index}-")
    stage.reunite()
    end(stage, leaver)
