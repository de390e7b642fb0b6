"""The ring's merge is the join of a semilattice, and segments mean what a stamp per address would mean."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.core.effects import Change
from weavenet.core.ring import FreeSpace, Ring
from weavenet.core.ring.segments import load_ring, ring_rows
from weavenet.core.types import PeerId, Position, Segment, Stamp

SIZE = 200
stamps = st.builds(
    Stamp,
    st.builds(Position, st.integers(0, 1), st.sampled_from([bytes(8), b"epoch-id"]), st.integers(0, 2)),
    st.integers(1, 3),
    st.sampled_from([PeerId(bytes([n]) * 16) for n in range(3)]),
)


@st.composite
def segment_lists(draw: st.DrawFn, max_size: int = 12) -> list[Segment]:
    """Segments in any order, overlapping or not."""
    bounds = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 40))
    drawn = draw(st.lists(st.tuples(bounds, stamps), max_size=max_size))
    return [Segment(start, min(SIZE, start + length), stamp) for (start, length), stamp in drawn]


rings = segment_lists().map(lambda segments: Ring((SIZE,), segments))


def naive(segments: list[Segment] | tuple[Segment, ...]) -> dict[int, Stamp]:
    """One stamp per address: the model that segments stand for."""
    model: dict[int, Stamp] = {}
    for segment in segments:
        for offset in range(segment.start, segment.end):
            if offset not in model or model[offset] < segment.stamp:
                model[offset] = segment.stamp
    return model


def join(one: Ring, other: Ring) -> Ring:
    return one.merge(other.segments)[0]


@given(rings, rings)
def test_merge_is_commutative(one: Ring, other: Ring) -> None:
    assert join(one, other) == join(other, one)


@given(rings, rings, rings)
def test_merge_is_associative(one: Ring, two: Ring, three: Ring) -> None:
    assert join(join(one, two), three) == join(one, join(two, three))


@given(rings, rings)
def test_merge_is_idempotent(one: Ring, other: Ring) -> None:
    joined = join(one, other)
    for part in (one, other, joined):
        again, changed = joined.merge(part.segments)
        assert again is joined
        assert changed == ()


@given(segment_lists())
def test_segments_mean_one_stamp_per_address(segments: list[Segment]) -> None:
    ring = Ring((SIZE,), segments)
    ring.check()
    model = naive(segments)
    assert {offset: ring.stamp_at(offset) for offset in range(SIZE) if ring.stamp_at(offset)} == model
    owned = {owner: sum(stamp.owner == owner for stamp in model.values()) for owner in ring.shares}
    assert ring.shares == owned
    for owner, addresses in owned.items():
        intervals = ring.owned(owner)
        assert sum(high - low for low, high in intervals) == addresses
        assert all(high < low for (_, high), (low, _) in pairwise(intervals))


@given(rings, segment_lists())
def test_merge_returns_exactly_what_changed(ring: Ring, segments: list[Segment]) -> None:
    merged, changed = ring.merge(segments)
    before, after = naive(ring.segments), naive(merged.segments)
    assert after == naive([*ring.segments, *segments])
    assert naive(changed) == {offset: stamp for offset, stamp in after.items() if before.get(offset) != stamp}
    Ring((SIZE,), changed).check()
    assert Ring((SIZE,), changed).segments == changed


@given(segment_lists(), st.randoms(use_true_random=False), st.lists(st.integers(0, SIZE), max_size=8))
def test_the_form_is_unique_however_it_was_cut_and_ordered(
    segments: list[Segment], rng: random.Random, cuts: list[int]
) -> None:
    pieces = []
    for segment in segments:
        bounds = [segment.start, *sorted(cut for cut in set(cuts) if segment.start < cut < segment.end), segment.end]
        pieces += [Segment(low, high, segment.stamp) for low, high in pairwise(bounds)]
    rng.shuffle(pieces)
    one, other = Ring((SIZE,), segments), Ring((SIZE,), pieces)
    assert one == other
    assert one.hash == other.hash
    assert one.bucket_hashes() == other.bucket_hashes()


@given(rings, rings, st.integers(1, 5), st.randoms(use_true_random=False))
def test_pages_in_any_order_and_repeated_are_the_whole(
    mine: Ring, theirs: Ring, page_size: int, rng: random.Random
) -> None:
    pages = [theirs.segments[at : at + page_size] for at in range(0, len(theirs.segments), page_size)]
    pages += rng.choices(pages, k=3) if pages else []
    rng.shuffle(pages)
    ring = mine
    for page in pages:
        ring, _ = ring.merge(page)
        ring.check()
    assert ring == join(mine, theirs)


@given(rings, rings)
def test_hashes_survive_merging_and_tell_rings_apart(one: Ring, other: Ring) -> None:
    _ = one.hash  # so that the merge inherits digests
    joined = join(one, other)
    fresh = Ring((SIZE,), joined.segments)
    assert (joined.hash, joined.bucket_hashes()) == (fresh.hash, fresh.bucket_hashes())
    assert (one.hash == other.hash) == (one == other)


@given(rings, rings)
def test_differing_buckets_are_enough_to_repair(one: Ring, other: Ring) -> None:
    pairs = enumerate(zip(one.bucket_hashes(), other.bucket_hashes(), strict=True))
    differing = [bucket for bucket, (mine, theirs) in pairs if mine != theirs]
    repaired = one
    for bucket in differing:
        repaired, _ = repaired.merge(other.within(*other.bucket_bounds(bucket)))
    assert repaired == join(one, other)


@given(st.lists(segment_lists(4), max_size=5))
def test_rows_follow_each_merge_and_load_the_same_ring(deltas: list[list[Segment]]) -> None:
    disk: dict[tuple[str, bytes], bytes] = {}
    ring = Ring((SIZE,))
    for delta in deltas:
        merged, changed = ring.merge(delta)
        for change in ring_rows(ring, merged, changed):
            _store(disk, change)
        ring = merged
        assert load_ring((SIZE,), disk) == ring
        assert len(disk) == len(ring.segments)


def _store(disk: dict[tuple[str, bytes], bytes], change: Change) -> None:
    if change.value is None:
        del disk[change.table, change.key]
    else:
        assert disk.get((change.table, change.key)) != change.value, "wrote a row that was there already"
        disk[change.table, change.key] = change.value


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 30)), max_size=60), st.integers(2, 8))
def test_free_space_is_a_set_of_offsets(changes: list[tuple[bool, int, int]], chunk: int) -> None:
    import weavenet.core.ring.free as free_module

    original, free_module.CHUNK_MAX = free_module.CHUNK_MAX, chunk
    try:
        free, model = FreeSpace(), set[int]()
        for adding, low, length in changes:
            if adding:
                free.add(low, low + length)
                model |= set(range(low, low + length))
            elif length == 1:
                taken = free.take_lowest(low, SIZE)
                assert taken == min((offset for offset in model if low <= offset < SIZE), default=None)
                model.discard(-1 if taken is None else taken)
            else:
                free.remove(low, low + length)
                model -= set(range(low, low + length))
            free.check()
            assert {offset for start, end in free for offset in range(start, end)} == model
            window = {offset for offset in model if low <= offset < low + 50}
            assert free.lowest(low, low + 50) == min(window, default=None)
            assert free.count(low, low + 50) == len(window)
            assert (low in free) == (low in model)
            _check_block(free.biggest_block(low, low + 50), window)
    finally:
        free_module.CHUNK_MAX = original


def _check_block(block: tuple[int, int] | None, window: set[int]) -> None:
    candidates = [
        (size, start)
        for size in (1, 2, 4, 8, 16, 32)
        for start in range(0, 400, size)
        if all(offset in window for offset in range(start, start + size))
    ]
    best = max(candidates, default=None)
    assert block == (None if best is None else (best[1], best[1] + best[0]))
