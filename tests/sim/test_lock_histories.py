"""Genesis by a lock: one cluster whoever dies when, whatever the lock does to those who ask."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weavenet.core.commands import Allocate, Consense, Done, RemovePeers, Reset
from weavenet.sim.faults import CALM
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage

BAD_LOCK = replace(CALM, lock_failure_probability=0.5, lock_delay_max_s=12.0)


@pytest.mark.parametrize("seed", range(10))
def test_one_cluster_although_answers_are_lost_late_and_repeated(seed: int) -> None:
    stage = Stage(seed, 4, bootstrap=Bootstrap.LOCK, faults=BAD_LOCK)
    stage.start()
    requests = [stage.ask(host, Consense()) for host in stage.hosts]
    for request in requests:
        stage.answer(request, within_s=120)
    stage.settle()
    assert len(stage.clusters()) == 1


@pytest.mark.parametrize("seed", range(10))
def test_one_killed_at_any_moment_of_the_bootstrap_is_not_missed(seed: int) -> None:
    """Those left go on without a person, whether or not the one that died had made the record."""
    stage = Stage(seed, 3, bootstrap=Bootstrap.LOCK, faults=replace(CALM, lock_delay_max_s=0.5))
    stage.start()
    for host in stage.hosts:
        stage.ask(host, Consense())
    stage.advance(seed * 0.06)
    dead = stage.rng.choice(stage.hosts)
    dead.kill()
    left = [host for host in stage.hosts if host is not dead]
    addresses = {stage.allocate(host, f"c{number}") for host in left for number in range(3)}
    assert len(addresses) == 6
    assert len(stage.clusters()) == 1
    dead.start()
    stage.settle()
    assert len(stage.clusters()) == 1


def test_hosts_that_cannot_reach_each_other_still_make_one_cluster() -> None:
    stage = Stage(5, 2, bootstrap=Bootstrap.LOCK)
    first, second = stage.hosts
    stage.partition((first,), (second,))
    stage.start()
    asked = stage.ask(first, Consense())
    waiting = stage.ask(second, Allocate("c"))
    stage.answer(asked)
    stage.advance(30)
    assert len(stage.clusters()) == 1  # the second read the record, and waits for the owner of the addresses
    assert waiting not in stage.answers
    stage.reunite()
    stage.answer(waiting)
    stage.settle()


def test_from_zero_one_after_the_other_with_one_configuration() -> None:
    """Nobody is special: the first makes the record, whoever comes later reads it or is told."""
    stage = Stage(6, 5, bootstrap=Bootstrap.LOCK)
    for host in stage.hosts:
        stage.start(host)
        stage.allocate(host, f"c{host.index}")
    stage.settle()
    assert len(stage.clusters()) == 1
    assert stage.record_lock.offers == 1


def test_a_crash_between_the_draft_and_the_answer_offers_the_same_record_again() -> None:
    stage = Stage(7, 1, bootstrap=Bootstrap.LOCK, faults=replace(CALM, lock_delay_max_s=0.001))
    host = stage.hosts[0]
    offered: list[bytes] = []
    offer = stage.record_lock.offer

    def dying(asker: object, record: bytes) -> None:
        if record:
            offered.append(record)
            if len(offered) == 1:
                host.kill()
                return
        offer(host, record)

    stage.record_lock.offer = dying  # type: ignore[method-assign,assignment]
    stage.start()
    stage.ask(host, Consense())
    stage.until(lambda: bool(offered), 20, "an offer")
    host.start()
    stage.answer(stage.ask(host, Consense()))
    assert len(offered) == 2
    assert offered[0] == offered[1]


@pytest.mark.parametrize("seed", range(5))
def test_to_zero_and_up_again(seed: int) -> None:
    """All leave at once; the last one frees the lock, however badly that answers; then others begin anew."""
    stage = Stage(seed, 3, bootstrap=Bootstrap.LOCK, faults=replace(BAD_LOCK, lock_failure_probability=0.3))
    stage.start()
    for host in stage.hosts:
        stage.answer(stage.ask(host, Consense()), within_s=120)
    stage.settle()
    (first,) = stage.clusters()
    for host in stage.hosts:
        stage.ask(host, Reset())
    stage.until(lambda: all(host.is_blanked for host in stage.hosts), 200, "everybody to leave")
    stage.advance(15)  # a late answer of the lock counts by then
    stage.checker.forget_clusters()
    assert stage.record_lock.record == b""
    for host in stage.hosts:
        stage.start(host)
    for host in stage.hosts:
        stage.answer(stage.ask(host, Consense()), within_s=120)
    stage.settle()
    (second,) = stage.clusters()
    assert second != first


def test_the_last_one_does_not_leave_behind_a_record_that_it_cannot_withdraw() -> None:
    stage = Stage(3, 1, bootstrap=Bootstrap.LOCK)
    host = stage.hosts[0]
    stage.start()
    stage.answer(stage.ask(host, Consense()))
    stage.record_lock.options = replace(CALM, lock_failure_probability=1.0)
    asked = stage.ask(host, Reset())
    stage.advance(60)
    assert asked not in stage.answers
    assert host.node is not None
    assert "lock" in " ".join(host.node.membership.leaving.needs)
    stage.record_lock.options = CALM
    stage.answer(asked)
    assert stage.record_lock.record == b""


def test_who_read_the_record_of_a_cluster_that_was_left_meanwhile_begins_anew() -> None:
    stage = Stage(4, 2, bootstrap=Bootstrap.LOCK)
    last, late = stage.hosts
    stage.partition((last,), (late,))
    stage.start(last)
    stage.answer(stage.ask(last, Consense()))
    stage.start(late)
    waiting = stage.ask(late, Allocate("c"))
    stage.until(lambda: len(stage.clusters()) == 1, 30, "the record to be read")
    stage.answer(stage.ask(last, Reset()))
    stage.until(lambda: last.is_blanked, 30, "the last one to leave")
    stage.checker.forget_clusters()
    stage.answer(waiting)
    assert late.node is not None
    assert late.node.log.electors == (late.peer,)
    stage.reunite()
    stage.start(last)
    stage.allocate(last, "c")
    stage.settle()
    assert len(stage.clusters()) == 1


def test_a_founder_that_died_alone_is_replaced_by_one_command() -> None:
    """The record names only the dead: whoever reads it waits, says for whom, and goes on when that one is given up."""
    stage = Stage(8, 3, bootstrap=Bootstrap.LOCK)
    founder, second, third = stage.hosts
    stage.start(founder)
    stage.allocate(founder, "c")
    founder.kill(kernel_lost=True)
    stage.start(second, third)
    waiting = stage.ask(second, Allocate("c"))
    stage.advance(30)
    assert waiting not in stage.answers
    assert second.node is not None
    report = second.node.report(second.local_now())
    (warning,) = [text for text in report.warnings if "weave rmpeer --force" in text]
    assert founder.peer.hex() in warning
    done = stage.answer(stage.ask(second, RemovePeers((founder.peer.hex(),), force=True)))
    assert isinstance(done, Done), done
    stage.answer(waiting)
    stage.allocate(third, "c")
