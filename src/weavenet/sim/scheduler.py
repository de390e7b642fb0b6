"""Virtual time: one heap of callbacks, ordered by (time, order of scheduling).

Invariant: the same calls in the same order give the same history; nothing here looks at a real clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Callback = Callable[..., None]


class Scheduler:
    def __init__(self) -> None:
        self.now = 0.0
        self.fired = 0
        """Callbacks run so far."""
        self._heap: list[tuple[float, int, Callback, tuple[object, ...]]] = []
        self._order = 0

    def at(self, time: float, callback: Callback, *arguments: object) -> None:
        """Run ``callback`` at ``time``, or at once when that has passed."""
        self._order += 1
        heapq.heappush(self._heap, (time if time > self.now else self.now, self._order, callback, arguments))

    def after(self, delay_s: float, callback: Callback, *arguments: object) -> None:
        self.at(self.now + delay_s, callback, *arguments)

    def run_until(self, time: float, stop: Callable[[], bool] | None = None) -> None:
        """Run everything up to ``time``; ``stop`` is asked after each callback and ends the run early."""
        heap = self._heap
        while heap and heap[0][0] <= time:
            self.now, _, callback, arguments = heapq.heappop(heap)
            self.fired += 1
            callback(*arguments)
            if stop is not None and stop():
                return
        self.now = max(self.now, time)
