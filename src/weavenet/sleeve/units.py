"""Units: TCP segments of one flow under one set of headers, as the kernel hands them over (GSO) and takes them.

Pure functions on vnet header + frame. A unit's partial checksum field holds the folded sum of the pseudo header,
which counts the length of the whole unit; whoever delivers part of a unit corrects lengths, checksums, sequence
number, IP identification and the flags that belong to its first or last segment only (RFC 9293, RFC 3168; Linux
``tcp_gso_segment`` is the model).
"""

from __future__ import annotations

import struct

from weavenet.sleeve.tap import (
    FLAG_PARTIAL_CHECKSUM,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    VNET,
    VNET_BYTES,
)

HEADERS_MAX = 256
"""Ethernet 14 + VLAN 2 * 4 + IPv4 60 + TCP 60, or IPv6 with some extension headers."""
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_ETHERNET, _VLAN, _VLANS_MAX = 14, 4, 2
_IP_AT = VNET_BYTES + _ETHERNET
_FRONT = struct.Struct("<BBHHHH12xHB")
"""vnet header, the two MACs, Ethernet type, first byte of the IP header."""
_IPV4_TAG, _IPV6_TAG = 0x0008, 0xDD86
_VLAN_TAGS = frozenset((0x0081, 0xA888))
"""Ethernet types as :data:`_FRONT` reads them; of VLANs: IEEE 802.1Q and 802.1ad."""
_IP_HEADER_BYTES = {(GSO_TCPV4, _IPV4_TAG, 0x40 + words): words * 4 for words in range(5, 16)} | {
    (GSO_TCPV6, _IPV6_TAG, 0x60 + traffic): 40 for traffic in range(16)
}
"""By GSO type, Ethernet type and first byte, where these agree; of IPv6 without extension headers."""
_HALF = struct.Struct("!H")
_WORD = struct.Struct("!I")

Octets = bytes | bytearray | memoryview


def header_end(data: Octets, length: int) -> int:
    """Where the payload of a TCP unit begins, counted with its vnet header; 0 when ``data[:length]`` is no such unit
    or its headers do not fit together."""
    if length < _FRONT.size:
        return 0
    flags, kind, _, segment, start, offset, ether, first = _FRONT.unpack_from(data)
    if not flags & FLAG_PARTIAL_CHECKSUM or offset != 16 or not segment:
        return 0
    ip = _IP_AT
    if ether in _VLAN_TAGS:
        ip = _network_offset(data, length)
        if length <= ip:
            return 0
        ether, first = data[ip - 2] | data[ip - 1] << 8, data[ip]
    ip_bytes = _IP_HEADER_BYTES.get((kind & ~GSO_ECN, ether, first))
    tcp = VNET_BYTES + start
    if ip_bytes is None or tcp + 20 > length or tcp < ip + ip_bytes:
        return 0
    end: int = tcp + (data[tcp + 12] >> 4) * 4
    return end if tcp + 20 <= end <= min(length, VNET_BYTES + HEADERS_MAX) else 0


def _network_offset(data: Octets, length: int) -> int:
    """Behind Ethernet header and tags, of which there may be two."""
    ip = _IP_AT
    while ip < _IP_AT + _VLANS_MAX * _VLAN and ip <= length and data[ip - 2] | data[ip - 1] << 8 in _VLAN_TAGS:
        ip += _VLAN
    return ip


def valid_vnet(data: Octets, length: int) -> bool:
    """Whether the kernel may be given this: no offload, a partial checksum, or TCP over IPv4 or IPv6 with one."""
    if length < VNET_BYTES + _ETHERNET:
        return False
    flags, kind, header, segment, start, offset = VNET.unpack_from(data)
    if flags & ~FLAG_PARTIAL_CHECKSUM:
        return False
    if kind != GSO_NONE:
        return header_end(data, length) != 0
    if flags and start + offset + 2 > length - VNET_BYTES:
        return False
    return bool(segment == 0 or not flags or header <= length - VNET_BYTES)


def part(headers: Octets, *, skipped: int, payload_bytes: int, is_end: bool) -> bytes:
    """vnet header and headers for a part of a unit: ``payload_bytes`` of payload after the first ``skipped``
    segments; ``is_end``: nothing of the unit follows. ``headers``: those of the unit, checked by
    :func:`header_end`."""
    made = bytearray(headers)
    flags, kind, header, segment, start, offset = VNET.unpack_from(made)
    tcp = VNET_BYTES + start
    ip = _network_offset(made, len(made))
    is_single = payload_bytes <= segment
    VNET.pack_into(made, 0, flags, GSO_NONE if is_single else kind, header, 0 if is_single else segment, start, offset)
    if kind & ~GSO_ECN == GSO_TCPV4:
        old = _HALF.unpack_from(made, ip + 2)[0]
        new = len(made) - ip + payload_bytes
        _HALF.pack_into(made, ip + 2, new)
        identification = (_HALF.unpack_from(made, ip + 4)[0] + skipped) & 0xFFFF
        _HALF.pack_into(made, ip + 4, identification)
        made[ip + 10 : ip + 12] = b"\0\0"
        end = ip + (made[ip] & 15) * 4
        _HALF.pack_into(made, ip + 10, ~internet_sum(made[ip:end]) & 0xFFFF)
    else:
        old = _HALF.unpack_from(made, ip + 4)[0]
        new = len(made) - ip - 40 + payload_bytes
        _HALF.pack_into(made, ip + 4, new)
    sequence = (_WORD.unpack_from(made, tcp + 4)[0] + skipped * segment) & 0xFFFF_FFFF
    _WORD.pack_into(made, tcp + 4, sequence)
    if not is_end:
        made[tcp + 13] &= ~(_FIN | _PSH)
    if skipped:
        made[tcp + 13] &= ~_CWR
    checksum = _HALF.unpack_from(made, tcp + 16)[0] + new - old
    _HALF.pack_into(made, tcp + 16, checksum % 0xFFFF if checksum % 0xFFFF else 0xFFFF)
    return bytes(made)


def internet_sum(data: Octets) -> int:
    """Ones' complement sum (RFC 1071), folded, of any number of bytes."""
    even = bytes(data) + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
