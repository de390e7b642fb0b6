"""One daemon per host and per data directory: locked files with the holder's pid inside.

The kernel drops a lock with its process, so a stale file means nothing. The file stays behind: removing it would let
two processes hold locks on two files of one name.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError


class AlreadyRunning(WeaveError):
    """Another daemon holds the lock; the CLI exits with 3."""


class Lock:
    """Held until :meth:`release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> Lock:
        """Raises AlreadyRunning, or WeaveError when the file cannot be made."""
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fchmod(descriptor, 0o600)  # whoever may read a file may lock it, and so keep us from starting
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(
                Failure(
                    Code.BUSY,
                    "expected no other daemon",
                    f"weave is already running (pid {pid})",
                    "stop it with `weave stop`",
                )
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error) from error
        return cls(descriptor)

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also where a child has not closed its copy yet
        os.close(self._descriptor)


def _unusable(path: Path, error: OSError) -> WeaveError:
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    step = f"free some space in {path.parent}, and run this again" if is_full else "run as root"
    return WeaveError(Failure(Code.HOST, f"expected to write {path}", error.strerror or str(error), step))
