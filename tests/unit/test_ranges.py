"""Two ranges as one space of offsets, and as they are told to others."""

from __future__ import annotations

import ipaddress
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_world import peer_id
from weavenet.core.ranges import Ranges, base, by_range, genesis_problem, offset_key, placed, ranges_problem, told
from weavenet.core.ring.subnets import claimed_place, default_windows, subnet_window
from weavenet.core.types import GENESIS_POSITION, Genesis, Segment, Stamp

BOTH = Ranges.parse(("10.32.0.0/12", "fd00:77::/64"))
A = peer_id("a")


def piece(start: int, end: int) -> Segment:
    return Segment(start, end, Stamp(GENESIS_POSITION, 1, A))


@pytest.mark.parametrize(
    ("address", "offset"),
    [
        ("10.32.0.0", 0),
        ("10.47.255.255", (1 << 20) - 1),
        ("10.48.0.0", None),
        ("fd00:77::", base(1)),
        ("fd00:77::5", base(1) + 5),
        ("fd00:77::ffff:ffff:ffff:fffe", base(1) + (1 << 64) - 2),
        ("fd00:77::ffff:ffff:ffff:ffff", None),
        ("fd00:78::", None),
    ],
)
def test_every_address_has_an_offset_of_its_own(address: str, offset: int | None) -> None:
    assert BOTH.offset(address) == offset
    if offset is not None:
        assert BOTH.address(offset) == address


def test_the_last_address_of_a_whole_64_is_the_only_one_left_out() -> None:
    assert BOTH.sizes == (1 << 20, (1 << 64) - 1)
    assert BOTH.size == (1 << 64) - 1 + (1 << 20)
    assert BOTH.text == "10.32.0.0/12,fd00:77::/64"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (("10.0.0.0/8", "10.0.0.0/8"), "second IPv4"),
        (("fd00::/64", "10.0.0.0/8", "fd01::/64"), "second IPv6"),
        (("fd00::/63",), "more than 2^64"),
        (("10.0.0.1/8",), "host bits"),
        (("nonsense",), "nonsense"),
    ],
)
def test_ranges_that_cannot_be_divided_together_are_refused(ranges: tuple[str, ...], words: str) -> None:
    assert words in ranges_problem(ranges)
    assert words in genesis_problem(Genesis(bytes(16), ranges, (A,), (A,)))
    with pytest.raises(ValueError, match=re.escape(words)):
        Ranges.parse(ranges)


def test_one_range_of_either_family_is_enough() -> None:
    assert not ranges_problem(("fd00:77::/112",))
    assert Ranges.parse(("fd00:77::/112",)).offset("fd00:77::9") == 9


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, (1 << 64) - 3)), max_size=6))
def test_what_is_told_fits_on_the_wire_and_is_placed_where_it_was(places: list[tuple[int, int]]) -> None:
    segments = [piece(base(number) + start, base(number) + start + 2) for number, start in sorted(set(places))]
    seen = []
    for number, content in by_range(segments):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(content), type=tuple[Segment, ...]) == content
        assert told(number, placed(number, content)) == content
        seen += placed(number, content)
    assert seen == segments


def test_keys_of_rows_tell_the_ranges_apart() -> None:
    assert offset_key(5) == (5).to_bytes(8, "big")
    assert offset_key(base(1) + 5) == b"\1" + offset_key(5)
    for offset in (5, base(1) + 5, base(1) + (1 << 64) - 2):
        assert int.from_bytes(offset_key(offset), "big") == offset


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("fd00:77::/64", "fd00:77::1", "fd00:77::ffff:ffff:ffff:fffe"),
        ("fd00:77:0:0:1::/80", "fd00:77::1:0:0:1", "fd00:77::1:ffff:ffff:fffe"),
        ("fd00:77::/48", "fd00:77::1", "fd00:77::ffff:ffff:ffff:fffe"),
        ("fd00::/8", "fd00:77::", "fd00:77::ffff:ffff:ffff:fffe"),
        ("10.32.1.0/24", "10.32.1.1", "10.32.1.254"),
    ],
)
def test_subnets_of_either_family_without_the_addresses_at_their_ends(text: str, first: str, last: str) -> None:
    window = subnet_window(BOTH, text)
    assert not isinstance(window, Exception)
    assert (BOTH.address(window.first), BOTH.address(window.stop - 1)) == (first, last)  # type: ignore[union-attr]


@given(st.integers(64, 126), st.integers(0, (1 << 64) - 1), st.sampled_from(["fd00:77::/64", "fd00:77::/100"]))
def test_windows_are_the_subnet_without_its_ends_within_the_range(length: int, seed: int, cidr: str) -> None:
    area = Ranges.parse((cidr,))
    whole = ipaddress.IPv6Network(cidr)
    subnet = ipaddress.IPv6Network((int(whole.network_address) + seed, length), strict=False)
    window = subnet_window(area, str(subnet))
    if not subnet.overlaps(whole):
        assert not hasattr(window, "first")
        return
    low = max(int(subnet.network_address) + 1, int(whole.network_address))
    high = min(int(subnet.broadcast_address) - 1, int(whole.network_address) + area.size - 1)
    assert (window.first, window.stop) == (low - area.areas[0].base, high + 1 - area.areas[0].base)  # type: ignore[union-attr]


def test_who_asks_for_nothing_gets_one_window_per_range() -> None:
    windows = default_windows(BOTH, ())
    assert [window.cidr for window in windows] == ["10.32.0.0/12", "fd00:77::/64"]  # type: ignore[union-attr]
    windows = default_windows(BOTH, ("fd00:77:0:0:1::/80",))
    assert [window.cidr for window in windows] == ["10.32.0.0/12", "fd00:77:0:0:1::/80"]  # type: ignore[union-attr]


def test_a_claim_of_an_ipv6_address_is_in_the_range_or_not() -> None:
    assert claimed_place(BOTH, "fd00:77::5/64").offset == base(1) + 5  # type: ignore[union-attr]
    assert claimed_place(BOTH, "fd00:99::5/64").offset is None  # type: ignore[union-attr]
    assert "the first of the subnet" in claimed_place(BOTH, "fd00:77::/64").found  # type: ignore[union-attr]
