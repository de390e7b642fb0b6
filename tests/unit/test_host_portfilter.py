"""The filter of overlay ports, run by a machine of three instructions (linux/Documentation/networking/filter)."""

from __future__ import annotations

import ipaddress

import pytest

from weavenet.host import portfilter
from weavenet.host.dnsaddress import ADDRESS

MAC = bytes.fromhex("020900000001")


def verdict(program: portfilter.Program, frame: bytes) -> int:
    accumulator, at = 0, 0
    while True:
        code, value, if_equal, if_not = program[at]
        at += 1
        if code == portfilter.RETURN:
            return value
        if code == portfilter.JUMP_EQUAL:
            at += if_equal if accumulator == value else if_not
        else:
            assert code == portfilter.LOAD_WORD
            accumulator = int.from_bytes(frame[value : value + 4], "big")


@pytest.mark.parametrize(
    ("sender", "target", "expected"),
    [
        ("10.32.0.1", "10.32.0.2", portfilter.GO_ON),
        ("10.32.0.1", ADDRESS, portfilter.DROP),
        (ADDRESS, "10.32.0.2", portfilter.DROP),
        (ADDRESS, ADDRESS, portfilter.DROP),
        ("169.254.53.54", "169.253.53.53", portfilter.GO_ON),
    ],
)
def test_no_arp_about_an_address_that_every_host_has(sender: str, target: str, expected: int) -> None:
    ethernet = b"\xff" * 6 + MAC + b"\x08\x06"
    head = bytes.fromhex("0001080006040001")  # RFC 826: Ethernet, IPv4, request
    packed = [ipaddress.IPv4Address(text).packed for text in (sender, target)]
    frame = ethernet + head + MAC + packed[0] + bytes(6) + packed[1]
    assert verdict(portfilter.no_arp_about(ADDRESS), frame) == expected
