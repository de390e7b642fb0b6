"""Which processes belong to a lab, and ending them: the one thing a lab leaves on the machine.

Every process of a lab has ``WEAVELAB=<lab>/<host>`` in its environment, from its PID 1 down, and which machine the lab
belongs to. Nothing without these marks, and outside the hosts' PID namespaces and the underlay's network namespace, is
ever signalled: a container on this machine may have labs of the same names.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from weavenet.lab.waiting import wait_until

MARK = "WEAVELAB"
MACHINE = "WEAVELAB_MACHINE"
"""The PID namespace in which ``weave lab`` was run."""
UNDERLAY = "underlay"
"""In the place of a host: the namespace of the network between them."""
TOKEN = "WEAVELAB_TOKEN"  # distinguishes one command that runs in a host from the others
END_DEADLINE_S = 20.0

_PROC = Path("/proc")


def start_time(pid: int) -> int:
    """Clock ticks from boot to the start of the process: with the id, its identity. 0 when there is none or it ended.

    Source: proc(5), field 22 of ``stat``; state Z is a process that ended and was not collected yet.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def all_pids() -> Iterator[int]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def environment(pid: int) -> dict[str, str]:
    """What the process was started with; empty when it is gone."""
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0") if "=" in item)
    return {name: value for name, _, value in pairs}


def arguments(pid: int) -> list[str]:
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def namespace(pid: int, kind: str) -> str:
    """``pid:[4026531836]`` and the like; empty when the process is gone."""
    try:
        return str((_PROC / str(pid) / "ns" / kind).readlink())
    except OSError:
        return ""


def inside(pid1: int) -> list[int]:
    """The processes in the PID namespace of this PID 1, itself first, as seen from outside."""
    wanted = namespace(pid1, "pid")
    if not wanted or wanted == namespace(os.getpid(), "pid"):
        return []
    return [pid1, *sorted(pid for pid in all_pids() if pid != pid1 and namespace(pid, "pid") == wanted)]


def marks(lab: str, host: str) -> dict[str, str]:
    """Environment variables for a process of ours."""
    return {MARK: f"{lab}/{host}", MACHINE: namespace(os.getpid(), "pid")}


def marked(lab: str | None = None) -> dict[int, str]:
    """Living processes that carry the marks: id -> ``<lab>/<host>``; of one lab of this machine, or of all."""
    own = namespace(os.getpid(), "pid")
    found = {}
    for pid in all_pids():
        variables = environment(pid)
        mark = variables.get(MARK, "")
        if "/" not in mark or (lab is not None and mark.partition("/")[0] != lab):
            continue
        if pid != os.getpid() and start_time(pid) and own and variables.get(MACHINE) == own:
            found[pid] = mark
    return found


def inits(lab: str, host: str) -> list[int]:
    """Every PID 1 of a host, or the keeper of the ``underlay``, and whoever is just starting one."""
    return [pid for pid in marked(lab) if arguments(pid)[-3:] == ["weave-lab", lab, host]]


def inside_host() -> bool:
    """Whether this process runs in a host of a lab, and so sees neither the machine's processes nor its labs."""
    return MARK in environment(1)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_all(lab: str) -> None:
    """SIGKILL to everything of the lab until nothing is left; works on stopped processes too.

    Also to what entered the underlay and lost its marks, as `sudo` drops them: it would keep the namespace.
    """
    keepers = (namespace(pid, "net") for pid in inits(lab, UNDERLAY))
    underlays = set(keepers) - {"", namespace(os.getpid(), "net"), namespace(1, "net")}

    def gone() -> bool:
        alive = set(marked(lab))
        if underlays:
            alive.update(pid for pid in all_pids() if namespace(pid, "net") in underlays and start_time(pid))
        send(alive, signal.SIGKILL)
        return not alive

    wait_until(gone, END_DEADLINE_S, f"the processes of lab {lab} to end")


def end_tree(pid1: int) -> None:
    """Ends a PID namespace by its PID 1 and waits until the kernel has taken it down.

    ``nsenter`` stops together with a stopped child and would then never collect it, which keeps the namespace; so
    what runs from outside into this host is continued first.
    """
    host = environment(pid1).get(MARK)
    send((pid for pid, mark in marked().items() if mark == host), signal.SIGCONT)
    send([pid1], signal.SIGKILL)
    wait_until(lambda: start_time(pid1) == 0, END_DEADLINE_S, f"process {pid1} to end")
