"""Peers leave by `weave reset`: the histories that the specification names, each one test. Those of a partition are in
``test_resets_in_partitions.py``."""

from __future__ import annotations

import pytest
from test_histories import unicast

from weavenet.core.commands import Allocate, Consense, Done, GetReport, RemovePeers, Reset
from weavenet.core.errors import Failure
from weavenet.core.events import Cancelled
from weavenet.core.messages import Message
from weavenet.core.messages.gossip import Push, RingBuckets
from weavenet.core.messages.unicast import Accept, Accepted, HandoverPage, SeenAnswer, SpaceGrant, StampPage
from weavenet.core.report import NodeReport
from weavenet.sim.host import Host, sim_peer_id
from weavenet.sim.network import Station
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.violation import Violation

RANGE = "10.32.0.0/26"
NOTICED_S = 25.0
"""Within this time everybody knows who is out of reach."""


def formed(seed: int, peers: int = 5, *, electors: int | None = None, bootstrap: Bootstrap | None = None) -> Stage:
    chosen = bootstrap or (Bootstrap.FULL_LIST if electors is None else Bootstrap.OBSERVERS)
    stage = Stage(seed, peers, electors=electors, bootstrap=chosen, range_cidr=RANGE)
    stage.start()
    stage.answer(stage.ask(stage.hosts[0], Consense()))
    stage.settle()
    return stage


def reset(stage: Stage, host: Host, *, force: bool = False) -> int:
    return stage.ask(host, Reset(force))


def give_up(stage: Stage, host: Host, request: int) -> None:
    """The command's time is over: its client goes away."""
    stage.workload.pending[host.index].pop(request, None)
    host.deliver(Cancelled(request))


def needs(stage: Stage, host: Host) -> str:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    return "; ".join(report.ipam.leaving_needs)


def phase(stage: Stage, host: Host) -> str:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    return report.ipam.leaving


def has_left(stage: Stage, host: Host, request: int) -> Done:
    """The answer of a reset that went through, after which nothing of the peer remains."""
    result = stage.answer(request)
    assert isinstance(result, Done), result
    stage.advance(1.0)
    assert not host.is_running
    assert not host.disk.durable
    return result


def end(stage: Stage, *gone: Host) -> None:
    """All faults are over: whoever remains agrees, nobody owns anything who is not there, nobody is waited for, and no
    row about those that left stays but the one that says so, or that says that they may know of us."""
    old = {sim_peer_id(host.index, 0) for host in gone}
    stage.heal()
    stage.rest()
    present = {host.peer for host in stage.hosts}
    for host in stage.hosts:
        node = host.node
        assert node is not None
        assert set(node.ring.shares) <= present
        assert not old & node.membership.witnesses
        assert not old & set(node.log.electors)
        assert not node.ipam.held
        assert {table for table, key in host.disk.durable if key in old} <= {"left", "known"}


@pytest.mark.parametrize("seed", range(3))
def test_reset_names_those_who_got_something(seed: int) -> None:
    stage = formed(5 + seed)
    leaver, *others = stage.hosts
    before = dict(others[0].node.ring.shares)
    left = has_left(stage, leaver, reset(stage, leaver))
    after = others[0].node.ring.shares
    assert leaver.peer not in after
    for host in others:
        has_more = after[host.peer] > before[host.peer]
        assert (f"({host.label})" in left.text) == has_more, left.text


def test_reset_of_a_peer_that_owns_nothing_says_so() -> None:
    stage = formed(3, 5, electors=3)
    leaver = next(host for host in stage.hosts if host.peer not in stage.hosts[0].node.ring.shares)
    assert has_left(stage, leaver, reset(stage, leaver)).text == "done: nothing was owned here"


@pytest.mark.parametrize("seed", range(3))
def test_reset_hands_everything_over(seed: int) -> None:
    stage = formed(seed)
    leaver = stage.hosts[seed]
    addresses = stage.fill(leaver, 5, "a")
    request = reset(stage, leaver)
    has_left(stage, leaver, request)
    others = [host for host in stage.hosts if host is not leaver]
    stage.until(lambda: all(leaver.peer not in host.open_peers for host in others), 20, "paths to be closed")
    got = [address for host in others for address in stage.fill(host, 20, "b")]
    assert set(addresses) <= set(got), "what it had is used again"
    end(stage, leaver)


def given_away(stage: Stage, leaver: Host) -> list[Host]:
    """Wait until the leaver has given its space away; the heirs."""

    def heirs() -> list[Host]:
        node = leaver.node
        return [] if node is None else [host for host in stage.hosts if host.peer in node.membership.leaving.heirs]

    stage.until(lambda: bool(heirs()), 30, "space to be given away", every_s=0.001)
    return heirs()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("returns", [True, False])
def test_reset_heir_dies_before_it_confirmed(seed: int, returns: bool) -> None:
    """What it was given is its own, as others remember; the leaver goes on with those that are there."""
    stage = formed(30 + seed)
    leaver = stage.hosts[seed]
    stage.fill(leaver, 3, "a")
    request = reset(stage, leaver)
    heir = given_away(stage, leaver)[0]
    given = heir.peer
    heir.kill(kernel_lost=True)
    if not returns:
        stage.checker.forget_host(heir)
        heir.lose_disk()
    has_left(stage, leaver, request)
    stage.advance(NOTICED_S)
    others = [host for host in stage.hosts if host not in {leaver, heir}]
    assert others[0].node is not None
    assert given in others[0].node.ring.shares
    if not returns:
        assert isinstance(stage.answer(stage.ask(others[0], RemovePeers((given.hex(),)))), Done)
        assert given not in others[0].node.ring.shares
    end(stage, leaver)


def play_heir_confirmed_and_dies(seed: int) -> None:
    """The other custodian still knows everything, and hands it on when the heir is removed."""
    stage = formed(33 + seed)
    leaver = stage.hosts[seed]
    request = reset(stage, leaver)
    heir = given_away(stage, leaver)[0]
    has_left(stage, leaver, request)
    heir.kill(kernel_lost=True)
    stage.checker.forget_host(heir)
    gone = heir.peer
    heir.lose_disk()
    stage.advance(NOTICED_S)
    others = [host for host in stage.hosts if host not in {leaver, heir}]
    assert isinstance(stage.answer(stage.ask(others[0], RemovePeers((gone.hex(),)))), Done)
    end(stage, leaver)


@pytest.mark.parametrize("seed", range(3))
def test_reset_survives_the_death_of_an_heir_that_confirmed(seed: int) -> None:
    play_heir_confirmed_and_dies(seed)


def test_two_heirs() -> None:
    """Several pieces go to those with least, each its own; one of them dies, the other loses nothing."""
    stage = formed(40, 4)
    first, _, *rest = stage.hosts
    has_left(stage, first, reset(stage, first))
    stage.fill(rest[0], 12, "r")
    giver = max(stage.hosts[1:], key=lambda host: share(stage, host))
    request = reset(stage, giver)
    heirs = given_away(stage, giver)
    has_left(stage, giver, request)
    remaining = [host for host in stage.hosts[1:] if host is not giver]
    assert set(heirs) == set(remaining)
    assert sum(share(stage, host) for host in remaining) == stage.area.size
    heirs[0].kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    heirs[0].start()
    end(stage, first, giver)


def share(stage: Stage, host: Host) -> int:
    """Addresses that ``host`` owns, as the last host sees it."""
    node = next(each.node for each in reversed(stage.hosts) if each.node is not None)
    assert node is not None
    return node.ring.shares.get(host.peer, 0)


# --- many at once, and few ---


@pytest.mark.parametrize("seed", range(5))
def test_concurrent_resets(seed: int) -> None:
    stage = formed(50 + seed)
    leavers = stage.hosts[:3]
    for host in leavers:
        stage.fill(host, 2, f"a{host.index}-")
    requests = {host.index: reset(stage, host) for host in leavers}
    for host in leavers:
        has_left(stage, host, requests[host.index])
    end(stage, *leavers)


@pytest.mark.parametrize("peers", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_everybody_leaves_at_once(seed: int, peers: int) -> None:
    """Down to zero: the last one finds nobody left to wait for."""
    stage = formed(60 + seed, peers)
    requests = {host.index: reset(stage, host) for host in stage.hosts}
    for host in stage.hosts:
        has_left(stage, host, requests[host.index])


def test_reset_of_the_only_host() -> None:
    stage = Stage(70, 1)
    stage.form()
    stage.allocate(stage.hosts[0], "a")
    has_left(stage, stage.hosts[0], reset(stage, stage.hosts[0]))


@pytest.mark.parametrize("leaves", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_reset_of_one_of_two(seed: int, leaves: int) -> None:
    """Also of the one that votes."""
    stage = formed(71 + seed, 2)
    leaver, other = stage.hosts[leaves], stage.hosts[1 - leaves]
    has_left(stage, leaver, reset(stage, leaver))
    assert other.node is not None
    assert other.node.log.electors == (other.peer,)
    assert share(stage, other) == stage.area.size
    assert len(stage.fill(other, 40, "c")) == 40, "more than its own share"
    end(stage, leaver)


def test_reset_of_one_of_two_whose_peer_is_dead() -> None:
    stage = formed(73, 2)
    leaver, dead = stage.hosts
    dead.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    request = reset(stage, leaver)
    stage.advance(30)
    assert request not in stage.answers
    assert dead.label in needs(stage, leaver)
    give_up(stage, leaver, request)
    text = has_left(stage, leaver, reset(stage, leaver, force=True)).text
    assert f"weave rmpeer {sim_peer_id(0, 0).hex()}" in text


def test_reset_before_the_first_division() -> None:
    stage = Stage(74, 3)
    stage.start()
    stage.advance(3)
    leaver = stage.hosts[0]
    has_left(stage, leaver, reset(stage, leaver))
    stage.advance(130)
    stage.answer(stage.ask(stage.hosts[1], Consense()))


def test_reset_waits_for_the_first_division_that_it_voted_in() -> None:
    stage = Stage(75, 3)
    stage.start()
    stage.advance(3)
    leaver = stage.hosts[0]
    stage.network.intercept = lambda source, message: not isinstance(unicast(message), Accept | Accepted)
    stage.ask(stage.hosts[1], Consense())
    stage.until(lambda: leaver.node is not None and leaver.node.election.has_promised, 10, "a promise", every_s=0.01)
    request = reset(stage, leaver)
    stage.advance(5)
    assert request not in stage.answers
    assert "first division" in needs(stage, leaver)
    stage.network.intercept = lambda source, message: True
    has_left(stage, leaver, request)
    end(stage, leaver)


@pytest.mark.parametrize("seed", range(2))
def test_the_last_elector_makes_its_heir_elector(seed: int) -> None:
    """The others are observers; without an elector nothing could be decided any more."""
    stage = formed(80 + seed, electors=1)
    leaver, *rest = stage.hosts
    has_left(stage, leaver, reset(stage, leaver))
    assert rest[0].node is not None
    assert len(rest[0].node.log.electors) == 1
    victim = next(host for host in rest if host.peer not in rest[0].node.log.electors)
    asker = next(host for host in rest if host is not victim)
    stage.checker.forget_host(victim)
    gone = victim.peer
    victim.lose_disk()
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(stage.ask(asker, RemovePeers((gone.hex(),)))), Done)
    stage.settle()


def test_a_seed_that_leaves_votes_no_more_under_either_id() -> None:
    stage = formed(82, bootstrap=Bootstrap.SEED)
    leaver = stage.hosts[0]
    assert leaver.node is not None
    ids = leaver.node.membership.roster.own_ids
    assert len(ids) == 2
    has_left(stage, leaver, reset(stage, leaver))
    assert stage.hosts[1].node is not None
    assert not ids & set(stage.hosts[1].node.log.electors)
    end(stage, leaver)


# --- what happens on the way ---


@pytest.mark.parametrize("seed", range(8))
def test_a_leaver_that_crashes_in_step_two_goes_on(seed: int) -> None:
    stage = formed(90 + seed)
    leaver = stage.hosts[seed % 5]
    stage.fill(leaver, 3, "a")
    reset(stage, leaver)
    stage.until(
        lambda: leaver.node is not None and leaver.node.membership.leaving.is_surrendering, 10, "step 2", every_s=0.001
    )
    stage.advance(0.0005)
    if leaver.driver is not None:
        leaver.driver.crash_countdown = stage.rng.randrange(60)
    stage.advance(2)
    if not leaver.departed:
        leaver.kill()
        leaver.start()
    stage.until(lambda: bool(leaver.departed), 60, "the departure")
    assert not leaver.is_running
    assert not leaver.disk.durable
    end(stage, leaver)


def test_a_leaver_that_crashes_in_step_one_stays() -> None:
    stage = formed(98)
    *rest, leaver = stage.hosts
    address = stage.allocate(leaver, "a")
    stage.partition(tuple(rest), (leaver,))
    stage.advance(NOTICED_S)
    reset(stage, leaver)
    stage.advance(3)
    leaver.kill()
    stage.workload.pending[leaver.index].clear()
    leaver.start()
    stage.advance(3)
    assert phase(stage, leaver) == ""
    stage.reunite()
    end(stage)
    assert leaver.generation == 0
    assert stage.allocate(leaver, "a") == address


def play_grant_to_the_departed(seed: int) -> None:
    """A donor gave space to the leaver and died before anybody heard of it: the leaver's heir has it in the end."""
    stage = formed(100 + seed)
    leaver, donor, *rest = stage.hosts
    armed: list[bool] = []

    def intercept(source: Station, message: Message) -> bool:
        if source is donor and isinstance(unicast(message), SpaceGrant):
            armed.append(True)
        return not (armed and source is donor)

    stage.network.intercept = intercept
    drain = [stage.ask(leaver, Allocate(f"d{number}")) for number in range(55)]  # more than everybody but the donor has
    stage.until(lambda: bool(armed), 30, "a grant of the donor", every_s=0.001)
    donor.kill()
    stage.network.intercept = lambda source, message: True
    for request in drain:
        if request not in stage.answers:
            give_up(stage, leaver, request)
    old = leaver.peer
    has_left(stage, leaver, reset(stage, leaver))
    stage.advance(NOTICED_S)
    donor.start()
    assert donor.node is not None
    assert old in donor.node.ring.shares, "it has not heard of the departure yet"
    stage.until(lambda: all(host.node and old not in host.node.ring.shares for host in (donor, *rest)), 60, "the heir")
    end(stage, leaver)


@pytest.mark.parametrize("seed", range(3))
def test_grant_to_the_departed(seed: int) -> None:
    play_grant_to_the_departed(seed)


def play_leaver_gave_to_a_stranger(seed: int) -> Stage:
    """The leaver gave space to a newcomer that nobody else has met, and what it tells of that is lost for a while."""
    stage = Stage(110 + seed, 6, electors=5, bootstrap=Bootstrap.OBSERVERS, range_cidr=RANGE)
    *rest, leaver, stranger = stage.hosts
    stage.start(*rest, leaver)
    stage.answer(stage.ask(leaver, Consense()))
    stage.until(lambda: all_open([*rest, leaver]), 60, "data paths among all")
    stage.partition(tuple(rest), (leaver, stranger))
    stage.advance(NOTICED_S)
    stranger.start()
    assert stage.fill(stranger, 5, "s"), "the leaver gave it some"
    lost = [True]

    def intercept(source: Station, message: Message) -> bool:
        tells = isinstance(message, Push | RingBuckets) or isinstance(unicast(message), StampPage | HandoverPage)
        return not (lost and source is leaver and tells)

    stage.network.intercept = intercept
    stage.reunite()
    stage.partition((*rest, leaver), (stranger,))
    stage.until(lambda: leaver.node is not None and len(leaver.node.mesh.reachable()) == 5, 30, "the others")
    request = reset(stage, leaver)
    stage.advance(6)
    lost.clear()
    has_left(stage, leaver, request)
    for host in rest:
        stage.fill(host, 16, f"r{host.index}")
    stage.reunite()
    for _ in range(80):
        stage.advance(0.25)
        if stranger.node is not None and stranger.node.ipam.blocked():
            raise Violation("honoured", f"{stranger.label} lost what {leaver.label} had given it")
    end(stage, leaver)
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_what_only_the_leaver_knew_outlives_it(seed: int) -> None:
    play_leaver_gave_to_a_stranger(seed)


@pytest.mark.parametrize("seed", range(2))
def test_removed_in_step_two_counts_as_done(seed: int) -> None:
    stage = formed(120 + seed)
    leaver, *rest = stage.hosts
    stage.fill(leaver, 3, "a")
    reset(stage, leaver)
    given_away(stage, leaver)
    stage.partition((leaver,), tuple(rest))
    stage.advance(NOTICED_S)
    assert leaver.is_running
    stage.ask(rest[0], RemovePeers((leaver.label,)))
    stage.advance(10)
    stage.reunite()
    stage.until(lambda: not leaver.is_running, 60, "the end")
    assert leaver.peer != sim_peer_id(0, 0)
    assert not leaver.disk.durable, "wiped, not fenced"
    end(stage, leaver)


def test_the_old_disk_of_a_departed_peer_is_fenced() -> None:
    stage = formed(130)
    leaver = stage.hosts[2]
    stage.allocate(leaver, "a")
    stage.advance(2)
    copy = dict(leaver.disk.durable)
    has_left(stage, leaver, reset(stage, leaver))
    stage.fill(stage.hosts[0], 24, "c")
    leaver.peer, leaver.generation = sim_peer_id(2, 0), 0
    leaver.set_back(copy)
    leaver.departed.clear()
    leaver.start()
    stage.until(lambda: leaver.peer != sim_peer_id(2, 0), 60, "the fence")
    stage.heal()
    stage.rest()


def test_rmpeer_of_a_departed_peer_says_that_it_left() -> None:
    stage = formed(131)
    leaver, other = stage.hosts[:2]
    has_left(stage, leaver, reset(stage, leaver))
    result = stage.answer(stage.ask(other, RemovePeers((leaver.label,))))
    assert isinstance(result, Done)
    assert "has left by itself" in result.text
    assert other.node is not None
    assert not other.node.log.removed


def test_what_voters_said_of_a_peer_that_then_leaves_is_forgotten() -> None:
    """`rmpeer` found it to be back and said to reset it instead."""
    stage = formed(140)
    leaver, *rest = stage.hosts
    stage.partition((leaver,), tuple(rest))
    stage.advance(NOTICED_S)
    stage.network.intercept = lambda source, message: not isinstance(unicast(message), SeenAnswer)
    removal = stage.ask(rest[0], RemovePeers((leaver.label,)))
    stage.until(lambda: all(host.node and host.node.membership.attests for host in rest), 10, "voters to be asked")
    stage.reunite()
    assert isinstance(stage.answer(removal), Failure)
    stage.network.intercept = None
    has_left(stage, leaver, reset(stage, leaver))
    end(stage, leaver)
    assert not any(host.node and host.node.membership.attests for host in rest)


def test_reset_by_force_prints_the_line_that_recovers_its_space() -> None:
    stage = formed(132)
    *rest, leaver = stage.hosts
    stage.partition(tuple(rest), (leaver,))
    result = has_left(stage, leaver, reset(stage, leaver, force=True))
    line = result.text.partition("weave rmpeer ")[2]
    assert bytes.fromhex(line) == sim_peer_id(4, 0)
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(stage.ask(rest[0], RemovePeers((line,)))), Done)
    assert share(stage, leaver) == 0
    stage.reunite()
    end(stage, leaver)


def play_somebody_was_away(seed: int) -> None:
    stage = formed(134 + seed)
    leaver, away = stage.hosts[:2]
    away.kill()
    stage.advance(NOTICED_S)
    has_left(stage, leaver, reset(stage, leaver))
    away.start()
    stage.until(lambda: away.node is not None and sim_peer_id(0, 0) in away.node.log.departed, 60, "the news")
    end(stage, leaver)


def test_who_was_away_learns_of_a_departure() -> None:
    play_somebody_was_away(0)


def all_open(hosts: list[Host]) -> bool:
    peers = {host.peer for host in hosts}
    return all(host.open_peers >= peers - {host.peer} for host in hosts)
