"""The effect sequence: nothing that shows state leaves before the persists in front of it are durable."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest

from weavenet.core.commands import Done, Forget, GetReport
from weavenet.core.effects import (
    Change,
    CloseLink,
    Dial,
    Effect,
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
    SetPlane,
    WithdrawRecord,
)
from weavenet.core.errors import Code, Failure, RefusalCode
from weavenet.core.events import Cancelled, Event, LinkClosed, Requested, Tick
from weavenet.core.messages import Heartbeat, Message, Prune
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId
from weavenet.runtime import executor as executor_module
from weavenet.runtime.executor import Executor

Reaction = Callable[[Event], list[Effect]]
CHANGE = Persist((Change("t", b"k", b"v"),))


class FakeNode:
    """Answers each event by a function of the test."""

    def __init__(self, react: Reaction, due: float | None = None) -> None:
        self.react, self.due = react, due
        self.events: list[Event] = []
        self.first: list[Effect] = []

    def start(self, now: float) -> list[Effect]:
        return self.first

    def handle(self, now: float, event: Event) -> list[Effect]:
        self.events.append(event)
        return self.react(event)

    def deadline(self) -> float | None:
        return self.due


class FakeJournal:
    """Durable when the test says so."""

    def __init__(self) -> None:
        self.ticket = 0

    def write(self, changes: tuple[Change, ...]) -> int:
        self.ticket += 1
        return self.ticket


class FakeDriver:
    """Writes down what it is told, as text, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.on_send: Callable[[], None] = lambda: None
        self.finish_blocking: Callable[[], None] = lambda: None
        self.finish_closing: Callable[[], None] = lambda: None
        self.is_closing_slow = False

    def send(self, link: int, message: Message) -> None:
        self.done.append(f"send {type(message).__name__}")
        self.on_send()

    def resolve(self, target: str) -> None:
        self.done.append(f"resolve {target}")

    def offer_record(self, url: str, record: bytes) -> None:
        self.done.append(f"offer {url}")

    def withdraw_record(self, url: str, record: bytes) -> None:
        self.done.append(f"withdraw {url}")

    def dial(self, dial: int, host: str, port: int) -> None:
        self.done.append(f"dial {host}")

    def close_link(self, link: int, code: RefusalCode, sentence: str) -> None:
        self.done.append(f"close {link}")

    def set_sleeve(self, desired: SleeveDesired) -> None:
        self.done.append("sleeve")

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        self.done.append("plane")
        self.finish_closing = done
        if not self.is_closing_slow:
            done()

    def set_blocked(self, blocked: tuple[tuple[str, str], ...], done: Callable[[], None]) -> None:
        self.done.append("blocked")
        self.finish_blocking = done

    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None:
        self.done.append("names")

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        self.done.append("probe")

    def pause_reading(self, paused: bool) -> None:
        self.done.append(f"pause {paused}")


class Bench:
    """One executor over fakes."""

    def __init__(self, react: Reaction, due: float | None = None) -> None:
        self.node, self.journal, self.driver = FakeNode(react, due), FakeJournal(), FakeDriver()
        self.failures: list[Failure] = []
        self.now = 100.0
        self.executor = Executor(self.node, self.journal, self.driver, self.failures.append, clock=lambda: self.now)


def scenario(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(bounded())


ALL_GATED: list[Effect] = [
    Send(1, Prune()),
    Resolve("h"),
    OfferRecord("file:/l", b""),
    WithdrawRecord("file:/l", b"x"),
    Dial(1, "::1", 6783),
    CloseLink(3, RefusalCode.SELF, ""),
    SetPlane(()),
    SetBlocked(()),
]
ALL_GATED_DONE = [
    "send Prune",
    "resolve h",
    "offer file:/l",
    "withdraw file:/l",
    "dial ::1",
    "close 3",
    "plane",
    "blocked",
]


def test_everything_that_shows_state_waits() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [CHANGE, *ALL_GATED, Send(1, Heartbeat(1, 1), stateless=True), NOTE, PROBE])
        bench.executor.post(Tick())
        assert bench.driver.done == ["send Heartbeat", "probe"]
        bench.executor.durable(1)
        assert bench.driver.done == ["send Heartbeat", "probe", *ALL_GATED_DONE]

    scenario(test)


NOTE = Note("info", "test", "a line")
PROBE = Probe(PeerId(bytes(16)), bytes(6), 1, False)


def test_an_earlier_events_persist_holds_back_a_later_event() -> None:
    async def test() -> None:
        reactions: Iterator[list[Effect]] = iter([[CHANGE], [Send(1, Prune())], [CHANGE, Dial(1, "x", 1)]])
        bench = Bench(lambda event: next(reactions))
        for _ in range(3):
            bench.executor.post(Tick())
        assert bench.driver.done == []
        bench.executor.durable(1)
        assert bench.driver.done == ["send Prune"]
        bench.executor.durable(2)
        assert bench.driver.done == ["send Prune", "dial x"]
        assert bench.executor.pending_effects == 0

    scenario(test)


def test_nothing_waits_when_all_is_durable() -> None:
    async def test() -> None:
        bench = Bench(lambda event: list(ALL_GATED))
        bench.executor.post(Tick())
        assert bench.driver.done == ALL_GATED_DONE

    scenario(test)


def test_random_sequences_keep_the_rule() -> None:
    """Against a model: an effect may be out only if the count of persists before it is durable, in order."""

    async def test() -> None:
        rng = random.Random(7)
        for _ in range(50):
            expected: list[tuple[int, str]] = []
            count = 0

            def react(event: Event) -> list[Effect]:
                nonlocal count
                effects: list[Effect] = []
                for _ in range(rng.randrange(4)):
                    if rng.random() < 0.5:
                        count += 1
                        effects.append(CHANGE)
                    else:
                        name = str(len(expected))  # noqa: B023
                        expected.append((count, f"resolve {name}"))  # noqa: B023
                        effects.append(Resolve(name))
                return effects

            bench = Bench(react)
            durable = 0
            for _ in range(40):
                if rng.random() < 0.6:
                    bench.executor.post(Tick())
                elif durable < bench.journal.ticket:
                    durable = rng.randint(durable + 1, bench.journal.ticket)
                    bench.executor.durable(durable)
                assert bench.driver.done == [text for ticket, text in expected if ticket <= durable]

    scenario(test)


def test_request_is_answered_after_its_persist() -> None:
    async def test() -> None:
        def react(event: Event) -> list[Effect]:
            assert isinstance(event, Requested)
            return [CHANGE, Reply(event.request, Done("ok"))]

        bench = Bench(react)
        task = asyncio.create_task(bench.executor.request(Forget(())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        bench.executor.durable(1)
        assert await task == Done("ok")

    scenario(test)


def test_cancelled_request_reaches_the_node_and_a_late_reply_is_dropped() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [])
        task = asyncio.create_task(bench.executor.request(GetReport()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.node.events == [Requested(1, GetReport()), Cancelled(1)]
        bench.node.react = lambda event: [Reply(1, Done())]
        bench.executor.post(Tick())

    scenario(test)


def test_end_answers_waiters_and_stops_everything() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [CHANGE, Send(1, Prune())])
        task = asyncio.create_task(bench.executor.request(GetReport()))
        await asyncio.sleep(0)
        failure = Failure(Code.STORE_FAILED, "expected to write")
        bench.executor.end(failure)
        bench.executor.durable(1)
        bench.executor.post(Tick())
        assert await task == failure
        assert await bench.executor.request(GetReport()) == failure
        assert bench.driver.done == []
        assert bench.failures == [failure]

    scenario(test)


def test_a_node_that_raises_ends_its_life() -> None:
    async def test() -> None:
        def react(event: Event) -> list[Effect]:
            raise KeyError("boom")

        bench = Bench(react)
        assert isinstance(await bench.executor.request(GetReport()), Failure)
        assert [failure.code for failure in bench.failures] == [Code.INTERNAL]

    scenario(test)


def test_a_driver_that_raises_ends_its_life() -> None:
    """Going on would leave out the effects behind the one that failed, persists among them."""

    async def test() -> None:
        bench = Bench(lambda event: [Send(1, Prune()), CHANGE])

        def fail() -> None:
            raise OverflowError("an integer that msgpack does not have")

        bench.driver.on_send = fail
        assert isinstance(await bench.executor.request(GetReport()), Failure)
        assert [failure.code for failure in bench.failures] == [Code.INTERNAL]
        assert bench.journal.ticket == 0 and bench.executor.ended is not None

    scenario(test)


def test_events_out_of_the_driver_do_not_reenter_the_node() -> None:
    async def test() -> None:
        def react(event: Event) -> list[Effect]:
            if isinstance(event, Tick):
                return [Send(1, Prune()), Resolve("after")]
            return [Resolve("closed")]

        bench = Bench(react)
        bench.driver.on_send = lambda: bench.executor.post(LinkClosed(1, None, "full"))
        bench.executor.post(Tick())
        assert bench.driver.done == ["send Prune", "resolve after", "resolve closed"]

    scenario(test)


def test_a_standing_disk_stops_input(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(executor_module, "PENDING_EFFECTS_MAX", 10)
        bench = Bench(lambda event: [CHANGE, Resolve("x")])
        for _ in range(11):
            bench.executor.post(Tick())
        assert bench.driver.done == ["pause True"]
        answer = await bench.executor.request(GetReport())
        assert isinstance(answer, Failure)
        assert answer.code is Code.BUSY
        bench.executor.durable(5)
        assert "pause False" not in bench.driver.done
        bench.executor.durable(6)
        assert bench.driver.done[-1] == "pause False"

    scenario(test)


def test_the_timer_follows_the_deadline() -> None:
    async def test() -> None:
        ticked = asyncio.Event()

        def react(event: Event) -> list[Effect]:
            bench.node.due = None
            ticked.set()
            return []

        bench = Bench(react, due=100.0)
        bench.executor.start()
        await ticked.wait()
        assert bench.node.events == [Tick()]
        ticked.clear()
        bench.node.react = lambda event: []
        bench.node.due = 1e9
        bench.executor.post(LinkClosed(1, None, ""))
        bench.node.react = react
        bench.node.due = 100.0
        bench.executor.post(LinkClosed(1, None, ""))
        await ticked.wait()

    scenario(test)


def test_first_effects_obey_the_rule_too() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [])
        bench.node.first = [CHANGE, SetPlane(())]
        bench.executor.start()
        assert bench.driver.done == []
        bench.executor.durable(1)
        assert bench.driver.done == ["plane"]

    scenario(test)


def test_what_follows_a_block_waits_until_it_is_in_force() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [SetBlocked(()), Send(1, Prune()), Send(1, Heartbeat(1, 1), stateless=True)])
        bench.executor.post(Tick())
        assert bench.driver.done == ["blocked", "send Heartbeat"]
        bench.driver.finish_blocking()
        assert bench.driver.done == ["blocked", "send Heartbeat", "send Prune"]
        assert bench.executor.pending_effects == 0

    scenario(test)


def test_what_follows_a_closed_path_waits_until_the_kernel_has_it() -> None:
    async def test() -> None:
        bench = Bench(lambda event: [SetPlane(()), Send(1, Prune()), Send(1, Heartbeat(1, 1), stateless=True)])
        bench.driver.is_closing_slow = True
        bench.executor.post(Tick())
        assert bench.driver.done == ["plane", "send Heartbeat"]
        bench.driver.finish_closing()
        assert bench.driver.done == ["plane", "send Heartbeat", "send Prune"]
        assert bench.executor.pending_effects == 0

    scenario(test)
