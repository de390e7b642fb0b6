"""Is there a daemon although nobody answers at the control socket? It begins, ends, or its socket was removed.

It holds locks on two files with its pid inside (``runtime.lock``), of which one survives the run directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from weavenet.cli import layers
from weavenet.cli.outcome import Ended
from weavenet.cli.spawn import DAEMON
from weavenet.runtime.settings import Settings


def running_pid() -> int | None:
    """Of the daemon that holds one of the locks. Only root may know."""
    settings = Settings()
    with contextlib.suppress(Ended):  # a file that cannot be read, or wrong options: then the usual place
        given = layers.read_layers({}, os.environ, layers.conf_path()).get("data-dir")
        settings = Settings(data_dir=given.text) if given is not None else settings
    return next((pid for path in lock_files(settings) if (pid := _holder(path)) is not None), None)


def lock_files(settings: Settings) -> tuple[Path, ...]:
    return Path(settings.pid_file), Path(settings.lock_file)


def _holder(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.pread(descriptor, 32, 0).strip()
        # A lock is only tried where a daemon has that pid: a daemon that is about to take it must not find it taken.
        if not text.isdigit() or not _is_daemon(int(text)):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(text)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _is_daemon(pid: int) -> bool:
    try:
        return DAEMON.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
