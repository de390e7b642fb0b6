"""What exists on the machine outside every lab: what a lab that is gone must not have added to."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from weavenet.core.errors import WeaveError
from weavenet.lab import processes, state
from weavenet.lab.waiting import wait_until

KERNEL_DEADLINE_S = 30.0  # the kernel frees a network namespace some time after its last process


NAMED = Path("/run/netns")
CONTAINERS = re.compile(r"web|h\d+-.*")
"""What those of the labs are called whose traces are looked for. Somebody else may have named namespaces on the
machine, too, and the first `ip netns add` of anybody mounts their folder."""


def is_foreign(mount: Path) -> bool:
    return mount == NAMED or (mount.parent == NAMED and not CONTAINERS.fullmatch(mount.name))


def snapshot(lab: str) -> set[str]:
    """Devices and named namespaces of the machine, mounts of this process, and processes and folders of one lab."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    named = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.splitlines()
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    folders = [folder for folder in (state.run_folder(lab), state.disk_folder(lab)) if folder.exists()]
    return {
        *(f"device {line.split()[1]}" for line in links),
        *(f"namespace {line.split()[0]}" for line in named if not is_foreign(NAMED / line.split()[0])),
        *(f"mount {line.split()[4]}" for line in mounts if not is_foreign(Path(line.split()[4]))),
        *(f"process {pid} {mark}" for pid, mark in processes.marked(lab).items()),
        *(f"folder {folder}" for folder in folders),
    }


def expect_nothing_added(lab: str, before: set[str], namespaces: Collection[str] = ()) -> None:
    """``namespaces``: what :func:`namespaces_of` gave while the lab was up; no process may be in them any more."""

    def added() -> list[str]:
        held = {found for pid in processes.all_pids() for kind in KINDS if (found := processes.namespace(pid, kind))}
        return sorted((snapshot(lab) - before) | held.intersection(namespaces))

    try:
        wait_until(lambda: not added(), KERNEL_DEADLINE_S, "nothing to remain of the lab")
    except WeaveError:
        raise AssertionError(f"left behind: {added()}") from None


KINDS = ("net", "mnt", "pid", "uts", "ipc")


def namespaces_of(lab: str) -> set[str]:
    """The namespaces a running lab added to those this process lives in."""
    own = {processes.namespace(os.getpid(), kind) for kind in KINDS}
    inside = {processes.namespace(pid, kind) for pid in processes.marked(lab) for kind in KINDS}
    return inside - own - {""}
