"""Several hosts over a network that loses, repeats and reorders, crashing between any two effects.

Whatever happens: no address is usable by two hosts, none is given to two containers, and what a client was told is
still true after a crash. Once everything heals, whoever waits gets an address unless none is left.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ring_world import BOTH, RANGE, World
from weavenet.core.commands import Addresses, Allocate, Claim, Destroyed, Died, Release
from weavenet.core.effects import Change
from weavenet.core.errors import InvariantBroken
from weavenet.core.ring import estate, segments
from weavenet.core.ring.holdings import Holding
from weavenet.core.ring.ipam import Ipam
from weavenet.core.types import Segment, Stamp

NAMES = ("a", "b", "c", "d")
OWNERS = ("a", "b", "c")
SUBNETS = ("", "10.32.0.0/28", "10.32.0.16/28", "10.32.0.60/30")

hosts = st.sampled_from(NAMES)
idents = st.integers(0, 11).map(lambda number: f"c{number}")


class Hosts(RuleBasedStateMachine):
    """``told`` is what clients were told and did not give back: (host, ident, address)."""

    ranges = RANGE

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.world = World.of(*NAMES, owners=OWNERS, seed=seed, cidr=self.ranges)
        self.asked: dict[int, tuple[str, Allocate | Claim]] = {}
        self.told: set[tuple[str, str, str]] = set()

    # --- what clients do ---

    @rule(name=hosts, ident=idents, subnet=st.sampled_from(SUBNETS))
    def allocate(self, name: str, ident: str, subnet: str) -> None:
        command = Allocate(f"{name}-{ident}", subnet)
        self.asked[self.world.ask(name, command)] = (name, command)

    @rule(name=hosts, ident=idents, offset=st.integers(1, 62))
    def claim(self, name: str, ident: str, offset: int) -> None:
        command = Claim(f"{name}-{ident}", f"10.32.0.{offset}/26")
        self.asked[self.world.ask(name, command)] = (name, command)

    @rule(name=hosts, ident=idents, end=st.sampled_from([Release, Destroyed, Died]))
    def give_back(self, name: str, ident: str, end: Any) -> None:
        self._note_replies()
        self.told = {entry for entry in self.told if entry[:2] != (name, f"{name}-{ident}")}
        self.asked = {request: entry for request, entry in self.asked.items() if entry[1].ident != f"{name}-{ident}"}
        self.world.ask(name, end(f"{name}-{ident}"))

    # --- what the world does ---

    @rule(name=hosts, effects=st.integers(1, 6))
    def execute(self, name: str, effects: int) -> None:
        self.world.execute(name, effects)

    @precondition(lambda self: self.world.wire)
    @rule(choice=st.integers(0, 1000), repeat=st.booleans())
    def deliver(self, choice: int, repeat: bool) -> None:
        self.world.deliver(choice % len(self.world.wire), keep=repeat)

    @precondition(lambda self: self.world.wire)
    @rule(choice=st.integers(0, 1000))
    def lose(self, choice: int) -> None:
        self.world.wire.pop(choice % len(self.world.wire))

    @rule(name=hosts)
    def crash(self, name: str) -> None:
        self._note_replies()
        self.world.crash(name)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        for host in self.world.hosts.values():
            host.tick(self.world.now)

    @rule(island=st.sets(hosts))
    def partition(self, island: set[str]) -> None:
        self.world.connect(*island)
        self.world.connect(*(set(NAMES) - island))

    @rule(source=hosts, hearer=hosts)
    def synchronise(self, source: str, hearer: str) -> None:
        if source != hearer:
            self.world.execute(source)  # state is shown only once it is durable
            self.world[hearer].learn(self.world.now, self.world[source].state())

    @rule()
    def settle(self) -> None:
        self.world.settle()

    # --- what must hold ---

    def _note_replies(self) -> None:
        for request, (name, command) in list(self.asked.items()):
            result = self.world[name].replies.get(request)
            if result is not None:
                del self.asked[request]
                if isinstance(result, Addresses):
                    self.told |= {(name, command.ident, text.partition("/")[0]) for text in result.addresses}

    @invariant()
    def sound(self) -> None:
        self.world.check()
        self._note_replies()
        by_address: dict[str, tuple[str, str]] = {}
        for name, ident, address in sorted(self.told):
            other = by_address.setdefault(address, (name, ident))
            assert other == (name, ident), f"{address} was given to {other} and {(name, ident)}"
        for name, host in self.world.hosts.items():
            mine = {(ident, address) for owner, ident, address in self.told if owner == name}
            assert mine <= host.held(), f"{name} forgot {mine - host.held()}"

    def teardown(self) -> None:
        world = self.world
        world.connect(*NAMES)
        world.settle()
        world.synchronise()
        world.wait(20.0)
        world.synchronise()
        self.sound()
        rings = {host.ipam.ring.hash for host in world.hosts.values()}
        assert len(rings) == 1, "rings differ after everything was exchanged"
        used = {offset for host in world.hosts.values() for offset in host.ipam.estate.holdings.by_offset}
        for host in world.hosts.values():
            for waiting in host.ipam.allocation.waiting.values():
                assert isinstance(waiting.command, Allocate), f"{waiting} waits although every owner is there"
                assert waiting.need is not None
                window = set(range(waiting.need.low, waiting.need.high))
                assert window <= used, f"{waiting} waits although {window - used} are free"


common = settings(
    stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), max_examples=80, print_blob=True
)
TestHosts = Hosts.TestCase
TestHosts.settings = common


class HostsOfTwoRanges(Hosts):
    """An IPv6 range beside: whoever asks for nothing particular gets an address of each."""

    ranges = BOTH

    @rule(name=hosts, ident=idents, subnet=st.sampled_from(("fd00:77::/124", "fd00:77::3c/126", "fd00:77::/122")))
    def allocate_ipv6(self, name: str, ident: str, subnet: str) -> None:
        self.allocate(name, ident, subnet)

    @rule(name=hosts, ident=idents, offset=st.integers(1, 62))
    def claim_ipv6(self, name: str, ident: str, offset: int) -> None:
        command = Claim(f"{name}-{ident}", f"fd00:77::{offset:x}/122")
        self.asked[self.world.ask(name, command)] = (name, command)


TestHostsOfTwoRanges = HostsOfTwoRanges.TestCase
TestHostsOfTwoRanges.settings = settings(common, max_examples=40)


# --- the machine above must notice these ---


def _last_heard(new: Stamp, old: Stamp) -> bool:
    return new != old


def _not_stored(holding: Holding) -> tuple[Change, ...]:
    return ()


def _not_retired(self: Ipam, segment: Segment) -> list[Change]:
    return []


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        pytest.param(segments, "wins", _last_heard, id="merge is not commutative"),
        pytest.param(estate, "held_rows", _not_stored, id="an allocation is forgotten by a crash"),
        pytest.param(Ipam, "retire", _not_retired, id="granted space is given again"),
    ],
)
def test_planted_bug_is_caught(owner: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, broken)
    quick = settings(
        common, max_examples=400, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False
    )
    with pytest.raises((AssertionError, InvariantBroken)):  # which notices first depends on the history
        run_state_machine_as_test(Hosts, settings=quick)
