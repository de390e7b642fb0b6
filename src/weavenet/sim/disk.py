"""A disk that tells the truth late.

A persist is queued, becomes durable with the group commit it joined, and is acknowledged at that moment; commits take
a random time, so acknowledgements come among other events. What was written but not acknowledged may survive a crash,
but only as a prefix: persist k is on disk only if all before it are.

Not modelled: torn or rotten pages (the store's checksums answer for those).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from weavenet.core.effects import Change
from weavenet.sim.faults import FaultOptions
from weavenet.sim.scheduler import Scheduler


class Disk:
    def __init__(self, scheduler: Scheduler, rng: random.Random, options: FaultOptions) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self.options = options
        self.durable: dict[tuple[str, bytes], bytes] = {}
        self.on_append: Callable[[tuple[Change, ...]], None] = lambda changes: None
        self._queue: deque[tuple[Change, ...]] = deque()
        self._committing = 0
        self._generation = 0
        self.appended = 0
        """Number of persists ever taken; the count is the ticket that :attr:`acknowledged` is compared with."""
        self.acknowledged = 0
        self.on_durable: Callable[[], None] = lambda: None

    def append(self, changes: tuple[Change, ...]) -> None:
        self._queue.append(changes)
        self.appended += 1
        if not self._committing:
            self._begin()
        self.on_append(changes)

    def written(self) -> dict[tuple[str, bytes], bytes]:
        """What it will hold when all that it was given is durable."""
        rows = dict(self.durable)
        for changes in self._queue:
            _apply(rows, changes)
        return rows

    def crash(self) -> dict[tuple[str, bytes], bytes]:
        """Lose what is not durable, except a random prefix of it; the survivors are returned for the next start."""
        for _ in range(self._rng.randint(0, len(self._queue)) if self._queue else 0):
            _apply(self.durable, self._queue.popleft())
        self._queue.clear()
        self._committing = 0
        self._generation += 1
        self.acknowledged = self.appended
        return dict(self.durable)

    def write_now(self, changes: tuple[Change, ...]) -> None:
        """One commit of a program that does nothing else meanwhile."""
        self.crash()
        _apply(self.durable, changes)

    def wipe(self) -> None:
        """The disk is gone; an empty one takes its place."""
        self.crash()
        self.durable = {}

    def _begin(self) -> None:
        self._committing = len(self._queue)
        options = self.options
        if options.slow_fsync_probability and self._rng.random() < options.slow_fsync_probability:
            delay = self._rng.uniform(options.fsync_max_s, options.slow_fsync_max_s)
        else:
            delay = self._rng.uniform(options.fsync_min_s, options.fsync_max_s)
        self._scheduler.after(delay, self._commit, self._generation)

    def _commit(self, generation: int) -> None:
        if generation != self._generation:
            return
        for _ in range(self._committing):
            _apply(self.durable, self._queue.popleft())
        self.acknowledged += self._committing
        self._committing = 0
        if self._queue:
            self._begin()
        self.on_durable()


def _apply(rows: dict[tuple[str, bytes], bytes], changes: tuple[Change, ...]) -> None:
    for change in changes:
        key = (change.table, change.key)
        if change.value is None:
            rows.pop(key, None)
        else:
            rows[key] = change.value
