"""Histories of disks that are lost, set back or copied."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Consense, Done, RemovePeers, Reset
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage


def has_share(host: Host) -> bool:
    """The share of its seed is its own, or known to be another's."""
    return host.node is not None and not host.node.ipam.seed_share.is_awaited


@pytest.mark.parametrize("seed", range(3))
def test_two_blank_seeds_do_not_vouch_for_each_other(seed: int) -> None:
    """Two seeds lose their disks and meet, cut off from the third: what they had given away is not theirs again."""
    stage = Stage(seed, 4, bootstrap=Bootstrap.SEED, electors=3)
    one, two, three, member = stage.hosts
    stage.form()
    granted = stage.allocate(member, "guest")
    stage.settle()
    stage.partition((one, two), (three, member))
    for host in (one, two):
        host.lose_disk()
        host.start()
    stage.advance(30)
    for host in (one, two):
        assert not has_share(host)
    stage.reunite()
    stage.settle()
    assert stage.allocate(member, "guest") == granted
    for host in (one, two):
        assert stage.allocate(host, f"on-{host.label}") != granted


@pytest.mark.parametrize("seed", range(3))
def test_lost_disk_seed(seed: int) -> None:
    """A seed comes back blank and cut off: it takes its share only after hearing from a seed that knows its grants."""
    stage = Stage(10 + seed, 4, bootstrap=Bootstrap.SEED, electors=3)
    victim, *others = stage.hosts
    stage.form()
    granted = stage.allocate(others[-1], "guest")
    stage.settle()
    stage.partition((victim,), tuple(others))
    stage.workload.lost(victim)
    stage.checker.forget_host(victim)
    victim.lose_disk()
    victim.start()
    stage.advance(30)
    assert not has_share(victim)
    stage.reunite()
    stage.until(lambda: has_share(victim), 60, "its share")
    assert stage.allocate(victim, "own") != granted


@pytest.mark.parametrize("seed", range(3))
def test_seed_that_slept(seed: int) -> None:
    """One seed was cut off while another came, gave an address out, and left by ``weave reset``; the two meet alone."""
    stage = Stage(20 + seed, 4, bootstrap=Bootstrap.SEED)
    visitor, sleeper, *others = stage.hosts
    stage.start(sleeper, *others)
    stage.until(lambda: all(map(has_share, (sleeper, *others))), 60, "their shares")
    stage.advance(10)
    stage.partition((sleeper,), (visitor, *others))
    visitor.start()
    stage.allocate(visitor, "first")
    stage.advance(5)
    left = stage.ask(visitor, Reset())
    assert isinstance(stage.answer(left), Done)
    stage.until(lambda: visitor.node is None, 60, "it has left")
    stage.network.blocked.clear()
    stage.partition((visitor, sleeper), tuple(others))
    visitor.start()
    stage.until(lambda: stage.links_between(visitor, sleeper), 60, "the two meet")
    stage.advance(10)
    assert not has_share(visitor)
    stage.reunite()
    stage.until(lambda: has_share(visitor), 60, "what became of its share")
    assert visitor.node is not None
    assert visitor.node.ipam.seed_share.bound_as is None
    stage.allocate(visitor, "second")


def test_a_seed_that_waits_for_others_is_served_meanwhile() -> None:
    """It hears from one of three seeds: that is enough to learn that its share is taken, and for addresses by grant."""
    stage = Stage(8, 4, bootstrap=Bootstrap.SEED)
    lost, present, *absent = stage.hosts
    fresh = absent.pop()
    stage.start(lost, present, *absent)
    stage.until(lambda: all(map(has_share, (lost, present, *absent))), 60, "their shares")
    stage.allocate(lost, "before")
    stage.advance(10)
    stage.partition((lost, present, fresh), tuple(absent))
    stage.workload.lost(lost)
    stage.checker.forget_host(lost)
    for host in (lost, fresh):
        host.lose_disk()
        host.start()
    stage.until(lambda: has_share(lost), 60, "that its share is another's")
    assert stage.allocate(lost, "after")
    stage.until(lambda: stage.links_between(fresh, present), 60, "a link")
    assert stage.allocate(fresh, "guest")
    assert not has_share(fresh)
    stage.reunite()
    stage.until(lambda: has_share(fresh), 60, "its share")
    assert fresh.node is not None and fresh.node.ipam.seed_share.bound_as is not None


def test_blank_seeds_that_are_all_there_take_their_shares() -> None:
    """Nobody was launched with ``--first-start``: with all seeds blank and met there is nothing to lose."""
    stage = Stage(5, 3, bootstrap=Bootstrap.SEED)
    for host in stage.hosts:
        host.generation = 1
    stage.start()
    for host in stage.hosts:
        stage.allocate(host, f"on-{host.label}")
    stage.settle()


def restarted(stage: Stage, host: Host, others: list[Host]) -> None:
    """``host`` was started once more, and everybody has heard of it."""
    host.kill()
    host.start()
    assert host.node is not None
    start = host.node.incarnation
    stage.until(lambda: all(o.node and o.node.mesh.incarnation(host.peer) == start for o in others), 30, "news of it")
    stage.settle()


@pytest.mark.parametrize("starts", (1, 3))
@pytest.mark.parametrize("seed", range(4))
def test_a_disk_set_back_before_an_earlier_start_ends_its_identity(seed: int, starts: int) -> None:
    """A snapshot is restored: nobody may go on as a peer of whom others know more than the disk does."""
    stage = Stage(seed, 4)
    stage.form()
    victim = stage.hosts[seed]
    others = [host for host in stage.hosts if host is not victim]
    early = dict(victim.disk.durable)
    for _ in range(starts):
        restarted(stage, victim, others)
    before = victim.peer
    victim.set_back(early)
    victim.start()
    stage.until(lambda: victim.peer != before, 30, "a new key")
    stage.until(lambda: all(victim.peer in host.open_peers for host in others), 60, "data paths to the new identity")
    assert len(stage.clusters()) == 1
    address = stage.allocate(victim, "fresh")
    stage.until(lambda: stage.owner(others[0], address) == victim.peer, 10, "news of the grant")
    assert not any(other.generation for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_set_back_within_one_start_behind_a_grant_ends_its_identity(seed: int) -> None:
    """The start is on the disk, the grant that came after it is not."""
    stage = Stage(seed, 4, range_cidr="10.32.0.0/26")
    stage.form()
    donor, *others = stage.hosts
    stage.allocate(donor, "own")
    stage.advance(3)
    early = dict(donor.disk.durable)
    for host in others:
        stage.fill(host, 18, f"c{host.index}")
    stage.until(lambda: any(table == "grants" for table, _ in donor.disk.durable), 30, "a grant")
    stage.settle()
    stage.advance(3)
    before = donor.peer
    stage.workload.lost(donor)
    stage.checker.forget_host(donor)
    donor.set_back(early)
    donor.start()
    stage.until(lambda: donor.peer != before, 30, "a new key")
    stage.until(lambda: all(donor.peer in host.open_peers for host in others), 60, "data paths to the new identity")
    assert not any(other.generation for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_set_back_within_one_start_behind_a_vote_ends_its_identity(seed: int) -> None:
    stage = Stage(seed, 5, range_cidr="10.32.0.0/26")
    stage.form()
    voter, asker, *others = stage.hosts
    stage.advance(3)
    early = dict(voter.disk.durable)
    others[-1].kill(kernel_lost=True)
    stage.advance(25)
    stage.answer(stage.ask(asker, RemovePeers((others[-1].label,))))
    stage.advance(3)
    before = voter.peer
    voter.set_back(early)
    voter.start()
    stage.until(lambda: voter.peer != before, 30, "a new key")


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_does_not_end_an_identity(seed: int) -> None:
    stage = Stage(seed, 3)
    stage.form()
    peers = [host.peer for host in stage.hosts]
    for host in stage.hosts * 2:
        host.kill(kernel_lost=bool(seed % 2))
        host.start()
        stage.advance(0.1 + seed)
    stage.settle()
    assert [host.peer for host in stage.hosts] == peers


@pytest.mark.parametrize("seed", range(4))
def test_a_copied_disk_that_runs_beside_its_original_leaves_one_of_them_the_identity(seed: int) -> None:
    """Whichever start is later keeps the key; the other one notices, and comes back as somebody else."""
    stage = Stage(seed, 4, electors=3, bootstrap=Bootstrap.OBSERVERS)
    *members, spare = stage.hosts
    stage.start(*members)
    stage.answer(stage.ask(members[0], Consense()))
    stage.until(lambda: all(len(host.open_peers) == 2 for host in members), 60, "data paths among the members")
    original = members[seed % 3]
    copied = original.peer
    spare.set_back(original.disk.durable)
    spare.peer = copied
    spare.start()
    stage.until(lambda: spare.peer != original.peer, 60, "two identities")
    assert copied in {spare.peer, original.peer}
    stage.until(lambda: all(len(host.open_peers) == 3 for host in stage.hosts), 60, "data paths among all")
    assert len(stage.clusters()) == 1
    addresses = [stage.allocate(host, f"c{host.index}") for host in stage.hosts]
    assert len(set(addresses)) == 4
