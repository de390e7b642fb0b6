"""Space between peers: what a donor gives, and how a requester asks."""

from __future__ import annotations

import random

import pytest

from ring_world import World, peer_id
from weavenet.core.commands import Addresses, Allocate, Claim, Release
from weavenet.core.effects import Outbox, Unicast
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import SPACE_RETRY_S
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import SpaceDenied, SpaceGrant, SpaceRequest
from weavenet.core.ring import FreeSpace
from weavenet.core.ring.granting import choose_block
from weavenet.core.ring.seeking import TRIES_MAX, Need, Seeker
from weavenet.core.types import GENESIS_POSITION, Position, Segment, Stamp

A, B, C = (peer_id(name) for name in "abc")
ALL = Need(1, 63, exact=False)


@pytest.mark.parametrize(
    ("free", "window", "given"),
    [
        ([(0, 64)], (0, 64), (32, 64)),
        ([(0, 64)], (1, 63), (32, 48)),
        ([(0, 16), (32, 48)], (0, 64), (32, 48)),
        ([(0, 16), (32, 40)], (0, 64), (8, 16)),
        ([(0, 8)], (0, 64), (4, 8)),
        ([(0, 4)], (0, 64), (0, 4)),
        ([(5, 8)], (0, 64), (6, 8)),
        ([(5, 6)], (0, 64), (5, 6)),
        ([(0, 64)], (20, 23), (20, 22)),
        ([(0, 4)], (8, 16), None),
        ([], (0, 64), None),
    ],
)
def test_a_donor_gives_the_biggest_aligned_block_or_its_upper_half(
    free: list[tuple[int, int]], window: tuple[int, int], given: tuple[int, int] | None
) -> None:
    space = FreeSpace()
    for low, high in free:
        space.add(low, high)
    assert choose_block(space, *window) == given


# --- donor ---


def ask(world: World, request: SpaceRequest, source: str = "b") -> list[object]:
    """What the donor ``a`` answers, once everything it emitted is durable."""
    world["a"].receive(world.now, peer_id(source), request)
    return [told for destination, told in world["a"].execute() if destination == peer_id(source)]


def test_a_grant_is_durable_before_it_leaves_and_beats_what_was_there() -> None:
    world = World.of("a", "b", owners=("a",))
    world["a"].receive(1.0, B, SpaceRequest(1, 0, 1, 63, exact=False))
    persist, answer, *_ = world["a"].queue
    assert {change.table for change in persist.changes} == {"ring", "grants", "meta"}  # type: ignore[attr-defined]
    assert isinstance(answer, Unicast)
    assert answer.body == SpaceGrant(1, 0, 1, (Segment(32, 48, Stamp(GENESIS_POSITION, 2, B)),))
    assert world["a"].ipam.used


def test_the_same_request_gets_the_same_answer_and_an_older_one_none() -> None:
    world = World.of("a", "b", owners=("a",))
    first = ask(world, SpaceRequest(7, 0, 1, 63, exact=False))
    assert ask(world, SpaceRequest(7, 0, 1, 63, exact=False)) == first
    world.crash("a")
    assert ask(world, SpaceRequest(7, 0, 1, 63, exact=False)) == first
    assert ask(world, SpaceRequest(6, 0, 1, 63, exact=False)) == []
    second = ask(world, SpaceRequest(8, 0, 1, 63, exact=False))
    assert isinstance(first[0], SpaceGrant)
    assert isinstance(second[0], SpaceGrant)
    assert first[0].segments != second[0].segments


def test_what_was_granted_is_never_given_to_another() -> None:
    world = World.of("a", "b", "c", owners=("a",))
    given: set[int] = set()
    for request in range(1, 40):
        for source in ("b", "c"):
            for answer in ask(world, SpaceRequest(request, 0, 0, 64, exact=False), source):
                if isinstance(answer, SpaceGrant):
                    (segment,) = answer.segments
                    offsets = set(range(segment.start, segment.end))
                    assert not offsets & given
                    given |= offsets
        world.crash("a")
    assert given == set(range(64))
    assert ask(world, SpaceRequest(99, 0, 0, 64, exact=False)) == [SpaceDenied(99, "")]


def test_exact_requests() -> None:
    world = World.of("a", "b", "c", owners=("a", "c"))
    world.do("a", Claim("web", "10.32.0.9/26"))
    assert ask(world, SpaceRequest(1, 0, 9, 10, exact=True)) == [SpaceDenied(1, "web on host-a")]
    assert ask(world, SpaceRequest(2, 0, 40, 41, exact=True)) == [SpaceDenied(2, "")]  # it is not ours
    world.do("a", Release("web"))
    (answer,) = ask(world, SpaceRequest(3, 0, 9, 10, exact=True))
    assert isinstance(answer, SpaceGrant)
    assert answer.segments == (Segment(9, 10, Stamp(GENESIS_POSITION, 2, B)),)


@pytest.mark.parametrize(
    "request_body",
    [
        SpaceRequest(1, 1, 0, 64, exact=False),
        SpaceRequest(1, 0, 5, 5, exact=False),
        SpaceRequest(1, 0, 9, 5, exact=True),
        SpaceRequest(1, 0, 0, 1 << 40, exact=False),
    ],
)
def test_requests_that_make_no_sense_are_denied(request_body: SpaceRequest) -> None:
    assert ask(World.of("a", "b"), request_body) == [SpaceDenied(1, "")]


def test_a_resting_address_is_not_granted_yet() -> None:
    world = World.of("a", "b", owners=("a",), cidr="10.32.0.0/30")
    world.do("a", Allocate("web"))
    world.do("a", Allocate("db"))
    world.do("a", Release("web"))
    assert ask(world, SpaceRequest(1, 0, 1, 3, exact=False)) == [SpaceDenied(1, "")]
    world.now += 5.0
    (answer,) = ask(world, SpaceRequest(2, 0, 1, 3, exact=False))
    assert isinstance(answer, SpaceGrant)


# --- requester ---


def test_an_allocation_without_own_space_is_served_by_an_owner() -> None:
    world = World.of("a", "b", "c", owners=("a",))
    assert world.do("b", Allocate("web")) == Addresses(("10.32.0.32/26",))
    assert world.do("c", Allocate("web")) == Addresses(("10.32.0.16/26",))
    world.check()
    assert len({host.ipam.ring.hash for host in world.hosts.values()}) == 1


def test_everybody_is_served_until_nothing_is_left_and_again_after_a_release() -> None:
    world = World.of("a", "b", "c", owners=("a", "b"))
    requests = [(name, world.ask(name, Allocate(f"{name}{number}"))) for number in range(21) for name in "abc"]
    world.settle()
    world.wait(3.0)
    served = [world[name].replies[request] for name, request in requests if request in world[name].replies]
    assert len(served) == len({result.addresses for result in served if isinstance(result, Addresses)}) == 62
    ((name, waiting),) = [(name, request) for name, request in requests if request not in world[name].replies]
    giver = "a" if name != "a" else "b"
    world.do(giver, Release(f"{giver}0"))
    world.wait(8.0)
    assert waiting in world[name].replies
    world.check()


def test_a_foreign_address_is_claimed_from_its_owner() -> None:
    world = World.of("a", "b")
    assert world.do("a", Claim("web", "10.32.0.50/26")) == Addresses(("10.32.0.50/26",))
    failure = world.do("b", Claim("db", "10.32.0.50/26"))
    assert isinstance(failure, Failure)
    assert failure.code is Code.ALREADY_TAKEN
    assert "web on host-a" in failure.found


def test_a_claim_waits_for_an_unreachable_owner() -> None:
    world = World.of("a", "b", "c")
    world.connect("a", "c")
    waiting = world.ask("a", Claim("web", "10.32.0.30/26"))  # b's third
    world.wait(5.0)
    assert waiting not in world["a"].replies
    world.connect("a", "b", "c")
    world.settle()
    assert world["a"].addresses(waiting) == ("10.32.0.30/26",)


def test_a_claim_follows_its_address_to_a_new_owner() -> None:
    world = World.of("a", "b", "c", owners=("a",))
    world.connect("a", "b")
    world.do("b", Allocate("web"))  # a gives 32..48 to b; c does not hear of it
    world.connect("a", "b", "c")
    waiting = world.ask("c", Claim("db", "10.32.0.40/26"))
    world.settle()
    assert waiting not in world["c"].replies  # a is not the owner any more
    world.synchronise()
    world.wait(2 * SPACE_RETRY_S)
    assert world["c"].addresses(waiting) == ("10.32.0.40/26",)


def test_a_grant_from_beyond_our_log_is_asked_for_again() -> None:
    world = World.of("a", "b", owners=("a",))
    world.ask("b", Allocate("web"))
    world.execute("b")
    (_, _, request), *_ = world.wire
    assert isinstance(request, SpaceRequest)
    before = world["b"].ipam.ring
    ahead = Stamp(Position(0, bytes(8), 1), 2, B)
    world["b"].receive(1.0, A, SpaceGrant(request.request, 0, 2, (Segment(0, 4, ahead),)))
    assert world["b"].ipam.ring == before
    world.now += SPACE_RETRY_S
    world["b"].tick(world.now)
    world.execute("b")
    assert [told for _, _, told in world.wire] == [request, request]


def test_cancelling_the_last_request_stops_asking() -> None:
    world = World.of("a", "b", owners=("a",))
    request = world.ask("b", Allocate("web"))
    world["b"].ipam.cancel(request)
    world.now += SPACE_RETRY_S
    world["b"].tick(world.now)
    assert world["b"].ipam.seeker.is_idle
    world.settle()
    assert request not in world["b"].replies


def test_segments_ahead_of_the_log_or_out_of_range_are_ignored() -> None:
    world = World.of("a", "b")
    host = world["a"]
    before = host.ipam.ring
    for segment in (
        Segment(0, 4, Stamp(Position(0, bytes(8), 1), 2, B)),
        Segment(60, 70, Stamp(GENESIS_POSITION, 2, B)),
        Segment(9, 9, Stamp(GENESIS_POSITION, 2, B)),
    ):
        assert host.ipam.merge_ring(1.0, RingDelta(0, 1, (segment,))) is None
    assert host.ipam.merge_ring(1.0, RingDelta(1, 1, before.segments)) is None
    assert host.ipam.merge_ring(1.0, RingDelta(0, 9, (Segment(0, 4, Stamp(GENESIS_POSITION, 2, B)),))) is None
    assert host.ipam.ring == before


# --- the seeker alone ---


def seeker() -> tuple[Seeker, Outbox]:
    outbox = Outbox()
    return Seeker(1 << 32, outbox, random.Random(1)), outbox


def sent(outbox: Outbox) -> list[tuple[bytes, int]]:
    return [
        (effect.destination, effect.body.request)
        for effect in outbox.drain()
        if isinstance(effect, Unicast) and isinstance(effect.body, SpaceRequest)
    ]


def test_the_same_donor_is_asked_again_under_the_same_id() -> None:
    seek, outbox = seeker()
    for now in (0.0, 0.5, SPACE_RETRY_S, 2 * SPACE_RETRY_S):
        seek.seek(now, [ALL], lambda need: {B: 10}, frozenset({B}))
    ((donor, request), *again) = sent(outbox)
    assert donor == B
    assert again == [(donor, request)] * 2


def test_the_next_donor_is_asked_when_one_denies_leaves_or_keeps_silent() -> None:
    seek, outbox = seeker()
    owners = {B: 10, C: 10}
    both = frozenset(owners)
    seek.seek(0.0, [ALL], lambda need: owners, both)
    ((first, request),) = sent(outbox)
    seek_denied = seek.answered(first, request)
    assert seek_denied is not None
    seek.denied(0.0, seek_denied)
    seek.seek(0.0, [ALL], lambda need: owners, both)
    ((second, request),) = sent(outbox)
    assert {first, second} == both
    seek.seek(0.1, [ALL], lambda need: owners, both - {second})
    assert sent(outbox) == []  # the other one has nothing
    seek.seek(0.1 + SPACE_RETRY_S, [ALL], lambda need: owners, both)
    ((third, request),) = sent(outbox)
    for number in range(1, TRIES_MAX + 1):
        seek.seek(0.1 + SPACE_RETRY_S + number * SPACE_RETRY_S, [ALL], lambda need: owners, both)
    *repeated, (fourth, other) = sent(outbox)
    assert repeated == [(third, request)] * (TRIES_MAX - 1)
    assert fourth != third
    assert other > request


def test_denied_by_all_it_rests_and_starts_over() -> None:
    seek, outbox = seeker()
    for _ in range(2):
        seek.seek(5.0, [ALL], lambda need: {B: 10}, frozenset({B}))
        for donor, request in sent(outbox):
            answered = seek.answered(peer_id("b"), request)
            assert donor == B
            assert answered is not None
            seek.denied(5.0, answered)
    assert seek.deadline() == 5.0 + SPACE_RETRY_S
    seek.seek(5.0 + SPACE_RETRY_S, [ALL], lambda need: {B: 10}, frozenset({B}))
    assert len(sent(outbox)) == 1


def test_one_request_in_flight_per_donor() -> None:
    seek, outbox = seeker()
    needs = [Need(offset, offset + 1, exact=True) for offset in range(5)]
    seek.seek(0.0, needs, lambda need: {B: 1}, frozenset({B}))
    ((_, request),) = sent(outbox)
    assert seek.answered(B, request) is not None
    assert seek.answered(B, request) is None
    seek.seek(0.0, needs[1:], lambda need: {B: 1}, frozenset({B}))
    assert len(sent(outbox)) == 1
    assert list(seek.asks) == [needs[1]]


def test_bigger_owners_are_asked_more_often() -> None:
    outbox = Outbox()
    rng = random.Random(5)
    for number in range(400):
        Seeker(number << 32, outbox, rng).seek(0.0, [ALL], lambda need: {B: 9, C: 1}, frozenset({B, C}))
    donors = [donor for donor, _ in sent(outbox)]
    assert 320 < donors.count(B) < 395
