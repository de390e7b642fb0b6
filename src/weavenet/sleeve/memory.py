"""Memory with stable addresses, and lists of places in it for system calls (iovec, readv(2))."""

from __future__ import annotations

import ctypes
import mmap


class Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


IOVEC_BYTES = ctypes.sizeof(Iovec)


class Buffer:
    """Memory with a stable address, seen as a writable memoryview of bytes. Costs only the pages that are used."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size)
        self._anchor = ctypes.c_char.from_buffer(memory)
        self.address = ctypes.addressof(self._anchor)
        self.view = memoryview(memory)


class Pairs:
    """``count`` datagrams in two places: their headers one after the other, their bodies too. One system call sends
    or receives them from or into both."""

    def __init__(self, headers: Buffer, header_bytes: int, bodies: Buffer, body_bytes: int, count: int) -> None:
        self.stride = header_bytes + body_bytes
        self.count = count
        self.places = (Iovec * (2 * count))()
        for number in range(count):
            self.places[2 * number] = Iovec(headers.address + number * header_bytes, header_bytes)
            self.places[2 * number + 1] = Iovec(bodies.address + number * body_bytes, body_bytes)
        self.address = ctypes.addressof(self.places)
