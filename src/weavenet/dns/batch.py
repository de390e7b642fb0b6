"""Many datagrams per system call: ``recvmmsg`` and ``sendmmsg`` on memory that is set up once.

Python's own ``recvfrom`` and ``sendto`` make and parse a tuple with the address as text for each datagram; here the
address stays where the kernel wrote it and is handed back as it is. An answer goes out as two pieces: the two bytes of
the id where the query was received, and the prepared rest, which is not copied either.

Invariants: what ``put`` was given stays referenced until ``flush`` returned. A datagram longer than ``size_bytes`` is
reported as empty, since its end is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

MSG_TRUNC = 0x20
_ADDRESS_BYTES = 28
"""struct sockaddr_in6, the longer one."""
_WORDS = 8
"""struct mmsghdr in words of 8 bytes (64-bit little-endian Linux): name, namelen, iov, iovlen, control, controllen,
flags, len."""

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg, _sendmmsg, _sendto = _libc.recvmmsg, _libc.sendmmsg, _libc.sendto
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
_sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
_sendto.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


class Prepared(NamedTuple):
    """An answer without its id. ``address``: where its bytes are; valid while ``body`` is referenced."""

    address: int
    size_bytes: int
    body: bytes


def prepare(message: bytes) -> Prepared:
    """Of a whole message; its id is dropped."""
    body = message[2:]
    address = ctypes.cast(ctypes.c_char_p(body), ctypes.c_void_p).value  # the object's own bytes, not a copy
    return Prepared(address or 0, len(body), body)


class Batch:
    """For one UDP socket. ``count``: datagrams at once."""

    def __init__(self, sock: socket.socket, *, count: int, size_bytes: int) -> None:
        self._fd = sock.fileno()
        self._count = count
        self._size_bytes = size_bytes
        self._name_bytes = 16 if sock.family == socket.AF_INET else _ADDRESS_BYTES
        self._memory = bytearray(count * size_bytes)
        self._names = bytearray(count * _ADDRESS_BYTES)
        self._in_vectors = (ctypes.c_uint64 * (2 * count))()
        self._out_vectors = (ctypes.c_uint64 * (4 * count))()
        self._in_headers = (ctypes.c_uint64 * (_WORDS * count))()
        self._out_headers = (ctypes.c_uint64 * (_WORDS * count))()
        self.view = memoryview(self._memory)
        self._at = _address(self._memory)
        self._names_at = _address(self._names)
        self._in = memoryview(self._in_headers).cast("B").cast("Q")
        self._out = memoryview(self._out_headers).cast("B").cast("Q")
        self._pieces = memoryview(self._out_vectors).cast("B").cast("Q")
        self._kept: list[Prepared] = []
        self._turn = 0
        self._lay_out()
        self._in_pointer = ctypes.addressof(self._in_headers)
        self._out_pointer = ctypes.addressof(self._out_headers)

    def _lay_out(self) -> None:
        vectors_in = memoryview(self._in_vectors).cast("B").cast("Q")
        in_at, out_at = ctypes.addressof(self._in_vectors), ctypes.addressof(self._out_vectors)
        for i in range(self._count):
            vectors_in[2 * i], vectors_in[2 * i + 1] = self._at + i * self._size_bytes, self._size_bytes
            self._in[_WORDS * i] = self._names_at + i * _ADDRESS_BYTES
            self._in[_WORDS * i + 1] = self._name_bytes
            self._in[_WORDS * i + 2], self._in[_WORDS * i + 3] = in_at + 16 * i, 1
            self._out[_WORDS * i + 1] = self._name_bytes
            self._out[_WORDS * i + 2], self._out[_WORDS * i + 3] = out_at + 32 * i, 2
            self._pieces[4 * i + 1] = 2

    def close(self) -> None:
        """The socket is to be closed: what is sent from now on is lost, since its number may soon be another's."""
        self._fd = -1

    def receive(self) -> int:
        """How many datagrams were waiting, at most ``count``; 0 when none. Raises OSError when the socket is none."""
        received: int = _recvmmsg(self._fd, self._in_pointer, self._count, socket.MSG_DONTWAIT, None)
        if received >= 0:
            return received
        number = ctypes.get_errno()
        if number in (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK):
            raise OSError(number, os.strerror(number))
        # Nothing there, or an error about what was sent earlier or the device: it says nothing about what is to come.
        return 0

    def size(self, index: int) -> int:
        """Length of a received datagram; 0 when it was too long."""
        flags_and_size = self._in[_WORDS * index + 6], self._in[_WORDS * index + 7]
        return 0 if flags_and_size[0] & MSG_TRUNC else flags_and_size[1] & 0xFFFFFFFF

    def packet(self, index: int) -> bytes:
        start = index * self._size_bytes
        return bytes(self.view[start : start + self.size(index)])

    def client(self, index: int) -> bytes:
        """The sender's socket address, as the kernel gave it."""
        start = index * _ADDRESS_BYTES
        return bytes(self._names[start : start + self._name_bytes])

    def answer_known(self, received: int, known: Mapping[bytes, tuple[Prepared, ...]]) -> list[int]:
        """Put answers to those of the first ``received`` datagrams that are in ``known``, a query without its id to
        answers of which one is as good as another; which are not. This loop is what the speed of the server comes
        down to, hence no calls in it."""
        unknown: list[int] = []
        view, headers, out, pieces, kept = self.view, self._in, self._out, self._pieces, self._kept
        size, names_at, memory_at, turn = self._size_bytes, self._names_at, self._at, self._turn
        number = len(kept)
        for index in range(received):
            start = index * size
            word = index * _WORDS
            answers = known.get(bytes(view[start + 2 : start + (headers[word + 7] & 0xFFFFFFFF)]))
            if answers is None:
                unknown.append(index)
                continue
            turn += 1
            answer = answers[turn % len(answers)] if len(answers) > 1 else answers[0]
            kept.append(answer)
            out[number * _WORDS] = names_at + index * _ADDRESS_BYTES
            piece = number * 4
            pieces[piece] = memory_at + start
            pieces[piece + 2], pieces[piece + 3] = answer[0], answer[1]
            number += 1
        self._turn = turn
        return unknown

    def send(self, client: bytes, message: bytes) -> None:
        """One answer that took its time. ``client``: as :meth:`client` gave it."""
        _sendto(self._fd, message, len(message), socket.MSG_DONTWAIT, client, len(client))

    def put(self, index: int, answer: Prepared) -> None:
        """Answer datagram ``index`` with the next :meth:`flush`. At most one answer per datagram."""
        kept, out, pieces = self._kept, self._out, self._pieces
        number = len(kept)
        kept.append(answer)
        out[_WORDS * number] = self._names_at + index * _ADDRESS_BYTES
        pieces[4 * number] = self._at + index * self._size_bytes
        pieces[4 * number + 2], pieces[4 * number + 3] = answer[0], answer[1]

    def flush(self) -> None:
        """Send what was put. What the kernel has no room for, or cannot deliver, is lost as datagrams are."""
        total, done = len(self._kept), 0
        while done < total:
            pointer = self._out_pointer + done * _WORDS * 8
            sent: int = _sendmmsg(self._fd, pointer, total - done, socket.MSG_DONTWAIT)
            done += max(sent, 1)  # on an error the first one is given up
        self._kept.clear()


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
