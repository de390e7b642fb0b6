"""IP addresses as text, and as the kernel takes them; of a link-local one (RFC 4007) the device belongs to it."""

from __future__ import annotations

import socket

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def socket_address(host: str, port: int) -> SocketAddress:
    """``host``: as in resolv.conf(5), ``fe80::1%eth0`` or ``fe80::1%2`` included, whose device Python leaves out of a
    pair. Raises OSError when there is no such device."""
    if ":" not in host:
        return host, port
    address, _, device = host.partition("%")
    index = int(device) if device.isdigit() else socket.if_nametoindex(device) if device else 0
    return address, port, 0, index


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_here(host: str) -> bool:
    """Whether a device of this host has the address."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(socket_address(host, 0))
        except OSError:
            return False
    return True


def with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
