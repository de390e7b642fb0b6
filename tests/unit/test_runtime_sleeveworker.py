"""What the daemon lets the node hear of its sleeve worker, and when. The worker is a server in this process."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

import weavenet
from weavenet.core.events import SleeveReported
from weavenet.core.overlay.sleeve import SleeveStatus
from weavenet.core.types import PeerId
from weavenet.runtime import sleeveworker
from weavenet.runtime.sleeveworker import FAILURES_TOLD, SleeveWorker, socket_path
from weavenet.sleeve.feed import frame

PEER = PeerId(b"p" * 16)
STATUS = SleeveStatus(b"process1", 6783, (), (), (), {})
DEADLINE_S = 10.0


def test_a_worker_is_not_heard_before_its_device_is_plugged_in(tmp_path: Path) -> None:
    """Its keys would be published, and others would send what reaches no container yet."""

    async def scenario() -> None:
        asked, plugged, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
        posted: list[SleeveReported] = []

        async def is_plugged() -> None:
            asked.set()
            await plugged.wait()

        def post(event: SleeveReported) -> None:
            posted.append(event)
            heard.set()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(frame(STATUS))
            await writer.drain()

        server = await asyncio.start_unix_server(serve, socket_path(str(tmp_path), PEER, "", 6783))
        worker = SleeveWorker(PEER, run_dir=str(tmp_path), host="", port=6783, post=post, is_plugged=is_plugged)
        worker.start()
        try:
            await asked.wait()
            assert posted == []
            plugged.set()
            await heard.wait()
            assert posted == [SleeveReported(STATUS)]
        finally:
            await worker.close()
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_a_worker_that_ends_before_its_device_is_plugged_in_is_missed(tmp_path: Path) -> None:
    """As one that fails at the first thing it is told: its device is gone before it is a port of the bridge."""

    async def scenario() -> None:
        path = socket_path(str(tmp_path), PEER, "", 6783)
        listening = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()"
        program = f"{listening}; print(flush=True); s.accept()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        posted: asyncio.Queue[SleeveReported] = asyncio.Queue()

        async def is_plugged() -> None:
            await asyncio.Event().wait()

        worker = SleeveWorker(
            PEER, run_dir=str(tmp_path), host="", port=6783, post=posted.put_nowait, is_plugged=is_plugged
        )
        worker.start()
        try:
            assert await posted.get() == SleeveReported(None)
        finally:
            await worker.close()
            await process.wait()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_a_worker_that_stays_up_after_all_is_no_trouble_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeveworker, "STABLE_S", 0.2)
    monkeypatch.setattr(sleeveworker, "RESTART_FIRST_S", 0.01)

    async def scenario() -> None:
        async def is_plugged() -> None: ...

        lives = 0

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal lives
            lives += 1
            is_short = lives <= FAILURES_TOLD
            while not is_short and not writer.is_closing():
                writer.write(frame(STATUS))
                await asyncio.sleep(0.01)
            writer.close()

        server = await asyncio.start_unix_server(serve, socket_path(str(tmp_path), PEER, "", 6783))
        worker = SleeveWorker(
            PEER, run_dir=str(tmp_path), host="", port=6783, post=lambda event: None, is_plugged=is_plugged
        )
        worker.start()
        try:
            while not worker.warnings():
                await asyncio.sleep(0.01)
            while worker.warnings():
                await asyncio.sleep(0.01)
            assert lives == FAILURES_TOLD + 1
        finally:
            await worker.close()
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_a_worker_is_adopted_only_for_what_it_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        socket_path(str(tmp_path), peer, host, port)
        for peer in (PEER, PeerId(b"q" * 16))
        for host in ("", "192.0.2.1")
        for port in (6783, 7000)
    }
    assert len(found) == 8
    monkeypatch.setattr(weavenet, "__version__", "99.0")
    assert socket_path(str(tmp_path), PEER, "", 6783) not in found
