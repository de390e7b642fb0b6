"""An IPv6 range beside an IPv4 one: shares, addresses, grants, rows and what is left behind, range by range."""

from __future__ import annotations

import msgspec
import pytest

from ring_world import BOTH, World, genesis_of, peer_id
from weavenet.core.commands import Addresses, Allocate, Claim, Lookup, Release
from weavenet.core.config import NodeConfig
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import DIGEST_BUCKETS
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import SpaceGrant, SpaceRequest
from weavenet.core.ranges import base
from weavenet.core.removal.fence import fenced_disk
from weavenet.core.ring import Log, Ring, initial_ring
from weavenet.core.ring.estate import HELD_TABLE, Estate
from weavenet.core.ring.log import genesis_entry
from weavenet.core.ring.segments import RING_TABLE, load_ring, ring_rows
from weavenet.core.types import GENESIS_POSITION, PeerId, Segment, Stamp

A, B, C = (peer_id(name) for name in "abc")
WIDE = "10.32.0.0/12,fd00:77::/64"


def stamped(start: int, end: int, owner: PeerId, version: int = 2) -> Segment:
    return Segment(start, end, Stamp(GENESIS_POSITION, version, owner))


def world_of(*names: str, owners: tuple[str, ...] | None = None, cidr: str = BOTH) -> World:
    return World.of(*names, owners=owners, cidr=cidr)


# --- shares and the form of the ring ---


def test_both_ranges_are_divided_into_equal_shares() -> None:
    ring = initial_ring(genesis_of("a", "b", "c", cidr=WIDE))
    ring.check()
    assert ring.is_full
    assert set(ring.shares_of(0)) == set(ring.shares_of(1)) == {A, B, C}
    assert sum(ring.shares_of(0).values()) == 1 << 20
    assert sum(ring.shares_of(1).values()) == (1 << 64) - 1
    assert ring.shares[A] == ring.shares_of(0)[A] + ring.shares_of(1)[A]
    for number in (0, 1):
        shares = ring.shares_of(number).values()
        assert max(shares) - min(shares) <= 8


def test_a_ring_that_lacks_part_of_one_range_is_not_full() -> None:
    ring = initial_ring(genesis_of("a", "b", cidr=WIDE))
    for missing in range(len(ring.segments)):
        rest = [piece for index, piece in enumerate(ring.segments) if index != missing]
        assert not Ring(ring.sizes, rest).is_full


def test_rows_of_both_ranges_load_the_same_ring() -> None:
    ring = initial_ring(genesis_of("a", "b", cidr=WIDE))
    disk = {(row.table, row.key): row.value for row in ring_rows(Ring(ring.sizes), ring, ring.segments)}
    merged, changed = ring.merge((stamped(base(1) + 8, base(1) + 16, C), stamped(4, 8, C)))
    for row in ring_rows(ring, merged, changed):
        disk.pop((row.table, row.key), None)
        if row.value is not None:
            disk[row.table, row.key] = row.value
    rows = {key: value for key, value in disk.items() if value is not None}
    assert load_ring(ring.sizes, rows) == merged
    assert {key[:1] for _, key in rows} == {b"\0", b"\1"}


def test_a_difference_is_found_in_the_range_where_it_is() -> None:
    ring = initial_ring(genesis_of("a", "b", cidr=WIDE))
    other = ring.merge((stamped(base(1) + 8, base(1) + 16, C),))[0]
    assert ring.hash != other.hash
    assert ring.bucket_hashes(0) == other.bucket_hashes(0)
    differing = [
        bucket for bucket in range(DIGEST_BUCKETS) if ring.bucket_hashes(1)[bucket] != other.bucket_hashes(1)[bucket]
    ]
    assert differing == [0]
    fresh = Ring(other.sizes, other.segments)
    assert fresh.hash == other.hash


def test_a_segment_never_reaches_from_one_range_into_the_next() -> None:
    ring = initial_ring(genesis_of("a", cidr=BOTH))
    assert len(ring.segments) == 2, "of one owner with one stamp, yet apart"
    assert len(ring.hash) == len(Ring().hash) == 16
    assert len(Ring().bucket_hashes(1)) == DIGEST_BUCKETS


# --- addresses ---


def test_whoever_asks_for_nothing_gets_an_address_of_each_range() -> None:
    world = world_of("a")
    assert world.do("a", Allocate("web")) == Addresses(("10.32.0.1/26", "fd00:77::1/122"))
    assert world.do("a", Allocate("db")) == Addresses(("10.32.0.2/26", "fd00:77::2/122"))
    assert world.do("a", Allocate("web")) == Addresses(("10.32.0.1/26", "fd00:77::1/122"))
    world.crash("a")
    assert world.do("a", Allocate("web")) == Addresses(("10.32.0.1/26", "fd00:77::1/122"))
    assert world.do("a", Lookup("web")) == Addresses(("10.32.0.1/26", "fd00:77::1/122"))
    assert world.do("a", Lookup("web", "fd00:77::/122")) == Addresses(("fd00:77::1/122",))
    world.check()


def test_a_subnet_or_an_address_of_one_family_is_one_address() -> None:
    world = world_of("a")
    assert world.do("a", Allocate("web", "fd00:77::10/124")) == Addresses(("fd00:77::11/124",))
    assert world.do("a", Allocate("web", "10.32.0.0/26")) == Addresses(("10.32.0.1/26",))
    assert world.do("a", Claim("web", "fd00:77::9/122")) == Addresses(("fd00:77::9/122",))
    taken = world.do("a", Claim("db", "fd00:77::9/122"))
    assert isinstance(taken, Failure) and taken.code is Code.ALREADY_TAKEN
    outside = world.do("a", Allocate("db", "fd00:99::/64"))
    assert isinstance(outside, Failure) and "10.32.0.0/26,fd00:77::/122" in outside.expected
    assert world.do("a", Release("web", ("fd00:77::9",))) == Addresses(("fd00:77::9/122",))
    world.check()


def test_what_was_held_before_is_kept_and_only_the_other_family_is_added() -> None:
    world = world_of("a")
    world.do("a", Allocate("web", "10.32.0.0/26"))
    assert world.do("a", Allocate("web")) == Addresses(("10.32.0.1/26", "fd00:77::1/122"))


def test_a_cluster_of_ipv6_alone() -> None:
    world = world_of("a", "b", cidr="fd00:77::/64")
    assert world.do("a", Allocate("web")) == Addresses(("fd00:77::1/64",))
    assert world.do("b", Allocate("web")) == Addresses(("fd00:77:0:0:8000::/64",))


# --- space between peers ---


def test_space_of_each_range_is_granted_by_whoever_has_it() -> None:
    world = world_of("a", "b", owners=("a",))
    assert world.do("b", Allocate("web")) == Addresses(("10.32.0.32/26", "fd00:77::20/122"))
    assert world["a"].ipam.ring.hash == world["b"].ipam.ring.hash
    assert set(world["b"].ipam.ring.shares_of(1)) == {A, B}
    world.crash("b")
    assert world.do("b", Allocate("web")) == Addresses(("10.32.0.32/26", "fd00:77::20/122"))
    world.check()


def test_a_grant_names_its_range_and_is_repeated_after_a_crash() -> None:
    world = world_of("a", "b", owners=("a",), cidr=WIDE)
    request = SpaceRequest(7, 1, 1, (1 << 64) - 2, exact=False)

    def ask() -> list[object]:
        world["a"].receive(world.now, B, request)
        return [told for destination, told in world["a"].execute() if destination == B]

    (first,) = ask()
    assert isinstance(first, SpaceGrant)
    assert first.range_index == 1
    (segment,) = first.segments
    assert segment.end <= (1 << 64) - 1 and segment.end - segment.start >= 1 << 61
    world.crash("a")
    assert ask() == [first]


@pytest.mark.parametrize("number", [2, 3, 200, 1 << 40])
def test_a_range_that_does_not_exist_is_nobodys(number: int) -> None:
    world = world_of("a", "b", owners=("a",))
    before = world["a"].ipam.ring
    world["a"].receive(world.now, B, SpaceRequest(1, number, 1, 5, exact=False))
    world["a"].receive(world.now, B, SpaceGrant(1, number, 1, (stamped(0, 4, B),)))
    assert world["a"].ipam.ring == before
    world.check()


def test_an_address_is_held_while_the_other_family_is_waited_for() -> None:
    world = world_of("a", "b")
    world.connect("a")
    world.connect("b")
    for number in range(31):
        world.do("a", Allocate(f"c{number}", "fd00:77::/122"))
    request = world.ask("a", Allocate("web"))
    world.settle()
    assert request not in world["a"].replies
    assert ("web", "10.32.0.1") in world["a"].held()
    assert "fd00:77::20" not in {address for _, address in world["a"].held()}
    world.connect("a", "b")
    world.wait(3.0)
    assert world["a"].replies[request] == Addresses(("10.32.0.1/26", "fd00:77::28/122"))


def test_a_blocked_ipv6_address_is_claimed_back() -> None:
    world = world_of("a", "b")
    world.do("a", Allocate("web"))
    world.connect("a")
    lost = stamped(1, 2, B, 9)
    world["a"].ipam.merge_ring(world.now, RingDelta(1, 1, (lost,)))
    world["a"].collect()
    world.settle()
    assert world["a"].ipam.blocked() == (("web", "fd00:77::1"),)
    world.crash("a")
    assert world["a"].ipam.blocked() == (("web", "fd00:77::1"),), "durable"
    world.synchronise()
    world.connect("a", "b")
    world.wait(3.0)
    assert world["a"].ipam.blocked() == ()
    world.check()


def test_a_fenced_peer_blocks_its_addresses_of_both_ranges() -> None:
    world = world_of("a")
    world.do("a", Allocate("web"))
    disk = world["a"].disk
    blocked = [change.key for change in fenced_disk(disk) if change.table == "blocked"]
    assert {int.from_bytes(key, "big") for key in blocked} == {1, base(1) + 1}


# --- inheriting and leaving ---


def estate_of(owners: tuple[PeerId, ...], disk: dict[tuple[str, bytes], bytes] | None = None) -> tuple[Estate, Outbox]:
    outbox = Outbox()
    log = Log([], outbox)
    log.merge(0, (genesis_entry(genesis_of(*(bytes(owner).rstrip(b"\0").decode() for owner in owners), cidr=WIDE)),))
    outbox.drain()
    return Estate(
        NodeConfig(peer=A, name="a", nickname="a", ranges=tuple(WIDE.split(","))), log, disk or {}, outbox
    ), outbox


def test_what_is_on_hold_in_both_ranges_survives_a_restart() -> None:
    estate, _ = estate_of((A, B))
    estate.space.hold(((8, 16), (base(1) + 8, base(1) + 16)))
    rows = estate._held_rows()
    assert [row.key for row in rows] == [b"held", b"held\1"]
    disk = {(row.table, row.key): row.value for row in rows if row.value is not None}
    again, _ = estate_of((A, B), disk)
    assert tuple(again.space.held) == ((8, 16), (base(1) + 8, base(1) + 16))
    again.release()
    assert not tuple(again.space.held)


def test_each_range_is_surrendered_to_whoever_has_least_of_it() -> None:
    estate, _ = estate_of((A,))
    middle = (1 << 20) // 2
    estate.learn((stamped(0, middle, A, 5), stamped(base(1), base(1) + (1 << 63), A, 5)))
    estate.surrender({B: (0, 1 << 62), C: (1 << 18, 0)})
    assert A not in estate.ring.shares
    for number in (0, 1):
        assert set(estate.ring.shares_of(number)) == {B, C}, "levelled, range by range"


def test_the_keys_of_one_range_are_those_of_before() -> None:
    """A store that was written before there could be a second range is read."""
    segment = stamped(4, 8, A, 1)
    rows = ring_rows(Ring((64,)), Ring((64,), (segment,)), (segment,))
    assert rows == [Change(RING_TABLE, b"\0" + (4).to_bytes(8, "big"), msgspec.msgpack.encode(segment))]
    estate, _ = estate_of((A, B), {(HELD_TABLE, b"held"): msgspec.msgpack.encode(((8, 16),))})
    assert tuple(estate.space.held) == ((8, 16),)
