"""Would the simulator notice a mistake about names? One bug each, as in ``test_planted.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from test_planted import hunt

from weavenet.core.mesh.mesh import Mesh
from weavenet.core.names.names import Names
from weavenet.core.names.registrations import Registration, Registrations
from weavenet.core.overlay.endpoints import Endpoints
from weavenet.sim.faults import CALM, FaultKind
from weavenet.sim.setup import Setup
from weavenet.sim.violation import Violation
from weavenet.sim.world import HistoryOptions, run_seed


def play(*kinds: FaultKind) -> Callable[[int], Violation | None]:
    options = HistoryOptions(
        setup=Setup(peers=3, electors=3, range_cidr="10.32.0.0/24", subnets=("", "10.32.0.0/26", "10.32.0.64/26")),
        faults=replace(CALM, outage_max_s=5.0, weights=dict.fromkeys(kinds, 1.0)),
        steps=150,
        step_interval_s=0.2,
        fault_share=0.2 if kinds else 0.0,
        names=10.0,
    )
    return lambda seed: run_seed(seed, options)[1]


def test_nothing_is_wrong_without_a_bug() -> None:
    assert [play(FaultKind.CRASH, FaultKind.PARTITION)(seed) for seed in range(3)] == [None] * 3


def test_a_dead_container_that_keeps_its_names_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoints, "shown", lambda self, ident: self.get(ident).addresses if self.get(ident) else ())
    hunt(["liveness"], play())


def test_a_name_that_outlives_its_address_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Registrations, name: str, owner: str, is_all: bool, given: frozenset[bytes]) -> Registration:
        return Registration(name, owner, is_all, tuple(sorted(given)))

    monkeypatch.setattr(Registrations, "_sorted_out", careless)
    hunt(["liveness"], play())


def test_a_withdrawal_that_is_not_told_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw = Mesh.withdraw

    def silent(self: Mesh, now: float, kind: int, key: bytes) -> None:
        if kind != 4:
            withdraw(self, now, kind, key)

    monkeypatch.setattr(Mesh, "withdraw", silent)
    hunt(["liveness"], play())


def test_names_of_the_unreachable_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that lost its disk is another peer afterwards; what it was before is never reachable again."""
    monkeypatch.setattr(
        Names, "_follow_reachable", lambda self, now: setattr(self, "_reachable", frozenset(self._read))
    )
    hunt(["liveness"], play(FaultKind.LOST_DISK))
