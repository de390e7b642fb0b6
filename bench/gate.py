"""Says whether other processes disturbed a measurement, and repeats it if so.

Foreign time is the CPU time of all processes that are not ours, plus what the hypervisor stole. Ours are this process's
descendants and whatever lives in a network namespace we made; kernel threads are nobody's, since much of their work is
ours (softirqs of our packets). A process that comes and goes within a measurement is seen in its parent's times of
children, so that nothing escapes and nothing counts twice; for that, orphans of ours have to come to us
(:func:`adopt_orphans`): when a lab ends, the time of its hosts would else be that of the machine's PID 1.

Does not lower anybody's priority and does not pin: the bench must run the way the product does.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from weavenet.lab import processes as lab_processes

FOREIGN_SHARE_MAX = 0.04
"""Of one CPU. Above it a run counts as disturbed."""
ATTEMPTS_MAX = 6
PAUSE_S = 2.0
"""Before a repetition, to let whatever it was pass."""

_TICKS = os.sysconf("SC_CLK_TCK")
_KERNEL_THREADS_PARENT = 2
_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
T = TypeVar("T")


class Process(NamedTuple):
    parent: int
    ticks: int
    """utime + stime + cutime + cstime."""
    namespace: str


def processes() -> dict[int, Process]:
    """Every process of this PID namespace (proc(5), ``stat`` fields 4 and 14 to 17)."""
    found = {}
    for pid in lab_processes.all_pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        found[pid] = Process(int(fields[1]), sum(map(int, fields[11:15])), lab_processes.namespace(pid, "net"))
    return found


def descendants(table: dict[int, Process], ancestor: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    ours, open_ = {ancestor}, [ancestor]
    while open_:
        fresh = children.get(open_.pop(), [])
        ours.update(fresh)
        open_ += fresh
    return ours


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, until it ends itself. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def stolen_ticks() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8])


class Gate:
    """``namespaces``: identities (``net:[…]``) of the network namespaces that are ours; a bench adds to it."""

    def __init__(self, *, attempts_max: int = ATTEMPTS_MAX) -> None:
        self.namespaces: set[str] = set()
        self.attempts_max = attempts_max
        self.runs = 0
        self.repeated = 0
        self.disturbed = 0
        """Measurements that stayed disturbed in every attempt and were kept."""

    def _foreign(self) -> int:
        table = processes()
        ours = descendants(table, os.getpid())
        total = stolen_ticks()
        for pid, process in table.items():
            is_kernel = _KERNEL_THREADS_PARENT in (pid, process.parent)
            if not is_kernel and pid not in ours and process.namespace not in self.namespaces:
                total += process.ticks
        return total

    def measure(self, run: Callable[[], T]) -> T:
        """The result of the first undisturbed run, or of the least disturbed one when there is none."""
        best: tuple[float, T] | None = None
        for attempt in range(self.attempts_max):
            if attempt:
                self.repeated += 1
                time.sleep(PAUSE_S)
            before, started = self._foreign(), time.monotonic()
            result = run()
            elapsed = time.monotonic() - started
            share = (self._foreign() - before) / _TICKS / elapsed
            if best is None or share < best[0]:
                best = share, result
            # A tick of the clock more or less decides nothing in a short run.
            if share <= max(FOREIGN_SHARE_MAX, 2 / _TICKS / elapsed):
                break
        else:
            self.disturbed += 1
        self.runs += 1
        assert best is not None
        return best[1]

    def summary(self) -> str:
        text = f"{self.runs} measurements, {self.repeated} repeated because other processes took CPU time"
        return text + (f", {self.disturbed} kept although disturbed" if self.disturbed else "")
