"""Nothing opens before those with an open path have confirmed a removal."""

from __future__ import annotations

import random

from weavenet.core.effects import Outbox, Unicast
from weavenet.core.limits import COLLECT_RETRY_S, CONFIRM_PATIENCE_S
from weavenet.core.messages.unicast import AppliedAnswer, AppliedQuery
from weavenet.core.overlay.gate import Gate
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.types import PeerId

A, B, C = (PeerId(letter * 16) for letter in (b"a", b"b", b"c"))


class Scene:
    def __init__(self, *open_to: PeerId) -> None:
        self.outbox = Outbox()
        self.planes = OpenPlanes((), self.outbox)
        for peer in open_to:
            self.planes.set(peer, "192.0.2.1", ())
        self.gate = Gate(planes=self.planes, outbox=self.outbox, rng=random.Random(1))
        self.outbox.drain()

    def asked(self, now: float) -> dict[PeerId, AppliedQuery]:
        self.gate.tick(now)
        sent = [effect for effect in self.outbox.drain() if isinstance(effect, Unicast)]
        return {effect.destination: effect.body for effect in sent if isinstance(effect.body, AppliedQuery)}

    def confirm(self, peer: PeerId, query: AppliedQuery) -> None:
        self.gate.confirmed(peer, AppliedAnswer(query.session, bytes(16)))


def test_it_is_shut_until_each_open_path_has_confirmed() -> None:
    scene = Scene(A, B)
    assert not scene.gate.is_shut and scene.gate.deadline() is None
    scene.gate.shut(10.0, 2, b"e" * 16)
    asked = scene.asked(10.0)
    assert asked.keys() == {A, B}
    assert (asked[A].number, asked[A].entry) == (2, b"e" * 16)
    scene.confirm(A, asked[A])
    assert scene.gate.is_shut
    assert not scene.asked(10.0 + COLLECT_RETRY_S / 2)
    assert scene.asked(10.0 + COLLECT_RETRY_S).keys() == {B}
    scene.confirm(B, asked[B])
    assert not scene.gate.is_shut and scene.gate.deadline() is None


def test_a_confirmation_of_an_earlier_removal_does_not_count() -> None:
    scene = Scene(A)
    scene.gate.shut(0.0, 1, b"e" * 16)
    early = scene.asked(0.0)[A]
    scene.gate.shut(1.0, 2, b"f" * 16)
    scene.confirm(A, early)
    assert scene.gate.is_shut
    scene.confirm(A, scene.asked(1.0)[A])
    assert not scene.gate.is_shut


def test_whoever_does_not_confirm_is_closed_after_a_while_and_holds_nobody_up() -> None:
    scene = Scene(A, B)
    scene.gate.shut(0.0, 1, b"e" * 16)
    scene.confirm(A, scene.asked(0.0)[A])
    assert scene.gate.overdue(CONFIRM_PATIENCE_S - 0.1) == ()
    assert scene.gate.overdue(CONFIRM_PATIENCE_S) == (B,)
    assert not scene.gate.is_shut


def test_a_path_that_was_closed_meanwhile_and_no_path_at_all_hold_nobody_up() -> None:
    scene = Scene(A)
    scene.gate.shut(0.0, 1, b"e" * 16)
    scene.planes.close(A)
    assert not scene.gate.is_shut
    nobody = Scene()
    nobody.gate.shut(0.0, 1, b"e" * 16)
    assert not nobody.gate.is_shut
    scene.planes.set(C, "192.0.2.3", ())
    assert not scene.gate.is_shut, "it opened after the removal was learnt"
