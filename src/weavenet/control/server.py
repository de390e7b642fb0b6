"""The HTTP servers of the daemon: the control API on unix sockets, the read-only one on a TCP port.

Moves bytes: one ``asyncio.Protocol`` per connection, one request in flight per connection (a client may pipeline; the
next request waits). What a client can make the daemon hold is bounded: connections, request size, time to send a
request, idle time, answers that it does not read. A client that goes away while its request waits cancels it.

Commands of the node are answered by a callback out of its reply, without a task of their own: turns of the event loop
and hand-overs are most of what an allocation costs beside its fsync.

Unix sockets are mode 0600 and the kernel's word on the client's uid (SO_PEERCRED) is checked as well, since a socket's
mode does not protect against one that was opened before. The read-only server on a loopback address answers only who
asks for an address or ``localhost``: a web page may have its own name mean 127.0.0.1 once a browser has loaded it (DNS
rebinding), and would then read as its own what is served here. Does not know a single verb: see ``handlers.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import ipaddress
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from weavenet.control.handlers import CONTROL_ROUTES, PUBLIC_ROUTES, Api, Request, Response, failed, unexpected
from weavenet.control.http import BODY_BYTES_MAX, HEADER_BYTES_MAX, Malformed, Parsed, RequestParser
from weavenet.control.service import Daemon
from weavenet.core.errors import Code, Failure, WeaveError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
"""Per server; a further one is answered 503 and closed."""
WAITERS_MAX = 192
"""Clients that wait for an address at a time, so that others can still ask why it takes so long, and stop it."""
_WAITS = frozenset({"/v1/attach", "/v1/expose", "/v1/allocate", "/v1/claim"})
PIPELINED_BYTES_MAX = HEADER_BYTES_MAX + BODY_BYTES_MAX
"""What a client may send beyond the request in flight until all is answered; above it the connection is closed."""
REQUEST_TIMEOUT_S = 10.0
"""From a request's first byte (or the connection's start) to its last; a slow-loris is closed after it."""
IDLE_TIMEOUT_S = 120.0
"""Between requests of a keep-alive connection."""
SWEEP_S = 1.0
"""Deadlines are looked at this often, so that none costs a timer per request."""

_UCRED = struct.Struct("3i")
_NO_DEADLINE = float("inf")
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


class Listener:
    """One listening address with its connections and bounds."""

    def __init__(self, api: Api, *, root_only: bool, is_loopback: bool = False) -> None:
        """``is_loopback``: a TCP port that only this host reaches."""
        self.api = api
        self.root_only = root_only
        self.is_loopback = is_loopback
        self.connections: set[Connection] = set()
        self.waiters: set[Connection] = set()
        """Those with a request in flight that may wait for space for ever."""
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def connection(self) -> Connection:
        return Connection(self)

    async def listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self.connection, sock=sock)
        else:
            self._server = await loop.create_server(self.connection, sock=sock)
        self._sweep = loop.call_later(SWEEP_S, self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in [connection for connection in self.connections if connection.deadline <= loop.time()]:
            connection.expire()
        self._sweep = loop.call_later(SWEEP_S, self._look_at_deadlines)

    async def close(self) -> None:
        """Stop listening, drop every connection and cancel what was in flight."""
        if self._sweep is not None:
            self._sweep.cancel()
        if self._server is not None:
            self._server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in list(self.connections):
            connection.drop()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = RequestParser()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Parsed] = deque()
        self._in_flight: Parsed | None = None
        self._cancel: Callable[[], None] | None = None
        self._pipelined = 0
        self._is_unread = False
        self._problem: Malformed | None = None
        self.task: asyncio.Task[None] | None = None
        self.deadline = self._loop.time() + REQUEST_TIMEOUT_S

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        connections = self._listener.connections
        connections.add(self)
        if len(connections) > CONNECTIONS_MAX:
            self._refuse(Failure(Code.BUSY, f"at most {CONNECTIONS_MAX} clients at a time", "", "try again"))
        elif self._listener.root_only and not _is_permitted(transport.get_extra_info("socket")):
            failure = Failure(Code.INVALID, "only root may use the control socket", "another user", "use sudo")
            self._refuse(failure, status=403)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing() or self._problem is not None:
            return
        if self._in_flight is not None or self._waiting:
            self._pipelined += len(data)
            if self._pipelined > PIPELINED_BYTES_MAX:
                self.drop()
                return
        elif not self._parser.is_inside:
            self.deadline = min(self.deadline, self._loop.time() + REQUEST_TIMEOUT_S)
        try:
            self._waiting += self._parser.feed(data)
        except Malformed as problem:
            self._problem = problem  # answered after what came before it
        if self._in_flight is None:
            self._next()

    def eof_received(self) -> bool:
        # No half-closed clients: whoever stops sending has gone, and must not leave a waiting command behind.
        return False

    def pause_writing(self) -> None:
        """The client does not read: an answer is longer than what asks for it, so the next one waits for that."""
        self._is_unread = True

    def resume_writing(self) -> None:
        self._is_unread = False
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self._transport = None
        self._abandon()

    # --- requests ---

    def _next(self) -> None:
        """Begin requests until one has to wait or there is none."""
        while self._in_flight is None and self._transport is not None and not self._transport.is_closing():
            if self._is_unread:
                return
            if self._waiting:
                self._begin(self._waiting.popleft())
            elif self._problem is not None:
                problem = self._problem
                self._refuse(Failure(Code.INVALID, "expected an HTTP/1.1 request", str(problem)), status=problem.status)
            else:
                return

    def _begin(self, parsed: Parsed) -> None:
        path, query = parsed.target, {}
        if "?" in path or "%" in path:
            with contextlib.suppress(ValueError):  # "//[" is not the beginning of any address, nor of any path here
                parts = urlsplit(path)
                path, query = parts.path, dict(parse_qsl(parts.query))
        if self._listener.is_loopback and not _is_local(parsed.host):
            expected = "expected to be asked for as an address or localhost"
            step = "use 127.0.0.1 in the URL, or launch with another --status-addr to be reached by name"
            self._refuse(Failure(Code.INVALID, expected, parsed.host[:200], step), status=403)
            return
        request = Request(parsed.method, path, parsed.body, query)
        self._in_flight = parsed
        self.deadline = _NO_DEADLINE  # the daemon may take as long as it needs: waiting for space has no limit
        if path in _WAITS:
            if len(self._listener.waiters) >= WAITERS_MAX:
                waiting = f"{WAITERS_MAX} others wait for an address"
                self._answered(
                    failed(
                        Failure(
                            Code.BUSY,
                            "expected fewer clients to wait for addresses",
                            waiting,
                            "see `weave status ipam`",
                        )
                    )
                )
                return
            self._listener.waiters.add(self)
        cancel = self._listener.api.submit(request, self._answered)
        if cancel is None:
            self.task = self._loop.create_task(self._answer(request))
        elif self._in_flight is parsed:
            self._cancel = cancel

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._listener.api.handle(request)
        except WeaveError as error:
            response = failed(error.failure)
        except Exception:
            response = unexpected(request)
        self.task = None
        self._answered(response)
        self._next()

    def _answered(self, response: Response) -> None:
        """The request in flight has its answer."""
        parsed = self._in_flight
        if parsed is None:
            return
        self._listener.waiters.discard(self)
        if self._transport is not None:
            self._respond(response, close=not parsed.keep_alive)
        self._in_flight = self._cancel = None
        if not self._waiting:  # else a client could add that much with every answer
            self._pipelined = 0
        self.deadline = self._loop.time() + (REQUEST_TIMEOUT_S if self._parser.is_inside else IDLE_TIMEOUT_S)
        if self._waiting or self._problem is not None:
            self._loop.call_soon(self._next)  # not from within the node's reply

    def _abandon(self) -> None:
        """Nobody waits for the answer any more. Said once: what a command took is being given back from then on."""
        cancel, self._cancel, self._in_flight = self._cancel, None, None
        self._waiting.clear()
        self._listener.waiters.discard(self)
        if cancel is not None:
            cancel()
        task, self.task = self.task, None
        if task is not None:
            task.cancel()

    # --- answers ---

    def _respond(self, response: Response, *, close: bool = False) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        connection = "Connection: close\r\n" if close else ""
        head = (
            f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n"
            f"Content-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\n{connection}\r\n"
        )
        is_head = self._in_flight is not None and self._in_flight.method == "HEAD"
        transport.write(head.encode() if is_head else head.encode() + response.body)
        if close:
            transport.close()

    def _refuse(self, failure: Failure, *, status: int = 503) -> None:
        """Answer without a handler and close."""
        self._respond(Response(status, msgspec.json.encode(failure)), close=True)
        self.deadline = self._loop.time() + REQUEST_TIMEOUT_S

    def expire(self) -> None:
        """The deadline has passed: a request that never ended, or a connection that sleeps."""
        if self._parser.is_inside:
            self._refuse(
                Failure(Code.TIMEOUT, f"a request takes at most {REQUEST_TIMEOUT_S:.0f} s to send"), status=408
            )
        self.drop()

    def drop(self) -> None:
        self._abandon()
        if self._transport is not None:
            self._transport.abort()


def _is_permitted(sock: socket.socket) -> bool:
    """Root, or the user the daemon itself runs as (a test)."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())


def _is_local(host: str) -> bool:
    """Whether a Host header names this host as no web page can. Without one it is no browser that asks."""
    name = host.rpartition(":")[0] if host[host.rfind("]") + 1 :].count(":") == 1 else host
    if name.lower() in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def unix_socket(path: str) -> socket.socket:
    """A bound socket of mode 0600 at ``path``, replacing a stale one. Raises WeaveError when a live server has it, or
    something else is there."""
    if Path(path).exists() and not Path(path).is_socket():
        failure = Failure(
            Code.CONFLICT, f"expected a socket or nothing at {path}", "another file", "correct --http-addr"
        )
        raise WeaveError(failure)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(path)
        except OSError:
            pass
        else:
            raise WeaveError(
                Failure(Code.CONFLICT, f"{path} is in use by a running daemon", "", "stop it with `weave stop`")
            )
    sock = socket.socket(socket.AF_UNIX)
    try:
        Path(path).unlink(missing_ok=True)
        sock.bind(path)
        Path(path).chmod(0o600)  # before listen(): until then nobody can connect
    except OSError as error:
        sock.close()
        failure = Failure(Code.HOST, f"cannot listen on {path}", error.strerror or str(error), "check the folder")
        raise WeaveError(failure) from error
    return sock


def tcp_socket(address: str) -> socket.socket:
    """A bound socket at ``host:port``. Raises OSError when it is taken, ValueError when the text is no address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    except BaseException:
        sock.close()
        raise
    return sock


class ControlServer:
    """All listeners of one daemon."""

    def __init__(self, daemon: Daemon, *, socket_path: str, http_address: str = "", status_address: str = "") -> None:
        """``http_address``: a further unix path with the control API; ``status_address``: ``host:port`` of the
        read-only API. Both may be empty."""
        self._daemon = daemon
        self._unix_paths = [path for path in (socket_path, http_address) if path]
        self._status_address = status_address
        self._listeners: list[Listener] = []

    async def start(self) -> tuple[str, ...]:
        """Listen. Returns warnings: a taken status port does not keep the daemon from working. Raises WeaveError when
        a control socket cannot be made."""
        for path in self._unix_paths:
            await self._listen(unix_socket(path), Listener(Api(self._daemon, CONTROL_ROUTES), root_only=True))
        if not self._status_address:
            return ()
        try:
            sock = tcp_socket(self._status_address)
        except (OSError, ValueError) as error:
            return (
                f"status is not served on {self._status_address}: {getattr(error, 'strerror', None) or error}; "
                "next: free the port or launch with another --status-addr",
            )
        is_loopback = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
        listener = Listener(Api(self._daemon, PUBLIC_ROUTES), root_only=False, is_loopback=is_loopback)
        await self._listen(sock, listener)
        return ()

    async def _listen(self, sock: socket.socket, listener: Listener) -> None:
        await listener.listen(sock)
        self._listeners.append(listener)

    async def close(self) -> None:
        """Stop serving; sockets' files are removed."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        for path in self._unix_paths:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
