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
"""Ethernet 14 + VLAN 4 + IPv4 60 + TCP 60, or IPv6 with some extension headers."""
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_ETHERNET, _VLAN = 14, 4
_HALF = struct.Struct("!H")
_WORD = struct.Struct("!I")

Octets = bytes | bytearray | memoryview


def header_end(data: Octets, length: int) -> int:
    """Where the payload of a TCP unit begins, counted with its vnet header; 0 when ``data[:length]`` is no such unit
    or its headers do not fit together."""
    if length < VNET_BYTES + _ETHERNET:
        return 0
    flags, kind, _, segment, start, offset = VNET.unpack_from(data)
    if not flags & FLAG_PARTIAL_CHECKSUM or offset != 16 or not segment:
        return 0
    ip = _network_offset(data, length, kind)
    tcp = VNET_BYTES + start
    if not ip or tcp + 20 > length or tcp < ip + _ip_header_bytes(data[ip]):
        return 0
    end = tcp + (data[tcp + 12] >> 4) * 4
    return end if tcp + 20 <= end <= min(length, VNET_BYTES + HEADERS_MAX) else 0


def _ip_header_bytes(first: int) -> int:
    """By the first byte of the IP header; of IPv6 without extension headers. An IPv4 header that claims less than its
    fixed 20 bytes counts as longer than any unit's headers."""
    if first >> 4 != 4:
        return 40
    return (first & 15) * 4 if first & 15 >= 5 else HEADERS_MAX


def _network_offset(data: Octets, length: int, kind: int) -> int:
    """Of the IP header, when Ethernet type, IP version and GSO type agree and its first byte is there, else 0."""
    at = VNET_BYTES + 12
    if data[at : at + 2] == b"\x81\x00":
        at += _VLAN
    if at + 2 >= length:
        return 0
    ether, first = bytes(data[at : at + 2]), data[at + 2]
    version = {GSO_TCPV4: 4, GSO_TCPV6: 6}.get(kind & ~GSO_ECN, 0)
    is_match = (version == 4 and ether == b"\x08\x00") or (version == 6 and ether == b"\x86\xdd")
    return at + 2 if is_match and first >> 4 == version else 0


def valid_vnet(data: Octets, length: int) -> bool:
    """Whether the kernel may be given this: no offload, a partial checksum, or TCP over IPv4 or IPv6 with one."""
    if length < VNET_BYTES + _ETHERNET:
        return False
    flags, kind, header, segment, start, offset = VNET.unpack_from(data)
    if flags & ~FLAG_PARTIAL_CHECKSUM:
        return False
    if flags and start + offset + 2 > length - VNET_BYTES:
        return False
    if kind == GSO_NONE:
        return bool(segment == 0 or not flags or header <= length - VNET_BYTES)
    return header_end(data, length) != 0


def part(headers: Octets, *, skipped: int, payload_bytes: int, is_end: bool) -> bytes:
    """vnet header and headers for a part of a unit: ``payload_bytes`` of payload after the first ``skipped``
    segments; ``is_end``: nothing of the unit follows. ``headers``: those of the unit, checked by
    :func:`header_end`."""
    made = bytearray(headers)
    flags, kind, header, segment, start, offset = VNET.unpack_from(made)
    tcp = VNET_BYTES + start
    ip = _network_offset(made, len(made), kind)
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
