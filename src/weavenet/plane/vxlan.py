"""The planes ``fastdp`` and ``wireguard``: kernel VXLAN, programmed from control state.

One device per underlay family, ``vxlan-6784`` for IPv4 and, once a peer has an IPv6 underlay address,
``vxlan6-6784``: the kernel serves one family per device, and lets two devices share VNI and port when the family
differs. Both are isolated ports of the bridge, so nothing is forwarded from one host through a second to a third.
Learning is off everywhere on these ports; every entry is ours.

Invariants:
- Devices and entries outlive the daemon. :meth:`open` adopts what it finds and removes nothing; the first
  :meth:`apply` removes what is no longer wanted, after adding what is.
- Our picture of the entries in the kernel is fed by our own requests and by deletion events; a dump happens only when
  a device is opened or events were lost. Whatever others delete comes back within a second.

It does not decide who is a peer, and knows no containers of this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from weavenet.core.effects import PlanePeer, VxlanUse
from weavenet.core.limits import BRIDGE, SLEEVE_DEVICE, VXLAN_PORT, VXLAN_VNI, WIREGUARD_DEVICE
from weavenet.core.types import is_ip_address
from weavenet.host import announce, ipv6, netns, portfilter, sysctl
from weavenet.host.bridge import Bridge, is_damaged
from weavenet.host.kernel import Kernel
from weavenet.host.links import GoneNeighbour, Link, PortFlags, VxlanSettings
from weavenet.host.netlink import FLOOD_MAC
from weavenet.plane import heartbeat
from weavenet.plane.forwarding import NO_TUNNELS, TAP, Entry, Kind, Present, canonical, difference, wanted
from weavenet.plane.traffic import Counters
from weavenet.plane.wireguard import Tunnel

DEVICES = {4: f"vxlan-{VXLAN_PORT}", 6: f"vxlan6-{VXLAN_PORT}"}
OVERHEAD_BYTES = {4: 50, 6: 70}
"""Inner Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40 (RFC 7348)."""
ETHERNET_BYTES = 14
OVERLAY_PORT = PortFlags(hairpin=False, learning=False, neigh_suppress=True, isolated=True)
SETTINGS = VxlanSettings(VXLAN_VNI, VXLAN_PORT, False)
NO_ENTRY = Entry(Kind.NEIGHBOUR, 0, b"", "")
DEBOUNCE_S = 0.1
"""A burst of deletions (a flush) is repaired in one go."""
RETRY_S = 1.0
ANNOUNCEMENTS_MAX = 256
"""Per change of state; beyond it containers find moved neighbours by their own timers within seconds."""
TRAFFIC_POLL_S = 1.0
MEASURE_S = 30.0
"""Between two looks at the MTU of the paths to all peers."""
IP_MTU, IPV6_MTU = 14, 24


class PlaneFirewall(Protocol):
    """What the plane asks of the firewall: VXLAN comes only from peers."""

    async def set_hosts(self, hosts: frozenset[str], tunnels: frozenset[str]) -> None: ...


def underlay_mtu(host: str) -> int:
    """MTU of the path to ``host`` as the routing table knows it; 0 without a route. Sends nothing."""
    is_ipv6 = ipaddress.ip_address(host).version == 6
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host, VXLAN_PORT))
            if is_ipv6:
                return sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
            return sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
        except OSError:
            return 0


def is_over_ipv6(peer: PlanePeer) -> bool:
    """Whether VXLAN goes to ``peer`` over the underlay, and that with IPv6."""
    return peer.vxlan is not VxlanUse.CLOSED and peer.tunnel is None and ":" in peer.host


def _is_ipv6_neighbour(entry: Entry) -> bool:
    return entry.kind is Kind.NEIGHBOUR and ":" in entry.where


class VxlanPlane:
    """Implements :class:`weavenet.plane.plane.Plane`. ``mac``: plane_mac(peer); ``mtu``: that of the containers.
    Without ``has_vxlan`` it only serves the port of the sleeve worker. ``tunnel``: through which peers are reached that
    have one."""

    def __init__(
        self,
        kernel: Kernel,
        bridge: Bridge,
        *,
        mac: bytes,
        mtu: int,
        firewall: PlaneFirewall | None = None,
        has_vxlan: bool = True,
        tunnel: Tunnel | None = None,
    ) -> None:
        self.on_probe: Callable[[bytes, int, bool], None] = lambda mac, nonce, is_answer: None
        self.on_traffic: Callable[[], None] = lambda: None
        self._kernel = kernel
        self._bridge = bridge
        self._mac = mac
        self._mtu = mtu
        self._firewall = firewall
        self._has_vxlan = has_vxlan
        self._tunnel = tunnel
        self._peers: tuple[PlanePeer, ...] | None = None
        self._hosts: dict[bytes, int] = {}
        self._present = Present()
        self._devices: dict[int, int] = {}
        self._filtered: set[int] = set()
        self._listener = heartbeat.Listener(mac, self._heard)
        self._senders: dict[int, heartbeat.Sender] = {}
        self._bridge_index = 0
        self._stale = True
        self._has_sleeve_port = asyncio.Event()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._counters: Counters | None = None
        self._complaints: tuple[str, ...] = ()
        self._refused: dict[Entry, str] = {}
        self._path_mtus: dict[str, int] = {}
        self._trouble = ""
        self._trouble_ipv6 = ""
        self._trouble_filter = ""
        self._is_first_apply = True

    # --- the Plane protocol ---

    async def open(self) -> None:
        links = self._kernel.links
        if self._tunnel is not None:
            self._tunnel.on_change = self._wake.set
        async with self._lock:
            await self._ensure_devices()
        self._counters = Counters(self._kernel.namespace)
        links.on_link.append(self._link_changed)
        links.on_neighbour_gone.append(self._neighbour_gone)
        links.on_filter_gone.append(self._filter_gone)
        links.on_overflow.append(self._events_lost)
        self._tasks = [asyncio.create_task(self._repair()), asyncio.create_task(self._poll_traffic())]

    async def apply(self, peers: tuple[PlanePeer, ...]) -> None:
        async with self._lock:
            self._peers = peers
            await self._apply()

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        """To a peer with an entry only: any other frame would be flooded, and end up at containers of all peers."""
        sender = self._senders.get(self._hosts.get(mac, 0))
        if sender is not None:
            sender.send(mac, nonce, is_answer)

    async def sleeve_port(self) -> None:
        """Returns once the worker's device is a port of the bridge: what came out of it before that, nobody got."""
        await self._has_sleeve_port.wait()

    def warnings(self) -> tuple[str, ...]:
        found = [text for text in (self._trouble, self._trouble_ipv6, self._trouble_filter) if text]
        found += self._tunnel.warnings() if self._tunnel is not None else ()
        found += self._complaints
        found += sorted(set(self._refused.values()))[:5]
        for host, path_mtu in sorted(self._path_mtus.items()):
            overhead = OVERHEAD_BYTES[6 if ":" in host else 4]
            if path_mtu and self._mtu + overhead > path_mtu:
                found.append(
                    f"containers use MTU {self._mtu}, which needs {self._mtu + overhead} bytes to {host}, but the path "
                    f"takes {path_mtu}: launch with --mtu {path_mtu - overhead} or less on every peer"
                )
        return tuple(found)

    async def close(self) -> None:
        links = self._kernel.links
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._link_changed in links.on_link:
            links.on_link.remove(self._link_changed)
            links.on_neighbour_gone.remove(self._neighbour_gone)
            links.on_filter_gone.remove(self._filter_gone)
            links.on_overflow.remove(self._events_lost)
        if self._tunnel is not None:
            await self._tunnel.close()
        self._listener.close()
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()
        if self._counters is not None:
            self._counters.close()
            self._counters = None

    # --- devices ---

    async def _ensure_devices(self) -> None:
        """Bridge and the devices that are needed are there and as wanted; our picture of their entries is true."""
        bridge = await self._bridge.ensure()
        if bridge.index != self._bridge_index:
            if self._has_vxlan:
                self._listener.open(self._kernel.namespace, BRIDGE)
            self._bridge_index, self._stale = bridge.index, True
        needed = {4} if self._has_vxlan else set()
        needed |= {family for family, name in DEVICES.items() if self._kernel.links.get(name) is not None}
        if self._has_vxlan and any(is_over_ipv6(peer) for peer in self._peers or ()):
            needed.add(6)
        self._trouble_ipv6 = ""
        for family in sorted(needed):
            try:
                link = await self._ensure_device(family, bridge)
            except OSError as error:
                if family == 4:
                    raise
                self._trouble_ipv6 = f"no data path to peers with an IPv6 underlay address: {error}"
                continue
            if self._devices.get(family) != link.index:
                self._open_sender(family)
                self._devices[family], self._stale = link.index, True
        await self._ensure_sleeve_port(bridge)
        if self._tunnel is not None:
            await self._tunnel.ensure()
            if self._peers is not None:
                await self._tunnel.admit(self._peers)
        if self._stale:
            await self._read_present()
        if self._firewall is not None and self._peers is not None:  # else an adopted path would be cut
            hosts = frozenset(
                canonical(peer.host)
                for peer in self._peers
                if peer.vxlan is not VxlanUse.CLOSED and peer.tunnel is None and is_ip_address(peer.host)
            )
            tunnels = self._tunnel.sources(self._peers) if self._tunnel is not None else frozenset()
            await self._firewall.set_hosts(hosts, tunnels)

    async def _ensure_device(self, family: int, bridge: Link) -> Link:
        netlink, links, name = self._kernel.netlink, self._kernel.links, DEVICES[family]
        link = links.get(name)
        if link is not None and link.vxlan != SETTINGS:
            await netlink.delete_link(link.index)
            link = links.get(name)
        if link is None:
            await netlink.add_vxlan(
                name, vni=VXLAN_VNI, port=VXLAN_PORT, mac=self._mac, mtu=self._mtu, is_ipv6=family == 6
            )
            try:
                sysctl.write(self._kernel.namespace, sysctl.quiet_port(name))
                return await self._set_up(self._found(name), bridge)
            except OSError:
                made = links.get(name)
                if made is not None:  # its port is taken, for example: what never worked is not left behind
                    await netlink.delete_link(made.index)
                raise
        return await self._set_up(link, bridge)

    async def _set_up(self, link: Link, bridge: Link) -> Link:
        netlink, name = self._kernel.netlink, link.name
        if link.mac != self._mac:
            await netlink.set_mac(link.index, self._mac)
        if link.mtu != self._mtu:
            await netlink.set_mtu(link.index, self._mtu)
        self._filter(link)
        if link.master != bridge.index:
            await netlink.set_master(link.index, bridge.index)
        if self._found(name).port != OVERLAY_PORT:
            await netlink.set_port(link.index, OVERLAY_PORT)
        if not link.is_up:
            await netlink.set_up(link.index)
        return self._found(name)

    def _filter(self, link: Link) -> None:
        """Every way out of this host, the worker's port too: what is said about one address must not leave it."""
        if link.index in self._filtered:
            return
        try:
            portfilter.put(self._kernel.namespace, link.index)
        except OSError as error:
            self._trouble_filter = (
                f"ARP for the DNS server's address may leave this host: {error.strerror}; "
                "load the kernel's modules: modprobe -a sch_ingress cls_bpf"
            )
        else:
            self._filtered.add(link.index)
            self._trouble_filter = ""

    async def _ensure_sleeve_port(self, bridge: Link) -> None:
        """The worker makes its device; as a port of the bridge it is ours. Without it those MACs are pinned nowhere."""
        link = self._kernel.links.get(SLEEVE_DEVICE)
        if link is None:
            self._devices.pop(TAP, None)
            self._has_sleeve_port.clear()
            return
        if link.master != bridge.index:
            sysctl.write(self._kernel.namespace, sysctl.quiet_port(SLEEVE_DEVICE))
        await self._set_up(link, bridge)
        if self._devices.get(TAP) != link.index:
            self._devices[TAP], self._stale = link.index, True
        self._has_sleeve_port.set()

    def _found(self, name: str) -> Link:
        link = self._kernel.links.get(name)
        if link is None:
            raise OSError(19, f"{name} vanished while it was set up")
        return link

    def _open_sender(self, family: int) -> None:
        old = self._senders.pop(family, None)
        if old is not None:
            old.close()
        self._senders[family] = heartbeat.Sender(
            self._kernel.namespace, DEVICES[family], self._mac, frame_bytes=ETHERNET_BYTES + self._mtu
        )

    def _heard(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        self.on_probe(mac, nonce, is_answer)  # looked up late: the daemon sets it after construction

    async def _read_present(self) -> None:
        """Dump what the kernel has. Events that arrive meanwhile concern the new picture, so forget the old first."""
        self._stale = False
        self._present = Present()
        for family, index in self._devices.items():
            for item in await self._kernel.netlink.forwarding(index):
                if item.master:
                    self._present.add(Entry(Kind.PIN, family, item.mac, ""))
                elif item.mac == FLOOD_MAC:
                    self._present.add(Entry(Kind.FLOOD, family, b"", canonical(item.host)))
                else:
                    self._present.add(Entry(Kind.DEVICE, family, item.mac, canonical(item.host)))
        for address, mac in (await self._kernel.netlink.neighbours(self._bridge_index)).items():
            self._present.add(Entry(Kind.NEIGHBOUR, 0, mac, canonical(address)))

    # --- entries ---

    async def _apply(self) -> None:
        """Make the kernel's entries those of ``_peers``. Call with the lock held."""
        if self._peers is None:
            return
        await self._ensure_devices()
        tunnels = self._tunnel.destinations(self._peers) if self._tunnel is not None else NO_TUNNELS
        index = self._bridge_index
        here = {link.mac for link in self._kernel.links.all() if index in (link.index, link.master)}
        target, self._complaints = wanted(self._peers, tunnels, here)
        self._hosts = {entry.mac: entry.family for entry in target if entry.kind is Kind.DEVICE}
        puts, removes = difference(self._present, (e for e in target if not e.family or e.family in self._devices))
        if any(map(_is_ipv6_neighbour, puts)) and not ipv6.is_on(self._kernel.namespace, BRIDGE):
            puts = [entry for entry in puts if not _is_ipv6_neighbour(entry)]  # containers answer for themselves
        self._refused = {}
        for entry in puts:
            try:
                await self._put(entry)
            except OSError as error:
                self._refused[entry] = f"{error.strerror}: it is tried again"
            else:
                self._present.add(entry)
        self._announce(entry for entry in puts if entry.kind is Kind.NEIGHBOUR)
        for entry in removes:
            self._present.discard(entry)  # before the request: its deletion event is then not taken for a stranger's
            try:
                await self._remove(entry)
            except OSError as error:
                self._refused[entry] = f"{error.strerror}: it is tried again"
                self._present.add(entry)
        if self._tunnel is not None:
            await self._tunnel.prune(self._peers)
        self._kernel.links.drain()
        self._measure_paths({e.where for e in target if e.kind is Kind.FLOOD and "%" not in e.where})
        if self._refused:
            asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)

    def _announce(self, moved: Iterable[Entry]) -> None:
        """Tell containers of this host where addresses are now, so that a cached neighbour that moved to another host
        is reached at once. The overlay ports do not pass this on. Not after a start: then nothing has moved."""
        if self._is_first_apply:
            self._is_first_apply = False
            return
        news = [(entry.mac, entry.where) for entry in moved][:ANNOUNCEMENTS_MAX]
        with contextlib.suppress(OSError):
            announce.send(self._kernel.namespace, BRIDGE, news)

    async def _put(self, entry: Entry) -> None:
        netlink = self._kernel.netlink
        match entry.kind:
            case Kind.DEVICE:
                await netlink.replace_device_entry(self._devices[entry.family], entry.mac, entry.where)
            case Kind.PIN:
                await netlink.replace_bridge_entry(self._devices[entry.family], entry.mac)
            case Kind.NEIGHBOUR:
                await netlink.replace_neighbour(self._bridge_index, entry.where, entry.mac)
            case Kind.FLOOD:
                await netlink.append_flood(self._devices[entry.family], entry.where)

    async def _remove(self, entry: Entry) -> None:
        netlink = self._kernel.netlink
        match entry.kind:
            case Kind.DEVICE:
                await netlink.delete_device_entry(self._devices[entry.family], entry.mac, entry.where)
            case Kind.PIN:
                await netlink.delete_bridge_entry(self._devices[entry.family], entry.mac)
            case Kind.NEIGHBOUR:
                await netlink.delete_neighbour(self._bridge_index, entry.where)
            case Kind.FLOOD:
                await netlink.delete_device_entry(self._devices[entry.family], FLOOD_MAC, entry.where)

    def _measure_paths(self, hosts: set[str]) -> None:
        fresh = hosts - self._path_mtus.keys()
        self._path_mtus = {host: mtu for host, mtu in self._path_mtus.items() if host in hosts}
        if fresh:
            self._path_mtus |= netns.call(self._kernel.namespace, lambda: {host: underlay_mtu(host) for host in fresh})

    # --- what others do ---

    def _link_changed(self, link: Link, gone: bool) -> None:
        if link.name == SLEEVE_DEVICE and gone:
            self._has_sleeve_port.clear()
        ours = link.name in (BRIDGE, SLEEVE_DEVICE, WIREGUARD_DEVICE, *DEVICES.values())
        if ours or (not gone and is_damaged(link, self._bridge_index)):
            self._wake.set()

    def _neighbour_gone(self, gone: GoneNeighbour) -> None:
        family = next((family for family, index in self._devices.items() if index == gone.index), None)
        if gone.is_forwarding and family is not None:
            if gone.master:
                entry = Entry(Kind.PIN, family, gone.mac, "")
            elif gone.mac == FLOOD_MAC:
                entry = Entry(Kind.FLOOD, family, b"", gone.address)
            else:
                entry = Entry(Kind.DEVICE, family, gone.mac, gone.address)
        elif not gone.is_forwarding and gone.index == self._bridge_index:
            # a deleted neighbour's event no longer carries its MAC
            entry = self._present.neighbour(gone.address) or NO_ENTRY
        else:
            return
        if entry in self._present:
            self._present.discard(entry)
            self._wake.set()

    def _filter_gone(self, index: int) -> None:
        if index in self._filtered:
            self._filtered.discard(index)
            self._wake.set()

    def _events_lost(self) -> None:
        self._stale = True
        self._filtered.clear()
        self._wake.set()

    async def _repair(self) -> None:
        """Puts back what others changed. Also the retry after a refusal."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._wake.clear()
            try:
                async with self._lock:
                    if self._peers is None:
                        await self._ensure_devices()
                    else:
                        await self._apply()
                self._trouble = ""
            except Exception as error:  # whatever it is, the data path is tried again rather than left broken
                self._trouble = f"the data path could not be restored: {error}; see `ip -d link show {DEVICES[4]}`"
                self._stale = True
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _poll_traffic(self) -> None:
        last = self._other_frames()
        measured_at = time.monotonic()
        while True:
            await asyncio.sleep(TRAFFIC_POLL_S)
            now = self._other_frames()
            if now > last:
                self.on_traffic()
            last = now
            if time.monotonic() - measured_at > MEASURE_S:  # nobody tells of routes and their MTU
                measured_at = time.monotonic()
                hosts = set(self._path_mtus)
                self._path_mtus = {}
                self._measure_paths(hosts)

    def _other_frames(self) -> int:
        """Frames on our devices that were no heartbeats of ours."""
        if self._counters is None:
            return 0
        own = self._listener.received + sum(sender.sent for sender in self._senders.values())
        with contextlib.suppress(OSError, ValueError, IndexError):
            return self._counters.frames((*DEVICES.values(), SLEEVE_DEVICE)) - own
        return 0
