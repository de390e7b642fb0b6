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
    """Equal for packets that may be put together; empty for one that may not with any."""
    if (
        len(frame) <= HEADERS_BYTES
        or frame[0] != FLAG_PARTIAL_CHECKSUM
        or frame[:2] != _PLAIN_UDP[:2]
        or frame[6:VNET_BYTES] != _PLAIN_UDP[6:]
        or frame[_IP_AT - 2 : _IP_AT + 1].tobytes() != b"\x08\x00\x45"
        or frame[_IP_AT + 9] != 17
        or frame[_IP_AT + 6] & 0x3F
        or frame[_IP_AT + 7]
        or _HALF.unpack_from(frame, _UDP_AT + 4)[0] != len(frame) - _UDP_AT
    ):
        return b""
    before, between, after = (
        frame[VNET_BYTES : _IP_AT + 4],
        frame[_IP_AT + 6 : _IP_AT + 10],
        frame[_IP_AT + 12 : HEADERS_BYTES],
    )
    return before.tobytes() + between.tobytes() + after.tobytes()


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
