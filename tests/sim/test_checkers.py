"""The checker's own memory is checked: what it lost or made up does not stay unnoticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from weavenet.core.commands import Allocate
from weavenet.core.types import PeerId
from weavenet.sim.checkers import Ledger
from weavenet.sim.stage import Stage
from weavenet.sim.violation import Violation


def forget_what_is_held(ledger: Ledger) -> None:
    ledger.alloc.clear()


def forget_what_is_owned(ledger: Ledger) -> None:
    ledger.own = []


def see_it_at_another_peer(ledger: Ledger) -> None:
    ledger.shown = dict.fromkeys(ledger.shown, PeerId(b"x" * 16))


@pytest.mark.parametrize("change", [forget_what_is_held, forget_what_is_owned, see_it_at_another_peer])
def test_a_full_scan_finds_what_is_remembered_wrongly(change: Callable[[Ledger], None]) -> None:
    stage = Stage(1, 3)
    stage.form()
    host = stage.hosts[0]
    stage.answer(stage.ask(host, Allocate("web")))
    stage.checker.full_scan()
    ledger = stage.checker._ledgers[host.index]
    assert ledger.own and ledger.alloc and ledger.shown
    change(ledger)
    with pytest.raises(Violation, match="checker: "):
        stage.checker.full_scan()
