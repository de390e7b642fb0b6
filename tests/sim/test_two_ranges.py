"""An IPv6 range beside the IPv4 one in whole clusters: the checkers watch both, and neither is forgotten by a removal,
a reset or the return of who was removed. Random histories have one in a quarter of all seeds."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Addresses, Allocate, Claim, Consense, Done, RemovePeers, Reset
from weavenet.core.ring.estate import Estate
from weavenet.core.types import Segment
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.violation import Violation
from weavenet.sim.world import draw_options

RANGES = "10.32.0.0/26,fd00:77::/122"
NOTICED_S = 30.0


def formed(seed: int, peers: int = 5, *, bootstrap: Bootstrap = Bootstrap.FULL_LIST, ranges: str = RANGES) -> Stage:
    stage = Stage(seed, peers, bootstrap=bootstrap, range_cidr=ranges)
    stage.start()
    stage.answer(stage.ask(stage.hosts[0], Consense()))
    stage.settle()
    return stage


def both(stage: Stage, host: Host, ident: str) -> tuple[str, ...]:
    """The addresses that ``ident`` gets, without their prefixes."""
    result = stage.answer(stage.ask(host, Allocate(ident)))
    assert isinstance(result, Addresses)
    assert [":" in text for text in result.addresses] == [False, True]
    return tuple(text.partition("/")[0] for text in result.addresses)


def drained(stage: Stage, host: Host, count: int, prefix: str) -> list[str]:
    """All addresses of ``count`` new containers that got theirs within a second."""
    requests = [stage.ask(host, Allocate(f"{prefix}{number}")) for number in range(count)]
    stage.advance(1.0)
    results = [stage.answers[request] for request in requests if request in stage.answers]
    return [text.partition("/")[0] for result in results if isinstance(result, Addresses) for text in result.addresses]


def shares(host: Host, number: int) -> dict[bytes, int]:
    assert host.node is not None
    return dict(host.node.ring.shares_of(number))


def end(stage: Stage) -> None:
    stage.heal()
    stage.rest()
    for host in stage.hosts:
        assert host.node is not None
        for number in (0, 1):
            assert sum(shares(host, number).values()) == 64
            assert shares(host, number).keys() <= {each.peer for each in stage.hosts}


@pytest.mark.parametrize("bootstrap", [Bootstrap.FULL_LIST, Bootstrap.SEED, Bootstrap.LOCK])
def test_every_genesis_divides_both(bootstrap: Bootstrap) -> None:
    stage = formed(1, 4, bootstrap=bootstrap)
    for number in (0, 1):
        assert set(shares(stage.hosts[0], number).values()) == {16}
    given = [address for host in stage.hosts for address in both(stage, host, "web")]
    assert len(set(given)) == 8
    end(stage)


@pytest.mark.parametrize("seed", range(2))
def test_both_sides_of_a_partition_give_out_both(seed: int) -> None:
    stage = formed(10 + seed)
    left, right = stage.hosts[:2], stage.hosts[2:]
    stage.partition(tuple(left), tuple(right))
    stage.advance(NOTICED_S)
    given = [address for host in stage.hosts for number in range(3) for address in both(stage, host, f"c{number}")]
    assert len(set(given)) == 30
    stage.reunite()
    end(stage)


@pytest.mark.parametrize("seed", range(2))
def test_the_space_of_a_dead_peer_is_recovered_in_both(seed: int) -> None:
    stage = formed(20 + seed)
    *living, victim = stage.hosts
    lost = both(stage, victim, "web")
    victim.kill(kernel_lost=True)
    stage.advance(NOTICED_S)
    result = stage.answer(stage.ask(living[0], RemovePeers((victim.label,))))
    assert isinstance(result, Done)
    for number in (0, 1):
        assert victim.peer not in shares(living[0], number)
    got = [address for host in living for address in drained(stage, host, 14, "d")]
    assert set(lost) <= set(got), "what it had is used again"
    end(stage)


@pytest.mark.parametrize("seed", range(2))
def test_a_removed_peer_that_returns_keeps_or_blocks_each_address(seed: int) -> None:
    stage = formed(30 + seed)
    *rest, victim = stage.hosts
    first, second = both(stage, victim, "web")
    stage.partition(tuple(rest), (victim,))
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(stage.ask(rest[0], RemovePeers((victim.label,)))), Done)
    taken = stage.answer(stage.ask(rest[1], Claim("heir", f"{second}/122")))
    assert isinstance(taken, Addresses)
    old = victim.peer
    stage.reunite()
    stage.until(lambda: victim.node is not None and victim.peer != old, 60, "a new identity")
    stage.until(lambda: victim.blocked == {("web", second)}, 60, "the other one to be given back")
    assert stage.owner(rest[0], first) == victim.peer
    end(stage)


@pytest.mark.parametrize("seed", range(2))
def test_a_peer_that_leaves_hands_over_both(seed: int) -> None:
    stage = formed(40 + seed)
    *rest, leaver = stage.hosts
    had = both(stage, leaver, "web")
    old = leaver.peer
    assert isinstance(stage.answer(stage.ask(leaver, Reset())), Done)
    stage.until(lambda: all(old not in host.open_peers for host in rest), 20, "paths to be closed")
    got = [address for host in rest for address in drained(stage, host, 20, "b")]
    assert set(had) <= set(got)
    for number in (0, 1):
        assert sum(shares(rest[0], number).values()) == 64 and old not in shares(rest[0], number)
    end(stage)


def test_the_last_addresses_of_two_who_each_lack_the_other_family_are_not_swapped_for_ever() -> None:
    stage = formed(50, 2, ranges="10.32.0.0/29,fd00:77::/125")
    left, right = stage.hosts
    for host, subnet in ((left, "fd00:77::/125"), (right, "10.32.0.0/29")):
        for number in range(4):
            stage.ask(host, Allocate(f"{host.label}-{number}", subnet))
    stage.advance(5.0)
    waiting = [stage.ask(host, Allocate("web")) for host in (left, right)]
    stage.advance(30.0)
    assert any(request in stage.answers for request in waiting) or not stage.unrest()
    steps = stage.steps
    stage.advance(10.0)
    assert stage.steps - steps < 2_000, "they pass addresses to and fro"


def test_an_address_of_the_second_range_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkers look at IPv6 addresses like at others: a lost one that is not blocked is found."""
    genuine = Estate.merge

    def merge(self: Estate, segments: tuple[Segment, ...]) -> object:
        changed, rows = genuine(self, segments)
        for offset in [each for each in self.blocked.offsets() if each >= 1 << 64]:
            rows += self.blocked.unblock(offset)
        return changed, rows

    monkeypatch.setattr(Estate, "merge", merge)
    monkeypatch.setattr(Estate, "check", lambda self: None)  # the peer's own, which notices it, too
    stage = formed(60, 3)
    *rest, victim = stage.hosts
    both(stage, victim, "web")
    stage.partition(tuple(rest), (victim,))
    stage.advance(NOTICED_S)
    stage.answer(stage.ask(rest[0], RemovePeers((victim.label,))))
    for host in rest:
        drained(stage, host, 30, "d")
    stage.reunite()
    with pytest.raises(Violation, match=r"I2|I5|unique"):
        stage.until(lambda: False, 60, "a violation")


def test_random_histories_have_a_second_range_now_and_then() -> None:
    drawn = [draw_options(seed).setup.ranges for seed in range(400)]
    beside = sum(len(ranges) == 2 for ranges in drawn)
    alone = sum(":" in ranges[0] for ranges in drawn)
    assert 60 < beside < 120 and 0 < alone < 30
