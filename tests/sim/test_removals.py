"""Peers are removed: the histories that the specification names, and its questions about ``rmpeer``, each one test."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weavenet.core.commands import Connect, Consense, Done, GetReport, RemovePeers
from weavenet.core.errors import Code, Failure
from weavenet.core.messages import Message, decode_body
from weavenet.core.messages.unicast import Routed, SeenAnswer
from weavenet.core.report import NodeReport
from weavenet.core.types import PeerId
from weavenet.sim.faults import CALM
from weavenet.sim.host import Host
from weavenet.sim.network import Station
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.violation import Violation

RANGE = "10.32.0.0/26"
"""Twelve or so addresses for each of five."""
NOTICED_S = 25.0
"""Within this time everybody knows who is out of reach."""


def formed(seed: int, peers: int = 5, *, electors: int | None = None, strangers: int = 0) -> Stage:
    """One cluster of all but the last ``strangers`` hosts."""
    bootstrap = Bootstrap.FULL_LIST if electors is None and not strangers else Bootstrap.OBSERVERS
    stage = Stage(seed, peers, electors=electors or peers - strangers, bootstrap=bootstrap, range_cidr=RANGE)
    members = stage.hosts[: peers - strangers]
    stage.start(*members)
    stage.answer(stage.ask(stage.hosts[0], Consense()))
    stage.until(lambda: all_open(members), 60, "data paths among all")
    return stage


def all_open(hosts: list[Host]) -> bool:
    peers = {host.peer for host in hosts}
    return all(host.open_peers >= peers - {host.peer} for host in hosts)


def remove(stage: Stage, host: Host, *victims: Host, force: bool = False, wait: bool = True) -> int:
    if force:
        stage.checker.force()
    return stage.ask(host, RemovePeers(tuple(victim.label for victim in victims), force, wait=wait))


def removed(host: Host) -> frozenset[PeerId]:
    assert host.node is not None
    return frozenset(host.node.log.removed)


def end(stage: Stage) -> None:
    """All faults are over: everybody agrees, and nobody's space is a removed peer's."""
    stage.heal()
    stage.rest()
    for host in stage.hosts:
        assert host.node is not None
        assert not set(host.node.ring.shares) & removed(host)


def drain(stage: Stage, host: Host, prefix: str) -> list[str]:
    """Containers on ``host`` take more addresses than its share has, so that it needs others' space."""
    return stage.fill(host, 15, prefix)


# --- the plain case ---


@pytest.mark.parametrize("seed", range(3))
def test_a_dead_peer_is_removed_and_its_space_used_again(seed: int) -> None:
    stage = formed(seed)
    victim = stage.hosts[4]
    stage.allocate(victim, "a")
    victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    result = stage.answer(remove(stage, stage.hosts[0], victim))
    assert isinstance(result, Done)
    assert victim.peer in removed(stage.hosts[0])
    assert stage.hosts[0].node is not None
    assert not stage.hosts[0].node.ipam.held
    again = stage.answer(stage.ask(stage.hosts[1], RemovePeers((victim.peer.hex(),))))
    assert isinstance(again, Done)
    assert len(stage.fill(stage.hosts[0], 24, "c")) > 20, "its own share and the inherited one"
    end(stage)


def test_a_reachable_peer_is_not_removed() -> None:
    stage = formed(1, 3)
    result = stage.answer(remove(stage, stage.hosts[0], stage.hosts[1]))
    assert isinstance(result, Failure)
    assert result.code is Code.CONFLICT
    unknown = stage.answer(stage.ask(stage.hosts[0], RemovePeers(("nobody",))))
    assert isinstance(unknown, Failure)
    assert unknown.code is Code.NOT_FOUND
    itself = stage.answer(remove(stage, stage.hosts[0], stage.hosts[0]))
    assert isinstance(itself, Failure)


def test_a_dead_peer_is_removed_by_name_after_everybody_else_was_started_anew() -> None:
    stage = formed(4)
    *rest, victim = stage.hosts
    victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    for host in rest:
        host.kill(kernel_lost=True)
    for host in rest:
        host.start()
    stage.advance(NOTICED_S)
    report = stage.answer(stage.ask(rest[0], GetReport()))
    assert isinstance(report, NodeReport)
    owner = next(each for each in report.ipam.owners if each.peer == victim.peer.hex())
    assert owner.nickname == victim.label and owner.name == victim.name
    assert owner.unreachable_s is not None
    assert isinstance(stage.answer(remove(stage, rest[0], victim)), Done)
    victim.start()
    end(stage)


@pytest.mark.parametrize("seed", range(3))
def test_i_do_not_see_it_is_durable_before_it_is_told(seed: int) -> None:
    """A slow disk, and voters that die right after the word has left: it is on their disks."""
    stage = formed(90 + seed)
    victim, asker = stage.hosts[4], stage.hosts[0]
    victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    told: list[Host] = []

    def intercept(source: Station, message: Message) -> bool:
        if isinstance(message, Routed) and isinstance(decode_body(message.body), SeenAnswer):
            assert isinstance(source, Host)
            assert ("unseen", victim.peer) in source.disk.durable
            told.append(source)
        return True

    stage.network.intercept = intercept
    for host in stage.hosts[:4]:
        host.disk.options = replace(CALM, fsync_min_s=0.05, fsync_max_s=0.4)
    assert isinstance(stage.answer(remove(stage, asker, victim)), Done)
    assert told
    stage.network.intercept = None
    end(stage)
    assert all(("unseen", victim.peer) not in host.disk.durable for host in stage.hosts), "settled"


# --- during a partition ---


def test_rmpeer_during_a_partition_in_the_majority_waits_for_those_who_may_know_better() -> None:
    """Two are cut off, one of them is declared dead: its space stays on hold until the other one was heard."""
    stage = formed(2)
    majority, lost, witness = stage.hosts[:3], stage.hosts[3], stage.hosts[4]
    stage.partition(tuple(majority), (lost, witness))
    lost.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    request = remove(stage, majority[0], lost)
    stage.advance(20)
    assert lost.peer in removed(majority[0])
    assert request not in stage.answers
    assert majority[0].node is not None
    assert majority[0].node.membership.collect.waiting_for == (witness.peer,)
    assert majority[0].node.ipam.held == ()
    stage.reunite()
    assert isinstance(stage.answer(request), Done)
    end(stage)


def test_rmpeer_during_a_partition_in_the_minority_is_pending_and_decided_after_heal() -> None:
    stage = formed(3)
    minority, victim, rest = stage.hosts[0], stage.hosts[1], stage.hosts[2:]
    victim.kill(kernel_lost=True)
    stage.partition((minority,), tuple(rest))
    stage.advance(NOTICED_S)
    pending = stage.answer(remove(stage, minority, victim, wait=False))
    assert isinstance(pending, Done)
    assert "pending" in pending.text
    stage.advance(10)
    assert not removed(minority)
    assert minority.node is not None
    assert "it needs" in minority.node.membership.removals.reports(stage.scheduler.now)[0]
    minority.kill()
    stage.reunite()
    minority.start()
    stage.until(lambda: all(victim.peer in removed(host) for host in (minority, *rest)), 60, "the removal")
    end(stage)


def play_pending_kills_the_living(seed: int) -> Stage:
    """A removal is asked for where no quorum is; after the heal its victim turns out to live."""
    stage = formed(seed)
    minority, rest = stage.hosts[0], stage.hosts[1:]
    stage.partition((minority,), tuple(rest))
    stage.advance(NOTICED_S)
    victim, living = rest[0], rest[0].peer
    remove(stage, minority, victim, wait=False)
    stage.advance(5)
    stage.network.block([(a, b) for a, b in ((minority.index, victim.index), (victim.index, minority.index))])
    for host in rest[1:]:
        stage.network.unblock([(minority.index, host.index), (host.index, minority.index)])
    stage.advance(30)
    if any(living in removed(host) for host in rest[1:]):
        raise Violation("revalidated", f"{victim.label} lives and was removed")
    return stage


def test_a_minority_is_told_what_works_and_what_waits() -> None:
    stage = formed(9)
    few, many = stage.hosts[:2], stage.hosts[2:]
    stage.partition(tuple(few), tuple(many))
    stage.advance(NOTICED_S)
    report = stage.answer(stage.ask(few[0], GetReport()))
    assert isinstance(report, NodeReport)
    (told,) = [text for text in report.warnings if "voters within reach" in text]
    assert told.startswith("2 of 5 voters within reach, 3 are needed to decide")
    assert "is still given out" in told and "wait; next: bring back" in told
    assert all(f"({host.label})" in told for host in many)
    stage.allocate(few[0], "x")
    report = stage.answer(stage.ask(many[0], GetReport()))
    assert isinstance(report, NodeReport)
    assert not any("voters within reach" in text for text in report.warnings)


@pytest.mark.parametrize("seed", range(3))
def test_pending_kills_the_living(seed: int) -> None:
    end(play_pending_kills_the_living(seed))


def test_rmpeer_during_a_partition_prints_the_exact_line_that_goes_on_without_a_quorum() -> None:
    stage = formed(7)
    few, many = stage.hosts[:2], stage.hosts[2:]
    for host in many:
        host.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    pending = stage.answer(remove(stage, few[0], many[0], wait=False))
    assert isinstance(pending, Done)
    assert "1 more of the voters" in pending.text and "--force" not in pending.text, "two voters are not named"
    pending = stage.answer(remove(stage, few[0], *many, wait=False))
    assert isinstance(pending, Done)
    assert "last seen" in pending.text
    line = pending.text.partition("weave rmpeer --force ")[2].partition(";")[0]
    assert line.split() == sorted(host.peer.hex() for host in many)
    stage.checker.force()
    done = stage.answer(stage.ask(few[0], RemovePeers(tuple(line.split()), force=True)))
    assert isinstance(done, Done)
    assert "is removed, last seen" in done.text and "may be used twice" in done.text
    again = stage.answer(stage.ask(few[1], RemovePeers(tuple(line.split()))))
    assert isinstance(again, Done)
    assert again.text.count("was removed before; what it owned is h0") + again.text.count("(h0)'s") >= 3


def test_rmpeer_during_a_partition_on_both_sides_at_once() -> None:
    """Each side declares the other dead; the majority decides, the minority's wish dies when they meet."""
    stage = formed(4)
    majority, minority = stage.hosts[:3], stage.hosts[3:]
    stage.partition(tuple(majority), tuple(minority))
    stage.advance(NOTICED_S)
    remove(stage, majority[0], *minority)
    remove(stage, minority[0], *majority, wait=False)
    stage.advance(20)
    assert removed(majority[0]) == {host.peer for host in minority}
    assert not removed(minority[0])
    end(stage)
    assert removed(majority[0]) >= removed(minority[0])


def test_two_operators_remove_two_peers_at_once() -> None:
    stage = formed(5, 7)
    for victim in stage.hosts[5:]:
        victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    requests = [
        remove(stage, host, *stage.hosts[5:][::step]) for host, step in zip(stage.hosts[:2], (1, -1), strict=True)
    ]
    requests += [remove(stage, stage.hosts[2], stage.hosts[5]), remove(stage, stage.hosts[3], stage.hosts[6])]
    for request in requests:
        assert isinstance(stage.answer(request), Done)
    assert stage.hosts[0].node is not None
    assert len(stage.hosts[0].node.log) <= 3
    end(stage)


# --- the victim lives ---


def test_rmpeer_during_a_partition_victim_alive_is_fenced_and_claims_its_addresses_back() -> None:
    stage = formed(6)
    victim = stage.hosts[4]
    address = stage.allocate(victim, "a")
    stage.partition(tuple(stage.hosts[:4]), (victim,))
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(remove(stage, stage.hosts[0], victim)), Done)
    old = victim.peer
    stage.reunite()
    stage.until(lambda: victim.peer != old, 90, "the fence")
    end(stage)
    assert stage.allocate(victim, "a") == address
    assert victim.node is not None
    stage.until(lambda: victim.node is not None and not victim.node.ipam.blocked(), 90, "the claim")


@pytest.mark.parametrize("seed", range(3))
def test_rmpeer_during_a_partition_victim_alive_by_force_without_a_quorum(seed: int) -> None:
    """Two of five go on without the others, who live, decide nothing meanwhile, and follow the new epoch."""
    stage = formed(10 + seed)
    few, many = stage.hosts[:2], stage.hosts[2:]
    stage.partition(tuple(few), tuple(many))
    stage.advance(NOTICED_S)
    unnamed = stage.answer(remove(stage, few[0], many[0], force=True))
    assert isinstance(unnamed, Failure)
    assert "--force" in unnamed.next_step
    assert isinstance(stage.answer(remove(stage, few[0], *many, force=True)), Done)
    assert few[0].node is not None
    assert few[0].node.log.chain.epoch[0] == 1
    stage.allocate(few[1], "x")
    end(stage)
    assert all(host.generation == 0 for host in few)
    assert all(host.generation == 1 for host in many)


def test_the_greater_epoch_stays_when_each_side_removed_the_other() -> None:
    stage = formed(14)
    few, many = stage.hosts[:2], stage.hosts[2:]
    stage.partition(tuple(few), tuple(many))
    stage.advance(NOTICED_S)
    stage.answer(remove(stage, many[0], *few))
    assert isinstance(stage.answer(remove(stage, few[0], *many, force=True)), Done)
    end(stage)
    assert all(host.generation == 0 for host in few)
    assert all(host.generation == 1 for host in many)


def play_return_with_the_old_disk(seed: int) -> Stage:
    """A machine that was given up comes back as it went."""
    stage = formed(20 + seed)
    victim = stage.hosts[4]
    stage.allocate(victim, "a")
    victim.kill()
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(remove(stage, stage.hosts[0], victim)), Done)
    drain(stage, stage.hosts[0], "c")
    old = victim.peer
    victim.start()
    stage.until(lambda: victim.peer != old, 90, "the fence")
    end(stage)
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_rmpeer_during_a_partition_victim_returns_with_its_old_disk(seed: int) -> None:
    stage = play_return_with_the_old_disk(seed)
    assert stage.hosts[4].node is not None
    assert stage.hosts[4].node.ipam.blocked(), "its address is used elsewhere by now"
    report = stage.answer(stage.ask(stage.hosts[4], GetReport()))
    assert isinstance(report, NodeReport)
    (told,) = [text for text in report.warnings if text.startswith("blocked here")]
    assert "which says it is used by" in told
    assert told.count("next:") == 1 and "weave detach" in told and "and weave attach a for a new one" in told


# --- what others hold of the removed ---


def play_remove_hides_grant(seed: int) -> Stage:
    """X gave space to Y, and only these two knew it when X died and was removed."""
    stage = formed(30 + seed)
    rest, granted, victim = stage.hosts[:3], stage.hosts[3], stage.hosts[4]
    stage.partition(tuple(rest), (granted, victim))
    stage.advance(NOTICED_S)
    drain(stage, granted, "g")
    victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    remove(stage, rest[0], victim)
    stage.advance(10)
    for host in rest:
        drain(stage, host, f"r{host.index}")
    stage.reunite()
    for _ in range(80):
        stage.advance(0.25)
        if granted.node is not None and granted.node.ipam.blocked():
            raise Violation("honoured", f"{granted.label} lost what {victim.label} had given it")
    end(stage)
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_remove_hides_grant(seed: int) -> None:
    """Also the question of a victim that was granted space meanwhile, seen from its other end."""
    play_remove_hides_grant(seed)


@pytest.mark.parametrize("seed", range(3))
def test_rmpeer_during_a_partition_victim_is_granted_space_meanwhile(seed: int) -> None:
    """One side removes the victim, which lives on the other and is given space there until they meet."""
    stage = formed(45 + seed)
    rest, donor, victim = stage.hosts[:3], stage.hosts[3], stage.hosts[4]
    stage.partition(tuple(rest), (donor, victim))
    stage.advance(NOTICED_S)
    request = remove(stage, rest[0], victim)
    used = drain(stage, victim, "v")
    assert len(used) > 12, "more than its share: the donor gave it some"
    stage.advance(10)
    assert victim.peer in removed(rest[0])
    assert request not in stage.answers, "the donor may know of grants"
    old = victim.peer
    stage.reunite()
    assert isinstance(stage.answer(request), Done)
    stage.until(lambda: victim.peer != old, 90, "the fence")
    end(stage)
    assert victim.node is not None
    stage.until(lambda: victim.node is not None and not victim.node.ipam.blocked(), 90, "its addresses claimed back")


def test_grant_to_the_dead() -> None:
    """W gives space to X, which is being removed on the other side; it is the heir's in the end, nobody's never."""
    stage = formed(40)
    rest, donor, victim = stage.hosts[:3], stage.hosts[3], stage.hosts[4]
    stage.partition(tuple(rest), (donor, victim))
    stage.advance(NOTICED_S)
    request = remove(stage, rest[0], donor, wait=False)  # never decided: it is back before
    drain(stage, victim, "v")
    assert victim.node is not None
    given = victim.node.ring.shares[victim.peer]
    victim.kill(kernel_lost=True)
    stage.answer(request)
    stage.reunite()
    stage.advance(NOTICED_S)
    assert given > 12
    assert isinstance(stage.answer(remove(stage, rest[0], victim)), Done)
    end(stage)


def play_stranger_island(seed: int, *, crash_s: float = 0.0) -> Stage:
    """A newcomer meets only X, is given space by it, and X dies; one known peer meets the stranger before the heir.

    With ``crash_s`` that known peer has a disk so slow, and dies as soon as the heir counts on what it confirmed."""
    stage = formed(50 + seed, 6, strangers=1)
    rest, bridge, victim, stranger = stage.hosts[:3], stage.hosts[3], stage.hosts[4], stage.hosts[5]
    stage.partition((*rest, bridge), (victim, stranger))
    stage.advance(NOTICED_S)
    stranger.start()
    stage.ask(stranger, Connect((victim.host,)))
    stage.until(lambda: victim.peer in stranger.open_peers, 30, "the stranger joins")
    drain(stage, stranger, "s")
    victim.kill(kernel_lost=True)
    stage.network.blocked.clear()
    stage.partition((*rest, bridge), (victim, stranger))
    held_back = [(host.index, bridge.index) for host in rest]
    stage.network.intercept = lambda source, message: not _is_ring(message, bridge.peer)
    stage.advance(NOTICED_S)
    if crash_s:
        bridge.disk.options = replace(CALM, fsync_min_s=crash_s, fsync_max_s=crash_s)
    request = remove(stage, rest[0], victim)
    if crash_s:
        stage.answer(request)
        stage.network.block([*held_back, *((b, a) for a, b in held_back)])
        bridge.kill()
        bridge.disk.options = CALM
        bridge.start()
    stage.advance(10)
    for host in rest:
        drain(stage, host, f"r{host.index}")
    stage.network.block([*held_back, *((b, a) for a, b in held_back)])
    stage.network.unblock([(bridge.index, stranger.index), (stranger.index, bridge.index)])
    stage.ask(stranger, Connect((bridge.host,)))
    stage.advance(30)
    stage.network.intercept = None
    stage.reunite()
    end(stage)
    return stage


def _is_ring(message: object, receiver: PeerId) -> bool:
    from weavenet.core.messages.gossip import Push

    return isinstance(message, Push) and bool(message.ring)


@pytest.mark.parametrize("seed", range(3))
def test_stranger_island(seed: int) -> None:
    play_stranger_island(seed)


@pytest.mark.parametrize("seed", range(3))
def test_stranger_island_met_by_one_who_confirmed_and_crashed(seed: int) -> None:
    """What a peer confirmed to the heir outlives its crash, however slow its disk."""
    play_stranger_island(seed, crash_s=2.0)


def play_late_grant_to_the_dead(seed: int) -> Stage:
    """A stranger gave space to X, and is met only after X was removed and its heir has all it knew of."""
    stage = formed(55 + seed, 6, strangers=1)
    rest, victim, stranger = stage.hosts[:4], stage.hosts[4], stage.hosts[5]
    stage.partition(tuple(rest), (victim, stranger))
    stage.advance(NOTICED_S)
    stranger.start()
    stage.ask(stranger, Connect((victim.host,)))
    stage.until(lambda: victim.peer in stranger.open_peers, 30, "the stranger joins")
    address = stage.allocate(stranger, "s")
    assert victim.node is not None
    before = victim.node.ring.shares[victim.peer]
    drain(stage, victim, "v")
    assert victim.node.ring.shares[victim.peer] > before, "the stranger gave some back"
    assert stage.owner(victim, address) == stranger.peer
    victim.kill(kernel_lost=True)
    assert isinstance(stage.answer(remove(stage, rest[0], victim)), Done)
    stage.reunite()
    stage.ask(stranger, Connect((rest[1].host,)))
    end(stage)
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_late_grant_to_the_dead(seed: int) -> None:
    play_late_grant_to_the_dead(seed)


def play_lost_disk_owner(seed: int) -> Stage:
    """X gave space to Y, and only these two knew it when X lost its disk; it joins again among the others."""
    stage = formed(35 + seed)
    rest, granted, victim = stage.hosts[:3], stage.hosts[3], stage.hosts[4]
    stage.partition(tuple(rest), (granted, victim))
    stage.advance(NOTICED_S)
    drain(stage, granted, "g")
    stage.workload.lost(victim)
    stage.checker.forget_host(victim)
    victim.lose_disk()
    stage.network.blocked.clear()
    stage.partition((*rest, victim), (granted,))
    victim.start()
    stage.advance(NOTICED_S)
    drain(stage, victim, "x")
    stage.reunite()
    stage.heal()
    stage.settle()
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_lost_disk_owner_is_somebody_else(seed: int) -> None:
    play_lost_disk_owner(seed)


@pytest.mark.parametrize("seed", range(3))
def test_rmpeer_during_a_partition_heir_dies_before_its_hold_ends(seed: int) -> None:
    stage = formed(60 + seed, 7)
    victim, heir, cut = stage.hosts[6], stage.hosts[0], stage.hosts[5]
    victim.kill(kernel_lost=True)
    stage.partition(tuple(stage.hosts[:5]), (cut,))
    stage.advance(NOTICED_S)
    remove(stage, heir, victim)
    stage.advance(10)
    assert victim.peer in removed(stage.hosts[1])
    heir.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    stage.reunite()
    assert isinstance(stage.answer(remove(stage, stage.hosts[1], heir)), Done)
    assert stage.hosts[1].node is not None
    assert stage.hosts[1].node.log.heir(victim.peer) == stage.hosts[1].peer
    end(stage)


def test_heir_restarts_within_its_hold() -> None:
    stage = formed(70)
    heir, cut, victim = stage.hosts[0], stage.hosts[3], stage.hosts[4]
    victim.kill(kernel_lost=True)
    stage.partition(tuple(stage.hosts[:3]), (cut,))
    stage.advance(NOTICED_S)
    remove(stage, heir, victim)
    stage.advance(10)
    heir.kill()
    heir.start()
    stage.advance(20)
    assert heir.node is not None
    assert cut.peer in heir.node.membership.collect.waiting_for
    stage.reunite()
    stage.until(lambda: heir.node is not None and not heir.node.membership.collect.is_needed, 60, "the end of the hold")
    end(stage)


# --- electors ---


def test_members_become_electors_by_consense_at_the_same_time() -> None:
    stage = Stage(80, 5, electors=1, bootstrap=Bootstrap.COUNT, range_cidr=RANGE)
    stage.form()
    requests = [stage.ask(host, Consense()) for host in stage.hosts]
    for request in requests:
        result = stage.answer(request)
        assert isinstance(result, Done)
        assert result.text in {"voter", "standby"}
    stage.settle()
    assert stage.hosts[0].node is not None
    assert len(stage.hosts[0].node.log.voters) == 5


def test_an_observer_never_becomes_elector() -> None:
    stage = formed(81, 4, electors=3)
    assert stage.answer(stage.ask(stage.hosts[3], Consense())) == Done("member, not elector")
