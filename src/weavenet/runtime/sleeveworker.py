"""Starts the sleeve worker, or adopts the one that runs; feeds it, hears it, starts it again when it ends.

The worker outlives the daemon: it listens on a unix socket whose name says what it was made for, and goes on
forwarding while nobody is connected. Invariants: one worker per host, for the identity in force; it is given the
whole wanted state whenever it is connected to and whenever that changes; only the latest waits to be given. It is not
heard before its device is a port of the bridge: others learn its keys from what it says, and find that it answers, so
they would send to it what reaches no container yet.

Decides nothing about peers; what the worker says becomes ``SleeveReported`` events.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

import weavenet
from weavenet import program
from weavenet.core.events import SleeveReported
from weavenet.core.limits import SLEEVE_DEVICE
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId
from weavenet.runtime import workers
from weavenet.runtime.workers import SUFFIX, Ended, Handle
from weavenet.sleeve.feed import Splitter, Stop, decode_status, frame

PREFIX = "sleeve-"
FIRST_PAUSE_S = 0.5
"""Starting Python takes processor time that peers and first addresses need more."""
RESTART_FIRST_S, RESTART_FACTOR, RESTART_CAP_S = 0.2, 2.0, 30.0
STABLE_S = 30.0
"""A worker that lived this long is started again without a pause."""
FAILURES_TOLD = 3
"""So many short lives in a row are no accident."""
SILENCE_S = 10.0
"""It reports once a second."""
READ_BYTES = 1 << 18

_log = logging.getLogger("weave.sleeve")


class Silent(Ended):
    """It runs, or seems to, but does nothing."""


def socket_path(run_dir: str, peer: PeerId, host: str, port: int) -> Path:
    """A worker is adopted by a daemon of the same release, that wants it to listen at the same place: what it is told,
    and its faults, are those of its release. Short: a unix socket's path has at most 107 bytes."""
    made_for = msgspec.json.encode((weavenet.__version__, peer.hex(), host, port))
    return Path(run_dir) / f"{PREFIX}{hashlib.sha256(made_for).hexdigest()[:12]}{SUFFIX}"


async def stop_workers(run_dir: str, but: Path | None = None) -> None:
    """End the workers that were started from ``run_dir``, all or all ``but`` one, and wait until they are gone."""
    await workers.stop(run_dir, PREFIX, frame(Stop()), but=but)


class SleeveWorker:
    """``post``: takes events for the node. ``host``: address to bind, empty: all. ``port``: UDP. ``is_plugged``:
    returns once the worker's device is a port of the bridge."""

    def __init__(
        self,
        peer: PeerId,
        *,
        run_dir: str,
        host: str,
        port: int,
        post: Callable[[SleeveReported], None],
        is_plugged: Callable[[], Awaitable[None]],
    ) -> None:
        self._run_dir, self._host, self._port = run_dir, host, port
        self._path = socket_path(run_dir, peer, host, port)
        self._post = post
        self._is_plugged = is_plugged
        self._desired: SleeveDesired | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._began_at = 0.0
        self._failures = 0
        self._why = ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_alive())

    async def close(self) -> None:
        """Let go of the worker; it goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def set_desired(self, desired: SleeveDesired) -> None:
        self._desired = desired
        self._wake.set()

    def warnings(self) -> tuple[str, ...]:
        """Full sentences with the next step."""
        if self._failures < FAILURES_TOLD:
            return ()
        return (
            f"the sleeve worker of this host does not stay up ({self._failures} times in a row; {self._why}): peers "
            "that VXLAN does not reach are cut off; next: see the log, and `weave setup` for what the host lacks",
        )

    # --- its life ---

    async def _keep_alive(self) -> None:
        pause_s = 0.0
        while True:
            self._began_at = time.monotonic()
            try:
                await self._run()
            except (Ended, OSError, ValueError) as error:
                self._why = str(error)
            self._post(SleeveReported(None))
            if time.monotonic() - self._began_at > STABLE_S:
                self._failures, pause_s = 0, 0.0
            self._failures += 1
            _log.warning("the sleeve worker ended: %s; starting it again in %.1f s", self._why, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(max(RESTART_FIRST_S, pause_s * RESTART_FACTOR), RESTART_CAP_S)

    async def _run(self) -> None:
        """Until it ends, which is always an exception."""
        await stop_workers(self._run_dir, but=self._path)
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
            _log.info("the sleeve worker is adopted")
        except OSError:
            if self._process is None:
                await asyncio.sleep(FIRST_PAUSE_S)
            reader, writer = await self._spawn()
        worker = Handle.of(writer)
        self._wake.set()
        feeding = asyncio.create_task(self._feed(writer))
        try:
            if not await worker.outlives(self._is_plugged()):  # there may never be a device of that name again
                raise Ended(workers.last_words(self._path) or "before its device was a port of the bridge")
            await self._hear(reader)
        except Silent:
            await worker.end(0.0)  # the next one needs its device and its port
            raise
        finally:
            worker.close()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            writer.close()

    async def _spawn(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        arguments = ["--tap", SLEEVE_DEVICE, "--port", str(self._port), "--socket", str(self._path)]
        if self._host:
            arguments += ["--host", self._host]
        started = await workers.spawn(self._path, program.command("weavenet.sleeve", *arguments))
        self._process = started.process
        return started.reader, started.writer

    async def _feed(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._desired is not None:
                writer.write(frame(self._desired))
                await writer.drain()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        splitter = Splitter()
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    data = await reader.read(READ_BYTES)
            except TimeoutError:
                raise Silent(f"it was silent for {SILENCE_S:.0f} s") from None
            if not data:
                raise Ended("its stream ended")
            if time.monotonic() - self._began_at > STABLE_S:
                self._failures = 0
            for body in splitter.feed(data):
                self._post(SleeveReported(decode_status(body)))
