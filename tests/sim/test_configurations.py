"""Swarms of random configurations, disks that are set back at random, and the smallest history that still fails."""

from __future__ import annotations

import pytest

from weavenet.sim.cli import Job, describe_failure, main, minimised, replay, run_job
from weavenet.sim.faults import OF_SWARMS, FaultKind
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.swarm import WORDS, draw_swarm, minimise, without
from weavenet.sim.trace import TAIL_LINES
from weavenet.sim.world import STEPS_DEFAULT


@pytest.mark.parametrize("seed", range(1, 10))
def test_no_violation_in_a_swarm(seed: int) -> None:
    job = Job(seed, 1, 8, STEPS_DEFAULT, swarm=True)
    outcome = run_job(job)
    if outcome.violation:
        trace, _ = replay(job, keep=TAIL_LINES)
        pytest.fail(describe_failure(job, outcome.violation, trace), pytrace=False)


def test_swarms_mix_electors_observers_and_ephemeral_peers_into_every_bootstrap() -> None:
    drawn = [draw_swarm(seed, peers_min=1, peers_max=25, steps=STEPS_DEFAULT) for seed in range(1000)]
    assert {options.setup.peers for options in drawn} == set(range(1, 26))
    mixed = {each.setup.bootstrap for each in drawn if each.setup.electors < each.setup.peers}
    assert mixed == set(Bootstrap) - {Bootstrap.ALONE}
    for bootstrap in (Bootstrap.SEED, Bootstrap.LOCK, Bootstrap.FULL_LIST):
        assert any(each.setup.ephemerals for each in drawn if each.setup.bootstrap is bootstrap)
    for kind in OF_SWARMS:
        assert any(kind in each.faults.weights for each in drawn)


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_is_set_back_comes_back_as_somebody_else(seed: int) -> None:
    """The fault as it strikes at random; never a voter's disk."""
    stage = Stage(40 + seed, 4, electors=3, bootstrap=Bootstrap.OBSERVERS)
    stage.form()
    voter, victim = stage.hosts[0], stage.hosts[3]
    before = victim.peer
    for host in (voter, victim):
        stage.storm.cause(FaultKind.ROLLBACK, host)
    victim.kill()
    victim.start()  # the copy does not know of this start
    stage.until(lambda: victim.peer != before, 60, "a new key")
    stage.heal()
    stage.settle()
    assert voter.generation == 0
    assert len(stage.clusters()) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_copied_disk_makes_two_peers(seed: int) -> None:
    """The fault as it strikes at random, on a machine that has containers; never with the key of a voter."""
    stage = Stage(60 + seed, 5, electors=3, bootstrap=Bootstrap.OBSERVERS)
    stage.form()
    *voters, original, victim = stage.hosts
    held = stage.allocate(original, "web")
    stage.allocate(victim, "gone")
    before = victim.peer
    while victim.peer == before:
        stage.storm.cause(FaultKind.CLONE, victim)
    assert victim.peer not in {voter.peer for voter in voters}
    stage.heal()
    stage.until(lambda: len({host.peer for host in stage.hosts}) == 5, 60, "five identities")
    stage.until(lambda: all(host.node is not None for host in stage.hosts), 60, "all of them running")
    stage.settle()
    assert len(stage.clusters()) == 1
    addresses = [stage.allocate(host, f"c{host.index}") for host in stage.hosts]
    assert len({*addresses, held}) == 6


def test_minimise_keeps_what_the_failure_needs() -> None:
    def fails(steps: int, gone: tuple[str, ...]) -> bool:
        return steps >= 25 and "crash" not in gone and "routed-loss" not in gone

    steps, gone = minimise(60, (), fails)
    assert steps == 30
    assert set(gone) == set(WORDS) - {"crash", "routed-loss"}


def test_what_is_taken_away_is_gone() -> None:
    options = without(draw_swarm(6, peers_min=1, peers_max=25, steps=9), WORDS)
    assert not options.faults.weights
    assert not (options.removals or options.forced_removals or options.names or options.resets)
    assert not options.setup.ephemerals and not options.setup.sleeve
    chances = [field for field in options.faults.__struct_fields__ if field.endswith("_probability")]
    assert chances and not any(getattr(options.faults, field) for field in chances)


def test_a_violation_is_minimised_and_replayed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weavenet.core.ring import estate

    monkeypatch.setattr(estate, "held_rows", lambda holding: ())
    job = Job(2, 3, 3, 20)
    violation = run_job(job).violation
    assert violation
    small = minimised(job, violation)
    assert small.steps < job.steps and len(small.gone) > 10
    words = [argument for word in small.gone for argument in ("--without", word)]
    assert main(["--seed", "2", "--peers", "3", "--steps", str(small.steps), *words]) == 1
    out = capsys.readouterr().out
    assert violation.partition(":")[0] in out
    assert " --without crash" in out
