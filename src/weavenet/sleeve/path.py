"""One path: does it work, how long is the round trip, how large may datagrams be, does it lose. No I/O.

Heartbeats go out in rounds (intervals of spec: 500 ms until answered and while frames flow, 5 s in use but quiet, 60
to 120 s when idle, back-off to 60 s while unanswered). A round has a small probe to each place that may lead to the
peer, and one as large as data, so that a path that only takes small datagrams is noticed. Larger sizes are probed
when the path comes up and once a minute (RFC 8899: sizes are confirmed by answers, never by ICMP).

Datagrams go where the newest of the peer's came from. Where that address never answers, while the peer answers at
another (it sends from an address that nothing leads to), they go to that other one.

Units (one seal over up to 60 kB) are used only while the peer reports no loss: a loss then costs all of it. After a
loss each segment is sealed by itself for ``hold_s``, which doubles each time the path disappoints again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

SIZES = (528, 1232, 1352, 1392, 1432, 1452, 1472, 4052, 8924, 8972)
"""UDP payloads to try. 528 and 1232: what underlays of 576 and 1280 take under IPv6; 1472: Ethernet under IPv4."""
SIZE_FIRST = 1232
BUSY_S, QUIET_S, IDLE_S, IDLE_JITTER_S = 0.5, 5.0, 60.0, 60.0
NAT_KEEPALIVE_S = 20.0
"""For a peer that is only reached where its datagrams came from: translators forget UDP flows after 30 s and more."""
ROUND_MIN_S = 0.9 * BUSY_S
"""One that was cut short by a kick is judged with the next: its answers may be on their way."""
BUSY_AFTER_TRAFFIC_S = 10.0
MISSES_MAX = 3
EAGER_ROUNDS = 20
BACKOFF, BACKOFF_STEPS_MAX = 1.5, 20
"""Per round, and after how many of them it is IDLE_S for certain: a float ends at some 1750."""
SIZE_RETRY_S = 60.0
OUTSTANDING_MAX = 64
HOLD_FIRST_S, HOLD_MAX_S = 15.0, 600.0
SMOOTHING = 0.2


class Probe:
    """A heartbeat that waits for its answer. ``name``: raw address it went to; None: over the relay."""

    __slots__ = ("is_trial", "name", "sent_at", "size")

    def __init__(self, name: bytes | None, sent_at: float, size: int, *, is_trial: bool) -> None:
        self.name = name
        self.sent_at = sent_at
        self.size = size
        self.is_trial = is_trial


class Path:
    """``changed``: something that the daemon decides by changed; the owner clears it."""

    def __init__(self, now: float, rng: random.Random, room_to: Callable[[bytes], int]) -> None:
        """``room_to``: the largest UDP payload that the interface towards a raw address takes."""
        self._rng = rng
        self._room_to = room_to
        self._outstanding: dict[int, Probe] = {}
        self._answered = True
        self._direct_answered = True
        self._size_answered = True
        self._size_misses = 0
        self._size_retry_at = now
        self._round_at = float("-inf")
        self._lost_seen = 0
        self._trials = 0
        """Probes of sizes that may be too large and were not answered: losing them says nothing about loss."""
        self._hold_s = HOLD_FIRST_S
        self._hold_until = 0.0
        self.candidates: tuple[bytes, ...] = ()
        self.learned: bytes | None = None
        """Where the newest authenticated datagram came from that no relay had touched."""
        self._asked: bytes | None = None
        """What was learned when the last probes left, and in how many rounds in a row it did not answer."""
        self._asked_misses = 0
        self._asked_answered = False
        self._answering: bytes | None = None
        """Where else the peer answered last."""
        self._deaf: bytes | None = None
        """What was learned, and does not answer there."""
        self.has_relay = False
        self.via: Path | None = None
        """That of the relay, while datagrams go there."""
        self.carries = False
        self.next_at = now
        self.misses = 0
        self.direct_misses = MISSES_MAX
        self.works = False
        self.is_proven = False
        self.rtt_s: float | None = None
        self.loss = 0.0
        self.size = SIZE_FIRST
        self.traffic_at = now - 3600.0
        self.relayed_at = now - 3600.0
        self.changed = True

    @property
    def is_direct(self) -> bool:
        """Whether a probe sent straight to the peer was answered lately."""
        return self.direct_misses < MISSES_MAX

    @property
    def direct_name(self) -> bytes | None:
        """The raw address for datagrams that go straight to the peer."""
        if self._deaf is not None and self.learned == self._deaf:
            return self._answering
        return self.learned or (self.candidates[0] if self.candidates else None)

    def units_allowed(self, now: float) -> bool:
        """Whether the path has shown no loss for long enough to risk 60 kB under one seal."""
        return now >= self._hold_until

    # --- rounds ---

    def due(self, now: float) -> list[tuple[int, bytes | None, int]]:
        """Probes to send now, if a round is due: (nonce, raw address or None for the relay, datagram size or 0 for
        the smallest)."""
        if now < self.next_at:
            return []
        if now - self._round_at >= ROUND_MIN_S:
            self._end_round()
            self._answered = self._direct_answered = self._asked_answered = self._size_answered = False
            self._round_at = now
        wanted: list[tuple[bytes | None, int]] = []
        if self.learned != self._asked:
            self._asked, self._asked_misses, self._asked_answered, self._deaf = self.learned, 0, False, None
        names = {self.learned} if self.learned else set()
        if self._asked_misses and self._answering is not None:
            names.add(self._answering)
        if not self.is_direct or self.misses:
            names |= set(self.candidates)
        wanted += [(name, 0) for name in sorted(names)]
        if self.has_relay and not self.is_direct:
            wanted.append((None, 0))
        if self.works:
            name = self.direct_name if self.is_direct else None
            if name is not None or self.has_relay:
                wanted.append((name, self.size))
                if now >= self._size_retry_at:
                    self._size_retry_at = now + SIZE_RETRY_S
                    room = self._room_to(name) if name is not None else SIZES[-1]
                    wanted += [(name, size) for size in SIZES if self.size < size <= room]
                elif self._size_misses:
                    wanted += [(name, size) for size in SIZES if size < self.size]
        probes = []
        for name, size in wanted:
            nonce = self._rng.getrandbits(62)
            is_trial = size > self.size
            self._trials += is_trial
            self._outstanding[nonce] = Probe(name, now, size, is_trial=is_trial)
            probes.append((nonce, name, size))
        while len(self._outstanding) > OUTSTANDING_MAX:
            del self._outstanding[next(iter(self._outstanding))]
        extra = min(self.misses - EAGER_ROUNDS, BACKOFF_STEPS_MAX)
        self.next_at = now + (BUSY_S if extra <= 0 else min(BUSY_S * BACKOFF**extra, IDLE_S))
        return probes

    def _end_round(self) -> None:
        """Judge the round before."""
        if not self._answered:
            self.misses += 1
            if self.misses >= MISSES_MAX and (self.works or not self.is_proven):
                self.works, self.changed = False, True
        if not self._direct_answered and self.direct_misses < MISSES_MAX:
            self.direct_misses += 1
            self.changed = self.changed or self.direct_misses == MISSES_MAX
        self._judge_learned()
        if self._answered and self.works and not self._size_answered:
            self._size_misses += 1
            if self._size_misses >= MISSES_MAX and self.size > SIZES[0]:
                self.size = max(size for size in SIZES if size < self.size)
                self._size_misses, self.changed = MISSES_MAX - 1, True
        else:
            self._size_misses = 0

    def _judge_learned(self) -> None:
        if self._asked is None:
            return
        before = self._deaf
        if self._asked_answered:
            self._asked_misses, self._deaf = 0, None
        else:
            self._asked_misses += 1
            if self._asked_misses >= MISSES_MAX and self._direct_answered:
                self._deaf = self._asked
        if self._deaf != before:
            self._size_misses, self._size_retry_at, self.changed = 0, self._round_at, True

    def answered(self, now: float, nonce: int, *, direct: bool) -> None:
        """An authenticated answer. ``direct``: no relay had touched it."""
        probe = self._outstanding.pop(nonce, None)
        if probe is None:
            return
        self.misses = 0
        self._trials -= probe.is_trial and self._trials > 0
        if direct and probe.name is not None:
            self._direct_answered = True
            if probe.name == self._asked:
                self._asked_answered = True
            else:
                self._answering = probe.name
            if self.direct_misses:
                self.changed = self.changed or not self.is_direct
                self.direct_misses = 0
        if probe.size:
            if probe.size == self.size:
                self._size_answered = True
            elif probe.size > self.size:
                self.size, self._size_answered, self.changed = probe.size, True, True
        else:
            sample = max(0.0, now - probe.sent_at)
            self.rtt_s = sample if self.rtt_s is None else self.rtt_s + SMOOTHING * (sample - self.rtt_s)
        self._answered = True
        if not self.works:
            self.works = self.is_proven = self.changed = True
            self._size_retry_at = now
            self.next_at = now  # with the sizes
        elif not probe.size:
            self.next_at = max(self.next_at, now + self._interval(now))

    def _interval(self, now: float) -> float:
        if self.carries and now - self.traffic_at < BUSY_AFTER_TRAFFIC_S:
            return BUSY_S
        if now - self.relayed_at < BUSY_AFTER_TRAFFIC_S:
            return BUSY_S
        if self.carries:
            return QUIET_S
        if self.learned is not None and self.direct_name not in self.candidates:
            return NAT_KEEPALIVE_S
        return IDLE_S + self._rng.random() * IDLE_JITTER_S

    def kick(self, now: float) -> None:
        """Something changed (keys, addresses, use): probe at once instead of waiting out an interval."""
        self.next_at = min(self.next_at, now)
        self.misses = min(self.misses, MISSES_MAX)

    def keyless(self) -> None:
        """There is no key to seal with, not even probes."""
        if self.works:
            self.works, self.changed = False, True

    def traffic(self, now: float) -> None:
        """Frames flow: watch closely."""
        if now - self.traffic_at > BUSY_S:
            if self.carries:
                self.next_at = min(self.next_at, now + BUSY_S)
            self.traffic_at = now
            if self.via is not None:
                self.via.relayed(now)

    def relayed(self, now: float) -> None:
        """Datagrams to or from a third peer pass here, whose way depends on it: watch closely, whatever else carries
        our own frames."""
        if now - self.relayed_at > BUSY_S:
            self.next_at = min(self.next_at, now + BUSY_S)
            self.relayed_at = now

    # --- what the other side and the kernel say ---

    def reported(self, now: float, lost: int) -> None:
        """How many of our datagrams the peer missed so far. Fewer than before: it is new, or some came late."""
        fresh, self._lost_seen = lost - self._lost_seen, lost
        forgiven = min(max(fresh, 0), self._trials)
        self._trials -= forgiven
        if fresh <= forgiven:
            return
        if now >= self._hold_until:
            is_again = self._hold_until and now - self._hold_until < self._hold_s
            self._hold_s = min(self._hold_s * 2, HOLD_MAX_S) if is_again else HOLD_FIRST_S
        self._hold_until = now + self._hold_s

    def sample_loss(self, received: int, lost: int) -> None:
        """Datagrams from the peer since the last sample, to the running share that is reported."""
        total = received + lost
        if total > 0:
            self.loss += SMOOTHING * (lost / total - self.loss)

    def too_large(self) -> None:
        """The interface itself refuses the size in use."""
        smaller = [size for size in SIZES if size < self.size]
        if smaller:
            self.size, self.changed = smaller[-1], True
