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
LOCK_S, TIMEOUT_S = 2, 10.0
BUSY = 4
"""Exit status of iptables(8) where others hold its lock for longer than LOCK_S, and ours where it takes longer than
TIMEOUT_S: with very many rules, or on a busy machine."""


def families_in_use() -> tuple[str, ...]:
    """Of ``ip`` and ``ip6``, those with a table ``filter`` in the namespace of this thread, and with the program."""
    return tuple(family for family, program in PROGRAMS.items() if _has_filter(family) and shutil.which(program))


def _has_filter(family: str) -> bool:
    try:
        return "filter" in TABLES[family].read_text().split()
    except OSError:  # the interface is not loaded
        return False


def run(family: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In the namespace of this thread; blocks. Never raises."""
    command = [PROGRAMS[family], "-w", str(LOCK_S), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, BUSY, "", f"no end within {TIMEOUT_S:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def listing(family: str) -> subprocess.CompletedProcess[str]:
    """Of all rules of the table ``filter``."""
    return run(family, "-S")
