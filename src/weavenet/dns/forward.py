"""Questions that are not ours, asked of the host's upstreams: raced, checked, bounded, cached. Sans-IO.

One *flight* per distinct question, whoever and however many ask it; a flight makes *exchanges*, each with one upstream
under a fresh random id (and, by the transport, from a fresh random port). The first good answer wins, except that
"there is no such name" or "nothing of that type" waits HOLD_S for those who come before in resolv.conf(5): the C
library asks nobody else while the first answers, so hosts name a server that knows more first, and a public one after
it for when that is down. Whoever was silent all that time is not waited for again for SILENT_S. A false or malformed
answer ends nothing; silence is met with two repetitions, then with an answer from the cache whose time is over, then
with SERVFAIL.

Invariants: whoever asks is answered exactly once, at the latest ANSWER_S after; flights, those waiting for one, and
exchanges are bounded, and what is beyond gets SERVFAIL at once; an answer is believed only with the id and the question
that were sent on that very socket. A question that comes back to us joins its own flight instead of making another one;
besides, every new upstream is asked for a random name once, and left out if that question comes back. It is asked for
another one every PROBE_AGAIN_S, and used again when that does not come back: whoever mends a local resolver's settings
does not touch resolv.conf, which names the resolver only.

Does not validate DNSSEC: AD, CD and DO are passed on, and AD comes back (RFC 6840, sections 5.7 and 5.8). Forwards no
EDNS options (client subnet, cookies).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from weavenet.dns import wire
from weavenet.dns.addresses import with_port
from weavenet.dns.cache import Cache, Key, fit
from weavenet.dns.wire import Malformed, Query

RACED_MAX = 3
"""Upstreams asked at once, as many as resolv.conf(5) allows."""
ATTEMPT_S = 1.0
ATTEMPTS_MAX = 3
STALE_AFTER_S = 1.8
"""RFC 8767, section 5: a client that waits longer may give up."""
ANSWER_S = 4.5
"""Clients (glibc, musl) give up, or ask the next server, after 5 s."""
FLIGHTS_MAX = 300
FLIGHTS_PER_CLIENT_MAX = 150
"""One container cannot take the way out from the others."""
WAITERS_MAX = 2000
"""On all flights together, of about 0.7 kB each: many ask the same at once when an application, or a host full of
containers, starts."""
WAITERS_PER_CLIENT_MAX = 1000
HOLD_S = 1.0
SILENT_S = 30.0
FALSE_ANSWERS_MAX = 16
"""On one socket; then somebody is guessing, and it is closed."""
PROBE_S = 3.0
PROBE_AGAIN_S = 30.0
PROBE_SUFFIX = b"\x04test\0"
"""RFC 6761, section 6.2: no such names exist."""

TICK_S = 0.1
"""How often flights are looked at while there are any; there are never so many that looking at all costs much."""

Reply = Callable[[bytes], None]


class Upstream(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return with_port(self.host, self.port)


class Transport(Protocol):
    """Carries one query each. Outcomes come back through :meth:`Forwarder.received` and :meth:`Forwarder.failed`,
    never from within these calls."""

    def open(self, exchange: int, upstream: Upstream, message: bytes, *, tcp: bool) -> None: ...

    def close(self, exchange: int) -> None: ...


class Waiter(NamedTuple):
    client: bytes
    query: Query
    limit_bytes: int
    reply: Reply


class Answer(NamedTuple):
    """A good one."""

    upstream: Upstream
    message: bytes
    response: wire.Response

    @property
    def is_negative(self) -> bool:
        return self.response.rcode == wire.NXDOMAIN or not self.response.answers


class Exchange(msgspec.Struct):
    """``flight`` None: a probe for loops."""

    flight: Flight | None
    upstream: Upstream
    number: int
    question: bytes
    tcp: bool
    false_answers: int = 0


class Flight(msgspec.Struct, eq=False):
    key: Key
    client: bytes
    question: bytes
    edns: wire.Edns | None
    started: float
    waiters: list[Waiter]
    attempts: int = 0
    exchanges: set[int] = msgspec.field(default_factory=set)
    held: Answer | None = None
    """A negative one; of several that of the first upstream."""
    held_at: float = 0.0
    is_truncated: bool = False
    """An upstream's answer does not fit into a datagram, and TCP brought no better one yet."""


class Probe(msgspec.Struct):
    """Counts as over at ``until``, answered or not: a question may come back after its answer."""

    upstream: Upstream
    until: float
    came_back: bool = False


class Counters(msgspec.Struct):
    """Since the start of the worker."""

    asked: int = 0
    from_cache: int = 0
    stale: int = 0
    failed: int = 0
    refused: int = 0
    """For want of room."""
    false_answers: int = 0


class Forwarder:
    """``rng``: not to be guessed by who asks (RFC 5452, section 4.5)."""

    def __init__(self, transport: Transport, rng: random.Random) -> None:
        self._transport = transport
        self._rng = rng
        self._upstreams: tuple[Upstream, ...] = ()
        self._looping: set[Upstream] = set()
        self._silent: dict[Upstream, float] = {}  # not waited for until then
        self._probes: dict[bytes, Probe] = {}  # by name: the last of each upstream
        self._flights: dict[Key, Flight] = {}
        self._per_client: dict[bytes, int] = {}
        self._waiting: dict[bytes, int] = {}  # by client
        self._waiting_in_all = 0
        self._exchanges: dict[int, Exchange] = {}
        self._next_exchange = 0
        self._probing: dict[int, Probe] = {}  # by exchange
        self._probe_again_at = 0.0
        self._next_tick: float | None = None
        self.cache = Cache()
        self.counters = Counters()

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Those that are asked."""
        return tuple(upstream for upstream in self._upstreams if upstream not in self._looping)

    @property
    def looping(self) -> tuple[Upstream, ...]:
        return tuple(sorted(self._looping))

    @property
    def flights(self) -> int:
        return len(self._flights)

    @property
    def exchanges(self) -> int:
        return len(self._exchanges)

    def set_upstreams(self, now: float, upstreams: tuple[Upstream, ...]) -> None:
        """From now on ask these, at most RACED_MAX; each is probed for a loop first thing."""
        if upstreams[:RACED_MAX] == self._upstreams:
            return
        self._upstreams = upstreams[:RACED_MAX]
        self._looping.clear()
        self._silent.clear()
        self._probes.clear()
        for exchange in tuple(self._probing):
            self._end_probe(exchange)
        self.cache.clear()
        for upstream in self._upstreams:
            self._probe(now, upstream)

    def _probe(self, now: float, upstream: Upstream) -> None:
        label = b"%016x" % self._rng.getrandbits(64)
        name = bytes([len(label)]) + label + PROBE_SUFFIX
        self._probes = {known: probe for known, probe in self._probes.items() if probe.upstream != upstream}
        self._probes[name] = probe = Probe(upstream, now + PROBE_S)
        question = name + wire.TXT.to_bytes(2, "big") + wire.IN.to_bytes(2, "big")
        self._probing[self._open(None, upstream, question, None, wire.RD, tcp=False)] = probe
        self._wake(now)

    def _end_probe(self, exchange: int) -> None:
        probe = self._probing.pop(exchange)
        self._close(exchange)
        if not probe.came_back:
            self._looping.discard(probe.upstream)

    def is_probe(self, now: float, folded: bytes) -> bool:
        """Whether a question that reached us is our own probe; its upstream is left out then."""
        probe = self._probes.get(folded)
        if probe is None:
            return False
        probe.came_back = True
        if not self._looping:
            self._probe_again_at = now + PROBE_AGAIN_S
        self._looping.add(probe.upstream)
        self._wake(now)
        return True

    # --- clients ---

    def known(self, now: float, query: Query, limit_bytes: int) -> bytes | None:
        """The answer as of ``now``, when it need not be asked for."""
        message = self.cache.get(now, Key.of(query))
        if message is None:
            return None
        self.counters.from_cache += 1
        return fit(message, query, limit_bytes)

    def ask(self, now: float, query: Query, limit_bytes: int, client: bytes, reply: Reply) -> None:
        """What is not :meth:`known`. ``client``: whoever asks, however long; ``reply`` is called once, perhaps before
        this returns."""
        key = Key.of(query)
        waiter = Waiter(client, query, limit_bytes, reply)
        if self._waiting_in_all >= WAITERS_MAX or self._waiting.get(client, 0) >= WAITERS_PER_CLIENT_MAX:
            self._refuse(now, key, waiter)
            return
        flight = self._flights.get(key)
        if flight is not None:
            self._board(flight, waiter)
            return
        is_full = len(self._flights) >= FLIGHTS_MAX or self._per_client.get(client, 0) >= FLIGHTS_PER_CLIENT_MAX
        if is_full or not self.upstreams:
            self._refuse(now, key, waiter)
            return
        self.counters.asked += 1
        flight = Flight(key, client, query.question, query.edns, now, [])
        self._flights[key] = flight
        self._per_client[client] = self._per_client.get(client, 0) + 1
        self._board(flight, waiter)
        self._attempt(flight)
        self._wake(now)

    def _board(self, flight: Flight, waiter: Waiter) -> None:
        flight.waiters.append(waiter)
        self._waiting[waiter.client] = self._waiting.get(waiter.client, 0) + 1
        self._waiting_in_all += 1

    def _disembark(self, flight: Flight) -> list[Waiter]:
        """Those who waited; nobody does any more."""
        waiters, flight.waiters = flight.waiters, []
        for waiter in waiters:
            _count_down(self._waiting, waiter.client)
        self._waiting_in_all -= len(waiters)
        return waiters

    def _refuse(self, now: float, key: Key, waiter: Waiter) -> None:
        self.counters.refused += 1
        self._fail(now, key, waiter)

    def _fail(self, now: float, key: Key, waiter: Waiter) -> None:
        """An answer whose time is over, or SERVFAIL."""
        message = self.cache.get(now, key, stale=True)
        if message is not None:
            self.counters.stale += 1
            waiter.reply(fit(message, waiter.query, waiter.limit_bytes))
        else:
            self.counters.failed += 1
            waiter.reply(wire.respond(waiter.query, wire.SERVFAIL, flags=wire.RA))

    # --- upstreams ---

    def _attempt(self, flight: Flight) -> None:
        flight.attempts += 1
        for upstream in self.upstreams:
            self._open(flight, upstream, flight.question, flight.edns, flight.key.flags, tcp=False)

    def _open(
        self,
        flight: Flight | None,
        upstream: Upstream,
        question: bytes,
        edns: wire.Edns | None,
        flags: int,
        *,
        tcp: bool,
    ) -> int:
        self._next_exchange += 1
        number = self._rng.getrandbits(16)
        self._exchanges[self._next_exchange] = Exchange(flight, upstream, number, question, tcp)
        if flight is not None:
            flight.exchanges.add(self._next_exchange)
        message = wire.build_query(number, flags, question, edns)
        self._transport.open(self._next_exchange, upstream, message, tcp=tcp)
        return self._next_exchange

    def _close(self, exchange: int) -> None:
        ended = self._exchanges.pop(exchange, None)
        if ended is not None:
            self._transport.close(exchange)
            if ended.flight is not None:
                ended.flight.exchanges.discard(exchange)

    def received(self, now: float, exchange: int, message: bytes) -> None:
        """A datagram or message came in on ``exchange``."""
        current = self._exchanges.get(exchange)
        if current is None:
            return
        flight = current.flight
        try:
            response = wire.parse_response(message, current.number, current.question)
        except Malformed:
            current.false_answers += 1
            self.counters.false_answers += 1
            if current.tcp or current.false_answers >= FALSE_ANSWERS_MAX:
                self.failed(now, exchange)
            return
        if flight is None:
            self._close(exchange)
        elif response.rcode not in (wire.NOERROR, wire.NXDOMAIN):
            self.failed(now, exchange)
        elif response.flags & wire.TC:
            self._close(exchange)
            flight.is_truncated = True
            if not current.tcp:
                self._open(flight, current.upstream, flight.question, flight.edns, flight.key.flags, tcp=True)
            else:
                self._settle(now, flight)
        else:
            self._close(exchange)
            self._weigh(now, flight, Answer(current.upstream, message, response))

    def failed(self, now: float, exchange: int) -> None:
        """Nothing good will come in on ``exchange``: refused, unreachable, closed."""
        current = self._exchanges.get(exchange)
        self._close(exchange)
        if current is not None and current.flight is not None:
            self._settle(now, current.flight)

    def _weigh(self, now: float, flight: Flight, answer: Answer) -> None:
        """Give it, or hold it while somebody may know better."""
        self._silent.pop(answer.upstream, None)
        if not answer.is_negative:
            self._give(now, flight, answer)
            return
        if flight.held is None:
            flight.held_at = now
        if flight.held is None or self._rank(answer.upstream) < self._rank(flight.held.upstream):
            flight.held = answer
        self._settle(now, flight)

    def _settle(self, now: float, flight: Flight) -> None:
        """One of its exchanges has ended."""
        if flight.held is not None:
            if not self._awaited(now, flight, flight.held):
                self._give(now, flight, flight.held)
        elif not flight.exchanges:
            self._give_up(now, flight)

    def _awaited(self, now: float, flight: Flight, held: Answer) -> set[Upstream]:
        """Those before the upstream of ``held`` that may still answer."""
        asked = {self._exchanges[exchange].upstream for exchange in flight.exchanges}
        rank = self._rank(held.upstream)
        return {one for one in asked if self._rank(one) < rank and self._silent.get(one, now) <= now}

    def _rank(self, upstream: Upstream) -> int:
        return self._upstreams.index(upstream) if upstream in self._upstreams else RACED_MAX

    def _give(self, now: float, flight: Flight, answer: Answer) -> None:
        self.cache.put(now, flight.key, answer.message, answer.response)
        for waiter in self._land(flight):
            waiter.reply(fit(answer.message, waiter.query, waiter.limit_bytes))

    def _land(self, flight: Flight) -> list[Waiter]:
        """The flight is over; those who wait for it."""
        self._flights.pop(flight.key, None)
        _count_down(self._per_client, flight.client)
        for exchange in tuple(flight.exchanges):
            self._close(exchange)
        return self._disembark(flight)

    def _give_up(self, now: float, flight: Flight) -> None:
        for waiter in self._land(flight):
            if flight.is_truncated:
                waiter.reply(wire.respond(waiter.query, wire.NOERROR, flags=wire.TC | wire.RA))
            else:
                self._fail(now, flight.key, waiter)

    # --- time ---

    def _wake(self, now: float) -> None:
        if self._next_tick is None or self._next_tick > now + TICK_S:
            self._next_tick = now + TICK_S

    def deadline(self) -> float | None:
        return self._next_tick

    def tick(self, now: float) -> None:
        """Repeat, give up, forget: whatever is due."""
        for flight in list(self._flights.values()):
            self._due(now, flight)
        for exchange in [exchange for exchange, probe in self._probing.items() if probe.until <= now]:
            self._end_probe(exchange)
        if self._looping and self._probe_again_at <= now:
            self._probe_again_at = now + PROBE_AGAIN_S
            for upstream in self.looping:
                self._probe(now, upstream)
        if self._flights or self._probing:
            self._next_tick = now + TICK_S
        else:
            self._next_tick = self._probe_again_at if self._looping else None

    def _due(self, now: float, flight: Flight) -> None:
        age = now - flight.started
        if age >= ANSWER_S:
            self._give_up(now, flight)
            return
        if flight.held is not None and now - flight.held_at >= HOLD_S:
            for upstream in self._awaited(now, flight, flight.held):
                self._silent[upstream] = now + SILENT_S
            self._give(now, flight, flight.held)
            return
        if age >= STALE_AFTER_S and self.cache.get(now, flight.key, stale=True) is not None:
            # The flight goes on, for the cache's sake; only nobody waits any more.
            for waiter in self._disembark(flight):
                self._fail(now, flight.key, waiter)
        if flight.attempts < ATTEMPTS_MAX and age >= flight.attempts * ATTEMPT_S:
            self._attempt(flight)


def _count_down(counts: dict[bytes, int], key: bytes) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
