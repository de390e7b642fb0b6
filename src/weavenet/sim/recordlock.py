"""The lock of ``lock=URL``, with everything that a shared folder or a server far away can do to those who ask.

An offer counts at some moment, atomically, also when whoever made it died meanwhile; its answer comes later, or never
(then the asker is told so, perhaps before the offer counts).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from weavenet.core.events import Event, RecordOffered
from weavenet.sim.faults import FaultOptions
from weavenet.sim.scheduler import Scheduler

PATIENCE_S = 10.0
"""As the runtime's: an answer that takes longer is an error, and the offer may still count."""


class Asker(Protocol):
    life: int

    def deliver(self, event: Event) -> None: ...


class RecordLock:
    def __init__(self, scheduler: Scheduler, rng: random.Random, options: FaultOptions) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self.options = options
        self.record = b""
        self.offers = 0
        self.on_withdrawn: Callable[[bytes], None] = lambda record: None

    def offer(self, asker: Asker, record: bytes) -> None:
        def keep() -> None:
            self.offers += bool(record)
            self.record = self.record or record

        self._ask(asker, keep)

    def withdraw(self, asker: Asker, record: bytes) -> None:
        def forget() -> None:
            if self.record == record:
                self.record = b""
                self.on_withdrawn(record)

        self._ask(asker, forget)

    def _ask(self, asker: Asker, count: Callable[[], None]) -> None:
        counts_after_s = self._rng.random() * self.options.lock_delay_max_s
        if self._rng.random() < self.options.lock_failure_probability:
            if self._rng.random() < 0.5:
                self._scheduler.after(counts_after_s, count)
            self._scheduler.after(self._rng.random() * PATIENCE_S, self._answer, asker, asker.life, "no answer")
            return
        self._scheduler.after(counts_after_s, count)
        error = "no answer" if counts_after_s > PATIENCE_S else ""
        self._scheduler.after(min(counts_after_s, PATIENCE_S), self._answer, asker, asker.life, error)

    def _answer(self, asker: Asker, life: int, error: str) -> None:
        if asker.life == life:
            asker.deliver(RecordOffered(b"" if error else self.record, error))
