"""Options and output that several verbs share."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from weavenet.cli.outcome import tell
from weavenet.core.plain import plain

_F = TypeVar("_F", bound=Callable[..., Any])
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d|)")
_ELAPSED = re.compile(r"(?:\d+(?:\.\d+)? ?(?:ms|s|m|h|d)\b ?)+")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """``30``, ``30s``, ``2m``, ``1.5h`` -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"expected a duration such as 30s, 2m or 1h; found: {value!r}", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


def output_option(function: _F) -> _F:
    """``-o json``."""
    option = click.option("-o", "--output", type=click.Choice(["json"]), help="Print JSON instead of text.")
    return option(function)


def timeout_option(function: _F) -> _F:
    """``--timeout``: seconds or None."""
    return click.option(
        "--timeout", type=Duration(), metavar="TIME", help="Give up after TIME (30s, 2m); exit status 2."
    )(function)


def as_json(value: object) -> None:
    """One indented JSON value on stdout."""
    click.echo(json.dumps(value, indent=4, ensure_ascii=False))


def note(text: str) -> None:
    """A sentence on stderr."""
    tell(f"weave: {text}")


class Progress:
    """One changing text on stderr: rewritten in place on a terminal, else printed when more than the time in it
    changes."""

    def __init__(self) -> None:
        self._shown = ""
        self._terminal = sys.stderr.isatty()
        self._rows_above = 0
        """How many rows of the terminal the text takes beside the one where the cursor is."""

    def show(self, text: str) -> None:
        if text == self._shown:
            return
        if self._terminal:
            line = plain(f"weave: {text}")
            sys.stderr.write(self._erased() + line)
            sys.stderr.flush()
            self._rows_above = (len(line) - 1) // max(1, os.get_terminal_size(sys.stderr.fileno()).columns)
        elif _ELAPSED.sub("", text) != _ELAPSED.sub("", self._shown):
            note(text)
        self._shown = text

    def end(self) -> None:
        if self._terminal and self._shown:
            sys.stderr.write(self._erased())
            sys.stderr.flush()
        self._shown = ""
        self._rows_above = 0

    def _erased(self) -> str:
        """From the beginning of the text to the end of the screen: ECMA-48 CR, CUU, ED."""
        return "\r" + (f"\x1b[{self._rows_above}A" if self._rows_above else "") + "\x1b[J"
