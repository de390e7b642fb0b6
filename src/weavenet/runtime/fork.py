"""One function in a fork of this process: what it loads and holds is gone when it ends.

Only while this process has one thread: a fork gets the locks of the others as they are, held perhaps, and not the
threads that would release them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

_DONE, _FAILED = b"+", b"-"
_DESCRIPTORS_MAX = 1 << 20


class ForkFailed(Exception):
    """In words; of what the function raised, or how the process ended."""


class Fork:
    """``work`` has begun; :meth:`collect` gives what it returns. Raises OSError when there can be no process."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        if threading.active_count() != 1:
            raise RuntimeError("a process with several threads is not forked")
        self._reader, writer = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._reader)
            os.close(writer)
            raise
        if self._pid == 0:
            _run(work, writer)
        os.close(writer)

    def collect(self, timeout_s: float) -> bytes:
        """Blocks; once. Raises ForkFailed, TimeoutError after ``timeout_s``; the process is gone either way."""
        deadline = time.monotonic() + timeout_s
        chunks = []
        try:
            while select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                chunk = os.read(self._reader, 65_536)
                if not chunk:
                    break
                chunks.append(chunk)
            else:
                raise TimeoutError(f"nothing within {timeout_s:.0f} s")
        finally:
            os.close(self._reader)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # it has said everything, or is too late
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        said = b"".join(chunks)
        if said[:1] != _DONE:
            raise ForkFailed(said[1:].decode(errors="replace") or "the process ended without a word")
        return said[1:]


def _run(work: Callable[[], bytes], writer: int) -> NoReturn:
    """In the child: nothing of the parent's is touched, not even closed in an orderly way."""
    status = 1
    try:
        os.closerange(3, writer)  # locks on open files would outlive the parent in us
        os.closerange(writer + 1, _DESCRIPTORS_MAX)
        try:
            said = _DONE + work()
            status = 0
        except Exception as error:
            said = _FAILED + (str(error) or type(error).__name__).encode()
        while said:
            said = said[os.write(writer, said) :]
    finally:
        os._exit(status)
