"""Peers leave by `weave reset`: the histories that the specification names, and the seed's question what it does during
a partition, each one test."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Consense, Done, GetReport, Reset
from weavenet.core.events import Cancelled
from weavenet.core.report import NodeReport
from weavenet.sim.host import Host, sim_peer_id
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage

RANGE = "10.32.0.0/26"
NOTICED_S = 25.0
"""Within this time everybody knows who is out of reach."""


def formed(seed: int, peers: int = 5, *, electors: int | None = None, bootstrap: Bootstrap | None = None) -> Stage:
    chosen = bootstrap or (Bootstrap.FULL_LIST if electors is None else Bootstrap.OBSERVERS)
    stage = Stage(seed, peers, electors=electors, bootstrap=chosen, range_cidr=RANGE)
    stage.start()
    stage.answer(stage.ask(stage.hosts[0], Consense()))
    stage.settle()
    return stage


def reset(stage: Stage, host: Host, *, force: bool = False) -> int:
    return stage.ask(host, Reset(force))


def give_up(stage: Stage, host: Host, request: int) -> None:
    """The command's time is over: its client goes away."""
    stage.workload.pending[host.index].pop(request, None)
    host.deliver(Cancelled(request))


def needs(stage: Stage, host: Host) -> str:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    return "; ".join(report.ipam.leaving_needs)


def phase(stage: Stage, host: Host) -> str:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    return report.ipam.leaving


def has_left(stage: Stage, host: Host, request: int) -> Done:
    """The answer of a reset that went through, after which nothing of the peer remains."""
    result = stage.answer(request)
    assert isinstance(result, Done), result
    stage.advance(1.0)
    assert not host.is_running
    assert not host.disk.durable
    return result


def end(stage: Stage, *gone: Host) -> None:
    """All faults are over: whoever remains agrees, nobody owns anything who is not there, and nobody is waited for."""
    old = {sim_peer_id(host.index, 0) for host in gone}
    stage.heal()
    stage.rest()
    present = {host.peer for host in stage.hosts}
    for host in stage.hosts:
        node = host.node
        assert node is not None
        assert set(node.ring.shares) <= present
        assert not old & node.membership.witnesses
        assert not old & set(node.log.electors)
        assert not node.ipam.held


@pytest.mark.parametrize("seed", range(3))
def test_reset_hands_everything_over(seed: int) -> None:
    stage = formed(seed)
    leaver = stage.hosts[seed]
    addresses = stage.fill(leaver, 5, "a")
    request = reset(stage, leaver)
    has_left(stage, leaver, request)
    others = [host for host in stage.hosts if host is not leaver]
    stage.until(lambda: all(leaver.peer not in host.open_peers for host in others), 20, "paths to be closed")
    got = [address for host in others for address in stage.fill(host, 20, "b")]
    assert set(addresses) <= set(got), "what it had is used again"
    end(stage, leaver)
