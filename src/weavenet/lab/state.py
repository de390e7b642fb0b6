"""What is remembered of a lab: ``/run/weave-lab/<name>/lab.json``, and the disks in ``/var/lib/weave-lab/<name>``.

The file is replaced as a whole (write, rename) under a lock per lab. Process ids are trusted only together with the
start time of the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import processes
from weavenet.lab.nat import Nat

RUN = Path("/run/weave-lab")
LOCKS = Path("/run/lock")
DISKS = Path("/var/lib/weave-lab")
DEFAULT_NAME = "lab"
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class HostState(msgspec.Struct, kw_only=True):
    name: str
    address: str
    mac: str
    machine_id: str
    pid: int = 0
    started: int = 0
    """``pid`` is PID 1 of the host as the machine sees it; 0 while the host is down."""

    @property
    def is_running(self) -> bool:
        return self.pid != 0 and processes.start_time(self.pid) == self.started

    @property
    def port(self) -> str:
        """Name of the host's port in the underlay."""
        return self.name


class Loss(msgspec.Struct, frozen=True):
    """Share of frames lost between two hosts, each direction, in thousandths of a percent."""

    a: str
    b: str
    per_100k: int


class Narrow(msgspec.Struct, frozen=True):
    """Packets (IP, with headers) of more than ``mtu`` bytes between two hosts are dropped without a word."""

    a: str
    b: str
    mtu: int


class LabState(msgspec.Struct, kw_only=True):
    """``links``: pairs that are connected at all, None for everybody with everybody. The faults come on top."""

    name: str
    prefix_length: int = 24
    underlay_address: str = "192.168.77.254"
    underlay_pid: int = 0
    underlay_started: int = 0
    is_up: bool = False
    hosts: dict[str, HostState] = {}
    links: list[tuple[str, str]] | None = None
    link_loss: list[Loss] = []
    partition: list[list[str]] = []
    cuts: list[tuple[str, str]] = []
    loss: list[Loss] = []
    narrow: list[Narrow] = []
    nats: dict[str, Nat] = {}

    @property
    def underlay_is_running(self) -> bool:
        return self.underlay_pid != 0 and processes.start_time(self.underlay_pid) == self.underlay_started

    def narrowed_hosts(self) -> set[str]:
        """Hosts at an end of a path on which large packets are dropped."""
        return {name for narrow in self.narrow for name in (narrow.a, narrow.b)}

    def blocked_pairs(self) -> set[tuple[str, str]]:
        """Pairs, alphabetical, between which nothing passes."""
        names = sorted(self.hosts)
        pairs = {(a, b) for index, a in enumerate(names) for b in names[index + 1 :]}
        blocked = {pair(a, b) for a, b in self.cuts}
        if self.links is not None:
            blocked |= pairs - {pair(a, b) for a, b in self.links}
        if self.partition:
            side = {name: index for index, group in enumerate(self.partition) for name in group}
            blocked |= {(a, b) for a, b in pairs if side.get(a, -1) != side.get(b, -1)}
        return blocked


def pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise WeaveError(
            Failure(
                Code.INVALID,
                "a lab's name is a small letter and up to 31 small letters, digits or dashes",
                repr(name),
                f"weave lab up 3 --name {DEFAULT_NAME}",
            )
        )
    return name


def run_folder(name: str) -> Path:
    return RUN / name


def disk_folder(name: str) -> Path:
    return DISKS / name


def load(name: str) -> LabState | None:
    """None when there is no such lab, or its ``up`` ended before it wrote anything."""
    try:
        return msgspec.json.decode((run_folder(name) / "lab.json").read_bytes(), type=LabState)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as problem:
        raise WeaveError(
            Failure(
                Code.INVALID,
                f"{run_folder(name)}/lab.json should describe lab {name}",
                str(problem),
                f"weave lab down --lab {name}",
            )
        ) from None


def save(state: LabState) -> None:
    file = run_folder(state.name) / "lab.json"
    fresh = file.with_suffix(".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    fresh.rename(file)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One change of a lab at a time; the lock goes with the process that holds it."""
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(LOCKS / f"weave-lab-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_changing(name: str) -> bool:
    """Whether somebody makes, changes or takes down this lab right now."""
    try:
        descriptor = os.open(LOCKS / f"weave-lab-{name}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def existing() -> list[str]:
    """Every lab of which something is left: processes, state or disks."""
    names = {mark.partition("/")[0] for mark in processes.marked().values()}
    for folder in (RUN, DISKS):
        if folder.is_dir():
            names |= {entry.name for entry in folder.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name)}
    return sorted(names)
