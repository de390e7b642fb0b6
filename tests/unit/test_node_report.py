"""What a node says about itself where that is not what it was told."""

from __future__ import annotations

import random

import msgspec

from weavenet.core.census import Census, foreign
from weavenet.core.commands import Attachment, Consense, PutAttachment
from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.effects import Outbox, Persist
from weavenet.core.election import Electorate
from weavenet.core.events import Cancelled, LinkOpened, Received, RecordOffered, Requested, Tick
from weavenet.core.messages.link import Hello
from weavenet.core.node import Node
from weavenet.core.report import NodeReport
from weavenet.core.reporting import node_report
from weavenet.core.ring.log import genesis_entry
from weavenet.core.types import Genesis, PeerId

ME, OTHER = PeerId(b"\x01" * 16), PeerId(b"\x02" * 16)


def started(ranges: tuple[str, ...], *, explicit: bool) -> Node:
    config = NodeConfig(peer=ME, name="::1", nickname="h1", ranges=ranges, range_explicit=explicit)
    node = Node(config, {}, random.Random(1))
    node.start(100.0)
    return node


def report_of_member(ranges: tuple[str, ...], *, explicit: bool) -> NodeReport:
    node = started(ranges, explicit=explicit)
    genesis = Genesis(b"c" * 16, ("10.40.0.0/16",), (ME, OTHER), (ME, OTHER))
    node.cluster.merge_log(100.0, 0, (genesis_entry(genesis),))
    return node_report(node, 101.0)


def test_who_has_another_domain_is_named() -> None:
    node = started((), explicit=False)
    assert not [text for text in node_report(node, 101.0).warnings if "--dns-domain" in text]
    node.names.elsewhere[OTHER] = "web.example.com."
    (warning,) = [text for text in node_report(node, 101.0).warnings if "--dns-domain" in text]
    assert "not below weave.local. and not answered here (web.example.com.); next: " in warning


def test_a_range_that_came_too_late_is_named() -> None:
    report = report_of_member(("10.50.0.0/16",), explicit=True)
    assert report.ipam.range == "10.40.0.0/16"
    (warning,) = [text for text in report.warnings if "--ipalloc-range" in text]
    assert "10.50.0.0/16" in warning and "10.40.0.0/16" in warning and "; next: " in warning


def test_a_range_that_nobody_chose_is_no_matter() -> None:
    for ranges, explicit in ((("10.32.0.0/12",), False), (("10.40.0.0/16",), True), ((), True)):
        assert not [text for text in report_of_member(ranges, explicit=explicit).warnings if "--ipalloc-range" in text]


def test_the_range_taken_over_from_a_peer_is_shown_before_it_is_divided() -> None:
    node = started(("10.32.0.0/12",), explicit=False)
    hello = Hello(
        1, 1, (), "0", OTHER, "::2", "h2", 1, b"", ("10.40.0.0/16",), True, False, b"", True, 0, 6783, 5, (), (0, 0), ""
    )
    node.handle(101.0, LinkOpened(1, None, OTHER, "::2", "192.0.2.2", 40_000))
    node.handle(101.0, Received(1, hello))
    ipam = node_report(node, 102.0).ipam
    assert (ipam.range, ipam.ranges[0].addresses, ipam.ranges[0].default_subnet) == (
        "10.40.0.0/16",
        65_536,
        "10.40.0.0/16",
    )


def test_only_what_is_attached_now_counts_as_attached() -> None:
    node = started((), explicit=False)
    here = Attachment("web", "netns:web", b"\2mac00", (), ("10.32.0.1/12",), True, True)
    gone = Attachment("db", "netns:db", b"\2mac01", (), (), True, False)
    itself = Attachment("weave:expose", "weave:expose", b"\2mac02", (), ("10.32.0.2/12",), False, True)
    for attachment in (here, gone, itself):
        node.handle(100.0, Requested(1, PutAttachment(attachment)))
    assert node_report(node, 101.0).attachments == 1


def config_of(**changed: object) -> NodeConfig:
    return msgspec.structs.replace(NodeConfig(peer=ME, name="00:00:00:00:00:01", nickname="h1"), **changed)


def asked(config: NodeConfig, disk: dict[tuple[str, bytes], bytes] | None = None) -> Node:
    """Started, with somebody who waits for addresses."""
    node = Node(config, disk or {}, random.Random(1))
    node.start(100.0)
    node.handle(100.0, Requested(1, Consense()))
    return node


def test_only_observers_are_named_after_half_a_minute() -> None:
    node = asked(config_of(mode=GenesisMode.OBSERVER))
    assert "only observers" not in node_report(node, 110.0).ipam.detail
    assert "only observers" in node_report(node, 131.0).ipam.detail
    assert any("only observers" in warning for warning in node_report(node, 131.0).warnings)


def test_what_a_lone_host_is_advised_to_launch_with_lets_it_go_on() -> None:
    disk: dict[tuple[str, bytes], bytes] = {}
    outbox = Outbox()
    electorate = Electorate(me=ME, given=0, disk=disk, outbox=outbox)
    electorate.heard(3, OTHER)
    disk |= {
        (change.table, change.key): change.value
        for effect in outbox.drain()
        if isinstance(effect, Persist)
        for change in effect.changes
        if change.value is not None
    }
    stuck = asked(config_of(launch_targets=("192.0.2.2",)), disk)
    stuck.handle(110.0, Tick())
    detail = node_report(stuck, 110.0).ipam.detail
    assert f"quorum 2 of 3 (as {OTHER.hex()} counts), reachable 1" in detail
    assert "consensus=1" in detail
    assert asked(config_of(launch_targets=("192.0.2.2",), count=1), disk).cluster.id


def test_who_waits_for_consensus_is_told_that_a_target_refuses_it_and_why() -> None:
    node = asked(config_of(launch_targets=("192.0.2.2",), ranges=("10.50.0.0/16",), range_explicit=True))
    node.handle(101.5, Tick())
    fields = Hello(1, 1, (), "0", OTHER, "::2", "h2", 1, b"", (), False, False, b"", True, 0, 6783, 5, (), (0, 0), "")
    hello = msgspec.structs.replace(fields, cluster=b"c" * 16, ranges=("10.40.0.0/16",), range_explicit=True)
    node.handle(102.0, LinkOpened(1, None, OTHER, "::2", "192.0.2.2", 40_000))
    node.handle(102.0, Received(1, hello))
    detail = node_report(node, 110.0).ipam.detail
    assert "refused: 192.0.2.2:40000: expected --ipalloc-range 10.50.0.0/16, found 10.40.0.0/16; next: " in detail
    assert "next attempt" not in detail


def test_a_lock_that_could_not_be_used_is_named_also_when_nobody_waits_any_more() -> None:
    node = asked(config_of(mode=GenesisMode.LOCK, lock="file:/shared/lock"))
    node.handle(101.0, RecordOffered(b"", "expected the folder /shared; found none; next: mount it on this host"))
    node.handle(102.0, Cancelled(1))
    report = node_report(node, 103.0)
    assert report.ipam.state == "idle" and "file:/shared/lock is of no use yet" in report.ipam.detail
    (warning,) = [text for text in report.warnings if "file:/shared/lock" in text]
    assert "of no use yet" in warning and "next: mount it" in warning


def test_missing_seeds_are_named() -> None:
    seeds = tuple(f"00:00:00:00:00:0{number}" for number in (1, 2, 3))
    node = asked(config_of(mode=GenesisMode.SEED, seeds=seeds))
    (warning,) = [text for text in node_report(node, 101.0).warnings if "blank store" in text]
    assert f"missing: {seeds[1]}, {seeds[2]};" in warning


def test_clusters_in_use_name_the_same_smaller_side_to_each_other() -> None:
    large = Census(addresses=7, peers=3, electors=3)
    small = Census(addresses=7, peers=2, electors=2)
    first, second = b"a" * 16, b"b" * 16
    fields = Hello(1, 1, (), "0", OTHER, "::2", "h2", 1, b"", (), False, False, b"", True, 0, 6783, 5, (), (0, 0), "")
    for (ours, own), (theirs, other) in (((first, large), (second, small)), ((second, small), (first, large))):
        hello = msgspec.structs.replace(
            fields, cluster=theirs, peers=other.peers, electors=other.electors, addresses=other.addresses
        )
        sentence = foreign(ours, own, hello).sentence
        assert f"smaller one, {second.hex()[:12]}," in sentence
        assert "2 peers, 2 electors, 7 addresses in use" in sentence
        assert "3 peers, 3 electors, 7 addresses in use" in sentence
        assert "weave reset" in sentence
        assert len(sentence) <= 500
