"""The supervisor of the DNS worker, with real workers on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.asyncquery
import dns.exception
import msgspec
import pytest

import dns_oracle as oracle
from dns_server import DEADLINE_S, free_port
from weavenet import program
from weavenet.core.effects import NameRecord
from weavenet.core.report import DnsReport
from weavenet.dns.feed import Listen, Listening
from weavenet.runtime import nameserver as module
from weavenet.runtime import workers
from weavenet.runtime.nameserver import NameServer
from weavenet.runtime.settings import Settings

HOST = "127.0.0.1"


def record(name: str, *last: int) -> NameRecord:
    return NameRecord(f"{name}.weave.local.", tuple(bytes([10, 32, 0, one]) for one in last))


class Stage:
    def __init__(self, run_dir: Path) -> None:
        self.port = free_port(HOST)
        self.settings = Settings(dns_listen=(f"{HOST}:{self.port}",), run_dir=str(run_dir))
        self.server = NameServer(self.settings)

    async def restart(self, **changes: object) -> int | None:
        """As a daemon does that is stopped, and launched with ``changes`` of its settings; the worker of before."""
        before = self.server.pid
        await self.server.close()
        self.server = NameServer(msgspec.structs.replace(self.settings, **changes))
        self.server.start()
        return before

    async def until_connected(self) -> None:
        async def is_so() -> bool:
            return bool(self.server.listening)

        await self.until(is_so, "the worker is connected to")

    async def ask(self, name: str) -> list[str] | None:
        """Addresses; None when nobody answers."""
        query = oracle.ask(f"{name}.weave.local.")
        try:
            answer = await dns.asyncquery.udp(query, HOST, 0.2, self.port)
        except (dns.exception.Timeout, OSError):
            return None
        return sorted(oracle.values(answer, "A"))

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not await condition():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.02)

    async def until_answers(self, name: str, *last: int) -> None:
        wanted = [f"10.32.0.{one}" for one in last]

        async def is_so() -> bool:
            return await self.ask(name) == wanted

        await self.until(is_so, f"{name} stands for {wanted}")


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def of(scene: Callable[[Stage], Awaitable[None]]) -> None:
        async def run() -> None:
            stage = Stage(tmp_path / "run")
            stage.server.start()
            try:
                await scene(stage)
            finally:
                await stage.server.stop()
            assert stage.server.pid is None
            assert await stage.ask("web") is None
            assert not list((tmp_path / "run").glob("*.sock"))

        asyncio.run(run())

    return of


def test_names_whole_and_changed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.1)

    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1), record("db", 2, 3)))
        await stage.until_answers("db", 2, 3)
        stage.server.set_names(False, (record("Web", 4), record("db")))
        await stage.until_answers("web", 4)
        await stage.until_answers("db")
        stage.server.set_names(True, (record("new", 5),))
        await stage.until_answers("new", 5)
        assert await stage.ask("web") == []
        report = await stage.server.report(DnsReport("weave.local."))
        assert report.address == f"{HOST}:{stage.port}"
        assert report.ttl_s == 1
        assert report.queries.own > 2

    play(scene)


def test_a_large_table_and_changes_while_it_is_told(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, tuple(record(f"host{number}", 1) for number in range(5000)))
        await asyncio.sleep(0)
        for number in range(0, 5000, 50):
            stage.server.set_names(False, (record(f"host{number}", 2),))
            await asyncio.sleep(0)
        await stage.until_answers("host4950", 2)
        for number in (0, 50, 2500, 4900):
            assert await stage.ask(f"host{number}") == ["10.32.0.2"]
            assert await stage.ask(f"host{number + 1}") == ["10.32.0.1"]
        status = await stage.server.status()
        assert status is not None
        assert status.names == 5000

    play(scene)


def test_a_killed_worker_is_replaced_and_knows_everything(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1),))
        stage.server.set_names(False, (record("db", 2),))
        await stage.until_answers("db", 2)
        before = stage.server.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await stage.until_answers("web", 1)
        await stage.until_answers("db", 2)
        assert stage.server.pid not in (None, before)
        assert stage.server.warnings() == ()

    play(scene)


def test_a_worker_that_hangs_is_replaced(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(module, "STOP_S", 0.2)

    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1),))
        await stage.until_answers("web", 1)
        before = stage.server.pid
        assert before is not None

        async def is_given_up() -> bool:
            return stage.server.pid != before

        os.kill(before, signal.SIGSTOP)
        with monkeypatch.context() as impatience:  # for this one alone: a busy machine starts the next one slowly
            impatience.setattr(module, "SILENCE_S", 0.4)
            await stage.until(is_given_up, "the silent worker to be given up")
        await stage.until_answers("web", 1)
        assert stage.server.pid != before

    play(scene)


def test_names_are_answered_while_no_daemon_is_there_and_while_the_next_one_learns_them(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node begins with the names of its own host; those of others come a moment later."""

    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1), record("far", 2), record("gone", 3)))
        await stage.until_answers("far", 2)
        monkeypatch.setattr(module, "SETTLE_S", 3600.0)
        before = await stage.restart()
        assert await stage.ask("far") == ["10.32.0.2"]
        stage.server.set_names(True, (record("web", 1),))
        await stage.until_connected()
        assert stage.server.pid == before
        assert await stage.ask("far") == ["10.32.0.2"], "not told yet"
        stage.server.set_names(False, (record("web", 4), record("near", 5)))
        await stage.until_answers("web", 4)
        await stage.until_answers("near", 5)
        assert await stage.ask("far") == ["10.32.0.2"], "what changed is told at once, and nothing else"
        monkeypatch.setattr(module, "SETTLE_S", 0.1)
        stage.server.set_names(True, (record("web", 4), record("far", 2)))
        await stage.until_answers("gone")
        assert await stage.ask("far") == ["10.32.0.2"]

    play(scene)


@pytest.mark.parametrize("change", [{"dns_domain": "other.local."}, {"dns_ttl_s": 7}])
def test_a_worker_for_other_settings_is_replaced(play: Play, change: dict[str, object]) -> None:
    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1),))
        await stage.until_answers("web", 1)
        before = await stage.restart(**change)
        stage.server.set_names(True, (NameRecord("new.weave.local.", (bytes([10, 32, 0, 9]),)),))
        await stage.until_connected()
        assert stage.server.pid != before
        assert before is not None and not Path(f"/proc/{before}/fd/0").exists()

    play(scene)


def test_an_adopted_worker_that_dies_or_hangs_is_replaced(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.2)

    async def scene(stage: Stage) -> None:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            stage.server.set_names(True, (record("web", 1),))
            await stage.until_answers("web", 1)
            before = await stage.restart()
            stage.server.set_names(True, (record("web", 2),))
            await stage.until_connected()
            assert stage.server.pid == before is not None
            with monkeypatch.context() as impatience:
                impatience.setattr(module, "ASK_EVERY_S", 0.05)
                os.kill(before, number)
                impatience.setattr(module, "SILENCE_S", 0.4)
                await stage.until_answers("web", 2)
            assert stage.server.pid != before

    play(scene)


def test_a_worker_that_hangs_is_ended_with_the_others(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before the next one for other settings begins, and when the host is reset."""
    monkeypatch.setattr(workers, "STOP_S", 0.2)

    async def scene(stage: Stage) -> None:
        stage.server.set_names(True, (record("web", 1),))
        await stage.until_answers("web", 1)
        before = stage.server.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        await stage.server.stop()

        async def is_gone() -> bool:
            return not Path(f"/proc/{before}/fd/0").exists()

        await stage.until(is_gone, "the worker to be gone")

    play(scene)


def test_one_that_never_stays_up_is_tried_less_and_less_and_told_about(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho x >> {started}\necho 'no module named weavenet' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(program.sys, "executable", str(python))
    monkeypatch.setattr(module, "RESTART_FIRST_S", 0.01)

    async def scene(stage: Stage) -> None:
        async def is_told() -> bool:
            return bool(stage.server.warnings())

        await stage.until(is_told, "the warning")
        (warning,) = stage.server.warnings()
        assert "no module named weavenet" in warning
        assert "--no-dns" in warning
        assert await stage.server.report(DnsReport("weave.local.")) == DnsReport("weave.local.", ttl_s=1)
        assert len(started.read_text()) >= 2 * module.FAILURES_TOLD

    play(scene)


def test_an_address_that_is_taken_is_told_about_and_tried_again(play: Play) -> None:
    import socket

    async def scene(stage: Stage) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind((HOST, free_port(HOST)))
            other = taken.getsockname()[1]
            stage.server._fixed = (*stage.server._fixed, Listen(HOST, other))
            stage.server.set_addresses(())

            async def is_told() -> bool:
                return bool(stage.server.warnings())

            await stage.until(is_told, "the warning")
            (warning,) = stage.server.warnings()
            assert f"{HOST} port {other}" in warning
            assert "ss -lnp" in warning

        async def is_open() -> bool:
            return len(stage.server.listening) == 2

        await stage.until(is_open, "both are open")
        assert stage.server.warnings() == ()

    play(scene)


def test_an_address_that_is_taken_on_two_devices_is_told_once(tmp_path: Path) -> None:
    server = NameServer(Settings(run_dir=str(tmp_path)))
    devices = [Listen(HOST, 53, device) for device in ("lo", "weave")]
    server._listening = Listening((), tuple((listen, "Address already in use") for listen in devices))
    (warning,) = server.warnings()
    assert HOST in warning


def test_an_address_that_no_device_has_is_told_about(tmp_path: Path) -> None:
    """It may come later, so the worker listens there; and it is told with the port at which nobody would look."""
    listen = (f"192.0.2.53:{free_port(HOST)}", f"{HOST}:{free_port(HOST)}")

    async def scene() -> None:
        server = NameServer(Settings(dns_listen=listen, run_dir=str(tmp_path)))
        server.start()
        deadline = time.monotonic() + DEADLINE_S
        while len(server.listening) < len(listen):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        (warning,) = server.warnings()
        assert "address 192.0.2.53," in warning and "--dns-listen-address" in warning
        assert server.address == listen[0], "not the one that no container reaches"
        await server.stop()

    asyncio.run(scene())


def test_nowhere_to_listen_means_no_worker(tmp_path: Path) -> None:
    async def scene() -> None:
        server = NameServer(Settings(run_dir=str(tmp_path)))
        server.start()
        assert server.pid is None
        server.set_addresses((("127.0.0.1", "weave"),))
        assert {listen.device for listen in server._configuration.listen} == {"weave", "lo"}
        await server.close()

    asyncio.run(scene())
