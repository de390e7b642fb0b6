"""The verbs of rtnetlink that this product uses, typed; the only place that knows pyroute2.

Each verb is one request, idempotent where that has a meaning, and raises OSError with the kernel's errno and a
sentence. Reading what exists is :mod:`weavenet.host.links` for links; the dumps here are for moments of (re)applying.

Facts about pyroute2 0.9.7 that shape this module. Its ``__init__`` imports the whole package whichever submodule is
named (about 0.14 s and 32 MB), so the package object is put in place without running it, and the one submodule that is
needed imports what it needs (0.09 s, 26 MB). That happens in a thread at the first :meth:`Netlink.open`, while the
daemon already does other work. ``link('get')`` leaks a message per call, so nothing is ever got, only dumped. Its own
``bind`` fails after a first request, and its ``netns=`` forks; both are avoided by handing it a bound socket.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from collections.abc import Awaitable
from typing import Any

import msgspec

from weavenet.core.types import mac_text
from weavenet.host import netns
from weavenet.host.links import NETLINK_ROUTE, PortFlags, scoped

NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
FLOOD_MAC = bytes(6)
RT_TABLE_MAIN = 254
ROUTE_PROTOCOL = 67
"""Tag of the rules and routes that we make outside containers (rtnetlink(7): values above 4 are for applications)."""
SOL_NETLINK, NETLINK_EXT_ACK = 270, 11


class Route(msgspec.Struct, frozen=True):
    """A route of the main table. ``destination`` is CIDR text."""

    destination: str
    index: int
    is_link_local: bool


class Forwarding(msgspec.Struct, frozen=True):
    """An entry of a forwarding table: of the VXLAN device (``host`` set, as :func:`scoped` writes it) or of the bridge
    (``master``)."""

    mac: bytes
    host: str
    master: bool


def _import_pyroute2() -> tuple[Any, Any]:
    """(``pyroute2.iproute.linux``, ``pyroute2.netlink.exceptions``), without the rest of the package."""
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        if spec is None:
            raise ModuleNotFoundError("pyroute2")
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)  # with its path, not executed
    linux, exceptions = map(importlib.import_module, ("pyroute2.iproute.linux", "pyroute2.netlink.exceptions"))
    return linux, exceptions


def _destination(host: str) -> dict[str, Any]:
    """``host`` as :func:`scoped` writes it."""
    address, _, index = host.partition("%")
    return {"dst": address, "NDA_IFINDEX": int(index)} if index.isdecimal() else {"dst": host}


def _mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Netlink:
    """One rtnetlink request socket in one namespace."""

    def __init__(self, route: Any, error: type[Exception]) -> None:
        self._route = route
        self._error = error

    @classmethod
    async def open(cls, namespace: int | None = None) -> Netlink:
        """``namespace``: file descriptor, None for our own."""
        module, errors = await asyncio.to_thread(_import_pyroute2)
        sock = netns.call(namespace, cls._make_socket)
        return cls(module.AsyncIPRoute(use_socket=sock), errors.NetlinkError)

    @staticmethod
    def _make_socket() -> socket.socket:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        sock.bind((0, 0))
        return sock

    def close(self) -> None:
        self._route.close()

    async def __aenter__(self) -> Netlink:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _do(self, what: str, request: Awaitable[Any], *, tolerate: tuple[int, ...] = ()) -> Any:
        try:
            return await request
        except self._error as error:
            code = int(getattr(error, "code", 0))
            if code in tolerate:
                return None
            raise OSError(code, f"{what}: {os.strerror(code)}") from error

    # --- links ---

    async def add_bridge(self, name: str, mac: bytes, mtu: int) -> None:
        """Made down. No VLANs (each would double every entry), no spanning tree, multicast flooded: without a querier
        snooping only loses group traffic."""
        request = self._route.link(
            "add",
            ifname=name,
            kind="bridge",
            address=mac_text(mac),
            mtu=mtu,
            br_vlan_default_pvid=0,
            br_mcast_snooping=0,
            br_stp_state=0,
            br_forward_delay=0,
        )
        await self._do(f"cannot make bridge {name}", request)

    async def add_vxlan(self, name: str, *, vni: int, port: int, mac: bytes, mtu: int, is_ipv6: bool) -> None:
        """Made down, without learning. The kernel serves one address family per device."""
        family: dict[str, str] = {"vxlan_local6": "::"} if is_ipv6 else {}
        request = self._route.link(
            "add",
            ifname=name,
            kind="vxlan",
            vxlan_id=vni,
            vxlan_port=port,
            vxlan_learning=0,
            address=mac_text(mac),
            mtu=mtu,
            **family,
        )
        await self._do(f"cannot make VXLAN device {name}", request)

    async def add_wireguard(self, name: str) -> None:
        """Made down. Raises OSError with EOPNOTSUPP where the kernel has no WireGuard."""
        await self._do(f"cannot make WireGuard device {name}", self._route.link("add", ifname=name, kind="wireguard"))

    async def add_veth(
        self,
        name: str,
        *,
        mtu: int,
        peer_name: str,
        peer_mac: bytes,
        peer_namespace: int,
        peer_unit_bytes: int | None = None,
    ) -> None:
        """A pair in one request: our end ``name``, the other one already inside ``peer_namespace``; both down.
        ``peer_unit_bytes``: how large a TCP unit the other one sends at most; None: what the kernel allows."""
        peer: dict[str, object] = {
            "ifname": peer_name,
            "address": mac_text(peer_mac),
            "mtu": mtu,
            "net_ns_fd": peer_namespace,
        }
        if peer_unit_bytes is not None:
            peer["gso_max_size"] = peer_unit_bytes
        request = self._route.link("add", ifname=name, kind="veth", mtu=mtu, peer=peer)
        await self._do(f"cannot make veth pair {name}", request)

    async def delete_link(self, index: int) -> None:
        """Does nothing when it is gone already."""
        await self._do(f"cannot delete link {index}", self._route.link("del", index=index), tolerate=(19,))

    async def set_up(self, index: int) -> None:
        await self._do(f"cannot bring link {index} up", self._route.link("set", index=index, state="up"))

    async def set_mac(self, index: int, mac: bytes) -> None:
        await self._do(f"cannot set MAC of link {index}", self._route.link("set", index=index, address=mac_text(mac)))

    async def set_mtu(self, index: int, mtu: int) -> None:
        await self._do(f"cannot set MTU {mtu} of link {index}", self._route.link("set", index=index, mtu=mtu))

    async def set_master(self, index: int, master: int) -> None:
        """``master`` 0 takes the link out of its bridge."""
        await self._do(
            f"cannot make link {index} a port of {master}", self._route.link("set", index=index, master=master)
        )

    async def set_port(self, index: int, flags: PortFlags) -> None:
        request = self._route.link(
            "set",
            index=index,
            kind="bridge_slave",
            mode=int(flags.hairpin),
            learning=int(flags.learning),
            neigh_suppress=int(flags.neigh_suppress),
            isolated=int(flags.isolated),
        )
        await self._do(f"cannot set port flags of link {index}", request)

    # --- addresses and routes ---

    async def addresses(self, index: int | None = None) -> list[str]:
        """``ip/prefix`` of one link, or of all."""
        wanted = {} if index is None else {"index": index}
        found = []
        async for message in await self._do("cannot list addresses", self._route.addr("dump", **wanted)):
            text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            if text:
                found.append(f"{text}/{message['prefixlen']}")
        return found

    async def add_address(self, index: int, address: str) -> None:
        """``address``: ``ip/prefix``. IPv6 without duplicate detection: uniqueness is IPAM's."""
        ip, _, prefix = address.partition("/")
        extra: dict[str, Any] = {"flags": 0x02} if ":" in ip else {}  # IFA_F_NODAD
        request = self._route.addr("replace", index=index, address=ip, prefixlen=int(prefix), **extra)
        await self._do(f"cannot add {address}", request)

    async def delete_address(self, index: int, address: str) -> None:
        """Does nothing when it is not there."""
        ip, _, prefix = address.partition("/")
        request = self._route.addr("del", index=index, address=ip, prefixlen=int(prefix))
        await self._do(f"cannot remove {address}", request, tolerate=(99, 19))

    async def replace_route(self, index: int, destination: str, source: str = "") -> None:
        """An on-link route of the main table. ``source``: address to send from."""
        extra = {"prefsrc": source} if source else {}
        request = self._route.route("replace", dst=destination, oif=index, scope="link", **extra)
        await self._do(f"cannot set route {destination}", request)

    async def delete_route(self, index: int, destination: str) -> None:
        """Does nothing when it is not there."""
        request = self._route.route("del", dst=destination, oif=index, scope="link")
        await self._do(f"cannot remove route {destination}", request, tolerate=(3, 19))

    async def answer_through(self, index: int, address: str, table: int) -> None:
        """What this host sends from ``address`` leaves through link ``index`` to neighbours, whatever the main table
        says: a rule of priority ``table`` and a default route in that table."""
        route = self._route.route(
            "replace", dst="0.0.0.0/0", oif=index, scope="link", table=table, proto=ROUTE_PROTOCOL
        )
        await self._do(f"cannot set the default route of table {table}", route)
        rule = self._route.rule("add", src=address, src_len=32, table=table, priority=table, protocol=ROUTE_PROTOCOL)
        await self._do(f"cannot add the rule for {address}", rule, tolerate=(17,))

    async def no_longer_answer_through(self, address: str, table: int) -> None:
        """Undo :meth:`answer_through`; does nothing when it is not there. The route goes with its link."""
        request = self._route.rule("del", src=address, src_len=32, table=table, priority=table)
        await self._do(f"cannot remove the rule for {address}", request, tolerate=(2,))

    async def routes(self) -> list[Route]:
        """Unicast routes of the main table, defaults left out."""
        found = []
        for family, default in ((socket.AF_INET, ""), (socket.AF_INET6, "")):
            async for message in await self._do("cannot list routes", self._route.route("dump", family=family)):
                destination = message.get("RTA_DST") or default
                table = message.get("RTA_TABLE") or message["table"]
                if destination and table == RT_TABLE_MAIN and message["type"] == 1:
                    local = message.get("RTA_GATEWAY") is None
                    found.append(Route(f"{destination}/{message['dst_len']}", message.get("RTA_OIF") or 0, local))
        return found

    # --- forwarding entries and neighbours ---

    async def forwarding(self, index: int) -> list[Forwarding]:
        """Device entries with a destination, and static bridge entries, of port ``index``."""
        found = []
        # Not filtered by the library, which would take the attribute NDA_IFINDEX for the field ifindex.
        async for message in await self._do("cannot list forwarding entries", self._route.fdb("dump")):
            mac, via = message.get("NDA_LLADDR"), message.get("NDA_IFINDEX") or 0
            if message["ifindex"] != index or not mac:
                continue
            if message.get("NDA_MASTER"):
                if message["state"] & NUD_NOARP:
                    found.append(Forwarding(_mac_bytes(mac), "", True))
            elif message.get("NDA_DST"):
                found.append(Forwarding(_mac_bytes(mac), scoped(message.get("NDA_DST"), via), False))
        return found

    async def append_flood(self, index: int, host: str) -> None:
        request = self._route.fdb(
            "append",
            ifindex=index,
            lladdr=mac_text(FLOOD_MAC),
            flags=NTF_SELF,
            state=NUD_NOARP | NUD_PERMANENT,
            **_destination(host),
        )
        await self._do(f"cannot flood to {host}", request, tolerate=(17,))

    async def replace_device_entry(self, index: int, mac: bytes, host: str) -> None:
        """Point ``mac`` at ``host`` in one step, without a moment of having neither the old nor the new."""
        request = self._route.fdb(
            "replace",
            ifindex=index,
            lladdr=mac_text(mac),
            flags=NTF_SELF,
            state=NUD_NOARP | NUD_PERMANENT,
            **_destination(host),
        )
        await self._do(f"cannot forward {mac_text(mac)} to {host}", request)

    async def delete_device_entry(self, index: int, mac: bytes, host: str) -> None:
        request = self._route.fdb(
            "del", ifindex=index, lladdr=mac_text(mac), flags=NTF_SELF, state=NUD_NOARP, **_destination(host)
        )
        await self._do(f"cannot stop forwarding {mac_text(mac)}", request, tolerate=(2, 19))

    async def replace_bridge_entry(self, index: int, mac: bytes) -> None:
        request = self._route.fdb("replace", ifindex=index, lladdr=mac_text(mac), flags=NTF_MASTER, state=NUD_NOARP)
        await self._do(f"cannot pin {mac_text(mac)}", request)

    async def delete_bridge_entry(self, index: int, mac: bytes) -> None:
        request = self._route.fdb("del", ifindex=index, lladdr=mac_text(mac), flags=NTF_MASTER, state=NUD_NOARP)
        await self._do(f"cannot unpin {mac_text(mac)}", request, tolerate=(2, 19))

    async def neighbours(self, index: int) -> dict[str, bytes]:
        """Permanent neighbours of ``index``."""
        found = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            dump = self._route.neigh("dump", family=family, ifindex=index)
            async for message in await self._do("cannot list neighbours", dump):
                mac, address = message.get("NDA_LLADDR"), message.get("NDA_DST")
                if message["ifindex"] == index and message["state"] & NUD_PERMANENT and mac and address:
                    found[address] = _mac_bytes(mac)
        return found

    async def replace_neighbour(self, index: int, address: str, mac: bytes) -> None:
        request = self._route.neigh("replace", ifindex=index, dst=address, lladdr=mac_text(mac), state=NUD_PERMANENT)
        await self._do(f"cannot set neighbour {address}", request)

    async def delete_neighbour(self, index: int, address: str) -> None:
        request = self._route.neigh("del", ifindex=index, dst=address)
        await self._do(f"cannot remove neighbour {address}", request, tolerate=(2, 19))
