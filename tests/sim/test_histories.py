"""The histories that the specification names, as far as their subject exists: each is one test."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from weavenet.core.commands import Addresses, Allocate, Connect, Consense
from weavenet.core.mesh import mesh as mesh_module
from weavenet.core.mesh import records as records_module
from weavenet.core.messages import Message, decode_body
from weavenet.core.messages.gossip import KIND_PEER, Push
from weavenet.core.messages.unicast import Accept, Accepted, HandoverPage, Prepare, Routed, SpaceGrant, SpaceRequest
from weavenet.core.types import PeerId
from weavenet.sim.faults import CALM
from weavenet.sim.host import Host
from weavenet.sim.network import Station
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage

SMALL = "10.32.0.0/28"
"""Sixteen addresses: shares run out at once."""


def unicast(message: Message) -> object:
    return decode_body(message.body) if isinstance(message, Routed) else None


def first(stage: Stage) -> Host:
    """The host with the lowest PeerId: it leads elections."""
    return min(stage.hosts, key=lambda host: host.peer)


def owns(stage: Stage, host: Host) -> int:
    assert host.node is not None
    return host.node.ring.shares.get(host.peer, 0)


# --- genesis ---


@pytest.mark.parametrize("seed", range(5))
def test_two_proposers_agree_on_one_genesis(seed: int) -> None:
    stage = Stage(seed, 3)
    stage.start()
    requests = [stage.ask(host, Consense()) for host in stage.hosts]
    for request in requests:
        stage.answer(request)
    stage.settle()
    assert len(stage.clusters()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_proposer_dies_between_accept_and_decide(seed: int) -> None:
    """What a quorum accepted stays decided, whoever finishes it."""
    stage = Stage(seed, 3)
    leader = first(stage)
    proposed: set[bytes] = set()

    def intercept(source: Station, message: Message) -> bool:
        body = unicast(message)
        if isinstance(body, Accept):
            proposed.add(body.value.cluster)
        return not (isinstance(body, Accepted) and leader.is_running and message.destination == leader.peer)

    stage.network.intercept = intercept
    stage.start()
    stage.ask(leader, Consense())
    stage.until(lambda: bool(proposed), 20, "a proposal")
    stage.advance(0.05)
    leader.kill()
    others = [host for host in stage.hosts if host is not leader]
    stage.answer(stage.ask(others[0], Consense()))
    stage.until(
        lambda: stage.clusters() == sorted(proposed), 20, "what a quorum had accepted is decided by the survivors"
    )
    stage.network.intercept = None
    leader.start()
    stage.settle()
    assert stage.clusters() == sorted(proposed)


def test_a_minority_cannot_found_a_cluster() -> None:
    stage = Stage(1, 5)
    stage.partition(tuple(stage.hosts[:2]), tuple(stage.hosts[2:]))
    stage.start()
    lonely = stage.ask(stage.hosts[0], Consense())
    stage.answer(stage.ask(stage.hosts[4], Consense()))
    stage.advance(30)
    assert lonely not in stage.answers
    stage.reunite()
    stage.answer(lonely)
    stage.settle()
    assert len(stage.clusters()) == 1


def test_slow_disks_do_not_keep_electors_from_agreeing() -> None:
    """A commit that takes longer than a proposer's patience with one message."""
    slow = replace(CALM, fsync_min_s=0.3, fsync_max_s=0.5)
    stage = Stage(3, 5, faults=slow)
    stage.start()
    stage.answer(stage.ask(stage.hosts[0], Consense()), within_s=30)


def play_lost_disk_elector(seed: int) -> Stage:
    """A proposer forgets its ballot and is asked to believe an answer to the forgotten one.

    It led with ballot 1, one elector accepted, and the answer is still under way when the proposer comes back with its
    disk set back to the beginning of that very start (which nobody can tell from a restart), proposes something else
    as ballot 1, and then gets that answer over a relay.
    """
    stage = Stage(seed, 3, bootstrap=Bootstrap.COUNT, discovery=False)
    proposer, acceptor, relay = stage.hosts[1], stage.hosts[0], stage.hosts[2]
    late: list[Message] = []

    def intercept(source: Station, message: Message) -> bool:
        body = unicast(message)
        if (isinstance(body, Prepare) and source is not proposer) or (isinstance(message, Push) and message.log):
            return False
        if isinstance(body, HandoverPage):
            return False
        if isinstance(body, Accept) and source is proposer and message.destination == relay.peer:
            return False
        if isinstance(body, Accepted) and source is acceptor and proposer.life <= 2:
            late.append(message)
            return False
        return True

    stage.network.intercept = intercept
    stage.start()
    stage.ask(proposer, Consense())
    stage.until(lambda: bool(late), 30, "an acceptance")
    proposer.set_back({place: value for place, value in proposer.disk.durable.items() if place[0] == "meta"})
    stage.workload.lost(proposer)
    stage.partition((acceptor,), (proposer, relay))
    proposer.start()
    stage.ask(proposer, Consense())
    stage.advance(4.5)
    for message in late:
        stage.network.inject(relay, proposer, message)
    stage.advance(1)
    proposer.kill()
    stage.network.intercept = None
    stage.reunite()
    stage.answer(stage.ask(acceptor, Connect((relay.host,))))
    stage.ask(acceptor, Consense())  # it may have to wait for the proposer, to become an elector
    stage.until(lambda: acceptor.node is not None and acceptor.node.log.genesis is not None, 60, "the genesis")
    stage.reunite()
    proposer.start()
    stage.settle()
    return stage


@pytest.mark.parametrize("seed", range(4))
def test_lost_disk_elector(seed: int) -> None:
    stage = play_lost_disk_elector(seed)
    assert len(stage.clusters()) == 1


def play_split_birth(seed: int) -> Stage:
    """Four electors start in two halves, and each half is asked for a genesis."""
    stage = Stage(seed, 4)
    shuffled = stage.rng.sample(stage.hosts, 4)
    stage.partition(tuple(shuffled[:2]), tuple(shuffled[2:]))
    stage.start()
    for host in stage.hosts:
        stage.ask(host, Consense())
    stage.advance(20)
    assert stage.clusters() == [b""], "no half of four is a majority"
    stage.reunite()
    stage.settle()
    return stage


@pytest.mark.parametrize("seed", range(3))
def test_no_half_founds_a_cluster(seed: int) -> None:
    assert len(play_split_birth(seed).clusters()) == 1


# --- singletons ---


def test_defect_a_used_cluster_of_one_does_not_change_sides() -> None:
    """Both have given addresses away: they refuse each other in words, and nobody loses anything."""
    stage = Stage(1, 2, bootstrap=Bootstrap.ALONE)
    stage.start()
    left, right = stage.hosts
    before = [stage.allocate(left, "a"), stage.allocate(right, "b")]
    stage.answer(stage.ask(left, Connect((right.host,))))
    stage.advance(30)
    assert len(stage.clusters()) == 2
    assert not left.open_peers
    assert not right.open_peers
    assert [stage.allocate(left, "a"), stage.allocate(right, "b")] == before


def test_chain_of_unused_singletons_becomes_one_cluster() -> None:
    stage = Stage(2, 4, bootstrap=Bootstrap.ALONE)
    stage.start()
    for host in stage.hosts:
        stage.answer(stage.ask(host, Consense()))
    assert len(stage.clusters()) == 4
    first_two = sorted(host.node.cluster.id for host in stage.hosts[:2] if host.node is not None)
    for joined, (host, other) in enumerate(pairwise(stage.hosts), start=1):
        stage.answer(stage.ask(host, Connect((other.host,))))
        stage.until(lambda left=4 - joined: len(stage.clusters()) == left, 60, "one more joins")
    assert stage.clusters() == first_two[:1]
    stage.settle()


def test_rollout_singletons_yield_to_the_cluster_in_use() -> None:
    stage = Stage(3, 5, bootstrap=Bootstrap.ALONE)
    old, *new = stage.hosts
    stage.start()
    kept = stage.allocate(old, "web")
    for host in new:
        stage.answer(stage.ask(host, Consense()))
    assert old.node is not None
    used = old.node.cluster.id
    for host in new:
        stage.ask(host, Connect((old.host,)))
    stage.until(lambda: stage.clusters() == [used], 60, "the cluster in use takes in the others")
    stage.settle()
    assert stage.allocate(old, "web") == kept
    for host in new:
        assert stage.allocate(host, f"on-{host.label}") != kept


# --- space ---


@pytest.mark.parametrize("seed", range(8))
def test_leak_before_fsync(seed: int) -> None:
    """Nobody sees a grant that a crash can take back."""
    stage = Stage(seed, 2, range_cidr=SMALL)
    stage.form()
    donor, asker = stage.hosts
    stage.fill(asker, owns(stage, asker) - 1, "own")
    donor.disk.options = replace(CALM, fsync_min_s=2.0, fsync_max_s=2.0)
    grants: list[bool] = []

    def intercept(source: Station, message: Message) -> bool:
        shows = isinstance(unicast(message), SpaceGrant) or (
            isinstance(message, Push)
            and any(
                piece.stamp.owner == asker.peer and piece.stamp.version > 1
                for d in message.ring
                for piece in d.segments
            )
        )
        if source is donor and shows:
            grants.append(any(table == "grants" for table, _ in donor.disk.durable))
        return True

    stage.network.intercept = intercept
    waiting = stage.ask(asker, Allocate("more"))
    stage.advance(1.9)
    assert not grants
    donor.kill()
    stage.advance(1)
    donor.disk.options = CALM
    donor.start()
    assert isinstance(stage.answer(waiting), Addresses)
    assert grants
    assert all(grants), "a grant was shown before it was durable"
    stage.settle()


@pytest.mark.parametrize("countdown", range(12))
def test_donor_crashes_between_persist_and_send(countdown: int) -> None:
    """At whichever effect: the space is given once, and the asker gets an address in the end."""
    stage = Stage(7, 2, range_cidr=SMALL)
    stage.form()
    donor, asker = stage.hosts
    stage.fill(asker, owns(stage, asker) - 1, "own")
    assert donor.driver is not None
    armed: list[bool] = []

    def intercept(source: Station, message: Message) -> bool:
        if isinstance(unicast(message), SpaceRequest) and not armed and donor.driver is not None:
            donor.driver.crash_countdown = countdown
            armed.append(True)
        return True

    stage.network.intercept = intercept
    waiting = stage.ask(asker, Allocate("more"))
    stage.advance(3)
    donor.kill()
    donor.start()
    result = stage.answer(waiting)
    assert isinstance(result, Addresses)
    assert armed
    stage.settle()


def test_duplicate_space_requests_get_the_same_grant() -> None:
    faults = replace(CALM, routed_duplicate_probability=1.0, routed_reorder_max_s=3.0)
    stage = Stage(5, 2, range_cidr=SMALL, faults=faults)
    stage.form()
    asker = stage.hosts[1]
    given: dict[int, set[object]] = {}

    def intercept(source: Station, message: Message) -> bool:
        body = unicast(message)
        if isinstance(body, SpaceGrant):
            given.setdefault(body.request, set()).add(body.segments)
        return True

    stage.network.intercept = intercept
    addresses = stage.fill(asker, 12, "c")
    stage.advance(10)
    assert given
    assert all(len(answers) == 1 for answers in given.values())
    assert len(set(addresses)) == len(addresses)
    stage.settle()


def test_a_minority_partition_allocates_from_its_own_space() -> None:
    stage = Stage(4, 3)
    stage.form()
    alone, *others = stage.hosts
    stage.partition((alone,), tuple(others))
    stage.advance(15)
    found = [stage.allocate(alone, f"a{n}") for n in range(20)]
    for host in others:
        found += [stage.allocate(host, f"b{host.index}-{n}") for n in range(20)]
    assert len(set(found)) == 60
    stage.reunite()
    assert stage.settle(15) <= 15
    assert all(stage.owner(host, address) == stage.owner(alone, address) for address in found for host in others)


# --- time ---


def test_suspend_keeps_its_space_and_comes_back() -> None:
    """A laptop lid is closed for an hour: others go on, nothing of its share is given away, links return."""
    stage = Stage(6, 3)
    stage.form()
    sleeper, other, _ = stage.hosts
    kept = stage.allocate(sleeper, "web")
    stage.network.suspended.add(sleeper.index)
    sleeper.pause()
    stage.advance(3600)
    taken = {stage.allocate(other, f"o{n}") for n in range(30)}
    stage.network.suspended.discard(sleeper.index)
    sleeper.resume()
    stage.network.flush()
    stage.settle(20)
    assert kept not in taken
    assert stage.allocate(sleeper, "web") == kept


def test_vm_pause_keeps_its_space_and_comes_back() -> None:
    """The machine was stopped and its clock with it: it thinks that nothing happened."""
    stage = Stage(8, 3)
    stage.form()
    sleeper, other, _ = stage.hosts
    kept = stage.allocate(sleeper, "web")
    waiting = stage.ask(sleeper, Allocate("late"))
    stage.network.suspended.add(sleeper.index)
    sleeper.pause()
    stage.advance(1800)
    taken = {stage.allocate(other, f"o{n}") for n in range(30)}
    stage.network.suspended.discard(sleeper.index)
    sleeper.clock_offset_s -= 1800
    sleeper.resume()
    stage.network.flush()
    stage.settle(30)
    assert isinstance(stage.answer(waiting), Addresses)
    assert kept not in taken
    assert stage.allocate(sleeper, "web") == kept


def test_zombie_ping_pong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of a peer that is gone expire on both sides of a partition and do not come back when they meet."""
    for module in (records_module, mesh_module):
        if hasattr(module, "RECORD_ABSENT_EXPIRY_S"):
            monkeypatch.setattr(module, "RECORD_ABSENT_EXPIRY_S", 600.0)
    stage = Stage(9, 3, bootstrap=Bootstrap.OBSERVERS, electors=2)
    stage.form()
    left, right, gone = stage.hosts
    lost: PeerId = gone.peer
    gone.kill()
    stage.advance(200)
    for _ in range(4):
        stage.partition((left,), (right,))
        stage.advance(130)
        stage.reunite()
        stage.advance(60)
    for host in (left, right):
        assert host.node is not None
        assert not host.node.mesh.records_of(lost, KIND_PEER), f"{host.label} still tells of {gone.label}"


# --- crashes ---


@pytest.mark.parametrize("seed", range(6))
def test_allocations_survive_a_crash_at_any_effect(seed: int) -> None:
    stage = Stage(seed, 2)
    stage.form()
    host = stage.hosts[0]
    told: dict[str, str] = {}
    for number in range(12):
        assert host.driver is not None
        host.driver.crash_countdown = (seed * 3 + number) % 7
        request = stage.ask(host, Allocate(f"c{number}"))
        stage.advance(0.5)
        host.kill()
        host.start()
        result = stage.answers.get(request)
        if isinstance(result, Addresses):
            told[f"c{number}"] = result.addresses[0].partition("/")[0]
        stage.advance(1)
    for ident, address in told.items():
        assert stage.allocate(host, ident) == address
    stage.settle()


def test_second_binder_of_a_seed_is_blocked_before_both_are_seen() -> None:
    """An operator launches two hosts under one seed name: the lesser loses the share, and nobody sees both (I5)."""
    stage = play_two_binders(1)
    assert any(host.blocked for host in stage.hosts), "somebody lost addresses"


def play_two_binders(seed: int) -> Stage:
    stage = Stage(seed, 4, bootstrap=Bootstrap.SEED, electors=2, seed_twin=True)
    one, two, watcher, twin = stage.hosts
    stage.partition((one, two, watcher), (twin,))
    stage.start()
    stage.fill(one, 5, "a")
    stage.fill(twin, 5, "t")
    stage.advance(5)
    stage.reunite()
    stage.advance(30)
    return stage
