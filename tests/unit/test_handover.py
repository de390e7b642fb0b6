"""The handover before a data path opens, between two cores over a fake wire."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Outbox, Unicast
from weavenet.core.limits import PAGE_BYTES_MAX
from weavenet.core.messages import encode
from weavenet.core.messages.gossip import Push, RingDelta
from weavenet.core.node import Node
from weavenet.core.overlay.handover import Handover
from weavenet.core.ring.log import genesis_entry
from weavenet.core.types import (
    GENESIS_POSITION,
    Genesis,
    LogEntry,
    PeerId,
    Position,
    Remove,
    Segment,
    Stamp,
    entry_hash,
)

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)


def segment(start: int, version: int, owner: PeerId) -> Segment:
    return Segment(start, start + 4, Stamp(GENESIS_POSITION, version, owner))


class FakeState:
    """A ring as a set of segments that only grows; enough to tell equal from different."""

    def __init__(self, *segments: Segment) -> None:
        self.segments = set(segments)
        self.merged = 0

    def ring_hash(self) -> bytes:
        return hashlib.sha256(repr(sorted(self.segments, key=repr)).encode()).digest()[:16]

    def log_length(self) -> int:
        return 1

    def log_hash(self) -> bytes:
        return bytes(16)

    def pages(self, log_start: int) -> list[Push]:
        return [Push(0, (), (RingDelta(0, 1, (part,)),), (), True) for part in sorted(self.segments, key=repr)]

    def merge_page(self, now: float, page: Push) -> bool:
        self.merged += 1
        self.segments |= set(page.ring[0].segments)
        return True


class Pair:
    def __init__(self, a: FakeState, b: FakeState) -> None:
        self.states = {A: a, B: b}
        self.outboxes = {A: Outbox(), B: Outbox()}
        self.sides = {
            peer: Handover(state=self.states[peer], outbox=self.outboxes[peer], rng=random.Random(peer.hex()))
            for peer in (A, B)
        }
        self.now = 0.0

    def want(self, incarnation: int = 1) -> None:
        self.sides[A].want(self.now, B, incarnation)
        self.sides[B].want(self.now, A, incarnation)

    def exchange(self, drop: object = None) -> None:
        """One round: everybody ticks, then everything sent is delivered, except messages of type ``drop``."""
        self.now += 2.5
        for side in self.sides.values():
            side.tick(self.now)
        for _ in range(20):
            moved = False
            for source, target in ((A, B), (B, A)):
                for effect in self.outboxes[source].drain():
                    if isinstance(effect, Unicast) and not (drop is not None and isinstance(effect.body, drop)):  # type: ignore[arg-type]
                        moved = True
                        self.sides[target].handle(self.now, source, effect.body)  # type: ignore[arg-type]
            if not moved:
                return

    @property
    def complete(self) -> tuple[bool, bool]:
        return self.sides[A].is_complete(B), self.sides[B].is_complete(A)


def test_equal_states_open_without_pages() -> None:
    pair = Pair(FakeState(segment(0, 1, A)), FakeState(segment(0, 1, A)))
    pair.want()
    pair.exchange()
    assert pair.complete == (True, True)
    assert pair.states[A].merged == pair.states[B].merged == 0


def test_different_states_are_merged_on_both_sides_before_either_is_complete() -> None:
    pair = Pair(FakeState(segment(0, 1, A), segment(4, 1, A)), FakeState(segment(8, 2, B)))
    pair.want()
    pair.exchange()
    assert pair.complete == (True, True)
    assert pair.states[A].segments == pair.states[B].segments


def test_it_is_not_complete_while_one_confirmation_is_missing() -> None:
    from weavenet.core.messages.unicast import HandoverDone

    pair = Pair(FakeState(segment(0, 1, A)), FakeState(segment(4, 1, B)))
    pair.want()
    for _ in range(3):
        pair.exchange(drop=HandoverDone)
    assert pair.complete == (False, False)
    pair.exchange()
    assert pair.complete == (True, True)


def test_it_survives_lost_pages_and_offers() -> None:
    from weavenet.core.messages.unicast import HandoverOffer, HandoverPage

    pair = Pair(FakeState(segment(0, 1, A)), FakeState(segment(4, 1, B)))
    pair.want()
    pair.exchange(drop=HandoverPage)
    assert pair.complete == (False, False)
    pair.exchange(drop=HandoverOffer)
    pair.exchange()
    pair.exchange()
    assert pair.complete == (True, True)


def test_a_restarted_side_gets_its_offer_even_when_the_other_has_finished() -> None:
    pair = Pair(FakeState(segment(0, 1, A)), FakeState(segment(0, 1, A)))
    pair.want()
    pair.exchange()
    pair.outboxes[B] = Outbox()
    pair.sides[B] = Handover(state=pair.states[B], outbox=pair.outboxes[B], rng=random.Random(7))
    pair.sides[B].want(pair.now, A, 1)
    pair.exchange()  # A has not noticed the new incarnation of B yet
    pair.sides[A].want(pair.now, B, 2)
    for _ in range(2):
        pair.exchange()
    assert pair.complete == (True, True)


def test_an_impossible_page_is_refused() -> None:
    from weavenet.core.messages.unicast import HandoverPage

    pair = Pair(FakeState(segment(0, 1, A)), FakeState(segment(4, 1, B)))
    pair.want()
    pair.sides[A].tick(1.0)
    pair.sides[B].tick(1.0)
    for effect in pair.outboxes[B].drain():
        assert isinstance(effect, Unicast)
        pair.sides[A].handle(1.0, B, effect.body)  # type: ignore[arg-type]
    session = pair.sides[B]._exchanges[A].session
    for page in (
        HandoverPage(session, 0, 0, b""),
        HandoverPage(session, 9, 3, b""),
        HandoverPage(session, 0, 1, b"\xff"),
    ):
        pair.sides[A].handle(1.0, B, page)
    assert pair.states[A].merged == 0
    assert pair.complete == (False, False)


# --- the state of a node in pages ---


def member(peer: PeerId, log: Sequence[LogEntry]) -> Node:
    node = Node(NodeConfig(peer=peer, name="n", nickname="h", ranges=("10.32.0.0/12",)), {}, random.Random(1))
    node.start(0.0)
    assert not log or node.cluster.merge_log(0.0, 0, log)
    return node


def test_a_long_log_is_handed_over_in_messages_that_links_carry() -> None:
    """A message that no link carries ends the daemon that sends it; a newcomer asks for the log from its start."""
    first = genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/12",), (A, B), (A, B)))
    entries = [first]
    for number in range(1, 4001):
        removed = PeerId(number.to_bytes(16, "big"))
        entries.append(LogEntry(Position(0, bytes(8), number), entry_hash(entries[-1]), Remove((removed,), A)))
    elder = member(A, entries)
    pages = elder.cluster.pages(0)
    assert all(len(encode(page)) <= PAGE_BYTES_MAX + 1024 for page in pages)
    for newcomer in (member(B, ()), member(B, entries[:2500]), member(B, entries)):
        assert all(newcomer.cluster.merge_page(1.0, page) for page in elder.cluster.pages(0))
        assert newcomer.log.hash == elder.log.hash
        assert newcomer.ring.hash == elder.ring.hash
    assert elder.cluster.pages(len(entries)), "an answer has a page, whatever it brings"
