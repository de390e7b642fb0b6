"""Runs one node: feeds it events, executes its effects in one sequence, arms one timer.

Invariants:

- **Persist first.** An effect that shows state leaves only when every ``Persist`` emitted before it, by this or any
  earlier event, is durable. Effects keep their order: one waiting effect holds back all later ones. Only ``Send`` with
  ``stateless`` and ``Probe`` (and ``Note``, which leaves no trace outside) pass ahead.
- **Blocked and closed before shown.** What follows a ``SetBlocked`` or a ``SetPlane`` that closes a path waits until
  the kernel has it: a confirmation that lets others use an address must not overtake the filter it relies on.
- The node is entered by one call at a time; events that occur while it or a driver method runs are queued.
- Every ``Requested`` ends: by the node's ``Reply``, by ``Cancelled`` when its waiter goes away, or by the failure that
  ended the executor.
- A failed commit or an exception out of the node or the driver ends the executor for good: nothing waiting is sent, no
  further event is handled. The owner reports it and starts a new life from what is on disk. (An effect that failed
  cannot be skipped: those after it rely on it.)

Bound: above PENDING_EFFECTS_MAX waiting effects the driver stops reading from links and new commands are refused as
busy, until half of it is left. What still arrives then (timers, closed links, probes) is bounded by its own rate.

Does not know sockets, SQLite or the kernel: these sit behind :class:`Driver` and :class:`Journal`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, assert_never

from weavenet.core.commands import Command, Result
from weavenet.core.effects import (
    Change,
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
from weavenet.core.errors import Code, Failure, RefusalCode
from weavenet.core.events import Cancelled, Event, Requested, Tick
from weavenet.core.messages import Message
from weavenet.core.overlay.sleeve import SleeveDesired

PENDING_EFFECTS_MAX = 16_384
"""A commit takes a fraction of a millisecond, so this many waiting effects mean a disk that stands still."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def boot_time() -> float:
    """Seconds since boot, time asleep included: after a suspend, silence and ages are what they are for everybody else
    (CLOCK_MONOTONIC would believe in links that the other side closed long ago). Never set by an administrator."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class RunnableNode(Protocol):
    """The part of ``weavenet.core.node.Node`` that is needed here."""

    def start(self, now: float) -> list[Effect]: ...

    def handle(self, now: float, event: Event) -> list[Effect]: ...

    def deadline(self) -> float | None: ...


class Journal(Protocol):
    """The part of the store that is needed here; tickets grow by one per write and become durable in order."""

    def write(self, changes: tuple[Change, ...]) -> int: ...


class Driver(Protocol):
    """Executes what the node wants outside. None of these may block or raise; outcomes come back as events."""

    def send(self, link: int, message: Message) -> None: ...

    def resolve(self, target: str) -> None: ...

    def offer_record(self, url: str, record: bytes) -> None: ...

    def withdraw_record(self, url: str, record: bytes) -> None: ...

    def dial(self, dial: int, host: str, port: int) -> None: ...

    def close_link(self, link: int, code: RefusalCode, sentence: str) -> None: ...

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        """Call ``done`` once, now or later, when no path to anybody else is open."""

    def set_sleeve(self, desired: SleeveDesired) -> None: ...

    def set_blocked(self, blocked: tuple[tuple[str, str], ...], done: Callable[[], None]) -> None:
        """Call ``done`` once, now or later, when frames of these addresses are dropped."""

    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None: ...

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None: ...

    def vacate(self) -> None:
        """Take all containers off the network, then post the command ``Vacated``."""

    def pause_reading(self, paused: bool) -> None: ...


class Executor:
    """``on_end`` is called once, with the failure that ended this life."""

    def __init__(
        self,
        node: RunnableNode,
        journal: Journal,
        driver: Driver,
        on_end: Callable[[Failure], None],
        *,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._node, self._journal, self._driver, self._on_end, self._clock = node, journal, driver, on_end, clock
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Event | None] = deque()  # None: start
        self._pending: deque[tuple[int, Effect]] = deque()
        self._waiting: dict[int, Callable[[Result], None]] = {}
        self._requests = 0
        self._ticket = 0
        self._durable = 0
        self._busy = False
        self._held = False  # a filter or a closed path is being applied
        self._paused = False
        self._ended: Failure | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_arming = False

    @property
    def ended(self) -> Failure | None:
        return self._ended

    @property
    def pending_effects(self) -> int:
        return len(self._pending)

    def start(self) -> None:
        """Let the node emit its first effects."""
        self._inbox.append(None)
        self._drain()

    def post(self, event: Event) -> None:
        """Handle ``event`` now, or right after what is being handled."""
        if self._ended is not None:
            return
        self._inbox.append(event)
        if not self._busy:
            self._drain()

    def durable(self, ticket: int) -> None:
        """Everything up to ``ticket`` is on disk: what waited for it leaves."""
        self._durable = max(self._durable, ticket)
        if not self._busy:
            self._drain()

    def submit(self, command: Command, done: Callable[[Result], None]) -> Callable[[], None]:
        """Run one command; ``done`` gets its result, perhaps before this returns, and must not raise. The returned
        function cancels the command; after it ``done`` is not called."""
        refusal = self._refusal()
        if refusal is not None:
            done(refusal)
            return lambda: None
        self._requests += 1
        number = self._requests
        self._waiting[number] = done
        self.post(Requested(number, command))

        def cancel() -> None:
            if self._waiting.pop(number, None) is not None:
                self.post(Cancelled(number))

        return cancel

    async def request(self, command: Command) -> Result:
        """Run one command. Cancelling the task cancels the command."""
        future: asyncio.Future[Result] = self._loop.create_future()
        cancel = self.submit(command, lambda result: None if future.done() else future.set_result(result))
        try:
            return await future
        finally:
            cancel()

    def _refusal(self) -> Failure | None:
        """Why no command can be taken now."""
        if self._ended is not None:
            return self._ended
        if self._paused:
            return Failure(
                Code.BUSY,
                "expected the disk to keep up",
                f"{len(self._pending)} effects wait for it",
                "try again; `weave status` says when the store is slow",
            )
        return None

    def end(self, failure: Failure) -> None:
        """Stop for good: nothing that waits is sent any more; whoever waits for a reply gets ``failure``."""
        if self._ended is not None:
            return
        self._ended = failure
        self._inbox.clear()
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(failure)
        self._on_end(failure)

    def _drain(self) -> None:
        """Send what may leave, handle events until none is left, then arm the timer."""
        self._busy = True
        is_deadline_stale = bool(self._inbox)
        try:
            self._release()
            while self._inbox:
                is_deadline_stale = True
                self._handle(self._inbox.popleft())
                self._release()
        except Exception as error:
            self._fail(error, "expected every effect to be carried out")
        finally:
            self._busy = False
        if is_deadline_stale and not self._is_arming:
            self._is_arming = True
            self._loop.call_soon(self._arm)

    def _handle(self, event: Event | None) -> None:
        now = self._clock()
        try:
            effects = self._node.start(now) if event is None else self._node.handle(now, event)
        except Exception as error:
            self._fail(error, "expected the node to handle every event")
            return
        for effect in effects:
            self._take(effect)

    def _fail(self, error: Exception, expected: str) -> None:
        logging.getLogger("weave.executor").error("starting anew from what is on disk", exc_info=error)
        self.end(Failure(Code.INTERNAL, expected, repr(error), "report this bug"))

    def _take(self, effect: Effect) -> None:
        """Persist goes to the store, stateless effects out, the rest behind what is not durable yet."""
        if self._ended is not None:
            return
        match effect:
            case Persist(changes=changes):
                self._ticket = self._journal.write(changes)
            case Note():
                self._note(effect)
            case Probe():
                self._driver.probe(effect.mac, effect.nonce, effect.is_answer)
            case Send(stateless=True):
                self._driver.send(effect.link, effect.message)
            case _ if self._pending or self._held or self._durable < self._ticket:
                self._pending.append((self._ticket, effect))
                if len(self._pending) > PENDING_EFFECTS_MAX:
                    self._pause(True)
            case _:
                self._execute(effect)

    def _release(self) -> None:
        pending = self._pending
        while pending and not self._held and pending[0][0] <= self._durable:
            self._execute(pending.popleft()[1])
        if self._paused and len(pending) <= PENDING_EFFECTS_MAX // 2:
            self._pause(False)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._driver.send(effect.link, effect.message)
            case Reply():
                done = self._waiting.pop(effect.request, None)
                if done is not None:
                    done(effect.result)
            case Resolve():
                self._driver.resolve(effect.target)
            case OfferRecord():
                self._driver.offer_record(effect.url, effect.record)
            case WithdrawRecord():
                self._driver.withdraw_record(effect.url, effect.record)
            case Dial():
                self._driver.dial(effect.dial, effect.host, effect.port)
            case CloseLink():
                self._driver.close_link(effect.link, effect.code, effect.sentence)
            case SetPlane():
                self._held = True
                self._driver.set_plane(effect.peers, self._unhold)
            case SetSleeve():
                self._driver.set_sleeve(effect.desired)
            case SetBlocked():
                self._held = True
                self._driver.set_blocked(effect.blocked, self._unhold)
            case SetNames():
                self._driver.set_names(effect.whole, effect.names)
            case Fence():
                self.end(
                    Failure(
                        Code.FENCED,
                        "expected to be a member of the cluster",
                        effect.reason,
                        "nothing: this host comes back under a new identity and claims its addresses one by one",
                    )
                )
            case Vacate():
                self._driver.vacate()
            case Depart():
                next_step = "nothing: whatever weave made on this host is being removed"
                self.end(Failure(Code.DEPARTED, "expected a member of the cluster", effect.reason, next_step))
            case Probe() | Note() | Persist():
                raise TypeError(f"{type(effect).__name__} never waits")
            case _:
                assert_never(effect)

    def _unhold(self) -> None:
        self._held = False
        if self._ended is None and not self._busy:
            self._drain()

    def _note(self, note: Note) -> None:
        logging.getLogger(f"weave.{note.topic}").log(_LEVELS.get(note.level, logging.INFO), "%s", note.text)

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._driver.pause_reading(paused)

    def _arm(self) -> None:
        """Keep one timer, no later than the node's deadline. An earlier one is left alone: it finds nothing due and
        arms anew, which is cheaper than a timer per event. Events do this once per turn of the loop, when the store's
        thread has had its chance to begin the commit that somebody waits for."""
        self._is_arming = False
        if self._ended is not None:
            return
        deadline = self._node.deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        deadline = self._node.deadline()
        if deadline is not None and deadline <= self._clock():
            self.post(Tick())
        else:
            self._arm()
