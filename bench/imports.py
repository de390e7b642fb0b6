"""What importing costs, by package: the daemon and ``weave status`` (``python -X importtime``)."""

from __future__ import annotations

import re
import statistics
import subprocess
from functools import partial

from bench.document import CHECKOUT
from bench.gate import Gate
from bench.hosts import PYTHON
from bench.options import Options
from bench.table import Result

PROGRAMS = {
    "daemon": "import weavenet.runtime.daemon",
    "`weave status`": "import weavenet.cli.quick, weavenet.cli.client",
}
SHOWN = 12


def costs(statement: str) -> dict[str, int]:
    """Microseconds of each package's own modules, nested imports not counted twice."""
    argv = [PYTHON, "-X", "importtime", "-c", statement]
    environment = {"PYTHONPATH": str(CHECKOUT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, int] = {}
    for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE):
        package = ".".join(module.split(".")[:2]) if module.startswith("weavenet") else module.partition(".")[0]
        found[package] = found.get(package, 0) + int(own)
    return found


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(7, quick=2)
    rows = []
    for program, statement in PROGRAMS.items():
        costs(statement)
        runs = [gate.measure(partial(costs, statement)) for _ in range(count)]
        packages = {name for run in runs for name in run}
        medians = {name: statistics.median(run.get(name, 0) for run in runs) / 1000 for name in packages}
        rows.append((program, "all", f"{sum(medians.values()):.1f}"))
        for name in sorted(medians, key=lambda name: -medians[name])[:SHOWN]:
            rows.append((program, name, f"{medians[name]:.1f}"))
    return Result(
        ("program", "package", "own ms"),
        rows,
        [f"medians of {count} runs; measuring itself adds to it", gate.summary()],
    )
