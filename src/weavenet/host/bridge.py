"""The bridge ``weave``: made or adopted, brought into the wanted state, never torn down by a running daemon.

Invariants: a bridge that already carries traffic is only changed where it differs from what is wanted; container ports
(``vethwe`` + 8 hex) that lost their bridge, are down or have other flags are put back. It owns no forwarding entries.
"""

from __future__ import annotations

import hashlib

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import BRIDGE
from weavenet.host import sysctl
from weavenet.host.links import Link, LinkCache, PortFlags
from weavenet.host.netlink import Netlink

PORT_PREFIX = "vethwe"
CONTAINER_PORT = PortFlags(hairpin=True, learning=True, neigh_suppress=False, isolated=False)


def port_name(ident: str) -> str:
    """Name of the host end of the pair of ``ident``: 14 characters of the kernel's 15."""
    return PORT_PREFIX + hashlib.sha256(ident.encode()).hexdigest()[:8]


def is_port_name(name: str) -> bool:
    rest = name.removeprefix(PORT_PREFIX)
    return len(name) == len(PORT_PREFIX) + 8 and len(rest) == 8 and all(c in "0123456789abcdef" for c in rest)


def is_damaged(port: Link, bridge: int) -> bool:
    """Whether ``port`` is a container's, but no longer a port of the bridge of that index as it was made."""
    return is_port_name(port.name) and not (port.master == bridge and port.port == CONTAINER_PORT and port.is_up)


class Bridge:
    """``mac``: bridge_mac(peer). ``mtu``: that of the containers."""

    def __init__(
        self, netlink: Netlink, links: LinkCache, *, mac: bytes, mtu: int, namespace: int | None = None
    ) -> None:
        self._netlink = netlink
        self._links = links
        self._mac = mac
        self._mtu = mtu
        self._namespace = namespace

    async def ensure(self) -> Link:
        """Make or adopt it, bring it up, put container ports back. Raises OSError, or WeaveError when a device of this
        name is no bridge."""
        link = self._links.get(BRIDGE)
        if link is None:
            await self._netlink.add_bridge(BRIDGE, self._mac, self._mtu)
            link = self._found()
        if link.kind != "bridge":
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"{BRIDGE} must be a Linux bridge",
                    f"a device of kind {link.kind or 'unknown'} has that name",
                    f"ip link delete {BRIDGE}",
                )
            )
        if link.mac != self._mac:
            await self._netlink.set_mac(link.index, self._mac)
        if link.mtu != self._mtu:
            await self._netlink.set_mtu(link.index, self._mtu)
        if not link.is_up:
            sysctl.write(self._namespace, sysctl.quiet_port(BRIDGE))
            await self._netlink.set_up(link.index)
        for port in self._links.all():
            if is_damaged(port, link.index):
                await self._put_back(port, link)
        return self._found()

    async def _put_back(self, port: Link, bridge: Link) -> None:
        if port.master != bridge.index:
            await self._netlink.set_master(port.index, bridge.index)
        await self._netlink.set_port(port.index, CONTAINER_PORT)
        if not port.is_up:
            await self._netlink.set_up(port.index)

    def _found(self) -> Link:
        link = self._links.get(BRIDGE)
        if link is None:
            raise OSError(19, f"bridge {BRIDGE} vanished while it was set up")
        return link
