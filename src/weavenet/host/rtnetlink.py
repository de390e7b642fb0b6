"""Single rtnetlink requests, written out by hand (rtnetlink(7)), for what the netlink library has no verb for or leaks
memory with. Answers are read with :func:`weavenet.host.links.messages`."""

from __future__ import annotations

import os
import socket
import struct

from weavenet.host import netns
from weavenet.host.links import NETLINK_ROUTE, NLM_F_REQUEST, NLMSG_ERROR, messages

NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x4, 0x200, 0x400
ANSWER_BYTES_MAX = 64 * 1024
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """With an acknowledgement asked for."""
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body


def open_socket(namespace: int | None) -> socket.socket:
    """In the network namespace of that file descriptor (None: our own). Raises OSError."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        sock.bind((0, 0))
        return sock

    return netns.call(namespace, make)


def request(sock: socket.socket, packet: bytes, what: str, tolerate: int = 0) -> None:
    """Send one message and wait for the kernel's acknowledgement. Raises OSError that begins with ``what``, unless its
    errno is ``tolerate``."""
    sock.send(packet)
    for kind, _, payload in messages(sock.recv(ANSWER_BYTES_MAX)):
        code = -int(struct.unpack_from("=i", payload)[0]) if kind == NLMSG_ERROR else 0
        if code not in (0, tolerate):
            raise OSError(code, f"{what}: {os.strerror(code)}")
