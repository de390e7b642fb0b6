"""Messages between workers, the plaintext of ``CONTROL`` datagrams.

Layout, big-endian: type (1 byte; 1 probe, 2 answer, 3 report), nonce (8), received (8), lost (8), observed address
(16; IPv4 as mapped) and port (2), then zeros up to the size that a probe is to find out about. ``received`` and
``lost`` count the datagrams that its sender had from its receiver. An answer carries the probe's nonce and the
address from which the probe came, zeros when it was relayed; a report is sent when something was lost, without being
asked.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

_MESSAGE = struct.Struct("!BQQQ16sH")
MESSAGE_BYTES = _MESSAGE.size


class Type(IntEnum):
    """See the module docstring."""

    PROBE = 1
    ANSWER = 2
    REPORT = 3


class Control(NamedTuple):
    """``address``: 16 bytes."""

    type: Type
    nonce: int
    received: int
    lost: int
    address: bytes = bytes(16)
    port: int = 0


def encode(message: Control) -> bytes:
    """Without padding."""
    return _MESSAGE.pack(*message)


def decode(plaintext: bytes | memoryview) -> Control | None:
    """None for another type or too few bytes; padding is ignored."""
    if len(plaintext) < MESSAGE_BYTES:
        return None
    kind, nonce, received, lost, address, port = _MESSAGE.unpack_from(plaintext)
    if not Type.PROBE <= kind <= Type.REPORT:
        return None
    return Control(Type(kind), nonce, received, lost, address, port)
