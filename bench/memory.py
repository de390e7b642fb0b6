"""Resident memory of the daemon: three connected peers, one container each, idle for a minute."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from bench.gate import Gate
from bench.hosts import Host, lab, launch
from bench.options import Options
from bench.table import Result, verdict

BAR_MB = 60.0
FIELDS = ("VmRSS", "RssAnon", "VmHWM")


def resident(host: Host) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each field of proc(5) ``status``, which counts in KiB."""
    found = {}
    for line in Path(f"/proc/{host.daemon()}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[name] = int(value.split()[0]) * 1024 / 1e6
    return found


def measure(options: Options, gate: Gate) -> Result:
    idle_s = 10 if options.quick else 60
    with lab(3, gate) as hosts:
        launch(hosts)
        for host in hosts:
            host.add_container("box")
        options.progress(f"memory: idle for {idle_s} s")
        time.sleep(idle_s)
        found = [resident(host) for host in hosts]

    def row(what: str, field: str, bar: float | None) -> tuple[str, ...]:
        values = [sizes[field] for sizes in found]
        median = statistics.median(values)
        return (
            what,
            f"{median:.1f}",
            f"{max(values):.1f}",
            verdict(round(median, 1), bar, at_least=False) if bar else "",
        )

    return Result(
        ("megabytes per daemon", "median", "max", "bar"),
        [
            row("resident, idle (VmRSS)", "VmRSS", BAR_MB),
            row("of it not shared with files (RssAnon)", "RssAnon", None),
            row("resident, peak since start (VmHWM)", "VmHWM", None),
        ],
        [f"three daemons after {idle_s} s without work; MB are 10^6 bytes"],
    )
