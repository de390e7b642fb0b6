"""Logs of one cluster merge to the same log, whatever order they are heard in."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ring_world import genesis_of, peer_id
from weavenet.core.ring import Chain
from weavenet.core.ring.log import genesis_entry
from weavenet.core.types import Electors, Position, Remove

PEERS = [peer_id(name) for name in "abcd"]
decrees = st.one_of(
    st.builds(Electors, st.lists(st.sampled_from(PEERS), max_size=3).map(tuple)),
    st.builds(Remove, st.lists(st.sampled_from(PEERS), min_size=1, max_size=2).map(tuple), st.sampled_from(PEERS)),
)
steps = st.tuples(st.sampled_from([0, 0, 0, 1]), st.sampled_from([b"epoch-aa", b"epoch-bb"]), decrees)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    chain, epoch, epoch_id = Chain([genesis_entry(genesis_of("a", "b", "c"))]), 0, bytes(8)
    for opens, chosen, decree in draw(st.lists(steps, max_size=5)):
        if opens:
            epoch, epoch_id = epoch + 1, chosen
        chain = chain.with_decree(Position(epoch, epoch_id, len(chain)), decree)
    return chain


def join(one: Chain, other: Chain) -> Chain:
    return one.merge(0, other.entries).chain


@given(chains(), chains(), chains())
def test_any_order_gives_the_same_log(one: Chain, two: Chain, three: Chain) -> None:
    results = {join(join(*order[:2]), order[2]) for order in itertools.permutations((one, two, three))}
    assert len(results) == 1
    assert join(one, one) is one
    assert join(join(one, two), two) == join(one, two)


@given(chains())
def test_heirs_are_found_and_never_removed(chain: Chain) -> None:
    for peer in PEERS:
        assert chain.heir(peer) not in chain.removed
    assert not set(chain.electors) & set(chain.removed)


@given(chains(), st.integers(0, 5))
def test_a_tail_is_as_good_as_the_whole(chain: Chain, known: int) -> None:
    held = Chain(chain.entries[:known])
    assert held.merge(len(held), chain.entries[len(held) :]).chain == chain
