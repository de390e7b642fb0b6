"""Accepting connections from anybody, within bounds.

Connections wait in the kernel's backlog while the accept bucket is empty. Plain sockets with a reader callback, since
asyncio's own server accepts as fast as it can. Does not know TLS.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import ACCEPT_BURST, ACCEPTS_PER_S

BACKLOG = 128
OUT_OF_FILES_PAUSE_S = 1.0
"""Out of file descriptors: a loop around ``accept`` would burn the processor until one is free."""

_log = logging.getLogger("weave.listener")


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """One socket per address family. ``host`` empty: every address, IPv6 only where the kernel has it.

    Raises WeaveError when the address is not ours or the port is taken.
    """
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [_bind(family, host, port)]
    first = _bind(socket.AF_INET, "0.0.0.0", port)
    try:
        return [first, _bind(socket.AF_INET6, "::", first.getsockname()[1])]
    except WeaveError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return [first]
        first.close()
        raise


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise WeaveError(_explain(error, host, port)) from error
    return sock


def _explain(error: OSError, host: str, port: int) -> Failure:
    expected = f"expected to listen on TCP port {port} of {host}"
    if error.errno == errno.EADDRINUSE:
        step = f"find the program with `ss -ltnp 'sport = :{port}'`, or choose another port with --port"
        return Failure(Code.HOST, expected, "the port is in use", step)
    if error.errno == errno.EADDRNOTAVAIL:
        return Failure(Code.HOST, expected, "no interface of this host has that address", "correct --host")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Failure(Code.HOST, expected, "not permitted", "run as root, or choose a port above 1023 with --port")
    return Failure(Code.HOST, expected, error.strerror or str(error), "correct --host and --port")


class AcceptBucket:
    """Token bucket of ACCEPTS_PER_S with ACCEPT_BURST; ``now`` in seconds."""

    def __init__(self, now: float) -> None:
        self._tokens, self._at = float(ACCEPT_BURST), now

    def take(self, now: float) -> bool:
        self._tokens = min(float(ACCEPT_BURST), self._tokens + (now - self._at) * ACCEPTS_PER_S)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Listener:
    """Hands each accepted socket to ``on_accept`` (non-blocking, ownership passes), with the source address."""

    def __init__(self, host: str, port: int, on_accept: Callable[[socket.socket, str, int], None]) -> None:
        self._sockets = listening_sockets(host, port)
        self._loop = asyncio.get_running_loop()
        self._bucket = AcceptBucket(self._loop.time())
        self._on_accept = on_accept
        self._resume: asyncio.TimerHandle | None = None
        self._watch()

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets = []

    def _watch(self) -> None:
        self._resume = None
        for sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _pause(self, delay_s: float) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock)
        if self._resume is None:
            self._resume = self._loop.call_later(delay_s, self._watch)

    def _accept(self, listening: socket.socket) -> None:
        """One connection per call: the loop calls again, and other work gets its turn in between."""
        if not self._bucket.take(self._loop.time()):
            self._pause(1 / ACCEPTS_PER_S)
            return
        try:
            sock, address = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            _log.error("cannot accept connections: %s", error.strerror)
            self._pause(OUT_OF_FILES_PAUSE_S)
            return
        sock.setblocking(False)
        self._on_accept(sock, str(address[0]), int(address[1]))
