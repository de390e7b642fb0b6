"""What a voter has said of others in writing."""

from __future__ import annotations

from weavenet.core.effects import Outbox, Persist
from weavenet.core.limits import ATTEST_KEPT_S
from weavenet.core.removal import Attests
from weavenet.core.types import PeerId

X, Y = PeerId(b"x" * 16), PeerId(b"y" * 16)


def nobody(peer: PeerId) -> bool:
    return False


def rows(outbox: Outbox) -> list[tuple[bytes, bytes | None]]:
    return [(c.key, c.value) for effect in outbox.drain() if isinstance(effect, Persist) for c in effect.changes]


def test_each_word_is_one_row_until_it_is_settled() -> None:
    outbox = Outbox()
    attests = Attests((), outbox)
    attests.add(1.0, (X, Y))
    attests.add(2.0, (X,))
    assert rows(outbox) == [(X, b""), (Y, b"")]
    attests.review(3.0, lambda peer: peer == X, lambda peer: True)
    assert rows(outbox) == [(X, None)], "X is gone; somebody may still ask about Y"
    attests.review(2.0 + ATTEST_KEPT_S, nobody, lambda peer: False)
    assert Y in attests, "Y is not back"
    attests.review(2.0 + ATTEST_KEPT_S, nobody, lambda peer: True)
    assert rows(outbox) == [(Y, None)]


def test_a_word_of_an_earlier_start_counts_until_nobody_has_asked_for_long() -> None:
    outbox = Outbox()
    attests = Attests([(X, b"")], outbox)
    attests.review(100.0, nobody, lambda peer: True)
    assert X in attests
    attests.review(100.0 + ATTEST_KEPT_S, nobody, lambda peer: True)
    assert X not in attests
    assert rows(outbox) == [(X, None)]
