"""``weave sim``: many random histories, or one again with every event printed.

Exit status: 0 no violation, 1 a violation (with the seed, the command that replays it, and the end of its trace).
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click

from weavenet.sim.scale import ScaleOptions, run_scale
from weavenet.sim.swarm import PEERS_MAX, PEERS_MIN, WORDS, draw_swarm, minimise, without
from weavenet.sim.trace import TAIL_LINES, Trace
from weavenet.sim.violation import Violation
from weavenet.sim.world import STEPS_DEFAULT, HistoryOptions, draw_options, run_seed

_TAIL_SHOWN = 60
_PROGRESS_S = 60.0
"""A run that nobody watches says how far it is this often."""
_COLLECT_THRESHOLDS = 20_000, 20, 50
"""A history makes many objects and few cycles: looking for those as often as by default costs a twentieth of it."""


class Job(NamedTuple):
    """``swarm``: of the wider menu. ``gone``: words of what the history is without."""

    seed: int
    peers_min: int
    peers_max: int
    steps: int
    swarm: bool = False
    gone: tuple[str, ...] = ()

    def options(self) -> HistoryOptions:
        draw = draw_swarm if self.swarm else draw_options
        options = draw(self.seed, peers_min=self.peers_min, peers_max=self.peers_max, steps=self.steps)
        return without(options, self.gone)


class Outcome(NamedTuple):
    seed: int
    events: int
    violation: str


def run_job(job: Job) -> Outcome:
    """One history without a trace; ``violation`` is empty when it was fine. What the simulator itself raises says in
    which history."""
    try:
        world, violation = run_seed(job.seed, job.options())
    except Exception as error:
        error.add_note(f"the simulator failed in seed {job.seed}; replay: {replay_command(job)}")
        raise
    return Outcome(job.seed, world.steps, str(violation) if violation else "")


def replay(job: Job, *, keep: int | None) -> tuple[Trace, str]:
    """The same history with its trace."""
    trace = Trace(keep)
    _, violation = run_seed(job.seed, job.options(), trace)
    return trace, str(violation) if violation else ""


def replay_command(job: Job) -> str:
    words = "".join(f" --without {word}" for word in job.gone)
    swarm = " --swarm" if job.swarm else ""
    return (
        f"weave sim --seed {job.seed} --peers {job.peers_min}-{job.peers_max} --steps {job.steps}{swarm}{words} --trace"
    )


def describe_failure(job: Job, violation: str, trace: Trace, shown: int = _TAIL_SHOWN) -> str:
    """What a person needs to understand a violation: seed, rule, how to replay it, and the end of the trace."""
    lines = [*trace.tail(shown), f"seed {job.seed}: {violation}", f"replay: {replay_command(job)}"]
    return "\n".join(lines)


def minimised(job: Job, violation: str) -> Job:
    """The smallest history found that breaks the same rule."""
    rule = violation.partition(":")[0]

    def fails(steps: int, gone: tuple[str, ...]) -> bool:
        outcome = run_job(job._replace(steps=steps, gone=gone))
        return outcome.violation.partition(":")[0] == rule

    steps, gone = minimise(job.steps, job.gone, fails)
    return job._replace(steps=steps, gone=gone)


def run_jobs(jobs: Iterable[Job], processes: int) -> Iterator[Outcome]:
    """Outcomes in the order of the jobs."""
    if processes <= 1:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _prepare_process) as pool:
        yield from pool.imap(run_job, jobs, chunksize=2)


def _prepare_process() -> None:
    gc.freeze()
    gc.set_threshold(*_COLLECT_THRESHOLDS)


class _Progress:
    """Tells on standard error how far a run is: a terminal all the time, a file now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = self._told_at = time.monotonic()

    def tell(self, done: int, failed: int) -> None:
        now = time.monotonic()
        is_watched = sys.stderr.isatty()
        if done % 10 if is_watched else now - self._told_at < _PROGRESS_S:
            return
        self._told_at = now
        left_min = (now - self._began) / done * (self._total - done) / 60
        text = f"{done}/{self._total} histories, {failed} with a violation, about {left_min:.0f} min left"
        click.echo(f"\r{text} " if is_watched else text, nl=not is_watched, err=True)


def _parse_peers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    try:
        bounds = int(low), int(high or low)
    except ValueError as error:
        raise click.BadParameter(f"expected a number or a range such as 5-7, found {text!r}") from error
    if not 1 <= bounds[0] <= bounds[1] <= 4096:
        raise click.BadParameter(f"expected 1 to 4096 peers, the smaller number first, found {text!r}")
    return bounds


def _run_many(jobs: list[Job], processes: int, failures_max: int, smallest: bool) -> int:
    began, events, failed, done = time.monotonic(), 0, 0, 0
    progress = _Progress(len(jobs))
    for job, outcome in zip(jobs, run_jobs(jobs, processes), strict=True):
        done += 1
        events += outcome.events
        if outcome.violation:
            failed += 1
            shown = minimised(job, outcome.violation) if smallest else job
            trace, violation = replay(shown, keep=TAIL_LINES)
            click.echo(describe_failure(shown, violation, trace))
            if failed >= failures_max:
                break
        progress.tell(done, failed)
    seconds = max(time.monotonic() - began, 1e-6)
    click.echo(
        f"{done} histories, {events} events, {failed} with a violation; "
        f"{seconds:.1f} s, {done / seconds:.1f} histories/s, {events / seconds:.0f} events/s"
    )
    return 1 if failed else 0


def _run_one(job: Job, with_trace: bool, smallest: bool) -> int:
    keep = None if with_trace else TAIL_LINES
    trace, violation = replay(job, keep=keep)
    if violation and smallest:
        job = minimised(job, violation)
        trace, violation = replay(job, keep=keep)
    if with_trace:
        for line in trace.lines:
            click.echo(line)
    if violation:
        click.echo(describe_failure(job, violation, trace, 0 if with_trace else _TAIL_SHOWN))
        return 1
    click.echo(f"seed {job.seed}: no violation")
    return 0


def _run_scale(options: ScaleOptions) -> int:
    try:
        click.echo(run_scale(options).text())
    except Violation as violation:
        click.echo(f"seed {options.seed}: {violation}")
        click.echo(f"replay: weave sim --seed {options.seed} --peers {options.peers} --links {options.links}")
        return 1
    return 0


@click.command("sim")
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1), help="how many histories")
@click.option("--first-seed", default=1, show_default=True, type=click.IntRange(0), help="seed of the first one")
@click.option("--seed", type=click.IntRange(0), help="only the history of this seed")
@click.option("--trace", is_flag=True, help="with --seed: print one line per event")
@click.option("--peers", callback=_parse_peers, help="hosts per history: N or N-M  [default: 5-7; of a swarm 1-25]")
@click.option(
    "--steps", default=STEPS_DEFAULT, show_default=True, type=click.IntRange(0), help="actions and faults each"
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64), help="processes")
@click.option("--keep-going", is_flag=True, help="go on after a violation")
@click.option("--failures", type=click.IntRange(1), help="go on until so many violations  [default: 1]")
@click.option(
    "--swarm", is_flag=True, help=f"random configurations of {PEERS_MIN} to {PEERS_MAX} hosts and more faults"
)
@click.option("--minimise", "smallest", is_flag=True, help="after a violation look for a smaller history that has it")
@click.option("--without", "gone", multiple=True, type=click.Choice(WORDS), help="take something away; may be repeated")
@click.option("--links", type=click.IntRange(1, 200), help="scale run: each peer has about this many links, no faults")
def sim_command(  # noqa: PLR0917
    seeds: int,
    first_seed: int,
    seed: int | None,
    trace: bool,
    peers: tuple[int, int] | None,
    steps: int,
    jobs: int,
    keep_going: bool,
    failures: int | None,
    swarm: bool,
    smallest: bool,
    gone: tuple[str, ...],
    links: int | None,
) -> int:
    """Run whole clusters in virtual time under random faults and check every invariant after every event.

    Example:  weave sim --seeds 200 --jobs 2

    Example:  weave sim --swarm --seeds 20000 --jobs 2 --failures 5 --minimise      (the long run: hours)

    Example:  weave sim --peers 1000 --links 20      (how a big mesh converges, and what it costs)
    """
    if peers is None:
        peers = (PEERS_MIN, PEERS_MAX) if swarm else (5, 7)
    if links is not None:
        return _run_scale(ScaleOptions(peers=peers[1], links=links, seed=first_seed if seed is None else seed))
    if trace and seed is None:
        raise click.UsageError("expected --seed N with --trace, which is about one history; found none")
    if seed is not None:
        return _run_one(Job(seed, *peers, steps, swarm, gone), trace, smallest)
    many = [Job(first_seed + index, *peers, steps, swarm, gone) for index in range(seeds)]
    failures_max = failures or (len(many) if keep_going else 1)
    return _run_many(many, jobs, failures_max, smallest)


def main(arguments: list[str]) -> int:
    """Exit status of ``weave sim`` with these arguments. Raises click's usage errors."""
    status = sim_command.main(arguments, prog_name="weave sim", standalone_mode=False)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
