"""Epochs that somebody opened without a quorum: who follows whom, and how a longer log of a lower one is replaced."""

from __future__ import annotations

import msgspec
import pytest
from test_removals import NOTICED_S, formed, remove, removed

from weavenet.core.commands import Done
from weavenet.sim.host import Host
from weavenet.sim.stage import Stage


def epoch(host: Host) -> int:
    assert host.node is not None
    return host.node.log.chain.epoch[0]


def play_longer_log_of_a_lower_epoch(seed: int) -> Stage:
    """Two voters decide twice and die; the third, cut off, went on without them. Nobody is started anew, so no data
    path is handed over again: only digests can tell the others of the shorter log that replaces theirs."""
    stage = formed(seed, 7, electors=3)
    few, voters, members, gone = stage.hosts[:1], stage.hosts[1:3], stage.hosts[3:5], stage.hosts[5:]
    for host in gone:
        host.kill(kernel_lost=True)
    stage.partition(tuple(few), (*voters, *members))
    stage.advance(NOTICED_S)
    for host in gone:
        remove(stage, voters[0], host, wait=False)
        stage.until(lambda host=host: all(host.peer in removed(each) for each in members), 30, "a decree")
    assert isinstance(stage.answer(remove(stage, few[0], *voters, force=True)), Done)
    for host in voters:
        host.kill(kernel_lost=True)
    assert members[0].node is not None and few[0].node is not None
    assert len(members[0].node.log) > len(few[0].node.log)
    stage.reunite()
    stage.settle(within_s=30)  # later on a change of the ring makes the others ask for the log
    assert all(epoch(host) == 1 for host in (*few, *members))
    assert removed(members[0]) == {host.peer for host in voters}
    return stage


@pytest.mark.parametrize("seed", range(4))
def test_a_longer_log_of_a_lower_epoch_is_replaced(seed: int) -> None:
    stage = play_longer_log_of_a_lower_epoch(seed)
    for host in (stage.hosts[0], *stage.hosts[3:5]):
        rows = (msgspec.msgpack.decode(key) for table, key in host.disk.durable if table == "acceptor")
        assert not [row for row in rows if row[2] and row[0] == 0], "a vote of a lower epoch is still kept"
