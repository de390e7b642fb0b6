"""Plugging a container into the bridge: a veth pair, ``ethwe`` inside, with addresses, routes and timers.

Invariants: plugging what is plugged changes nothing but adds what is missing; a failure leaves nothing of that call
behind; taking away the last address removes the interface. Which addresses, and who remembers them, is
:mod:`weavenet.host.attachments`.

GSO sizes stay at the kernel's limit on both ends where the kernel's VXLAN may carry the traffic: a bound of 60 kB would
cost a fifth of what one TCP stream moves over it. Where frames leave encrypted only, ``ethwe`` sends units of
SLEEVE_UNIT_BYTES, which leave as the datagrams of one send instead of two; devices on the way take larger ones, so
none is cut.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.types import PeerId, without_prefix
from weavenet.host import announce, ipv6, sysctl
from weavenet.host.bridge import CONTAINER_PORT, Bridge, port_name
from weavenet.host.kernel import Kernel
from weavenet.host.links import Link
from weavenet.host.netns import Container

INTERFACE = "ethwe"
MULTICAST = "224.0.0.0/4"


def container_mac(peer: PeerId, ident: str) -> bytes:
    """MAC of ``ident`` on this host: the same after every restart, different from that of its namesake elsewhere."""
    digest = hashlib.sha256(b"weave container mac\0" + peer + ident.encode()).digest()
    return bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6]


def settings() -> dict[str, str]:
    """Sysctls of ``ethwe``: no router is believed, and a neighbour that moved is asked for again soon."""
    found = {f"ipv6/conf/{INTERFACE}/accept_ra": "0", f"ipv6/conf/{INTERFACE}/accept_dad": "0"}
    for family in ("ipv4", "ipv6"):
        found[f"{family}/neigh/{INTERFACE}/base_reachable_time_ms"] = "5000"
        found[f"{family}/neigh/{INTERFACE}/delay_first_probe_time"] = "2"
        found[f"{family}/neigh/{INTERFACE}/ucast_solicit"] = "1"
    return found


class Attacher:
    """``kernel`` and ``bridge`` are the host's; ``mtu`` that of the network. ``on_link``: CIDRs outside it that
    containers reach on the bridge. ``unit_bytes``: how large a TCP unit containers send; None: what the kernel
    allows."""

    def __init__(
        self,
        kernel: Kernel,
        bridge: Bridge,
        *,
        peer: PeerId,
        mtu: int,
        on_link: Sequence[str] = (),
        unit_bytes: int | None = None,
    ) -> None:
        self._unit_bytes = unit_bytes
        self._on_link = tuple(on_link)
        self._kernel = kernel
        self._bridge = bridge
        self._peer = peer
        self._mtu = mtu

    def host_end(self, ident: str) -> Link | None:
        return self._kernel.links.get(port_name(ident))

    def mac(self, ident: str) -> bytes:
        return container_mac(self._peer, ident)

    async def is_plugged(self, container: Container) -> bool:
        """Whether host end and ``ethwe`` exist and belong together."""
        host_end = self.host_end(container.ident)
        if host_end is None:
            return False
        async with await Kernel.open(container.namespace) as inner:
            interface = inner.links.get(INTERFACE)
            return interface is not None and interface.peer_index == host_end.index

    async def plug(self, container: Container, addresses: Sequence[str], *, multicast_route: bool = True) -> bytes:
        """Give ``container`` the interface and ``addresses`` (``ip/prefix``); its MAC. Raises WeaveError."""
        try:
            async with await Kernel.open(container.namespace) as inner:
                return await self._plug(container, inner, addresses, multicast_route)
        except (OSError, TimeoutError) as error:
            raise WeaveError(_host_failure(container, error)) from error

    async def _plug(
        self, container: Container, inner: Kernel, addresses: Sequence[str], multicast_route: bool
    ) -> bytes:
        host_end, interface = await self._existing(container, inner)
        is_new = host_end is None
        added: list[str] = []
        try:
            if host_end is None or interface is None:
                host_end, interface = await self._make_pair(container, inner)
            sysctl.write(container.namespace, settings())
            ipv6.allow(container.namespace, INTERFACE, addresses, container.reference)
            held = await inner.netlink.addresses(interface.index)
            for address in addresses:
                if address not in held:
                    await inner.netlink.add_address(interface.index, address)
                    added.append(address)
            if not interface.is_up:
                await inner.netlink.set_up(interface.index)
            if multicast_route:
                await inner.netlink.replace_route(interface.index, MULTICAST)
            for destination in self._on_link:
                await inner.netlink.replace_route(interface.index, destination)
        except BaseException:
            await self._undo(container, inner, interface, added, is_new)
            raise
        with contextlib.suppress(OSError):  # a courtesy to neighbours; they find out by themselves within seconds
            moved = [(interface.mac, without_prefix(address)) for address in added]
            announce.send(container.namespace, INTERFACE, moved)
        return interface.mac

    async def _existing(self, container: Container, inner: Kernel) -> tuple[Link | None, Link | None]:
        """The pair if it is there and ours. A host end whose other end is elsewhere is left over and removed."""
        host_end, interface = self.host_end(container.ident), inner.links.get(INTERFACE)
        if interface is not None and (host_end is None or interface.peer_index != host_end.index):
            raise WeaveError(
                Failure(
                    Code.CONFLICT,
                    f"{container.reference} must not have an {INTERFACE} that is not ours",
                    "it has one, perhaps because it was attached under another name",
                    "see `weave ps`; detach it under that name",
                )
            )
        if host_end is not None and interface is None:
            await self._kernel.netlink.delete_link(host_end.index)
            host_end = None
        return host_end, interface

    async def _make_pair(self, container: Container, inner: Kernel) -> tuple[Link, Link]:
        name, netlink = port_name(container.ident), self._kernel.netlink
        bridge = await self._bridge.ensure()
        await netlink.add_veth(
            name,
            mtu=self._mtu,
            peer_name=INTERFACE,
            peer_mac=self.mac(container.ident),
            peer_namespace=container.namespace,
            peer_unit_bytes=self._unit_bytes,
        )
        host_end, interface = self._kernel.links.get(name), inner.links.get(INTERFACE)
        if host_end is None or interface is None:
            raise OSError(19, "the new veth pair vanished")
        sysctl.write(self._kernel.namespace, sysctl.quiet_port(name))
        await netlink.set_master(host_end.index, bridge.index)
        await netlink.set_port(host_end.index, CONTAINER_PORT)
        await netlink.set_up(host_end.index)
        return host_end, interface

    async def _undo(
        self, container: Container, inner: Kernel, interface: Link | None, added: Sequence[str], is_new: bool
    ) -> None:
        with contextlib.suppress(OSError):
            if is_new:
                await self.remove(container.ident)
            elif interface is not None:
                for address in added:
                    await inner.netlink.delete_address(interface.index, address)

    async def unplug(self, container: Container, addresses: Sequence[str]) -> bool:
        """Take ``addresses`` (``ip/prefix``) away; True when that was the last and the interface is gone. Raises
        WeaveError."""
        try:
            async with await Kernel.open(container.namespace) as inner:
                host_end, interface = self.host_end(container.ident), inner.links.get(INTERFACE)
                if host_end is None or interface is None or interface.peer_index != host_end.index:
                    await self.remove(container.ident)
                    return True
                for address in addresses:
                    await inner.netlink.delete_address(interface.index, address)
                left = await inner.netlink.addresses(interface.index)
                if all(address.startswith("fe80:") for address in left):
                    await self.remove(container.ident)
                    return True
                return False
        except (OSError, TimeoutError) as error:
            raise WeaveError(_host_failure(container, error)) from error

    async def remove(self, ident: str) -> None:
        """Remove the pair of ``ident`` whatever became of the container."""
        host_end = self.host_end(ident)
        if host_end is not None:
            await self._kernel.netlink.delete_link(host_end.index)


def _host_failure(container: Container, error: BaseException) -> Failure:
    return Failure(
        Code.HOST,
        f"expected to give {container.reference} its interface",
        str(error) or "the kernel did not answer",
        "weave setup",
    )
