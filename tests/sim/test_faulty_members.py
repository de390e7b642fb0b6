"""A member that publishes nonsense harms itself at most: what one origin writes stops nobody else."""

from __future__ import annotations

import msgspec
import pytest

from weavenet.core.messages.gossip import EndpointRecord, NeighbourRecord
from weavenet.sim.host import Host
from weavenet.sim.stage import Stage

NO_UTF8 = b"\x93\xa1\x80\xa1\x80\xa1\x80"
NO_ADDRESS = msgspec.msgpack.encode(EndpointRecord("c", b"\2\0\0\0\0\1", ("nowhere/8", "10.32.0.200/24")))


def formed() -> tuple[Stage, Host]:
    """A cluster, and a member of it that does not look at itself."""
    stage = Stage(1, 3, range_cidr="10.32.0.0/24")
    stage.form()
    faulty = stage.hosts[0]
    assert faulty.driver is not None
    faulty.driver._check_every = 1_000_000_000
    return stage, faulty


def publish(host: Host, kind: int, key: bytes, body: bytes) -> None:
    assert host.node is not None
    host.node.mesh.publish(host.local_now(), kind, key, body)


@pytest.mark.parametrize("body", [b"", b"\xc1", NO_UTF8, b"\x93\x01\x02\x03", NO_ADDRESS])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 250])
def test_a_member_that_publishes_nonsense_stops_nobody(kind: int, body: bytes) -> None:
    stage, faulty = formed()
    publish(faulty, kind, b"nonsense", body)
    stage.advance(5.0)
    assert stage.allocate(stage.hosts[1], "c1")
    stage.settle()


def test_an_address_that_is_none_is_never_dialled_or_shown() -> None:
    stage, faulty = formed()
    other = stage.hosts[1]
    assert other.node is not None
    lie = msgspec.msgpack.encode(NeighbourRecord(stage.hosts[2].peer, "example.org", 6783, True))
    publish(faulty, 2, b"nonsense", lie)
    publish(faulty, 3, b"nonsense", NO_ADDRESS)
    stage.advance(5.0)
    assert "example.org" not in repr(other.node.report(other.local_now()))
    shown = [text for peer in other.plane for endpoint in peer.endpoints for text in endpoint.addresses]
    assert shown == ["10.32.0.200/24"]
