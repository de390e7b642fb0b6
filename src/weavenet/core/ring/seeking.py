"""The requester's side of space between peers: whom to ask, one owner at a time, until somebody gives.

Invariants: at most one request in flight per donor (donors remember one answer per requester); a request is repeated
under the same id to the same donor; ids only grow, over restarts too. Abandoning a request is harmless: if it was
granted all the same, the ring brings the space.

A need waits without limit: refused by every reachable owner, it starts over after SPACE_RETRY_S. It does not know what
the space is for, and does not merge grants (``ipam``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from weavenet.core.effects import Outbox
from weavenet.core.limits import SPACE_RETRY_S
from weavenet.core.messages.unicast import SpaceRequest
from weavenet.core.ranges import RANGE_BITS, base
from weavenet.core.types import PeerId

TRIES_MAX = 5
"""Unanswered requests to one donor before another is asked: it may be stopped, or hold an older log than we do."""


class Need(NamedTuple):
    """Space wanted within offsets [low, high) of one range; ``exact``: exactly these."""

    low: int
    high: int
    exact: bool


class Ask(msgspec.Struct):
    """A request in flight."""

    need: Need
    donor: PeerId
    request: int
    retry_at: float
    tries: int = 1


class Seeker:
    """``incarnation`` must grow from start to start in its bits above the lowest 32, which are ignored."""

    def __init__(self, incarnation: int, outbox: Outbox, rng: random.Random) -> None:
        self._next_request = ((incarnation >> 32) << 32) + 1
        self._outbox = outbox
        self._rng = rng
        self.asks: dict[Need, Ask] = {}
        self._denied: dict[Need, set[PeerId]] = {}
        self._rest_until: dict[Need, float] = {}

    @property
    def is_idle(self) -> bool:
        return not (self.asks or self._denied or self._rest_until)

    def deadline(self) -> float | None:
        if not self.asks and not self._rest_until:
            return None
        times = [ask.retry_at for ask in self.asks.values()]
        times += self._rest_until.values()
        return min(times, default=None)

    def seek(
        self,
        now: float,
        needs: Iterable[Need],
        owners: Callable[[Need], Mapping[PeerId, int]],
        reachable: frozenset[PeerId],
    ) -> None:
        """Work towards exactly ``needs``. ``owners`` tells who has how much of a need's window, ourselves excluded."""
        wanted = dict.fromkeys(needs)
        for table in (self.asks, self._denied, self._rest_until):
            for need in [each for each in table if each not in wanted]:
                del table[need]
        self._repeat(now, reachable)
        self._rest_until = {need: until for need, until in self._rest_until.items() if until > now}
        busy = {ask.donor for ask in self.asks.values()}
        for need in wanted:
            if need in self.asks or need in self._rest_until:
                continue
            donor = self._choose(now, need, owners(need), reachable, busy)
            if donor is not None:
                busy.add(donor)
                self._ask(now, need, donor)

    def answered(self, donor: PeerId, request: int) -> Ask | None:
        """The ask that this answers, which is over; None for an answer that nobody waits for any more."""
        for need, ask in self.asks.items():
            if ask.donor == donor and ask.request == request:
                del self.asks[need]
                return ask
        return None

    def denied(self, now: float, ask: Ask) -> None:
        """``ask`` was refused: try the others first. An exact need has no others and rests."""
        self._denied.setdefault(ask.need, set()).add(ask.donor)
        if ask.need.exact:
            self._rest_until[ask.need] = now + SPACE_RETRY_S
            del self._denied[ask.need]

    def clear(self) -> None:
        self.asks.clear()
        self._denied.clear()
        self._rest_until.clear()

    def _repeat(self, now: float, reachable: frozenset[PeerId]) -> None:
        for ask in list(self.asks.values()):
            if ask.donor not in reachable:
                del self.asks[ask.need]
            elif now >= ask.retry_at and ask.tries >= TRIES_MAX:
                del self.asks[ask.need]
                self.denied(now, ask)
            elif now >= ask.retry_at:
                ask.tries += 1
                self._send(now, ask)

    def _choose(
        self,
        now: float,
        need: Need,
        owners: Mapping[PeerId, int],
        reachable: frozenset[PeerId],
        busy: set[PeerId],
    ) -> PeerId | None:
        present = sorted(owner for owner in owners if owner in reachable)
        if not present:
            return None
        denied = self._denied.get(need, set())
        willing = [owner for owner in present if owner not in denied]
        if not willing:
            del self._denied[need]
            self._rest_until[need] = now + SPACE_RETRY_S
            return None
        idle = [owner for owner in willing if owner not in busy]
        if not idle:
            return None
        return self._rng.choices(idle, weights=[owners[owner] for owner in idle])[0]

    def _ask(self, now: float, need: Need, donor: PeerId) -> None:
        ask = Ask(need, donor, self._next_request, now)
        self._next_request += 1
        self.asks[need] = ask
        self._send(now, ask)

    def _send(self, now: float, ask: Ask) -> None:
        ask.retry_at = now + SPACE_RETRY_S
        need = ask.need
        number = need.low >> RANGE_BITS
        low, high = need.low - base(number), need.high - base(number)
        self._outbox.unicast(ask.donor, SpaceRequest(ask.request, number, low, high, need.exact))
