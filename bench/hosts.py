"""Lab hosts for the benches: made by ``weave lab``, entered with nsenter, always taken down.

A bench's hosts differ from real ones in nothing that the product sees. What runs in them is told by namespace, so that
the gate does not take it for somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.client import Client
from bench.document import CHECKOUT
from bench.gate import Gate
from weavenet.lab import processes
from weavenet.lab import state as lab_state

WEAVE = str(CHECKOUT / "weave")
PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
LAB = f"bench-{os.getpid()}"
"""A name of its own: `weave lab down` of somebody else must not take it for the only one there is."""
DEADLINE_S = 60.0
LOG = "/var/log/weave.log"
_PATH = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """A command failed or something did not happen in time; the text says what."""


def run(argv: Sequence[str], *, timeout_s: float = DEADLINE_S) -> str:
    """Its stdout. Raises Failed with what it said."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = DEADLINE_S, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)


class Host:
    """``pid``: PID 1 of the host, as seen from here."""

    def __init__(self, name: str, address: str, pid: int) -> None:
        self.name = name
        self.address = address
        self.pid = pid

    @property
    def socket(self) -> str:
        return f"/proc/{self.pid}/root/run/weave/control.sock"

    def command(self, *argv: str) -> list[str]:
        """The same command, run in this host."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--"]
        return [*enter, "env", f"PATH={_PATH}", *argv]

    def run(self, *argv: str, timeout_s: float = DEADLINE_S) -> str:
        return run(self.command(*argv), timeout_s=timeout_s)

    def client(self) -> Client:
        return Client(self.socket)

    def report(self) -> dict[str, object]:
        with self.client() as client:
            found = client.get("/v1/report")
        assert isinstance(found, dict)
        return found

    def daemon(self) -> int:
        """Process id of the daemon as seen from here."""
        for pid in processes.inside(self.pid):
            if "weavenet.runtime" in processes.arguments(pid):
                return pid
        raise Failed(f"no daemon runs in {self.name}")

    def add_container(self, name: str) -> str:
        """A namespace with an address of the network; returns the address without its prefix."""
        self.run("ip", "netns", "add", name)
        self.run("ip", "-n", name, "link", "set", "lo", "up")
        return self.run("weave", "attach", f"netns:{name}").split()[0].partition("/")[0]

    def in_container(self, name: str, *argv: str) -> list[str]:
        return self.command("ip", "netns", "exec", name, *argv)


def established(report: dict[str, object]) -> int:
    """How many links are up."""
    router = report["Router"]
    assert isinstance(router, dict)
    return sum(connection["State"] == "established" for connection in router["Connections"])


def open_paths(report: dict[str, object]) -> int:
    """How many peers are reached over the kernel data path, as measured by its heartbeats."""
    router = report["Router"]
    assert isinstance(router, dict)
    return sum(connection["Attrs"]["name"] == "fastdp" for connection in router["Connections"])


@contextlib.contextmanager
def lab(count: int, gate: Gate) -> Iterator[list[Host]]:
    """So many fresh hosts, h1 and on; nothing is launched in them."""
    try:
        run([WEAVE, "lab", "up", str(count), "--lab", LAB])
        state = lab_state.load(LAB)
        if state is None:
            raise Failed(f"weave lab up left no state of lab {LAB}")
        hosts = [Host(host.name, host.address, host.pid) for host in state.hosts.values()]
        fresh = {processes.namespace(pid, "net") for pid in (state.underlay_pid, *(host.pid for host in hosts))}
        gate.namespaces |= fresh
        try:
            yield hosts
        except Exception:
            for host in hosts:
                _show_log(host)
            raise
    finally:
        if LAB in lab_state.existing():  # else a lab that could not be made would be reported as one that is not there
            run([WEAVE, "lab", "down", "--lab", LAB])


def _show_log(host: Host) -> None:
    """What the daemon said last, before the lab and its logs go."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{host.pid}/root{LOG}").read_text(errors="replace").splitlines()
        print(f"bench: log of {host.name}:", *lines[-20:], sep="\n    ", file=sys.stderr)


def launch(hosts: Sequence[Host], *flags: str) -> None:
    """Starts the daemons at the same moment, each with the full list of peers; waits until all are connected."""
    names = [host.address for host in hosts]
    started = [
        subprocess.Popen(host.command("weave", "launch", *flags, *names), stdout=subprocess.DEVNULL) for host in hosts
    ]
    for process, host in zip(started, hosts, strict=True):
        if process.wait(DEADLINE_S) != 0:
            raise Failed(f"weave launch in {host.name}: exit {process.returncode}")
    others = len(hosts) - 1
    wait_for(lambda: all(established(host.report()) >= others for host in hosts), "all links established")
