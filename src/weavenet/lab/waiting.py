"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from weavenet.core.errors import Code, Failure, WeaveError

T = TypeVar("T")

INTERVAL_S = 0.02


def wait_until(condition: Callable[[], T], deadline_s: float, what: str) -> T:
    """Asks until the condition is truthy and returns its value.

    Raises ``WeaveError`` (``TIMEOUT``) that names ``what``; an exception of the condition passes through.
    """
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise WeaveError(
                Failure(
                    Code.TIMEOUT, f"expected {what} within {deadline_s:g} s", "it did not happen", "look at the logs"
                )
            )
        time.sleep(INTERVAL_S)
