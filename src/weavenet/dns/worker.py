"""The worker process: what the feed says becomes zone, sockets and upstreams."""

from __future__ import annotations

import os
import random
import socket
import time

import msgspec

from weavenet.dns.feed import AskStatus, Configure, Frames, Name, Names, Status, Stop, ToDaemon, ToWorker, encode
from weavenet.dns.forward import Forwarder
from weavenet.dns.listeners import Listeners
from weavenet.dns.loop import READ, Loop
from weavenet.dns.resolvconf import PORT as UPSTREAM_PORT
from weavenet.dns.resolvconf import ResolvConf
from weavenet.dns.resolver import Resolver
from weavenet.dns.udp import PreparedAnswers
from weavenet.dns.upstream import Sockets
from weavenet.dns.zone import Zone

READ_BYTES = 65_536
ORPHAN_S = 600.0
"""So long names are answered as they last were while no daemon is there: a restart or an upgrade takes less, and later
they might stand for others."""
BACKLOG = 4


class Worker:
    """``listener``: a bound unix socket on which the daemon is awaited."""

    def __init__(self, listener: socket.socket, *, orphan_s: float = ORPHAN_S) -> None:
        self.loop = Loop()
        self._listener = listener
        self._orphan_s = orphan_s
        self._feed: socket.socket | None = None
        self._orphan_at = time.monotonic() + orphan_s
        self._frames = Frames()
        self._has_frames = False
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        rng = random.Random(os.urandom(32))
        sockets = Sockets(self.loop)
        # Not ``rng``: whoever sees some hundred orders of 50 addresses can compute what it draws next.
        self._forwarder = sockets.forwarder = Forwarder(sockets, random.SystemRandom())
        self.loop.watch(self._forwarder)
        self._rng = rng
        self._prepared = PreparedAnswers()
        self.loop.watch(self._prepared)
        self._resolver: Resolver | None = None
        self._listeners: Listeners | None = None
        self._resolv_conf: ResolvConf | None = None
        self._building: Zone | None = None
        self._configured: Configure | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self.loop.add(listener.fileno(), READ, self._accept)
        self.loop.watch(self)

    def run(self) -> None:
        """Until told to stop, or until nobody has told anything for too long."""
        self.loop.run()
        if self._listeners is not None:
            self._listeners.close()

    # --- the feed: one frame per turn, so that queries never wait for more than one ---

    def _accept(self, events: int) -> None:
        try:
            feed, _ = self._listener.accept()
        except OSError:
            return
        self._drop()
        self._feed, self._building = feed, None
        if self._listeners is not None:
            self._listeners.tell_again()
        feed.setblocking(False)
        self.loop.add(feed.fileno(), READ, self._readable)

    def _drop(self) -> None:
        """The daemon is gone, or another one is here."""
        if self._feed is None:
            return
        self.loop.remove(self._feed.fileno())
        self._feed.close()
        self._feed = None
        self._frames, self._has_frames = Frames(), False
        self._orphan_at = time.monotonic() + self._orphan_s

    def _readable(self, events: int) -> None:
        if self._feed is None:
            return
        try:
            data = self._feed.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        self._frames.add(data)
        self._has_frames = True

    def deadline(self) -> float | None:
        if self._feed is None:
            return self._orphan_at
        return 0.0 if self._has_frames else None

    def tick(self, now: float) -> None:
        if self._feed is None:
            self.loop.stop()
            return
        body = self._frames.next()
        if body is None:
            self._has_frames = False
            return
        match self._decoder.decode(body):
            case Configure() as configure:
                self._configure(now, configure)
            case Names() as names:
                self._take_names(names)
            case AskStatus():
                self._send(self._status())
            case Stop():
                self.loop.stop()

    def _send(self, message: ToDaemon) -> None:
        """The daemon asks for little and reads at once: a full stream means that it is stuck."""
        if self._feed is None:
            return
        data = encode(message)
        try:
            sent = self._feed.send(data)
        except OSError:
            return  # if it is gone, reading tells
        if sent < len(data):
            self._drop()  # half a message: nothing after it could be read

    # --- what it says ---

    def _configure(self, now: float, configure: Configure) -> None:
        if self._resolver is None or self._listeners is None or self._resolv_conf is None:
            self._resolv_conf = ResolvConf(configure.resolv_conf)
            zone = Zone(configure.domain, configure.ranges)
            self._resolver = Resolver(zone, configure.ttl_s, self._forwarder, self._rng, self._look)
            self._listeners = Listeners(self.loop, self._resolver, self._prepared, self._send)
        elif self._configured is not None:
            kept = ("domain", "ttl_s", "ranges", "resolv_conf")
            if any(getattr(configure, field) != getattr(self._configured, field) for field in kept):
                raise ValueError("expected the same zone as before; another one needs another worker")
        self._configured = configure
        # Whoever listens at another port leaves port 53 of that address to the host's own resolver.
        listens = (listen.host for listen in configure.listen if listen.port == UPSTREAM_PORT)
        self._resolv_conf.set_own(frozenset((*listens, *configure.own)))
        self._look(now)
        self._listeners.set(configure.listen)

    def _look(self, now: float) -> None:
        if self._resolv_conf is not None and self._resolv_conf.changed(now):
            self._forwarder.set_upstreams(now, self._resolv_conf.upstreams)

    def _take_names(self, names: Names) -> None:
        if self._resolver is None or self._configured is None:
            raise ValueError("expected a configuration before names")
        if names.begins:
            self._building = Zone(self._configured.domain, self._configured.ranges)
        target = self._building if self._building is not None else self._resolver.zone
        for name in names.names:
            affected = _set(target, name)
            if self._building is None:
                self._prepared.drop(affected)
        if self._building is not None and names.ends:
            self._building.serial = self._resolver.zone.serial + 1 & 0xFFFFFFFF
            self._resolver.set_zone(self._building)
            self._building = None
            self._prepared.clear()

    def _status(self) -> Status:
        counters, counted = self._forwarder.counters, self._resolver.counted if self._resolver else None
        return Status(
            names=len(self._resolver.zone) if self._resolver else 0,
            local=self._prepared.answered + (counted.local if counted else 0),
            forwarded=counters.asked,
            from_cache=counters.from_cache,
            stale=counters.stale,
            failed=counters.failed,
            refused=counters.refused,
            malformed=counted.malformed if counted else 0,
            dropped=counted.dropped if counted else 0,
            false_answers=counters.false_answers,
            upstreams=tuple(map(str, self._forwarder.upstreams)),
            looping=tuple(map(str, self._forwarder.looping)),
        )


def _set(zone: Zone, name: Name) -> list[bytes]:
    """As :meth:`Zone.set`. A name that cannot be on the wire has no answer; the core lets none in."""
    try:
        return zone.set(name.name, name.addresses)
    except ValueError:
        return []
