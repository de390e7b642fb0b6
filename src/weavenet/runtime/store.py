"""Everything that must survive: one SQLite table of (table, key) -> value, written by one thread.

Invariants:

- A ticket is reported durable only after the commit that contains it, and every earlier one, returned: with WAL and
  ``synchronous=FULL`` SQLite has then fsynced the log.
- Batches are applied in the order of :meth:`Store.write`; whatever queued up while a commit ran shares the next one.
- The first failure of a commit is final. The thread writes nothing more, ``on_failure`` is called once, and further
  writes are dropped: after a failed fsync the kernel may call lost pages clean, so a retry that "succeeds" would prove
  nothing (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

Reading happens once, in :func:`Store.load`, before the first write. Queue bound: the executor stops taking input when
too much waits here (see there). Does not know what the values mean.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, WeaveError

if TYPE_CHECKING:
    import asyncio  # 50 ms that opening the store does not need

FORMAT_VERSION = 1
"""Of table layout and row formats together; a newer one is refused, never guessed at."""
APPLICATION_ID = 0x57454156
"""``WEAV``, in SQLite's header: tells our file from somebody else's."""
FILE_NAME = "weave.db"
COMMIT_BATCHES_MAX = 1024
"""Batches in one commit, so that the first of them does not wait for an endless queue."""
CHECKPOINT_PAGES = 200
"""The log begins anew after so many pages. A commit that makes its file longer takes half as long again as one that
writes over what is there, since the file system has to commit as well; SQLite's default of 1,000 would have the first
thousand commits of a start do so. Checkpoints cost the same per commit down to here."""
BUSY_TIMEOUT_MS = 2000
"""For a reader such as a backup tool; no other writer exists, since one daemon holds the lock."""

_HEADER_BYTES = 100
_ROOM_BYTES = 64 * 1024
"""With less than this free a disk counts as full: the index of the log alone takes 32 KiB at once."""

_PUT = "INSERT INTO kv(tbl, key, value) VALUES(?, ?, ?) ON CONFLICT(tbl, key) DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM kv WHERE tbl = ? AND key = ?"

Rows = dict[tuple[str, bytes], bytes]


class Store:
    """Opened by :func:`open_store`. Call :meth:`start` once, inside the event loop, before the first write."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._queue: SimpleQueue[tuple[int, tuple[Change, ...]] | None] = SimpleQueue()
        self._ticket = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_durable: Callable[[int], None] = lambda ticket: None
        self._on_failure: Callable[[Failure], None] = lambda failure: None

    @property
    def ticket(self) -> int:
        """Of the latest write; 0 before the first."""
        return self._ticket

    def load(self) -> Rows:
        """Everything persisted. Raises WeaveError when the file is damaged. Only before :meth:`start`.

        SQLite reads what is beyond the end of a truncated file as zeros, and can then miss rows without an error; so
        the structure is checked first (40 ms for 100,000 rows), after :func:`_check_end` when it was opened."""
        try:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise WeaveError(damaged(self.path, found))
            return {(table, key): value for table, key, value in self._connection.execute("SELECT * FROM kv")}
        except sqlite3.Error as error:
            raise WeaveError(explain(error, self.path)) from error

    def write_now(self, changes: Iterable[Change]) -> None:
        """Durable when it returns; blocks. Only before :meth:`start`. Raises WeaveError."""
        try:
            _commit(self._connection, [tuple(changes)])
        except sqlite3.Error as error:
            raise WeaveError(explain(error, self.path)) from error

    def rewrite(self) -> None:
        """Write every page anew and fsync it; blocks. Only before :meth:`start`, after an earlier store of this
        process failed to commit: what is read back may exist only as page-cache copies that the kernel has given up
        writing. First the log goes into the file and is emptied (its frames may be lost too), then all pages go
        through a new log. Raises WeaveError."""
        try:
            for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                row = self._connection.execute(statement).fetchone()
                if row is not None and row[0] != 0:
                    raise sqlite3.OperationalError("the log is in use by another program")
        except sqlite3.Error as error:
            raise WeaveError(explain(error, self.path)) from error

    def start(self, on_durable: Callable[[int], None], on_failure: Callable[[Failure], None]) -> None:
        """Start the writer thread; both callbacks run in the current event loop."""
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._on_durable, self._on_failure = on_durable, on_failure
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def write(self, changes: tuple[Change, ...]) -> int:
        """Queue one batch; atomic with respect to crashes. Returns its ticket."""
        self._ticket += 1
        self._queue.put((self._ticket, changes))
        return self._ticket

    def close(self) -> None:
        """Finish what is queued and close the file. Blocks for at most a few commits."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._connection.close()

    def _run(self) -> None:
        while (batches := self._take()) is not None:
            try:
                _commit(self._connection, [changes for _, changes in batches])
            except (sqlite3.Error, OSError) as error:
                self._report(self._on_failure, explain(error, self.path))
                return
            self._report(self._on_durable, batches[-1][0])

    def _take(self) -> list[tuple[int, tuple[Change, ...]]] | None:
        """All that waits, at least one batch; None when the store is being closed and nothing is left."""
        first = self._queue.get()
        if first is None:
            return None
        batches = [first]
        while len(batches) < COMMIT_BATCHES_MAX:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            batches.append(item)
        return batches

    def _report(self, callback: Callable[..., None], argument: object) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more


def _commit(connection: sqlite3.Connection, batches: list[tuple[Change, ...]]) -> None:
    """One transaction. A single change needs no BEGIN: SQLite's implicit transaction saves two statements."""
    if len(batches) == 1 and len(batches[0]) == 1:
        _apply(connection, batches[0])
        return
    connection.execute("BEGIN IMMEDIATE")
    for changes in batches:
        _apply(connection, changes)
    connection.execute("COMMIT")


def _apply(connection: sqlite3.Connection, changes: tuple[Change, ...]) -> None:
    for change in changes:
        if change.value is None:
            connection.execute(_DELETE, (change.table, change.key))
        else:
            connection.execute(_PUT, (change.table, change.key, change.value))


def open_store(data_dir: Path) -> Store:
    """Open or make the store in ``data_dir``. Raises WeaveError with expected, found and next step."""
    path = data_dir / FILE_NAME
    _check_place(data_dir, path)
    _check_end(path)
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _check_format(connection, path)
        _prepare(connection)
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        raise WeaveError(explain(error, path)) from error
    except WeaveError:
        if connection is not None:
            connection.close()
        raise
    return Store(connection, path)


def _check_place(data_dir: Path, path: Path) -> None:
    """The directory is made 0700; an existing one must be ours and closed to others, since it holds a private key."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = data_dir.stat()
        if found.st_uid != os.geteuid():
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"the data directory {data_dir} must belong to uid {os.geteuid()}, who runs the daemon",
                    f"it belongs to uid {found.st_uid}",
                    f"chown -R {os.geteuid()} {data_dir}, or choose another one with --data-dir",
                )
            )
        if found.st_mode & 0o077:
            data_dir.chmod(0o700)
        if path.exists() and path.stat().st_uid != os.geteuid():
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"the store {path} must belong to uid {os.geteuid()}, who runs the daemon",
                    f"it belongs to uid {path.stat().st_uid}",
                    f"chown -R {os.geteuid()} {data_dir}",
                )
            )
        old_mask = os.umask(0o077)
        try:
            path.touch(mode=0o600)
        finally:
            os.umask(old_mask)
    except OSError as error:
        raise WeaveError(explain(error, path)) from error


def _check_end(path: Path) -> None:
    """Refuse a file that was cut within its last page, whose rows would be read with zeros at their end. Before
    anything is written: then a log that is there is what a crash left, and may hold what the file lacks.

    Source: the header in https://www.sqlite.org/fileformat.html, 1.3: page size at 16, pages at 28, which count if the
    numbers at 24 and 92 are equal."""
    log = path.with_name(f"{path.name}-wal")
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size_bytes = path.stat().st_size
        has_log = log.exists() and log.stat().st_size > 0
    except OSError as error:
        raise WeaveError(explain(error, path)) from error
    if has_log or len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        return  # nothing to go by, or no database, which SQLite finds out
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big") if header[24:28] == header[92:96] else 0
    if size_bytes < pages * page_bytes or (page_bytes and size_bytes % page_bytes):
        raise WeaveError(damaged(path, f"{size_bytes} bytes are left, which is not {pages} pages of {page_bytes}"))


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if (application, version) == (0, 0) and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        return
    if application != APPLICATION_ID:
        raise WeaveError(
            Failure(
                Code.STORE_FAILED,
                f"expected a store of weave in {path}",
                "a database of another program",
                f"move {path} away, or choose another place with --data-dir",
            )
        )
    if version > FORMAT_VERSION:
        raise WeaveError(
            Failure(
                Code.STORE_FAILED,
                f"this release reads stores up to format {FORMAT_VERSION}",
                f"{path} has format {version}, written by a newer release",
                "start the newer release again; a store is never converted back",
            )
        )


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS kv(tbl TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (tbl, key)) WITHOUT ROWID"
    )
    connection.execute("COMMIT")


def damaged(path: Path, found: str) -> Failure:
    """A store whose content cannot be trusted."""
    return Failure(
        Code.STORE_FAILED,
        f"expected to read and write the store {path}",
        f"the database is damaged ({' '.join(found.split())[:200]})",
        _RESTORE.format(path=path),
    )


_NEXT_STEPS = {
    "SQLITE_FULL": (
        "the disk is full",
        "free some space in {directory}; a running daemon then continues by itself, otherwise run this again",
    ),
    "SQLITE_NOTADB": ("the file is no database: damaged or overwritten", "{restore}"),
    "SQLITE_CORRUPT": ("the database is damaged", "{restore}"),
    "SQLITE_READONLY": ("it cannot be written", "make {directory} writable for the daemon (mount -o remount,rw)"),
    "SQLITE_CANTOPEN": ("it cannot be opened", "check permissions of {directory}"),
    "SQLITE_BUSY": ("another program has locked it", "find it with `fuser {path}`"),
    "SQLITE_IOERR": (
        "the disk reported an error",
        "look at `dmesg`; replace the disk, or choose another --data-dir",
    ),
}
_RESTORE = (
    "move {path} away and launch again: this peer then joins as a new one, and its old addresses stay with the old "
    "identity until it is removed"
)


def explain(error: Exception, path: Path) -> Failure:
    """What a person can do about a failed open, read or commit."""
    name = "SQLITE_FULL" if _is_full(error, path) else getattr(error, "sqlite_errorname", None) or ""
    found, next_step = str(error), "check {directory}"
    for prefix, (meaning, step) in _NEXT_STEPS.items():
        if name.startswith(prefix):
            found, next_step = f"{meaning} ({error})", step
            break
    texts: dict[str, object] = {"path": path, "directory": path.parent}
    texts["restore"] = _RESTORE.format(**texts)
    return Failure(
        Code.STORE_FAILED,
        f"expected to read and write the store {path}",
        found.format(**texts) if "{" in found else found,
        next_step.format(**texts),
    )


def _is_full(error: Exception, path: Path) -> bool:
    """SQLite calls it a disk error when there is no room for the index of its log, which it maps into memory."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    if not (getattr(error, "sqlite_errorname", None) or "").startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
        return False
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bfree * disk.f_frsize < _ROOM_BYTES or (disk.f_files > 0 and disk.f_ffree == 0)
