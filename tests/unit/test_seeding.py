"""When a seed with a blank store may take its share."""

from __future__ import annotations

import msgspec
import pytest

from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.seeding import Seeding
from weavenet.core.types import PeerId

A, B, C = (f"00:00:00:00:00:0{number}" for number in range(3))


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 16)


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
        votes_as=bytes(16) if bound else b"",
    )


def seeding(records: dict[PeerId, PeerRecord], *, name: str = A) -> Seeding:
    config = NodeConfig(
        peer=peer(9),
        name=name,
        nickname="",
        ranges=("10.32.0.0/12",),
        mode=GenesisMode.SEED,
        seeds=(A, B, C),
        seed_salt=b"salt",
    )
    return Seeding(config, records.get)


def test_a_seed_that_took_its_share_vouches() -> None:
    assert seeding({peer(1): record(B, bound=True)}).handed_over([peer(1)])


@pytest.mark.parametrize("name", [B, "00:00:00:00:00:99"])
def test_one_blank_seed_or_a_stranger_does_not(name: str) -> None:
    assert not seeding({peer(1): record(name, bound=False)}).handed_over([peer(1)])


def test_all_other_seeds_do_also_when_blank() -> None:
    found = seeding({peer(1): record(B, bound=False), peer(2): record(C, bound=False)})
    assert not found.handed_over([peer(1)])
    assert found.handed_over([peer(2)])


def test_who_is_no_seed_takes_nothing() -> None:
    assert not seeding({peer(1): record(B, bound=True)}, name="00:00:00:00:00:77").handed_over([peer(1)])


def test_a_handover_before_the_other_took_its_share_is_repeated() -> None:
    records = {peer(1): record(B, bound=False)}
    found = seeding(records)
    found.handed_over([peer(1)])
    assert not found.to_repeat([peer(1)])
    records[peer(1)] = msgspec.structs.replace(records[peer(1)], votes_as=bytes(16))
    assert found.to_repeat([peer(1), peer(2)]) == {peer(1)}
    assert not found.to_repeat([peer(1)])
    assert found.handed_over([peer(1)])
