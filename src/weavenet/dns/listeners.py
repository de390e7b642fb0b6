"""The sockets that the server listens on: opened, tried again while they cannot be, replaced when they no longer serve.

Each address is a UDP and a TCP socket, both or neither. One that is bound to a device takes nothing that came in
elsewhere; it is opened anew when the device was made anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from weavenet.dns.addresses import family, socket_address
from weavenet.dns.feed import Listen, Listening
from weavenet.dns.loop import Loop
from weavenet.dns.resolver import Resolver
from weavenet.dns.tcp import BACKLOG, TcpServer
from weavenet.dns.udp import PreparedAnswers, UdpServer

RETRY_S = 1.0
RECEIVE_BYTES = 1 << 20
"""About 1000 queries as the kernel counts: what arrives while the worker is started anew or reads a frame."""
IP_FREEBIND, IPV6_FREEBIND = 15, 78


class _Open(NamedTuple):
    device: int
    sockets: tuple[socket.socket, socket.socket]
    udp: UdpServer
    tcp: TcpServer


def open_sockets(listen: Listen) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP at one address. Raises OSError."""
    is6 = ":" in listen.host
    with contextlib.ExitStack() as undo:
        found: list[socket.socket] = []
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = undo.enter_context(socket.socket(family(listen.host), kind | socket.SOCK_NONBLOCK))
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            if is6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # the address may come later, or come back
            if listen.device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, listen.device.encode() + b"\0")
            # With the port 0 of tests TCP takes the port that UDP got.
            port = listen.port or (found[0].getsockname()[1] if found else 0)
            sock.bind(socket_address(listen.host, port))
            found.append(sock)
        found[1].listen(BACKLOG)
        undo.pop_all()
        return found[0], found[1]


def _device_index(device: str) -> int:
    """0: there is none, or none is asked for."""
    try:
        return socket.if_nametoindex(device) if device else 0
    except OSError:
        return 0


class Listeners:
    """``report`` gets what is open after every change."""

    def __init__(
        self, loop: Loop, resolver: Resolver, prepared: PreparedAnswers, report: Callable[[Listening], None]
    ) -> None:
        self._loop, self._resolver, self._prepared, self._report = loop, resolver, prepared, report
        self._wanted: tuple[Listen, ...] = ()
        self._open: dict[Listen, _Open] = {}
        self._failed: dict[Listen, str] = {}
        self._reported: Listening | None = None
        self._look_at: float | None = None
        loop.watch(self)

    def tell_again(self) -> None:
        """With the next :meth:`set`, whatever was reported before: somebody else listens now."""
        self._reported = None

    def set(self, wanted: tuple[Listen, ...]) -> None:
        self._wanted = wanted
        self.tick(time.monotonic())

    @property
    def ports(self) -> tuple[int, ...]:
        """Of the open UDP sockets; tests ask for port 0."""
        return tuple(one.sockets[0].getsockname()[1] for one in self._open.values())

    def deadline(self) -> float | None:
        return self._look_at

    def tick(self, now: float) -> None:
        """Open what is wanted and not open, close what is not wanted or bound to a device that is gone."""
        for listen, opened in list(self._open.items()):
            if listen not in self._wanted or _device_index(listen.device) != opened.device:
                self._close(listen)
        self._failed.clear()
        for listen in self._wanted:
            if listen not in self._open:
                self._try(listen)
        # Devices come and go without telling us; whoever listens on none needs no look.
        looks = self._failed or any(listen.device for listen in self._wanted)
        self._look_at = now + RETRY_S if looks else None
        state = Listening(tuple(self._open), tuple(self._failed.items()))
        if state != self._reported:
            self._reported = state
            self._report(state)

    def _try(self, listen: Listen) -> None:
        try:
            index = _device_index(listen.device)
            sockets = open_sockets(listen)
        except OSError as error:
            self._failed[listen] = error.strerror or os.strerror(error.errno or 0)
            return
        udp = UdpServer(self._loop, sockets[0], self._resolver, self._prepared)
        self._open[listen] = _Open(index, sockets, udp, TcpServer(self._loop, sockets[1], self._resolver))

    def _close(self, listen: Listen) -> None:
        opened = self._open.pop(listen)
        opened.udp.close()
        opened.tcp.close()
        for sock in opened.sockets:
            sock.close()

    def close(self) -> None:
        for listen in list(self._open):
            self._close(listen)
