"""Telling neighbours where an address lives now: gratuitous ARP (RFC 5227, announcement) and unsolicited neighbour
advertisements with the override flag (RFC 4861, 7.2.6). Builds frames and sends them on a device; keeps no state."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable

from weavenet.host import netns

BROADCAST = b"\xff" * 6
ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0806, 0x86DD
ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
ALL_NODES_MAC = bytes.fromhex("333300000001")
NEXT_HEADER_ICMPV6, ADVERTISEMENT, OVERRIDE = 58, 136, 0x2000_0000


def frame(mac: bytes, address: str) -> bytes:
    """The announcement that ``address`` (without prefix) is at ``mac``."""
    parsed = ipaddress.ip_address(address)
    return _arp(mac, parsed.packed) if parsed.version == 4 else _advertisement(mac, parsed.packed)


def _arp(mac: bytes, ip: bytes) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + ip + bytes(6) + ip
    return BROADCAST + mac + ETHERTYPE_ARP.to_bytes(2, "big") + body


def _advertisement(mac: bytes, ip: bytes) -> bytes:
    target_option = struct.pack("!BB", 2, 1) + mac
    body = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, OVERRIDE) + ip + target_option
    pseudo = ip + ALL_NODES + struct.pack("!IxxxB", len(body), NEXT_HEADER_ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 0x6000_0000, len(body), NEXT_HEADER_ICMPV6, 255) + ip + ALL_NODES
    return ALL_NODES_MAC + mac + ETHERTYPE_IPV6.to_bytes(2, "big") + header + body


def _checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send(namespace: int | None, device: str, announcements: Iterable[tuple[bytes, str]]) -> None:
    """Send one frame per (mac, address) on ``device``. Raises OSError."""
    frames = [frame(mac, address) for mac, address in announcements]
    if not frames:
        return

    def inside() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0) as sock:
            sock.bind((device, 0))
            for data in frames:
                sock.send(data)

    netns.call(namespace, inside)
