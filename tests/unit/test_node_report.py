"""What a node says about itself where that is not what it was told."""

from __future__ import annotations

import random

from weavenet.core.config import NodeConfig
from weavenet.core.events import LinkOpened, Received
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
    assert (ipam.range, ipam.range_addresses, ipam.default_subnet) == ("10.40.0.0/16", 65_536, "10.40.0.0/16")
