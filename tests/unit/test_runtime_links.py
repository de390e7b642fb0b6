"""Links on loopback: who is accepted, what each side is told, and that strangers cost a bounded amount."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from weavenet.core import limits
from weavenet.core.errors import RefusalCode, WeaveError
from weavenet.core.events import (
    DialFailed,
    DialOutcome,
    Event,
    InboundFailed,
    LinkClosed,
    LinkOpened,
    Received,
    Resolved,
)
from weavenet.core.messages import Message, Prune
from weavenet.core.messages.link import Hello, Refusal
from weavenet.core.messages.unicast import Routed
from weavenet.core.types import PeerId
from weavenet.runtime import issuing, link, links, listener
from weavenet.runtime.certificates import Issued, Order, issue
from weavenet.runtime.links import Links
from weavenet.runtime.listener import AcceptBucket, listening_sockets
from weavenet.runtime.resolver import Resolver, split_target
from weavenet.runtime.tls import Credentials, PeerIdentity, TlsChannel, TlsFailure

OLD, NEW, OTHER = "the old long password", "the new long password", "somebody else's password"
E = TypeVar("E", bound=Event)


@pytest.fixture(autouse=True, scope="module")
def _one_scrypt_per_password() -> Iterator[None]:
    original = issuing.authority_seed
    issuing.authority_seed = functools.cache(original)
    yield
    issuing.authority_seed = original


@functools.cache
def issued(number: int, passwords: tuple[str, ...]) -> Issued:
    return issue(Order(bytes([number]) * 32, f"00:00:00:00:00:{number:02x}", passwords))


def credentials(number: int, *passwords: str) -> Credentials:
    return Credentials(issued(number, passwords), authenticated=bool(passwords))


def hello(peer: PeerId) -> Hello:
    return Hello(
        1, 1, (), "0", peer, "n", "n", 1, b"", (), False, False, b"", True, 0, 6783, 0, (), (0, 0), ""
    )  # fmt: skip


class Host:
    """One peer's links, with every event kept; answers an open link with a hello, like a node."""

    def __init__(self, number: int, *passwords: str) -> None:
        self.credentials = credentials(number, *passwords)
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.say_hello = True
        self.links = Links(self.credentials, host="127.0.0.1", port=0, post=self.post)
        self.links.listen()

    def post(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()
        if isinstance(event, LinkOpened) and self.say_hello:
            self.links.send(event.link, hello(self.credentials.peer))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def see(self, kind: type[E], count: int = 1) -> E:
        """The ``count``-th event of a kind, waiting for it."""
        await self.until(lambda: sum(isinstance(event, kind) for event in self.events) >= count)
        return [event for event in self.events if isinstance(event, kind)][count - 1]

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def dial(self, other: Host, dial: int = 1) -> None:
        self.links.dial(dial, "127.0.0.1", other.links.port)

    async def quiet(self) -> None:
        """Until no socket is left."""
        async with asyncio.timeout(10):
            while self.links.open_sockets or self.links.strangers:
                await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def closed(*hosts: Host) -> None:
    for host in hosts:
        await host.links.close("test over")
        await host.quiet()


MATCHING = [
    ((), (), 0, 0),
    ((OLD,), (OLD,), 1, 1),
    ((OLD, NEW), (OLD,), 1, 1),
    ((NEW, OLD), (OLD, NEW), 2, 2),
    ((NEW, OLD), (NEW,), 1, 1),
]


@pytest.mark.parametrize(("client", "server", "client_line", "server_line"), MATCHING)
def test_shared_password_opens_a_link(
    client: tuple[str, ...], server: tuple[str, ...], client_line: int, server_line: int
) -> None:
    async def test() -> None:
        a, b = Host(1, *client), Host(2, *server)
        a.dial(b)
        at_a, at_b = await a.see(LinkOpened), await b.see(LinkOpened)
        assert (at_a.peer, at_a.name, at_a.dial) == (b.credentials.peer, "00:00:00:00:00:02", 1)
        assert (at_b.peer, at_b.name, at_b.dial) == (a.credentials.peer, "00:00:00:00:00:01", None)
        assert (at_a.password_line, at_b.password_line) == (client_line, server_line)
        assert (await a.see(Received)).message == hello(b.credentials.peer)
        assert (await b.see(Received)).message == hello(a.credentials.peer)
        assert a.links.strangers == b.links.strangers == 0
        await closed(a, b)

    run(test)


@pytest.mark.parametrize(
    ("client", "server"),
    [((OLD,), (OTHER,)), ((OLD,), ()), ((), (OLD,)), ((OLD, NEW), (OTHER,)), ((OTHER,), (OLD, NEW))],
)
def test_no_shared_password_is_said_on_both_sides(client: tuple[str, ...], server: tuple[str, ...]) -> None:
    async def test() -> None:
        a, b = Host(1, *client), Host(2, *server)
        a.dial(b)
        failed, refused = await a.see(DialFailed), await b.see(InboundFailed)
        assert (failed.dial, failed.outcome) == (1, DialOutcome.PASSWORD)
        assert refused.code is RefusalCode.PASSWORD
        assert "--password" in failed.sentence
        assert "--password" in refused.sentence
        await closed(a, b)
        assert not a.count(LinkOpened)
        assert not b.count(LinkOpened)

    run(test)


def test_client_that_only_the_server_refuses_learns_it_on_its_first_read() -> None:
    """The client accepts the server's leaf, the server not the client's: a rotation done in the wrong order."""

    async def test() -> None:
        a, b = Host(1, OLD, NEW), Host(2, NEW)
        a.dial(b)
        assert (await b.see(InboundFailed)).code is RefusalCode.PASSWORD
        await a.until(lambda: bool(a.count(LinkClosed) or a.count(DialFailed)))
        told = a.events[-1]
        assert isinstance(told, LinkClosed | DialFailed)
        assert (told.code if isinstance(told, LinkClosed) else told.outcome) == "password"
        assert "--password" in told.sentence
        await closed(a, b)

    run(test)


def test_ourselves() -> None:
    async def test() -> None:
        a = Host(1)
        a.dial(a)
        assert (await a.see(DialFailed)).outcome is DialOutcome.SELF
        await closed(a)
        assert a.count(LinkOpened) == a.count(InboundFailed) == 0

    run(test)


def test_a_dial_to_what_is_no_port_ends_like_any_other() -> None:
    async def test() -> None:
        a = Host(1)
        for dial, (host, port) in enumerate((("127.0.0.1", 70_000), ("::1", 1 << 63), ("127.0.0.1", -1)), 5):
            a.links.dial(dial, host, port)
            failed = await a.see(DialFailed)
            assert (failed.dial, failed.outcome) == (dial, DialOutcome.UNREACHABLE)
            a.events.clear()
        await closed(a)

    run(test)


def test_nobody_listens() -> None:
    async def test() -> None:
        a = Host(1)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            a.links.dial(5, "127.0.0.1", taken.getsockname()[1])
            failed = await a.see(DialFailed)
        assert (failed.dial, failed.outcome) == (5, DialOutcome.UNREACHABLE)
        assert "refused" in failed.sentence
        await closed(a)

    run(test)


def test_dialling_something_that_is_no_weave() -> None:
    async def test() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        a = Host(1)
        a.links.dial(1, "127.0.0.1", server.sockets[0].getsockname()[1])
        assert (await a.see(DialFailed)).outcome is DialOutcome.TLS
        await closed(a)
        server.close()

    run(test)


def test_a_peer_that_never_answers_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(link, "HANDSHAKE_TIMEOUT_S", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            a = Host(1)
            a.links.dial(1, "127.0.0.1", mute.getsockname()[1])
            assert (await a.see(DialFailed)).outcome is DialOutcome.TIMEOUT
            await closed(a)

    run(test)


async def say(host: Host, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.links.port)
    writer.write(data)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"SSH-2.0-x\r\n"])
def test_first_byte_of_another_protocol(data: bytes) -> None:
    async def test() -> None:
        a = Host(1)
        reader, writer = await say(a, data)
        assert await ended(reader) == b""
        writer.close()
        failed = await a.see(InboundFailed)
        assert (failed.host, failed.code) == ("127.0.0.1", RefusalCode.MALFORMED)
        await closed(a)

    run(test)


@pytest.mark.parametrize(
    "data", [b"\x16" + b"\xff" * 200, b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + bytes(70_000)]
)
def test_garbage_after_a_right_first_byte(data: bytes) -> None:
    async def test() -> None:
        a = Host(1)
        reader, writer = await say(a, data)
        await ended(reader)
        writer.close()
        assert (await a.see(InboundFailed)).code is RefusalCode.MALFORMED
        await closed(a)

    run(test)


def test_a_port_check_is_not_worth_a_report() -> None:
    async def test() -> None:
        a = Host(1)
        _, writer = await say(a, b"")
        writer.close()
        await a.quiet()
        assert a.events == []
        await closed(a)

    run(test)


def test_slow_loris(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(link, "HANDSHAKE_TIMEOUT_S", 0.15)
        monkeypatch.setattr(link, "LINGER_S", 0.1)
        a = Host(1)
        mute = await say(a, b"")
        drip = await say(a, b"\x16\x03\x01\x02")
        await a.see(InboundFailed, 2)
        assert {e.code for e in a.events if isinstance(e, InboundFailed)} == {RefusalCode.SLOW}
        await a.quiet()
        for _, writer in (mute, drip):
            writer.close()
        await closed(a)

    run(test)


def test_tls_without_a_hello_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(link, "HANDSHAKE_TIMEOUT_S", 0.3)
        a, b = Host(1), Host(2)
        a.say_hello = b.say_hello = False
        a.dial(b)
        assert (await a.see(LinkClosed)).code in (RefusalCode.SLOW, None)
        assert (await b.see(LinkClosed)).code in (RefusalCode.SLOW, None)
        await closed(a, b)

    run(test)


def test_connections_of_one_host_are_bounded() -> None:
    async def test() -> None:
        a = Host(1)
        connections = [await say(a, b"\x16") for _ in range(limits.UNAUTHENTICATED_PER_HOST_MAX + 4)]
        assert (await a.see(InboundFailed, 4)).code is RefusalCode.TOO_MANY
        assert a.links.strangers == limits.UNAUTHENTICATED_PER_HOST_MAX
        for _, writer in connections:
            writer.close()
        await a.quiet()
        await closed(a)

    run(test)


def test_the_oldest_stranger_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(links, "UNAUTHENTICATED_LINKS_MAX", 5)
        a = Host(1)
        connections = [await say(a, b"\x16") for _ in range(8)]
        await a.see(InboundFailed, 3)
        assert a.links.strangers <= 5
        await ended(connections[0][0])
        b = Host(2)
        b.dial(a)
        await b.see(LinkOpened)
        for _, writer in connections:
            writer.close()
        await closed(a, b)

    run(test)


def test_the_accept_rate_is_bounded() -> None:
    bucket = AcceptBucket(0.0)
    assert sum(bucket.take(0.0) for _ in range(1000)) == limits.ACCEPT_BURST
    assert sum(bucket.take(1.0) for _ in range(1000)) == limits.ACCEPTS_PER_S
    assert bucket.take(1.5)


def test_connections_beyond_the_rate_wait_and_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(listener, "ACCEPT_BURST", 1)
        a, b = Host(1), Host(2)
        for dial in range(1, 6):
            b.dial(a, dial)
        await b.see(LinkOpened, 5)
        await closed(a, b)

    run(test)


class Stranger:
    """A raw TLS client with valid certificates that may send anything."""

    def __init__(self, channel: TlsChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.channel, self.reader, self.writer = channel, reader, writer

    @classmethod
    async def connect(cls, host: Host, *passwords: str) -> Stranger:
        channel = TlsChannel(credentials(9, *passwords), server_side=False)
        reader, writer = await asyncio.open_connection("127.0.0.1", host.links.port)
        while channel.handshake() is None:
            writer.write(channel.outgoing())
            channel.feed(await reader.read(65_536))
        return cls(channel, reader, writer)

    def send(self, data: bytes) -> None:
        self.channel.write(data)
        self.writer.write(self.channel.outgoing())


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", limits.HELLO_BYTES_MAX + 1),
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"abc",
        links.frame(Prune()),
        bytes(300_000),
    ],
    ids=["long hello", "4 GB", "empty", "garbage", "no hello first", "zeros"],
)
def test_member_that_sends_nonsense_is_refused(data: bytes) -> None:
    async def test() -> None:
        a = Host(1)
        stranger = await Stranger.connect(a)
        stranger.send(data)
        assert (await a.see(LinkClosed)).code is RefusalCode.MALFORMED
        await ended(stranger.reader)
        stranger.writer.close()
        await closed(a)

    run(test)


def test_the_last_message_before_a_close_arrives() -> None:
    async def test() -> None:
        a, b = Host(1), Host(2)
        a.dial(b)
        at_b = await b.see(LinkOpened)
        await b.see(Received)
        big = Routed(PeerId(bytes(16)), PeerId(bytes(16)), 1, bytes(150_000))
        messages: list[Message] = [big] * 10
        for message in messages:
            b.links.send(at_b.link, message)
        b.links.send(at_b.link, Refusal(RefusalCode.CLUSTER, "another cluster"))
        b.links.close_link(at_b.link, RefusalCode.CLUSTER, "another cluster")
        assert (await b.see(LinkClosed)).code is RefusalCode.CLUSTER
        assert (await a.see(LinkClosed)).code is None
        received = [event.message for event in a.events if isinstance(event, Received)]
        assert received[1:] == [*messages, Refusal(RefusalCode.CLUSTER, "another cluster")]
        await closed(a, b)

    run(test)


def test_a_peer_that_reads_too_slowly_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(link, "LINK_QUEUE_BYTES_MAX", 1024 * 1024)
        a, b = Host(1), Host(2)
        a.dial(b)
        at_b = await b.see(LinkOpened)
        await b.see(Received)
        a.links.pause_reading(True)
        big = Routed(PeerId(bytes(16)), PeerId(bytes(16)), 1, bytes(190_000))
        async with asyncio.timeout(10):
            while not b.count(LinkClosed):
                b.links.send(at_b.link, big)
                await asyncio.sleep(0)
        assert (await b.see(LinkClosed)).code is RefusalCode.SLOW
        await closed(a, b)

    run(test)


def test_paused_links_deliver_nothing_until_resumed() -> None:
    async def test() -> None:
        a, b = Host(1), Host(2)
        a.dial(b)
        at_b = await b.see(LinkOpened)
        await a.see(Received)
        a.links.pause_reading(True)
        b.links.send(at_b.link, Prune())
        await asyncio.sleep(0.05)
        assert a.count(Received) == 1
        a.links.pause_reading(False)
        await a.see(Received, 2)
        await closed(a, b)

    run(test)


def test_stop_tells_the_others() -> None:
    async def test() -> None:
        a, b = Host(1), Host(2)
        a.dial(b)
        await a.see(Received)
        await b.see(Received)
        await b.links.close("the daemon stops")
        assert (await a.see(LinkClosed)).code is None
        await closed(a, b)

    run(test)


def test_certificate_that_lies_about_its_key() -> None:
    """Signed with the right password, but it names another peer's id."""
    honest, victim = issued(3, ()), issued(4, ())
    original = issuing.identity_uri
    issuing.identity_uri = lambda public_key, name: original(victim.public_key, name)
    try:
        liar = issue(Order(honest.identity_seed, "00:00:00:00:00:03", ()))
    finally:
        issuing.identity_uri = original
    client = TlsChannel(credentials(1), server_side=False)
    server = TlsChannel(Credentials(liar, authenticated=False), server_side=True)
    with pytest.raises(TlsFailure, match="does not name the owner"):
        shake(client, server)


def shake(client: TlsChannel, server: TlsChannel) -> tuple[PeerIdentity, PeerIdentity]:
    for _ in range(10):
        at_client = client.handshake()
        server.feed(client.outgoing())
        at_server = server.handshake()
        client.feed(server.outgoing())
        if at_client and at_server:
            return at_client, at_server
    raise AssertionError("no end")


def test_a_taken_port_is_explained() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WeaveError) as caught:
            listening_sockets("127.0.0.1", port)
        assert "in use" in caught.value.failure.found
        assert "ss -ltnp" in caught.value.failure.next_step
        with pytest.raises(WeaveError):
            listening_sockets("", port)


def test_a_foreign_address_is_explained() -> None:
    with pytest.raises(WeaveError) as caught:
        listening_sockets("192.0.2.1", 0)
    assert "--host" in caught.value.failure.next_step


def test_every_address_of_both_families() -> None:
    sockets = listening_sockets("", 0)
    try:
        assert len({s.getsockname()[1] for s in sockets}) == 1
        for sock in sockets:
            host = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            socket.create_connection((host, sock.getsockname()[1])).close()
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h1", ("h1", 6783)),
        ("h1:1234", ("h1", 1234)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("::1", ("::1", 6783)),
        ("[::1]", ("::1", 6783)),
        ("[::1]:99", ("::1", 99)),
    ],
)
def test_targets(text: str, expected: tuple[str, int]) -> None:
    assert split_target(text, 6783) == expected


@pytest.mark.parametrize("text", ["", ":1", "h:0", "h:65536", "h:x", "[::1", "[::1]x", "h:-1", "h:١"])
def test_wrong_targets(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_target(text, 6783)


def test_resolving(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        # Not the system's: a machine may have no /etc/hosts, and need not answer within the test's time.
        if host != "twice.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in ("192.0.2.1", "2001:db8::1", "192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    async def test() -> None:
        resolver = Resolver(6783)
        assert await resolver.resolve("192.0.2.7:1") == Resolved("192.0.2.7:1", (("192.0.2.7", 1),))
        found = await resolver.resolve("twice.example")
        assert found.addresses == (("192.0.2.1", 6783), ("2001:db8::1", 6783))
        missing = await resolver.resolve("no-such-host.invalid")
        assert missing.addresses == ()
        assert "no-such-host.invalid" in missing.error
        assert (await resolver.resolve("x" * 300)).error
        assert (await resolver.resolve("h:0")).error
        resolver.close()

    run(test)
