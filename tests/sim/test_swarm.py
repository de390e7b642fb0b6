"""Random histories under the fault menu: no invariant breaks, and after the heal everybody agrees and is served.

One in ten is of full length; the others are shorter, of fewer hosts, since most of what can go wrong with five hosts
goes wrong with three, and a minute buys six times as many. ``WEAVE_SIM_SEEDS`` changes the number of histories. A
failure prints the seed, the command that replays it and the end of its trace.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import click
import pytest

from weavenet.sim import scale
from weavenet.sim.cli import Job, describe_failure, main, replay, run_job, run_jobs
from weavenet.sim.scale import ScaleOptions, ScaleWorld
from weavenet.sim.trace import TAIL_LINES
from weavenet.sim.world import STEPS_DEFAULT

SEEDS = int(os.environ.get("WEAVE_SIM_SEEDS", "2000"))
BATCH = 50
LONG_EVERY = 10
STEPS_SHORT = 30

TRACE_HASH = """
import hashlib
from weavenet.sim.cli import Job, replay
trace, violation = replay(Job({seed}, 5, 7, {steps}), keep=None)
print(hashlib.sha256("\\n".join(trace.lines).encode()).hexdigest(), violation)
"""


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_violation(first: int) -> None:
    for seed in range(first, min(first + BATCH, SEEDS)):
        job = Job(seed, 3, 5, STEPS_SHORT) if seed % LONG_EVERY else Job(seed, 5, 7, STEPS_DEFAULT)
        outcome = run_job(job)
        if outcome.violation:
            trace, _ = replay(job, keep=TAIL_LINES)
            pytest.fail(describe_failure(job, outcome.violation, trace), pytrace=False)


@pytest.mark.parametrize("seed", [3, 4])
def test_one_seed_is_one_history(seed: int) -> None:
    """Byte for byte, in other processes with other hash seeds."""
    hashes = set()
    for hash_seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", TRACE_HASH.format(seed=seed, steps=STEPS_DEFAULT)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        hashes.add(done.stdout)
    trace, violation = replay(Job(seed, 5, 7, STEPS_DEFAULT), keep=None)
    hashes.add(f"{hashlib.sha256(chr(10).join(trace.lines).encode()).hexdigest()} {violation}\n")
    assert len(hashes) == 1


def test_replay_prints_one_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--peers", "3", "--steps", "5", "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 100
    assert lines[-1] == "seed 1: no violation"


def test_a_violation_names_seed_and_replay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from weavenet.core.ring import estate

    monkeypatch.setattr(estate, "held_rows", lambda holding: ())
    assert main(["--seeds", "20", "--first-seed", "1", "--peers", "3", "--steps", "40"]) == 1
    out = capsys.readouterr().out
    assert out.count("replay: weave sim --seed") == 1
    assert "durable-before" in out
    arguments = ["--seeds", "20", "--first-seed", "1", "--peers", "3", "--steps", "40", "--failures", "2"]
    assert main(arguments) == 1
    assert capsys.readouterr().out.count("replay: weave sim --seed") == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_of_the_simulator_itself_names_the_seed(processes: int) -> None:
    job = Job(4, 3, 3, steps=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as caught:
        list(run_jobs([job], processes))
    assert "weave sim --seed 4 --peers 3-3" in caught.value.__notes__[0]


def test_scale_run_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "12", "--links", "4"]) == 0
    assert "copies of it per peer" in capsys.readouterr().out


@pytest.mark.parametrize("peers", [1, 2, 3, 10])
def test_in_a_small_mesh_everybody_is_linked_to_everybody(peers: int) -> None:
    targets = ScaleWorld(ScaleOptions(peers=peers, links=20)).targets
    pairs = {frozenset((index, other)) for index, chosen in enumerate(targets) for other in chosen}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(range(peers), 2)}


def test_a_scale_run_that_does_not_form_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScaleWorld, "_all_know_all", lambda self: False)
    monkeypatch.setattr(scale, "FORM_MAX_S", 1.0)
    assert main(["--peers", "3", "--links", "2", "--seed", "5"]) == 1
    out = capsys.readouterr().out
    assert "liveness: 3 peers did not agree" in out
    assert "replay: weave sim --seed 5 --peers 3 --links 2" in out


def test_a_trace_is_of_one_history() -> None:
    with pytest.raises(click.UsageError, match="expected --seed N with --trace"):
        main(["--trace"])
