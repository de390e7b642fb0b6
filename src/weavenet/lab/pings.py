"""A running ``ping`` that counts: how many were sent, which never came back, how long the longest silence was."""

from __future__ import annotations

import re
import signal
import tempfile
from pathlib import Path
from types import TracebackType

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab.host import Container
from weavenet.lab.waiting import wait_until

FIRST_ANSWER_DEADLINE_S = 15.0

_SEQUENCE = re.compile(r"icmp_seq=(\d+) ttl=")
_UNSENT = re.compile(r"^ping: send(?:msg|to): ", re.MULTILINE)
_SENT = re.compile(r"(\d+) packets transmitted")


class Count(msgspec.Struct, frozen=True):
    """``longest_gap``: the most pings in a row that were lost. What could not even be sent counts as sent and lost, but
    breaks no row: it got no number. A last ping still under way when it was stopped is not counted."""

    sent: int
    lost: int
    longest_gap: int


def count(output: str) -> Count:
    """What the output of ``ping`` without ``-q`` says. Up to 65,535 pings: the sequence number has 16 bits."""
    answered = {int(number) for number in _SEQUENCE.findall(output)}
    summary = _SENT.search(output)
    if summary is None:
        raise WeaveError(Failure(Code.HOST, "ping ends with a summary", output[-300:].strip()))
    sent = int(summary[1])
    if sent and sent not in answered:
        sent -= 1
    longest = gap = 0
    for number in range(1, sent + 1):
        gap = 0 if number in answered else gap + 1
        longest = max(longest, gap)
    unsent = len(_UNSENT.findall(output))
    return Count(sent + unsent, sent - len(answered & set(range(1, sent + 1))) + unsent, longest)


class Pings:
    """``with Pings(container, address) as pings: …; pings.stop()``. Ends the ping in any case."""

    def __init__(self, source: Container, address: str, *, interval_s: float = 0.01) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="weave-lab-")
        self._file = Path(self._folder.name) / "ping"
        argv = ["ping", "-n", "-W", "1", "-i", f"{interval_s:g}", address]
        self._running = source.popen(argv, out=self._file)
        self._what = f"an answer to {source.name} on {source.host.name} from {address}"

    def __enter__(self) -> Pings:
        try:
            wait_until(lambda: self.answered() > 0, FIRST_ANSWER_DEADLINE_S, self._what)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answered(self) -> int:
        """How many answers were printed so far."""
        return len(_SEQUENCE.findall(self._file.read_text()))

    def stop(self) -> Count:
        self._running.stop(signal.SIGINT)
        return count(self._file.read_text())

    def close(self) -> None:
        if self._running.process.poll() is None:
            self._running.stop(signal.SIGKILL)
        self._folder.cleanup()
