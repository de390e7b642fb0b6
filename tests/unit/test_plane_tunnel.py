"""The WireGuard device as the plane keeps it, with a kernel that has one: adoption, peers, a change of key, trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from weavenet.core.effects import PlanePeer, VxlanUse
from weavenet.core.limits import WIREGUARD_DEVICE
from weavenet.core.overlay.wireguard import WireguardRecord, tunnel_address
from weavenet.core.types import PeerId
from weavenet.host import sysctl, wireguardkernel
from weavenet.host.links import Link
from weavenet.host.wireguard import Change, DeviceState, TunnelPeer
from weavenet.plane import wireguard
from weavenet.plane.wireguard import Tunnel

PORT, MTU = 6785, 1376
PEER_KEYS = [bytes([100 + number]) * 32 for number in range(3)]


class FakeDevice:
    """What the kernel has, and the changes it was told."""

    def __init__(self) -> None:
        self.private = bytes(32)
        self.port = 0
        self.peers: dict[bytes, TunnelPeer] = {}
        self.changes: list[Change] = []
        self.trouble = 0

    def read(self) -> DeviceState:
        return DeviceState(self.private, self.port, tuple(self.peers.values()))

    def write(self, change: Change) -> None:
        if self.trouble:
            self.trouble -= 1
            raise OSError(5, "broken")
        self.changes.append(change)
        self.private = change.private or self.private
        self.port = change.port or self.port
        for peer in change.peers:
            if peer.is_removed:
                del self.peers[peer.public]
            else:
                before = self.peers.get(peer.public)
                endpoint = peer.endpoint or (before.endpoint if before else None)
                self.peers[peer.public] = TunnelPeer(peer.public, endpoint, (f"{peer.address}/32",))


class FakeKernel:
    """Links and netlink of one namespace in one object."""

    def __init__(self, device: FakeDevice) -> None:
        self.namespace = None
        self.links = self.netlink = self
        self.device = device
        self.link: Link | None = None
        self.made = 0
        self.addresses_of: list[str] = []
        self.routes: dict[str, str] = {}

    def get(self, name: str) -> Link | None:
        assert name == WIREGUARD_DEVICE
        return self.link

    async def add_wireguard(self, name: str) -> None:
        self.made += 1
        self.device.private, self.device.peers = bytes(32), {}
        self.addresses_of, self.routes = [], {}
        self.link = Link(10 + self.made, name, "wireguard", b"", 1420, False, 0, 0)

    async def delete_link(self, index: int) -> None:
        self.link = None

    def _changed(self, **fields: Any) -> None:
        assert self.link is not None
        values = {name: getattr(self.link, name) for name in Link.__slots__} | fields
        self.link = Link(**values)

    async def set_mtu(self, index: int, mtu: int) -> None:
        self._changed(mtu=mtu)

    async def set_up(self, index: int) -> None:
        self._changed(is_up=True)

    async def addresses(self, index: int) -> list[str]:
        return list(self.addresses_of)

    async def add_address(self, index: int, address: str) -> None:
        self.addresses_of.append(address)

    async def delete_address(self, index: int, address: str) -> None:
        self.addresses_of.remove(address)

    async def replace_route(self, index: int, destination: str, source: str = "") -> None:
        self.routes[destination] = source

    async def delete_route(self, index: int, destination: str) -> None:
        del self.routes[destination]


class Numbered:
    """Keys that can be told apart: the public half of ``n`` is ``n`` with its last byte changed."""

    def __init__(self) -> None:
        self._count = 0

    def new(self) -> tuple[bytes, bytes]:
        self._count += 1
        private = bytes([self._count]) * 32
        return private, self.public(private)

    def public(self, private: bytes) -> bytes:
        return private[:31] + b"\xff"


class World:
    def __init__(self) -> None:
        self.device = FakeDevice()
        self.kernel = FakeKernel(self.device)
        self.told: list[tuple[bytes, ...]] = []
        self.tunnel = self.restarted()

    def restarted(self) -> Tunnel:
        """What the next daemon makes of it."""
        self.tunnel = Tunnel(
            self.kernel,  # type: ignore[arg-type]
            mtu=MTU,
            port=PORT,
            keys=Numbered(),
            has_process=False,
            on_keys=lambda keys, port: self.told.append(keys),
        )
        return self.tunnel

    async def made(self) -> None:
        """Ask for the device, and wait until it was made."""
        again = asyncio.Event()
        self.tunnel.on_change = again.set
        await self.tunnel.ensure()
        await asyncio.wait_for(again.wait(), 10)
        await self.tunnel.ensure()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(wireguardkernel, "is_available", lambda namespace=None: True)
    monkeypatch.setattr(wireguardkernel, "KernelDevice", lambda name, namespace=None: found.device)
    monkeypatch.setattr(sysctl, "write", lambda namespace, settings: ())
    return found


def drive(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


def peer(number: int, *keys: bytes, host: str = "192.0.2.9", vxlan: VxlanUse = VxlanUse.CARRIES) -> PlanePeer:
    record = WireguardRecord(keys, PORT) if keys else None
    return PlanePeer(PeerId(bytes([number]) * 16), host, bytes([2, 9, 0, 0, 0, number]), (), vxlan, record)


def test_a_device_is_made_and_told_of_peers(world: World) -> None:
    async def scenario() -> None:
        await world.made()
        assert world.kernel.link is not None
        assert (world.kernel.link.mtu, world.kernel.link.is_up) == (MTU + 50, True)
        assert world.told == [(), (world.device.private[:31] + b"\xff",)]
        assert world.kernel.addresses_of == [f"{tunnel_address(world.told[-1][0])}/32"]
        peers = (peer(1, *PEER_KEYS[:2]), peer(2), peer(3, PEER_KEYS[2], vxlan=VxlanUse.CLOSED))
        await world.tunnel.admit(peers)
        assert {key: one.endpoint for key, one in world.device.peers.items()} == dict.fromkeys(
            PEER_KEYS[:2], ("192.0.2.9", PORT)
        )
        addresses = [tunnel_address(key) for key in PEER_KEYS[:2]]
        assert world.tunnel.destinations(peers) == {peers[0].peer: f"{addresses[0]}%{world.kernel.link.index}"}
        assert world.tunnel.sources(peers) == set(addresses)
        assert world.kernel.routes.keys() == {f"{address}/32" for address in addresses}
        count = len(world.device.changes)
        await world.tunnel.admit(peers)
        await world.tunnel.prune(peers)
        assert len(world.device.changes) == count, "the same again changes nothing"
        await world.tunnel.prune(())
        assert world.device.peers == {} and world.kernel.routes == {}
        await world.tunnel.close()

    drive(scenario)


def test_a_restart_adopts_the_device_with_its_key_and_leaves_peers_where_wireguard_followed_them(world: World) -> None:
    async def scenario() -> None:
        await world.made()
        peers = (peer(1, PEER_KEYS[0]), peer(2, PEER_KEYS[1]))
        await world.tunnel.admit(peers)
        await world.tunnel.close()
        key, now = world.device.private, int(time.time())
        for public, handshake_at in ((PEER_KEYS[0], now - 20), (PEER_KEYS[1], now - 2000)):
            before = world.device.peers[public]
            world.device.peers[public] = TunnelPeer(public, ("198.51.100.1", 4000), before.addresses, handshake_at)
        tunnel = world.restarted()
        await tunnel.ensure()
        await tunnel.admit(peers)
        assert world.kernel.made == 1 and world.device.private == key
        assert world.device.peers[PEER_KEYS[0]].endpoint == ("198.51.100.1", 4000)
        assert world.device.peers[PEER_KEYS[1]].endpoint == ("192.0.2.9", PORT)
        await tunnel.admit((peer(1, PEER_KEYS[0], host="192.0.2.10"),))
        assert world.device.peers[PEER_KEYS[0]].endpoint == ("192.0.2.10", PORT)
        await tunnel.close()

    drive(scenario)


def test_the_next_key_is_told_before_it_is_used(world: World) -> None:
    async def scenario() -> None:
        await world.made()
        await world.tunnel.admit((peer(1, PEER_KEYS[0]),))
        old = world.told[-1][0]
        await world.tunnel.change_key(lead_s=0.0, retired_s=0.0)
        announced, used = world.told[-2:]
        assert announced[0] == old and used == announced[1:]
        assert world.device.private[:31] == used[0][:31]
        assert world.kernel.addresses_of == [f"{tunnel_address(used[0])}/32"]
        assert set(world.kernel.routes.values()) == {tunnel_address(used[0])}
        await world.tunnel.close()

    drive(scenario)


def test_a_change_that_fails_leaves_the_key_that_the_device_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard, "RETRY_S", 0.0)

    async def scenario() -> None:
        await world.made()
        peers = (peer(1, PEER_KEYS[0]),)
        await world.tunnel.admit(peers)
        key = world.told[-1]
        again = asyncio.Event()
        world.tunnel.on_change = again.set
        world.device.trouble = 1
        await world.tunnel.change_key(lead_s=0.0, retired_s=0.0)
        await again.wait()
        await world.tunnel.ensure()
        await world.tunnel.admit(peers)
        assert world.told[-1] == key
        assert set(world.kernel.routes.values()) == {tunnel_address(key[0])}
        await world.tunnel.close()

    drive(scenario)


@pytest.mark.parametrize("what", ["its addresses", "that it is up"])
def test_what_others_take_from_the_device_comes_back(world: World, what: str) -> None:
    async def scenario() -> None:
        await world.made()
        peers = (peer(1, PEER_KEYS[0]),)
        await world.tunnel.admit(peers)
        addresses, routes = list(world.kernel.addresses_of), dict(world.kernel.routes)
        assert addresses and routes
        if what == "its addresses":
            world.kernel.addresses_of.clear()
        else:
            world.kernel._changed(is_up=False)
        world.kernel.routes.clear()
        await world.tunnel.ensure()
        await world.tunnel.admit(peers)
        assert (world.kernel.addresses_of, world.kernel.routes) == (addresses, routes)
        assert world.kernel.link is not None and world.kernel.link.is_up
        await world.tunnel.close()

    drive(scenario)


def test_a_device_that_vanished_is_made_anew_with_the_same_key(world: World) -> None:
    async def scenario() -> None:
        await world.made()
        key = world.told[-1]
        world.kernel.link = None
        await world.made()
        assert world.kernel.made == 2
        assert world.told[-2:] == [(), key]
        await world.tunnel.admit((peer(1, PEER_KEYS[0]),))
        assert PEER_KEYS[0] in world.device.peers
        await world.tunnel.close()

    drive(scenario)


def test_a_device_that_refuses_is_no_path_until_it_does_as_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard, "RETRY_S", 0.0)

    async def scenario() -> None:
        await world.made()
        again = asyncio.Event()
        world.tunnel.on_change = again.set
        world.device.trouble = 1
        peers = (peer(1, PEER_KEYS[0]),)
        await world.tunnel.admit(peers)
        assert world.told[-1] == () and world.tunnel.destinations(peers) == {}
        assert "could not be set" in world.tunnel.warnings()[0]
        await again.wait()
        await world.tunnel.ensure()
        await world.tunnel.admit(peers)
        assert world.told[-1] != () and world.tunnel.warnings() == ()
        assert PEER_KEYS[0] in world.device.peers
        await world.tunnel.close()

    drive(scenario)


def test_of_two_peers_with_one_key_the_lower_id_has_it(world: World) -> None:
    async def scenario() -> None:
        await world.made()
        low, high = peer(1, PEER_KEYS[0], host="192.0.2.1"), peer(2, PEER_KEYS[0], host="192.0.2.2")
        await world.tunnel.admit((high, low))
        assert world.device.peers[PEER_KEYS[0]].endpoint == ("192.0.2.1", PORT)
        assert world.tunnel.destinations((high, low)).keys() == {low.peer}
        await world.tunnel.close()

    drive(scenario)
