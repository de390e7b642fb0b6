"""iptables over its older kernel interface, ``iptables-legacy``. It tells nobody of changes.

The program must not be run where nobody uses that interface: it would make the kernel register its hooks, which then
cost every packet, and ``iptables`` warn about them. Which tables there are stands in /proc.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PROGRAMS = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
TABLES = {"ip": Path("/proc/thread-self/net/ip_tables_names"), "ip6": Path("/proc/thread-self/net/ip6_tables_names")}
TIMEOUT_S = 10.0


def families_in_use() -> tuple[str, ...]:
    """Of ``ip`` and ``ip6``, those with a table ``filter`` in the namespace of this thread, and with the program."""
    return tuple(family for family, program in PROGRAMS.items() if _has_filter(family) and shutil.which(program))


def _has_filter(family: str) -> bool:
    try:
        return "filter" in TABLES[family].read_text().split()
    except OSError:  # the interface is not loaded
        return False


def run(family: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In the namespace of this thread. Never raises: what did not end in time has failed."""
    command = [PROGRAMS[family], "-w", "2", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def listing(family: str) -> str:
    """What ``-S`` prints; empty when it fails."""
    return run(family, "-S").stdout
