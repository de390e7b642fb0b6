"""All connections of this peer: listening, dialling, and the bounds on strangers.

Every ``Dial`` ends in exactly one ``LinkOpened`` or ``DialFailed``, every ``Resolve`` in one ``Resolved``, every
``LinkOpened`` in one ``LinkClosed``; an inbound connection that never got that far in one ``InboundFailed``, unless it
said nothing at all (a port check) or was ourselves. Invariant: at most UNAUTHENTICATED_LINKS_MAX inbound connections,
UNAUTHENTICATED_PER_HOST_MAX of one host, have not yet sent their first message.

Does not decide whom to talk to, nor which of two links to one peer survives: the node does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine

from weavenet.core.errors import RefusalCode
from weavenet.core.events import (
    DialFailed,
    DialOutcome,
    Event,
    InboundFailed,
    LinkClosed,
    LinkOpened,
    Received,
)
from weavenet.core.limits import (
    CONNECT_TIMEOUT_S,
    UNAUTHENTICATED_LINKS_MAX,
    UNAUTHENTICATED_PER_HOST_MAX,
)
from weavenet.core.messages import Message
from weavenet.core.messages.link import Refusal
from weavenet.runtime.link import LINGER_S, Link
from weavenet.runtime.listener import Listener
from weavenet.runtime.resolver import Resolver
from weavenet.runtime.tls import Credentials, PeerIdentity, TlsTrouble
from weavenet.wire.framing import frame

DIALS_MAX = 64
"""Connection attempts at one time; further ones wait their turn."""

_log = logging.getLogger("weave.links")


class Links:
    """``post`` takes the events. Call :meth:`listen` once."""

    def __init__(self, credentials: Credentials, *, host: str, port: int, post: Callable[[Event], None]) -> None:
        self._credentials, self._host, self._port, self._post = credentials, host, port, post
        self._links: dict[int, Link] = {}
        self._strangers: dict[int, Link] = {}  # inbound, before their first message, oldest first
        self._sockets: set[Link] = set()  # everything with an open socket, lingering ones included
        self._dialling: set[int] = set()  # unanswered
        self._dirty: list[Link] = []
        self._number = 0
        self._paused = False
        self._listener: Listener | None = None
        self._resolver = Resolver(port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._dials = asyncio.Semaphore(DIALS_MAX)
        self._last_sent: tuple[Message, bytes] | None = None
        self._all_gone = asyncio.Event()

    @property
    def port(self) -> int:
        """The port in use, also when 0 was asked for."""
        return self._listener.port if self._listener is not None else self._port

    @property
    def open_sockets(self) -> int:
        return len(self._sockets)

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    def listen(self) -> None:
        """Raises WeaveError when the port cannot be had."""
        self._listener = Listener(self._host, self._port, self._accepted)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self, sentence: str) -> None:
        """Stop listening, give every link LINGER_S to take its last bytes, drop the rest."""
        self._dialling.clear()
        self.stop_listening()
        for task in list(self._tasks):
            task.cancel()
        goodbye = frame(Refusal(RefusalCode.STOPPING, sentence))
        for link in list(self._sockets):
            link.send(goodbye)
            link.close(RefusalCode.STOPPING, sentence)
        if self._sockets:
            self._all_gone.clear()
            try:
                async with asyncio.timeout(LINGER_S / 2):
                    await self._all_gone.wait()
            except TimeoutError:
                for link in list(self._sockets):
                    link.abort(RefusalCode.STOPPING, sentence)
        self._resolver.close()

    # --- what the executor asks for ---

    def send(self, number: int, message: Message) -> None:
        link = self._links.get(number)
        if link is None:
            return  # closed meanwhile; the node hears or has heard so
        if self._last_sent is None or self._last_sent[0] is not message:
            self._last_sent = (message, frame(message))  # a broadcast is encoded once
        link.send(self._last_sent[1])

    def close_link(self, number: int, code: RefusalCode, sentence: str) -> None:
        link = self._links.get(number)
        if link is not None:
            link.close(code, sentence)

    def resolve(self, target: str) -> None:
        self._spawn(self._resolve(target))

    def dial(self, dial: int, host: str, port: int) -> None:
        self._dialling.add(dial)
        self._spawn(self._dial(dial, host, port))

    def pause_reading(self, paused: bool) -> None:
        self._paused = paused
        for link in self._links.values():
            link.pause_reading(paused)

    # --- what links report ---

    def opened(self, link: Link, identity: PeerIdentity) -> None:
        if identity.peer == self._credentials.peer:
            link.close(RefusalCode.SELF, "this is ourselves")
            return
        if link.dial is not None:
            self._dialling.discard(link.dial)
        link.announced = True
        self._links[link.number] = link
        if self._paused:
            link.pause_reading(True)
        self._post(
            LinkOpened(
                link.number, link.dial, identity.peer, identity.name, link.host, link.port, identity.password_line
            )
        )

    def up(self, link: Link) -> None:
        self._strangers.pop(link.number, None)

    def received(self, link: Link, message: Message) -> None:
        self._post(Received(link.number, message))

    def closed(self, link: Link, code: RefusalCode | None, sentence: str) -> None:
        self._links.pop(link.number, None)
        self._strangers.pop(link.number, None)
        if link.announced:
            self._post(LinkClosed(link.number, code, sentence))
        elif link.dial is not None:
            self._dial_failed(link.dial, _outcome(link, code), sentence)
        elif code in (RefusalCode.SELF, RefusalCode.STOPPING) or (code is None and link.silent):
            _log.debug("connection from %s ended: %s", link.host, sentence)
        else:
            self._post(InboundFailed(link.host, link.port, code or RefusalCode.MALFORMED, sentence))

    def dirty(self, link: Link) -> None:
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.append(link)

    def gone(self, link: Link) -> None:
        self._sockets.discard(link)
        if not self._sockets:
            self._all_gone.set()

    # --- inside ---

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.flush()

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_link(self, dial: int | None) -> Link:
        self._number += 1
        return Link(self._number, dial, self._credentials, self)

    def _accepted(self, sock: socket.socket, host: str, port: int) -> None:
        of_host = sum(1 for link in self._strangers.values() if link.host == host)
        if of_host >= UNAUTHENTICATED_PER_HOST_MAX:
            sock.close()
            sentence = f"more than {UNAUTHENTICATED_PER_HOST_MAX} unfinished connections from one host"
            self._post(InboundFailed(host, port, RefusalCode.TOO_MANY, sentence))
            return
        if len(self._strangers) >= UNAUTHENTICATED_LINKS_MAX:
            oldest = next(iter(self._strangers.values()))
            oldest.abort(RefusalCode.TOO_MANY, f"more than {UNAUTHENTICATED_LINKS_MAX} unfinished connections")
        link = self._new_link(None)
        link.host, link.port = host, port
        self._strangers[link.number] = link
        self._spawn(self._take(sock, link))

    async def _take(self, sock: socket.socket, link: Link) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._registered(link), sock)
        except OSError as error:
            sock.close()
            link.abort(None, f"connection lost: {error}")

    async def _resolve(self, target: str) -> None:
        self._post(await self._resolver.resolve(target))

    async def _dial(self, dial: int, host: str, port: int) -> None:
        async with self._dials:
            try:
                await self._connect(dial, host, port)
            except TimeoutError:
                sentence = f"no answer from {host} port {port} within {CONNECT_TIMEOUT_S:.0f} s"
                self._dial_failed(dial, DialOutcome.TIMEOUT, sentence)
            except (OSError, ValueError, OverflowError) as error:
                self._dial_failed(dial, DialOutcome.UNREACHABLE, f"{host} port {port}: {_reason(error)}")

    def _dial_failed(self, dial: int, outcome: DialOutcome, sentence: str) -> None:
        """Answer once: a timeout may hit just when the connection was made, and both would report."""
        if dial in self._dialling:
            self._dialling.discard(dial)
            self._post(DialFailed(dial, outcome, sentence))

    async def _connect(self, dial: int, host: str, port: int) -> None:
        link = self._new_link(dial)
        same_family = bool(self._host) and (":" in self._host) == (":" in host)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: self._registered(link), host, port, local_addr=(self._host, 0) if same_family else None
            )

    def _registered(self, link: Link) -> Link:
        self._sockets.add(link)
        return link


def _outcome(link: Link, code: RefusalCode | None) -> DialOutcome:
    if code is RefusalCode.SELF:
        return DialOutcome.SELF
    if link.timed_out:
        return DialOutcome.TIMEOUT
    if link.tls_trouble is TlsTrouble.PASSWORD:
        return DialOutcome.PASSWORD
    return DialOutcome.TLS if link.tls_trouble is not None else DialOutcome.UNREACHABLE


def _reason(error: Exception) -> str:
    """The system's words for an errno; asyncio's own text repeats the address."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)
