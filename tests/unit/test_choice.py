"""Which plane, which next hop, who may be spoken to in clear."""

from __future__ import annotations

import itertools
import random

import pytest

from weavenet.core.overlay.choice import best, covers, in_common
from weavenet.core.overlay.paths import PathState
from weavenet.core.overlay.planes import FASTDP, SLEEVE, WIREGUARD
from weavenet.core.overlay.relays import next_hops
from weavenet.core.types import PeerId

W, U, B = PathState.WORKING, PathState.UNPROVEN, PathState.BROKEN


@pytest.mark.parametrize(
    ("fastdp", "sleeve", "current", "chosen"),
    [
        (W, W, SLEEVE, FASTDP),  # back as soon as the better one works
        (W, B, FASTDP, FASTDP),
        (U, W, FASTDP, SLEEVE),  # first packets use what works at once
        (U, U, FASTDP, FASTDP),
        (B, W, FASTDP, SLEEVE),
        (B, U, FASTDP, SLEEVE),
        (U, B, SLEEVE, FASTDP),
        (B, B, SLEEVE, SLEEVE),  # nothing works: nothing moves
        (B, B, FASTDP, FASTDP),
    ],
)
def test_the_best_plane_that_works(fastdp: PathState, sleeve: PathState, current: str, chosen: str) -> None:
    assert best([(FASTDP, fastdp), (SLEEVE, sleeve)], current) == chosen


def test_a_plane_that_is_not_allowed_is_left_even_when_nothing_works() -> None:
    assert best([(SLEEVE, B)], FASTDP) == SLEEVE


def test_wireguard_comes_before_sleeve_when_it_answers() -> None:
    assert best([(WIREGUARD, W), (SLEEVE, W)], SLEEVE) == WIREGUARD
    assert best([(WIREGUARD, U), (SLEEVE, W)], SLEEVE) == SLEEVE
    assert best([(WIREGUARD, B), (SLEEVE, U)], WIREGUARD) == SLEEVE


def test_common_planes_come_best_first() -> None:
    assert in_common(("sleeve", "fastdp", "other"), ("other", "fastdp", "sleeve")) == ("fastdp", "sleeve")
    assert in_common(("sleeve",), ("fastdp",)) == ()


def test_subnets_that_cover_an_address() -> None:
    assert covers(("192.0.2.0/24", "2001:db8::/32"), "192.0.2.7")
    assert covers(("192.0.2.0/24", "2001:db8::/32"), "2001:db8::7")
    assert not covers(("192.0.2.0/24",), "192.0.3.7")
    assert not covers(("192.0.2.0/24",), "::ffff:c000:207")
    assert not covers(("nonsense", ""), "192.0.2.7")
    assert not covers(("192.0.2.0/24",), "host.example")


def peers(count: int) -> list[PeerId]:
    return [PeerId(bytes([number]) * 16) for number in range(count)]


def test_every_reachable_peer_has_a_next_hop_and_following_them_arrives() -> None:
    rng = random.Random(7)
    for _ in range(200):
        everybody = peers(rng.randint(2, 12))
        edges = {pair for pair in itertools.combinations(everybody, 2) if rng.random() < 0.25}
        near = {
            peer: [other for other in everybody if (peer, other) in edges or (other, peer) in edges]
            for peer in everybody
        }
        tables = {peer: next_hops(peer, near[peer], near.__getitem__) for peer in everybody}
        for source in everybody:
            reached = {source}
            while more := {other for peer in reached for other in near[peer]} - reached:
                reached |= more
            assert tables[source].keys() == reached - {source}
            for target in tables[source]:
                at, trail = source, [source]
                while at != target:
                    at = tables[at][target]
                    assert at in near[trail[-1]]
                    assert at not in trail, "a loop"
                    trail.append(at)
