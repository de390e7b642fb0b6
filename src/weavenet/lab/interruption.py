"""Ctrl-C, SIGTERM and a closed terminal as one exception, so that what was begun is taken down in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked to end. ``status`` is the exit status a shell expects: 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """The first of the signals raises :class:`Interrupted`; further ones are ignored, so that the teardown it sets off
    is not itself torn. Only for the main thread."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {each: signal.signal(each, interrupt) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def then_always(story: Callable[[], None], teardown: Callable[[], None]) -> None:
    """Runs the story; then, whatever ended it, the teardown, which no signal ends. Only for the main thread."""
    with interruptible():
        try:
            story()
        finally:
            late = _ignore_signals()
            teardown()
            if late is not None:
                raise late


def _ignore_signals() -> Interrupted | None:
    """Returns the interruption that came while it did so; from the first on, the handler ignores the rest."""
    late = None
    for _ in range(2):
        try:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)
        except Interrupted as interrupted:
            late = interrupted
    return late
