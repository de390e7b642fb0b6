"""Would the simulator notice bugs in the removal of peers? Planted as in ``test_planted.py``."""

from __future__ import annotations

import pytest
from test_epochs import play_longer_log_of_a_lower_epoch
from test_planted import caught, hunt
from test_removals import (
    play_lost_disk_owner,
    play_pending_kills_the_living,
    play_remove_hides_grant,
    play_return_with_the_old_disk,
    play_stranger_island,
)

from weavenet.core.cluster import Cluster
from weavenet.core.effects import Effect, Send
from weavenet.core.membership import Membership
from weavenet.core.messages import decode_body
from weavenet.core.messages.unicast import AppliedAnswer, HandoverDone, Routed, StampAnswer
from weavenet.core.removal.proposal import Removals
from weavenet.core.ring.estate import Estate
from weavenet.core.ring.ipam import Ipam
from weavenet.core.roster import Roster
from weavenet.core.types import ZERO8, PeerId, Segment
from weavenet.sim import driver, host


def test_release_without_one_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heir does not wait for whoever is out of reach."""
    monkeypatch.setattr(Roster, "witnesses", property(lambda self: self._mesh.reachable() - {self._me}))
    hunt(["I4", "I5", "unique"], caught(play_remove_hides_grant), tries=5)


def test_release_without_the_second_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody confirms the heir's stamps, so a known peer may take a stranger's older ones for good."""
    monkeypatch.setattr(Ipam, "held_segments", lambda self: ())
    hunt(["I5"], caught(play_stranger_island), tries=5)


def test_pending_removal_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again whether the victim is there, neither the voters nor the proposer."""
    monkeypatch.setattr(Removals, "_is_attested", lambda self, now, proposal: True)
    monkeypatch.setattr(Roster, "is_reachable", lambda self, peer: False)
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


def test_confirmation_before_the_merge_is_persisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was confirmed to the heir is gone after a crash, and a stranger's older stamps are taken for good."""
    genuine = driver.passes_ahead

    def hasty(effect: Effect) -> bool:
        if isinstance(effect, Send) and isinstance(effect.message, Routed):
            return isinstance(decode_body(effect.message.body), AppliedAnswer | StampAnswer | HandoverDone)
        return genuine(effect)

    monkeypatch.setattr(driver, "passes_ahead", hasty)
    hunt(["I5"], caught(lambda seed: play_stranger_island(seed, crash_s=2.0)), tries=10)


def test_takeover_of_named_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heir takes the ranges that it saw at the removed peer when it was removed, whoever has them by now."""
    genuine = Membership.follow_log
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def follow(self: Membership, now: float) -> None:
        genuine(self, now)
        estate = self._ipam.estate
        inherited = [piece for piece in estate.ring.segments if piece.stamp.owner in self._log.removed]
        seen.setdefault((id(estate), len(self._log.removed)), [(piece.start, piece.end) for piece in inherited])

    def inherit(self: Estate) -> tuple[Segment, ...]:
        ranges = seen[id(self), len(self.log.removed)]
        pieces = [piece for low, high in ranges for piece in self.ring.within(low, high)]
        self.space.hold(ranges)
        changed, rows = self.merge([Segment(p.start, p.end, self._inherited_stamp(p.stamp)) for p in pieces])
        self.outbox.persist(*rows, *self._held_rows())
        return changed

    monkeypatch.setattr(Membership, "follow_log", follow)
    monkeypatch.setattr(Estate, "inherit", inherit)
    hunt(["honoured"], caught(play_remove_hides_grant), tries=3)


def test_owner_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that lost its disk owns again what it had given away."""
    genuine = host.sim_peer_id
    monkeypatch.setattr(host, "sim_peer_id", lambda index, generation: PeerId(genuine(index, 0)))
    hunt(["I4", "I5", "unique"], caught(play_lost_disk_owner), tries=5)
