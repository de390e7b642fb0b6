"""The UDP socket against the kernel, and against what other kernels say."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
from collections.abc import Iterator

import pytest

from weavenet.core.overlay.sleeve import SleeveEndpoint
from weavenet.sleeve.memory import Buffer, Pairs
from weavenet.sleeve.udp import UdpSocket, sockaddr

HEADER_BYTES, BODY_BYTES = 24, 976
STRIDE = HEADER_BYTES + BODY_BYTES


class Bench:
    """``cuts``: whether the kernel cuts a send into datagrams."""

    def __init__(self, *, cuts: bool) -> None:
        self.udp = UdpSocket(0, "127.0.0.1")
        self.far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.far.bind(("127.0.0.1", 0))
        self.far.settimeout(5.0)
        self.name = self.name_of("127.0.0.1")
        if not cuts:
            sendmsg = self.udp._sendmsg
            self.udp._sendmsg = lambda *given: self._refused() if self.udp._out.controllen else sendmsg(*given)

    def _refused(self) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    def name_of(self, host: str) -> bytes:
        name = sockaddr(self.udp.family, SleeveEndpoint(host, self.far.getsockname()[1]))
        assert name is not None
        return name

    def arrived(self, count: int) -> list[bytes]:
        return [self.far.recv(1 << 16) for _ in range(count)]

    def close(self) -> None:
        self.udp.close()
        self.far.close()


@contextlib.contextmanager
def bench(*, cuts: bool = True) -> Iterator[Bench]:
    made = Bench(cuts=cuts)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("cuts", [True, False])
def test_datagrams_arrive_whether_or_not_the_kernel_cuts_them(cuts: bool) -> None:
    """A device without checksum offload gave EIO to whoever wanted them cut, before Linux 6.11."""
    with bench(cuts=cuts) as made:
        area = Buffer(70_000)
        data = bytes(range(256)) * 40
        area.view[: len(data)] = data
        for length in (STRIDE, 3 * STRIDE, 3 * STRIDE + 1, 10 * STRIDE):
            assert made.udp.send(area.address, length, STRIDE, made.name)
            pieces = [data[at : min(at + STRIDE, length)] for at in range(0, length, STRIDE)]
            assert made.arrived(len(pieces)) == pieces


@pytest.mark.parametrize("cuts", [True, False])
def test_scattered_datagrams_arrive_too(cuts: bool) -> None:
    with bench(cuts=cuts) as made:
        headers, bodies = Buffer(10 * HEADER_BYTES), Buffer(10 * BODY_BYTES)
        pairs = Pairs(headers, HEADER_BYTES, bodies, BODY_BYTES, 10)
        for number in range(10):
            headers.view[number * HEADER_BYTES : (number + 1) * HEADER_BYTES] = bytes((number,)) * HEADER_BYTES
            bodies.view[number * BODY_BYTES : (number + 1) * BODY_BYTES] = bytes((number,)) * BODY_BYTES
        for first, count, last_bytes in ((0, 10, BODY_BYTES), (2, 5, 7), (9, 1, 1)):
            assert made.udp.send_scattered(pairs, first, count, last_bytes, made.name)
            sizes = [STRIDE] * (count - 1) + [HEADER_BYTES + last_bytes]
            assert made.arrived(count) == [bytes((first + n,)) * size for n, size in enumerate(sizes)]
        assert pairs.places[2 * 9 + 1].length == BODY_BYTES


def test_only_the_last_refusal_counts() -> None:
    """What a relay could not forward is no reason to send smaller datagrams to somebody else."""
    with bench() as made:
        area = Buffer(70_000)
        assert not made.udp.send(area.address, 65_520, 65_520, made.name)
        assert made.udp.refused_size
        assert not made.udp.send(area.address, 100, 100, made.name_of("255.255.255.255"))  # no right to broadcast
        assert not made.udp.refused_size
