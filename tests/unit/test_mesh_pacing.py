"""When records that moved are pushed, and to whom not."""

from __future__ import annotations

from weavenet.core.limits import OWN_PAUSE_PUSHES, PUSH_PAUSE_MAX_S, PUSH_PAUSE_PER_PEER_S
from weavenet.core.mesh.pacing import Moved, Pacing
from weavenet.core.mesh.records import Origin, Records
from weavenet.core.messages.gossip import Mark
from weavenet.core.types import PeerId

ME = PeerId(bytes(16))
PEERS = 100
PAUSE_S = PEERS * PUSH_PAUSE_PER_PEER_S


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(16, "big"))


def pacing(peers: int = PEERS, incarnation: int = 1) -> Pacing:
    records = Records(ME, incarnation, lambda peer: False)
    for number in range(1, peers):
        records.origins[peer(number)] = Origin(peer(number), 1)
    return Pacing(records)


def test_the_first_goes_at_once_and_the_next_ones_wait_for_each_other() -> None:
    paced = pacing()
    paced.moved(10.0, Mark(peer(1), 1, 4), 7)
    assert paced.take(10.0) == [Moved(Mark(peer(1), 1, 4), {7})]
    assert paced.deadline() is None
    paced.moved(10.01, Mark(peer(1), 1, 5), 7)
    assert paced.take(10.01) == []
    paced.moved(10.02, Mark(peer(2), 1, 0), 8)
    paced.moved(10.03, Mark(peer(1), 1, 6), 8)
    assert paced.take(10.03) == []
    assert paced.deadline() == 10.0 + PAUSE_S
    assert paced.take(10.0 + PAUSE_S) == [Moved(Mark(peer(1), 1, 5), {8}), Moved(Mark(peer(2), 1, 0), {8})]
    assert paced.take(11.0) == []


def test_whoever_says_the_same_meanwhile_need_not_be_told() -> None:
    paced = pacing()
    paced.moved(10.0, Mark(peer(1), 1, 4), 7)
    paced.confirmed(peer(1), 8)
    paced.confirmed(peer(2), 8)
    assert paced.take(10.0) == [Moved(Mark(peer(1), 1, 4), {7, 8})]


def test_own_records_wait_for_company_but_not_for_ever() -> None:
    paced = pacing()
    paced.own_moved(10.0, Mark(ME, 1, 2), 0.03)
    paced.own_moved(10.01, Mark(ME, 1, 3), 0.03)
    assert paced.take(10.02) == []
    assert paced.deadline() == 10.03
    assert paced.take(10.03) == [Moved(Mark(ME, 1, 2), set())]
    paced.own_moved(10.2, Mark(ME, 1, 4), 0.03)
    assert paced.deadline() == 10.03 + OWN_PAUSE_PUSHES * PAUSE_S
    paced.own_moved(10.3, Mark(ME, 1, 5), 0.0)
    assert paced.take(10.3) == [Moved(Mark(ME, 1, 4), set())]
    assert paced.deadline() is None


def test_own_records_that_went_with_others_are_not_pushed_again() -> None:
    paced = pacing()
    paced.moved(10.0, Mark(peer(1), 1, 4), 7)
    paced.take(10.0)
    paced.own_moved(10.01, Mark(ME, 1, 5), 0.0)
    assert paced.take(10.01) == []
    paced.own_moved(10.02, Mark(ME, 1, 6), 1.0)
    assert paced.take(10.0 + PAUSE_S) == [Moved(Mark(ME, 1, 5), set())]
    assert paced.deadline() is None
    assert paced.take(12.0) == []


def test_pauses_are_bounded_however_many_peers_there_are() -> None:
    assert pacing(3000).pause_s(1) == PUSH_PAUSE_MAX_S
    assert pacing(3).pause_s(2) == 6 * PUSH_PAUSE_PER_PEER_S
