"""When records are pushed: what moved since the last push, and how long the next one waits for company.

A push leaves at once when none left lately. Else what moves meanwhile leaves together, after a pause that grows with
the number of peers: of a thousand that start together each would otherwise forward an event per record and link.
"""

from __future__ import annotations

from typing import NamedTuple

from weavenet.core.deadlines import earliest
from weavenet.core.limits import OWN_PAUSE_PUSHES, PUSH_PAUSE_MAX_S, PUSH_PAUSE_PER_PEER_S
from weavenet.core.mesh.records import Records
from weavenet.core.messages.gossip import Mark
from weavenet.core.types import PeerId


class Moved(NamedTuple):
    """An origin whose records are to be pushed: our mark of it at the last push, and the ids of the links over which
    the newest of them came, which need not be told."""

    before: Mark
    sources: set[int]


class Pacing:
    """``moved_at``: when something was last news to us. Times in seconds of ``now``."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._own: Mark | None = None
        self._own_at: float | None = None
        self._own_left_at = float("-inf")
        self._moved: dict[PeerId, Moved] = {}
        self._push_at: float | None = None
        self._pushed_at = float("-inf")
        self.moved_at = float("-inf")

    def pause_s(self, pushes: int) -> float:
        """That of so many pushes which do not leave one by one."""
        return pushes * min(PUSH_PAUSE_MAX_S, PUSH_PAUSE_PER_PEER_S * len(self._records.origins))

    def own_moved(self, now: float, before: Mark, wait_s: float) -> None:
        """Our records moved on from ``before``; they may wait ``wait_s`` for others of ours."""
        if self._own is None or self._own.incarnation != self._records.incarnation:
            self._own = before
        if wait_s == 0.0:
            self._own_at = now
        elif self._own_at is None:
            self._own_at = max(now + wait_s, self._own_left_at + self.pause_s(OWN_PAUSE_PUSHES))

    def moved(self, now: float, before: Mark, link: int) -> None:
        """An origin moved on from ``before``, as ``link`` told us."""
        self.moved_at = now
        self._note(before, {link})

    def confirmed(self, origin: PeerId, link: int) -> None:
        """``link`` told us exactly what we have of ``origin``."""
        if origin in self._moved:
            self._moved[origin].sources.add(link)

    def _note(self, before: Mark, sources: set[int]) -> None:
        known = self._moved.get(before.origin)
        self._moved[before.origin] = Moved(before if known is None else known.before, sources)

    def take(self, now: float) -> list[Moved]:
        """What is to be pushed now; nothing while it has to wait."""
        if self._own is not None and self._own_at is not None and now >= self._own_at:
            self._note(self._own, set())
            self._own, self._own_at, self._own_left_at = None, None, now
        if not self._moved:
            return []
        push_at = self._pushed_at + self.pause_s(1)
        if now < push_at:
            self._push_at = push_at
            return []
        if self._records.own in self._moved:  # what still waited of our own goes with it: a second push is none
            self._own, self._own_at, self._own_left_at = None, None, now
        moved, self._moved = self._moved, {}
        self._push_at, self._pushed_at = None, now
        return list(moved.values())

    def deadline(self) -> float | None:
        """When :meth:`take` has something, at the latest."""
        return earliest((self._own_at, self._push_at))
