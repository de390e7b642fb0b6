"""What others read of this process under /proc: its arguments and environment as it was started with.

The kernel shows the memory where it laid them down (proc_pid_cmdline(5), proc_pid_environ(5); their bounds are fields
48 to 51 of proc_pid_stat(5)), so writing there changes them. Python and libc took what they need of it before, except
that libc's ``getenv`` still reads the variables in place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def retitle(arguments: Sequence[str], hidden: str) -> bool:
    """Show ``arguments`` as ours, and no variable whose name begins with ``hidden``. False when there is no room for
    them, or the kernel does not let us."""
    title = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end, env_start, env_end = map(int, fields[45:49])
        if len(title) > end - start or not env_start <= env_end:
            return False
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(env_start)
            variables = memory.read(env_end - env_start).split(b"\0")
            kept = (bytes(len(each)) if each.startswith(os.fsencode(hidden)) else each for each in variables)
            memory.seek(env_start)
            written = memory.write(b"\0".join(kept))
            memory.seek(start)
            return written + memory.write(title.ljust(end - start, b"\0")) == env_end - env_start + end - start
    except (OSError, ValueError):
        return False
