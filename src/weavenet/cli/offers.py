"""What a shell that completes a word is offered, beyond what click knows. Each function is a ``shell_complete`` of a
parameter or makes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

NAMED = Path("/run/netns")
Offer = Callable[[click.Context, click.Parameter, str], list[str]]


def one_of(words: tuple[str, ...]) -> Offer:
    """The words that an option takes."""
    return lambda context, parameter, incomplete: [word for word in words if word.startswith(incomplete)]


def containers(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """``netns:NAME``. bash begins a word at a colon: there ``netns`` and ``:`` are words before the one to complete, or
    the colon is that word."""
    try:
        names = sorted(path.name for path in NAMED.iterdir())
    except OSError:
        names = []
    before = tuple(context.params.get(parameter.name or "") or ())
    if before[-2:] == ("netns", ":") or (before[-1:] == ("netns",) and incomplete == ":"):
        return [name for name in names if name.startswith(incomplete.removeprefix(":"))]
    return [f"netns:{name}" for name in names if f"netns:{name}".startswith(incomplete)]
