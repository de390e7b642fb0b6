"""When a seed with a blank store may take its share."""

from __future__ import annotations

import msgspec
import pytest

from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.ring import seed_owner
from weavenet.core.seeding import Seeding
from weavenet.core.types import PeerId

A, B, C, D = (f"00:00:00:00:00:0{number}" for number in range(4))


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 16)


def voter(name: str) -> PeerId:
    return seed_owner(name, b"salt")


def record(name: str, *, bound: bool) -> PeerRecord:
    return PeerRecord(
        name=name,
        nickname="",
        software="",
        elector=False,
        settled_n=0,
        wants_genesis=False,
        port=6783,
        mtu=1376,
        planes=(),
        votes_as=voter(name) if bound else b"",
    )


def seeding(records: dict[PeerId, PeerRecord], *, name: str = A) -> Seeding:
    config = NodeConfig(
        peer=peer(9),
        name=name,
        nickname="",
        ranges=("10.32.0.0/12",),
        mode=GenesisMode.SEED,
        seeds=(A, B, C, D),
        seed_salt=b"salt",
    )
    return Seeding(config, records.get)


def is_enough(found: Seeding, handed_over: list[int], takers: set[str]) -> bool:
    """``takers``: names of the seeds that took their shares, by the ring."""
    found.meet([peer(number) for number in handed_over])
    found.handed_over([peer(number) for number in handed_over])
    return found.is_enough(frozenset(map(voter, takers)))


@pytest.mark.parametrize(("handed_over", "expected"), [([], False), ([1], False), ([1, 2], True), ([1, 2, 3], True)])
def test_most_of_the_seeds_that_took_their_shares_vouch(handed_over: list[int], expected: bool) -> None:
    names = dict(zip((1, 2, 3), (B, C, D), strict=True))
    found = seeding({peer(number): record(name, bound=True) for number, name in names.items()})
    assert is_enough(found, handed_over, {B, C, D}) is expected


@pytest.mark.parametrize("takers", [{B}, set()])  # by the ring; it says so itself, too
def test_the_only_seed_that_took_its_share_vouches(takers: set[str]) -> None:
    assert is_enough(seeding({peer(1): record(B, bound=True)}), [1], takers)


def test_of_two_that_took_their_shares_one_is_not_most() -> None:
    assert not is_enough(seeding({peer(1): record(B, bound=True)}), [1], {B, C})


def test_one_that_says_of_itself_that_it_took_its_share_counts_before_the_ring_says_so() -> None:
    """The history of seed 16254: one of two had slept, and was handed over with first."""
    found = seeding({peer(1): record(B, bound=True), peer(2): record(C, bound=True)})
    found.meet([peer(2)])
    assert not is_enough(found, [1], {B})
    assert is_enough(found, [2], {B})


@pytest.mark.parametrize("name", [B, "00:00:00:00:00:99"])
def test_one_blank_seed_or_a_stranger_does_not(name: str) -> None:
    assert not is_enough(seeding({peer(1): record(name, bound=False)}), [1], set())


@pytest.mark.parametrize("bound", [False, True])
def test_all_other_seeds_do_also_when_blank(bound: bool) -> None:
    records = {peer(1): record(B, bound=bound), peer(2): record(C, bound=False), peer(3): record(D, bound=False)}
    found = seeding(records)
    assert not is_enough(found, [1, 2], {B, C, D})
    assert is_enough(found, [3], {B, C, D})


def test_who_is_no_seed_takes_nothing() -> None:
    found = seeding({peer(1): record(B, bound=True)}, name="00:00:00:00:00:77")
    assert not is_enough(found, [1], {B})
    assert not found.has_met_seeds


def test_a_handover_before_the_other_took_its_share_is_repeated() -> None:
    records = {peer(1): record(B, bound=False)}
    found = seeding(records)
    found.handed_over([peer(1)])
    assert not found.meet([peer(1)])
    records[peer(1)] = msgspec.structs.replace(records[peer(1)], votes_as=voter(B))
    assert found.meet([peer(1), peer(2)]) == {peer(1)}
    assert not found.meet([peer(1)])
    assert is_enough(found, [1], {B})
