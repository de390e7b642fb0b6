"""A fixed core and twenty observers that come and go at once (spec "Operations", deployment type 3)."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Addresses, Allocate, Consense, Done, RemovePeers, Reset
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage

CORE, OBSERVERS = 3, 20
NOTICED_S = 30.0


def grown(seed: int, *, ephemerals: int = 0) -> tuple[Stage, list[Host], list[Host], set[str]]:
    """A core that keeps allocating while all observers join and use addresses; those are returned too."""
    stage = Stage(
        seed,
        CORE + OBSERVERS,
        bootstrap=Bootstrap.OBSERVERS,
        electors=CORE,
        range_cidr="10.32.0.0/22",
        ephemerals=ephemerals,
    )
    core, observers = stage.hosts[:CORE], stage.hosts[CORE:]
    stage.start(*core)
    stage.answer(stage.ask(core[0], Consense()))
    requests: list[int] = []

    def allocate(host: Host, ident: str) -> None:
        requests.append(stage.ask(host, Allocate(ident)))

    for number, host in enumerate(observers):
        stage.scheduler.after(stage.rng.random() * 3, host.start)
        stage.scheduler.after(stage.rng.random() * 3, allocate, core[number % CORE], f"core{number}")
    stage.advance(3.1)
    requests += [stage.ask(host, Allocate(f"c{number}")) for host in observers for number in range(3)]
    addresses = set()
    for request in requests:
        result = stage.answer(request)
        assert isinstance(result, Addresses)
        addresses.update(result.addresses)
    assert len(addresses) == len(requests) == 4 * OBSERVERS
    return stage, core, observers, addresses


def shares(host: Host) -> dict[bytes, int]:
    assert host.node is not None
    return dict(host.node.ring.shares)


@pytest.mark.parametrize("seed", range(1))
def test_ten_killed_without_notice_are_found_and_their_space_is_recovered_by_one_command(seed: int) -> None:
    stage, core, observers, _ = grown(seed)
    stage.settle()
    dead, living = observers[: OBSERVERS // 2], [*core, *observers[OBSERVERS // 2 :]]
    for host in dead:
        host.kill(kernel_lost=True)
    gone = {host.peer for host in dead}
    node = core[0].node
    assert node is not None
    stage.until(lambda: not gone & node.mesh.reachable(), NOTICED_S, "the dead to be missed")
    report = node.report(stage.scheduler.now)
    absent = {owner.peer for owner in report.ipam.owners if owner.unreachable_s is not None}
    assert absent == {peer.hex() for peer in gone if shares(core[0]).get(peer)}
    assert absent
    done = stage.answer(stage.ask(core[0], RemovePeers(all_unreachable=True)))
    assert isinstance(done, Done)
    stage.until(
        lambda: all(not gone & shares(host).keys() for host in living), NOTICED_S, "nobody to show space of the dead"
    )
    for host in living:
        assert sum(shares(host).values()) == stage.area.size
        assert shares(host).keys() <= {each.peer for each in living}
    refilled = {stage.allocate(core[0], f"new{number}") for number in range(100)}
    assert len(refilled) == 100


def test_twenty_leave_at_once_while_the_core_allocates_and_nothing_is_lost() -> None:
    stage, core, observers, _ = grown(11)
    stage.settle()
    for host in observers:
        stage.scheduler.after(stage.rng.random() * 3, stage.ask, host, Reset())
    requests = [stage.ask(core[number % CORE], Allocate(f"late{number}")) for number in range(2 * OBSERVERS)]
    for request in requests:
        assert isinstance(stage.answer(request), Addresses)
    stage.until(lambda: all(host.is_blanked for host in observers), 120, "all observers to have left")
    stage.until(lambda: all(shares(host) == shares(core[0]) for host in core), NOTICED_S, "the core to agree")
    assert shares(core[0]).keys() == {host.peer for host in core}
    assert sum(shares(core[0]).values()) == stage.area.size


def test_ten_ephemeral_ones_killed_without_notice_are_recovered_without_anybody_asking() -> None:
    stage, core, observers, _ = grown(12, ephemerals=OBSERVERS)
    stage.settle()
    dead, living = observers[: OBSERVERS // 2], [*core, *observers[OBSERVERS // 2 :]]
    for host in dead:
        host.kill(kernel_lost=True)
    peers = {host.peer for host in living}
    stage.until(
        lambda: all(shares(host).keys() <= peers and shares(host) == shares(core[0]) for host in living),
        4 * stage.options.setup.ttl_s,
        "nobody to show space of the dead",
    )
    assert sum(shares(core[0]).values()) == stage.area.size
    assert len({stage.allocate(core[0], f"new{number}") for number in range(50)}) == 50
