"""One life of a node: feeds it events, executes its effects by the rule of ``weavenet.core.effects``.

The same rule as the runtime's executor: what shows state waits, in order, until every persist emitted before it is
durable; only stateless sends, probes and notes pass ahead. A crash can fall between any two effects, as they are
emitted and as they leave.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Protocol

from weavenet.core.commands import Result
from weavenet.core.effects import (
    CloseLink,
    Depart,
    Dial,
    Effect,
    Fence,
    NameRecord,
    Note,
    OfferRecord,
    Persist,
    PlanePeer,
    Probe,
    Reply,
    Resolve,
    Send,
    SetBlocked,
    SetNames,
    SetPlane,
    SetSleeve,
    Vacate,
    WithdrawRecord,
)
from weavenet.core.errors import InvariantBroken
from weavenet.core.events import Event, Tick
from weavenet.core.messages import Message, decode_message, encode
from weavenet.core.node import Node
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId
from weavenet.sim.disk import Disk
from weavenet.sim.trace import Trace, effect_text, event_text
from weavenet.sim.violation import Violation

TICKS_PER_S_MAX = 2000
"""A node that wants more wake-ups than this in one second of virtual time spins."""


class ProcessDied(Exception):
    """Raised inside effect execution where a planned crash falls."""


class Fenced(Exception):
    """Raised when the node says that it was removed: its host fences the disk and starts it anew."""


class Departed(Exception):
    """Raised when the node says that it has left: its host wipes the disk and does not start it again."""


class Outside(Protocol):
    """What the effects act on: the host and its network."""

    label: str

    def send(self, link: int, message: Message) -> None: ...
    def resolve(self, target: str) -> None: ...
    def offer_record(self, record: bytes) -> None: ...
    def withdraw_record(self, record: bytes) -> None: ...
    def dial(self, dial: int, host: str, port: int) -> None: ...
    def close_link(self, link: int, sentence: str) -> None: ...
    def set_plane(self, peers: tuple[PlanePeer, ...]) -> None: ...
    def set_sleeve(self, desired: SleeveDesired) -> None: ...
    def set_blocked(self, blocked: tuple[tuple[str, str], ...]) -> None: ...
    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None: ...
    def probe(self, peer: PeerId, nonce: int, is_answer: bool) -> None: ...
    def reply(self, request: int, result: Result) -> None: ...
    def vacate(self) -> None: ...
    def local_now(self) -> float: ...


class Driver:
    """``codec_every``: each so-many-th message goes through encode and decode, 0: none. ``check_every``: the node's
    own ``check()`` runs after each so-many-th event."""

    def __init__(  # noqa: PLR0917
        self, node: Node, disk: Disk, outside: Outside, trace: Trace | None, codec_every: int, check_every: int
    ) -> None:
        self.node = node
        self._disk = disk
        self._outside = outside
        self._trace = trace
        self._codec_every = codec_every
        self._check_every = check_every
        self._handled = 0
        self._sent = 0
        self._waiting: deque[tuple[int, Effect]] = deque()
        self.crash_countdown: int | None = None
        """Effects that are still executed before the process dies; None: it lives on."""
        self._tick_second = -1
        self._ticks = 0

    def start(self) -> None:
        self._run(None)

    def handle(self, event: Event) -> None:
        """Raises ProcessDied when the planned crash falls here, Violation when the node breaks."""
        if type(event) is Tick:
            self._count_tick()
        self._run(event)

    def release(self) -> None:
        """The disk made progress: let out what waited for it."""
        waiting, durable = self._waiting, self._disk.acknowledged
        while waiting and waiting[0][0] <= durable:
            self._execute(waiting.popleft()[1])

    def _run(self, event: Event | None) -> None:
        now = self._outside.local_now()
        if self._trace is not None:
            self._note("start" if event is None else event_text(event))
        try:
            effects = self.node.start(now) if event is None else self.node.handle(now, event)
            self._handled += 1
            if self._handled % self._check_every == 0:
                self.node.check()
        except InvariantBroken as broken:
            raise Violation("check", f"{self._outside.label}: {broken}") from broken
        except Exception as error:
            raise Violation("exception", f"{self._outside.label}: {type(error).__name__}: {error}") from error
        for effect in effects:
            self._emit(effect)

    def _emit(self, effect: Effect) -> None:
        if self.crash_countdown is not None:
            self._count_down()
        if type(effect) is Persist:
            if self._trace is not None:
                self._note(effect_text(effect))
            self._disk.append(effect.changes)
        elif passes_ahead(effect) or (not self._waiting and self._disk.acknowledged == self._disk.appended):
            self._execute(effect)
        else:
            self._waiting.append((self._disk.appended, effect))

    def _execute(self, effect: Effect) -> None:
        if self.crash_countdown is not None:
            self._count_down()
        if self._trace is not None:
            self._note(effect_text(effect))
        outside = self._outside
        match effect:
            case Send():
                outside.send(effect.link, self._coded(effect.message) if self._codec_every else effect.message)
            case Reply():
                outside.reply(effect.request, effect.result)
            case Probe():
                outside.probe(effect.peer, effect.nonce, effect.is_answer)
            case SetPlane():
                outside.set_plane(effect.peers)
            case SetSleeve():
                outside.set_sleeve(effect.desired)
            case SetBlocked():
                outside.set_blocked(effect.blocked)
            case SetNames():
                outside.set_names(effect.whole, effect.names)
            case Resolve():
                outside.resolve(effect.target)
            case OfferRecord():
                outside.offer_record(effect.record)
            case WithdrawRecord():
                outside.withdraw_record(effect.record)
            case Dial():
                outside.dial(effect.dial, effect.host, effect.port)
            case CloseLink():
                outside.close_link(effect.link, effect.sentence)
            case Fence():
                raise Fenced
            case Depart():
                raise Departed
            case Vacate():
                outside.vacate()
            case Note() | Persist():
                pass

    def _coded(self, message: Message) -> Message:
        self._sent += 1
        if self._sent % self._codec_every:
            return message
        decoded = decode_message(encode(message))
        if decoded != message:
            raise Violation("codec", f"{self._outside.label}: {message} came back as {decoded}")
        return decoded

    def _count_down(self) -> None:
        assert self.crash_countdown is not None
        self.crash_countdown -= 1
        if self.crash_countdown < 0:
            raise ProcessDied

    def _count_tick(self) -> None:
        second = int(self._outside.local_now())
        if second != self._tick_second:
            self._tick_second, self._ticks = second, 0
        self._ticks += 1
        if self._ticks > TICKS_PER_S_MAX:
            raise Violation("spin", f"{self._outside.label} asked for {self._ticks} wake-ups within one second")

    def _note(self, text: str) -> None:
        if self._trace is not None:
            self._trace.add(self._outside.local_now(), self._outside.label, text)


def passes_ahead(effect: Effect) -> bool:
    """Whether an effect shows no state and need not wait for the disk."""
    return (type(effect) is Send and effect.stateless) or type(effect) in (Probe, Note)


def node_seed(seed: int, index: int, life: int) -> random.Random:
    """Randomness of one life of one node: different at each start, equal in each replay."""
    return random.Random(f"{seed}/{index}/{life}")
