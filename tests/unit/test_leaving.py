"""Who stands for those that left, what their custodians hold, and what stays on their disk."""

from __future__ import annotations

import random

import pytest

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Outbox, Unicast
from weavenet.core.errors import InvariantBroken, WeaveError
from weavenet.core.leaving import Departed, departed_disk
from weavenet.core.leaving.transfer import Transfer
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.leaving import CustodyAccepted, CustodyOffer, LeftRecord
from weavenet.core.messages.unicast import StampPage
from weavenet.core.ring.estate import Estate
from weavenet.core.ring.log import Log, genesis_entry
from weavenet.core.ring.segments import Ring
from weavenet.core.types import GENESIS_POSITION, Genesis, LogEntry, PeerId, Position, Remove, Segment, Stamp

A, B, C, D = (PeerId(bytes([number]) * 16) for number in range(1, 5))


def log_of(outbox: Outbox, *removals: Remove, owners: tuple[PeerId, ...] = (A, B, C, D)) -> Log:
    log = Log((), outbox)
    log.merge(0, (genesis_entry(Genesis(bytes(16), ("10.32.0.0/24",), owners, owners)),))
    for removal in removals:
        log.merge(len(log), (LogEntry(Position(0, bytes(8), len(log)), log.hash, removal),))
    return log


class Publisher:
    def __init__(self) -> None:
        self.published: set[bytes] = set()

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None:
        self.published.add(key)

    def withdraw(self, now: float, kind: int, key: bytes) -> None:
        self.published.discard(key)


def departed(log: Log, outbox: Outbox, *, me: PeerId = A, absent_s: float | None = None) -> tuple[Departed, Publisher]:
    publisher = Publisher()
    found = Departed(
        me=me,
        log=log,
        rows=(),
        outbox=outbox,
        publisher=publisher,
        unreachable_for=lambda now, peer: absent_s,
        owns_space=lambda peer: False,
    )
    return found, publisher


def left(peer: PeerId, *custodians: PeerId) -> LeftRecord:
    return LeftRecord(peer, "name", "nickname", custodians)


# --- who stands for whom ---


def test_succession_goes_through_removals_and_departures() -> None:
    log = log_of(Outbox(), Remove((A,), B))
    log.depart(B, C)
    assert log.heir(A) == C
    assert log.succession(A) == (C, Position(0, bytes(8), 1))
    assert log.succession(B) == (C, None), "nobody has to be asked about what strays to it"
    assert log.is_gone(A) and log.is_gone(B) and not log.is_gone(C)


def test_a_circle_of_heirs_ends() -> None:
    log = log_of(Outbox(), Remove((A,), B))
    log.depart(B, A)
    assert log.heir(B) == A
    assert log.heir(A) == B


def test_who_left_without_an_heir_stands_for_itself() -> None:
    log = log_of(Outbox())
    log.depart(A, None)
    assert log.heir(A) == A


# --- others remember ---


def test_custodians_publish_and_hand_on_who_left() -> None:
    outbox = Outbox()
    found, publisher = departed(log_of(outbox), outbox)
    found.learn(0, left(B, A, C))
    found.learn(0, left(C, D))
    assert publisher.published == {B}, "the other is D's to spread"
    assert found.earlier == (left(B, A, C),)
    assert found.stand_ins == {A, C, D}
    assert found.fresh == {B, C}


def test_a_record_about_ourselves_is_not_learnt() -> None:
    outbox = Outbox()
    found, _ = departed(log_of(outbox), outbox)
    found.learn(0, left(A, B))
    assert not found.gone


def test_custody_is_accepted_only_from_the_leaver_and_by_who_is_named() -> None:
    outbox = Outbox()
    found, _ = departed(log_of(outbox), outbox)
    found.offered(0, C, CustodyOffer(1, left(B, A), ()))
    found.offered(0, B, CustodyOffer(1, left(B, C), ()))
    assert outbox.drain() == [] or not found.custody
    found.offered(0, B, CustodyOffer(7, left(B, A), (left(D, B),)))
    assert found.custody == {B: left(B, A)}
    assert D in found.gone, "what it was custodian of comes along"
    assert Unicast(B, CustodyAccepted(7)) in outbox.drain()


@pytest.mark.parametrize(("absent_s", "is_gone"), [(None, False), (5.0, False), (10.0, True)])
def test_a_leaver_in_custody_that_is_out_of_reach_has_left(absent_s: float | None, is_gone: bool) -> None:
    outbox = Outbox()
    found, _ = departed(log_of(outbox), outbox, absent_s=absent_s)
    found.offered(0, B, CustodyOffer(1, left(B, A), ()))
    deadline = found.deadline()
    assert deadline is not None
    found.tick(deadline)
    assert (B in found.gone) == is_gone


def test_unreadable_rows_and_records_are_refused() -> None:
    outbox = Outbox()
    with pytest.raises(WeaveError):
        Departed(
            me=A,
            log=log_of(outbox),
            rows=((B, b"\xc1"),),
            outbox=outbox,
            publisher=Publisher(),
            unreachable_for=lambda now, peer: None,
            owns_space=lambda peer: False,
        )
    found, _ = departed(log_of(outbox), outbox)
    assert found.read(B, (b"\xc1", b"\x94")) == []


# --- the leaver ---


def stamped(start: int, end: int, owner: PeerId, version: int = 1) -> Segment:
    return Segment(start, end, Stamp(GENESIS_POSITION, version, owner))


def test_a_transfer_is_complete_when_ring_and_log_are_confirmed() -> None:
    outbox = Outbox()
    ring = Ring((256,), (stamped(0, 128, A), stamped(128, 256, B)))
    transfer = Transfer(C, random.Random(1))
    assert not transfer.is_complete(ring, 2)
    transfer.send(0.0, ring, 2, outbox)
    sent = [each.body for each in outbox.drain() if isinstance(each, Unicast)]
    assert sent == [StampPage(transfer.session, 0, RingDelta(0, 2, ring.segments))]
    transfer.confirmed(9, ring)
    assert not transfer.is_complete(ring, 2)
    transfer.confirmed(0, ring)
    assert transfer.is_complete(ring, 2)
    changed = ring.merge((stamped(0, 4, B, 2),))[0]
    assert not transfer.is_complete(changed, 2)
    assert not transfer.is_complete(ring, 3)
    transfer.send(1.0, changed, 3, outbox)
    sent = [each.body for each in outbox.drain() if isinstance(each, Unicast)]
    assert sent == [StampPage(transfer.session, 1, RingDelta(0, 3, (stamped(0, 4, B, 2),)))], "only what changed"


def estate_of(owners: tuple[PeerId, ...]) -> tuple[Estate, Outbox]:
    outbox = Outbox()
    log = log_of(outbox, owners=owners)
    config = NodeConfig(peer=A, name="a", nickname="a", ranges=("10.32.0.0/24",))
    estate = Estate(config, log, {}, outbox)
    return estate, outbox


def test_surrender_levels_the_free_space_of_the_heirs() -> None:
    estate, _ = estate_of((A, B))
    estate.learn((stamped(0, 8, A, 5), stamped(16, 24, A, 5)))
    before = estate.ring.shares[A]
    estate.surrender({B: (0,), C: (100,)})
    shares = estate.ring.shares
    assert A not in shares
    assert shares[B] + shares.get(C, 0) == 256
    assert before == shares[B] - 128 + shares.get(C, 0)


def test_space_in_use_is_not_surrendered() -> None:
    estate, _ = estate_of((A, B))
    estate.space.hold(((0, 4),))
    with pytest.raises(InvariantBroken):
        estate.surrender({B: (0,)})


def test_what_strays_to_the_departed_is_its_heirs_and_not_that_of_the_removed() -> None:
    estate, _ = estate_of((A, B, C, D))
    estate.log.depart(B, A)
    taken = estate.succeed()
    assert {piece.stamp.owner for piece in taken} == {A}
    assert B not in estate.ring.shares
    assert not estate.inherits, "without a hold"
    estate.leaving = True
    estate.log.depart(C, A)
    assert estate.succeed() == (), "a leaver takes nothing"


def test_nothing_but_the_name_stays_on_the_disk() -> None:
    disk = {("log", b"1"): b"x", ("runtime", b"identity-seed"): b"s", ("runtime", b"peer-name"): b"n"}
    changes = departed_disk(disk)
    assert {(change.table, change.key) for change in changes} == {("log", b"1"), ("runtime", b"identity-seed")}
    assert all(change.value is None for change in changes)
    assert departed_disk({("runtime", b"peer-name"): b"n"}) == ()
