"""Events that a node calls quiet: had all its parts been asked, none of them would have had anything to do."""

from __future__ import annotations

import pytest

from weavenet.core.node import Node
from weavenet.sim.cli import Job, run_job


@pytest.mark.parametrize("seed", [2, 9, 17])
def test_nobody_has_anything_to_settle_after_a_quiet_event(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    is_at_rest = Node._is_at_rest
    quiet = 0

    def checked(node: Node, now: float) -> bool:
        nonlocal quiet
        if not is_at_rest(node, now):
            return False
        quiet += 1
        before = list(node._outbox.effects)
        node._settle(now)
        assert node._outbox.effects == before, "this was not quiet"
        return True

    monkeypatch.setattr(Node, "_is_at_rest", checked)
    outcome = run_job(Job(seed, 3, 5, 30))
    assert not outcome.violation
    assert quiet > outcome.events / 4
