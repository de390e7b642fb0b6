"""What the kernel has: a cache of links and of their bridge-port flags, fed by rtnetlink events, never by
polling.

One non-blocking NETLINK_ROUTE socket is joined to the link and neighbour groups. The first dump is requested on that
same socket, so that dump and events form one ordered stream. Events are read with a few fixed-offset reads
(rtnetlink(7), linux/if_link.h, linux/neighbour.h) instead of through the netlink library, because each of our own
thousands of forwarding entries comes back as an event, and decoding one there costs as much as making it.

Invariant: a change that we made and the kernel acknowledged is in the socket's buffer before the acknowledgement, so
:meth:`LinkCache.drain` right after a request is up to date. When the buffer overflows (ENOBUFS) the cache dumps again
and tells its listeners that anything may have changed; not before the buffer is empty, since until then the kernel
goes on dropping events (netlink(7); af_netlink.c, ``NETLINK_S_CONGESTED``), and refuses a dump while one is on its
way. This module changes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterator

import msgspec

from weavenet.host import netns

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_TC = 1, 3, 4
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_DELNEIGH = 29
RTM_DELQDISC, RTM_DELTFILTER = 37, 45
AF_BRIDGE = 7
IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_PROTINFO, IFLA_LINKINFO = 12, 18
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA = 1, 2, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_NEIGH_SUPPRESS, IFLA_BRPORT_ISOLATED = 4, 8, 32, 33
IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT = 1, 7, 15
NDA_DST, NDA_LLADDR, NDA_IFINDEX, NDA_MASTER = 1, 2, 8, 9
RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
DUMP_TIMEOUT_S = 5.0
DUMP_AGAIN_S = 0.1
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_TRAFFIC_CONTROL = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_NOTHING = memoryview(b"")


class PortFlags(msgspec.Struct, frozen=True):
    """Flags of a bridge port."""

    hairpin: bool
    learning: bool
    neigh_suppress: bool
    isolated: bool


class VxlanSettings(msgspec.Struct, frozen=True):
    vni: int
    port: int
    learning: bool


class Link(msgspec.Struct, frozen=True):
    """``peer_index``: of a veth, the index of the other end in its own namespace."""

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    is_up: bool
    master: int
    peer_index: int
    port: PortFlags | None = None
    vxlan: VxlanSettings | None = None


class GoneNeighbour(msgspec.Struct, frozen=True):
    """A neighbour or forwarding entry that was deleted. ``master``: it was the bridge's entry, not the device's.
    ``address``: of a forwarding entry, as :func:`scoped` writes it."""

    index: int
    is_forwarding: bool
    master: bool
    mac: bytes
    address: str


LinkListener = Callable[[Link, bool], None]
"""Called with (link, gone)."""


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each rtattr in ``data``; flag bits of the type are cut off."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(type, sequence number, payload) of each netlink message in one datagram."""
    view = memoryview(data)
    offset = 0
    while offset + 16 <= len(view):
        length, kind, _, sequence, _ = _HEADER.unpack_from(view, offset)
        if length < 16 or offset + length > len(view):
            return
        yield kind, sequence, view[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _text(value: memoryview | None) -> str:
    return bytes(value or b"").rstrip(b"\0").decode(errors="replace")


def _number(value: memoryview | None) -> int:
    return int.from_bytes(value or b"", sys.byteorder)


def scoped(address: str, via: int) -> str:
    """``address%via``: to be sent out of the link with that index, whatever the routes say; 0: as they say."""
    return f"{address}%{via}" if via else address


def parse_port(data: memoryview) -> PortFlags:
    found = {kind: bool(payload[0]) for kind, payload in attributes(data) if len(payload) == 1}
    return PortFlags(
        hairpin=found.get(IFLA_BRPORT_MODE, False),
        learning=found.get(IFLA_BRPORT_LEARNING, True),
        neigh_suppress=found.get(IFLA_BRPORT_NEIGH_SUPPRESS, False),
        isolated=found.get(IFLA_BRPORT_ISOLATED, False),
    )


def _parse_vxlan(data: memoryview) -> VxlanSettings:
    vni, port, learning = 0, 0, True
    for kind, payload in attributes(data):
        if kind == IFLA_VXLAN_ID:
            vni = _number(payload)
        elif kind == IFLA_VXLAN_PORT:
            port = int.from_bytes(payload, "big")
        elif kind == IFLA_VXLAN_LEARNING:
            learning = bool(payload[0])
    return VxlanSettings(vni, port, learning)


def parse_link(payload: memoryview) -> Link:
    """A full (AF_UNSPEC) RTM_NEWLINK or RTM_DELLINK body."""
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = dict(attributes(payload[_LINK.size :]))
    info = dict(attributes(found.get(IFLA_LINKINFO, _NOTHING)))
    kind = _text(info.get(IFLA_INFO_KIND))
    port = parse_port(info[IFLA_INFO_SLAVE_DATA]) if IFLA_MASTER in found and IFLA_INFO_SLAVE_DATA in info else None
    vxlan = _parse_vxlan(info[IFLA_INFO_DATA]) if kind == "vxlan" and IFLA_INFO_DATA in info else None
    return Link(
        index=index,
        name=_text(found.get(IFLA_IFNAME)),
        kind=kind,
        mac=bytes(found.get(IFLA_ADDRESS, b"")),
        mtu=_number(found.get(IFLA_MTU)),
        is_up=bool(flags & IFF_UP),
        master=_number(found.get(IFLA_MASTER)),
        peer_index=_number(found.get(IFLA_LINK)),
        port=port,
        vxlan=vxlan,
    )


def parse_neighbour(payload: memoryview) -> GoneNeighbour:
    family, index, _, _, _ = _NEIGHBOUR.unpack_from(payload)
    found = dict(attributes(payload[_NEIGHBOUR.size :]))
    where = bytes(found.get(NDA_DST, b""))
    address = str(ipaddress.ip_address(where)) if len(where) in (4, 16) else ""
    is_forwarding = family == AF_BRIDGE
    if is_forwarding:
        address = scoped(address, _number(found.get(NDA_IFINDEX)))
    return GoneNeighbour(index, is_forwarding, NDA_MASTER in found, bytes(found.get(NDA_LLADDR, b"")), address)


class LinkCache:
    """Links of one namespace. Listeners are called from :meth:`drain` (so possibly inside a request of ours): they
    take a note and return."""

    def __init__(self, namespace: int | None = None) -> None:
        self._namespace = namespace
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_index: dict[int, Link] = {}
        self._dump_sequence = 0
        self._dumped: set[int] | None = None
        """Seen since the dump that is under way was asked for; None: none is."""
        self._is_overrun = False
        self._is_outdated = False
        self._complete = asyncio.Event()
        self.on_link: list[LinkListener] = []
        self.on_neighbour_gone: list[Callable[[GoneNeighbour], None]] = []
        self.on_filter_gone: list[Callable[[int], None]] = []
        """Called with the index of a link that lost a filter or queueing discipline."""
        self.on_overflow: list[Callable[[], None]] = []

    async def open(self) -> None:
        """Join the groups, dump, and return when the dump is in. Raises OSError or TimeoutError."""
        self._socket = netns.call(self._namespace, self._make_socket)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self.drain)
        try:
            self._request_dump()
            await asyncio.wait_for(self._complete.wait(), DUMP_TIMEOUT_S)
        except BaseException:
            self.close()  # it would keep the namespace alive
            raise

    @staticmethod
    def _make_socket() -> socket.socket:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        try:
            sock.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER_BYTES)  # SO_RCVBUFFORCE
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((0, 0))
        for group in (RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_TC):
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        return sock

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = None

    def _request_dump(self) -> None:
        if self._socket is None:
            return
        self._dump_sequence += 1
        self._dumped = set()
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        header = _HEADER.pack(16 + len(body), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, self._dump_sequence, 0)
        self._socket.send(header + body)

    def _dump_again(self) -> None:
        """The kernel refuses a second dump on a socket until the first was read to its end."""
        if self._dumped is None:
            self._request_dump()
        else:
            self._is_outdated = True

    def _dump_ended(self, *, is_whole: bool) -> None:
        seen, self._dumped = self._dumped, None
        if seen is None:
            return
        is_whole, self._is_outdated = is_whole and not self._is_outdated, False
        if is_whole:
            for index in self._by_index.keys() - seen:
                self._forget(index)
            self._complete.set()
        elif self._loop is not None:
            self._loop.call_later(DUMP_AGAIN_S, self._dump_again)

    def drain(self) -> None:
        """Take in every event that has arrived."""
        while self._socket is not None:
            try:
                data = self._socket.recv(256 * 1024)
            except BlockingIOError:
                if not self._is_overrun:
                    return
                self._is_overrun = False
                self._dump_again()
                for listener in tuple(self.on_overflow):
                    listener()
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._is_overrun = True
                continue
            for kind, sequence, payload in messages(data):
                self._take(kind, sequence, payload)

    def _take(self, kind: int, sequence: int, payload: memoryview) -> None:
        if kind == RTM_NEWLINK and len(payload) >= _LINK.size:
            self._new_link(payload)
        elif kind == RTM_DELLINK and len(payload) >= _LINK.size:
            if payload[0] != AF_BRIDGE:  # there it says "left the bridge"; a full message about that follows
                self._forget(_LINK.unpack_from(payload)[2])
        elif kind == RTM_DELNEIGH and len(payload) >= _NEIGHBOUR.size:
            if self.on_neighbour_gone:
                gone = parse_neighbour(payload)
                for listener in tuple(self.on_neighbour_gone):
                    listener(gone)
        elif kind in (RTM_DELQDISC, RTM_DELTFILTER) and len(payload) >= _TRAFFIC_CONTROL.size:
            for listen in tuple(self.on_filter_gone):
                listen(_TRAFFIC_CONTROL.unpack_from(payload)[1])
        elif kind in (NLMSG_DONE, NLMSG_ERROR) and sequence == self._dump_sequence:
            self._dump_ended(is_whole=kind == NLMSG_DONE)

    def _new_link(self, payload: memoryview) -> None:
        family, _, index, _, _ = _LINK.unpack_from(payload)
        if family == AF_BRIDGE:
            known = self._by_index.get(index)
            flags = dict(attributes(payload[_LINK.size :])).get(IFLA_PROTINFO)
            if known is None or flags is None or not known.master:
                return
            link = msgspec.structs.replace(known, port=parse_port(flags))
        else:
            link = parse_link(payload)
            if self._dumped is not None:
                self._dumped.add(index)
        if self._by_index.get(index) != link:
            self._by_index[index] = link
            for listener in tuple(self.on_link):
                listener(link, False)

    def _forget(self, index: int) -> None:
        link = self._by_index.pop(index, None)
        if link is not None:
            for listener in tuple(self.on_link):
                listener(link, True)

    def get(self, name: str) -> Link | None:
        self.drain()
        for link in self._by_index.values():
            if link.name == name:
                return link
        return None

    def by_index(self, index: int) -> Link | None:
        return self._by_index.get(index)

    def all(self) -> tuple[Link, ...]:
        self.drain()
        return tuple(self._by_index.values())
