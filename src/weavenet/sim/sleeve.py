"""A sleeve worker in virtual time: real heartbeats (:class:`weavenet.sleeve.path.Path`), datagrams as values.

Keys are compared instead of used: a datagram is taken when both ends know the other's key that it was sealed with.
Everything else is as the product does it: direct while probes sent straight to the peer are answered, else over the
relay that the core names; hop by hop, at most HOPS of them; status upwards when something changed and once a second.
The worker outlives the daemon and dies with the machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from weavenet.core.limits import PORT_DEFAULT
from weavenet.core.overlay.sleeve import (
    SleeveDesired,
    SleeveEndpoint,
    SleeveKey,
    SleevePath,
    SleevePeer,
    SleeveStatus,
)
from weavenet.core.types import PeerId
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.underlay import Underlay
from weavenet.sleeve.path import Path

HOPS = 8
STATUS_S = 1.0
DATAGRAM_BYTES = 1472
"""What interfaces take here."""
_TICK_MIN_S = 0.02


@dataclass(frozen=True, slots=True)
class Datagram:
    """``frame``: number of a frame for containers, 0 for a heartbeat. ``trail``: hosts that it came by."""

    source: PeerId
    destination: PeerId
    source_key: bytes
    destination_key: bytes
    hops: int = HOPS
    frame: int = 0
    nonce: int = 0
    is_answer: bool = False
    trail: tuple[int, ...] = ()


@dataclass(slots=True)
class _Session:
    path: Path
    wanted: SleevePeer
    traffic: int = field(default=0)


class Worker:
    """``report``: takes a status; ``deliver(frame, trail)``: a frame for the containers of this host arrived."""

    def __init__(
        self,
        index: int,
        host: str,
        *,
        scheduler: Scheduler,
        underlay: Underlay,
        rng: random.Random,
        lookup: Callable[[str], Worker | None],
        report: Callable[[SleeveStatus], None],
        deliver: Callable[[PeerId, int, tuple[int, ...]], None],
    ) -> None:
        self.index = index
        self.host = host
        self._scheduler = scheduler
        self._underlay = underlay
        self._rng = rng
        self._lookup = lookup
        self._report = report
        self._deliver = deliver
        self._life = 0
        self._process = b""
        self._key = SleeveKey(0, bytes(32))
        self._me = PeerId(b"")
        self._sessions: dict[PeerId, _Session] = {}
        self._timer = 0
        self._timer_at = 0.0
        self._status_at = 0.0
        self.is_running = False

    def start(self) -> None:
        """A new process: new key, nothing known."""
        self._life += 1
        self._process = self._rng.randbytes(8)
        self._key = SleeveKey(self._life % 256, self._rng.randbytes(32))
        self._sessions = {}
        self._me = PeerId(b"")
        self.is_running = True
        self._status_at = self._scheduler.now
        self._arm(self._scheduler.now + _TICK_MIN_S)

    def stop(self) -> None:
        self.is_running = False
        self._timer += 1

    # --- the daemon ---

    def apply(self, desired: SleeveDesired) -> None:
        if not self.is_running:
            return
        if self._me and self._me != desired.me:  # one worker, one identity
            self.start()
        now = self._scheduler.now
        self._me = desired.me
        wanted = {peer.peer: peer for peer in desired.peers}
        for gone in [peer for peer in self._sessions if peer not in wanted]:
            del self._sessions[gone]
        for peer, want in wanted.items():
            session = self._sessions.get(peer)
            if session is None:
                session = self._sessions[peer] = _Session(Path(now, self._rng, lambda name: DATAGRAM_BYTES), want)
            old, session.wanted, path = session.wanted, want, session.path
            path.candidates = tuple(endpoint.host.encode() for endpoint in want.endpoints)
            path.carries, path.has_relay = want.carries, want.relay is not None
            before = old.endpoints, old.keys, old.relay, old.carries
            if before != (want.endpoints, want.keys, want.relay, want.carries):
                path.kick(now)
        self._arm(now)

    def status(self) -> SleeveStatus:
        paths = []
        for peer, session in self._sessions.items():
            path = session.path
            name = path.direct_name if path.learned and path.is_direct else None
            endpoint = None if name is None else SleeveEndpoint(name.decode(), PORT_DEFAULT)
            paths.append(SleevePath(peer, path.works, endpoint, path.rtt_s, 0.0, path.size, 0, 0, 0, 0))
        return SleeveStatus(self._process, PORT_DEFAULT, (self._key,), tuple(paths), (), {})

    # --- time ---

    def _arm(self, at: float) -> None:
        self._timer += 1
        self._timer_at = max(at, self._scheduler.now + _TICK_MIN_S)
        self._scheduler.at(self._timer_at, self._tick, self._timer)

    def _arm_for(self, session: _Session) -> None:
        """Frames flow, so a round may be due sooner."""
        next_at = min(path.next_at for path in (session.path, session.path.via) if path is not None)
        if next_at < self._timer_at:
            self._arm(next_at)

    def _tick(self, timer: int) -> None:
        if timer != self._timer or not self.is_running:
            return
        now = self._scheduler.now
        is_changed = False
        next_at = now + STATUS_S
        for peer, session in list(self._sessions.items()):
            path = session.path
            if session.wanted.keys:
                for nonce, name, _ in path.due(now):
                    to = name if name is not None else self._relay_name(session)
                    self._send(peer, session, to, nonce=nonce)
            is_changed |= path.changed
            path.changed = False
            next_at = min(next_at, path.next_at)
        if is_changed or now >= self._status_at:
            self._status_at = now + STATUS_S
            self._report(self.status())
        self._arm(min(next_at, self._status_at))

    # --- datagrams ---

    def _name(self, session: _Session) -> bytes | None:
        relay = self._sessions.get(session.wanted.relay) if session.wanted.relay else None
        session.path.via = None
        if relay is not None and not session.path.is_direct:
            session.path.via = relay.path
            return relay.path.direct_name
        return session.path.direct_name

    def _relay_name(self, session: _Session) -> bytes | None:
        relay = self._sessions.get(session.wanted.relay) if session.wanted.relay else None
        return None if relay is None else relay.path.direct_name

    def _send(
        self,
        peer: PeerId,
        session: _Session,
        to: bytes | None,
        *,
        nonce: int = 0,
        is_answer: bool = False,
        frame: int = 0,
    ) -> None:
        if to is None or not session.wanted.keys:
            return
        keys = self._key.public, session.wanted.keys[-1].public
        self._put(to, Datagram(self._me, peer, *keys, HOPS, frame, nonce, is_answer, (self.index,)))

    def _put(self, to: bytes, datagram: Datagram) -> None:
        target = self._lookup(to.decode())
        if target is not None and target is not self:
            name = self.host.encode()
            self._underlay.carry(PORT_DEFAULT, self.index, target.index, lambda: target.receive(name, datagram))

    def send_group(self, frame: int) -> None:
        """A broadcast of a local container: one copy for each peer that takes groups over sleeve."""
        for peer, session in list(self._sessions.items()):
            if session.wanted.carries and session.wanted.takes_groups and session.wanted.is_open:
                name = self._name(session)
                session.path.traffic(self._scheduler.now)
                self._send(peer, session, name, frame=frame)
                self._arm_for(session)

    def receive(self, source: bytes, datagram: Datagram) -> None:
        if not self.is_running:
            return
        if datagram.destination != self._me:
            self._pass_on(source, datagram)
            return
        session = self._sessions.get(datagram.source)
        if session is None or datagram.destination_key != self._key.public:
            return
        if all(key.public != datagram.source_key for key in session.wanted.keys):
            return
        path, is_direct = session.path, datagram.hops == HOPS
        if is_direct:
            path.learned = source
        now = self._scheduler.now
        if datagram.frame:
            path.traffic(now)
            if session.wanted.is_open:
                self._deliver(datagram.source, datagram.frame, (*datagram.trail, self.index))
        elif datagram.is_answer:
            path.answered(now, datagram.nonce, direct=is_direct)
        else:
            to = source if is_direct else self._name(session)
            self._send(datagram.source, session, to, nonce=datagram.nonce, is_answer=True)
        if path.changed or path.next_at <= now:
            self._arm(now)

    def _pass_on(self, source: bytes, datagram: Datagram) -> None:
        session = self._sessions.get(datagram.destination)
        if session is None or datagram.hops == 0:
            return
        to = self._name(session)
        if to is not None and to != source:
            if datagram.frame:
                (session.path.via or session.path).relayed(self._scheduler.now)
                self._arm_for(session)
            trail = (*datagram.trail, self.index)
            relayed = Datagram(
                datagram.source,
                datagram.destination,
                datagram.source_key,
                datagram.destination_key,
                datagram.hops - 1,
                datagram.frame,
                datagram.nonce,
                datagram.is_answer,
                trail,
            )
            self._put(to, relayed)
