"""Keys of tunnels: whose are used, what a clash of addresses and a stranger's record do."""

from __future__ import annotations

import random
from unittest import mock

import msgspec
import pytest

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Outbox
from weavenet.core.messages.gossip import KIND_WIREGUARD
from weavenet.core.overlay import wireguardplane
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.wireguard import WireguardRecord, tunnel_address
from weavenet.core.overlay.wireguardplane import WireguardPlane
from weavenet.core.types import PeerId

ME, LOW, HIGH = (PeerId(bytes([number]) * 16) for number in (5, 1, 9))
KEYS = [bytes([number]) * 32 for number in range(4)]
PORT = 6785


class Mesh:
    """Records as others published them, and ours."""

    def __init__(self) -> None:
        self.records: dict[PeerId, list[bytes]] = {}
        self.published: bytes | None = None

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]:
        assert kind == KIND_WIREGUARD
        return self.records.get(origin, [])

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None:
        self.published = body

    def withdraw(self, now: float, kind: int, key: bytes) -> None:
        self.published = None

    def say(self, origin: PeerId, *keys: bytes) -> WireguardRecord:
        record = WireguardRecord(keys, PORT)
        self.records[origin] = [msgspec.msgpack.encode(record)]
        return record


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def plane(mesh: Mesh) -> WireguardPlane:
    planes = OpenPlanes([], Outbox())
    for peer in (LOW, HIGH):
        planes.set(peer, "192.0.2.1", ())
    config = NodeConfig(peer=ME, name="::1", nickname="me", planes=("fastdp", "wireguard", "sleeve"))
    return WireguardPlane(config=config, mesh=mesh, planes=planes)


def test_addresses_are_reserved_unicast_and_spread() -> None:
    rng = random.Random(1)
    found = {tunnel_address(rng.randbytes(32)) for _ in range(5000)}
    assert len(found) > 4990
    firsts = {int(address.partition(".")[0]) for address in found}
    assert firsts == set(range(240, 255))


def test_our_keys_are_published_and_withdrawn(plane: WireguardPlane, mesh: Mesh) -> None:
    assert plane.reported(0.0, (KEYS[0],), PORT)
    assert mesh.published == msgspec.msgpack.encode(WireguardRecord((KEYS[0],), PORT))
    assert not plane.reported(1.0, (KEYS[0],), PORT)
    assert plane.reported(2.0, (), 0)
    assert mesh.published is None and not plane.is_running


def test_a_peer_is_reached_by_what_it_published(plane: WireguardPlane, mesh: Mesh) -> None:
    assert plane.tunnel(LOW) is None
    record = mesh.say(LOW, KEYS[1], KEYS[2])
    plane.learnt({LOW})
    assert plane.tunnel(LOW) == record
    plane.reported(0.0, (), 0)
    assert plane.tunnel(LOW) is None, "no device here"


def test_of_two_peers_with_one_address_the_lower_id_has_it(plane: WireguardPlane, mesh: Mesh) -> None:
    plane.reported(0.0, (KEYS[0],), PORT)
    with mock.patch.object(
        wireguardplane, "tunnel_address", lambda key: "240.0.0.1" if key != KEYS[0] else "240.0.0.2"
    ):
        high = mesh.say(HIGH, KEYS[2])
        assert plane.learnt({HIGH}) == {HIGH}
        assert plane.tunnel(HIGH) == high
        low = mesh.say(LOW, KEYS[1])
        assert plane.learnt({LOW}) == {LOW, HIGH}
        assert plane.tunnel(LOW) == low and plane.tunnel(HIGH) is None
        mesh.records[LOW] = []
        assert plane.learnt({LOW}) == {HIGH}
        assert plane.tunnel(HIGH) == high


def test_whoever_has_our_own_key_is_not_reached(plane: WireguardPlane, mesh: Mesh) -> None:
    plane.reported(0.0, (KEYS[0],), PORT)
    mesh.say(LOW, KEYS[0])
    plane.learnt({LOW})
    assert plane.tunnel(LOW) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgspec.msgpack.encode([[b"short"], 1]), msgspec.msgpack.encode([[], 1])]
)
def test_a_record_that_is_none_stops_nobody(plane: WireguardPlane, mesh: Mesh, body: bytes) -> None:
    mesh.records[LOW] = [body]
    assert plane.learnt({LOW}) == set()
    assert plane.tunnel(LOW) is None
