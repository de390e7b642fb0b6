"""What survives a crash, seeds that bind their share, addresses that were lost, and giving up an unused ring."""

from __future__ import annotations

import pytest

from ring_world import RANGE, Host, State, World, genesis_of, peer_id, seed_host
from weavenet.core.commands import Addresses, Allocate, Claim, Release
from weavenet.core.errors import Code, InvariantBroken, WeaveError
from weavenet.core.limits import FREED_QUIET_S
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import SpaceDenied
from weavenet.core.ring import seed_genesis, seed_owner
from weavenet.core.ring.blocking import RECLAIM_RETRY_S
from weavenet.core.ring.ipam import COMPACT_INTERVAL_S
from weavenet.core.types import GENESIS_POSITION, Segment, Stamp

B, Z = peer_id("b"), peer_id("z")


def test_ring_allocations_and_use_survive_a_crash() -> None:
    world = World.of("a", "b", owners=("a",))
    world.do("a", Allocate("web"))
    world.do("b", Allocate("db"))
    rings = {name: world[name].ipam.ring for name in "ab"}
    for name in "ab":
        world.crash(name)
        assert world[name].ipam.ring == rings[name]
        assert world[name].ipam.used
        world[name].ipam.check()
    assert world.do("a", Allocate("web")) == Addresses(("10.32.0.1/26",))
    assert world.do("a", Allocate("next")) == Addresses(("10.32.0.2/26",))


def test_what_was_not_durable_was_not_answered_either() -> None:
    world = World.of("a")
    request = world.ask("a", Allocate("web"))
    world.crash("a")
    world.settle()
    assert request not in world["a"].replies
    assert world["a"].held() == set()
    assert not world["a"].ipam.used


def test_a_genesis_without_its_ring_is_completed_at_start() -> None:
    world = World.of("a", "b")
    ring = world["a"].ipam.ring
    world["a"].disk = {row: value for row, value in world["a"].disk.items() if row[0] == "log"}
    world.crash("a")
    assert world["a"].ipam.ring == ring
    world.settle()
    world.crash("a")
    assert not list(world["a"].queue)  # nothing left to put right


@pytest.mark.parametrize("damage", ["garbage", "key", "missing", "ahead", "range"])
def test_unreadable_ring_rows_are_an_error_in_words(damage: str) -> None:
    world = World.of("a", "b")
    disk = world["a"].disk
    row = max(key for key in disk if key[0] == "ring")
    match damage:
        case "garbage":
            disk[row] = b"\xc1"
        case "key":
            disk["ring", row[1][:-1] + b"\x07"] = disk.pop(row)
        case "missing":
            del disk[row]
        case "ahead":
            disk[row] = disk[row].replace(b"\x93\x00", b"\x93\x01", 1)
        case _:
            disk[row] = disk[row].replace(b"\x20\x40", b"\x20\x41", 1)
    with pytest.raises(WeaveError) as raised:
        world.crash("a")
    assert raised.value.failure.code is Code.STORE_FAILED
    assert "table ring" in raised.value.failure.expected


@pytest.mark.parametrize("table", ["alloc", "blocked", "grants"])
def test_other_unreadable_rows_are_an_error_in_words(table: str) -> None:
    host = Host("a")
    host.disk[table, b"key"] = b"\xc1"
    with pytest.raises(WeaveError, match=f"table {table}"):
        host.boot(1.0)


# --- seeds ---


def seeds(*names: str, of: tuple[str, ...] = ("a", "b")) -> World:
    world = World({name: seed_host(name, of) for name in names})
    for host in world.hosts.values():
        host.begin(world.now, seed_genesis(of, [RANGE], b"salt"))
    world.connect(*names)
    world.settle()
    return world


def test_a_seed_binds_its_share_only_when_allowed_and_once() -> None:
    world = seeds("a", "b")
    host = world["a"]
    waiting = world.ask("a", Allocate("web"))
    world.settle()
    assert host.ipam.seed_share.is_awaited
    assert waiting not in host.replies
    host.ipam.allow_binding(1.0)
    host.collect()
    world.settle()
    assert not host.ipam.seed_share.is_awaited
    assert waiting in host.replies
    assert host.ipam.ring.shares == {host.peer: 32, seed_owner("b", b"salt"): 32}
    assert {segment.stamp for segment in host.ipam.ring.segments if segment.stamp.owner == host.peer} == {
        Stamp(GENESIS_POSITION, 2, host.peer)
    }
    assert world["b"].ipam.ring == host.ipam.ring
    world.crash("a")
    assert not host.ipam.seed_share.is_awaited
    assert not host.queue


def test_a_seed_that_crashes_before_its_binding_is_durable_is_not_bound() -> None:
    world = seeds("a")
    world["a"].ipam.allow_binding(1.0)
    world["a"].collect()
    world.crash("a")
    assert world["a"].ipam.seed_share.is_awaited
    assert world["a"].peer not in world["a"].ipam.ring.shares


def test_a_seed_that_lost_its_disk_finds_its_share_taken_and_lives_by_grants() -> None:
    world = seeds("a", "b")
    for name in ("a", "b"):
        world[name].ipam.allow_binding(1.0)
        world[name].collect()
    world.settle()
    lost = seed_host("a", ("a", "b"), peer=peer_id("a again"))
    lost.begin(world.now, seed_genesis(("a", "b"), [RANGE], b"salt"))
    lost.learn(world.now, world["b"].state())
    lost.ipam.allow_binding(world.now)
    lost.collect()
    lost.execute()
    assert not lost.ipam.seed_share.is_awaited
    assert lost.peer not in lost.ipam.ring.shares
    assert any("another peer's" in note.text for note in lost.notes)


def test_who_took_a_share_is_known_also_when_other_stamps_stand_there() -> None:
    """Compaction, grants and inheritance give what a seed took other versions and owners."""
    world = seeds("a", "b")
    share = world["b"].ipam.seed_share
    assert share.takers() == frozenset()
    assert not share.is_taken
    world["a"].ipam.allow_binding(1.0)
    world["a"].collect()
    world.settle()
    assert share.takers() == {seed_owner("a", b"salt")}
    for owner in (world["a"].peer, peer_id("somebody")):
        taken = tuple(
            Segment(piece.start, piece.end, Stamp(GENESIS_POSITION, piece.stamp.version + 3, owner))
            for piece in world["b"].ipam.ring.segments
            if piece.stamp.owner == world["a"].peer
        )
        world["b"].ipam.merge_ring(world.now, RingDelta(0, 1, taken))
        assert share.takers() == {seed_owner("a", b"salt")}


def test_who_is_no_seed_has_nothing_to_bind() -> None:
    assert not World.of("a")["a"].ipam.seed_share.is_awaited


# --- lost addresses ---


def lose(world: World, host: Host, low: int, high: int) -> None:
    """A higher stamp for [low, high), as after a second binder of a seed."""
    delta = RingDelta(0, 1, (Segment(low, high, Stamp(GENESIS_POSITION, 5, B)),))
    assert host.ipam.merge_ring(world.now, delta) is not None
    host.collect()


def test_lost_addresses_are_blocked_and_unblocked_when_given_back() -> None:
    world = World.of("a", "b", owners=("a",))
    host = world["a"]
    for ident in ("web", "db"):
        world.do("a", Allocate(ident))
    world.connect("a")
    lose(world, host, 0, 8)
    assert host.ipam.blocked() == (("db", "10.32.0.2"), ("web", "10.32.0.1"))
    host.ipam.check()
    host.execute()
    world.crash("a")
    assert host.ipam.blocked() == (("db", "10.32.0.2"), ("web", "10.32.0.1"))
    assert world.do("a", Allocate("next")) == Addresses(("10.32.0.8/26",))
    world["b"].learn(world.now, host.state())
    world.connect("a", "b")
    world.settle()  # claimed back one by one
    assert host.ipam.blocked() == ()
    assert host.held() == {("web", "10.32.0.1"), ("db", "10.32.0.2"), ("next", "10.32.0.8")}
    world.check()


def test_a_refused_address_stays_blocked_is_reported_and_asked_for_again_later() -> None:
    world = World.of("a", "b", owners=("a",))
    host, other = world["a"], world["b"]
    world.do("a", Allocate("web"))
    world.connect("a")
    lose(world, host, 0, 8)
    other.learn(world.now, host.state())
    world.do("b", Claim("rival", "10.32.0.1/26"))
    world.connect("a", "b")
    world.settle()
    assert host.ipam.blocked() == (("web", "10.32.0.1"),)
    report = host.ipam.report(world.now, label=lambda peer: ("", ""), unreachable_since=lambda peer: None)
    assert "rival on host-b" in report.blocked[0]
    assert "weave detach" in report.blocked[0]
    world.crash("a")
    assert (
        "rival on host-b"
        in host.ipam.report(world.now, label=lambda peer: ("", ""), unreachable_since=lambda peer: None).blocked[0]
    )
    world.settle()
    world.do("b", Release("rival"))
    world.wait(RECLAIM_RETRY_S + 1)
    assert host.ipam.blocked() == ()
    world.check()


def test_releasing_a_blocked_address_unblocks_it() -> None:
    world = World.of("a", "b", owners=("a",))
    world.do("a", Allocate("web"))
    world.connect("a")
    lose(world, world["a"], 0, 8)
    world.do("a", Release("web"))
    assert world["a"].ipam.blocked() == ()
    world.wait(FREED_QUIET_S + 1)
    assert world.do("a", Allocate("db")) == Addresses(("10.32.0.8/26",))
    world["a"].ipam.check()


def test_a_denial_that_names_nobody_is_tried_again_soon() -> None:
    world = World.of("a", "b", owners=("a",))
    world.do("a", Allocate("web"))
    lose(world, world["a"], 0, 8)
    world["a"].execute()
    (ask,) = world["a"].ipam.seeker.asks.values()
    world["a"].receive(world.now, B, SpaceDenied(ask.request, ""))
    deadline = world["a"].ipam.deadline()
    assert deadline is not None
    assert world.now < deadline <= world.now + 1.0


# --- compaction ---


def test_own_touching_segments_become_one_after_a_while() -> None:
    world = World.of("a", "b", owners=("a",))
    host = world["a"]
    world.do("b", Allocate("web"))  # 32..48
    world.do("b", Release("web"))
    world.do("a", Claim("db", "10.32.0.33/26"))
    world.do("a", Claim("db", "10.32.0.32/26"))
    mine = [segment for segment in host.ipam.ring.segments if segment.stamp.owner == host.peer]
    assert len(mine) == 3  # 0..32, 32..34, 48..64
    world.wait(COMPACT_INTERVAL_S + 1)
    joined = [segment for segment in host.ipam.ring.segments if segment.stamp.owner == host.peer]
    assert joined == [Segment(0, 34, Stamp(GENESIS_POSITION, 4, host.peer)), mine[-1]]
    assert world["b"].ipam.ring == host.ipam.ring
    world.check()
    world.crash("a")
    assert world["b"].ipam.ring == host.ipam.ring


# --- yielding ---


def test_an_unused_ring_is_given_up_and_another_adopted() -> None:
    world = World.of("a")
    host = world["a"]
    host.log.forget()
    host.ipam.forget()
    host.collect()
    host.execute()
    assert not host.ipam.has_ring
    assert {table for table, _ in host.disk} <= {"meta"}
    host.command(1.0, 9, Allocate("web"))
    assert host.ipam.needs_genesis
    host.begin(2.0, genesis_of("z", "a", cidr="10.40.0.0/24"))
    host.execute()
    assert host.addresses(9) == ("10.40.0.1/24",)
    assert host.ipam.ring.shares[Z] == 128
    host.ipam.check()


def test_a_crash_between_giving_up_log_and_ring_leaves_no_ring() -> None:
    world = World.of("a")
    host = world["a"]
    host.disk = {row: value for row, value in host.disk.items() if row[0] != "log"}
    world.crash("a")
    assert not host.ipam.has_ring
    host.execute()
    assert not [row for row in host.disk if row[0] == "ring"]


def test_a_used_ring_is_not_given_up() -> None:
    world = World.of("a")
    world.do("a", Allocate("web"))
    with pytest.raises(InvariantBroken):
        world["a"].ipam.forget()


# --- replication and report ---


def test_news_are_pushed_once_and_repeat_what_others_need() -> None:
    world = World.of("a", "b", "c", owners=("a",))
    world.connect("a", "b")
    world.do("b", Allocate("web"))
    assert world["b"].ipam.take_delta() is None
    differing = [
        bucket
        for bucket, pair in enumerate(
            zip(world["a"].ipam.bucket_hashes(0), world["c"].ipam.bucket_hashes(0), strict=True)
        )
        if pair[0] != pair[1]
    ]
    delta = world["a"].ipam.buckets(0, differing)
    assert delta.log_length == 1
    world["c"].learn(world.now, State(world["a"].log.entries, (delta,)))
    assert world["c"].ipam.ring_hash == world["a"].ipam.ring_hash
    assert world["c"].ipam.ring.segments == world["a"].ipam.ring.segments
    assert world["c"].ipam.owns_space(B)
    assert not world["c"].ipam.owns_space(Z)


def test_the_report_says_what_is_true() -> None:
    world = World.of("a", "b", "c", owners=("a", "b"))
    world.do("a", Allocate("web"))
    world.connect("a", "c")
    waiting = world.ask("c", Claim("db", "10.32.0.40/26"))
    world.wait(3.0)

    def label(peer: bytes) -> tuple[str, str]:
        return ("b", "host-b") if peer == B else ("", "")

    report = world["c"].ipam.report(world.now, label=label, unreachable_since=lambda peer: world.now - 2.0)
    assert waiting not in world["c"].replies
    assert (report.state, report.range, report.ranges[0].addresses) == ("all owners unreachable", RANGE, 64)
    assert report.ranges[0].default_subnet == RANGE
    assert [(owner.addresses, owner.percent, owner.is_self) for owner in report.owners] == [(32, 50.0, False)] * 2
    assert [owner.unreachable_s for owner in report.owners] == [None, 2.0]
    assert report.pending == ("db: the address 10.32.0.40/26, since 3 s: no owner is reachable (b(host-b))",)
    assert not report.is_elector
    assert "b(host-b)" in report.electors
    mine = world["a"].ipam.report(world.now, label=label, unreachable_since=lambda peer: None)
    assert (mine.state, mine.active, mine.segments, mine.is_elector) == ("ready", 1, 2, True)


def test_the_report_names_seeds_that_were_never_started() -> None:
    world = seeds("a")
    report = world["a"].ipam.report(1.0, label=lambda peer: ("", ""), unreachable_since=lambda peer: None)
    assert {(owner.name, owner.nickname) for owner in report.owners} == {
        ("a", "seed, not started yet"),
        ("b", "seed, not started yet"),
    }


@pytest.mark.parametrize(("waits", "state"), [(True, "awaiting consensus"), (False, "idle")])
def test_the_report_before_genesis(waits: bool, state: str) -> None:
    host = Host("a")
    if waits:
        host.command(1.0, 1, Allocate("web"))
    report = host.ipam.report(2.0, label=lambda peer: ("", ""), unreachable_since=lambda peer: None)
    assert (report.state, report.range, report.owners) == (state, RANGE, ())
    assert len(report.pending) == waits
