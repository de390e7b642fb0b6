"""``weave status``: the whole process, from exec to exit, on a host of three connected peers with a container."""

from __future__ import annotations

import json
import statistics
from functools import partial

from bench.document import CHECKOUT
from bench.gate import Gate
from bench.hosts import PYTHON, Host, lab, launch
from bench.options import Options
from bench.table import Result, percentile, verdict

BAR_MS = 100.0
COMMANDS = (("weave", "status"), ("weave", "status", "connections"), ("weave", "report"), ("weave", "version"))
NULL = (PYTHON, "-I", "-S", "-c", "pass")


def times(host: Host, argv: tuple[str, ...], count: int) -> list[float]:
    paths = f"PYTHONPATH={CHECKOUT}"
    found = json.loads(host.run("env", paths, PYTHON, "-m", "bench.repeat", str(count), *argv, timeout_s=300))
    return [float(value) for value in found]


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(50, quick=10)
    rows = []
    with lab(3, gate) as hosts:
        launch(hosts)
        hosts[0].add_container("box")
        for argv in (*COMMANDS, NULL):
            options.progress(f"status: {' '.join(argv[:3])}")
            times(hosts[0], argv, 3)
            found = gate.measure(partial(times, hosts[0], argv, count))
            is_status = argv == ("weave", "status")
            median = statistics.median(found)
            rows.append(
                (
                    "bare interpreter, for scale" if argv == NULL else f"`{' '.join(argv)}`",
                    f"{min(found):.0f}",
                    f"{median:.0f}",
                    f"{percentile(found, 95):.0f}",
                    verdict(round(median), BAR_MS, at_least=False) if is_status else "",
                )
            )
    return Result(
        ("milliseconds, exec to exit", "min", "median", "p95", "bar"),
        rows,
        [f"{count} runs each, one after the other, on one of three connected peers", gate.summary()],
    )
