"""Whether this host would let in a packet: asked of the kernel itself, which applies its reverse-path filter.

An IPv4 route request that names an incoming device goes the way that a received packet goes (``inet_rtm_getroute``,
``fib_validate_source``; RFC 3704), so the answer counts the settings of the device and of all devices, every rule and
every route, without knowing any of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct

from weavenet.host.rtnetlink import attribute, message, open_socket, request

RTM_GETROUTE = 26
RTA_DST, RTA_SRC, RTA_IIF = 1, 2, 3
ADDRESS_BITS = 32
UNROUTED = "192.0.2.1"
"""An address that no host has a route of its own to (RFC 5737), as with those of containers."""
_ROUTE = struct.Struct("=BBBBBBBBI")


def is_let_in(namespace: int | None, index: int, source: str, destination: str) -> bool:
    """A packet between these IPv4 addresses that comes in on device ``index``. Raises OSError only when there is no
    netlink socket."""
    body = _ROUTE.pack(socket.AF_INET, ADDRESS_BITS, ADDRESS_BITS, 0, 0, 0, 0, 0, 0)
    body += attribute(RTA_DST, ipaddress.IPv4Address(destination).packed)
    body += attribute(RTA_SRC, ipaddress.IPv4Address(source).packed)
    body += attribute(RTA_IIF, struct.pack("=i", index))
    with open_socket(namespace) as sock, contextlib.suppress(OSError):
        request(sock, message(RTM_GETROUTE, 0, body), f"a packet from {source} is refused")
        return True
    return False
