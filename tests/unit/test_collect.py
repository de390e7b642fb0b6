"""The heir's two rounds, between a core and answers made by hand."""

from __future__ import annotations

import random

import msgspec
import pytest

from weavenet.core.effects import Outbox, Persist, Unicast
from weavenet.core.limits import COLLECT_RETRY_S
from weavenet.core.messages.gossip import Push, RingDelta
from weavenet.core.messages.unicast import (
    AppliedAnswer,
    AppliedQuery,
    HoldAnswer,
    HoldQuery,
    RingPage,
    RingPull,
    StampAnswer,
    StampPage,
)
from weavenet.core.removal import Collect
from weavenet.core.ring.log import Chain, Log, genesis_entry
from weavenet.core.types import GENESIS_POSITION, Genesis, PeerId, Remove, Segment, Stamp

ME, A, B, X, Y = (PeerId(letter * 16) for letter in (b"m", b"a", b"b", b"x", b"y"))
HASH = b"h" * 16
PIECE = Segment(0, 4, Stamp(GENESIS_POSITION, 1, A))


class Ring:
    """Stands for ring, allocation and the pages of both."""

    def __init__(self) -> None:
        self.inherits = False
        self.held: tuple[tuple[int, int], ...] = ()
        self.merged: list[RingDelta] = []
        self.is_behind = False

    def inherit(self) -> None:
        if self.inherits:
            self.inherits, self.held = False, ((8, 12),)

    @property
    def holds(self) -> bool:
        return bool(self.held)

    def held_segments(self) -> tuple[Segment, ...]:
        return tuple(Segment(low, high, Stamp(GENESIS_POSITION, 2, ME)) for low, high in self.held)

    def release_held(self, now: float) -> int:
        self.held = ()
        return 4

    def dominates(self, delta: RingDelta) -> bool:
        return not self.is_behind

    def ring_hash(self) -> bytes:
        return HASH

    def log_length(self) -> int:
        return 2

    def pages(self, log_start: int) -> list[Push]:
        return [Push(0, (), (RingDelta(0, 2, (PIECE,)),), (), repair=True)]

    def merge_page(self, now: float, page: Push) -> bool:
        return True

    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None:
        if not self.is_behind:
            self.merged.append(delta)
        return None


class Heir:
    """``ME`` stands for X, and knows A and B."""

    def __init__(self, done_row: bytes | None = None) -> None:
        self.outbox, self.ring = Outbox(), Ring()
        self.log = Log((), self.outbox)
        peers = (ME, A, B, X, Y)
        start = Chain([genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/24",), peers, peers))])
        self.chain = start.with_decree(start.next_position, Remove((X,), ME))
        self.log.merge(0, self.chain.entries)
        self.known = {A, B}
        self.done_row = done_row
        self.collect = Collect(
            me=ME,
            log=self.log,
            ipam=self.ring,  # type: ignore[arg-type]
            state=self.ring,
            done_row=done_row,
            outbox=self.outbox,
            rng=random.Random(1),
            known=lambda: frozenset(self.known),
            reachable=lambda: frozenset(self.known),
            spread=lambda now, delta: None,
        )
        self.ring.inherits = done_row is None

    def sent(self, now: float) -> dict[PeerId, list[object]]:
        self.collect.advance(now)
        found: dict[PeerId, list[object]] = {}
        for effect in self.outbox.drain():
            if isinstance(effect, Unicast):
                found.setdefault(effect.destination, []).append(effect.body)
            elif isinstance(effect, Persist):
                self.done_row = next((c.value for c in effect.changes if c.table == "collect"), self.done_row)
        return found

    def answer(self, now: float, peer: PeerId, asked: list[object], ring_hash: bytes = HASH) -> None:
        for query in asked:
            match query:
                case AppliedQuery():
                    self.collect.handle(now, peer, AppliedAnswer(query.session, ring_hash))
                case StampPage():
                    self.collect.handle(now, peer, StampAnswer(query.session, query.page))

    def remove(self, peer: PeerId) -> None:
        self.chain = self.chain.with_decree(self.chain.next_position, Remove((peer,), ME))
        self.log.merge(0, self.chain.entries)


def test_two_rounds_among_everybody_known_and_then_it_is_usable() -> None:
    heir = Heir()
    first = heir.sent(0.0)
    assert {peer: list(map(type, asked)) for peer, asked in first.items()} == {A: [AppliedQuery], B: [AppliedQuery]}
    heir.answer(0.1, A, first[A])
    assert heir.sent(0.2) == {} and heir.ring.held == (), "not before everybody has applied it"
    assert heir.collect.waiting_for == (B,)
    heir.answer(0.3, B, first[B])
    second = heir.sent(0.4)
    assert heir.ring.held == ((8, 12),)
    assert {peer: list(map(type, asked)) for peer, asked in second.items()} == {A: [StampPage], B: [StampPage]}
    heir.answer(0.5, A, second[A])
    heir.sent(0.6)
    assert heir.ring.held, "not before everybody has the stamps"
    heir.answer(0.7, B, second[B])
    heir.sent(0.8)
    assert not heir.ring.held and not heir.collect.is_needed
    assert heir.collect.deadline() is None
    again = Heir(heir.done_row)
    assert not again.collect.is_needed, "it is durable that all was collected"


def test_silent_ones_are_asked_again_and_the_others_are_not() -> None:
    heir = Heir()
    heir.answer(0.0, A, heir.sent(0.0)[A])
    assert heir.sent(COLLECT_RETRY_S).keys() == {B}


def test_a_ring_that_differs_is_merged_before_its_owner_counts() -> None:
    heir = Heir()
    first = heir.sent(0.0)
    heir.answer(0.1, A, first[A], ring_hash=b"o" * 16)
    (pull,) = heir.sent(0.2)[A]
    assert isinstance(pull, RingPull)
    body = msgspec.msgpack.encode(Push(0, (), (RingDelta(0, 2, (PIECE,)),), (), repair=True))
    heir.ring.is_behind = True
    heir.collect.handle(0.3, A, RingPage(pull.session, b"o" * 16, 0, 1, body))
    assert heir.collect.waiting_for == (A, B), "a page that could not be merged yet"
    heir.ring.is_behind = False
    heir.collect.handle(0.4, A, RingPage(pull.session, b"o" * 16, 0, 2, body))
    heir.collect.handle(0.4, A, RingPage(pull.session, b"p" * 16, 1, 2, body))
    assert heir.collect.waiting_for == (A, B), "halves of two rings are no whole"
    heir.collect.handle(0.5, A, RingPage(pull.session, b"p" * 16, 0, 2, body))
    assert heir.collect.waiting_for == (B,)
    heir.collect.handle(0.6, B, RingPage(pull.session, b"p" * 16, 5, 2, body))
    heir.collect.handle(0.6, B, RingPage(pull.session, b"p" * 16, 0, 1, b"\xc1"))
    assert heir.collect.waiting_for == (B,), "nonsense is refused"


def test_whoever_becomes_known_meanwhile_answers_both_rounds() -> None:
    heir = Heir()
    first = heir.sent(0.0)
    for peer in (A, B):
        heir.answer(0.1, peer, first[peer])
    second = heir.sent(0.2)
    heir.known.add(Y)
    for peer in (A, B):
        heir.answer(0.3, peer, second[peer])
    late = heir.sent(1.0)
    assert heir.ring.held
    assert {peer: sorted(type(each).__name__ for each in asked) for peer, asked in late.items()} == {
        Y: ["AppliedQuery", "StampPage"]
    }
    heir.answer(1.1, Y, late[Y])
    heir.sent(1.2)
    assert not heir.ring.held


def test_another_removal_starts_over() -> None:
    heir = Heir()
    first = heir.sent(0.0)
    heir.answer(0.1, A, first[A])
    heir.remove(Y)
    heir.answer(0.2, B, first[B])
    again = heir.sent(0.3)
    assert heir.collect.waiting_for == (A, B)
    assert all(isinstance(query, AppliedQuery) and query.number == 2 for asked in again.values() for query in asked)
    heir.answer(0.4, A, first[A])
    assert heir.collect.waiting_for == (A, B), "an answer to the earlier question"


@pytest.mark.parametrize("force", [False, True])
def test_a_hold_ends_by_force_only_when_asked_to(force: bool) -> None:
    heir = Heir()
    heir.sent(0.0)
    heir.collect.handle(1.0, A, HoldQuery(7, 1, heir.chain.hashes[1], force))
    (answer,) = heir.sent(0.1)[A][:1]
    assert isinstance(answer, HoldAnswer)
    assert answer.over is force
    assert answer.waiting_for == (() if force else (A, B))
    heir.collect.handle(1.1, A, HoldQuery(7, 1, b"?" * 16, force))
    assert A not in heir.sent(0.2) or not any(isinstance(each, HoldAnswer) for each in heir.sent(0.2)[A])
