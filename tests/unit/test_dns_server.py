"""The DNS worker as a process: sockets, feed, upstreams that lie; answers judged by dnspython, and by dig."""

from __future__ import annotations

import os
import random
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rrset
import msgspec
import pytest

import dns_oracle as oracle
from dns_fuzz import storm
from dns_server import DEADLINE_S, FakeUpstream, WorkerProcess, has_address, is_root, wait_for, worker
from weavenet.dns import tcp, wire
from weavenet.dns.feed import Name, Names
from weavenet.dns.worker import Worker

NAMES = {
    "Web.weave.local.": [bytes([10, 32, 0, 1])],
    "many.weave.local.": [bytes([10, 33, 0, i]) for i in range(50)],
}
needs_root = pytest.mark.skipif(not is_root(), reason="binds port 53 on loopback addresses")


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkerProcess]:
    if not has_address(request.param):
        pytest.skip(f"this machine has no {request.param}")
    with worker(tmp_path, request.param) as started:
        started.set_names(NAMES)
        yield started


def ask(
    server: WorkerProcess, name: str, kind: str = "A", *, edns: int | None = None, stream: bool = False
) -> dns.message.Message:
    query = oracle.ask(name, kind, edns=edns)
    send = dns.query.tcp if stream else dns.query.udp
    kwargs = {} if stream else {"ignore_unexpected": True}
    answer = send(query, server.host, DEADLINE_S, server.port, **kwargs)
    return oracle.check(query, answer.to_wire(max_size=65_535))


def test_both_transports(server: WorkerProcess) -> None:
    for stream in (False, True):
        assert oracle.values(ask(server, "wEb.weave.local.", stream=stream), "A") == ["10.32.0.1"]
        assert oracle.rcode(ask(server, "nobody.weave.local.", stream=stream)) == "NXDOMAIN"
    assert len(oracle.values(ask(server, "many.weave.local.", stream=True), "A")) == 50
    assert ask(server, "many.weave.local.").flags & dns.flags.TC
    assert len(oracle.values(ask(server, "many.weave.local.", edns=1232), "A")) == 50


def test_prepared_answers_are_right_too(server: WorkerProcess) -> None:
    """The second time the same datagram comes, it is not parsed any more."""
    for _ in range(3):
        for name in ("web.weave.local.", "WEB.weave.local.", "web."):
            assert oracle.values(ask(server, name, edns=1232), "A") == ["10.32.0.1"]
    orders = {tuple(oracle.values(ask(server, "many.weave.local.", edns=4096), "A")) for _ in range(20)}
    assert len(orders) > 1
    assert server.status().local == 29


def test_changes_count_at_once(server: WorkerProcess) -> None:
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]
    server.set_names({"web.weave.local.": [bytes([10, 32, 0, 7])]}, whole=False)
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.7"]
    assert oracle.rcode(ask(server, "1.0.32.10.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    server.set_names({"web.weave.local.": []}, whole=False)
    assert oracle.rcode(ask(server, "web.weave.local.")) == "NXDOMAIN"
    assert len(oracle.values(ask(server, "many.weave.local.", edns=4096), "A")) == 50


def test_a_table_in_parts_replaces_the_old_one_as_a_whole(server: WorkerProcess) -> None:
    server.send(Names(True, False, (Name("a.weave.local.", (bytes(4),)),)))
    server.status()
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]
    assert oracle.rcode(ask(server, "a.weave.local.")) == "NXDOMAIN"
    server.send(Names(False, True, (Name("b.weave.local.", (bytes(4),)),)))
    assert server.status().names == 2
    assert oracle.rcode(ask(server, "web.weave.local.")) == "NXDOMAIN"
    assert oracle.values(ask(server, "a.weave.local."), "A") == ["0.0.0.0"]


def test_the_table_stays_while_no_daemon_is_there_and_half_of_another_is_forgotten(server: WorkerProcess) -> None:
    server.send(Names(True, False, (Name("half.weave.local.", (bytes(4),)),)))
    server.status()
    server.feed.close()
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]
    assert server.connects()
    server.configure()
    server.set_names({"db.weave.local.": [bytes([10, 32, 0, 9])]}, whole=False)
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]
    assert oracle.values(ask(server, "db.weave.local."), "A") == ["10.32.0.9"]
    assert oracle.rcode(ask(server, "half.weave.local.")) == "NXDOMAIN"


def test_the_newest_connection_is_the_daemon(server: WorkerProcess) -> None:
    with server.feed as older:
        assert server.connects()
        server.configure()
        assert older.recv(1) == b"", "closed"
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]


def test_ids_of_questions_do_not_follow_from_orders_of_addresses(tmp_path: Path) -> None:
    """Which every container sees; one that knows the id needs but the port to answer in an upstream's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "dns.sock"))
        worker = Worker(listener)
        assert isinstance(worker._forwarder._rng, random.SystemRandom)
        worker.loop.close()


def test_names_end_when_no_daemon_comes_for_long(tmp_path: Path) -> None:
    """Then they might stand for others. Whoever connects in time keeps the worker."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "dns.sock"))
        worker = Worker(listener, orphan_s=0.05)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
            daemon.connect(str(tmp_path / "dns.sock"))
            thread = threading.Thread(target=worker.run, daemon=True)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_many_questions_on_one_connection(server: WorkerProcess) -> None:
    queries = [oracle.ask("web.weave.local.", kind) for kind in ("A", "AAAA", "MX")] * 100
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect((server.host, server.port))
        data = b"".join(len(query.to_wire()).to_bytes(2, "big") + query.to_wire() for query in queries)
        for at in range(0, len(data), 777):
            sock.sendall(data[at : at + 777])
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            for query in queries:
                oracle.check(query, stream.read(int.from_bytes(stream.read(2), "big")))
            assert stream.read() == b"", "closed when everything is answered"


def test_connections_are_bounded(server: WorkerProcess) -> None:
    held = [
        socket.create_connection((server.host, server.port), DEADLINE_S)
        for _ in range(tcp.CONNECTIONS_PER_CLIENT_MAX + 20)
    ]
    assert oracle.values(ask(server, "web.weave.local.", stream=True), "A") == ["10.32.0.1"]
    assert held[0].recv(1) == b"", "the one that was silent longest made room"
    for sock in held:
        sock.close()


def test_without_descriptors_connections_wait_and_the_worker_is_idle(tmp_path: Path) -> None:
    def spent_s() -> float:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    with worker(tmp_path) as started:
        started.set_names(NAMES)
        pid = started.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(1000)) - used), limits[1]))
        before = spent_s()
        with socket.create_connection((started.host, started.port), DEADLINE_S):
            time.sleep(0.6)
            assert spent_s() - before < 0.3
            assert oracle.values(ask(started, "web.weave.local."), "A") == ["10.32.0.1"]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            assert oracle.values(ask(started, "web.weave.local.", stream=True), "A") == ["10.32.0.1"]


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff" + bytes(100), b"\0\0", b"\0\5hello", b"\0\x0c" + bytes(2) + b"\x80" + bytes(9), b"\0"],
    ids=["long", "empty", "short", "response", "half"],
)
def test_a_stream_that_is_no_query_hurts_nobody(server: WorkerProcess, data: bytes) -> None:
    with socket.create_connection((server.host, server.port), DEADLINE_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    assert oracle.values(ask(server, "web.weave.local."), "A") == ["10.32.0.1"]


@pytest.mark.parametrize(
    ("change", "rcode"),
    [
        (lambda data: data[:4] + b"\0\2" + data[6:], wire.FORMERR),
        (lambda data: data[:4] + b"\0\0" + data[6:], wire.FORMERR),
        (lambda data: data[:-1], wire.FORMERR),
        (lambda data: data + b"x", wire.FORMERR),
        (lambda data: data[:12] + b"\xc0\x0c" + data[-4:], wire.FORMERR),
        (lambda data: data[:2] + b"\x28" + data[3:], wire.NOTIMP),
        (lambda data: data[:2] + b"\x80" + data[3:], None),
        (lambda data: data[:11], None),
        (lambda data: b"", None),
    ],
)
def test_what_is_no_question_gets_formerr_or_silence(server: WorkerProcess, change, rcode: int | None) -> None:  # type: ignore[no-untyped-def]
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect((server.host, server.port))
        bad, good = oracle.ask("web.weave.local."), oracle.ask("web.weave.local.")
        sock.send(change(bad.to_wire()))
        sock.send(good.to_wire())
        answer = sock.recv(4096)
        if rcode is not None:
            assert answer[:2] == bad.id.to_bytes(2, "big")
            assert answer[3] & wire.RCODE == rcode
            answer = sock.recv(4096)
        oracle.check(good, answer)


def test_an_edns_version_to_come(server: WorkerProcess) -> None:
    query = oracle.ask("web.weave.local.", edns=1232)
    query.use_edns(3, 0, 1232)
    answer = dns.query.udp(query, server.host, DEADLINE_S, server.port)
    assert oracle.rcode(answer) == "BADVERS"
    assert answer.edns == 0


def test_datagrams_that_are_nearly_queries(tmp_path: Path) -> None:
    with worker(tmp_path) as server:
        server.set_names(NAMES)
        assert storm(server.host, server.port, 20_000, 1) == 0
        settled = server.resident_kb()
        assert storm(server.host, server.port, 30_000, 2) == 0
        assert server.resident_kb() < settled + 6_000, "prepared answers fill up to their bound, nothing else grows"
        assert server.process.poll() is None
        assert server.status().malformed > 1000


def test_memory_of_a_full_table(tmp_path: Path) -> None:
    with worker(tmp_path) as server:
        server.set_names({f"host{i}.weave.local.": [i.to_bytes(4, "big")] for i in range(1000)})
        assert server.status().names == 1000
        assert server.resident_kb() < 30_000


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")
def test_dig(server: WorkerProcess) -> None:
    def dig(*arguments: str) -> str:
        command = ["dig", f"@{server.host}", "-p", str(server.port), "+tries=1", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout

    assert dig("web.weave.local", "+short") == "10.32.0.1\n"
    assert dig("web.weave.local", "+short", "+tcp") == "10.32.0.1\n"
    assert dig("-x", "10.32.0.1", "+short") == "Web.weave.local.\n"
    assert dig("web.weave.local", "AAAA", "+short") == ""
    assert len(dig("many.weave.local", "+short").split()) == 50
    assert len(dig("many.weave.local", "+short", "+noedns").split()) == 50, "again over TCP by itself"
    assert "status: REFUSED" in dig("version.bind", "CH", "TXT")
    assert "status: NXDOMAIN" in dig("nobody.weave.local")
    assert "status: NOERROR" in dig("web.weave.local", "MX")
    assert "WARNING: Message parser" not in dig("web.weave.local", "ANY")


# --- upstreams ---


def answer_to(query: bytes, address: str = "203.0.113.9", count: int = 1) -> dns.message.Message:
    parsed = dns.message.from_wire(query)
    answer = dns.message.make_response(parsed, recursion_available=True)
    head, _, last = address.rpartition(".")
    texts = [f"{head}.{(int(last) + i) % 256}" for i in range(count)]
    answer.answer.append(dns.rrset.from_text(parsed.question[0].name, 60, "IN", "A", *texts))
    return answer


def is_probe(query: bytes) -> bool:
    return b"\4test\0" in query


@needs_root
def test_the_fastest_upstream_answers_whatever_the_others_do(tmp_path: Path) -> None:
    def silent(query: bytes, stream: bool) -> list[bytes]:
        return []

    def lying(query: bytes, stream: bool) -> list[bytes]:
        """First with another id, then about another name, then rubbish."""
        wrong = bytes([query[0] ^ 0xFF]) + answer_to(query).to_wire()[1:]
        other = answer_to(oracle.ask("evil.example.").to_wire()).to_wire()
        return [wrong, query[:2] + other[2:], query, b"", b"rubbish"]

    upstreams = [FakeUpstream("127.53.0.1", silent), FakeUpstream("127.53.0.2", lying)]
    honest = FakeUpstream("127.53.0.3", lambda query, stream: [answer_to(query).to_wire()])
    lines = "".join(f"nameserver 127.53.0.{i}\n" for i in (1, 2, 3))
    try:
        with worker(tmp_path, upstreams=lines) as server:
            for number in range(20):
                answer = ask(server, f"n{number}.example.com.", stream=bool(number % 2))
                assert oracle.values(answer, "A") == ["203.0.113.9"]
            status = server.status()
            assert status.forwarded == 20
            assert status.upstreams == ("127.53.0.1:53", "127.53.0.2:53", "127.53.0.3:53")
            assert len(set(honest.ports)) > 15, "from a new port each time"
            for _ in range(3):  # the second and third time without being parsed
                assert oracle.values(ask(server, "N3.example.com."), "A") == ["203.0.113.9"]
            assert server.status().forwarded == 20
            assert 1 <= server.status().from_cache <= 3

            def ttl() -> int:
                return ask(server, "N3.example.com.").answer[0].ttl

            before = ttl()
            wait_for(lambda: ttl() < before, "the TTL to shrink")
    finally:
        for upstream in (*upstreams, honest):
            upstream.close()


@needs_root
def test_a_truncated_answer_is_fetched_over_tcp(tmp_path: Path) -> None:
    def truncating(query: bytes, stream: bool) -> list[bytes]:
        answer = answer_to(query, "203.0.113.0", 200)
        return [answer.to_wire(max_size=65_535) if stream else answer_to_truncated(query)]

    def answer_to_truncated(query: bytes) -> bytes:
        answer = answer_to(query)
        answer.answer.clear()
        answer.flags |= dns.flags.TC
        return answer.to_wire()

    upstream = FakeUpstream("127.53.0.4", truncating)
    try:
        with worker(tmp_path, upstreams="nameserver 127.53.0.4\n") as server:
            assert len(oracle.values(ask(server, "big.example.", stream=True), "A")) == 200
            assert ask(server, "big.example.").flags & dns.flags.TC
            assert len(oracle.values(ask(server, "big.example.", edns=4096), "A")) == 200
    finally:
        upstream.close()


@needs_root
def test_nobody_there_means_servfail_at_once(tmp_path: Path) -> None:
    with worker(tmp_path, upstreams="nameserver 127.53.0.9\n") as server:
        assert oracle.rcode(ask(server, "example.com.")) == "SERVFAIL"
        assert oracle.rcode(ask(server, "example.com.", stream=True)) == "SERVFAIL"


@needs_root
def test_resolv_conf_is_read_again_and_what_leads_back_is_left_out(tmp_path: Path) -> None:
    def relay(query: bytes, stream: bool) -> list[bytes]:
        """What a local resolver does that was told to ask us."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.sendto(query, ("127.0.0.1", server.port))
            try:
                return [sock.recv(4096)]
            except OSError:
                return []

    relaying = FakeUpstream("127.53.0.5", relay)
    honest = FakeUpstream("127.53.0.6", lambda query, stream: [answer_to(query).to_wire()])
    try:
        with worker(tmp_path, upstreams="# none yet\n") as server:
            server.send(msgspec.structs.replace(server.configuration, own=("127.0.0.1",)))
            assert oracle.rcode(ask(server, "example.com.")) == "SERVFAIL"
            server.resolv_conf.write_text("nameserver 127.0.0.1\nnameserver 127.53.0.5\nnameserver 127.53.0.6\n")

            def has_both() -> bool:
                ask(server, "example.com.")
                return bool(server.status().upstreams)

            wait_for(has_both, "the new upstreams are used")
            assert "127.0.0.1:53" not in server.status().upstreams, "our own address"
            wait_for(lambda: server.status().looping == ("127.53.0.5:53",), "the loop is noticed")
            assert server.status().upstreams == ("127.53.0.6:53",)
            assert oracle.values(ask(server, "loop.example."), "A") == ["203.0.113.9"]
    finally:
        relaying.close()
        honest.close()
