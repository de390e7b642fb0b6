"""Heartbeat frames on a VXLAN device: Ethernet frames that prove that the data path itself works.

Frame: destination = plane MAC of the peer's device, source = ours, ethertype 0x88B5 (IEEE 802 local experimental 1),
then magic ``WVHB``, version (1 byte, 1), flags (1 byte, bit 0: answer), nonce (8 bytes, big-endian). Anything else is
dropped silently. A question is padded with zeros to the largest frame that containers may send, an answer is not: so
each end finds out whether what it sends gets through at full size, and a path that swallows large frames does not count
as working.

They leave through a socket on the VXLAN device, and are received on the bridge, which hands up what is addressed to the
MAC of one of its ports. A tap on the VXLAN device itself would be ahead of the bridge and look at each data frame. A
classic BPF program lets only heartbeats for our own MAC through.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable

from weavenet.core.limits import HEARTBEAT_ETHERTYPE
from weavenet.host import netns

MAGIC = b"WVHB"
VERSION = 1
IS_ANSWER = 1
BURST = 64
"""Frames taken per wake-up; the rest waits in the socket so that a flood cannot starve the loop."""
SO_ATTACH_FILTER = 26
_PAYLOAD = struct.Struct("!4sBBQ")
_LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x28, 0x20, 0x15, 0x06


def encode(destination: bytes, source: bytes, nonce: int, is_answer: bool, frame_bytes: int = 0) -> bytes:
    """``frame_bytes``: to which a question is padded."""
    payload = _PAYLOAD.pack(MAGIC, VERSION, IS_ANSWER if is_answer else 0, nonce & 0xFFFF_FFFF_FFFF_FFFF)
    frame = destination + source + HEARTBEAT_ETHERTYPE.to_bytes(2, "big") + payload
    return frame if is_answer else frame.ljust(frame_bytes, b"\0")


def decode(frame: bytes) -> tuple[bytes, int, bool] | None:
    """(source MAC, nonce, is answer), or None when it is no heartbeat of this version."""
    if len(frame) < 14 + _PAYLOAD.size or int.from_bytes(frame[12:14], "big") != HEARTBEAT_ETHERTYPE:
        return None
    magic, version, flags, nonce = _PAYLOAD.unpack_from(frame, 14)
    if magic != MAGIC or version != VERSION:
        return None
    return frame[6:12], nonce, bool(flags & IS_ANSWER)


def program(mac: bytes) -> bytes:
    """Classic BPF: accept frames of our ethertype whose destination is ``mac``, nothing else."""
    steps = (
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, 5, HEARTBEAT_ETHERTYPE),
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 3, int.from_bytes(mac[:4], "big")),
        (_LOAD_HALF, 0, 0, 4),
        (_JUMP_EQUAL, 0, 1, int.from_bytes(mac[4:], "big")),
        (_RETURN, 0, 0, 0xFFFF),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class Listener:
    """Hears what comes for ``mac`` out of any port of a bridge. ``received`` counts frames, to tell them from other
    traffic."""

    def __init__(self, mac: bytes, on_probe: Callable[[bytes, int, bool], None]) -> None:
        self._mac = mac
        self._on_probe = on_probe
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.received = 0

    def open(self, namespace: int | None, bridge: str) -> None:
        """Anew when it is open already: the bridge is another one. Raises OSError, for one when there is no right to
        packet sockets."""
        self.close()
        self._socket = netns.call(namespace, lambda: _packet_socket(bridge, HEARTBEAT_ETHERTYPE, program(self._mac)))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._drain)

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = None

    def _drain(self) -> None:
        for _ in range(BURST):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(2048)
            except OSError:  # nothing left, or the bridge went down
                return
            self.received += 1
            heartbeat = decode(frame)
            if heartbeat is not None:
                self._on_probe(*heartbeat)


class Sender:
    """Sends out of one device, as ``mac``. ``frame_bytes``: to which questions are padded. ``sent`` counts frames.
    Raises OSError as :class:`Listener` does."""

    def __init__(self, namespace: int | None, device: str, mac: bytes, *, frame_bytes: int = 0) -> None:
        self._mac = mac
        self._frame_bytes = frame_bytes
        self._socket = netns.call(namespace, lambda: _packet_socket(device, 0))
        self.sent = 0

    def send(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        with contextlib.suppress(OSError):  # device down or gone: the missing answer says so
            self._socket.send(encode(mac, self._mac, nonce, is_answer, self._frame_bytes))
            self.sent += 1

    def close(self) -> None:
        self._socket.close()


def _packet_socket(device: str, ethertype: int, code: bytes = b"") -> socket.socket:
    """``ethertype`` 0: it receives nothing. ``code``: classic BPF for what is received."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        if code:
            buffer = ctypes.create_string_buffer(code, len(code))
            place = struct.pack("HL", len(code) // 8, ctypes.addressof(buffer))
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, place)
        sock.bind((device, ethertype))
    except BaseException:
        sock.close()
        raise
    return sock
