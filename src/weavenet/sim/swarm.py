"""Swarms: random configurations, wider than the everyday histories, and the smallest history that still fails.

:func:`draw_swarm` mixes electors, observers and ephemeral peers into every way of finding each other, and adds disks
that are set back or copied to the faults. :func:`minimise` takes away from a failing history whatever it fails without:
kinds of faults and of actions, then steps at its end. What was taken away is named in words that
``weave sim --without`` understands, so that the smaller history can be replayed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from weavenet.sim.faults import FaultKind, FaultOptions
from weavenet.sim.setup import Bootstrap
from weavenet.sim.world import HistoryOptions, draw_options

PEERS_MIN, PEERS_MAX = 1, 25

_PROBABILITIES = tuple(
    field.removesuffix("_probability") for field in FaultOptions.__struct_fields__ if field.endswith("_probability")
)
_ACTIONS = ("removals", "forced_removals", "names", "resets")
WORDS: tuple[str, ...] = (
    *(kind.value for kind in FaultKind),
    *(name.replace("_", "-") for name in (*_PROBABILITIES, *_ACTIONS)),
    "sleeve",
    "ephemerals",
    "subnets",
    "clock-skew",
)
"""What a history can be without."""


def draw_swarm(seed: int, *, peers_min: int, peers_max: int, steps: int) -> HistoryOptions:
    """The swarm of this seed."""
    options = draw_options(seed, peers_min=peers_min, peers_max=peers_max, steps=steps)
    rng = random.Random(f"swarm {seed}")
    setup, faults = options.setup, options.faults
    if setup.peers > 1 and setup.bootstrap not in {Bootstrap.ALONE, Bootstrap.OBSERVERS} and rng.random() < 0.5:
        electors = rng.randint(1, setup.peers)
        setup = replace(
            setup,
            electors=electors,
            observers=setup.bootstrap not in {Bootstrap.SEED, Bootstrap.LOCK} or rng.random() < 0.5,
            ephemerals=rng.randint(0, setup.peers - electors) if rng.random() < 0.5 else 0,
        )
    if not options.resets and not options.names and rng.random() < 0.4:
        faults = replace(faults, weights={**faults.weights, FaultKind.ROLLBACK: rng.random()})
    if not options.resets and not options.names and rng.random() < 0.3:
        faults = replace(faults, weights={**faults.weights, FaultKind.CLONE: rng.random()})
    return replace(options, setup=setup, faults=faults)


def without(options: HistoryOptions, words: Iterable[str]) -> HistoryOptions:
    """``options`` less what ``words`` name."""
    setup, faults = options.setup, options.faults
    for word in words:
        name = word.replace("-", "_")
        if name in _PROBABILITIES:
            faults = replace(faults, **{f"{name}_probability": 0.0})
        elif name in _ACTIONS:
            options = replace(options, **{name: 0.0})
        elif word == "sleeve":
            setup = replace(setup, sleeve=False)
        elif word == "ephemerals":
            setup = replace(setup, ephemerals=0)
        elif word == "subnets":
            setup = replace(setup, subnets=("",))
        elif word == "clock-skew":
            faults = replace(faults, clock_skew_max_s=0.0)
        else:
            weights = {kind: weight for kind, weight in faults.weights.items() if kind.value != word}
            faults = replace(faults, weights=weights)
    return replace(options, setup=setup, faults=faults)


def minimise(
    steps: int, gone: tuple[str, ...], fails: Callable[[int, tuple[str, ...]], bool]
) -> tuple[int, tuple[str, ...]]:
    """(steps, words): the least found with which ``fails(steps, words)`` still holds, as it does with the arguments.
    Greedy: each thing is tried once, since every trial is a whole history."""
    for word in WORDS:
        if word not in gone and fails(steps, (*gone, word)):
            gone = (*gone, word)
    for fewer in _fewer(steps):
        if fewer < steps and fails(fewer, gone):
            steps = fewer
            break
    return steps, gone


def _fewer(steps: int) -> Iterator[int]:
    """Shorter histories, the shortest first, about ten of them."""
    yield from sorted({steps * part // 10 for part in range(10)})
