"""The lock of ``--ipalloc-init lock=URL``: create a small document if it is not there, and read what is.

Every offer ends in one ``RecordOffered``: the document that the lock keeps, or a sentence. What won is always read
back, never concluded from the answer to our own create, since that answer may be lost or repeated.

- ``file:`` the record is written beside the path and linked to it: link(2) fails when the name exists, on NFS too. An
  NFS client may report a failure of a link that was made (the answer was lost and the request repeated), so the link
  count of our own file decides (open(2), O_EXCL on NFS).
- ``http(s):`` PUT with ``If-None-Match: *`` (RFC 9110, 13.1.2), then GET. A server that ignores the condition would let
  the last one win, so it is tried first with a document of our own beside the path.
- ``etcd:`` a transaction "create revision = 0 → put, else range" by the JSON gateway (etcd 3.4 API, ``/v3/kv/txn``).

Requests block (a dead NFS server for ever), so each runs in a thread of its own that is given up after OFFER_TIMEOUT_S;
while one hangs no other is begun. Daemon threads: an exiting daemon does not wait for them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import secrets
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weavenet.core.errors import Failure
from weavenet.core.events import RecordOffered
from weavenet.core.limits import LOCK_RECORD_BYTES_MAX
from weavenet.core.lockurl import LockKind, LockUrl, parse_lock_url

OFFER_TIMEOUT_S = 10.0
SERVER_TIMEOUT_S = 3.0
"""For connecting to one server, and for each of its answers."""


class LockUnusable(Exception):
    """The sentence says what was expected, found, and what to do."""


class RecordLock:
    """``post`` takes the event, in the event loop that :meth:`offer` was called in."""

    def __init__(self, post: Callable[[RecordOffered], None]) -> None:
        self._post = post
        self._thread: threading.Thread | None = None
        self._number = 0

    def offer(self, url: str, record: bytes) -> None:
        """Answered by one event. ``record`` empty: only look."""
        self._run(url, lambda: ask(url, record))

    def withdraw(self, url: str, record: bytes) -> None:
        """Answered by one event: what the lock keeps after ``record``, and nothing else, was removed from it."""
        self._run(url, lambda: forget(url, record))

    def _run(self, url: str, action: Callable[[], bytes]) -> None:
        loop = asyncio.get_running_loop()
        if self._thread is not None and self._thread.is_alive():
            sentence = f"no answer within {OFFER_TIMEOUT_S:.0f} s to an earlier request; next: look at the server"
            loop.call_soon(self._post, RecordOffered(b"", sentence))
            return
        self._number += 1
        number = self._number
        timeout = loop.call_later(OFFER_TIMEOUT_S, self._answer, number, RecordOffered(b"", _late(url)))

        def run() -> None:
            event = _answer_of(url, action)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(timeout.cancel)
                loop.call_soon_threadsafe(self._answer, number, event)

        self._thread = threading.Thread(target=run, name="lock", daemon=True)
        self._thread.start()

    def _answer(self, number: int, event: RecordOffered) -> None:
        if number == self._number:
            self._number += 1
            self._post(event)


def _late(url: str) -> str:
    return f"no answer within {OFFER_TIMEOUT_S:.0f} s; next: look at what is behind {url}"


def _answer_of(url: str, action: Callable[[], bytes]) -> RecordOffered:
    try:
        return RecordOffered(action())
    except LockUnusable as error:
        return RecordOffered(b"", str(error))
    except (OSError, ValueError, http.client.HTTPException) as error:
        found = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return RecordOffered(b"", f"expected to reach it; found: {found}; next: check that {url} works on this host")


def ask(url: str, record: bytes) -> bytes:
    """Blocks. The record that the lock keeps, empty when it has none (only when ``record`` is empty too). Raises
    LockUnusable, OSError or HTTPException."""
    parsed = parse_lock_url(url)
    if isinstance(parsed, Failure):
        raise LockUnusable(parsed.sentence())
    match parsed.kind:
        case LockKind.FILE:
            return _ask_file(parsed.path, record)
        case LockKind.HTTP | LockKind.HTTPS:
            return _ask_http(parsed, record)
        case LockKind.ETCD:
            return _ask_etcd(parsed, record)


def forget(url: str, record: bytes) -> bytes:
    """Blocks. Remove ``record`` if the lock still keeps exactly that; what it keeps then. Raises as :func:`ask`."""
    found = ask(url, b"")
    if found != record:
        return found
    parsed = parse_lock_url(url)
    assert isinstance(parsed, LockUrl)  # else asking had failed
    match parsed.kind:
        case LockKind.FILE:
            _remove_file(parsed.path, record)
        case LockKind.HTTP | LockKind.HTTPS:
            status, _ = _request(parsed, "DELETE", parsed.path, b"", {})
            if status not in {200, 202, 204, 404, 410}:
                raise LockUnusable(f"expected DELETE to remove {url}; found: HTTP status {status}; {_HTTP_STEP}")
        case LockKind.ETCD:
            key = _base64(parsed.path.encode())
            compare = {"key": key, "target": "VALUE", "result": "EQUAL", "value": _base64(record)}
            _call(parsed, "txn", {"compare": [compare], "success": [{"request_delete_range": {"key": key}}]})
    return ask(url, b"")


def _bounded(data: bytes) -> bytes:
    if len(data) > LOCK_RECORD_BYTES_MAX:
        raise LockUnusable(f"expected at most {LOCK_RECORD_BYTES_MAX} bytes; found more; next: use another URL")
    return data


# --- a file in a shared folder ---


def _ask_file(path: str, record: bytes) -> bytes:
    found = _read(path)
    if found or not record:
        return found
    folder, name = os.path.split(path)
    draft = f"{folder}/.{name}.{secrets.token_hex(8)}"
    try:
        _write_durably(draft, record)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError as error:
            if Path(draft).stat().st_nlink != 2:  # else it was made, and only the answer to the request was lost
                raise LockUnusable(
                    f"expected a file system with hard links in {folder}; found: {error.strerror}; "
                    "next: use a folder on NFS, CephFS or another POSIX file system, or lock=https:// or etcd://"
                ) from error
        _sync_folder(folder)
    finally:
        with contextlib.suppress(OSError):
            Path(draft).unlink()
    found = _read(path)
    if not found:
        raise LockUnusable(f"expected {path} to be there after it was made; found none; next: look who removes it")
    return found


def _read(path: str) -> bytes:
    """Empty when there is no such file; the folder must be there (an unmounted one would make a second lock)."""
    try:
        with open(path, "rb") as file:
            found = _bounded(file.read(LOCK_RECORD_BYTES_MAX + 1))
    except FileNotFoundError:
        if not Path(path).parent.is_dir():
            raise LockUnusable(
                f"expected the folder {Path(path).parent}; found none; next: mount it on this host"
            ) from None
        return b""
    if not found:
        raise LockUnusable(f"expected a record in {path}; found an empty file; next: remove it if nobody uses it")
    return found


def _remove_file(path: str, record: bytes) -> None:
    """By way of another name, so that a record that was put there meanwhile is not the one that goes."""
    folder, name = os.path.split(path)
    aside = Path(f"{folder}/.{name}.{secrets.token_hex(8)}")
    Path(path).rename(aside)
    if _read(str(aside)) != record:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    _sync_folder(folder)


def _write_durably(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot; they are durable by themselves or not
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- a document on a web server ---


def _ask_http(url: LockUrl, record: bytes) -> bytes:
    found = _get(url, url.path)
    if found or not record:
        return found
    _try_condition(url, record)
    status, _ = _request(url, "PUT", url.path, record, {"If-None-Match": "*", "Content-Type": "application/json"})
    if status not in {200, 201, 204, 409, 412}:
        raise LockUnusable(f"expected PUT to make {url.text}; found: HTTP status {status}; {_HTTP_STEP}")
    found = _get(url, url.path)
    if not found:
        raise LockUnusable(f"expected {url.text} to be there after PUT; found none; {_HTTP_STEP}")
    return found


_HTTP_STEP = "next: let this host GET and PUT there, or use lock=file: or etcd:"


def _try_condition(url: LockUrl, record: bytes) -> None:
    """Two documents offered at a place of our own: the second must be refused."""
    path, question, query = url.path.partition("?")
    place = f"{path}.trial-{secrets.token_hex(8)}{question}{query}"
    try:
        first, _ = _request(url, "PUT", place, record, {"If-None-Match": "*"})
        second, _ = _request(url, "PUT", place, b"second\n", {"If-None-Match": "*"})
    finally:
        with contextlib.suppress(OSError, http.client.HTTPException):
            _request(url, "DELETE", place, b"", {})
    if first not in {200, 201, 204}:
        raise LockUnusable(f"expected PUT to make {url.text}; found: HTTP status {first}; {_HTTP_STEP}")
    if second not in {409, 412}:
        raise LockUnusable(
            f"expected a server that honours If-None-Match; found: it let a document be replaced (status {second}); "
            "next: use another server, or lock=file: or etcd:"
        )


def _get(url: LockUrl, path: str) -> bytes:
    status, body = _request(url, "GET", path, b"", {})
    if status in {404, 410}:
        return b""
    if status != 200:
        raise LockUnusable(f"expected GET {url.text} to answer 200 or 404; found: HTTP status {status}; {_HTTP_STEP}")
    if not body:
        raise LockUnusable(f"expected a record at {url.text}; found an empty document; next: remove it if unused")
    return body


def _request(url: LockUrl, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    return _exchange(url.places[0], method, path, body, headers=headers, tls=url.kind is LockKind.HTTPS)


def _exchange(
    place: tuple[str, int], method: str, path: str, body: bytes, *, headers: dict[str, str], tls: bool = False
) -> tuple[int, bytes]:
    """One request on a connection of its own: (status, body)."""
    connection: http.client.HTTPConnection
    host, port = place
    if tls:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=SERVER_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=SERVER_TIMEOUT_S)
    try:
        connection.request(method, path, body or None, {"User-Agent": "weave", **headers})
        answer = connection.getresponse()
        return answer.status, _bounded(answer.read(LOCK_RECORD_BYTES_MAX + 1))
    finally:
        connection.close()


# --- a key in etcd ---


def _ask_etcd(url: LockUrl, record: bytes) -> bytes:
    key = _base64(url.path.encode())
    if not record:
        return _value(_call(url, "range", {"key": key}))
    answer = _call(
        url,
        "txn",
        {
            "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
            "success": [{"request_put": {"key": key, "value": _base64(record)}}],
            "failure": [{"request_range": {"key": key}}],
        },
    )
    if answer.get("succeeded") is True:  # left out when the key was there
        return record
    responses = answer.get("responses")
    found = _value(responses[0].get("response_range", {})) if isinstance(responses, list) and responses else b""
    if not found:
        raise LockUnusable(f"expected the key {url.path} or room for it; found: {answer}; next: look at etcd's log")
    return found


def _call(url: LockUrl, what: str, request: dict[str, Any]) -> dict[str, Any]:
    """The first server that answers counts; all of them are one store."""
    problem: Exception | None = None
    for place in url.places:
        try:
            status, body = _exchange(place, "POST", f"/v3/kv/{what}", json.dumps(request).encode(), headers={})
        except (OSError, http.client.HTTPException) as error:
            problem = error
            continue
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if status == 200 and isinstance(answer, dict):
            return answer
        problem = LockUnusable(
            f"expected etcd 3.4 or later at {place[0]}:{place[1]}; found: HTTP status {status}: {body[:200]!r}; "
            "next: check the address, and that this host may use it without a password"
        )
    raise problem or LockUnusable("expected a server to ask; found none; next: correct the URL")


def _value(answer: dict[str, Any]) -> bytes:
    kvs = answer.get("kvs")
    if not isinstance(kvs, list) or not kvs or not isinstance(kvs[0], dict):
        return b""
    try:
        return _bounded(base64.b64decode(str(kvs[0].get("value", "")), validate=True))
    except ValueError as error:
        raise LockUnusable(f"expected a value of base64; found: {error}; next: look at etcd") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
