"""Would the simulator notice a `reset` that forgets something? One planted bug per test; see ``test_planted.py``."""

from __future__ import annotations

import pytest
from test_planted import caught, hunt
from test_resets import play_grant_to_the_departed, play_leaver_gave_to_a_stranger, play_somebody_was_away

from weavenet.core.leaving.departed import Departed
from weavenet.core.leaving.transfer import Transfer
from weavenet.core.ring.estate import Estate


def test_leaves_before_anybody_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it knew is lost, and with it a grant that somebody lives on."""
    monkeypatch.setattr(Transfer, "is_complete", lambda self, ring, log_length: True)
    hunt(["honoured", "I4", "I5"], caught(play_leaver_gave_to_a_stranger), tries=3)


def test_custodians_do_not_spread_that_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Departed, "_is_mine", lambda self, record: False)
    hunt(["liveness"], caught(play_somebody_was_away), tries=1)


def test_nobody_takes_what_strayed_to_the_departed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estate, "succeed", lambda self: ())
    hunt(["liveness"], caught(play_grant_to_the_departed), tries=3)
