"""What a start may send to peers that an earlier start had open paths to, before anything is heard of them."""

from __future__ import annotations

import random

import msgspec
import pytest

from weavenet.core.config import NodeConfig
from weavenet.core.effects import SetPlane, VxlanUse
from weavenet.core.node import Node
from weavenet.core.overlay.openplanes import TABLE, OpenPlane
from weavenet.core.overlay.wireguard import WireguardRecord
from weavenet.core.types import PeerId

ME, OTHER = PeerId(b"m" * 16), PeerId(b"o" * 16)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, VxlanUse.CARRIES),
        ({"authenticated": True}, VxlanUse.CLOSED),
        ({"authenticated": True, "trusted_subnets": ("10.0.1.0/24",)}, VxlanUse.CLOSED),
        ({"authenticated": True, "trusted_subnets": ("10.0.0.0/24",)}, VxlanUse.CARRIES),
        ({"planes": ("sleeve",)}, VxlanUse.CLOSED),
        ({"authenticated": True, "planes": ("fastdp",)}, VxlanUse.CLOSED),
    ],
)
def test_what_the_settings_forbid_now_is_not_sent_in_clear(settings: dict[str, object], expected: VxlanUse) -> None:
    config = msgspec.structs.replace(NodeConfig(peer=ME, name="::1", nickname="me", ranges=()), **settings)
    row = msgspec.msgpack.encode(OpenPlane("10.0.0.2", ()))
    node = Node(config, {(TABLE, OTHER): row}, random.Random(1))
    first = next(effect for effect in node.start(0.0) if isinstance(effect, SetPlane))
    assert [peer.vxlan for peer in first.peers] == [expected]


TUNNEL = WireguardRecord((bytes(32),), 6785)


@pytest.mark.parametrize(
    ("planes", "expected"),
    [(("fastdp", "wireguard", "sleeve"), (VxlanUse.CARRIES, TUNNEL)), (("fastdp", "sleeve"), (VxlanUse.CLOSED, None))],
)
def test_a_tunnel_outlives_a_start_that_still_has_wireguard(
    planes: tuple[str, ...], expected: tuple[VxlanUse, WireguardRecord | None]
) -> None:
    config = NodeConfig(peer=ME, name="::1", nickname="me", ranges=(), authenticated=True, planes=planes)
    row = OpenPlane("10.0.0.2", (), plane="wireguard", is_vxlan_allowed=False, tunnel=TUNNEL)
    node = Node(config, {(TABLE, OTHER): msgspec.msgpack.encode(row)}, random.Random(1))
    first = next(effect for effect in node.start(0.0) if isinstance(effect, SetPlane))
    assert [(peer.vxlan, peer.tunnel) for peer in first.peers] == [expected]


def test_rows_of_a_version_without_tunnels_are_read() -> None:
    old = msgspec.msgpack.encode(["10.0.0.2", [], "sleeve", False, None, b""])
    assert msgspec.msgpack.decode(old, type=OpenPlane).tunnel is None
