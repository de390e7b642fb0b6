"""What the command line says about a run."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Options(NamedTuple):
    """``quick``: only to see that a bench works. ``rows``, ``columns``: only those whose name begins so, of a bench
    that knows them; empty: all."""

    quick: bool = False
    repeat: int = 0
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def has_row(self, name: str) -> bool:
        return not self.rows or name.startswith(self.rows)

    def has_column(self, name: str) -> bool:
        return not self.columns or name.startswith(self.columns)

    def repetitions(self, usual: int, *, quick: int) -> int:
        return self.repeat or (quick if self.quick else usual)

    def progress(self, text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)
