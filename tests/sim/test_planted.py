"""Would the simulator notice? Each test plants one bug, by replacing one function, and hunts for it.

A bug counts as caught when a violation of an expected rule turns up within a bounded number of seeds. The same
histories without the bug are in ``test_swarm.py`` and ``test_histories.py``, where nothing may turn up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace
from test_histories import play_lost_disk_elector, play_split_birth, play_two_binders

from weavenet.core.effects import Note, Persist
from weavenet.core.election import electorate, proposer
from weavenet.core.overlay.handover import Handover
from weavenet.core.ring import estate, segments
from weavenet.core.ring.ipam import Ipam
from weavenet.core.types import ZERO8, Ballot
from weavenet.sim import driver
from weavenet.sim.faults import CALM, FaultKind
from weavenet.sim.setup import Setup
from weavenet.sim.violation import Violation
from weavenet.sim.world import HistoryOptions, run_seed

TRIES_MAX = 40


def hunt(rules: Sequence[str], play: Callable[[int], Violation | None], tries: int = TRIES_MAX) -> int:
    """The first seed whose history breaks one of ``rules``."""
    seen = []
    for seed in range(tries):
        violation = play(seed)
        if violation is not None:
            seen.append(f"{seed}: {violation}")
            if violation.rule in rules:
                return seed
    pytest.fail(f"no violation of {', '.join(rules)} in {tries} seeds; saw {seen}")


def small_space(*kinds: FaultKind, peers: int = 4, **faults: float) -> Callable[[int], Violation | None]:
    """Random histories in a range of 16 addresses, where everybody needs space of others all the time."""
    options = HistoryOptions(
        setup=Setup(peers=peers, electors=peers, range_cidr="10.32.0.0/28", subnets=("",)),
        faults=replace(CALM, outage_max_s=5.0, weights=dict.fromkeys(kinds, 1.0), **faults),
        steps=60,
        step_interval_s=0.2,
        fault_share=0.2,
    )
    return lambda seed: run_seed(seed, options)[1]


def caught(play: Callable[[int], object]) -> Callable[[int], Violation | None]:
    def tried(seed: int) -> Violation | None:
        try:
            play(seed)
        except Violation as violation:
            return violation
        return None

    return tried


def test_send_before_an_earlier_persist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects leave while what they show is still being synced; the harm shows after a crash."""
    monkeypatch.setattr(driver, "passes_ahead", lambda effect: type(effect) is not Persist)
    crashes = small_space(FaultKind.CRASH, FaultKind.CRASH_AMONG_EFFECTS, fsync_min_s=0.02, fsync_max_s=0.3)
    hunt(["durable-before", "acknowledged", "I4", "unique", "I6"], crashes)


def test_send_before_an_earlier_persist_splits_ownership(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without replies: a grant that leaves early belongs to two peers once the donor has crashed."""
    monkeypatch.setattr(driver, "passes_ahead", lambda effect: type(effect) in (driver.Send, driver.Probe, Note))
    crashes = small_space(FaultKind.CRASH, FaultKind.CRASH_AMONG_EFFECTS, fsync_min_s=0.05, fsync_max_s=0.6)
    hunt(["I4", "unique", "I6"], crashes)


def test_quorum_one_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of four electors decide for themselves: two geneses at one position with equal N."""
    monkeypatch.setattr(electorate, "quorum", lambda n: n // 2)
    hunt(["I6"], caught(play_split_birth))


def test_merge_that_depends_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp that came last wins, instead of the larger one."""
    monkeypatch.setattr(segments, "wins", lambda new, old: new != old)
    hunt(["I1", "I4"], small_space(FaultKind.PARTITION, routed_duplicate_probability=0.3))


def test_allocation_forgotten_by_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estate, "held_rows", lambda holding: ())
    hunt(["acknowledged", "durable-before"], small_space(FaultKind.CRASH, FaultKind.REBOOT))


def test_ballot_without_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposer that lost its memory takes an answer to its forgotten ballot for one to the new."""

    def forgetful(number: int, peer: object, nonce: bytes) -> Ballot:
        return Ballot(number, peer, ZERO8)  # type: ignore[arg-type]

    monkeypatch.setattr(proposer, "Ballot", forgetful)
    hunt(["I6"], caught(play_lost_disk_elector))


def test_grant_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The donor takes a grant that nobody confirmed in time for lapsed, and goes on using the space."""
    monkeypatch.setattr(Ipam, "retire", lambda self, segment: [])
    hunt(["I4", "unique"], small_space(FaultKind.PARTITION, routed_loss_probability=0.2))


def test_plane_opened_before_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handovers are confirmed without merging: a third peer sees one address at both binders of a seed."""

    def hasty(self: Handover, source: object, exchange: object, offer: object) -> None:
        if exchange is not None:
            exchange.their_session = offer.session  # type: ignore[attr-defined]
            self._confirm(source, exchange)  # type: ignore[arg-type]

    def deaf(self: Ipam, now: float, delta: object) -> None:
        return None

    monkeypatch.setattr(Handover, "_on_offer", hasty)
    monkeypatch.setattr(Ipam, "merge_ring", deaf)
    hunt(["I5"], caught(play_two_binders))


def test_nothing_is_caught_without_a_bug() -> None:
    """The hunting grounds themselves are clean."""
    grounds = [
        small_space(FaultKind.CRASH, FaultKind.CRASH_AMONG_EFFECTS, fsync_min_s=0.02, fsync_max_s=0.3),
        small_space(FaultKind.PARTITION, FaultKind.ISOLATE, FaultKind.CRASH),
        small_space(FaultKind.PARTITION, routed_duplicate_probability=0.3, routed_loss_probability=0.2),
        caught(play_lost_disk_elector),
        caught(play_two_binders),
    ]
    found = [str(violation) for ground in grounds for seed in range(4) if (violation := ground(seed)) is not None]
    assert not found
