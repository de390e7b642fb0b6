"""Names for the labs of this test run. They hold its process id, by which the next run knows what a dead one left."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable

from weavenet.lab.lab import Lab

MakeLab = Callable[..., Lab]
NAME = re.compile(r"t(\d+)-\d+")

_numbers = itertools.count(1)


def new_name() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"
