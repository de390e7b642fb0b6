"""A member may say any number that fits on the wire; one above it must still fit when we answer."""

from __future__ import annotations

import random

from weavenet.core.commands import Allocate
from weavenet.core.config import NodeConfig
from weavenet.core.effects import Reply
from weavenet.core.events import Requested, Tick
from weavenet.core.limits import BALLOT_ROUND_MAX, STAMP_VERSION_MAX
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import Nack, Prepare, SpaceDenied, highest_round
from weavenet.core.node import Node
from weavenet.core.types import GENESIS_POSITION, ZERO_BALLOT, Ballot, PeerId, Segment, Stamp

OTHER = PeerId(b"o" * 16)


def lone_node() -> Node:
    """With a ring, since it has no targets to wait for."""
    node = Node(NodeConfig(peer=PeerId(b"m" * 16), name="m", nickname="m", launch_targets=()), {}, random.Random(1))
    node.start(0.0)
    effects = [*node.handle(1.5, Tick()), *node.handle(2.0, Requested(1, Allocate("c")))]
    assert any(isinstance(effect, Reply) for effect in effects)
    return node


def test_a_version_beyond_counting_is_ignored_and_the_largest_credible_one_is_not() -> None:
    node = lone_node()
    for version, is_taken in ((2**64 - 1, False), (STAMP_VERSION_MAX + 1, False), (STAMP_VERSION_MAX, True)):
        segment = Segment(400, 404, Stamp(GENESIS_POSITION, version, OTHER))
        learnt = node.cluster.merge_ring(3.0, RingDelta(0, 1, (segment,)))
        assert (learnt is not None) is is_taken, version
        node.check()


def test_the_highest_round_of_a_message() -> None:
    high = Ballot(BALLOT_ROUND_MAX + 1, OTHER, bytes(8))
    assert highest_round(Prepare(high, 3)) == high.round
    assert highest_round(Nack(ZERO_BALLOT, high, 3)) == high.round
    assert highest_round(SpaceDenied(1, "")) == 0
