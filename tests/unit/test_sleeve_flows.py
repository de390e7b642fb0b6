"""UDP packets put together are the same packets when the kernel cuts them apart again."""

from __future__ import annotations

import random
import struct

import pytest

from sleeve_pair import HOSTS, A, B, End, name_of
from unit.test_sleeve_units import folded
from weavenet.sleeve.flows import HEADERS_BYTES, flow_of, headers_of, joins
from weavenet.sleeve.tap import FLAG_PARTIAL_CHECKSUM, GSO_UDP, VNET, VNET_BYTES


def packet(
    rng: random.Random, payload: bytes, *, source: int = 1111, addresses: bytes = b"\x0a\x20\0\1\x0a\x20\0\2"
) -> bytes:
    """As a TAP device hands it over: the UDP checksum holds the sum of the pseudo header."""
    length = 8 + len(payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, rng.getrandbits(16), 0x4000, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", ~folded(ip) & 0xFFFF) + ip[12:]
    pseudo = folded(addresses + struct.pack("!HH", 17, length))
    udp = struct.pack("!HHHH", source, 2222, length, pseudo)
    return VNET.pack(FLAG_PARTIAL_CHECKSUM, 0, 0, 0, 34, 6) + b"\x02bbbbb\x02aaaaa\x08\x00" + ip + udp + payload


@pytest.mark.parametrize("seed", range(20))
def test_together_and_apart(seed: int) -> None:
    rng = random.Random(seed)
    each, count = rng.randint(1, 500), rng.randint(2, 64)
    packets = [packet(rng, rng.randbytes(each)) for _ in range(count)]
    flow = flow_of(memoryview(packets[0]))
    assert flow and all(joins(memoryview(one), flow) for one in packets)
    made = headers_of(memoryview(packets[0]), each * count, each)
    flags, kind, header, size, start, offset = VNET.unpack_from(made)
    assert (flags, kind, header, size, start, offset) == (1, GSO_UDP, 42, each, 34, 6)
    ip, udp = made[24:44], made[44:52]
    assert folded(ip) == 0xFFFF and struct.unpack_from("!H", ip, 2)[0] == 28 + each * count
    assert struct.unpack_from("!H", udp, 4)[0] == 8 + each * count
    expected = folded(ip[12:20] + struct.pack("!HH", 17, 8 + each * count))
    assert struct.unpack_from("!H", udp, 6)[0] % 0xFFFF == expected % 0xFFFF


def test_only_packets_of_one_flow_and_size_go_together() -> None:
    rng = random.Random(1)
    one = packet(rng, b"x" * 40)
    different = [
        packet(rng, b"x" * 41),
        packet(rng, b"x" * 40, source=1112),
        packet(rng, b"x" * 40, addresses=b"\x0a\x20\0\1\x0a\x20\0\3"),
    ]
    for first in (one, *different):
        flow = flow_of(memoryview(first))
        assert [joins(memoryview(each), flow) for each in (one, *different)].count(True) == 1
    fragment = bytearray(one)
    fragment[30] = 0x20
    options = bytearray(one)
    options[24] = 0x46
    whole_checksum = bytes(10) + one[10:]
    for each in (fragment, options, whole_checksum, one[:HEADERS_BYTES], b"", bytes(100)):
        assert flow_of(memoryview(bytes(each))) == b""
        assert not joins(memoryview(bytes(each)), flow_of(memoryview(one)))


def test_a_batch_becomes_one_write_and_keeps_its_order() -> None:
    rng = random.Random(2)
    a, b = End(A), End(B)
    a.know(b)
    b.know(a)
    head = b.mac() + b"\x02aaaaa"
    mine = [packet(rng, bytes([number]) * 40) for number in range(10)]
    mine = [one[:VNET_BYTES] + head + one[VNET_BYTES + 12 :] for one in mine]
    other = packet(rng, b"other", source=3333)
    other = other[:VNET_BYTES] + head + other[VNET_BYTES + 12 :]
    found = b.open(a.seal(*mine[:6], other, *mine[6:]), name_of(HOSTS[A]))
    payload = [one[HEADERS_BYTES:] for one in found]
    assert b"".join(payload) == b"".join(one[HEADERS_BYTES:] for one in [*mine[:6], other, *mine[6:]])
    assert other in found and len(found) <= 5
