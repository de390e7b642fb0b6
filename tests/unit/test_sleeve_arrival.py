"""What a receive brings is what was sent, whatever sizes follow each other and wherever the kernel puts it."""

from __future__ import annotations

import ctypes
import random
import select

import pytest

from weavenet.core.overlay.sleeve import SleeveEndpoint
from weavenet.sleeve.arrival import EXPECTED_COUNT_MIN, EXPECTED_STRIDE_MIN, STRIDE_FIRST, Arrival
from weavenet.sleeve.memory import Buffer, Pairs
from weavenet.sleeve.udp import UdpSocket, sockaddr
from weavenet.sleeve.wire import HEADER_BYTES, HOPS_START, Header, Kind, encode


def scatter(pairs: Pairs, data: bytes) -> None:
    """As recvmsg(2) does."""
    at = 0
    for place in pairs.places:
        piece = data[at : at + place.length]
        ctypes.memmove(place.base, piece, len(piece))
        at += len(piece)
        if at == len(data):
            return
    raise AssertionError("more than the places take")


def gather(pairs: Pairs, count: int, last_bytes: int) -> bytes:
    """As sendmsg(2) does."""
    sizes = [pairs.places[number].length for number in range(2 * count)]
    sizes[-1] = last_bytes - HEADER_BYTES
    return b"".join(ctypes.string_at(place.base, size) for place, size in zip(pairs.places, sizes, strict=False))


def random_batch(rng: random.Random) -> tuple[bytes, int]:
    stride = rng.choice((STRIDE_FIRST, STRIDE_FIRST, 1440, 1232, 528, 118, HEADER_BYTES + 1, rng.randint(25, 9000)))
    count = rng.randint(1, min(64, 65_000 // stride))
    last = rng.choice((stride, rng.randint(1, stride)))
    return rng.randbytes((count - 1) * stride + last), stride if count > 1 else last


@pytest.mark.parametrize("seed", range(30))
def test_whatever_sizes_follow_each_other(seed: int) -> None:
    rng = random.Random(seed)
    arrival = Arrival()
    for _ in range(30):
        data, stride = random_batch(rng)
        scatter(arrival.expected.pairs, data)
        arrival.came(len(data), stride)
        assert (arrival.count, arrival.stride) == (-(-len(data) // stride), stride)
        assert arrival.last_bytes == len(data) - (arrival.count - 1) * stride
        if stride <= HEADER_BYTES:
            continue
        found = b"".join(
            arrival.headers[number * HEADER_BYTES : (number + 1) * HEADER_BYTES].tobytes()
            + arrival.body(number).tobytes()
            for number in range(arrival.count)
        )
        assert found[: len(data)] == data
        if arrival.last_bytes > HEADER_BYTES:
            assert len(found) == len(data)
            assert gather(arrival.relayable(), arrival.count, arrival.last_bytes) == data
            bodies = b"".join(arrival.body(number).tobytes() for number in range(arrival.count))
            assert arrival.together(0, arrival.count).tobytes() == bodies


def test_the_size_that_comes_is_expected_next() -> None:
    arrival = Arrival()
    for stride, count, expected in (
        (1440, EXPECTED_COUNT_MIN, 1440),
        (118, EXPECTED_COUNT_MIN, 1440),
        (1232, EXPECTED_COUNT_MIN - 1, 1440),
        (EXPECTED_STRIDE_MIN, EXPECTED_COUNT_MIN, EXPECTED_STRIDE_MIN),
    ):
        arrival.place(bytes(stride * count), stride)
        assert arrival.expected.stride == expected


@pytest.mark.parametrize("seed", range(20))
def test_datagrams_of_a_unit_are_counted_up_to_the_first_that_differs(seed: int) -> None:
    rng = random.Random(seed)
    last = rng.randint(0, 60)
    index = rng.randint(0, last)
    count = last + 1 - index
    header = Header(Kind.SEGMENT, 1, 2, b"source", b"target", 5000, 0, last, HOPS_START)
    headers = [encode(header._replace(place=number)) for number in range(index, last + 1)]
    odd = rng.randint(1, count)
    if odd < count:
        changed = header._replace(place=index + odd, counter=rng.choice((5000, 6000)), hops=rng.choice((1, 2)))
        headers[odd] = encode(changed)
    arrival = Arrival()
    arrival.place(b"".join(one + bytes(100) for one in headers), HEADER_BYTES + 100)
    assert arrival.following(0) == odd


def test_over_a_socket() -> None:
    rng = random.Random(1)
    here, there = UdpSocket(0, "127.0.0.1"), UdpSocket(0, "127.0.0.1")
    name = sockaddr(here.family, SleeveEndpoint("127.0.0.1", there.port))
    assert name is not None
    memory = Buffer(1 << 16)
    for _ in range(40):
        data, stride = random_batch(rng)
        memory.view[: len(data)] = data
        assert here.send(memory.address, len(data), stride, name)
        found = b""
        while len(found) < len(data):
            assert select.select([there.fd], [], [], 10.0)[0]
            assert there.receive()
            arrival = there.arrival
            for number in range(arrival.count):
                size = arrival.stride if number < arrival.count - 1 else arrival.last_bytes
                whole = arrival.headers[number * HEADER_BYTES : (number + 1) * HEADER_BYTES].tobytes()
                found += whole[:size] + (arrival.body(number).tobytes() if arrival.stride > HEADER_BYTES else b"")
        assert found == data
    assert not there.receive()
    here.close()
    there.close()
