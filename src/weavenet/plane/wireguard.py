"""The WireGuard device that VXLAN goes through to peers on the plane ``wireguard``: made or adopted, told of peers.

Invariants:
- The device, in the kernel or made by a ``wireguard-go`` that outlives the daemon, keeps its key when a daemon is
  stopped; the next one reads it back, so a restart costs no packet.
- A peer's key is on the device with exactly one address, that key's own (:func:`tunnel_address`), so what comes out of
  the device with that source was sealed by that peer.
- There is a route per address of a peer, to the device and from our key's own address. Frames do not depend on it to
  stay out of the open: forwarding entries name the device (``via``), and without it the kernel drops them.
- An endpoint is written when it is news. WireGuard itself follows a peer whose packets come from elsewhere.

How a key is changed is told in :mod:`weavenet.core.overlay.wireguard`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from weavenet.core.effects import PlanePeer, VxlanUse
from weavenet.core.limits import WIREGUARD_DEVICE
from weavenet.core.overlay.wireguard import tunnel_address
from weavenet.core.types import PeerId, is_ip_address, without_prefix
from weavenet.host import sysctl, wireguardkernel, wireguardprocess
from weavenet.host.kernel import Kernel
from weavenet.host.links import Link, scoped
from weavenet.host.wireguard import Change, Device, DeviceState, PeerChange

VXLAN_BYTES = 50
"""Around the packets of containers: Ethernet 14, VXLAN 8, UDP 8, IPv4 20."""
RETRY_S = 1.0
RETRY_FIRST_S, RETRY_FACTOR, RETRY_CAP_S = 0.2, 2.0, 30.0
FIRST_CHANGE_S = 20.0
"""A daemon that starts changes the key once others had the time to come back to it."""
KEY_LIFE_S = 24 * 3600.0
LEAD_S = 10.0
"""The next key is known to everybody who has a link for this long before it is used."""
RETIRED_S = 300.0
"""Sessions of the key before end after 180 s (WireGuard whitepaper, 6.1: REJECT_AFTER_TIME)."""
RECENT_S = 180
"""An adopted peer whose last handshake is not older stays where it was found."""

_log = logging.getLogger("weave.wireguard")


class KeyMaker(Protocol):
    def new(self) -> tuple[bytes, bytes]:
        """(private, public) of a fresh X25519 pair."""

    def public(self, private: bytes) -> bytes: ...


class _Wanted(NamedTuple):
    """What the device is to know of one key."""

    endpoint: tuple[str, int]
    address: str
    peer: PeerId = PeerId(b"")
    """Whose it is; unknown of what was found on an adopted device."""


class Tunnel:
    """``port``: UDP. ``has_process``: ``wireguard-go`` may be used where the kernel has no WireGuard. ``on_keys`` gets
    (public keys, the one in use first; port) whenever they change, no keys while there is no device; ``on_change`` is
    called when the device came and the plane has to be applied anew."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        mtu: int,
        port: int,
        keys: KeyMaker,
        has_process: bool,
        on_keys: Callable[[tuple[bytes, ...], int], None],
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._kernel = kernel
        self._mtu = mtu + VXLAN_BYTES
        self._port = port
        self._keys = keys
        self._has_process = has_process
        self._on_keys = on_keys
        self._index = 0
        self._device: Device | None = None
        self._private = b""
        self._public = b""
        self._next: tuple[bytes, bytes] | None = None
        self._told: tuple[bytes, ...] | None = None
        self._peers: dict[bytes, _Wanted] = {}
        """As on the device: put there by us, or found."""
        self._recent: set[bytes] = set()
        """Adopted peers that were talked to lately: they stay where WireGuard followed them to."""
        self._routes: dict[str, str] = {}
        """Address of a peer → the address that we send from."""
        self._lock = asyncio.Lock()
        self._making: asyncio.Task[None] | None = None
        self._changing: asyncio.Task[None] | None = None
        self._trouble = ""

    # --- the device ---

    async def ensure(self) -> None:
        """Adopt the device if there is one; have it made in the background if there is none."""
        if self._changing is None:
            self._changing = asyncio.create_task(self._change_keys())
        async with self._lock:
            link = self._kernel.links.get(WIREGUARD_DEVICE)
            try:
                if link is not None and link.index == self._index:
                    await self._set_up(link)
                    await self._keep_addresses(link.index)
                    return
                self._forget()
                if link is not None and self._making is None:
                    await self._adopt(link)
            except OSError as error:
                self._fail(error)
                return
            if self._index == 0 and self._making is None:
                self._making = asyncio.create_task(self._make())
            self._tell()

    def _forget(self) -> None:
        self._index, self._device, self._next = 0, None, None
        self._peers, self._routes, self._recent = {}, {}, set()

    async def _adopt(self, link: Link) -> None:
        """Raises OSError when it cannot be set. One that nobody answers for is deleted, to be made anew."""
        device: Device
        if link.kind == "wireguard":
            device = wireguardkernel.KernelDevice(link.name, self._kernel.namespace)
        else:
            device = wireguardprocess.ProcessDevice(link.name)
        try:
            state = await asyncio.to_thread(device.read)
        except OSError as error:
            _log.warning("the WireGuard device is made anew: %s", error)
            await self._kernel.netlink.delete_link(link.index)
            return
        # A device that is made anew gets the key of the one before, so that nobody needs to hear of another.
        private = state.private if any(state.private) else self._private or self._keys.new()[0]
        if (private, self._port) != (state.private, state.port):
            await asyncio.to_thread(device.write, Change(private, self._port))
        self._private, self._public = private, self._keys.public(private)
        self._peers, self._recent = _found(state, time.time())
        self._device = device
        await self._set_up(link)
        await self._keep_addresses(link.index)
        self._index = link.index
        self._trouble = ""

    async def _set_up(self, link: Link) -> None:
        if link.mtu != self._mtu:
            await self._kernel.netlink.set_mtu(link.index, self._mtu)
        if not link.is_up:
            sysctl.write(self._kernel.namespace, sysctl.quiet_port(link.name))
            await self._kernel.netlink.set_up(link.index)
            self._routes = {}  # the kernel dropped them when it was set down

    async def _keep_addresses(self, index: int) -> None:
        """Those of our keys. Frames that are sent from any other are refused by the peers."""
        held = await self._kernel.netlink.addresses(index)
        for public in (self._public, *((self._next[1],) if self._next is not None else ())):
            if f"{tunnel_address(public)}/32" not in held:
                await self._kernel.netlink.add_address(index, f"{tunnel_address(public)}/32")
                self._routes = {}  # those that named it went with it

    async def _make(self) -> None:
        """Until there is a device."""
        pause_s = RETRY_FIRST_S
        while self._kernel.links.get(WIREGUARD_DEVICE) is None:
            try:
                if wireguardkernel.is_available(self._kernel.namespace):
                    await self._kernel.netlink.add_wireguard(WIREGUARD_DEVICE)
                elif self._has_process:
                    await wireguardprocess.start(WIREGUARD_DEVICE)
                else:
                    raise OSError(95, "the kernel has none")
            except OSError as error:
                self._trouble = f"WireGuard cannot be used, so sleeve is: {error}; it is tried again"
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * RETRY_FACTOR, RETRY_CAP_S)
        self._making = None
        self.on_change()

    def _tell(self) -> None:
        keys = () if self._index == 0 else (self._public, *((self._next[1],) if self._next is not None else ()))
        if keys != self._told:
            self._told = keys
            self._on_keys(keys, self._port if keys else 0)

    def destinations(self, peers: Iterable[PlanePeer]) -> dict[PeerId, str]:
        """Where VXLAN is sent for those of ``peers`` that have a tunnel; none while there is no device."""
        if self._index == 0:
            return {}
        wanted = _wanted(peers)
        return {
            peer.peer: scoped(wanted[peer.tunnel.keys[0]].address, self._index)
            for peer in peers
            if peer.tunnel is not None
            and peer.tunnel.keys[0] in wanted
            and wanted[peer.tunnel.keys[0]].peer == peer.peer
        }

    def sources(self, peers: Iterable[PlanePeer]) -> frozenset[str]:
        """Addresses from which VXLAN comes through the tunnels of ``peers``."""
        return frozenset(one.address for one in _wanted(peers).values()) if self._index else frozenset()

    def warnings(self) -> tuple[str, ...]:
        return (self._trouble,) if self._trouble else ()

    # --- peers ---

    async def admit(self, peers: Iterable[PlanePeer]) -> None:
        """Everything that ``peers`` need is there when this returns."""
        async with self._lock:
            try:
                await self._admit(_wanted(peers))
            except OSError as error:
                self._fail(error)

    async def _admit(self, wanted: dict[bytes, _Wanted]) -> None:
        news = [
            PeerChange(public, one.endpoint, one.address)
            for public, one in wanted.items()
            if self._is_news(public, one)
        ]
        await self._write(Change(peers=tuple(news)))
        self._peers.update(wanted)
        self._recent.difference_update(wanted)
        for one in wanted.values():
            await self._route(one.address)

    def _is_news(self, public: bytes, one: _Wanted) -> bool:
        before = self._peers.get(public)
        if before is not None and public in self._recent:
            return before.address != one.address
        return before is None or before[:2] != one[:2]

    async def prune(self, peers: Iterable[PlanePeer]) -> None:
        """Nothing is left of anybody who is not among ``peers`` when this returns."""
        async with self._lock:
            try:
                await self._prune(_wanted(peers))
            except OSError as error:
                self._fail(error)

    async def _prune(self, wanted: dict[bytes, _Wanted]) -> None:
        gone = [public for public in self._peers if public not in wanted]
        await self._write(Change(peers=tuple(PeerChange(public, is_removed=True) for public in gone)))
        for public in gone:
            del self._peers[public]
        kept = {one.address for one in wanted.values()}
        for address in [address for address in self._routes if address not in kept]:
            del self._routes[address]
            await self._kernel.netlink.delete_route(self._index, f"{address}/32")

    def _fail(self, error: OSError) -> None:
        """It does not do as it is told: forget it, so that it is adopted anew or replaced."""
        self._trouble = f"the WireGuard device could not be set: {error}; it is tried again"
        self._forget()
        self._tell()
        asyncio.get_running_loop().call_later(RETRY_S, self.on_change)

    async def _write(self, change: Change) -> None:
        if self._device is not None and change != Change():
            await asyncio.to_thread(self._device.write, change)

    async def _route(self, address: str) -> None:
        source = tunnel_address(self._public)
        if self._index and self._routes.get(address) != source:
            await self._kernel.netlink.replace_route(self._index, f"{address}/32", source)
            self._routes[address] = source

    # --- changing the key ---

    async def _change_keys(self) -> None:
        await asyncio.sleep(FIRST_CHANGE_S)
        while True:
            try:
                await self.change_key()
            except OSError as error:
                _log.warning("the key of the WireGuard device could not be changed: %s", error)
            await asyncio.sleep(KEY_LIFE_S)

    async def change_key(self, lead_s: float = LEAD_S, retired_s: float = RETIRED_S) -> None:
        """Announce a new key, change over after ``lead_s``, drop the old key's address after ``retired_s`` more."""
        async with self._lock:
            if self._index == 0:
                return
            index, self._next = self._index, self._keys.new()
            await self._kernel.netlink.add_address(index, f"{tunnel_address(self._next[1])}/32")
            self._tell()
        await asyncio.sleep(lead_s)
        async with self._lock:
            if self._index != index or self._next is None:
                return  # it is another device by now, with a key of its own
            (self._private, self._public), self._next = self._next, None
            try:
                for address in list(self._routes):
                    await self._route(address)
                await self._write(Change(private=self._private))
            except OSError as error:
                self._fail(error)  # whichever key it has by now is read back
                return
            self._tell()
            _log.info("the WireGuard device has a new key")
        await asyncio.sleep(retired_s)
        async with self._lock:
            if self._index == index:
                for text in await self._kernel.netlink.addresses(index):
                    if text != f"{tunnel_address(self._public)}/32":
                        await self._kernel.netlink.delete_address(index, text)

    async def close(self) -> None:
        """Stop watching; the device goes on."""
        tasks = [task for task in (self._making, self._changing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._making = self._changing = None


def _wanted(peers: Iterable[PlanePeer]) -> dict[bytes, _Wanted]:
    """Of two peers that claim one key or address the lower PeerId has it."""
    found: dict[bytes, _Wanted] = {}
    taken: set[str] = set()
    for peer in sorted(peers, key=lambda peer: peer.peer):
        if peer.tunnel is None or peer.vxlan is VxlanUse.CLOSED or not is_ip_address(peer.host):
            continue
        for public in peer.tunnel.keys:
            address = tunnel_address(public)
            if address not in taken:
                taken.add(address)
                found[public] = _Wanted((peer.host, peer.tunnel.port), address, peer.peer)
    return found


def _found(state: DeviceState, now: float) -> tuple[dict[bytes, _Wanted], set[bytes]]:
    """What an adopted device knows, and with whom it exchanged packets lately. ``now``: seconds since the epoch."""
    peers = {
        peer.public: _Wanted(peer.endpoint or ("", 0), next((without_prefix(text) for text in peer.addresses), ""))
        for peer in state.peers
    }
    return peers, {peer.public for peer in state.peers if now - RECENT_S < peer.handshake_at <= now}
