"""Ephemeral peers: what they may do without a lease, and how they are removed without anybody asking."""

from __future__ import annotations

import pytest
from test_removals import RANGE, all_open, removed

from weavenet.core.commands import Allocate, Consense, GetReport
from weavenet.core.limits import LEASE_SHARE
from weavenet.core.report import NodeReport
from weavenet.sim.faults import FaultKind
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.violation import Violation

TTL_S = 60
RENEWED_S = LEASE_SHARE * TTL_S


def formed(seed: int, peers: int = 5, *, ephemerals: int = 1) -> Stage:
    """Three voters; the last ``ephemerals`` hosts are ephemeral."""
    stage = Stage(
        seed, peers, electors=3, bootstrap=Bootstrap.OBSERVERS, range_cidr=RANGE, ephemerals=ephemerals, ttl_s=TTL_S
    )
    stage.start()
    stage.answer(stage.ask(stage.hosts[0], Consense()))
    stage.until(lambda: all_open(stage.hosts), 60, "data paths among all")
    return stage


def end(stage: Stage) -> None:
    stage.heal()
    stage.rest()


def is_shut(host: Host) -> bool:
    return not host.open_peers


@pytest.mark.parametrize("seed", range(3))
def test_an_ephemeral_peer_that_is_gone_is_removed_without_anybody_asking(seed: int) -> None:
    stage = formed(seed, 6, ephemerals=3)
    stage.allocate(stage.hosts[3], "a")
    stage.allocate(stage.hosts[4], "b")
    victims = stage.hosts[3:5]
    for victim in victims:
        victim.kill(kernel_lost=True)
    stage.advance(TTL_S - 5)
    assert not removed(stage.hosts[0])
    gone = {victim.peer for victim in victims}
    stage.until(lambda: all(removed(host) == gone for host in (*stage.hosts[:3], stage.hosts[5])), 60, "their removal")
    node = stage.hosts[0].node
    assert node is not None
    stage.until(lambda: not set(node.ring.shares) & gone, 60, "their space in the heir's hands")
    stage.advance(3 * TTL_S)
    assert removed(stage.hosts[0]) == gone, "the one that lives stays"
    for host in (*stage.hosts[:3], stage.hosts[5]):
        assert not [row for row in host.disk.durable if row[1] in gone], "also where nobody votes"


def test_one_that_lives_stays_and_says_how_its_lease_stands() -> None:
    stage = formed(3)
    guest = stage.hosts[4]
    stage.allocate(guest, "a")
    stage.advance(4 * TTL_S)
    assert not removed(stage.hosts[0])
    report = stage.answer(stage.ask(guest, GetReport()))
    assert isinstance(report, NodeReport)
    assert report.ipam.lease.startswith("TTL 1m 0s, renewed by a quorum")
    assert not report.ipam.is_lease_over
    assert guest.node is not None
    assert guest.peer not in guest.node.log.electors


@pytest.mark.parametrize("seed", range(3))
def test_without_a_quorum_it_stops_before_its_time_is_over(seed: int) -> None:
    """It sees one voter of three: no address is given out, no frame passes, before anybody may give it up."""
    stage = formed(10 + seed)
    guest = stage.hosts[4]
    stage.allocate(guest, "a")
    stage.partition((guest, stage.hosts[0]), tuple(stage.hosts[1:4]))
    stage.advance(RENEWED_S - 12)
    stage.allocate(guest, "b")
    assert not is_shut(guest)
    stage.advance(13)
    assert is_shut(guest)
    waiting = stage.ask(guest, Allocate("c"))
    stage.advance(2)
    assert waiting not in stage.answers
    assert stage.allocate(stage.hosts[0], "d"), "voters need no lease"
    assert not removed(stage.hosts[1])
    stage.advance(3)
    stage.reunite()
    stage.answer(waiting, within_s=30)
    stage.until(lambda: not is_shut(guest), 30, "its data paths")
    assert guest.generation == 0
    end(stage)


@pytest.mark.parametrize("seed", range(3))
def test_zombie_containers(seed: int) -> None:
    """The daemon of an ephemeral peer dies and its containers go on talking; it is removed, its addresses are used
    again, and nobody ever sees one of them twice. Then the daemon comes back."""
    stage = formed(20 + seed)
    guest = stage.hosts[4]
    stage.fill(guest, 8, "z")
    guest.kill()
    stage.until(lambda: guest.peer in removed(stage.hosts[1]), 3 * TTL_S, "its removal")
    for host in stage.hosts[:4]:
        stage.fill(host, 15, f"r{host.index}")
    stage.advance(5)
    old = guest.peer
    guest.start()
    stage.until(lambda: guest.peer != old, 90, "the fence")
    end(stage)


@pytest.mark.parametrize("kind", [FaultKind.SUSPEND, FaultKind.VM_PAUSE])
@pytest.mark.parametrize("seed", range(3))
def test_suspend_and_vm_pause_of_an_ephemeral_peer(seed: int, kind: FaultKind) -> None:
    """It stands still for longer than its TTL and wakes up believing what it believed, or knowing better."""
    stage = formed(30 + seed)
    guest = stage.hosts[4]
    stage.fill(guest, 8, "z")
    old = guest.peer
    guest.pause()
    stage.network.suspended.add(guest.index)
    slept_from = stage.scheduler.now
    stage.until(lambda: old in removed(stage.hosts[1]), 3 * TTL_S, "its removal")
    for host in stage.hosts[:4]:
        stage.fill(host, 15, f"r{host.index}")
    request = stage.ask(guest, Allocate("late"))
    if kind is FaultKind.VM_PAUSE:
        guest.clock_offset_s -= stage.scheduler.now - slept_from
    stage.network.suspended.discard(guest.index)
    guest.resume()
    if kind is FaultKind.SUSPEND:
        assert request not in stage.answers, "its clock says that the lease is over"
        assert is_shut(guest)
    stage.network.flush()
    stage.until(lambda: guest.peer != old, 90, "the fence")
    end(stage)


@pytest.mark.parametrize("seed", range(3))
def test_one_voter_that_gave_it_up_and_one_that_is_gone_do_not_keep_it_out(seed: int) -> None:
    """Of three voters one renews it, one had given it up while cut off, one is dead: a quorum for neither."""
    stage = formed(50 + seed)
    *voters, member, guest = stage.hosts
    assert guest.node is not None
    first = guest.node.log.voters[0]  # who asks the others, as long as it is there
    blind, dead, _ = sorted(voters, key=lambda voter: voter.peer != first)
    stage.allocate(guest, "a")
    stage.partition((blind,), tuple(host for host in stage.hosts if host is not blind))
    stage.advance(TTL_S + 10)
    assert blind.node is not None and guest.peer in blind.node.membership.attests
    dead.kill(kernel_lost=True)
    stage.reunite()
    stage.advance(RENEWED_S)  # what the dead one renewed is over
    stage.until(lambda: {blind.peer, member.peer} <= guest.open_peers, 30, "its data paths")
    stage.allocate(guest, "b")
    assert guest.generation == 0
    assert not removed(blind)


def test_whoever_has_given_it_up_renews_nothing_until_that_is_settled() -> None:
    """One voter does not see it, two do: nobody is removed, and the third renews again in the end."""
    stage = formed(40)
    guest, blind = stage.hosts[4], stage.hosts[2]
    stage.network.block([(a.index, b.index) for a, b in ((guest, blind), (blind, guest))])
    stage.partition((blind,), (guest,))
    stage.advance(3 * TTL_S)
    assert not removed(stage.hosts[0])
    stage.reunite()
    stage.advance(TTL_S)
    assert not removed(stage.hosts[0])
    assert blind.node is not None
    assert guest.peer not in blind.node.membership.attests
    end(stage)
    if guest.generation:
        raise Violation("lease", "a peer that two of three voters renewed was removed")


def test_a_voter_that_was_started_anew_waits_a_whole_term() -> None:
    stage = formed(50)
    guest = stage.hosts[4]
    guest.kill(kernel_lost=True)
    stage.advance(TTL_S - 10)
    for host in stage.hosts[:2]:
        host.kill()
        host.start()
    stage.advance(TTL_S - 10)
    assert not removed(stage.hosts[2]), "two of three have not waited for it long enough"
    stage.until(lambda: guest.peer in removed(stage.hosts[2]), 60, "its removal")
