"""The daemon in one process, over a data path in memory: launch, links, commands, failure of the disk, stop."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from weavenet.control.service import AttachSpec, ExposeSpec, HideSpec
from weavenet.core.commands import (
    Addresses,
    Allocate,
    Attachments,
    Command,
    GetReport,
    Result,
)
from weavenet.core.config import NodeConfig
from weavenet.core.effects import PlanePeer
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.events import Event
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.report import NodeReport
from weavenet.core.types import PeerId
from weavenet.lab.waiting import wait_until
from weavenet.runtime import daemon as daemon_module
from weavenet.runtime import nameserver, sleeveworker
from weavenet.runtime.applier import Applier, Blocked
from weavenet.runtime.daemon import Daemon
from weavenet.runtime.datapath import NameOwner
from weavenet.runtime.foundation import Foundation
from weavenet.runtime.identity import Me
from weavenet.runtime.lock import AlreadyRunning
from weavenet.runtime.notify import Notifier
from weavenet.runtime.settings import Settings, encode_settings


class MemoryDatapath:
    """Accepts everything."""

    def __init__(self, config: NodeConfig) -> None:
        self.peers: tuple[PlanePeer, ...] = ()
        self.is_open = False

    async def open(self, post: Callable[[Event], None]) -> None:
        self.is_open = True

    async def adopt(self, request: Callable[[Command], Awaitable[Result]]) -> None:
        return

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        self.peers = peers
        done()

    def set_sleeve(self, desired: SleeveDesired) -> None:
        return

    def set_blocked(self, blocked: Blocked, done: Callable[[], None]) -> None:
        done()

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        return

    async def attach(self, spec: AttachSpec) -> Addresses | Failure:
        return Addresses(spec.addresses)

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure:
        return Addresses(spec.addresses)

    async def hide(self, spec: HideSpec) -> Addresses | Failure:
        return Addresses(spec.addresses)

    def owner(self, container: str) -> NameOwner | Failure:
        return NameOwner(container)

    async def detach(self, container: str, addresses: tuple[str, ...]) -> Addresses | Failure:
        return Addresses(addresses)

    async def ps(self) -> Attachments:
        return Attachments(())

    def warnings(self) -> tuple[str, ...]:
        return ("a warning of the data path",)

    async def close(self) -> None:
        self.is_open = False


class Running:
    """A daemon as a task of the test's loop."""

    def __init__(self, place: Path, number: int, **settings: object) -> None:
        self.settings = Settings(
            name=f"::{number}",
            host="127.0.0.1",
            port=0,
            data_dir=str(place / f"data{number}"),
            run_dir=str(place / f"run{number}"),
            status_address="",
            **settings,  # type: ignore[arg-type]
        )
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.daemon = Daemon(
            Foundation.lay(self.settings), self.ready.set_result, make_datapath=MemoryDatapath, notifier=Notifier({})
        )
        self.task = asyncio.create_task(self.daemon.run())

    async def until_ready(self) -> str:
        await asyncio.wait((self.ready, self.task), return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            self.task.result()
        return self.ready.result()

    @property
    def port(self) -> int:
        return self.daemon.identity.port

    async def report(self) -> NodeReport:
        result = await self.daemon.request(GetReport())
        assert isinstance(result, NodeReport), result
        return result

    async def stop(self) -> None:
        self.daemon.request_stop()
        await self.task


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


def test_two_daemons_meet_and_allocate(tmp_path: Path) -> None:
    async def test() -> None:
        first = Running(tmp_path, 1, targets=())
        assert await first.until_ready() == "00:00:00:00:00:01"
        second = Running(tmp_path, 2, targets=(f"127.0.0.1:{first.port}",), passwords=())
        await second.until_ready()

        async def met() -> bool:
            return len((await second.report()).peers) == 2 and len((await first.report()).peers) == 2

        await eventually(met)
        one = await first.daemon.request(Allocate("a"))
        two = await second.daemon.request(Allocate("b"))
        assert isinstance(one, Addresses)
        assert isinstance(two, Addresses)
        assert one.addresses != two.addresses
        assert "a warning of the data path" in (await first.report()).warnings
        await second.stop()
        await first.stop()

    run(test)


def test_restart_keeps_name_key_and_addresses(tmp_path: Path) -> None:
    async def test() -> None:
        seen = []
        for _ in range(2):
            host = Running(tmp_path, 1, targets=())
            await host.until_ready()
            report = await host.report()
            seen.append((report.name, report.peer, await host.daemon.request(Allocate("a"))))
            await host.stop()
        assert seen[0] == seen[1]

    run(test)


class BrokenConnection:
    """Every write fails, as on a disk that is full."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def execute(self, sql: str, *arguments: object) -> object:
        if sql.startswith(("INSERT", "BEGIN", "DELETE")):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return self._real.execute(sql, *arguments)  # type: ignore[arg-type]

    def close(self) -> None:
        self._real.close()


def test_a_failed_commit_begins_a_new_life_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "RESTART_FIRST_S", 0.2)

    async def test() -> None:
        host = Running(tmp_path, 1, targets=())
        await host.until_ready()
        before = await host.daemon.request(Allocate("a"))
        foundation, is_seen = host.daemon._foundation, threading.Event()
        store, reopen = foundation.store, foundation.reopen

        def reopen_later() -> Me:
            is_seen.wait(10)
            return reopen()

        monkeypatch.setattr(foundation, "reopen", reopen_later)
        store._connection = BrokenConnection(store._connection)  # type: ignore[assignment]
        answer = await host.daemon.request(Allocate("b"))
        assert isinstance(answer, Failure)
        assert answer.code is Code.STORE_FAILED
        assert "disk is full" in answer.found

        async def says_since() -> bool:
            refused = await host.daemon.request(Allocate("b"))
            assert isinstance(refused, Failure)
            return "not serving since 2" in refused.found and "disk is full" in refused.found

        await eventually(says_since)
        is_seen.set()

        async def serves() -> bool:
            return not isinstance(await host.daemon.request(Allocate("b")), Failure)

        await eventually(serves)
        assert await host.daemon.request(Allocate("a")) == before
        await host.stop()

    run(test)


def test_other_passwords_are_told_apart(tmp_path: Path) -> None:
    async def test() -> None:
        first = Running(tmp_path, 1, targets=(), passwords=("a long password here",))
        await first.until_ready()
        second = Running(tmp_path, 2, targets=(f"127.0.0.1:{first.port}",))
        await second.until_ready()

        async def both_say_so() -> bool:
            texts = [str((await host.report()).connections) for host in (first, second)]
            return all("--password" in text for text in texts)

        await eventually(both_say_so)
        await second.stop()
        await first.stop()

    run(test)


def test_second_daemon_in_one_place(tmp_path: Path) -> None:
    async def test() -> None:
        host = Running(tmp_path, 1, targets=())
        await host.until_ready()
        with pytest.raises(AlreadyRunning, match="weave stop"):
            Foundation.lay(host.settings)
        await host.stop()
        Foundation.lay(host.settings).close()

    run(test)


def test_a_taken_port_ends_the_launch_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = Settings(
                host="127.0.0.1",
                port=taken.getsockname()[1],
                data_dir=str(tmp_path / "d"),
                run_dir=str(tmp_path / "r"),
                status_address="",
            )
            daemon = Daemon(Foundation.lay(settings), lambda name: None, make_datapath=MemoryDatapath)
            with pytest.raises(WeaveError, match="in use"):
                await daemon.run()
        Foundation.lay(settings).close()

    run(test)


def test_the_api_answers_over_the_socket(tmp_path: Path) -> None:
    async def test() -> None:
        host = Running(tmp_path, 1, targets=())
        await host.until_ready()

        def ask() -> object:
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(host.settings.control_socket)
            connection.request("POST", "/v1/allocate", json.dumps({"ident": "c1"}))
            answer = json.loads(connection.getresponse().read())
            connection.close()
            return answer

        assert await asyncio.to_thread(ask) == {"addresses": ["10.32.0.1/12"]}
        await host.stop()
        assert not Path(host.settings.control_socket).exists()

    run(test)


@pytest.mark.lab
def test_the_process_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    """The real thing: ready line, second launch, SIGTERM. Its workers outlive it, until told to stop."""
    settings = Settings(
        data_dir=str(tmp_path / "d"), run_dir=str(tmp_path / "r"), targets=(), log_file=str(tmp_path / "log")
    )
    read, write = os.pipe()
    os.set_inheritable(write, True)
    daemon = [sys.executable, "-m", "weavenet.runtime", "--ready-fd", str(write)]
    process = subprocess.Popen(
        ["unshare", "--net", "--", *daemon], stdin=subprocess.PIPE, pass_fds=(write,), stderr=subprocess.PIPE
    )
    os.close(write)
    assert process.stdin is not None
    process.stdin.write(encode_settings(settings))
    process.stdin.close()
    process.stdin = None
    line = json.loads(os.read(read, 4096))
    os.close(read)
    assert line["ready"] is True, line
    again = subprocess.run(daemon[:3], input=encode_settings(settings), capture_output=True, timeout=20, check=False)
    assert again.returncode == 3
    assert str(line["pid"]).encode() in again.stderr
    workers = tmp_path / "r"
    for kind in ("sleeve", "dns"):
        wait_until(lambda kind=kind: len(list(workers.glob(f"{kind}-*.sock"))) == 1, 20, f"a worker for {kind}")
    os.kill(line["pid"], signal.SIGTERM)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 0, complaint
    assert "stopped" in (tmp_path / "log").read_text()
    for stop in (sleeveworker.stop_workers, nameserver.stop_workers):
        asyncio.run(stop(str(workers)))
    assert not list(workers.glob("*.sock"))


def test_blocks_are_in_force_before_a_later_plane_opens() -> None:
    async def test() -> None:
        done: list[str] = []

        async def block(blocked: Blocked) -> None:
            await asyncio.sleep(0)
            done.append(f"block {[ident for ident, _ in blocked]}")

        async def apply(peers: tuple[PlanePeer, ...]) -> None:
            await asyncio.sleep(0)
            done.append(f"plane {len(peers)}")

        applier = Applier(block, apply)
        task = asyncio.create_task(applier.run())
        a, b = ("a", "10.0.0.1"), ("b", "10.0.0.2")
        peer = PlanePeer(b"", "h", b"", ())  # type: ignore[arg-type]

        async def settled(count: int) -> None:
            async with asyncio.timeout(5):
                while len(done) < count:
                    await asyncio.sleep(0)

        applier.set_blocked((), lambda: done.append("nothing to do"))
        assert done == ["nothing to do"]
        applier.set_blocked((a,), lambda: done.append("a in force"))
        applier.set_plane((peer,), lambda: done.append("nothing else open"))
        await settled(5)
        assert done[1:] == ["block ['a']", "a in force", "plane 1", "nothing else open"]
        applier.set_plane((peer,), lambda: done.append("nothing to close"))
        assert done.pop() == "nothing to close"
        applier.set_plane((), lambda: done.append("closed"))
        applier.set_blocked((b,), lambda: done.append("b in force"))
        await settled(10)
        assert done[5:] == ["block ['a', 'b']", "b in force", "plane 0", "closed", "block ['b']"]
        task.cancel()

    run(test)


@pytest.mark.parametrize(("may_show", "at_once"), [(None, False), (frozenset(), True)])
def test_nobody_waits_for_a_data_path_that_cannot_show_anybody(
    may_show: frozenset[PeerId] | None, at_once: bool
) -> None:
    """What an earlier life left in the kernel has to be closed before peers hear of us; without a bridge there is
    nothing, and links come up while the data path is still being opened."""

    async def test() -> None:
        async def block(blocked: Blocked) -> None: ...
        async def apply(peers: tuple[PlanePeer, ...]) -> None: ...

        done: list[str] = []
        applier = Applier(block, apply, may_show)
        applier.set_plane((), lambda: done.append("closed"))
        assert bool(done) is at_once
        task = asyncio.create_task(applier.run())
        async with asyncio.timeout(5):
            while not done:
                await asyncio.sleep(0)
        task.cancel()

    run(test)
