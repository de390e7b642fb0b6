"""Waiting for a daemon that may need long, and saying meanwhile what for."""

from __future__ import annotations

import time
from collections.abc import Callable

from weavenet.cli.client import Call, Reply, ask, checked
from weavenet.cli.outcome import LIMIT, Ended
from weavenet.cli.printing import Progress

LOOK_EVERY_S = 1.0

Report = dict[str, object]


def wait_for(
    call: Call, *, describe: Callable[[Report], str], silent_s: float, timeout_s: float | None, hint: str
) -> Reply:
    """The successful reply of ``call``. After ``silent_s`` the report is read every second and ``describe`` turned into
    a line on stderr. Raises Ended(2) with the last such line and ``hint`` at the timeout; closing the call cancels the
    command in the daemon."""
    began = time.monotonic()
    progress = Progress()
    text = ""
    try:
        reply = call.wait(_step(began, silent_s, timeout_s))
        while reply is None:
            text = describe(ask("GET", "/v1/report").json())
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                raise Ended(LIMIT, f"not done within {timeout_s:g} s: {text}; next: {hint}")
            progress.show(text)
            reply = call.wait(_step(began, LOOK_EVERY_S, timeout_s))
        return checked(reply)
    finally:
        progress.end()
        call.close()


def _step(began: float, wanted_s: float, timeout_s: float | None) -> float:
    if timeout_s is None:
        return wanted_s
    return max(0.001, min(wanted_s, began + timeout_s - time.monotonic()))


def ipam_of(report: Report) -> Report:
    """The IPAM part of a report; empty when it is off."""
    ipam = report.get("IPAM")
    return ipam if isinstance(ipam, dict) else {}
