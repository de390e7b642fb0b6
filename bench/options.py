"""What the command line says about a run."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Options(NamedTuple):
    """``quick``: only to see that a bench works."""

    quick: bool = False
    repeat: int = 0

    def repetitions(self, usual: int, *, quick: int) -> int:
        return self.repeat or (quick if self.quick else usual)

    def progress(self, text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)
