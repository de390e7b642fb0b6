"""The worker's event loop: epoll and deadlines, nothing else.

asyncio would cost 10 MB of memory and 20 µs per wake-up, a quarter of what an answer may take (bench/run dns). Handlers
run one at a time and must not block. An exception out of a handler ends the loop: the worker dies and its supervisor
starts another.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol

READ, WRITE, ERROR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP
EVENTS_MAX = 64
"""Per turn; the rest is taken in the next one."""


class Timed(Protocol):
    """Something with deadlines, in seconds of ``time.monotonic``."""

    def deadline(self) -> float | None: ...

    def tick(self, now: float) -> None:
        """Called when the deadline has passed."""


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timed: list[Timed] = []
        self._is_stopped = False

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """``handler`` gets the epoll events. Raises OSError."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Before ``fd`` is closed."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def watch(self, timed: Timed) -> None:
        self._timed.append(timed)

    def stop(self) -> None:
        self._is_stopped = True

    def run(self) -> None:
        """Until :meth:`stop`."""
        poll, handlers, clock = self._epoll.poll, self._handlers, time.monotonic
        while not self._is_stopped:
            for fd, events in poll(self._wait_s(), EVENTS_MAX):
                handler = handlers.get(fd)  # None: an earlier handler of this turn removed it
                if handler is not None:
                    handler(events)
            for timed in self._timed:
                deadline = timed.deadline()
                if deadline is not None and deadline <= clock():
                    timed.tick(clock())

    def _wait_s(self) -> float:
        least: float | None = None
        for timed in self._timed:
            deadline = timed.deadline()
            if deadline is not None and (least is None or deadline < least):
                least = deadline
        return -1.0 if least is None else max(0.0, least - time.monotonic())

    def close(self) -> None:
        self._epoll.close()
