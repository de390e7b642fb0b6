"""Restart of the daemon under traffic: pings at 100/s between containers on two hosts, lost ones counted.

Three ways to go: ``weave stop`` and ``weave launch``, kill -9 and ``weave launch``, and both daemons killed at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import IO

from bench.gate import Gate
from bench.hosts import Host, lab, launch, open_paths, wait_for
from bench.options import Options
from bench.table import Result, verdict
from weavenet.lab import pings, processes

INTERVAL_S = 0.01
SETTLE_S = 1.0


def stop_and_launch(hosts: list[Host]) -> None:
    hosts[0].run("weave", "stop")
    hosts[0].run("weave", "launch")


def kill_and_launch(hosts: list[Host]) -> None:
    _kill(hosts[:1])
    hosts[0].run("weave", "launch")


def kill_both(hosts: list[Host]) -> None:
    _kill(hosts)
    for host in hosts:
        host.run("weave", "launch")


def _kill(hosts: list[Host]) -> None:
    daemons = [host.daemon() for host in hosts]
    for daemon in daemons:
        os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not any(processes.start_time(daemon) for daemon in daemons), "the daemons end")


def lost(hosts: list[Host], address: str, change: Callable[[list[Host]], None]) -> tuple[int, int]:
    """Pings sent and lost while ``change`` happens and until the data path is measured as working again."""
    argv = hosts[0].in_container("box", "ping", "-n", "-i", str(INTERVAL_S), address)
    with tempfile.TemporaryFile("w+") as output:
        _ping_during(hosts, argv, output, change)
        output.seek(0)
        counted = pings.count(output.read())  # also those that could not even be sent
    return counted.sent, counted.lost


def _ping_during(hosts: list[Host], argv: list[str], output: IO[str], change: Callable[[list[Host]], None]) -> None:
    ping = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    try:
        time.sleep(SETTLE_S)
        change(hosts)
        wait_for(lambda: all(open_paths(host.report()) == 1 for host in hosts), "the data path is in use again")
        time.sleep(SETTLE_S)
    finally:
        # ping prints its summary on SIGINT; the signal goes to ping itself, not to nsenter.
        for pid in _pings(hosts[0]):
            os.kill(pid, signal.SIGINT)
        ping.wait(timeout=20)


def _pings(host: Host) -> list[int]:
    return [pid for pid in processes.inside(host.pid) if processes.arguments(pid)[:1] == ["ping"]]


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(3, quick=1)
    ways = {
        "`weave stop`, `weave launch`": stop_and_launch,
        "kill -9, `weave launch`": kill_and_launch,
        "kill -9 on both hosts, `weave launch`": kill_both,
    }
    rows = []
    with lab(2, gate) as hosts:
        launch(hosts)
        hosts[0].run("weave", "consense")
        hosts[0].add_container("box")
        address = hosts[1].add_container("box")
        wait_for(lambda: all(open_paths(host.report()) == 1 for host in hosts), "the data path is in use")
        for what, change in ways.items():
            options.progress(f"restart: {what}")
            found = [lost(hosts, address, change) for _ in range(count)]
            all_lost = sum(missing for _, missing in found)
            rows.append(
                (what, str(sum(sent for sent, _ in found)), str(all_lost), verdict(all_lost, 0, at_least=False))
            )
    return Result(
        ("", "pings sent", "lost", "bar"),
        rows,
        [
            f"{count} restarts each, 100 pings/s between containers on two hosts; one that could not be sent is lost, "
            "one under way at the end is not counted"
        ],
    )
