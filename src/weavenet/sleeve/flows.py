"""Small UDP packets of one flow, put together so that the kernel takes many in one call (UDP segmentation offload).

Pure functions on vnet header + frame. Only packets that differ in nothing but payload, IP identification and IP
checksum are put together: IPv4 without options or fragments, UDP with a partial checksum, equal in size. The kernel
cuts them apart again before a socket sees them (Linux 6.2 and newer accept it; who gets EINVAL writes them one by one).
"""

from __future__ import annotations

import struct

from weavenet.sleeve.tap import FLAG_PARTIAL_CHECKSUM, GSO_NONE, GSO_UDP, VNET, VNET_BYTES
from weavenet.sleeve.units import internet_sum

PACKETS_MAX = 64
"""UDP_MAX_SEGMENTS of older kernels."""
BYTES_MAX = 60_000
_ETHERNET, _IP, _UDP = 14, 20, 8
HEADERS_BYTES = VNET_BYTES + _ETHERNET + _IP + _UDP
_IP_AT = VNET_BYTES + _ETHERNET
_UDP_AT = _IP_AT + _IP
_HALF = struct.Struct("!H")
_PLAIN_UDP = VNET.pack(FLAG_PARTIAL_CHECKSUM, GSO_NONE, 0, 0, _ETHERNET + _IP, 6)


def flow_of(frame: memoryview) -> bytes:
    """The headers of a packet that may be put together with others, with vnet header; empty for one that may not."""
    if len(frame) <= HEADERS_BYTES:
        return b""
    head = frame[:HEADERS_BYTES].tobytes()
    if (
        head[:2] != _PLAIN_UDP[:2]
        or head[6:VNET_BYTES] != _PLAIN_UDP[6:]
        or head[_IP_AT - 2 : _IP_AT + 1] != b"\x08\x00\x45"
        or head[_IP_AT + 9] != 17
        or head[_IP_AT + 6] & 0x3F
        or head[_IP_AT + 7]
        or head[_UDP_AT + 4] << 8 | head[_UDP_AT + 5] != len(frame) - _UDP_AT
    ):
        return b""
    return head


def joins(frame: memoryview, flow: bytes) -> bool:
    """Whether a packet may be put together with one whose :func:`flow_of` is ``flow``: its headers are the same, but
    for IP identification and IP checksum, which also makes it as long."""
    head = frame[:HEADERS_BYTES].tobytes()
    return (
        head[_IP_AT + 12 :] == flow[_IP_AT + 12 :]
        and head[: _IP_AT + 4] == flow[: _IP_AT + 4]
        and head[_IP_AT + 6 : _IP_AT + 10] == flow[_IP_AT + 6 : _IP_AT + 10]
        and len(frame) == _UDP_AT + (flow[_UDP_AT + 4] << 8 | flow[_UDP_AT + 5])
    )


def headers_of(first: memoryview, payload_bytes: int, segment_bytes: int) -> bytes:
    """vnet header and headers for packets of one flow that begin with ``first``: together ``payload_bytes``, each
    ``segment_bytes`` of payload."""
    made = bytearray(first[:HEADERS_BYTES])
    VNET.pack_into(
        made, 0, FLAG_PARTIAL_CHECKSUM, GSO_UDP, HEADERS_BYTES - VNET_BYTES, segment_bytes, _ETHERNET + _IP, 6
    )
    _HALF.pack_into(made, _IP_AT + 2, _IP + _UDP + payload_bytes)
    made[_IP_AT + 10 : _IP_AT + 12] = b"\0\0"
    _HALF.pack_into(made, _IP_AT + 10, ~internet_sum(made[_IP_AT:_UDP_AT]) & 0xFFFF)
    _HALF.pack_into(made, _UDP_AT + 4, _UDP + payload_bytes)
    checksum = (_HALF.unpack_from(made, _UDP_AT + 6)[0] + payload_bytes - segment_bytes) % 0xFFFF
    _HALF.pack_into(made, _UDP_AT + 6, checksum or 0xFFFF)
    return bytes(made)
