"""Initial shares: equal, aligned, the same on every peer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ring_world import genesis_of, peer_id
from weavenet.core.ring import initial_ring, seed_genesis, seed_owner
from weavenet.core.types import GENESIS_POSITION, Genesis


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("cidr", ["10.32.0.0/12", "10.32.0.0/24", "fd00::/64"])
def test_shares_are_equal_and_bounds_are_multiples_of_four(count: int, cidr: str) -> None:
    names = [f"p{number}" for number in range(count)]
    ring = initial_ring(genesis_of(*names, cidr=cidr))
    assert ring.is_full
    assert len(ring.segments) == count
    assert [segment.stamp.owner for segment in ring.segments] == sorted(peer_id(name) for name in names)
    assert all(segment.start % 4 == 0 for segment in ring.segments)
    assert all((segment.stamp.position, segment.stamp.version) == (GENESIS_POSITION, 1) for segment in ring.segments)
    sizes = [segment.end - segment.start for segment in ring.segments]
    assert max(sizes) - min(sizes) <= 8


def test_more_owners_than_blocks_leave_some_without_a_share() -> None:
    ring = initial_ring(genesis_of(*(f"p{number}" for number in range(20)), cidr="10.0.0.0/28"))
    assert ring.is_full
    assert [segment.end - segment.start for segment in ring.segments] == [4, 4, 4, 4]


def test_no_owners_are_refused() -> None:
    with pytest.raises(ValueError, match="nobody"):
        initial_ring(Genesis(bytes(16), ("10.0.0.0/24",), (), ()))


def test_seeds_in_any_order_mean_the_same_cluster() -> None:
    one = seed_genesis(["b", "a", "c"], ["10.32.0.0/12"], b"salt")
    assert one == seed_genesis(["c", "a", "b", "a"], ["10.32.0.0/12"], b"salt")
    assert set(one.owners) == {seed_owner(name, b"salt") for name in "abc"}


@pytest.mark.parametrize(
    ("names", "ranges", "salt"),
    [
        (["a", "b"], ["10.32.0.0/12"], b"salt"),
        (["a", "b", "c"], ["10.0.0.0/8"], b"salt"),
        (["a", "b", "c"], ["10.32.0.0/12"], b""),
    ],
)
def test_other_words_mean_another_cluster(names: list[str], ranges: list[str], salt: bytes) -> None:
    assert seed_genesis(names, ranges, salt).cluster != seed_genesis(["a", "b", "c"], ["10.32.0.0/12"], b"salt").cluster


def test_shares_cover_the_range_without_gaps() -> None:
    ring = initial_ring(genesis_of("a", "b", "c"))
    assert all(left.end == right.start for left, right in pairwise(ring.segments))
