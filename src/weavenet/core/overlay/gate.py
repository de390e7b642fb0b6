"""Before a data path to a new peer opens, those with an open one confirm the removals that came with it (spec 04b).

A peer that learns of a removal while it is about to open a path may have paths to others who have not heard of it and
still show addresses of the removed, or of whoever the removed gave them to. With the new path those could be seen
twice. So the new path waits until each of them has confirmed; whoever has not within CONFIRM_PATIENCE_S is closed, and
handed over anew later. Where nobody waits for a path, a removal closes nothing but the removed.

It does not matter which of the waiting peers a removal came from: the path to each of them opens behind it.
"""

from __future__ import annotations

import random

from weavenet.core.effects import Outbox
from weavenet.core.limits import COLLECT_RETRY_S, CONFIRM_PATIENCE_S
from weavenet.core.messages.unicast import AppliedAnswer, AppliedQuery
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.types import PeerId


class Gate:
    """Memory only: after a restart every path is handed over again before a new one opens."""

    def __init__(self, *, planes: OpenPlanes, outbox: Outbox, rng: random.Random) -> None:
        self._planes = planes
        self._outbox = outbox
        self._rng = rng
        self._query: AppliedQuery | None = None
        self._unconfirmed: set[PeerId] = set()
        self._ask_at = 0.0
        self._close_at = 0.0

    @property
    def is_shut(self) -> bool:
        return bool(self._unconfirmed) and not self._unconfirmed.isdisjoint(self._planes.peers)

    def deadline(self) -> float | None:
        return min(self._ask_at, self._close_at) if self.is_shut else None

    def shut(self, now: float, number: int, entry: bytes) -> None:
        """A removal was learnt, up to this entry of the log, while a path waits to be opened."""
        self._query = AppliedQuery(self._rng.getrandbits(62), number, entry)
        self._unconfirmed = set(self._planes.peers)
        self._ask_at = now
        self._close_at = now + CONFIRM_PATIENCE_S

    def tick(self, now: float) -> None:
        if not self.is_shut or self._query is None or now < self._ask_at:
            return
        self._ask_at = now + COLLECT_RETRY_S
        for peer in sorted(self._unconfirmed & self._planes.peers):
            self._outbox.unicast(peer, self._query)

    def confirmed(self, source: PeerId, answer: AppliedAnswer) -> None:
        if self._query is not None and answer.session == self._query.session:
            self._unconfirmed.discard(source)

    def overdue(self, now: float) -> tuple[PeerId, ...]:
        """Whose paths are to be closed now."""
        if not self.is_shut or now < self._close_at:
            return ()
        gone = tuple(sorted(self._unconfirmed & self._planes.peers))
        self._unconfirmed.clear()
        return gone
