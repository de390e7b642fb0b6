"""A table that reads well in a terminal and is Markdown at the same time; and the statistics every bench uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Result(NamedTuple):
    """What a bench found. ``notes``: sentences on method and anything a reader must know, one a line."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]

    def markdown(self) -> str:
        widths = [max(len(row[i]) for row in (self.headings, *self.rows)) for i in range(len(self.headings))]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "| " + " | ".join(padded) + " |"

        rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
        lines = [line(self.headings), rule, *map(line, self.rows)]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def verdict(value: float, bar: float, *, at_least: bool) -> str:
    """``≥ 0.97: reached`` or ``≤ 100: missed``, for the column beside the figure."""
    reached = value >= bar if at_least else value <= bar
    return f"{'≥' if at_least else '≤'} {bar:g}: {'reached' if reached else 'MISSED'}"
