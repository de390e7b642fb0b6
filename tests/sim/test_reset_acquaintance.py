"""A reset hangs on whom the leaver knows, and on who knows of the leaver: where the two differ."""

from __future__ import annotations

import msgspec
from test_resets import NOTICED_S, all_open, end, formed, has_left, reset

from weavenet.core.commands import Connect, Consense, Done, RemovePeers
from weavenet.core.messages.gossip import Push
from weavenet.core.messages.link import Hello
from weavenet.core.types import PeerId
from weavenet.sim.host import Host, sim_peer_id
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage


def remove(*peers: PeerId) -> RemovePeers:
    return RemovePeers(tuple(peer.hex() for peer in peers))


def test_reset_while_others_already_count_the_link_as_up() -> None:
    """They heard that their hello was accepted; the leaver has not heard the same of them yet."""
    stage = Stage(76, 4, bootstrap=Bootstrap.SEED)
    *others, leaver = stage.hosts
    stage.start(*others)
    stage.answer(stage.ask(others[0], Consense()))
    stage.advance(5)
    stage.network.intercept = lambda source, message: source.host == leaver.host or isinstance(message, Hello)
    stage.start(leaver)
    stage.until(
        lambda: all(host.node is not None and leaver.peer in host.node.membership.witnesses for host in others),
        20,
        "the others to know the leaver",
        every_s=0.01,
    )
    request = reset(stage, leaver)
    stage.advance(2)
    assert request not in stage.answers
    stage.network.intercept = lambda source, message: True
    has_left(stage, leaver, request)
    end(stage, leaver)


def test_reset_before_the_hello_of_those_who_accepted_ours() -> None:
    """As far as they can tell it may know them from then on; but it has heard of nobody, and is off at once."""
    stage = Stage(78, 4, bootstrap=Bootstrap.SEED)
    *others, leaver = stage.hosts
    stage.start(*others)
    stage.answer(stage.ask(others[0], Consense()))
    stage.advance(5)
    stage.network.intercept = lambda source, message: source.host == leaver.host
    stage.start(leaver)
    stage.until(
        lambda: all(
            host.node is not None and leaver.peer in host.node.membership.roster.acquaintances for host in others
        ),
        20,
        "the others to accept its hello",
        every_s=0.01,
    )
    has_left(stage, leaver, reset(stage, leaver))
    stage.network.intercept = None
    for host in others:
        host.kill()
        host.start()
    end(stage, leaver)


def test_reset_of_a_voter_that_removed_the_living() -> None:
    """Nobody is left who could tell the removed one; it goes on with what it owns, and may remove the other in turn."""
    stage = formed(77, 2)
    voter = next(host for host in stage.hosts if host.node is not None and host.peer in host.node.log.voters)
    other = next(host for host in stage.hosts if host is not voter)
    stage.partition((voter,), (other,))
    stage.advance(NOTICED_S)
    left = voter.peer
    assert isinstance(stage.answer(stage.ask(voter, RemovePeers((other.label,)))), Done)
    has_left(stage, voter, reset(stage, voter))
    stage.heal()
    stage.rest()
    assert other.node is not None
    assert left in other.node.membership.witnesses
    stage.checker.force()
    assert isinstance(stage.answer(stage.ask(other, RemovePeers((left.hex(),), force=True))), Done)
    stage.rest()
    assert left not in other.node.membership.witnesses


def test_a_departure_outlives_a_restart_of_everybody() -> None:
    stage = formed(133)
    leaver, *rest = stage.hosts
    has_left(stage, leaver, reset(stage, leaver))
    stage.advance(3)
    for host in rest:
        host.kill(kernel_lost=True)
    for host in rest:
        host.start()
    stage.until(lambda: all_open(rest), 60, "data paths")
    assert all(host.node and sim_peer_id(0, 0) not in host.node.membership.witnesses for host in rest)
    end(stage, leaver)


def test_reset_in_one_of_two_clusters_that_a_newcomer_was_between() -> None:
    """It passed on who is there before it joined one of them. What happens in the one is not said in the other, where
    an operator has to remove those strangers; then the smaller can be reset, as the refusal of either advises."""
    stage = Stage(134, 6, bootstrap=Bootstrap.ALONE)
    *larger, leaver, smaller, partner, newcomer = stage.hosts
    for members in ((*larger, leaver), (smaller, partner)):
        stage.start(*members)
        for host in members[1:]:
            stage.answer(stage.ask(host, Connect((members[0].host,))))
        stage.answer(stage.ask(members[0], Consense()))
    stage.advance(5)
    assert len(stage.clusters()) == 2
    stage.network.intercept = lambda source, message: not (isinstance(message, Push) and message.log)
    stage.start(newcomer)
    stage.answer(stage.ask(newcomer, Connect((larger[0].host, smaller.host))))
    stage.until(
        lambda: all(
            host.node is not None and host.node.membership.witnesses >= {each.peer for each in (*larger, leaver)}
            for host in (smaller, partner)
        ),
        20,
        "one cluster to hear of the other",
        every_s=0.01,
    )
    stage.network.intercept = None
    stage.settle()
    left = leaver.peer
    has_left(stage, leaver, reset(stage, leaver))
    stage.settle()
    assert all(host.node is not None and left not in host.node.membership.witnesses for host in larger)
    assert smaller.node is not None
    assert left in smaller.node.membership.witnesses
    stage.advance(NOTICED_S)
    known = {host: host.peer for host in stage.hosts}
    here = [*larger, newcomer] if joined(newcomer, larger[0]) else larger
    there = [partner, smaller] if newcomer in here else [newcomer, partner, smaller]
    assert isinstance(stage.answer(stage.ask(smaller, remove(left, *(known[host] for host in here)))), Done)
    for host in there:
        has_left(stage, host, reset(stage, host))
    stage.advance(NOTICED_S)
    assert isinstance(stage.answer(stage.ask(larger[0], remove(*(known[host] for host in there)))), Done)
    end(stage, leaver, *there)
    assert [host.peer for host in here] == [known[host] for host in here]


def joined(host: Host, other: Host) -> bool:
    return host.node is not None and other.node is not None and host.node.cluster.id == other.node.cluster.id


def test_a_decree_of_a_lone_voter_that_died_before_it_was_durable_was_not_decided() -> None:
    """Nobody has heard of it, and after the crash the voter decides otherwise (history *undecided-by-crash*)."""
    stage = Stage(139, 3, bootstrap=Bootstrap.FULL_LIST, electors=2)
    *founders, late = stage.hosts
    stage.start(*founders)
    stage.answer(stage.ask(founders[0], Consense()))
    stage.settle()
    voter = next(host for host in founders if host.node is not None and host.peer in host.node.log.voters)
    assert voter.node is not None
    assert len(voter.node.log.voters) == 1
    length = len(voter.node.log.entries)
    swift = voter.disk.options
    voter.disk.options = msgspec.structs.replace(swift, fsync_min_s=0.2, fsync_max_s=0.2)
    reset(stage, voter)
    stage.until(lambda: voter.node is not None and len(voter.node.log.entries) > length, 20, "a decree", every_s=0.001)
    undecided = voter.node.log.entries[length]
    voter.disk.options = msgspec.structs.replace(swift, fsync_min_s=9.0, fsync_max_s=9.0)
    voter.kill()
    assert ("log", length.to_bytes(4, "big")) not in voter.disk.durable
    voter.disk.options = swift
    voter.start()
    stage.start(late)
    stage.until(
        lambda: voter.node is not None and len(voter.node.log.entries) > length, 60, "another decree", every_s=0.01
    )
    assert voter.node is not None
    assert voter.node.log.entries[length] != undecided
    stage.heal()
    stage.rest()
