"""The store: order, durability across kill -9, and refusals that say what to do."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime.lock import Lock
from weavenet.runtime.store import FILE_NAME, FORMAT_VERSION, Store, explain, open_store


class Written:
    """Collects what the store reports."""

    def __init__(self) -> None:
        self.durable: list[int] = []
        self.failures: list[Failure] = []
        self._changed = asyncio.Event()

    def on_durable(self, ticket: int) -> None:
        self.durable.append(ticket)
        self._changed.set()

    def on_failure(self, failure: Failure) -> None:
        self.failures.append(failure)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def put(table: str, key: bytes, value: bytes | None) -> tuple[Change, ...]:
    return (Change(table, key, value),)


def test_last_write_wins_and_deletes_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, written = open_store(tmp_path), Written()
        store.start(written.on_durable, written.on_failure)
        store.write(put("a", b"1", b"old"))
        store.write((Change("a", b"1", b"new"), Change("a", b"2", b"x"), Change("b", b"1", b"other table")))
        last = store.write(put("a", b"2", None))
        await written.until(lambda: last in written.durable)
        assert written.durable == sorted(written.durable)
        store.close()

    asyncio.run(scenario())
    store = open_store(tmp_path)
    assert store.load() == {("a", b"1"): b"new", ("b", b"1"): b"other table"}
    store.close()


def test_many_writes_share_commits(tmp_path: Path) -> None:
    async def scenario() -> int:
        store, written = open_store(tmp_path), Written()
        store.start(written.on_durable, written.on_failure)
        for i in range(500):
            store.write(put("a", i.to_bytes(2, "big"), b"v"))
        await written.until(lambda: store.ticket in written.durable)
        store.close()
        return len(written.durable)

    assert asyncio.run(scenario()) < 400
    store = open_store(tmp_path)
    assert len(store.load()) == 500
    store.close()


def test_close_finishes_what_is_queued(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, written = open_store(tmp_path), Written()
        store.start(written.on_durable, written.on_failure)
        for i in range(50):
            store.write(put("a", bytes([i]), b"v"))
        store.close()

    asyncio.run(scenario())
    store = open_store(tmp_path)
    assert len(store.load()) == 50
    store.close()


WRITER = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from weavenet.core.effects import Change
    from weavenet.runtime.store import open_store

    async def main():
        store = open_store(Path(sys.argv[1]))
        loop = asyncio.get_running_loop()
        written = 0
        def more():
            nonlocal written
            for _ in range(3):
                written += 1
                name = written.to_bytes(4, "big")
                store.write((Change("first", name, name), Change("second", name, name)))
        def durable(ticket):
            os.write(1, ticket.to_bytes(4, "big"))
            more()
        store.start(durable, lambda failure: os._exit(9))
        more()
        await loop.create_future()

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("acknowledged_at_least", [1, 40, 200])
def test_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, acknowledged_at_least: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = b""
    while len(acknowledged) < 4 * acknowledged_at_least and (chunk := writer.stdout.read1(4096)):  # type: ignore[attr-defined]
        acknowledged += chunk
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.read()
    writer.wait(timeout=10)
    writer.stdout.close()
    last = max(int.from_bytes(acknowledged[i : i + 4], "big") for i in range(0, len(acknowledged) - 3, 4))
    store = open_store(tmp_path)
    rows = store.load()
    store.close()
    for ticket in range(1, last + 1):
        name = ticket.to_bytes(4, "big")
        assert rows[("first", name)] == name
    assert {k for t, k in rows if t == "first"} == {k for t, k in rows if t == "second"}, "a batch was torn"


class FailingConnection:
    """Stands for a connection whose disk fails at the n-th commit."""

    def __init__(self, real: sqlite3.Connection, fail_at: int) -> None:
        self._real, self._left = real, fail_at
        self.attempts_after_failure = 0

    def execute(self, sql: str, *arguments: object) -> object:
        if sql.startswith(("COMMIT", "INSERT", "BEGIN")):
            if self._left <= 0:
                self.attempts_after_failure += 1
            self._left -= 1
            if self._left <= 0:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
                raise error
        return self._real.execute(sql, *arguments)  # type: ignore[arg-type]

    def close(self) -> None:
        self._real.close()


def test_a_failed_commit_is_final(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = open_store(tmp_path)
        connection = FailingConnection(opened._connection, fail_at=3)
        store, written = Store(connection, opened.path), Written()  # type: ignore[arg-type]
        store.start(written.on_durable, written.on_failure)
        while not written.failures:
            ticket = store.write(put("a", b"k", b"v"))
            await written.until(lambda t=ticket: t in written.durable or bool(written.failures))  # type: ignore[misc]
        store.write(put("a", b"k2", b"v"))
        store.close()
        assert connection.attempts_after_failure == 0
        assert len(written.failures) == 1
        assert written.failures[0].code is Code.STORE_FAILED
        assert "dmesg" in written.failures[0].next_step

    asyncio.run(scenario())


@pytest.mark.parametrize(("free_blocks", "word"), [(0, "the disk is full"), (1 << 20, "reported an error")])
@pytest.mark.parametrize("name", ["SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE"])
def test_a_disk_error_of_a_full_disk_is_said_to_be_that(
    name: str, free_blocks: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs_result((4096, 4096, 1 << 21, free_blocks, free_blocks, 100, 50, 50, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = name
    failure = explain(error, tmp_path / "weave.db")
    assert word in failure.found
    assert ("free some space" in failure.next_step) == (free_blocks == 0)


def test_no_room_for_the_file_itself_is_a_full_disk(tmp_path: Path) -> None:
    failure = explain(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "weave.db")
    assert "the disk is full" in failure.found
    assert "run this again" in failure.next_step


def test_a_lock_without_room_for_its_pid_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(WeaveError, match=f"No space left.*free some space in {tmp_path}"):
            Lock.acquire(tmp_path / "weave.lock")
    Lock.acquire(tmp_path / "weave.lock").release()


def test_full_disk_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, written = open_store(tmp_path), Written()
        store._connection.execute("PRAGMA max_page_count = 10")
        store.start(written.on_durable, written.on_failure)
        for i in range(200):
            store.write(put("a", bytes([i]), bytes(2000)))
        await written.until(lambda: bool(written.failures))
        assert "disk is full" in written.failures[0].found
        store.close()

    asyncio.run(scenario())


def test_rewrite_keeps_everything(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_now([Change("a", bytes([i]), bytes(100)) for i in range(200)])
    before = store.load()
    store.rewrite()
    assert store.load() == before
    store.close()
    store = open_store(tmp_path)
    assert store.load() == before
    store.close()


def refused(tmp_path: Path) -> Failure:
    with pytest.raises(WeaveError) as caught:
        store = open_store(tmp_path)
        try:
            store.load()
        finally:
            store.close()
    assert caught.value.failure.found
    assert caught.value.failure.next_step
    return caught.value.failure


def test_garbage_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is not a database" * 1000)
    assert "no database" in refused(tmp_path).found


def test_truncated_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_now([Change("a", i.to_bytes(2, "big"), bytes(500)) for i in range(200)])
    store.close()
    path = tmp_path / FILE_NAME
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    assert "damaged" in refused(tmp_path).found


@pytest.mark.parametrize("seed", range(40))
def test_a_store_cut_anywhere_is_refused_or_whole(tmp_path: Path, seed: int) -> None:
    """A small file cut within its second page was read as if most rows had never been there."""
    rng = random.Random(seed)
    rows = [Change("t", bytes([number]), rng.randbytes(rng.randint(1, 300))) for number in range(rng.randint(5, 200))]
    store = open_store(tmp_path)
    store.write_now(rows)
    store.close()
    path = tmp_path / FILE_NAME
    size = path.stat().st_size
    os.truncate(path, size - rng.randint(1, 60) if seed % 2 else rng.randint(4096, size - 1))
    try:
        store = open_store(tmp_path)
    except WeaveError as error:
        assert "damaged" in error.failure.found
        return
    try:
        assert store.load() == {(row.table, row.key): row.value for row in rows}
    except WeaveError as error:
        assert "damaged" in error.failure.found
        assert "move" in error.failure.next_step
    finally:
        store.close()


def test_foreign_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as foreign:
        foreign.execute("CREATE TABLE t(x)")
    foreign.close()
    assert "another program" in refused(tmp_path).found


def test_newer_format(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    store.close()
    assert f"format {FORMAT_VERSION + 1}" in refused(tmp_path).found


def test_other_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    open_store(tmp_path).close()
    os.chown(tmp_path, 4242, -1)
    assert "uid 4242" in refused(tmp_path).found
    os.chown(tmp_path, 0, -1)
    os.chown(tmp_path / FILE_NAME, 4242, -1)
    assert "chown" in refused(tmp_path).next_step


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert refused(tmp_path).code is Code.STORE_FAILED


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert refused(tmp_path / "data").code is Code.STORE_FAILED


def test_closed_to_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_store(data).close()
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / FILE_NAME).stat().st_mode & 0o077 == 0
    data.chmod(0o755)
    open_store(data).close()
    assert data.stat().st_mode & 0o777 == 0o700
