"""Parts of TCP units against a plain model of segmentation: every byte and every checksum."""

from __future__ import annotations

import random
import struct

import pytest

from weavenet.sleeve.tap import FLAG_PARTIAL_CHECKSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET, VNET_BYTES
from weavenet.sleeve.units import header_end, part, valid_vnet


def folded(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unit(rng: random.Random, *, version: int, segment: int, payload: bytes, options: int, flags: int) -> bytes:
    """vnet header and frame, as the kernel hands it over: the checksum field holds the sum of the pseudo header."""
    tcp_length = 20 + options + len(payload)
    if version == 4:
        addresses = rng.randbytes(8)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + tcp_length, rng.getrandbits(16), 0x4000, 64, 6, 0) + addresses
        ip = ip[:10] + struct.pack("!H", ~folded(ip) & 0xFFFF) + ip[12:]
    else:
        addresses = rng.randbytes(32)
        ip = struct.pack("!IHBB", 6 << 28, tcp_length, 6, 64) + addresses
    pseudo = folded(addresses + struct.pack("!HH", 6, tcp_length & 0xFFFF))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, rng.getrandbits(32), 7, (20 + options) // 4 << 4, flags, 900, pseudo, 0)
    frame = rng.randbytes(12) + (b"\x08\x00" if version == 4 else b"\x86\xdd") + ip + tcp + rng.randbytes(options)
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
    vnet = VNET.pack(FLAG_PARTIAL_CHECKSUM, kind, len(frame), segment, 14 + len(ip), 16)
    return vnet + frame + payload


def segmented(data: bytes) -> list[bytes]:
    """What a network card would make of it: whole frames with full checksums, oldest first."""
    flags, kind, _, size, start, offset = VNET.unpack_from(data)
    assert flags == FLAG_PARTIAL_CHECKSUM and offset == 16
    frame = data[VNET_BYTES:]
    header_length = start + (frame[start + 12] >> 4) * 4
    headers, payload = frame[:header_length], frame[header_length:]
    is_v4 = frame[12:14] == b"\x08\x00"
    sizes = size if kind != GSO_NONE else max(1, len(payload))
    pieces = [payload[at : at + sizes] for at in range(0, max(1, len(payload)), sizes)]
    frames = []
    for number, piece in enumerate(pieces):
        made = bytearray(headers)
        tcp_length = header_length - start + len(piece)
        sequence = struct.unpack_from("!I", made, start + 4)[0] + number * sizes
        struct.pack_into("!I", made, start + 4, sequence & 0xFFFFFFFF)
        if number < len(pieces) - 1:
            made[start + 13] &= ~0x09 & 0xFF
        if number:
            made[start + 13] &= ~0x80 & 0xFF
        if is_v4:
            struct.pack_into("!HH", made, 16, start - 14 + tcp_length, (made[18] << 8 | made[19]) + number & 0xFFFF)
            made[24:26] = b"\0\0"
            struct.pack_into("!H", made, 24, ~folded(bytes(made[14:start])) & 0xFFFF)
            pseudo = bytes(made[26:34]) + struct.pack("!HH", 6, tcp_length)
        else:
            struct.pack_into("!H", made, 18, tcp_length)
            pseudo = bytes(made[22:54]) + struct.pack("!HH", 6, tcp_length)
        # The card starts from what is in the field; that must equal the pseudo header's sum of this very unit.
        made[start + 16 : start + 18] = b"\0\0"
        struct.pack_into("!H", made, start + 16, ~folded(pseudo + bytes(made[start:]) + piece) & 0xFFFF)
        frames.append(bytes(made) + piece)
    return frames


def pseudo_is_right(data: bytes) -> bool:
    start = VNET.unpack_from(data)[4]
    frame = data[VNET_BYTES:]
    addresses = frame[26:34] if frame[12:14] == b"\x08\x00" else frame[22:54]
    expected = folded(addresses + struct.pack("!HH", 6, len(frame) - start & 0xFFFF))
    found: int = struct.unpack_from("!H", frame, start + 16)[0]
    return found % 0xFFFF == expected % 0xFFFF


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("seed", range(20))
def test_every_run_of_segments(version: int, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([1, 9, 536, 1324])
    count = rng.randint(2, 9)
    payload = rng.randbytes(size * (count - 1) + rng.randint(1, size))
    data = unit(rng, version=version, segment=size, payload=payload, options=4 * rng.randrange(11), flags=0x99)
    end = header_end(data, len(data))
    assert data[end:] == payload and valid_vnet(data, len(data))
    expected = segmented(data)
    assert len(expected) == count
    for first in range(count):
        for last in range(first, count):
            piece = payload[first * size : (last + 1) * size]
            made = part(data[:end], skipped=first, payload_bytes=len(piece), is_end=last == count - 1) + piece
            assert valid_vnet(made, len(made))
            assert pseudo_is_right(made)
            assert segmented(made) == expected[first : last + 1]


TAGS = [b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [*TAGS, TAGS[0] * 2])
def test_parts_of_units_in_vlans(tags: bytes, version: int) -> None:
    """The kernel hands them over as units too; they differ from those without tags by the tags."""
    rng = random.Random(version)
    payload = rng.randbytes(4200)
    bare = unit(rng, version=version, segment=1000, payload=payload, options=12, flags=0x18)
    vnet = bytearray(bare[:VNET_BYTES])
    header, start = struct.unpack_from("<H", vnet, 2)[0], struct.unpack_from("<H", vnet, 6)[0]
    struct.pack_into("<H", vnet, 2, header + len(tags))
    struct.pack_into("<H", vnet, 6, start + len(tags))
    data = bytes(vnet) + bare[VNET_BYTES : VNET_BYTES + 12] + tags + bare[VNET_BYTES + 12 :]
    end = header_end(data, len(data))
    assert data[end:] == payload and valid_vnet(data, len(data))
    for skipped, size in ((0, 2000), (1, 1000), (3, 1200)):
        made = part(data[:end], skipped=skipped, payload_bytes=size, is_end=skipped == 3)
        expected = part(bare[: end - len(tags)], skipped=skipped, payload_bytes=size, is_end=skipped == 3)
        assert made[VNET_BYTES + 12 : VNET_BYTES + 12 + len(tags)] == tags
        assert made[VNET_BYTES + 12 + len(tags) :] == expected[VNET_BYTES + 12 :]
        assert valid_vnet(made + bytes(size), end + size)


@pytest.mark.parametrize("seed", range(300))
def test_anything_is_accepted_or_refused(seed: int) -> None:
    """Damaged units never raise, and what passes as a unit can be cut."""
    rng = random.Random(seed)
    data = bytearray(unit(rng, version=rng.choice([4, 6]), segment=100, payload=bytes(350), options=12, flags=0x10))
    if seed % 3 == 0:
        data[VNET_BYTES + 12 : VNET_BYTES + 12] = rng.choice(TAGS)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(min(len(data), 70))] = rng.getrandbits(8)
    del data[rng.choice([0, 5, 20, 40, 60, 80, 400, 9999]) :]
    valid_vnet(data, len(data))
    end = header_end(data, len(data))
    if end:
        assert len(part(data[:end], skipped=1, payload_bytes=10, is_end=False)) == end
