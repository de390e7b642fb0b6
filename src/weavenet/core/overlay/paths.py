"""Heartbeats on the data path: does it work, how long is the round trip, how much is lost.

"Works" is measured, never assumed. Intervals (spec 06): 500 ms until answered and while frames flowed in the last 10 s
(bad after 3 misses); 5 s while in use but quiet; 60-120 s with jitter when idle; unanswered paths back off to 60 s,
those in use to 5 s. Where the round trip takes longer than an interval, the answer to an earlier probe counts, and the
interval grows with it. Loss is counted in probes, not in time, so a suspended host wakes up without false alarms.

A path that broke counts as working again after as many answers in a row as the number of times it broke lately asks
for (1, 2, 4, … 16), so that one that comes and goes does not drag the frames along.
"""

from __future__ import annotations

import random
from enum import Enum

from weavenet.core.effects import Outbox, Probe
from weavenet.core.limits import (
    PROBE_BUSY_S,
    PROBE_DAMPING_S,
    PROBE_IDLE_MAX_S,
    PROBE_IDLE_MIN_S,
    PROBE_MISSES,
    PROBE_PROOFS_MAX,
    PROBE_QUIET_S,
    PROBE_RETURN_S,
    TRAFFIC_BUSY_S,
    TRAFFIC_IDLE_S,
)
from weavenet.core.types import PeerId, plane_mac

_EAGER_PROBES = 20
"""An unanswered path is probed this often at 500 ms before the interval grows."""
_BACKOFF = 1.5
_ROUND_TRIPS, _PATIENCE_MAX_S = 1.5, 1.0
"""A probe counts as missed after so many round trips, where that is longer than 500 ms, and this long at most."""
_SMOOTHING = 0.2


class PathState(Enum):
    """UNPROVEN: nothing came back yet. WORKING: the last probes were answered. BROKEN: three in a row were not, nor
    enough since."""

    UNPROVEN = "unproven"
    WORKING = "working"
    BROKEN = "broken"


class _Path:
    __slots__ = (
        "answers",
        "awaits",
        "broke_at",
        "in_use",
        "loss",
        "misses",
        "next_at",
        "proofs",
        "rtt_s",
        "sent",
        "state",
    )

    def __init__(self, now: float) -> None:
        self.state = PathState.UNPROVEN
        self.next_at = now
        self.sent: dict[int, float] = {}  # nonces of the newest probes without an answer
        self.awaits = False  # whether no answer came since the last probe left
        self.misses = 0
        self.rtt_s: float | None = None
        self.loss = 0.0
        self.in_use = True
        self.answers = 0
        self.proofs = 1
        self.broke_at: float | None = None


class Paths:
    """One path per open peer. ``changed``: peers whose path changed its state since somebody emptied it."""

    def __init__(self, *, outbox: Outbox, rng: random.Random) -> None:
        self._outbox = outbox
        self._rng = rng
        self._paths: dict[PeerId, _Path] = {}
        self._by_mac: dict[bytes, PeerId] = {}
        self._traffic_at: float | None = None
        self._due: float | None = None
        self._is_due_known = False
        self.changed: set[PeerId] = set()

    def state(self, peer: PeerId) -> PathState | None:
        path = self._paths.get(peer)
        return path.state if path else None

    def rtt_ms(self, peer: PeerId) -> float | None:
        path = self._paths.get(peer)
        return round(path.rtt_s * 1000, 3) if path and path.rtt_s is not None else None

    def loss_percent(self, peer: PeerId) -> float | None:
        path = self._paths.get(peer)
        return round(path.loss * 100, 1) if path and path.state is not PathState.UNPROVEN else None

    def deadline(self) -> float | None:
        if not self._is_due_known:
            self._due = min([path.next_at for path in self._paths.values()], default=None)
            self._is_due_known = True
        return self._due

    def set_peers(self, now: float, in_use: dict[PeerId, bool]) -> None:
        """``in_use`` names every open peer: whether containers on both sides may be talking."""
        self._is_due_known = False
        for peer in [peer for peer in self._paths if peer not in in_use]:
            del self._paths[peer]
            del self._by_mac[plane_mac(peer)]
        for peer, use in in_use.items():
            path = self._paths.get(peer)
            if path is None:
                path = self._paths[peer] = _Path(now)
                self._by_mac[plane_mac(peer)] = peer
            elif use and not path.in_use:
                path.next_at = min(path.next_at, now + PROBE_QUIET_S)
            path.in_use = use

    def forget(self, peer: PeerId) -> None:
        """Frames to ``peer`` take another way from here on: nothing is known of it."""
        if self._paths.pop(peer, None) is not None:
            del self._by_mac[plane_mac(peer)]
            self._is_due_known = False

    def kick(self, now: float, peer: PeerId) -> None:
        """The underlay changed (a link came up): probe at once instead of waiting out a backoff."""
        path = self._paths.get(peer)
        if path is not None and path.state is not PathState.WORKING:
            self._is_due_known = False
            path.next_at = now
            path.misses = min(path.misses, PROBE_MISSES)

    def traffic(self, now: float) -> None:
        """Frames flowed on the plane: paths in use are watched closely."""
        was_busy = self._traffic_at is not None and now - self._traffic_at < TRAFFIC_BUSY_S
        self._traffic_at = now
        if was_busy:
            return
        self._is_due_known = False
        for path in self._paths.values():
            if path.in_use:
                path.next_at = min(path.next_at, now + PROBE_BUSY_S)

    def received(self, now: float, mac: bytes, nonce: int, is_answer: bool) -> None:
        peer = self._by_mac.get(mac)
        if peer is None:
            return  # a peer whose path is not open gets no answer
        if not is_answer:
            self._outbox.append(Probe(peer, mac, nonce, is_answer=True))
            return
        path = self._paths[peer]
        sent_at = path.sent.pop(nonce, None)
        if sent_at is None:
            return
        self._is_due_known = False
        sample = max(0.0, now - sent_at)
        path.rtt_s = sample if path.rtt_s is None else path.rtt_s + _SMOOTHING * (sample - path.rtt_s)
        path.awaits = False
        path.misses = 0
        path.loss *= 1 - _SMOOTHING
        path.answers += 1
        if path.state is not PathState.WORKING:
            if path.state is PathState.BROKEN and path.answers < path.proofs:
                path.next_at = now + PROBE_BUSY_S
                return
            path.loss = 0.0  # what was lost while there was no path, or before its other end opened, is no loss of it
            path.state = PathState.WORKING
            self.changed.add(peer)
        path.next_at = now + self._interval(now, path)

    def tick(self, now: float) -> None:
        self._is_due_known = False
        for peer, path in self._paths.items():
            if now < path.next_at:
                continue
            if path.awaits:
                self._missed(now, peer, path)
            nonce = self._rng.getrandbits(62)
            path.awaits = True
            path.sent[nonce] = now
            if len(path.sent) > PROBE_MISSES:
                del path.sent[next(iter(path.sent))]
            self._outbox.append(Probe(peer, plane_mac(peer), nonce, is_answer=False))
            path.next_at = now + self._unanswered_interval(path)

    def _missed(self, now: float, peer: PeerId, path: _Path) -> None:
        path.misses += 1
        path.answers = 0
        path.loss += _SMOOTHING * (1 - path.loss)
        if path.misses >= PROBE_MISSES and path.state is not PathState.BROKEN:
            is_relapse = path.broke_at is not None and now < path.broke_at + PROBE_DAMPING_S
            path.proofs = min(path.proofs * 2, PROBE_PROOFS_MAX) if is_relapse else 1
            path.broke_at = now
            path.state = PathState.BROKEN
            self.changed.add(peer)

    def _unanswered_interval(self, path: _Path) -> float:
        """Until its answer comes, a probe counts as the first of a series at 500 ms."""
        extra = path.misses - _EAGER_PROBES
        longest_s = PROBE_RETURN_S if path.in_use else PROBE_IDLE_MIN_S
        shortest_s = max(PROBE_BUSY_S, min(_ROUND_TRIPS * (path.rtt_s or 0.0), _PATIENCE_MAX_S))
        return shortest_s if extra <= 0 else min(PROBE_BUSY_S * _BACKOFF ** min(extra, 20), longest_s)

    def _interval(self, now: float, path: _Path) -> float:
        quiet_s = now - self._traffic_at if self._traffic_at is not None else TRAFFIC_IDLE_S
        if path.in_use and quiet_s < TRAFFIC_BUSY_S:
            return PROBE_BUSY_S
        if path.in_use and quiet_s < TRAFFIC_IDLE_S:
            return PROBE_QUIET_S
        return PROBE_IDLE_MIN_S + self._rng.random() * (PROBE_IDLE_MAX_S - PROBE_IDLE_MIN_S)
