"""One connection to a peer: TLS, frames, bounds, and a close that lets the last message arrive.

Invariants: the owner hears ``opened`` at most once, then messages, then ``closed`` exactly once; nothing after that.
Before the first message the other side may send PREAMBLE_BYTES_MAX in all and take HANDSHAKE_TIMEOUT_S. Unsent bytes
are bounded by LINK_QUEUE_BYTES_MAX: a peer that reads slower is dropped and resynchronises later.

Does not know what messages mean, except that the first one is a ``Hello`` or a ``Refusal``.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Protocol

from weavenet.core.errors import RefusalCode
from weavenet.core.limits import HANDSHAKE_TIMEOUT_S, LINK_QUEUE_BYTES_MAX
from weavenet.core.messages import MalformedMessage, Message
from weavenet.core.messages.link import Hello, Refusal
from weavenet.runtime.tls import Credentials, PeerIdentity, TlsChannel, TlsFailure, TlsTrouble
from weavenet.wire.framing import FrameDecoder

TLS_HANDSHAKE_RECORD = 0x16
"""First byte of every TLS connection (RFC 8446 section 5.1); keeps the port free for another protocol later."""
PREAMBLE_BYTES_MAX = 256 * 1024
"""TLS handshake and hello together; real ones take 20 kB at the very most."""
FLUSH_BYTES = 256 * 1024
"""Encrypted bytes are handed to the kernel at least this often, else once per turn of the event loop."""
LINGER_S = 2.0
"""After our last byte the other side gets this long to read it and close; closing at once may reset the connection
and destroy the refusal in flight (RFC 1122 4.2.2.13)."""


class Phase(Enum):
    CONNECTING = auto()
    HANDSHAKE = auto()
    OPENED = auto()
    UP = auto()
    CLOSING = auto()
    CLOSED = auto()


NEXT_PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.CONNECTING: frozenset({Phase.HANDSHAKE, Phase.CLOSED}),
    Phase.HANDSHAKE: frozenset({Phase.OPENED, Phase.CLOSING, Phase.CLOSED}),
    Phase.OPENED: frozenset({Phase.UP, Phase.CLOSING, Phase.CLOSED}),
    Phase.UP: frozenset({Phase.CLOSING, Phase.CLOSED}),
    Phase.CLOSING: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}

CODES = {TlsTrouble.PASSWORD: RefusalCode.PASSWORD, TlsTrouble.TLS: RefusalCode.MALFORMED}


class LinkOwner(Protocol):
    def opened(self, link: Link, identity: PeerIdentity) -> None: ...

    def up(self, link: Link) -> None:
        """The first message has come: it no longer counts as unauthenticated."""

    def received(self, link: Link, message: Message) -> None: ...

    def closed(self, link: Link, code: RefusalCode | None, sentence: str) -> None: ...

    def dirty(self, link: Link) -> None:
        """It has bytes to flush at the end of this turn of the event loop."""

    def gone(self, link: Link) -> None:
        """The socket is closed."""


class Link(asyncio.Protocol):
    """``number`` names it in events; ``dial`` is None for an inbound one."""

    def __init__(self, number: int, dial: int | None, credentials: Credentials, owner: LinkOwner) -> None:
        self.number, self.dial = number, dial
        self.phase = Phase.CONNECTING
        self.host, self.port = "", 0
        self.silent = True  # no byte has come yet
        self.announced = False  # the owner told the node about it
        self.tls_trouble: TlsTrouble | None = None
        self.timed_out = False
        self._owner = owner
        self._channel = TlsChannel(credentials, server_side=dial is None)
        self._decoder = FrameDecoder()
        self._preamble_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_dirty = False

    # --- called by the owner ---

    def send(self, data: bytes) -> None:
        """Queue one frame; dropped unless the link is open."""
        if self.phase not in (Phase.OPENED, Phase.UP):
            return
        try:
            self._channel.write(data)
        except TlsFailure as failure:
            self._fail(failure)
            return
        if self._channel.unsent_bytes > FLUSH_BYTES:
            self.flush()
        elif not self._is_dirty:
            self._is_dirty = True
            self._owner.dirty(self)

    def flush(self) -> None:
        self._is_dirty = False
        if self._transport is None or self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        data = self._channel.outgoing()
        if data:
            self._transport.write(data)
        if self._transport.get_write_buffer_size() > LINK_QUEUE_BYTES_MAX:
            self.abort(RefusalCode.SLOW, f"the peer reads too slowly: {LINK_QUEUE_BYTES_MAX} bytes wait for it")

    def close(self, code: RefusalCode | None, sentence: str) -> None:
        """Send what is queued, say goodbye, close; ``closed`` is reported at once."""
        if self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        transport = self._transport
        if transport is None:
            self.abort(code, sentence)
            return
        if self.phase in (Phase.OPENED, Phase.UP):
            self._channel.close()
        transport.write(self._channel.outgoing())
        self._enter(Phase.CLOSING)
        self._arm(LINGER_S, transport.abort)
        if transport.can_write_eof() and not transport.is_closing():
            try:
                transport.write_eof()
            except OSError:
                transport.abort()
        transport.resume_reading()
        self._owner.closed(self, code, sentence)

    def abort(self, code: RefusalCode | None, sentence: str) -> None:
        """Drop the connection with all that is queued."""
        if self.phase is Phase.CLOSED:
            return
        was_closing = self.phase is Phase.CLOSING
        self._enter(Phase.CLOSED)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not was_closing:
            self._owner.closed(self, code, sentence)

    def pause_reading(self, paused: bool) -> None:
        if self._transport is None or self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self._transport = transport
        if self.phase is Phase.CLOSED:  # made room for others before it began
            transport.abort()
            return
        address = transport.get_extra_info("peername") or ("", 0)
        self.host, self.port = str(address[0]), int(address[1])
        self._enter(Phase.HANDSHAKE)
        self._arm(HANDSHAKE_TIMEOUT_S, self._late)
        if self.dial is not None:
            self._advance()
            self.flush()

    def data_received(self, data: bytes) -> None:
        if self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        if self.silent and self.dial is None and data[0] != TLS_HANDSHAKE_RECORD:
            self.abort(RefusalCode.MALFORMED, "expected a TLS handshake, found something else: not a weave peer")
            return
        self.silent = False
        if self.phase is not Phase.UP:
            self._preamble_bytes += len(data)
            if self._preamble_bytes > PREAMBLE_BYTES_MAX:
                self.abort(RefusalCode.MALFORMED, f"more than {PREAMBLE_BYTES_MAX} bytes before the hello")
                return
        self._channel.feed(data)
        self._advance()
        self.flush()

    def eof_received(self) -> bool:
        if self.phase is Phase.HANDSHAKE:
            self.abort(None, "the other side closed the connection during the TLS handshake")
        else:
            self.close(None, "the peer closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self.phase is Phase.CLOSING:
            self._enter(Phase.CLOSED)
        else:
            self.abort(None, f"connection lost: {exc or 'closed'}")
        self._owner.gone(self)

    # --- inside ---

    def _enter(self, phase: Phase) -> None:
        if phase not in NEXT_PHASES[self.phase]:
            raise RuntimeError(f"link: {self.phase.name} cannot become {phase.name}")
        self.phase = phase

    def _arm(self, delay_s: float, action: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, action)  # type: ignore[arg-type]

    def _late(self) -> None:
        self.timed_out = True
        wanted = "the TLS handshake" if self.phase is Phase.HANDSHAKE else "a hello"
        sentence = f"expected {wanted} within {HANDSHAKE_TIMEOUT_S:.0f} s, waited in vain"
        if self.silent:
            self.abort(RefusalCode.SLOW, sentence)
        else:
            self.close(RefusalCode.SLOW, sentence)

    def _advance(self) -> None:
        try:
            if self.phase is Phase.HANDSHAKE and not self._shake():
                return
            plain, ended = self._channel.read()
        except TlsFailure as failure:
            self._fail(failure)
            return
        self._deliver(plain)
        if ended:
            self.close(None, "the peer closed the connection")

    def _shake(self) -> bool:
        identity = self._channel.handshake()
        if identity is None:
            return False
        self._enter(Phase.OPENED)
        self._owner.opened(self, identity)
        return self.phase is Phase.OPENED

    def _deliver(self, plain: bytes) -> None:
        if not plain:
            return
        try:
            for message in self._decoder.feed(plain):
                if self.phase is Phase.OPENED:
                    self._introduced(message)
                if self.phase is not Phase.UP:
                    return
                self._owner.received(self, message)
        except MalformedMessage as error:
            self.close(RefusalCode.MALFORMED, f"malformed message: {error}")

    def _introduced(self, message: Message) -> None:
        if not isinstance(message, Hello | Refusal):
            raise MalformedMessage(f"expected a hello first, found {type(message).__name__}")
        if self._timer is not None:
            self._timer.cancel()
        self._enter(Phase.UP)
        self._owner.up(self)

    def _fail(self, failure: TlsFailure) -> None:
        self.tls_trouble = failure.trouble
        self.close(CODES[failure.trouble], failure.sentence)
