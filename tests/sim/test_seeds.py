"""Clusters of ``seed=``: who votes, what people are told, and what a seed that was removed is afterwards."""

from __future__ import annotations

from test_removals import NOTICED_S, end, remove

from weavenet.core.commands import Consense, Done, GetReport, RemovePeers
from weavenet.core.limits import VOTER_ABSENT_S
from weavenet.core.report import NodeReport
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage


def formed(seed: int, peers: int, *, electors: int | None = None) -> Stage:
    stage = Stage(seed, peers, electors=electors, bootstrap=Bootstrap.SEED)
    stage.form()
    return stage


def voters(host: Host) -> int:
    """How many vote on decrees, of whom all are within reach."""
    assert host.node is not None
    membership, log = host.node.membership, host.node.log
    assert all(membership.roster.voter_address(voter) is not None for voter in log.voters)
    return len(log.voters)


def report_of(stage: Stage, host: Host) -> NodeReport:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    return report


def test_seeds_are_electors_and_are_called_by_their_names() -> None:
    stage = formed(1, 3)
    report = report_of(stage, stage.hosts[0])
    titles = {f"{host.name}({host.label})" for host in stage.hosts}
    assert set(report.ipam.electors) == set(report.ipam.voters) == titles
    assert all(peer.elector for peer in report.peers)


def test_consense_on_a_seed_waits_until_it_has_its_share() -> None:
    stage = Stage(2, 3, bootstrap=Bootstrap.SEED)
    one, *others = stage.hosts
    one.generation = 1  # not its first start
    one.start()
    request = stage.ask(one, Consense())
    stage.advance(10)
    assert request not in stage.answers
    report = report_of(stage, one)
    assert report.ipam.state == "awaiting seeds"
    assert all(host.name in report.ipam.detail for host in others)
    assert any("--first-start" in warning for warning in report.warnings)
    assert not any("needed to decide" in warning for warning in report.warnings)
    stage.start(*others)
    answer = stage.answer(request)
    assert isinstance(answer, Done)
    assert answer.text in {"voter", "standby"}
    assert report_of(stage, one).ipam.state == "ready"


def test_who_joins_seeds_without_being_one_may_become_elector() -> None:
    stage = formed(3, 5, electors=3)
    assert stage.answer(stage.ask(stage.hosts[3], Consense())) in {Done("voter"), Done("standby")}
    stage.until(lambda: all(voters(host) == 5 for host in stage.hosts), 60, "five voters")
    stage.settle()


def test_a_seed_that_was_removed_comes_back_and_votes_again() -> None:
    stage = formed(4, 3)
    victim = stage.hosts[2]
    victim.kill()
    stage.advance(NOTICED_S)
    done = stage.answer(remove(stage, stage.hosts[0], victim))
    assert isinstance(done, Done)
    assert len(done.text.splitlines()) == 1, "one line for the peer and the seed that it was"
    assert voters(stage.hosts[0]) == 1
    victim.start()
    stage.until(lambda: all(voters(host) == 3 for host in stage.hosts if host.node is not None), 120, "three voters")
    end(stage)
    assert victim.node is not None
    assert victim.node.membership.roster.votes_as() == victim.peer


def test_a_dead_seed_is_removed_by_name_after_everybody_else_was_started_anew() -> None:
    stage = formed(5, 3)
    dead, *rest = stage.hosts
    dead.kill(kernel_lost=True)
    for host in rest:
        host.kill()
        host.start()
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(remove(stage, rest[0], dead)), Done)
    assert voters(rest[0]) == 1
    end(stage)


def test_a_seed_that_is_gone_for_ten_minutes_is_replaced_and_may_vote_again_later() -> None:
    stage = formed(6, 4, electors=3)
    gone = stage.hosts[0]
    rest = stage.hosts[1:]
    gone.kill()
    stage.advance(VOTER_ABSENT_S + 60)
    assert all(voters(host) == 3 for host in rest)
    gone.start()
    stage.settle()
    assert stage.answer(stage.ask(gone, Consense())) == Done("standby")
    stage.settle()
    assert gone.generation == 0


def test_a_fenced_seed_does_not_vote_again_as_its_seed() -> None:
    """*seed-votes-twice*: a decree needs its vote, its disk is set back, and under its new identity it meets the one
    who has heard neither of that decree nor of the share that was taken."""
    stage = Stage(7, 3, bootstrap=Bootstrap.SEED)
    first, voter, behind = stage.hosts
    stage.partition((first, voter), (behind,))
    stage.start()
    stage.allocate(behind, "on-the-other-side")
    stage.until(lambda: first.node is not None and voter.peer in first.open_peers, 60, "a data path")
    early, before = dict(voter.disk.durable), voter.peer
    voter.kill()
    voter.start()
    assert voter.node is not None and first.node is not None
    started, mesh = voter.node.incarnation, first.node.mesh
    stage.until(lambda: mesh.incarnation(before) == started, 30, "news of the start")
    unseen = stage.ask(first, RemovePeers((behind.name,), wait=False))  # by name: it was never met
    stage.until(lambda: len(first.node.log.removed) == 1 if first.node else False, 30, "the decree")
    assert isinstance(stage.answer(unseen), Done)
    voter.set_back(early)
    voter.start()
    stage.until(lambda: voter.peer != before, 60, "the fence")
    stage.heal()
    stage.partition((first,), (voter, behind))
    stage.advance(NOTICED_S)
    request = stage.ask(behind, RemovePeers((first.name,)))
    stage.advance(60)
    assert request not in stage.answers
    end(stage)
