"""DNS: the server of one host beside dnsmasq, asked by four clients in a container: throughput, tail latency, memory.

One lab host runs Weave with 1000 names. dnsmasq, with the same names, listens on the same address at another port, so
that queries of both take the same way: out of the container's veth, over the bridge, to the host, and back. Load is
dnsperf in the container. Both cores carry server and load.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.gate import Gate
from bench.hosts import DEADLINE_S, Failed, Host, lab, launch, run, wait_for
from bench.options import Options
from bench.table import Result, percentile, verdict
from weavenet.lab import processes

NAMES = 1000
CLIENTS = 4
SERVER = "169.254.53.53"
RANGE = "10.32.0.0/12"
OURS, DNSMASQ = 53, 54
CONTAINER = "asker"
PACED_RATE = 5000
THROUGHPUT_BAR, P99_BAR_US, MEMORY_BAR_MB = 1.0, 150.0, 30.0
PAIRS = 1_000_000
PAIR_LIMIT_S = 1
CHANGES_PER_S = 50


class Load(NamedTuple):
    """What dnsperf found. ``longest_s``: the slowest answer. ``latencies_us``: of every query, infinite where it was
    lost; empty unless asked for."""

    rate: float
    lost: int
    longest_s: float
    latencies_us: list[float]


def dnsperf(host: Host, port: int, queries: str, *arguments: str, verbose: bool = False) -> Load:
    argv = ["dnsperf", "-s", SERVER, "-p", str(port), "-d", queries, "-c", str(CLIENTS), *arguments]
    return read(run(host.in_container(CONTAINER, *argv, *(["-v"] if verbose else [])), timeout_s=10 * DEADLINE_S))


def read(text: str) -> Load:
    """The output of dnsperf. Raises Failed when there were other answers than NOERROR."""
    found = re.search(r"Queries per second:\s+([\d.]+)", text)
    lost = re.search(r"Queries lost:\s+(\d+)", text)
    longest = re.search(r"Average Latency \(s\):.*max ([\d.]+)\)", text)
    if not (found and lost and longest):
        raise Failed(f"dnsperf said: {text[-500:]}")
    if "NXDOMAIN" in text or "SERVFAIL" in text:
        raise Failed("dnsperf: not every query was answered with NOERROR")
    latencies = [float(value) * 1e6 for value in re.findall(r"^> NOERROR \S+ \S+ ([\d.]+)", text, re.MULTILINE)]
    if latencies:  # a query that was never answered is no fast one
        latencies += [math.inf] * int(lost[1])
    return Load(float(found[1]), int(lost[1]), float(longest[1]), latencies)


def register(host: Host) -> None:
    """Through the control API, as `weave dns-add` does."""
    with host.client() as client:
        for number in range(NAMES):
            body = {"container": "weave:external", "name": f"host{number}.weave.local", "addresses": [_address(number)]}
            client.post("/v1/dns/add", body)


def _address(number: int) -> str:
    return f"10.32.{128 + number // 256}.{number % 256}"


def write_files(host: Host) -> None:
    folder = Path(f"/proc/{host.pid}/root/tmp")
    names = [f"host{number}.weave.local" for number in range(NAMES)]
    (folder / "queries").write_text("".join(f"{name} A\n" for name in names))
    (folder / "pairs").write_text("".join(f"{name} A\n{name} AAAA\n" for name in names))
    (folder / "hosts").write_text("".join(f"{_address(i)} {name}\n" for i, name in enumerate(names)))


@contextlib.contextmanager
def dnsmasq(host: Host) -> Iterator[None]:
    options = "-C /dev/null -k --no-resolv --no-hosts --addn-hosts=/tmp/hosts --bind-interfaces --local-ttl=1 -u root"
    argv = host.command("dnsmasq", *options.split(), "-c", "10000", f"--port={DNSMASQ}", f"--listen-address={SERVER}")
    # Our own server answers by the device on which it was asked; this one needs a way back to containers.
    host.run("ip", "route", "add", RANGE, "dev", "weave", "scope", "link")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: f"{SERVER}:{DNSMASQ}" in host.run("ss", "-Hlun"), "dnsmasq listens")
        yield
    finally:
        for pid in processes.inside(host.pid):
            if "dnsmasq" in processes.arguments(pid)[:1]:
                run(["kill", str(pid)])
        process.wait(DEADLINE_S)


def worker_memory_mb(host: Host) -> float:
    """Resident megabytes (10^6 bytes); proc(5) counts in KiB."""
    for pid in processes.inside(host.pid):
        if "weavenet.dns" in processes.arguments(pid):
            text = Path(f"/proc/{pid}/status").read_text()
            found = re.search(r"VmRSS:\s+(\d+) kB", text)
            if found:
                return int(found[1]) * 1024 / 1e6
    raise Failed(f"no DNS worker runs in {host.name}")


@contextlib.contextmanager
def changes(host: Host) -> Iterator[None]:
    """Names come and go meanwhile, CHANGES_PER_S of each, through the control API."""
    stop = threading.Event()
    failures: list[Exception] = []

    def change() -> None:
        body = {"container": "weave:external", "name": "changing.weave.local", "addresses": ["10.32.200.1"]}
        try:
            with host.client() as client:
                while not stop.is_set():
                    client.post("/v1/dns/add", body)
                    client.post("/v1/dns/remove", body)
                    stop.wait(1 / CHANGES_PER_S)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise Failed(f"changing names: {failures[0]}")


Pair = tuple[float, float]


def paired(gate: Gate, count: int, measure: Callable[[int], float]) -> list[Pair]:
    """(ours, dnsmasq) so many times, after one that does not count; who goes first alternates."""
    for port in (OURS, DNSMASQ):
        measure(port)
    found = []
    for number in range(count):
        order = (OURS, DNSMASQ) if number % 2 == 0 else (DNSMASQ, OURS)
        values = gate.measure(functools.partial(lambda order: [measure(port) for port in order], order))
        found.append((values[0], values[1]) if order[0] == OURS else (values[1], values[0]))
    return found


def row(what: str, pairs: list[Pair], digits: int, judge: Callable[[float, float], str]) -> tuple[str, ...]:
    """``judge``: the verdict on our median and the median ratio."""
    ours = statistics.median(pair[0] for pair in pairs)
    ratios = [pair[0] / pair[1] for pair in pairs]
    ratio = statistics.median(ratios)
    theirs = statistics.median(pair[1] for pair in pairs)
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return what, f"{ours:,.{digits}f}", f"{theirs:,.{digits}f}", f"{ratio:.2f}", spread, judge(ours, ratio)


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(9, quick=2)
    seconds = "1" if options.quick else "3"
    pairs_runs = 10 if options.quick else PAIRS // NAMES
    with lab(1, gate) as hosts, contextlib.ExitStack() as stack:
        host = hosts[0]
        launch(hosts)
        host.run("weave", "consense")
        host.add_container(CONTAINER)
        write_files(host)
        options.progress("dns: registering names")
        register(host)
        stack.enter_context(dnsmasq(host))
        wait_for(lambda: dnsperf(host, OURS, "/tmp/queries", "-n", "1").lost == 0, "every name is answered")
        idle_mb = worker_memory_mb(host)

        def rate(port: int) -> float:
            return dnsperf(host, port, "/tmp/queries", "-l", seconds).rate

        def paced(port: int, percent: float, queries: str = "/tmp/queries") -> float:
            load = dnsperf(host, port, queries, "-l", seconds, "-Q", str(PACED_RATE), verbose=True)
            return percentile(load.latencies_us, percent)

        options.progress("dns: throughput")
        throughput = paired(gate, count, rate)
        options.progress(f"dns: {PACED_RATE} queries a second")
        medians = paired(gate, count, partial(paced, percent=50))
        tails = paired(gate, count, partial(paced, percent=99))
        options.progress("dns: the same while names change")
        with changes(host):
            changing = paired(gate, count, partial(paced, percent=99))
        options.progress("dns: pairs of A and AAAA")
        started = time.monotonic()
        load = dnsperf(host, OURS, "/tmp/pairs", "-n", str(pairs_runs), "-t", str(PAIR_LIMIT_S))
        took_s = time.monotonic() - started
        busy_mb = worker_memory_mb(host)

    def none(ours: float, ratio: float) -> str:
        return ""

    rows = [
        row(
            "queries per second",
            throughput,
            0,
            lambda ours, ratio: verdict(round(ratio, 2), THROUGHPUT_BAR, at_least=True),
        ),
        row(f"p50 at {PACED_RATE:,} queries/s, µs", medians, 0, none),
        row(
            f"p99 at {PACED_RATE:,} queries/s, µs",
            tails,
            0,
            lambda ours, ratio: verdict(ours, P99_BAR_US, at_least=False),
        ),
        row("p99 while 50 names/s come and go, µs", changing, 0, none),
    ]
    for what, megabytes in (("memory of the worker before the load, MB", idle_mb), ("and after it, MB", busy_mb)):
        rows.append((what, f"{megabytes:.1f}", "", "", "", verdict(megabytes, MEMORY_BAR_MB, at_least=False)))
    return Result(
        ("", "Weave", "dnsmasq", "ratio", "range", "bar"),
        rows,
        [
            f"medians of {count} pairs of {seconds} s; {NAMES} names, {CLIENTS} clients in one container, dnsperf with "
            "up to 100 queries in flight",
            f"{pairs_runs * NAMES:,} pairs of A and AAAA as fast as they go ({took_s:.0f} s): {load.lost} answers "
            f"later than {PAIR_LIMIT_S} s or lost, the slowest took {load.longest_s * 1000:.1f} ms",
            gate.summary(),
        ],
    )
