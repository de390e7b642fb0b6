"""The voters keep themselves in order: they grow, replace who is gone, and shrink no further than they may."""

from __future__ import annotations

import pytest
from test_removals import NOTICED_S, RANGE, all_open, formed, remove
from test_resets import has_left, reset

from weavenet.core.commands import Connect, Consense, Done, GetReport, RemovePeers
from weavenet.core.limits import GROW_AFTER_S, VOTER_ABSENT_S
from weavenet.core.report import NodeReport
from weavenet.core.types import PeerId
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage


def voters(host: Host) -> set[PeerId]:
    assert host.node is not None
    return set(host.node.log.voters)


def peers(*hosts: Host) -> set[PeerId]:
    return {host.peer for host in hosts}


def join(stage: Stage, *hosts: Host) -> None:
    for host in hosts:
        host.start()
        stage.ask(host, Connect((stage.hosts[0].host,)))


def grown_from_one(seed: int, count: int) -> Stage:
    """The first host founds the cluster alone, and ``count`` - 1 more join it."""
    stage = Stage(seed, count, bootstrap=Bootstrap.ALONE, range_cidr=RANGE)
    first, *others = stage.hosts
    first.start()
    stage.answer(stage.ask(first, Consense()))
    stage.allocate(first, "used")
    join(stage, *others)
    return stage


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 3), (4, 3), (5, 5), (9, 7)])
def test_voters_grow_by_two_when_two_more_are_reachable(count: int, expected: int) -> None:
    stage = grown_from_one(count, count)
    stage.until(lambda: all(len(voters(host)) == expected for host in stage.hosts), 60, f"{expected} voters")
    stage.settle()
    stage.advance(4 * GROW_AFTER_S)
    assert all(len(voters(host)) == expected for host in stage.hosts)
    assert stage.hosts[0].peer in voters(stage.hosts[0])


def test_observers_are_never_added() -> None:
    stage = formed(1, 6, electors=3)
    stage.advance(4 * GROW_AFTER_S)
    assert all(voters(host) == peers(*stage.hosts[:3]) for host in stage.hosts)


def test_consense_on_the_second_peer_makes_it_stand_by() -> None:
    stage = grown_from_one(2, 2)
    stage.settle()
    assert stage.answer(stage.ask(stage.hosts[1], Consense())) == Done("standby")
    assert stage.hosts[0].node is not None
    assert stage.hosts[0].node.log.electors == tuple(sorted(peers(*stage.hosts)))
    report = stage.answer(stage.ask(stage.hosts[1], GetReport()))
    assert isinstance(report, NodeReport)
    assert report.ipam.role == "standby"


def test_consense_in_a_minority_waits() -> None:
    stage = grown_from_one(3, 4)
    stage.until(lambda: all(len(voters(host)) == 3 for host in stage.hosts), 60, "three voters")
    stage.settle()
    new = next(host for host in stage.hosts if host.peer not in voters(host))
    friend = next(host for host in stage.hosts if host is not new)
    stage.partition((new, friend), tuple(host for host in stage.hosts if host not in (new, friend)))
    stage.advance(NOTICED_S)
    request = stage.ask(new, Consense())
    stage.advance(20)
    assert request not in stage.answers
    stage.reunite()
    assert stage.answer(request) == Done("standby")
    stage.settle()


def test_a_voter_that_a_quorum_has_not_seen_for_ten_minutes_is_replaced() -> None:
    stage = formed(4, 4)
    gone = next(host for host in stage.hosts if host.peer in voters(host))
    spare = next(host for host in stage.hosts if host.peer not in voters(host))
    rest = [host for host in stage.hosts if host is not gone]
    gone.kill(kernel_lost=True)
    stage.advance(VOTER_ABSENT_S - 10)
    assert all(gone.peer in voters(host) for host in rest), "it may come back"
    stage.advance(60)
    assert all(voters(host) == peers(*rest) for host in rest)
    assert spare.peer in voters(spare)
    gone.start()
    stage.until(lambda: voters(gone) == peers(*rest), 60, "its own knowledge of it")
    stage.settle()
    assert stage.answer(stage.ask(gone, Consense())) == Done("standby"), "it is no founder, but no stranger either"
    assert gone.generation == 0


def test_five_voters_become_three_but_three_stay() -> None:
    stage = formed(5)
    first, *rest = stage.hosts
    first.kill(kernel_lost=True)
    stage.advance(VOTER_ABSENT_S + 60)
    assert all(len(voters(host)) == 3 and first.peer not in voters(host) for host in rest)
    keeper, *others = sorted(rest, key=lambda host: host.peer not in voters(host))
    keeper.kill(kernel_lost=True)
    stage.advance(VOTER_ABSENT_S + 60)
    assert all(voters(host) == peers(*others) for host in others), "the one that stood by took its place"
    others[0].kill(kernel_lost=True)
    stage.advance(VOTER_ABSENT_S + 60)
    assert all(voters(host) == peers(*others) for host in others[1:]), "two voters would need both"
    stage.heal()
    stage.rest()


def test_a_long_partition_replaces_voters_on_the_side_of_the_quorum_only() -> None:
    """Two of five are cut off from three."""
    stage = formed(6)
    cut = stage.hosts[3:]
    stage.partition(tuple(stage.hosts[:3]), tuple(cut))
    stage.advance(VOTER_ABSENT_S + 60)
    assert all(voters(host) == peers(*stage.hosts) for host in cut)
    assert all(len(voters(host)) == 3 for host in stage.hosts[:3]), "these have seen neither of the two"
    stage.reunite()
    stage.settle()
    stage.until(lambda: all(len(voters(host)) == 5 for host in stage.hosts), 60, "the return of both")


def elector_that_left(seed: int) -> tuple[Stage, Host, Host, PeerId]:
    """(stage, first voter, second, third). The third was made one while it left on the other side of a partition."""
    stage = Stage(seed, 5, bootstrap=Bootstrap.ALONE, range_cidr=RANGE, ephemerals=1, ttl_s=3600)
    first, *others, guest = stage.hosts
    first.start()
    stage.answer(stage.ask(first, Consense()))
    stage.allocate(first, "used")
    join(stage, *others, guest)
    leaver, second, spare = sorted(others, key=lambda host: host.peer)
    stage.until(lambda: all_open(stage.hosts), 60, "data paths among all", every_s=0.001)
    assert len(voters(first)) == 1
    stage.advance(GROW_AFTER_S - 2)
    stage.partition((first, second), (leaver, spare, guest))
    old = leaver.peer
    has_left(stage, leaver, reset(stage, leaver))
    stage.until(lambda: voters(first) == {first.peer, second.peer, old}, 20, "three voters")
    return stage, first, second, old


@pytest.mark.parametrize("seed", range(2))
def test_elector_that_left_is_none_any_more(seed: int) -> None:
    stage, first, second, old = elector_that_left(seed)
    stage.reunite()
    rest = [host for host in stage.hosts if host.node is not None]
    stage.until(lambda: all(old not in host.node.log.electors for host in rest if host.node), 60, "its vote to end")
    stage.until(lambda: all(len(voters(host)) == 3 for host in rest), 60, "somebody in its place")
    assert peers(first, second) < voters(first)
    stage.heal()
    stage.rest()


@pytest.mark.parametrize("seed", range(2))
def test_elector_that_left_keeps_nobody_from_removing_the_dead(seed: int) -> None:
    """Without a quorum: nobody can name it as dead, since it has left."""
    stage, first, second, old = elector_that_left(seed)
    second.kill(kernel_lost=True)
    stage.checker.force()
    stage.reunite()
    stage.advance(NOTICED_S)
    assert first.node is not None
    assert old in first.node.log.departed and len(voters(first)) == 3
    pending = stage.answer(remove(stage, first, second, wait=False))
    assert isinstance(pending, Done) and f"weave rmpeer --force {second.peer.hex()}" in pending.text
    assert isinstance(stage.answer(remove(stage, first, second, force=True)), Done)
    rest = [host for host in stage.hosts if host.node is not None]
    stage.until(lambda: all(len(voters(host)) == 1 for host in rest), 30, "one voter, who is there")
    assert voters(first) <= peers(*rest)
    stage.heal()
    stage.rest()


@pytest.mark.parametrize("seed", [1, 2])
def test_founded_with_one_that_left(seed: int) -> None:
    """It left while the other one offered the lock a record with both: it is the only voter, until somebody says so."""
    stage = Stage(seed, 3, bootstrap=Bootstrap.LOCK, range_cidr=RANGE)
    leaver, founder, third = sorted(stage.hosts, key=lambda host: host.peer)
    stage.start(leaver, founder)
    stage.until(lambda: founder.peer in known(leaver) and leaver.peer in known(founder), 30, "a link", every_s=0.01)
    stage.advance(2)
    stage.ask(founder, Consense())
    stage.until(lambda: has_drafted(founder), 30, "a draft", every_s=0.0005)
    old = leaver.peer
    has_left(stage, leaver, reset(stage, leaver))
    stage.advance(NOTICED_S)
    assert founder.node is not None
    assert founder.node.log.voters == (old,)
    third.start()
    request = stage.ask(third, Consense())
    stage.advance(20)
    assert request not in stage.answers, "nobody can decide"
    stage.checker.force()
    pending = stage.answer(stage.ask(founder, RemovePeers((old.hex(),), wait=False)))
    assert isinstance(pending, Done)
    line = pending.text.partition("weave rmpeer --force ")[2].partition(";")[0]
    assert isinstance(stage.answer(stage.ask(founder, RemovePeers(tuple(line.split()), force=True))), Done)
    assert isinstance(stage.answer(request), Done)
    stage.heal()
    stage.rest()
    assert voters(founder) <= peers(*stage.hosts)


def known(host: Host) -> frozenset[PeerId]:
    return frozenset() if host.node is None else host.node.mesh.reachable()


def has_drafted(host: Host) -> bool:
    return host.node is not None and host.node.founding.locked is not None and host.node.founding.locked.has_drafted
