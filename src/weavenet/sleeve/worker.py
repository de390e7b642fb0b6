"""The event loop of the worker: one thread, one epoll over TAP device, UDP socket and the daemon's connection."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from weavenet.core.overlay.sleeve import SleeveDesired, SleevePath, SleeveStatus
from weavenet.sleeve import control
from weavenet.sleeve.control import Control, Type
from weavenet.sleeve.feed import Listener, Stop
from weavenet.sleeve.inbound import Inbound
from weavenet.sleeve.keys import OwnPairs, has_aes_instructions
from weavenet.sleeve.outbound import Outbound
from weavenet.sleeve.session import Session, Sessions
from weavenet.sleeve.udp import UdpSocket, endpoint_of

STATUS_INTERVAL_S = 1.0
TICK_MIN_S = 0.02
"""Paths are looked at no more often, however busy the loop is."""
REPORT_INTERVAL_S = 0.01
"""A peer that loses datagrams is told this often at most."""
NOTE_INTERVAL_S = 60.0
"""A datagram that could not be handled is described this often at most; all are counted as malformed."""


class Worker:
    """Owns its file descriptors from here on."""

    def __init__(self, tap: int, udp: UdpSocket, listener: Listener) -> None:
        now = time.monotonic()
        self._tap, self._udp, self._listener = tap, udp, listener
        rng = random.Random(os.urandom(16))
        self._process = os.urandom(8)
        self._pairs = OwnPairs(now, aes=has_aes_instructions())
        self.sessions = Sessions(self._pairs, udp.family, rng)
        self.outbound = Outbound(tap, udp, self.sessions)
        self.inbound = Inbound(tap, udp, self.sessions, self._on_control)
        self._tick_at = now
        self._status_at = now
        self._wants_status = True
        self._stopping = False
        self._note_at = 0.0
        self._epoll = select.epoll()
        for fd in (tap, udp.fd, *listener.fds):
            self._epoll.register(fd, select.EPOLLIN)
        self._listening = listener.fds[0]

    def run(self) -> None:
        """Until told to stop, or SIGTERM."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        gc.collect()
        gc.freeze()  # what is here stays; cycles are not made while forwarding
        gc.disable()
        poll, tap, udp = self._epoll.poll, self._tap, self._udp.fd
        more = False
        while not self._stopping:
            now = time.monotonic()
            if now >= self._tick_at:
                self._tick(now)
            events = poll(0.0 if more else max(0.0, self._tick_at - now))
            more = False
            for fd, _ in events:
                if fd == tap:
                    more = self.outbound.drain() or more
                elif fd == udp:
                    more = self.inbound.drain() or more
                    self._after_inbound()
                else:
                    self._from_daemon(fd)
        self.close()

    def _stop(self, number: int, _: object) -> None:
        self._stopping = True

    def close(self) -> None:
        self._epoll.close()
        self._listener.close()
        self._udp.close()
        with contextlib.suppress(OSError):
            os.close(self._tap)

    # --- the daemon ---

    def _from_daemon(self, fd: int) -> None:
        if fd == self._listening:
            accepted = self._listener.accept()
            if accepted is not None:
                self._epoll.register(accepted, select.EPOLLIN)
                self._wants_status = True
                self._tick_at = 0.0
            return
        for wanted in self._listener.receive():
            match wanted:
                case Stop():
                    self._stopping = True
                case SleeveDesired():
                    self.sessions.apply(time.monotonic(), wanted)
                    self._tick_at = 0.0
                    gc.collect()

    def status(self) -> SleeveStatus:
        """What the daemon is told."""
        paths = tuple(_path_of(session) for session in self.sessions.by_peer.values())
        outbound = self.outbound
        counters = {
            **self.inbound.counts.as_dict(),
            "no_peer": outbound.no_peer,
            "no_key": outbound.no_key,
            "too_large": outbound.too_large,
            "no_room": self._udp.no_room,
        }
        return SleeveStatus(
            self._process, self._udp.port, self._pairs.public(), paths, self.sessions.warnings, counters
        )

    # --- time ---

    def _tick(self, now: float) -> None:
        self._pairs.tick(now, in_use=lambda number: self.sessions.uses_pair(now, number))
        if self._pairs.changed:
            self._pairs.changed = False
            self._wants_status = True
            self.sessions.rekeyed()
        sampling = now >= self._status_at
        if sampling:
            self.inbound.sweep()
        changed = False
        next_at = now + STATUS_INTERVAL_S
        for session in self.sessions.by_peer.values():
            path = session.path
            if session.sending is not None and session.sending.is_exhausted:
                self.sessions.choose_key(session)
            if session.sending is None:
                path.keyless()
            elif now >= path.next_at:
                self._probe(session, now)
            if sampling:
                self.sessions.sample(now, session)
            if path.changed:
                path.changed = False
                changed = True
            if session.sending is not None:
                next_at = min(next_at, path.next_at)
        if changed:
            self.sessions.route()
        if sampling or changed or self._wants_status:
            self._wants_status = False
            self._status_at = now + STATUS_INTERVAL_S
            self._listener.send(self.status())
        self._tick_at = max(now + TICK_MIN_S, min(next_at, self._status_at))

    def _probe(self, session: Session, now: float) -> None:
        for nonce, name, size in session.path.due(now):
            to = name if name is not None else self.sessions.relay_name(session)
            if to is not None:
                message = Control(Type.PROBE, nonce, session.received, session.lost)
                self.outbound.control(session, control.encode(message), size, to)

    def _after_inbound(self) -> None:
        now = time.monotonic()
        if self.inbound.failure is not None:
            self._note_failure(now, self.inbound.failure)
            self.inbound.failure = None
        for session in self.inbound.take_news(now, REPORT_INTERVAL_S):
            if session.name is not None:
                message = Control(Type.REPORT, 0, session.received, session.lost)
                self.outbound.control(session, control.encode(message), 0, session.name)

    def _note_failure(self, now: float, error: Exception) -> None:
        """A line about a fault of ours that cost a datagram: now and then, whatever is sent to us."""
        if now < self._note_at:
            return
        self._note_at = now + NOTE_INTERVAL_S
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        print(
            f"sleeve: datagram dropped: {type(error).__name__}: {error!s:.200} at {where}", file=sys.stderr, flush=True
        )

    # --- the peers ---

    def _on_control(self, session: Session, plaintext: bytes, source: bytes, direct: bool) -> None:
        message = control.decode(plaintext)
        if message is None:
            self.inbound.counts.refused += 1
            return
        now = time.monotonic()
        session.path.reported(now, message.lost)
        if message.type is Type.ANSWER:
            session.path.answered(now, message.nonce, direct=direct)
        elif message.type is Type.PROBE:
            to = source if direct else session.name
            if to is not None:
                address, port = (source[-20:-4], int.from_bytes(source[2:4], "big")) if direct else (bytes(16), 0)
                answer = Control(Type.ANSWER, message.nonce, session.received, session.lost, address, port)
                self.outbound.control(session, control.encode(answer), 0, to)
        if session.path.changed or session.path.next_at <= now:
            self._tick_at = 0.0


def _path_of(session: Session) -> SleevePath:
    path = session.path
    name = path.direct_name if path.learned and path.is_direct else None
    return SleevePath(
        peer=session.peer,
        works=path.works,
        endpoint=endpoint_of(name) if name is not None else None,
        rtt_s=path.rtt_s,
        loss=round(path.loss, 4),
        datagram_bytes=path.size,
        sent_bytes=session.sent_bytes,
        received_bytes=session.received_bytes,
        lost=session.lost,
        refused=session.refused,
    )
