"""The lock's drivers: real files, a real web server of our own; etcd is asked in the lab, here its answers."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from weavenet.core.events import RecordOffered
from weavenet.core.limits import LOCK_RECORD_BYTES_MAX
from weavenet.runtime import recordlock
from weavenet.runtime.recordlock import LockUnusable, RecordLock, ask, forget

MANY = 16


def race(url: str) -> set[bytes]:
    """What many askers, each with a record of its own, were shown."""
    with ThreadPoolExecutor(MANY) as threads:
        return set(threads.map(lambda number: ask(url, f"record {number}".encode()), range(MANY)))


# --- file ---


def test_of_many_offers_at_once_one_wins_and_all_see_it(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/lock"
    assert ask(url, b"") == b""
    (winner,) = race(url)
    assert winner.startswith(b"record ")
    assert ask(url, b"") == winner
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]  # drafts are gone


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_without_answer(source: str, target: str) -> None:
        link(source, target)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "link", link_without_answer)
    assert ask(f"file:{tmp_path}/lock", b"mine") == b"mine"


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(LockUnusable, match="hard links"):
        ask(f"file:{tmp_path}/lock", b"mine")
    assert list(tmp_path.iterdir()) == []


def test_an_unmounted_folder_an_empty_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LockUnusable, match="mount it"):
        ask(f"file:{tmp_path}/away/lock", b"mine")
    (tmp_path / "empty").touch()
    with pytest.raises(LockUnusable, match="empty"):
        ask(f"file:{tmp_path}/empty", b"mine")
    (tmp_path / "huge").write_bytes(b"x" * (LOCK_RECORD_BYTES_MAX + 1))
    with pytest.raises(LockUnusable, match="at most"):
        ask(f"file:{tmp_path}/huge", b"mine")


def test_a_record_is_forgotten_if_it_is_the_one_meant(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/lock"
    assert ask(url, b"mine") == b"mine"
    assert forget(url, b"another") == b"mine"
    assert forget(url, b"mine") == b""
    assert forget(url, b"mine") == b""
    assert list(tmp_path.iterdir()) == []


# --- http ---


class Web(BaseHTTPRequestHandler):
    documents: ClassVar[dict[str, bytes]] = {}
    lock = threading.Lock()
    honours_condition = True
    answers: ClassVar[dict[str, int]] = {}
    """Status by method, instead of doing it."""

    def _finish(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.documents.get(self.path)
        self._finish(self.answers.get("GET", 200 if body is not None else 404), body or b"")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "PUT" in self.answers:
            self._finish(self.answers["PUT"])
            return
        with self.lock:
            if self.honours_condition and self.headers["If-None-Match"] == "*" and self.path in self.documents:
                self._finish(412)
                return
            self.documents[self.path] = body
        self._finish(201)

    def do_DELETE(self) -> None:
        self.documents.pop(self.path, None)
        self._finish(204)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 2 * MANY


@pytest.fixture
def web() -> Iterator[str]:
    Web.documents, Web.honours_condition, Web.answers = {}, True, {}
    server = Server(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/weave/lock"
    server.shutdown()
    thread.join()
    server.server_close()


def test_of_many_puts_at_once_one_wins_and_all_see_it(web: str) -> None:
    assert ask(web, b"") == b""
    (winner,) = race(web)
    assert ask(web, b"") == winner
    assert list(Web.documents) == ["/weave/lock"]  # trials are gone


def test_a_document_is_forgotten_if_it_is_the_one_meant(web: str) -> None:
    assert ask(web, b"mine") == b"mine"
    assert forget(web, b"another") == b"mine"
    assert forget(web, b"mine") == b""
    assert Web.documents == {}


def test_a_server_that_ignores_the_condition_is_refused_before_it_does_harm(web: str) -> None:
    Web.honours_condition = False
    with pytest.raises(LockUnusable, match="If-None-Match"):
        ask(web, b"mine")
    assert Web.documents == {}


@pytest.mark.parametrize(("answers", "words"), [({"PUT": 405}, "405"), ({"GET": 403}, "403"), ({"GET": 200}, "empty")])
def test_a_server_that_will_not_is_refused_with_its_status(web: str, answers: dict[str, int], words: str) -> None:
    Web.answers = answers
    with pytest.raises(LockUnusable, match=words):
        ask(web, b"mine")


def test_a_document_without_end_is_not_read_to_the_end(web: str) -> None:
    Web.documents["/weave/lock"] = b"x" * (1 << 20)
    with pytest.raises(LockUnusable, match="at most"):
        ask(web, b"")


# --- etcd's answers, as its JSON gateway gives them ---


def etcd(monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, object] | Exception) -> list[str]:
    asked: list[str] = []
    left = list(answers)

    def exchange(
        place: tuple[str, int], method: str, path: str, body: bytes, *, headers: dict[str, str], tls: bool = False
    ) -> tuple[int, bytes]:
        asked.append(f"{place[0]}:{place[1]}{path}")
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer[0], answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()

    monkeypatch.setattr(recordlock, "_exchange", exchange)
    return asked


def kvs(value: bytes) -> dict[str, Any]:
    return {"kvs": [{"key": "d2VhdmU=", "value": base64.b64encode(value).decode()}], "count": "1"}


def test_etcd_answers_won_lost_there_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    etcd(
        monkeypatch,
        (200, {"header": {}}),
        (200, kvs(b"first")),
        (200, {"header": {}, "succeeded": True, "responses": [{"response_put": {}}]}),
        (200, {"header": {}, "responses": [{"response_range": kvs(b"theirs")}]}),
    )
    url = "etcd://a/weave"
    assert ask(url, b"") == b""
    assert ask(url, b"") == b"first"
    assert ask(url, b"mine") == b"mine"
    assert ask(url, b"mine") == b"theirs"


def test_the_next_etcd_server_is_asked_when_one_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = etcd(monkeypatch, ConnectionRefusedError(), (503, b"no leader"), (200, {}))
    assert ask("etcd://a,b:1,c/k", b"") == b""
    assert asked == ["a:2379/v3/kv/range", "b:1/v3/kv/range", "c:2379/v3/kv/range"]


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"404 page not found"),
        (200, b"<html>"),
        (200, []),
        (200, {"responses": []}),
        (200, {"responses": [{"response_range": {"kvs": [{"value": "%%%"}]}}]}),
    ],
)
def test_what_is_not_etcds_answer_is_refused(monkeypatch: pytest.MonkeyPatch, answer: tuple[int, object]) -> None:
    etcd(monkeypatch, answer)
    with pytest.raises(LockUnusable, match="next:"):
        ask("etcd://a/k", b"mine")


# --- asking without holding up the event loop ---


def offered(*urls: str) -> list[RecordOffered]:
    async def run() -> list[RecordOffered]:
        answers: asyncio.Queue[RecordOffered] = asyncio.Queue()
        lock = RecordLock(answers.put_nowait)
        for url in urls:
            lock.offer(url, b"mine")
        async with asyncio.timeout(10):
            return [await answers.get() for _ in urls]

    return asyncio.run(run())


def test_each_offer_is_answered_once_with_the_record_or_a_sentence(tmp_path: Path) -> None:
    assert offered(f"file:{tmp_path}/lock") == [RecordOffered(b"mine")]
    (refused,) = offered("http://127.0.0.1:1/lock")
    assert refused.record == b""
    assert "refused" in refused.error
    assert "next:" in refused.error


def test_while_one_hangs_no_other_is_begun_and_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hangs(url: str, record: bytes) -> bytes:
        release.wait(10)
        return b"late"

    monkeypatch.setattr(recordlock, "OFFER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(recordlock, "ask", hangs)
    try:
        answers = offered("file:/a", "file:/b")
        assert all(answer.error and not answer.record for answer in answers)
    finally:
        release.set()
