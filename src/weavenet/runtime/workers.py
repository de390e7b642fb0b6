"""Worker processes that outlive the daemon: forwarding and names go on while it is away, be it killed or replaced.

Each worker listens on a unix socket in the run directory, whose name says what the worker was made for; the next
daemon finds it there. Used by the supervisors of either kind (:mod:`weavenet.runtime.sleeveworker`,
:mod:`weavenet.runtime.nameserver`), who know what to say to theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".sock"
CONNECT_S, CONNECT_EVERY_S = 10.0, 0.02
"""A new worker listens once Python has started."""
STOP_S = 3.0
COMPLAINT_BYTES_MAX = 8192
"""Of what a worker says on stderr."""
_UCRED = struct.Struct("iII")


class Ended(Exception):
    """Why a worker is no more."""


class Started(NamedTuple):
    """``process``: to be referred to for as long as it runs, since asyncio waits for its end."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def spawn(path: Path, command: list[str], *, pass_fds: tuple[int, ...] = ()) -> Started:
    """Start a worker that will listen at ``path``, and connect to it. Raises Ended with its last words, or OSError."""
    with _complaints(path).open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,  # no signal to the daemon's group ends it
        )
    give_up_at = time.monotonic() + CONNECT_S
    try:
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError):
                return Started(process, *await asyncio.open_unix_connection(str(path)))
            if process.returncode is not None:
                raise Ended(last_words(path) or f"exit status {process.returncode}")
            await asyncio.sleep(CONNECT_EVERY_S)
    except asyncio.CancelledError:  # nobody would look for one that is not there yet
        _kill(process)
        raise
    _kill(process)
    raise Ended(f"it did not listen within {CONNECT_S:.0f} s")


async def stop(run_dir: str, prefix: str, farewell: bytes, *, but: Path | None = None) -> None:
    """Send ``farewell`` to the workers whose sockets begin with ``prefix``, all or all ``but`` one, and wait until they
    are gone; who does not hear it is killed."""
    for path in sorted(Path(run_dir).glob(f"{prefix}*{SUFFIX}")):
        if path == but:
            continue
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_unix_connection(str(path))
            worker = Handle.of(writer)
            try:
                writer.write(farewell)
                await worker.end(STOP_S)
            finally:
                worker.close()
                writer.close()
        path.unlink(missing_ok=True)


class Handle:
    """A running worker, by a descriptor that means no other process later (pidfd_open(2)). Raises ProcessLookupError
    when there is none any more."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    @classmethod
    def of(cls, writer: asyncio.StreamWriter) -> Handle:
        """Of the worker to which this connection leads: who called listen (SO_PEERCRED, unix(7))."""
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return cls(_UCRED.unpack(credentials)[0])

    async def end(self, within_s: float) -> None:
        """Wait for its end, and kill it when that does not come."""
        if not await self._ends(within_s):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            await self._ends(STOP_S)

    async def outlives(self, work: Awaitable[None]) -> bool:
        """Whether ``work`` is done while the worker runs; else it is cancelled when the worker has ended."""
        working, ended = asyncio.ensure_future(work), asyncio.ensure_future(self._ends(None))
        try:
            await asyncio.wait((working, ended), return_when=asyncio.FIRST_COMPLETED)
            return working.done()
        finally:
            for each in (working, ended):
                each.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)

    async def _ends(self, within_s: float | None) -> bool:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, ended.set)
        try:
            async with asyncio.timeout(within_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._descriptor)
        return True

    def close(self) -> None:
        os.close(self._descriptor)


def said(path: Path) -> str:
    """The end of what the worker at ``path`` said on stderr."""
    try:
        return _complaints(path).read_bytes()[-COMPLAINT_BYTES_MAX:].decode(errors="replace").strip()
    except OSError:
        return ""


def last_words(path: Path) -> str:
    """The last line of that."""
    return said(path).rpartition("\n")[2]


def _complaints(path: Path) -> Path:
    return path.with_suffix(".err")


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
