"""The TCP side (RFC 7766): messages behind their length, several questions per connection, answers in any order.

Bounds: connections in all and per client, silence, what a client does not read, questions in flight per connection.
When full, the connection that was silent longest makes room.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time

from weavenet.dns.loop import ERROR, READ, WRITE, Loop
from weavenet.dns.resolver import Resolver

CONNECTIONS_MAX = 256
CONNECTIONS_PER_CLIENT_MAX = 64
IDLE_S = 10.0
"""RFC 7766, section 6.2.3: of the order of a few seconds."""
QUERY_BYTES_MAX = 4096
"""Nothing that asks one question is longer."""
UNSENT_BYTES_MAX = 64 * 1024
"""Beyond it nothing more is read from that client until it has read some."""
PENDING_MAX = 32
"""Questions of one connection that wait for upstreams; beyond, reading stops."""
BACKLOG = 128
SWEEP_S = 1.0
OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
OUT_OF_FILES_PAUSE_S = 1.0
"""Clients wait in the backlog: a loop around ``accept`` would burn the processor until a descriptor is free."""


class _Connection:
    def __init__(self, sock: socket.socket, client: bytes) -> None:
        self.sock, self.client = sock, client
        self.read = bytearray()
        self.unsent = bytearray()
        self.heard = time.monotonic()
        self.pending = 0
        self.is_open = True
        self.has_ended = False  # the client sends no more
        self.events = READ


class TcpServer:
    """``sock``: bound, listening, not blocking; its owner closes it, after :meth:`close`."""

    def __init__(self, loop: Loop, sock: socket.socket, resolver: Resolver) -> None:
        self._loop, self._sock, self._resolver = loop, sock, resolver
        self._connections: dict[int, _Connection] = {}
        self._sweep_at: float | None = None
        self._accept_at: float | None = None
        loop.add(sock.fileno(), READ, self._accept)
        loop.watch(self)

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        self._loop.remove(self._sock.fileno())
        self._loop.unwatch(self)
        for connection in list(self._connections.values()):
            self._close(connection)

    def _accept(self, events: int) -> None:
        try:
            sock, address = self._sock.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                self._loop.change(self._sock.fileno(), 0)
                self._accept_at = time.monotonic() + OUT_OF_FILES_PAUSE_S
            return  # else it has gone again
        client = ipaddress.ip_address(address[0].partition("%")[0]).packed
        theirs = [one for one in self._connections.values() if one.client == client]
        if len(theirs) >= CONNECTIONS_PER_CLIENT_MAX:
            self._close(min(theirs, key=lambda one: one.heard))
        elif len(self._connections) >= CONNECTIONS_MAX:
            self._close(min(self._connections.values(), key=lambda one: one.heard))
        sock.setblocking(False)
        connection = _Connection(sock, client)
        if self._sweep_at is None:
            self._sweep_at = connection.heard + SWEEP_S
        self._connections[sock.fileno()] = connection
        self._loop.add(sock.fileno(), READ, lambda events: self._ready(connection, events))

    def _close(self, connection: _Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            fd = connection.sock.fileno()
            del self._connections[fd]
            self._loop.remove(fd)
            connection.sock.close()

    def _ready(self, connection: _Connection, events: int) -> None:
        try:
            if events & WRITE:
                self._flush(connection)
            if events & (READ | ERROR) and connection.is_open and connection.events & READ:
                self._read(connection)
            elif events & ERROR:
                self._close(connection)
        except OSError:
            self._close(connection)
        if connection.is_open:
            self._take(connection)

    def _read(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            data = connection.sock.recv(QUERY_BYTES_MAX + 2)
            if not data:
                connection.has_ended = True
            connection.read += data
            connection.heard = time.monotonic()

    def _take(self, connection: _Connection) -> None:
        """Answer the whole messages that have been read, as far as there is room."""
        read = connection.read
        while connection.is_open and self._has_room(connection) and len(read) >= 2:
            size = int.from_bytes(read[:2], "big")
            if size > QUERY_BYTES_MAX:
                self._close(connection)
                return
            if len(read) < 2 + size:
                break
            packet = bytes(read[2 : 2 + size])
            del read[: 2 + size]
            self._handle(connection, packet)
        self._settle(connection)

    def _has_room(self, connection: _Connection) -> bool:
        return connection.pending < PENDING_MAX and len(connection.unsent) < UNSENT_BYTES_MAX

    def _handle(self, connection: _Connection, packet: bytes) -> None:
        connection.pending += 1
        waits = True

        def reply(answer: bytes) -> None:
            connection.pending -= 1
            self._send(connection, answer)
            if not waits and connection.is_open:
                self._take(connection)

        found = self._resolver.handle(packet, connection.client, reply, stream=True)
        waits = False
        if found is not None:
            reply_now = found.answers[0]
            connection.pending -= 1
            self._send(connection, reply_now)
        elif len(packet) < 12 or packet[2] & 0x80:
            self._close(connection)  # no query at all: nothing better will come

    def _send(self, connection: _Connection, answer: bytes) -> None:
        if connection.is_open:
            connection.unsent += len(answer).to_bytes(2, "big") + answer
            try:
                self._flush(connection)
            except OSError:
                self._close(connection)

    def _flush(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            while connection.unsent:
                del connection.unsent[: connection.sock.send(connection.unsent)]
                connection.heard = time.monotonic()

    def _settle(self, connection: _Connection) -> None:
        """Listen for what is wanted now; close what is finished."""
        if not connection.is_open:
            return
        if connection.has_ended and not connection.pending and not connection.unsent:
            self._close(connection)
            return
        reads = not connection.has_ended and self._has_room(connection)
        events = READ * reads | WRITE * bool(connection.unsent)
        if events != connection.events:
            connection.events = events
            self._loop.change(connection.sock.fileno(), events)

    # --- time ---

    def deadline(self) -> float | None:
        return min((at for at in (self._sweep_at, self._accept_at) if at is not None), default=None)

    def tick(self, now: float) -> None:
        if self._accept_at is not None and self._accept_at <= now:
            self._accept_at = None
            self._loop.change(self._sock.fileno(), READ)
        if self._sweep_at is not None and self._sweep_at <= now:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for connection in list(self._connections.values()):
            if connection.heard + IDLE_S <= now:
                self._close(connection)
        self._sweep_at = now + SWEEP_S if self._connections else None
