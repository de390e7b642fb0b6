"""Three fresh peers, started at the same moment with the same full list: time to all connected, time to an address.

The clock starts when the first ``weave launch`` is about to be executed, so that the launcher, the CLI, both
interpreters and their imports count. Each host is asked for an address as soon as its control socket answers; the
request waits there for the division of the range. When its links were up is read from its log afterwards: to ask for
reports all the time would take a good part of both processors from what is measured.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import select
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import client
from bench.gate import Gate
from bench.hosts import DEADLINE_S, LOG, Failed, Host, established, lab
from bench.options import Options
from bench.table import Result, verdict

BAR_S = 1.0
REPORT_EVERY_S = 0.1
_CONNECTED = re.compile(r'^time=(\S+) level=info topic=links msg="\S+ at \S+ connected"$', re.MULTILINE)


class Times(NamedTuple):
    """Seconds since the start."""

    listening: float
    first_address: float
    all_addresses: float
    all_connected: float
    launched: float


class Watch:
    """One starting host: when it listened and gave an address, and whether it is connected by now."""

    def __init__(self, host: Host, others: int, started: float) -> None:
        self.host = host
        self.others = others
        self.started = started
        self.listening: float | None = None
        self.is_connected = False
        self.address: float | None = None
        self._waiting: socket.socket | None = None
        self._next_report = 0.0

    def look(self) -> None:
        if self.listening is None:
            self._ask_for_address()
        if self.listening is None:
            return
        if self.address is None and self._waiting is not None and select.select([self._waiting], [], [], 0)[0]:
            self._take_address(self._waiting)
        if self.address is not None and not self.is_connected and time.monotonic() >= self._next_report:
            self.is_connected = established(self.host.report()) >= self.others
            self._next_report = time.monotonic() + REPORT_EVERY_S

    def connected(self, began_at: float) -> float:
        """Seconds from ``began_at``, of the same clock as the log's, until the last link was up."""
        text = Path(f"/proc/{self.host.pid}/root{LOG}").read_text(errors="replace")
        moments = [datetime.datetime.fromisoformat(moment).timestamp() for moment in _CONNECTED.findall(text)]
        if len(moments) < self.others:
            raise Failed(f"the log of {self.host.name} tells of {len(moments)} links, not {self.others}")
        return moments[-1] - began_at

    def _ask_for_address(self) -> None:
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            waiting.connect(self.host.socket)
        except OSError:
            waiting.close()
            return
        self.listening = time.monotonic() - self.started
        self._waiting = waiting
        waiting.sendall(client.post("/v1/allocate", {"ident": "bench"}))

    def _take_address(self, waiting: socket.socket) -> None:
        answer = waiting.recv(65536)
        self.address = time.monotonic() - self.started
        if not json.loads(answer.partition(b"\r\n\r\n")[2])["addresses"]:
            raise Failed(f"{self.host.name} gave no address")

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.close()


def once(hosts: Sequence[Host]) -> Times:
    names = [host.address for host in hosts]
    began_at, started = time.time(), time.monotonic()
    processes = [subprocess.Popen(host.command("weave", "launch", *names), stdout=subprocess.DEVNULL) for host in hosts]
    watches = [Watch(host, len(hosts) - 1, started) for host in hosts]
    launched: dict[int, float] = {}
    with contextlib.ExitStack() as stack:
        for watch in watches:
            stack.callback(watch.close)
        while not all(watch.is_connected for watch in watches) or len(launched) < len(hosts):
            if time.monotonic() > started + DEADLINE_S:
                raise Failed("three fresh peers did not become one cluster")
            for watch in watches:
                watch.look()
            for process in processes:
                if process.pid not in launched and process.poll() is not None:
                    launched[process.pid] = time.monotonic() - started
            time.sleep(0.001)
    return Times(
        max(watch.listening or 0.0 for watch in watches),
        min(watch.address or 0.0 for watch in watches),
        max(watch.address or 0.0 for watch in watches),
        max(watch.connected(began_at) for watch in watches),
        max(launched.values()),
    )


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(9, quick=2)
    found = []

    def fresh() -> Times:
        with lab(3, gate) as hosts:
            return once(hosts)

    fresh()  # warms the page cache and the compiled modules
    for number in range(count):
        options.progress(f"start: {number + 1} of {count}")
        found.append(gate.measure(fresh))

    def row(what: str, values: list[float], bar: float | None) -> tuple[str, ...]:
        median = statistics.median(values)
        bar_text = verdict(round(median, 2), bar, at_least=False) if bar else ""
        return what, f"{median:.2f}", f"{min(values):.2f}", f"{max(values):.2f}", bar_text

    return Result(
        ("seconds from exec", "median", "min", "max", "bar"),
        [
            row("control socket answers on all three", [times.listening for times in found], None),
            row("all three connected to each other", [times.all_connected for times in found], BAR_S),
            row("first address", [times.first_address for times in found], BAR_S),
            row("an address on each of the three", [times.all_addresses for times in found], BAR_S),
            row("`weave launch` has returned on all three", [times.launched for times in found], None),
        ],
        [f"{count} starts of three fresh hosts, 2 cores carry all three", gate.summary()],
    )
