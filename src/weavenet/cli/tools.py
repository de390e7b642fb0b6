"""``weave lab`` and ``weave sim``: have command lines of their own, reached through this one."""

from __future__ import annotations

import importlib

import click

# Not interspersed: from the verb on nothing is looked at, so that `--` arrives, too.
_PASS_ON = {"ignore_unknown_options": True, "help_option_names": [], "allow_interspersed_args": False}


@click.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments: tuple[str, ...]) -> int:
    """Many hosts on this machine, in network namespaces.

    \b
    Example:  weave lab demo
    """
    return _run("weavenet.lab.cli", arguments)


@click.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sim(arguments: tuple[str, ...]) -> int:
    """Simulated clusters under faults, each replayable from its seed.

    \b
    Example:  weave sim --seeds 200
    """
    return _run("weavenet.sim.cli", arguments)


def _run(module: str, arguments: tuple[str, ...]) -> int:
    status = importlib.import_module(module).main(list(arguments))
    return status if isinstance(status, int) else 0
