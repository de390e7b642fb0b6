"""Would the simulator notice bugs in the removal of peers? Planted as in ``test_planted.py``."""

from __future__ import annotations

import pytest
from test_epochs import play_longer_log_of_a_lower_epoch
from test_planted import caught, hunt
from test_removals import (
    play_pending_kills_the_living,
    play_remove_hides_grant,
    play_return_with_the_old_disk,
    play_stranger_island,
)

from weavenet.core.cluster import Cluster
from weavenet.core.membership import Membership
from weavenet.core.removal.proposal import Removals
from weavenet.core.ring.ipam import Ipam
from weavenet.core.types import ZERO8


def test_release_without_one_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heir does not wait for whoever is out of reach."""
    monkeypatch.setattr(Membership, "witnesses", property(lambda self: self._mesh.reachable() - {self._config.peer}))
    hunt(["I4", "I5", "unique"], caught(play_remove_hides_grant), tries=5)


def test_release_without_the_second_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody confirms the heir's stamps, so a known peer may take a stranger's older ones for good."""
    monkeypatch.setattr(Ipam, "held_segments", lambda self: ())
    hunt(["I5"], caught(play_stranger_island), tries=5)


def test_pending_removal_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again whether the victim is there, neither the voters nor the proposer."""
    monkeypatch.setattr(Removals, "_is_attested", lambda self, now, proposal: True)
    monkeypatch.setattr(Membership, "is_reachable", lambda self, peer: False)
    hunt(["revalidated"], caught(play_pending_kills_the_living), tries=5)


def test_hello_accepted_from_a_removed_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Cluster.admit

    def lenient(self: Cluster, now: float, peer: object, hello: object) -> object:
        refusal = genuine(self, now, peer, hello)  # type: ignore[arg-type]
        return None if refusal is not None and refusal.code == "removed" else refusal

    monkeypatch.setattr(Cluster, "admit", lenient)
    hunt(["check", "I4", "I5"], caught(play_return_with_the_old_disk), tries=5)


def test_logs_compared_by_length_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests say nothing of epochs, so a longer log of a lower one is never replaced."""
    monkeypatch.setattr(Cluster, "log_epoch", lambda self: (0, ZERO8))
    hunt(["liveness"], caught(play_longer_log_of_a_lower_epoch), tries=2)
