"""Routes: links count when both ends report them; the incremental tree equals a fresh search."""

from __future__ import annotations

import random

from mesh_network import peer_id

from weavenet.core.mesh.routes import Routes
from weavenet.core.types import PeerId

ME, A, B, C = (peer_id(number) for number in range(4))


def both(routes: Routes, one: PeerId, other: PeerId) -> None:
    routes.publish(one, 1, other)
    routes.publish(other, 1, one)


def test_a_link_that_one_end_reports_carries_nothing() -> None:
    routes = Routes(ME)
    routes.set_linked(A, True)
    routes.publish(A, 1, B)
    assert routes.reachable() == {ME, A}
    routes.publish(B, 1, A)
    assert routes.reachable() == {ME, A, B}
    assert routes.next_peer(B) == A
    routes.withdraw(B, 1, A)
    assert routes.reachable() == {ME, A}
    assert routes.next_peer(B) is None


def test_our_own_link_counts_at_once_and_what_others_say_of_it_does_not() -> None:
    routes = Routes(ME)
    routes.publish(A, 1, ME)
    assert routes.reachable() == {ME}
    routes.set_linked(A, True)
    assert routes.next_peer(A) == A
    routes.set_linked(A, False)
    assert routes.reachable() == {ME}


def test_reachability_is_told_once() -> None:
    routes = Routes(ME)
    both(routes, A, B)
    routes.set_linked(A, True)
    assert routes.take_reachability() == ({A, B}, set())
    assert routes.take_reachability() == (set(), set())
    routes.set_linked(A, False)
    assert routes.take_reachability() == (set(), {A, B})


def test_a_replaced_record_does_not_interrupt_the_link() -> None:
    routes = Routes(ME)
    routes.set_linked(A, True)
    both(routes, A, B)
    routes.publish(A, 2, B)
    routes.withdraw(A, 1, B)
    assert routes.reachable() == {ME, A, B}
    assert routes.published(A) == [(B, 2)]


def test_a_peer_is_sighted_where_both_ends_say_so() -> None:
    routes = Routes(ME)
    routes.publish(A, 3, C)
    routes.publish(B, 4, C)
    routes.publish(C, 5, B)
    assert routes.sightings(C) == [(B, 4)]


def test_random_changes_agree_with_a_fresh_search() -> None:
    rng = random.Random(7)
    peers = [peer_id(number) for number in range(12)]
    routes = Routes(peers[0])
    held: dict[tuple[PeerId, PeerId], int] = {}
    for sequence in range(1, 1500):
        one, other = rng.sample(peers, 2)
        if peers[0] == one:
            routes.set_linked(other, rng.random() < 0.6)
        elif (one, other) in held and rng.random() < 0.5:
            routes.withdraw(one, held.pop((one, other)), other)
        elif (one, other) not in held:
            held[one, other] = sequence
            routes.publish(one, sequence, other)
        routes.check()
        for peer in routes.reachable() - {peers[0]}:
            assert routes.next_peer(peer) in routes._linked
