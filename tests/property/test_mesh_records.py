"""Records against a naive model: whatever order, duplication and loss deltas suffer, replicas that then repair from
each other hold exactly what the origin holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.core.limits import PAGE_BYTES_MAX
from weavenet.core.mesh.records import Records
from weavenet.core.messages import encode
from weavenet.core.messages.gossip import Mark, OriginDelta, Push, Record
from weavenet.core.types import PeerId

ORIGIN = PeerId(hashlib.sha256(b"origin").digest()[:16])
REPLICAS = 4


def peer(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"replica %d" % number).digest()[:16])


@dataclass
class World:
    """The origin, its naive truth, replicas, and every delta ever made."""

    origin: Records = field(default_factory=lambda: Records(ORIGIN, 1, lambda _: False))
    truth: dict[bytes, bytes] = field(default_factory=dict)
    replicas: list[Records] = field(
        default_factory=lambda: [Records(peer(number), 1, lambda _: False) for number in range(REPLICAS)]
    )
    flying: list[OriginDelta] = field(default_factory=list)

    def holders(self) -> list[Records]:
        return [self.origin, *self.replicas]

    def put(self, key: bytes, body: bytes) -> None:
        before = self.origin.put(7, key, body)
        self.truth[key] = body
        self.spread(self.origin, before)

    def drop(self, key: bytes) -> None:
        before = self.origin.drop(7, key)
        self.truth.pop(key, None)
        self.spread(self.origin, before)

    def restart(self, keeps: bool) -> None:
        """A new life, with the same records numbered anew or with none."""
        incarnation = self.origin.incarnation + 5
        kept = dict(self.truth) if keeps else {b"fresh": b"start"}
        self.origin = Records(ORIGIN, incarnation, lambda _: False)
        self.truth.clear()
        for key, body in kept.items():
            self.put(key, body)

    def spread(self, holder: Records, before: Mark | None) -> None:
        if before is not None:
            self.flying += holder.deltas(0.0, before)

    def deliver(self, index: int, target: int, keep: bool) -> None:
        delta = self.flying[index] if keep else self.flying.pop(index)
        self.receive(self.replicas[target], delta)

    def receive(self, replica: Records, delta: OriginDelta) -> None:
        assert len(encode(Push(0, (), (), (delta,)))) <= PAGE_BYTES_MAX
        applied = replica.apply(0.0, delta)
        if applied.new:
            self.spread(replica, applied.before)
        replica.check()

    def sync(self, source: int, target: int, pages: int) -> None:
        """Anti-entropy between two holders that breaks off after some pages."""
        holder = self.holders()[source]
        replica = self.replicas[target]
        if holder is not replica:
            for delta in list(holder.deltas(0.0, replica.mark(ORIGIN)))[:pages]:
                self.receive(replica, delta)

    def settle(self) -> None:
        """Among the replicas first: the origin, which knows every deletion of its own, must not be needed for it."""
        for _ in range(2):
            for target in range(REPLICAS):
                for source in range(1, REPLICAS + 1):
                    self.sync(source, target, 1_000_000)
        for replica in self.replicas:
            if replica.mark(ORIGIN) == self.origin.mark(ORIGIN):
                assert sorted(record.body for record in replica.origins[ORIGIN].live.values()) == self.bodies()
        for target in range(REPLICAS):
            self.sync(0, target, 1_000_000)

    def bodies(self) -> list[bytes]:
        return sorted(self.truth.values())

    def check(self) -> None:
        expected = self.bodies()
        for holder in self.holders():
            assert sorted(record.body for record in holder.origins[ORIGIN].live.values()) == expected
            assert holder.mark(ORIGIN) == self.origin.mark(ORIGIN)
            assert holder.root == self.origin.root


keys = st.sampled_from([b"a", b"b", b"c"])
puts = st.tuples(st.just("put"), keys, st.binary(max_size=2))
delivers = st.tuples(st.just("deliver"), st.integers(0, 10_000), st.integers(0, REPLICAS - 1), st.booleans())
syncs = st.tuples(st.just("sync"), st.integers(0, REPLICAS), st.integers(0, REPLICAS - 1), st.integers(1, 2))
restarts = st.tuples(st.just("restart"), st.booleans())
changes = [puts, puts, st.tuples(st.just("drop"), keys)]
moves = [delivers, delivers, syncs, st.tuples(st.just("lose"), st.integers(0, 10_000))]
steady = st.lists(st.one_of(*changes, *moves), max_size=80)
steps = st.lists(st.one_of(*changes, *moves, restarts), max_size=80)


def run(world: World, history: list[tuple]) -> None:  # type: ignore[type-arg]
    for step in history:
        match step:
            case ("put", key, body):
                world.put(key, key + body)
            case ("drop", key):
                world.drop(key)
            case ("restart", keeps):
                world.restart(keeps)
            case ("deliver", index, target, keep) if world.flying:
                world.deliver(index % len(world.flying), target, keep)
            case ("lose", index) if world.flying:
                world.flying.pop(index % len(world.flying))
            case ("sync", source, target, pages):
                world.sync(source, target, pages)


@settings(max_examples=300, deadline=None)
@given(st.one_of(steady, steps))
def test_replicas_equal_the_naive_model_after_repair(history: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World()
    world.put(b"first", b"one")
    run(world, history)
    world.origin.check()
    world.settle()
    world.check()


def test_a_record_made_and_deleted_within_a_jump_is_known_to_be_gone() -> None:
    world = World()
    for number in range(1, 6):
        world.put(b"key %d" % number, b"%d" % number)
    jumper, middle, late = 0, 1, 2
    world.sync(0, jumper, 9)
    world.put(b"passing", b"6")
    world.put(b"stays", b"7")
    world.sync(0, middle, 9)
    world.sync(0, late, 9)
    world.drop(b"passing")
    world.put(b"last", b"9")
    world.sync(0, jumper, 9)
    world.sync(1 + jumper, middle, 9)
    forwarded = world.flying[-1]
    assert (forwarded.base, forwarded.top) == (7, 9)
    world.receive(world.replicas[late], OriginDelta(ORIGIN, 1, 5, 9, jump_records(world), (), None, 0))
    world.settle()
    world.check()


def jump_records(world: World) -> tuple[Record, ...]:
    return tuple(record for record in world.origin.origins[ORIGIN].live.values() if record.sequence > 5)


@settings(max_examples=15, deadline=None)
@given(steps, st.integers(1, 40), st.integers(0, 50))
def test_catch_up_in_pages_loses_and_revives_nothing(
    history: list[tuple],  # type: ignore[type-arg]
    records: int,
    dropped: int,
) -> None:
    """Bodies so big that a page holds few of them; transfers break off in the middle, deletions go on meanwhile."""
    world = World()
    for number in range(records):
        world.put(b"big %d" % number, bytes([number]) + bytes(2000 + number))
    world.flying.clear()
    for target in range(REPLICAS):
        world.sync(0, target, 1 + target % 2)
    for number in range(min(dropped, records)):
        world.drop(b"big %d" % number)
        world.sync(number % (REPLICAS + 1), (number + 1) % REPLICAS, 1)
    run(world, history)
    world.settle()
    world.check()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=40))
def test_deletions_older_than_what_is_remembered_are_found_all_the_same(plan: list[tuple[int, int]]) -> None:
    world = World()
    for number in range(30):
        world.put(b"key %d" % number, b"%d" % number)
    for target in range(REPLICAS):
        world.sync(0, target, 99)
    for number, target in plan:
        for turn in range(40):
            world.put(b"churn", b"%d %d" % (number, turn))
        world.drop(b"key %d" % number)
        world.sync(target % (REPLICAS + 1), number % REPLICAS, 99)
        world.flying.clear()
    world.settle()
    world.check()
