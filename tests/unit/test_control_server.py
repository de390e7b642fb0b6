"""The control server with a fake daemon behind real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fake_daemon import RunningDaemon, node_report, running
from weavenet.control import server
from weavenet.control.service import AttachSpec
from weavenet.core.commands import Addresses, Allocate, Connect, Done, RemovePeers
from weavenet.core.errors import Code, Failure


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(tmp_path) as started:
        yield started


class UnixHTTP(http.client.HTTPConnection):
    """A client that is not ours, to check the protocol from outside."""

    def __init__(self, path: str) -> None:
        super().__init__("weave", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def request(path: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = UnixHTTP(path)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def raw(path: str, data: bytes) -> bytes:
    """Everything the server says to ``data`` until it closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        with contextlib.suppress(OSError):  # refused before all was sent
            sock.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                received += chunk
        return received


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)


def test_socket_is_for_root_only(fake: RunningDaemon) -> None:
    mode = Path(fake.socket_path).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_allocate_answers_with_addresses(fake: RunningDaemon) -> None:
    status, body = request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c1","subnet":"10.40.0.0/16"}')
    assert (status, json.loads(body)) == (200, {"addresses": ["10.32.0.1/12"]})
    assert fake.daemon.commands == [Allocate("c1", "10.40.0.0/16")]


def test_keep_alive_serves_many_requests_on_one_connection(fake: RunningDaemon) -> None:
    connection = UnixHTTP(fake.socket_path)
    for number in range(50):
        connection.request("POST", "/v1/allocate", json.dumps({"ident": f"c{number}"}))
        assert connection.getresponse().read() == b'{"addresses":["10.32.0.1/12"]}'
    assert len(fake.daemon.commands) == 50
    connection.close()


def test_pipelined_requests_are_answered_in_order(fake: RunningDaemon) -> None:
    one = b"POST /v1/claim HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n%s\r\n%s"
    bodies = [json.dumps({"ident": "c", "address": f"10.32.0.{n}/12"}).encode() for n in range(1, 6)]
    data = b"".join(one % (len(body), b"Connection: close\r\n" if body is bodies[-1] else b"", body) for body in bodies)
    answers = raw(fake.socket_path, data)
    found = [answers.index(f"10.32.0.{n}/12".encode()) for n in range(1, 6)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/allocate", b"{}", ["ident"]),
        ("/v1/allocate", b'{"ident": 5}', ["$.ident", "str"]),
        ("/v1/allocate", b'{"ident": "c", "sunbet": "x"}', ["sunbet"]),
        ("/v1/allocate", b"[]", ["object"]),
        ("/v1/allocate", b"\xff\xfe", []),
        ("/v1/allocate", b"{", []),
        ("/v1/connect", b'{"targets": "h1"}', ["$.targets"]),
        ("/v1/connect", b'{"targets": [1]}', ["$.targets[0]"]),
        ("/v1/consense", b'{"now": true}', ["now"]),
        ("/v1/rmpeer", b'{"name": "h3"}', ["name"]),
        ("/v1/rmpeer", b'{"names": "h3"}', ["$.names"]),
        ("/v1/rmpeer", b'{"names": ["h3"], "force": 1}', ["$.force"]),
        ("/v1/rmpeer", b'{"all_unreachable": true, "older_than_s": -1}', ["$.older_than_s"]),
        ("/v1/attach", b'{"container": "netns:x", "nds": true}', ["nds"]),
    ],
)
def test_wrong_bodies_are_refused_with_the_key(fake: RunningDaemon, path: str, body: bytes, words: list[str]) -> None:
    status, answer = request(fake.socket_path, "POST", path, body)
    failure = json.loads(answer)
    assert status == 400
    assert failure["code"] == "invalid"
    assert all(word in failure["found"] for word in words), failure
    assert fake.daemon.commands == []


def test_oversized_list_is_refused(fake: RunningDaemon) -> None:
    body = json.dumps({"targets": ["h"] * 1025}).encode()
    status, answer = request(fake.socket_path, "POST", "/v1/connect", body)
    assert status == 400
    assert b"1024" in answer


def test_body_over_the_bound_is_refused(fake: RunningDaemon) -> None:
    size = server.BODY_BYTES_MAX + 1
    head = b"POST /v1/connect HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % size
    assert raw(fake.socket_path, head + b" " * size).startswith(b"HTTP/1.1 413 ")


def test_header_over_the_bound_is_refused(fake: RunningDaemon) -> None:
    answer = raw(fake.socket_path, b"GET /v1/ping HTTP/1.1\r\nX: " + b"a" * (server.HEADER_BYTES_MAX + 65536))
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("last", [b"0\r\nX: ", b"0;x=", b"1\r\na\r\n1;x="], ids=["trailer", "extension", "between"])
def test_what_is_no_body_behind_the_head_is_bounded(fake: RunningDaemon, last: bytes) -> None:
    head = b"POST /v1/connect HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(fake.socket_path)
        with contextlib.suppress(OSError):
            sock.sendall(head + last)
            for _ in range(64):
                sock.sendall(bytes([ord("a")]) * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100).startswith(b"HTTP/1.1 431 ")


def test_chunks_of_all_sizes_make_a_body(fake: RunningDaemon) -> None:
    body = json.dumps({"targets": ["h" * 200] * 100}).encode()
    sizes = [1, 7, 300, 5000, len(body)]
    data = b"POST /v1/connect HTTP/1.1\r\nHost: w\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in sizes:
        part, body = body[:size], body[size:]
        data += b"%x;name=value\r\n%s\r\n" % (len(part), part) if part else b""
    data += b"0\r\nX-Trailer: none\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(fake.socket_path)
        for at in range(0, len(data), 11):
            sock.sendall(data[at : at + 11])
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    assert fake.daemon.commands == [Connect(("h" * 200,) * 100)]


def test_garbage_is_refused_and_closed(fake: RunningDaemon) -> None:
    assert raw(fake.socket_path, b"\x16\x03\x01 garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_unknown_path_and_method(fake: RunningDaemon) -> None:
    status, body = request(fake.socket_path, "GET", "/v1/nothing")
    assert status == 404
    assert b"/v1/allocate" in body
    status, body = request(fake.socket_path, "GET", "/v1/allocate")
    assert status == 405
    assert b"POST" in body


@pytest.mark.parametrize(
    ("code", "status"),
    [(Code.NOT_FOUND, 404), (Code.IPAM_OFF, 404), (Code.CONFLICT, 409), (Code.BUSY, 503), (Code.STORE_FAILED, 500)],
)
def test_failures_have_a_status_and_keep_their_words(fake: RunningDaemon, code: Code, status: int) -> None:
    fake.daemon.answers[Allocate] = Failure(code, "expected this", "that", "do it")
    found, body = request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c"}')
    assert found == status
    assert json.loads(body) == {"code": code, "expected": "expected this", "found": "that", "next_step": "do it"}


def test_every_code_has_a_status(fake: RunningDaemon) -> None:
    for code in Code:
        fake.daemon.answers[Allocate] = Failure(code, "x")
        status, _ = request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c"}')
        assert status >= 400
        assert status != 500 or code in {Code.STORE_FAILED, Code.HOST, Code.INTERNAL}


def test_client_that_goes_away_cancels_its_command(fake: RunningDaemon) -> None:
    fake.daemon.hold.add("c1")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(fake.socket_path)
        sock.sendall(b'POST /v1/allocate HTTP/1.1\r\nHost: w\r\nContent-Length: 14\r\n\r\n{"ident":"c1"}')
        eventually(lambda: fake.daemon.commands)
        assert not fake.daemon.cancelled
    eventually(lambda: fake.daemon.cancelled == [Allocate("c1")])


def test_what_a_command_gives_back_is_waited_for_at_the_end(tmp_path: Path) -> None:
    seen: list[str] = []

    async def attach(spec: AttachSpec) -> Addresses:
        seen.append("taken")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            seen.append("given back")
        raise AssertionError

    body = b'{"container": "netns:x"}'
    with socket.socket(socket.AF_UNIX) as sock:
        with running(tmp_path) as fake:
            fake.daemon.attach = attach  # type: ignore[method-assign]
            sock.connect(fake.socket_path)
            sock.sendall(b"POST /v1/attach HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            eventually(lambda: seen)
        assert seen == ["taken", "given back"]


def test_a_waiting_client_does_not_hold_up_others(fake: RunningDaemon) -> None:
    fake.daemon.hold.add("c1")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(fake.socket_path)
        sock.sendall(b'POST /v1/allocate HTTP/1.1\r\nHost: w\r\nContent-Length: 14\r\n\r\n{"ident":"c1"}')
        eventually(lambda: fake.daemon.commands)
        assert request(fake.socket_path, "GET", "/v1/ping")[0] == 200


def test_those_who_wait_for_addresses_leave_room_for_questions(
    fake: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WAITERS_MAX", 2)
    fake.daemon.hold |= {"c1", "c2"}
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for sock, ident in ((first, b"c1"), (second, b"c2")):
            sock.connect(fake.socket_path)
            body = b'{"ident":"%s"}' % ident
            sock.sendall(b"POST /v1/allocate HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        eventually(lambda: len(fake.daemon.commands) == 2)
        status, body = request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c3"}')
        assert status == 503 and b"2 others wait for an address" in body
        assert request(fake.socket_path, "GET", "/v1/ping")[0] == 200
    eventually(lambda: request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c3"}')[0] == 200)


def test_slow_loris_is_closed(fake: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.05)
    assert raw(fake.socket_path, b"GET /v1/ping HTTP/1.1\r\nHo").startswith(b"HTTP/1.1 408 ")


def test_silent_and_idle_connections_are_closed(fake: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.05)
    assert raw(fake.socket_path, b"") == b""
    assert raw(fake.socket_path, b"GET /v1/ping HTTP/1.1\r\nHost: w\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_connections_are_bounded(fake: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(fake.socket_path)
        second.connect(fake.socket_path)
        assert raw(fake.socket_path, b"").startswith(b"HTTP/1.1 503 ")
    eventually(lambda: request(fake.socket_path, "GET", "/v1/ping")[0] == 200)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_refused_even_when_the_mode_permits(fake: RunningDaemon) -> None:
    folder = Path(fake.socket_path).parent
    folder.chmod(0o755)
    Path(fake.socket_path).chmod(0o666)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(folder)  # a relative path needs no search of the folders above, which are closed to others
            os.setresuid(65534, 65534, 65534)
            answer = raw("control.sock", b"GET /v1/ping HTTP/1.1\r\nHost: w\r\n\r\n")
            code = 0 if answer.startswith(b"HTTP/1.1 403 ") else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_stale_socket_is_replaced_and_a_live_one_is_not(fake: RunningDaemon, tmp_path: Path) -> None:
    stale = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(stale)
    server.unix_socket(stale).close()
    with pytest.raises(server.WeaveError, match="running daemon"):
        server.unix_socket(fake.socket_path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "weave.conf"
    file.write_text("port = 7000\n")
    with pytest.raises(server.WeaveError, match="another file"):
        server.unix_socket(str(file))
    assert file.read_text() == "port = 7000\n"


def test_unexpected_error_is_logged_and_answered(fake: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    def explode() -> None:
        raise RuntimeError("boom")

    fake.daemon.request_stop = explode  # type: ignore[method-assign]
    status, body = request(fake.socket_path, "POST", "/v1/stop", b"{}")
    assert status == 500
    assert b"boom" not in body
    assert "boom" in caplog.text


def test_a_command_answered_with_the_wrong_thing_is_an_error_of_ours(
    fake: RunningDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    fake.daemon.answers[Allocate] = Done("not addresses")
    assert request(fake.socket_path, "POST", "/v1/allocate", b'{"ident":"c"}')[0] == 500
    assert "Done" in caplog.text
    assert request(fake.socket_path, "GET", "/v1/ping")[0] == 200


def test_what_is_pipelined_behind_a_waiting_request_is_bounded(
    fake: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PIPELINED_BYTES_MAX", 1000)
    fake.daemon.hold.add("c1")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(fake.socket_path)
        sock.sendall(b'POST /v1/allocate HTTP/1.1\r\nHost: w\r\nContent-Length: 14\r\n\r\n{"ident":"c1"}')
        eventually(lambda: fake.daemon.commands)
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: w\r\n\r\n" * 100)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    eventually(lambda: fake.daemon.cancelled == [Allocate("c1")])


def test_answers_wait_for_a_client_that_does_not_read(fake: RunningDaemon) -> None:
    number = 2000
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(fake.socket_path)
        sock.sendall(b"GET /v1/report HTTP/1.1\r\nHost: w\r\n\r\n" * number)
        eventually(lambda: fake.daemon.commands)
        counts = [-1, len(fake.daemon.commands)]
        while counts[-1] != counts[-2]:
            time.sleep(0.1)
            counts.append(len(fake.daemon.commands))
        assert counts[-1] < number / 2  # what the sockets hold, and little more
        while len(fake.daemon.commands) < number:
            assert sock.recv(1 << 20)


@pytest.mark.parametrize("target", [b"//[?x", b"http://[x/%41"])
def test_a_target_that_is_no_address_is_answered(fake: RunningDaemon, target: bytes) -> None:
    ping = b"GET /v1/ping HTTP/1.1\r\nHost: w\r\n\r\n"
    last = b"GET " + target + b" HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n"
    assert raw(fake.socket_path, last).startswith(b"HTTP/1.1 404 ")
    assert b"HTTP/1.1 404 " in raw(fake.socket_path, ping + last)


def test_stop(fake: RunningDaemon) -> None:
    assert request(fake.socket_path, "POST", "/v1/stop", b"{}")[0] == 200
    assert fake.daemon.stopped


def test_connect_passes_targets_on(fake: RunningDaemon) -> None:
    request(fake.socket_path, "POST", "/v1/connect", b'{"targets":["h1","h2:7"],"replace":true}')
    assert fake.daemon.commands == [Connect(("h1", "h2:7"), True)]


def test_rmpeer_passes_everything_on(fake: RunningDaemon) -> None:
    body = {"names": ["h3"], "force": True, "wait": False}
    assert request(fake.socket_path, "POST", "/v1/rmpeer", json.dumps(body).encode()) == (200, b'{"text":""}')
    body = {"all_unreachable": True, "older_than_s": 3600}
    assert request(fake.socket_path, "POST", "/v1/rmpeer", json.dumps(body).encode())[0] == 200
    assert fake.daemon.commands == [
        RemovePeers(("h3",), force=True, wait=False),
        RemovePeers(all_unreachable=True, older_than_s=3600.0),
    ]


def test_ps_selects_containers(fake: RunningDaemon) -> None:
    _, body = request(fake.socket_path, "GET", "/v1/ps?containers=netns%3Aweb")
    assert [row["container"] for row in json.loads(body)["attachments"]] == ["netns:web"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tcp(port: int, method: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def test_status_port_is_read_only(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, f"127.0.0.1:{port}") as fake:
        assert fake.warnings == ()
        assert "Verdict" in tcp(port, "GET", "/status")[1]
        assert tcp(port, "GET", "/status/peers")[0] == 200
        assert json.loads(tcp(port, "GET", "/report")[1])["Ready"] is True
        assert 'weave_ipam_range_addresses{range="10.32.0.0/12"} 1.048576e+06' in tcp(port, "GET", "/metrics")[1]
        assert tcp(port, "POST", "/v1/stop")[0] == 404
        assert tcp(port, "POST", "/v1/allocate")[0] == 404
        assert tcp(port, "POST", "/v1/rmpeer")[0] == 404
        assert not fake.daemon.stopped


def test_what_others_chose_commands_no_terminal(fake: RunningDaemon) -> None:
    """The command line prints what it finds in answers: progress, refusals, templates of `weave report -f`."""
    odd = "h2\n\x1b[2J\x9b31m\u202e"
    peer = msgspec.structs.replace(node_report().peers[0], nickname=odd)
    fake.daemon.report = node_report(peers=(peer,))
    fake.daemon.answers = {RemovePeers: Failure(Code.NOT_FOUND, odd, odd, odd), Connect: Done(odd)}
    report = json.loads(request(fake.socket_path, "GET", "/v1/report")[1])
    assert report["Router"]["Peers"][0]["NickName"] == "h2\ufffd\ufffd[2J\ufffd31m\ufffd"
    failure = json.loads(request(fake.socket_path, "POST", "/v1/rmpeer", b'{"names":["h2"]}')[1])
    assert all(failure[key].isprintable() for key in ("expected", "found", "next_step"))
    done = json.loads(request(fake.socket_path, "POST", "/v1/connect", b'{"targets":["h2"]}')[1])
    assert done["text"].replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Host: 127.0.0.1:6782", 200),
        (b"Host: LOCALHOST", 200),
        (b"Host: localhost:6782", 200),
        (b"Host: [::1]:6782", 200),
        (b"Host: [::1]", 200),
        (b"X: y", 200),
        (b"Host: rebound.example:6782", 403),
        (b"hOST: rebound.example", 403),
        (b"Host: localhost.example", 403),
        (b"Host: localhost:6782:x", 403),
        (b"Host: rebound.example\r\nHost: 127.0.0.1", 403),
    ],
)
def test_a_web_page_whose_name_means_this_host_reads_nothing(tmp_path: Path, header: bytes, status: int) -> None:
    port = free_port()
    with running(tmp_path, f"127.0.0.1:{port}"), socket.create_connection(("127.0.0.1", port), 10) as sock:
        version = b"1.0" if header == b"X: y" else b"1.1"
        sock.sendall(b"GET /report HTTP/%s\r\n%s\r\nConnection: close\r\n\r\n" % (version, header))
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (b"Router" in answer) is (status == 200)


def test_a_daemon_that_does_not_serve_still_has_a_verdict_and_metrics(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, f"127.0.0.1:{port}") as fake:
        failure = Failure(
            Code.STORE_FAILED, "expected to write", "the disk is full; not serving since noon", "free some"
        )
        fake.daemon.report = failure  # type: ignore[assignment]
        status, text = tcp(port, "GET", "/status")
        assert status == 500
        assert "1 thing needs attention" in text and "not serving since noon\n" in text and "next: free some\n" in text
        status, text = tcp(port, "GET", "/metrics")
        assert status == 200 and "weave_serving 0.0" in text
        assert json.loads(request(fake.socket_path, "GET", "/v1/status")[1])["next_step"] == "free some"


def test_taken_status_port_is_a_warning(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}") as fake:
            assert "--status-addr" in fake.warnings[0]
            assert request(fake.socket_path, "GET", "/v1/ping")[0] == 200


def test_many_clients_at_once(fake: RunningDaemon) -> None:
    failures: list[object] = []

    def work() -> None:
        connection = UnixHTTP(fake.socket_path)
        for _ in range(20):
            connection.request("GET", "/v1/ping")
            answer = json.loads(connection.getresponse().read())
            if answer["name"] != fake.daemon.identity.name:
                failures.append(answer)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
