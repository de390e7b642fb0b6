"""Sockets towards upstreams: one per exchange, connected, so that the kernel lets in only what comes from there, and
from a port that it chooses at random.

Implements :class:`weavenet.dns.forward.Transport`. Bounds: the forwarder's, times one socket.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from weavenet.dns.addresses import family, socket_address
from weavenet.dns.forward import Forwarder, Upstream
from weavenet.dns.loop import ERROR, READ, WRITE, Loop
from weavenet.dns.wire import MESSAGE_BYTES_MAX


class _Connection:
    """``unsent`` empty on UDP."""

    def __init__(self, sock: socket.socket, unsent: bytes, *, tcp: bool) -> None:
        self.sock, self.unsent, self.tcp = sock, unsent, tcp
        self.read = bytearray()


class Sockets:
    """``forwarder`` is set once it exists."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._open: dict[int, _Connection] = {}
        self._failed: list[int] = []
        self.forwarder: Forwarder | None = None
        loop.watch(self)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, exchange: int, upstream: Upstream, message: bytes, *, tcp: bool) -> None:
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        try:
            sock = socket.socket(family(upstream.host), kind | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor left
            self._failed.append(exchange)
            return
        try:
            result = sock.connect_ex(socket_address(*upstream))
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, "connect")
            if not tcp:
                sock.send(message)
        except OSError:
            sock.close()
            self._failed.append(exchange)
            return
        unsent = len(message).to_bytes(2, "big") + message if tcp else b""
        self._open[exchange] = _Connection(sock, unsent, tcp=tcp)
        self._loop.add(sock.fileno(), WRITE if tcp else READ, self._handler(exchange))

    def _handler(self, exchange: int) -> Callable[[int], None]:
        return lambda events: self._ready(exchange, events)

    def close(self, exchange: int) -> None:
        connection = self._open.pop(exchange, None)
        if connection is not None:
            self._loop.remove(connection.sock.fileno())
            connection.sock.close()

    def _ready(self, exchange: int, events: int) -> None:
        connection = self._open.get(exchange)
        if connection is None or self.forwarder is None:
            return
        now = time.monotonic()
        try:
            if not connection.tcp:
                self.forwarder.received(now, exchange, connection.sock.recv(MESSAGE_BYTES_MAX))
            elif events & (READ | ERROR):
                self._read_stream(now, exchange, connection)
            elif events & WRITE:
                self._write_stream(connection)
        except BlockingIOError:
            return
        except OSError:
            self.forwarder.failed(now, exchange)

    def _write_stream(self, connection: _Connection) -> None:
        sent = connection.sock.send(connection.unsent)
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            self._loop.change(connection.sock.fileno(), READ)

    def _read_stream(self, now: float, exchange: int, connection: _Connection) -> None:
        if self.forwarder is None:
            return
        data = connection.sock.recv(MESSAGE_BYTES_MAX + 2 - len(connection.read))
        if not data:
            raise ConnectionResetError
        connection.read += data
        size = int.from_bytes(connection.read[:2], "big")
        if len(connection.read) >= 2 + size > 2:
            self.forwarder.received(now, exchange, bytes(connection.read[2 : 2 + size]))
        elif len(connection.read) >= MESSAGE_BYTES_MAX + 2 or (len(connection.read) >= 2 and not size):
            raise ConnectionResetError

    # --- what failed at once ---

    def deadline(self) -> float | None:
        return 0.0 if self._failed else None

    def tick(self, now: float) -> None:
        failed, self._failed = self._failed, []
        for exchange in failed:
            if self.forwarder is not None:
                self.forwarder.failed(now, exchange)
