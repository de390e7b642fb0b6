"""A member may say any number that fits on the wire; one above it must still fit when we answer. Nor may it
make us fail by nesting a field that we skip."""

from __future__ import annotations

import random

import msgspec
import pytest

from weavenet.core.commands import Allocate
from weavenet.core.config import NodeConfig
from weavenet.core.effects import Reply
from weavenet.core.events import Requested, Tick
from weavenet.core.limits import BALLOT_ROUND_MAX, RECORD_BYTES_MAX, STAMP_VERSION_MAX
from weavenet.core.mesh.records import Records
from weavenet.core.messages import MalformedMessage, decode_message, encode
from weavenet.core.messages.gossip import Mark, NeighbourRecord, OriginDelta, Push, RingDelta, record_body
from weavenet.core.messages.link import Hello
from weavenet.core.messages.unicast import HandoverOffer, HandoverPage, Nack, Prepare, SpaceDenied, highest_round
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


def test_an_origin_that_was_absent_for_ever_is_passed_on() -> None:
    records = Records(PeerId(b"m" * 16), 1 << 32, obligated=lambda peer: True)
    assert records.apply(5.0, OriginDelta(OTHER, 1, 0, 3, (), (), None, 2**64 - 1)).new
    (delta,) = records.deltas(1e9, Mark(OTHER, 0, 0))
    assert decode_message(encode(Push(0, (), (), (delta,)))) == Push(0, (), (), (delta,))


def test_what_is_no_port_is_refused() -> None:
    for port, is_taken in ((0, True), (65_535, True), (65_536, False), (2**64 - 1, False)):
        body = msgspec.msgpack.encode(NeighbourRecord(OTHER, "10.0.0.1", port, False))
        assert (record_body(msgspec.msgpack.Decoder(NeighbourRecord), body) is not None) is is_taken
    hello = Hello(1, 1, (), "", OTHER, "", "", 1, b"", (), False, False, b"", True, 0, 65_536, 0, (), (0, 0), "")
    with pytest.raises(MalformedMessage):
        decode_message(encode(hello))


def nested(message: msgspec.Struct, size: int) -> bytes:
    """``message`` with one more field, which nests as deep as so many bytes allow."""
    encoded = msgspec.msgpack.encode(message)
    assert 0x90 <= encoded[0] < 0x9F
    return bytes([encoded[0] + 1]) + encoded[1:] + b"\x91" * (size - len(encoded) - 1) + b"\x90"


def test_a_record_that_nests_without_end_is_carried_and_not_used() -> None:
    body = nested(NeighbourRecord(OTHER, "10.0.0.1", 6783, False), RECORD_BYTES_MAX)
    assert record_body(msgspec.msgpack.Decoder(NeighbourRecord), body) is None


def test_a_page_that_nests_without_end_is_refused() -> None:
    node = lone_node()
    node.handover.want(3.0, OTHER, 1)
    node.handover.handle(3.0, OTHER, HandoverOffer(7, bytes(16), 9, bytes(16), seeking=True))
    node.handover.handle(3.0, OTHER, HandoverPage(7, 0, 1, nested(Push(0, (), (), ()), 100_000)))
    assert not node.handover.is_complete(OTHER)


def test_the_highest_round_of_a_message() -> None:
    high = Ballot(BALLOT_ROUND_MAX + 1, OTHER, bytes(8))
    assert highest_round(Prepare(high, 3)) == high.round
    assert highest_round(Nack(ZERO_BALLOT, high, 3)) == high.round
    assert highest_round(SpaceDenied(1, "")) == 0
