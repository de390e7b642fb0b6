"""Replication between whole meshes: convergence, copies per change, bounded messages, repair, routing of unicasts."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from mesh_network import RING_SIZE, Host, Network, peer_id

from weavenet.core.events import Received
from weavenet.core.limits import (
    INCARNATION_MAX,
    PAGE_BYTES_MAX,
    RECORD_ABSENT_EXPIRY_S,
    RECORD_BYTES_MAX,
    RECORD_HELD_BYTES,
)
from weavenet.core.mesh import pacing, records
from weavenet.core.messages import encode
from weavenet.core.messages.gossip import OriginDelta, Push, Record, RingDelta
from weavenet.core.messages.unicast import Routed, SpaceDenied
from weavenet.core.types import GENESIS_POSITION, ZERO16, Genesis, LogEntry, Segment, Stamp

KIND = 77
"""A kind that no peer knows: carried all the same."""


def publish(host: Host, key: bytes, body: bytes) -> None:
    host.mesh.publish(host.network.now, KIND, key, body)
    host.flush()


def chain(count: int, **fields: object) -> Network:
    network = Network(**fields)  # type: ignore[arg-type]
    for number in range(count):
        network.add(number, [number - 1] if number else [], discovery=False)
    assert network.run(20, lambda: network.is_connected() and network.is_equal())
    return network


def genesis() -> LogEntry:
    return LogEntry(GENESIS_POSITION, ZERO16, Genesis(bytes(16), ("10.32.0.0/12",), (peer_id(0),), (peer_id(0),)))


def segment(offset: int, version: int = 1) -> Segment:
    return Segment(offset, offset + 1, Stamp(GENESIS_POSITION, version, peer_id(0)))


def test_copies_of_a_change_in_a_full_mesh_of_a_hundred() -> None:
    network = Network(is_checking=False)
    for number in range(100):
        network.add(number, list(range(number)), discovery=False)
    assert network.run(6, lambda: network.is_complete() and network.is_equal() and network.is_connected())
    copies: Counter[int] = Counter()

    def count(_source: Host, target: Host, message: object) -> None:
        copies[target.number] += isinstance(message, Push)

    for turn in range(6):  # warm-up: whatever of the tree is missing is found by the first changes
        publish(network.hosts[turn * 13], b"k", b"warm %d" % turn)
        assert network.run(2, network.is_equal)
        network.run(0.5)
    network.on_message = count
    changes = 10
    for turn in range(changes):
        publish(network.hosts[turn * 7], b"k", b"value %d" % turn)
        assert network.run(2, network.is_equal)
        network.run(0.4)
    assert sum(copies.values()) <= 3 * 100 * changes
    assert max(copies.values()) <= 3 * changes


@pytest.mark.parametrize("seed", range(3))
def test_random_graphs_converge_through_cuts_and_crashes(seed: int) -> None:
    rng = random.Random(seed)
    network = Network(seed)
    for number in range(14):
        targets = rng.sample(range(number), min(number, 2))
        network.add(number, targets, discovery=False)
    for turn in range(5):
        cut = {frozenset(rng.sample(range(14), 2)) for _ in range(30)}
        network.cut = lambda one, other, cut=cut: frozenset((one, other)) in cut  # type: ignore[misc]
        if turn == 2:
            network.kill(5)
        if turn == 3:
            network.add(5, [0, 1], discovery=False)
        for _ in range(6):
            host = rng.choice(network.living())
            publish(host, b"%d" % rng.randrange(3), b"%d" % rng.randrange(1000))
            if rng.random() < 0.3:
                host.mesh.withdraw(network.now, KIND, b"%d" % rng.randrange(3))
                host.flush()
            network.run(rng.random())
        network.run(4)
    network.cut = lambda one, other: False
    assert network.run(15, lambda: network.is_connected() and network.is_equal())
    truths = [sorted(host.mesh.records_of(host.peer, KIND)) for host in network.living()]
    for viewer in network.living():
        assert [sorted(viewer.mesh.records_of(host.peer, KIND)) for host in network.living()] == truths


def test_quiet_after_convergence() -> None:
    """Anti-entropy ends: with nothing to tell only beats and now and then a digest are left."""
    network = chain(5)
    network.run(10)
    network.sent.clear()
    network.run(30)
    assert set(network.sent) == {"Heartbeat", "Digest"}
    assert network.sent["Digest"] <= 8 * 4
    assert network.sent["Heartbeat"] <= 8 * 32


def test_a_late_comer_gets_everything_in_bounded_messages() -> None:
    network = chain(2)
    for number in range(120):
        network.hosts[0].mesh.publish(network.now, KIND, b"%d" % number, bytes(RECORD_BYTES_MAX))
    network.hosts[0].flush()
    network.run(2)
    network.largest_bytes = 0
    network.add(2, [1], discovery=False)
    assert network.run(10, lambda: network.is_connected() and network.is_equal())
    assert len(network.hosts[2].mesh.records_of(peer_id(0), KIND)) == 120
    assert network.largest_bytes <= PAGE_BYTES_MAX + 1024


def test_a_change_costs_its_own_size() -> None:
    network = chain(4)
    for number in range(100):
        publish(network.hosts[0], b"%d" % number, bytes(500))
    network.run(5)
    network.largest_bytes = 0
    network.sent.clear()
    publish(network.hosts[0], b"50", b"changed")
    network.run(0.9)
    assert network.largest_bytes < 700
    assert network.sent["Push"] == 3


def test_the_log_goes_before_the_ring_and_both_reach_everybody() -> None:
    network = chain(4)
    first = network.hosts[0]
    first.shared.merge_log(network.now, 0, [genesis()])
    delta = RingDelta(0, 1, tuple(segment(offset) for offset in range(RING_SIZE)))
    first.shared.merge_ring(network.now, delta)
    network.largest_bytes = 0
    first.mesh.push_ring(network.now, delta)  # the log is forgotten: receivers have to ask for it
    first.flush()
    assert network.run(10, lambda: all(len(host.shared.ring) == RING_SIZE for host in network.living()))
    assert network.largest_bytes <= PAGE_BYTES_MAX + 1024
    first.shared.merge_ring(network.now, RingDelta(0, 1, (segment(7, version=2),)))
    first.mesh.push_ring(network.now, RingDelta(0, 1, (segment(7, version=2),)))
    network.hosts[3].shared.merge_ring(network.now, RingDelta(0, 1, (segment(6000, version=3),)))
    first.flush()
    hashes = lambda: {host.shared.ring_hash() for host in network.living()}  # noqa: E731
    assert network.run(15, lambda: len(hashes()) == 1)
    assert first.shared.ring[6000].stamp.version == 3


def test_a_log_decided_here_is_pushed_at_once() -> None:
    network = chain(4)
    first = network.hosts[0]
    first.shared.merge_log(network.now, 0, [genesis()])
    first.mesh.push_log(network.now, 0)
    first.flush()
    assert network.run(0.1, lambda: all(host.shared.log for host in network.living()))


def test_unicasts_travel_over_peers_in_between() -> None:
    network = chain(5)
    first, last = network.hosts[0], network.hosts[4]
    first.outbox.unicast(last.peer, SpaceDenied(3, "hello"))
    first.flush()
    network.run(1)
    assert last.bodies == [(first.peer, SpaceDenied(3, "hello"))]
    assert all(not network.hosts[number].bodies for number in (1, 2, 3))


def test_a_start_beyond_counting_does_not_take_the_place_of_a_peer_that_is_there() -> None:
    """It could not: its true numbers are lower, and it believes nothing of the sort of itself."""
    network = chain(4)
    faulty, far = network.hosts[1], network.hosts[3]
    publish(far, b"k", b"true")
    assert network.run(5, network.is_equal)
    link = network.hosts[0].mesh.next_hop(faulty.peer)
    assert link is not None
    for incarnation in (INCARNATION_MAX + 1, (1 << 63) - 1):
        ghost = OriginDelta(far.peer, incarnation, 0, 1, (Record(1, KIND, b"ghost"),), (), None, 0)
        network.hosts[0].handle(Received(link, Push(0, (), (), (ghost,))))
        assert network.run(10, lambda: network.is_connected() and network.is_equal())
        assert [host.mesh.records_of(far.peer, KIND) for host in network.living()] == [[b"true"]] * 4
        link = network.hosts[0].mesh.next_hop(faulty.peer)
        assert link is not None


def test_unicasts_that_lead_nowhere_are_dropped() -> None:
    network = chain(3)
    middle = network.hosts[1]
    link = middle.mesh.next_hop(peer_id(0))
    assert link is not None
    body = encode(SpaceDenied(1, ""))
    for message in (
        Routed(middle.peer, peer_id(2), 5, body),
        Routed(peer_id(2), peer_id(0), 5, body),
        Routed(peer_id(0), peer_id(2), 0, body),
        Routed(peer_id(0), peer_id(77), 5, body),
        Routed(peer_id(0), middle.peer, 5, b"garbage"),
    ):
        network.sent.clear()
        middle.handle(Received(link, message))
        assert network.sent["Routed"] == 0 and not middle.bodies
    assert any("dropped" in note for note in middle.notes)


def test_records_of_ours_from_a_start_we_know_nothing_of_end_this_identity() -> None:
    network = chain(2)
    one, two = network.hosts[0], network.hosts[1]
    publish(one, b"k", b"mine")
    network.run(1)
    link = one.mesh.next_hop(two.peer)
    assert link is not None
    foreign = one.mesh.incarnation(one.peer) + 1000
    stale = OriginDelta(one.peer, foreign, 0, 5, (Record(5, KIND, b"ghost"),), (), None, 0)
    two_link = two.mesh.next_hop(one.peer)
    assert two_link is not None
    two.handle(Received(two_link, Push(0, (), (), (stale,))))
    assert not one.mesh.identity_ended
    assert network.run(5, lambda: "a copy of it runs on another host" in one.mesh.identity_ended)
    assert one.mesh.records_of(one.peer, KIND) == [b"mine"]
    assert not two.mesh.identity_ended


def test_contradictory_records_close_the_link_in_words() -> None:
    network = chain(2)
    one, two = network.hosts[0], network.hosts[1]
    link = one.mesh.next_hop(two.peer)
    assert link is not None
    bad = OriginDelta(peer_id(9), 1, 5, 3, (), (), None, 0)
    one.handle(Received(link, Push(0, (), (), (bad,))))
    assert one.mesh.established_peers() == frozenset()
    assert any("expected sound records" in note for note in one.notes)


def test_records_of_an_absent_peer_expire_everywhere_and_do_not_return() -> None:
    """A day on both sides of a partition, then it heals (history *zombie-ping-pong*)."""
    network = Network(is_checking=False)
    for number in range(4):
        network.add(number, [0, 1], discovery=False)
    assert network.run(10, lambda: network.is_connected() and network.is_equal())
    gone = peer_id(3)
    network.kill(3)
    network.run(5)
    network.cut = lambda one, other: {one, other} == {0, 2} or {one, other} == {1, 2}
    network.run(60)
    # Both halves sleep through the day but for a beat now and then.
    for _ in range(30):
        network.now += RECORD_ABSENT_EXPIRY_S / 29
        network.run(3)
    network.cut = lambda one, other: False
    network.run(120)
    for host in network.living():
        assert not host.mesh.knows(gone)
        assert host.mesh.expired(gone)
    assert network.is_equal() and network.is_connected()


def test_records_too_big_or_too_many_are_refused_loudly() -> None:
    network = chain(2)
    one = network.hosts[0]
    publish(one, b"k", bytes(RECORD_BYTES_MAX + 1))
    assert one.mesh.records_of(one.peer, KIND) == []
    assert any("not published" in note for note in one.notes)


def test_what_is_held_of_all_others_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a link can speak in the name of as many origins as there may be."""
    monkeypatch.setattr(records, "RECORDS_BYTES_MAX", 4 * (100 + RECORD_HELD_BYTES))
    held = records.Records(peer_id(0), 1, lambda peer: False)

    def delta(origin: int, *sequences: int, incarnation: int = 1, dropped: tuple[int, ...] = ()) -> OriginDelta:
        base, top = min(sequences) - 1, max(sequences)
        of_it = tuple(Record(sequence, 99, bytes(100)) for sequence in sequences if sequence not in dropped)
        return OriginDelta(
            peer_id(origin), incarnation, base, top, of_it, tuple(s for s in dropped if s <= base), None, 0
        )

    def is_refused(wanted: OriginDelta) -> bool:
        try:
            held.apply(1.0, wanted)
        except records.RecordRefused as refusal:
            assert "bytes of all peers" in str(refusal)
            return True
        finally:
            held.check()
        return False

    assert not is_refused(delta(1, 1, 2)) and not is_refused(delta(2, 1, 2))
    assert is_refused(delta(3, 1)) and is_refused(delta(1, 3))
    held.put(99, b"own", bytes(100))
    assert not is_refused(delta(1, 1, 2, incarnation=2)), "a new start takes the place of the one before"
    assert not is_refused(delta(1, 3, dropped=(1, 3), incarnation=2)), "what is withdrawn makes room"
    assert not is_refused(delta(3, 1)) and is_refused(delta(3, 2))
    held.discard(peer_id(2))
    held.set_reachable(1.0, peer_id(1), False)
    assert len(held.expire(1.0 + RECORD_ABSENT_EXPIRY_S)) == 2
    held.check()
    assert not is_refused(delta(4, 1, 2, 3, 4)) and is_refused(delta(4, 5))


def test_a_change_by_itself_does_not_wait_on_any_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> float:
        network = chain(5)
        network.run(2)
        arrivals: list[float] = []

        def note(source: Host, target: Host, message: object) -> None:
            if isinstance(message, Push) and target.number == 4:
                arrivals.append(network.now)

        network.on_message = note
        began = network.now
        publish(network.hosts[0], b"k", b"alone")
        assert network.run(1, network.is_equal)
        assert len(arrivals) == 1
        return arrivals[0] - began

    paced = taken()
    monkeypatch.setattr(pacing, "PUSH_PAUSE_PER_PEER_S", 0.0)
    assert paced == pytest.approx(taken())


def test_changes_within_a_moment_travel_together() -> None:
    network = chain(3)
    network.run(2)
    pushes: list[Push] = []

    def count(source: Host, target: Host, message: object) -> None:
        if isinstance(message, Push) and target.number == 2:
            pushes.append(message)

    network.on_message = count
    for number in range(50):
        publish(network.hosts[0], b"k%d" % number, b"together")
    assert network.run(1, network.is_equal)
    assert len(pushes) == 2, "the first at once, all others with the next"
    assert sum(len(delta.records) for push in pushes for delta in push.records) == 50


def test_nobody_is_told_what_it_said_itself() -> None:
    network = chain(3)
    network.run(2)
    told: list[tuple[int, int]] = []

    def count(source: Host, target: Host, message: object) -> None:
        if isinstance(message, Push):
            told.append((source.number, target.number))

    network.on_message = count
    publish(network.hosts[0], b"k", b"from the end")
    assert network.run(1, network.is_equal)
    network.run(1)
    assert told == [(0, 1), (1, 2)]
