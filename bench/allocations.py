"""Durable allocations through the control API: one client, keep-alive, one request in flight.

Each answer is an address that is on disk. Measured with nothing held, with 10,000 and with 100,000 addresses held, and
on one side of a partition; also by many clients at once, whose requests share commits. For scale: a null request (the
cost of client, socket and HTTP), and bare sqlite commits of one row on the same disk.
"""

from __future__ import annotations

import contextlib
import select
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import client
from bench.client import Client, Refused
from bench.gate import Gate
from bench.hosts import LAB, WEAVE, Failed, Host, lab, launch, run
from bench.options import Options
from bench.table import Result, percentile, verdict
from weavenet.lab import state as lab_state
from weavenet.runtime.store import CHECKPOINT_PAGES

RATE_BAR = 2000.0
P99_BAR_MS = 10.0
FILLERS = 32
"""Connections that fill up beforehand; their requests share commits."""


class Figures(NamedTuple):
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def timed(connection: Client, requests: list[bytes]) -> Figures:
    times = []
    started = time.perf_counter()
    for request in requests:
        before = time.perf_counter()
        status, body = connection.exchange(request)
        times.append((time.perf_counter() - before) * 1000)
        if status != 200:
            raise Refused(f"{status}: {body.decode(errors='replace')}")
    elapsed = time.perf_counter() - started
    return Figures(len(requests) / elapsed, statistics.median(times), percentile(times, 99), max(times))


def fill(host: Host, idents: Iterator[str], count: int) -> None:
    """Holds ``count`` more addresses, through the API as well."""
    connections = [Client(host.socket) for _ in range(FILLERS)]
    try:
        waiting = {}
        left = count
        for connection in connections[:count]:
            connection.send(_allocate(next(idents)))
            waiting[connection.fileno()] = connection
            left -= 1
        while waiting:
            for descriptor in select.select(list(waiting), [], [], 60.0)[0]:
                connection = waiting[descriptor]
                status, body = connection.receive()
                if status != 200:
                    raise Refused(f"{status}: {body.decode(errors='replace')}")
                if left:
                    left -= 1
                    connection.send(_allocate(next(idents)))
                else:
                    del waiting[descriptor]
    finally:
        for connection in connections:
            connection.close()


def _allocate(ident: str) -> bytes:
    return client.post("/v1/allocate", {"ident": ident})


def names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{number:064x}"  # as long as a container id


def bare_commits(folder: Path, count: int) -> Figures:
    """One row, one commit, WAL, synchronous=FULL: what the disk gives to whoever waits for it. With a log as long as
    the store's, once it has that length: commits that make the file longer take longer."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        database = sqlite3.connect(f"{scratch}/bare.db", isolation_level=None)
        database.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(k BLOB PRIMARY KEY, v BLOB);"
            f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}"
        )

        def commit(number: int) -> None:
            database.execute("INSERT INTO t VALUES (?, ?)", (f"{number:064x}".encode(), b"10.32.0.1"))

        for number in range(2 * CHECKPOINT_PAGES):
            commit(-1 - number)
        times = []
        started = time.perf_counter()
        for number in range(count):
            before = time.perf_counter()
            commit(number)
            times.append((time.perf_counter() - before) * 1000)
        elapsed = time.perf_counter() - started
        database.close()
    return Figures(count / elapsed, statistics.median(times), percentile(times, 99), max(times))


@contextlib.contextmanager
def partition(host: Host, others: list[Host]) -> Iterator[None]:
    run([WEAVE, "lab", "partition", "--lab", LAB, host.name, "/", ",".join(other.name for other in others)])
    try:
        yield
    finally:
        run([WEAVE, "lab", "heal", "--lab", LAB])


def row(what: str, figures: Figures, *, bars: bool = True) -> tuple[str, ...]:
    return (
        what,
        f"{figures.rate:,.0f}",
        f"{figures.p50_ms:.2f}",
        f"{figures.p99_ms:.2f}",
        f"{figures.worst_ms:.1f}",
        verdict(round(figures.rate), RATE_BAR, at_least=True) if bars else "",
        verdict(round(figures.p99_ms, 2), P99_BAR_MS, at_least=False) if bars else "",
    )


def best_of(found: list[Figures]) -> Figures:
    """The run with the median rate."""
    return sorted(found)[(len(found) - 1) // 2]


def measure(options: Options, gate: Gate) -> Result:
    count, repetitions = (500, 1) if options.quick else (2000, options.repetitions(3, quick=1))
    held = (0, 2000) if options.quick else (0, 10_000, 100_000)
    idents = names()
    rows = []
    with lab(3, gate) as hosts:
        first = hosts[0]
        launch(hosts)
        first.run("weave", "consense")
        disk = lab_state.disk_folder(LAB)
        rows.append(row("bare sqlite commits, for scale", gate.measure(lambda: bare_commits(disk, count)), bars=False))
        connection = first.client()
        null = [client.get("/v1/ping")] * count
        timed(connection, null)
        rows.append(row("null request, for scale", gate.measure(lambda: timed(connection, null)), bars=False))
        holding = 0

        def allocations() -> Figures:
            nonlocal holding
            holding += count
            return timed(connection, [_allocate(next(idents)) for _ in range(count)])

        def at_once() -> float:
            nonlocal holding
            holding += count
            started = time.perf_counter()
            fill(first, idents, count)
            return count / (time.perf_counter() - started)

        def repeated() -> Figures:
            return best_of([gate.measure(allocations) for _ in range(repetitions)])

        for level in held:
            if level > holding:
                options.progress(f"allocations: filling up to {level:,}")
                fill(first, idents, level - holding)
                holding = level
            options.progress(f"allocations: measuring with {holding:,} held")
            rows.append(row(f"{level:,} held", repeated()))
        options.progress(f"allocations: measuring {FILLERS} clients at once")
        rate = statistics.median(gate.measure(at_once) for _ in range(repetitions))
        rows.append((f"{FILLERS} clients at once", f"{rate:,.0f}", "", "", "", "", ""))
        with partition(first, hosts[1:]):
            options.progress("allocations: measuring in a partition")
            rows.append(row(f"{held[-1]:,} held, alone in a partition", repeated()))
        active = first.report()["IPAM"]
        connection.close()
    if not isinstance(active, dict) or active["ActiveIPs"] != holding:
        raise Failed(f"{holding} addresses were handed out, the report says {active}")
    return Result(
        ("", "per second", "p50 ms", "p99 ms", "worst ms", "rate bar", "p99 bar"),
        rows,
        [
            f"{count:,} requests a run, the run of median rate of {repetitions}; three peers share the machine",
            "the null request (`GET /v1/ping`) is the cost of the bench's client, the socket and HTTP",
            gate.summary(),
        ],
    )
