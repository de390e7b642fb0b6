"""Waiting for a daemon that may need long, and saying meanwhile what for."""

from __future__ import annotations

import time
from collections.abc import Callable

from weavenet.cli.client import ANSWER_TIMEOUT_S, Call, Reply, ask, checked
from weavenet.cli.outcome import LIMIT, Ended
from weavenet.cli.printing import Progress

LOOK_EVERY_S = 1.0
ANSWER_S = 0.1
"""What the daemon answers at once is heard, however short the timeout."""
SILENCE = "the daemon does not answer"
SILENCE_STEP = "`weave status` again says whether it hangs"

Report = dict[str, object]


class TimedOut(Ended):
    """The wait for ``waited_for`` was given up; ``report`` is what the daemon said last, empty if it was silent."""

    def __init__(self, sentence: str, waited_for: str, report: Report) -> None:
        super().__init__(LIMIT, sentence)
        self.waited_for = waited_for
        self.report = report


def wait_for(
    call: Call,
    *,
    describe: Callable[[Report], str],
    silent_s: float,
    timeout_s: float | None,
    hint: str | Callable[[Report], str],
) -> Reply:
    """The successful reply of ``call``. After ``silent_s`` the report is read every second and ``describe`` turned into
    a line on stderr. Raises TimedOut with the last such line and ``hint`` at the timeout; closing the call cancels the
    command in the daemon."""
    began = time.monotonic()
    progress = Progress()
    text = ""
    report: Report = {}
    try:
        reply = call.wait(max(ANSWER_S, _step(began, silent_s, timeout_s)))
        while reply is None:
            report = _report(report, _step(began, ANSWER_TIMEOUT_S, timeout_s))
            text = describe(report) if report else SILENCE
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                step = hint(report) if callable(hint) else hint if report else SILENCE_STEP
                raise TimedOut(f"not done within {timeout_s:g} s: {text}; next: {step}", text, report)
            progress.show(text)
            reply = call.wait(_step(began, LOOK_EVERY_S, timeout_s))
        return checked(reply)
    finally:
        progress.end()
        call.close()


def _report(last: Report, seconds: float) -> Report:
    """What the daemon says now, else ``last``: between two lives it cannot say it, and the answer may still come. One
    that hangs does not keep anybody for longer than ``seconds``."""
    try:
        return ask("GET", "/v1/report", timeout_s=max(ANSWER_S, seconds)).json()
    except Ended:
        return last


def _step(began: float, wanted_s: float, timeout_s: float | None) -> float:
    if timeout_s is None:
        return wanted_s
    return max(0.001, min(wanted_s, began + timeout_s - time.monotonic()))


def ipam_of(report: Report) -> Report:
    """The IPAM part of a report; empty when it is off."""
    ipam = report.get("IPAM")
    return ipam if isinstance(ipam, dict) else {}
