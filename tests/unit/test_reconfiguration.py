"""Which electors should be decreed next: a table, and the question whether a voter is gone."""

from __future__ import annotations

import random

import pytest

from weavenet.core.effects import Outbox, Unicast
from weavenet.core.election import Reconfiguration
from weavenet.core.election.reconfiguration import next_electors
from weavenet.core.limits import VOTER_ABSENT_S
from weavenet.core.messages.unicast import SeenAnswer, SeenQuery
from weavenet.core.ring.log import Chain, Log, genesis_entry
from weavenet.core.types import Electors, Genesis, PeerId

PEERS = [PeerId(bytes([number]) * 16) for number in range(1, 12)]


def of(letters: str) -> list[PeerId]:
    return [PEERS[ord(letter) - ord("a")] for letter in letters]


def chain(electors: str, *more: str) -> Chain:
    grown = Chain([genesis_entry(Genesis(b"c" * 16, ("10.32.0.0/24",), tuple(of(electors)), tuple(of(electors))))])
    for each in more:
        grown = grown.with_decree(grown.next_position, Electors(tuple(of(each))))
    return grown


@pytest.mark.parametrize(
    ("before", "present", "eligible", "gone", "electors", "voters"),
    [
        (["a"], "a", "a", "", None, "a"),
        (["a"], "a", "ab", "", None, "a"),
        (["a"], "a", "abc", "", "abc", "abc"),
        (["ab"], "ab", "abc", "", "abc", "abc"),
        (["ab"], "a", "ac", "", None, "a"),
        (["abc"], "abc", "abcd", "", None, "abc"),
        (["abc"], "abc", "abcdefghij", "", "abcdefg", "abcdefg"),
        (["abcdefg"], "abcdefg", "abcdefghij", "", None, "abcdefg"),
        (["abcd"], "abd", "abd", "c", "abd", "abd"),
        (["abc"], "ab", "abd", "c", "abd", "abd"),
        (["abc"], "ab", "ab", "c", None, "abc"),
        (["abcde"], "abcd", "abcd", "e", "abcd", "abc"),
        (["abcde"], "abc", "abc", "de", "abc", "abc"),
        (["abcde"], "ab", "ab", "cde", None, "abcde"),
        (["bcd", "abcd"], "bca", "abc", "d", "abc", "abc"),
        (["abc", "abcd"], "ab", "abe", "c", "abe", "abe"),
        (["ab"], "b", "b", "a", "b", "b"),
    ],
)
def test_the_next_electors(  # noqa: PLR0917
    before: list[str], present: str, eligible: str, gone: str, electors: str | None, voters: str
) -> None:
    """``abc``: peers a, b and c. The genesis' electors, and those of decrees after it."""
    log = chain(*before)
    chosen = next_electors(log, present=of(present), eligible=of(eligible), gone=of(gone))
    assert chosen == (None if electors is None else tuple(of(electors)))
    after = log if chosen is None else log.with_decree(log.next_position, Electors(chosen))
    assert set(after.voters) == set(of(voters))
    assert len(after.voters) % 2 == 1


class Around:
    """The first of five voters, which has not seen the fifth for ``absent_s``."""

    absent_s = 0.0

    def eligible(self) -> frozenset[PeerId]:
        return frozenset(PEERS[:4])

    def unreachable_for(self, now: float, peer: PeerId) -> float | None:
        return self.absent_s if peer == PEERS[4] else None

    def votes_as(self) -> PeerId | None:
        return PEERS[0]

    def voter_address(self, voter: PeerId) -> PeerId | None:
        return None if voter == PEERS[4] else voter


def test_a_voter_is_replaced_when_a_quorum_has_not_seen_it() -> None:
    outbox, around = Outbox(), Around()
    log = Log((), outbox)
    log.merge(0, chain("abcde").entries)
    outbox.drain()
    watch = Reconfiguration(me=PEERS[0], log=log, around=around, outbox=outbox, rng=random.Random(1))
    watch.advance(0.0)
    assert not outbox.drain()
    around.absent_s = VOTER_ABSENT_S
    watch.advance(10.0)
    asked = [effect for effect in outbox.drain() if isinstance(effect, Unicast)]
    assert [effect.destination for effect in asked] == PEERS[1:4]
    query = asked[0].body
    assert isinstance(query, SeenQuery)
    assert (query.peers, query.absent_s) == ((PEERS[4],), int(VOTER_ABSENT_S))
    watch.answered(SeenAnswer(query.session, PEERS[1], (PEERS[4],)))
    watch.answered(SeenAnswer(query.session, PEERS[2], ()))
    watch.answered(SeenAnswer(query.session + 1, PEERS[3], ()))
    watch.advance(10.5)
    assert watch.wanted is None, "two of five"
    watch.answered(SeenAnswer(query.session, PEERS[3], ()))
    watch.advance(11.0)
    assert watch.wanted == Electors(tuple(PEERS[:4]))
