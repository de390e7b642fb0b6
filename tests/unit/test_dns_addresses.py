"""Addresses as the kernel takes them, those of one link included."""

from __future__ import annotations

import socket

import pytest

from weavenet.dns.addresses import SocketAddress, is_here, socket_address, with_port
from weavenet.dns.resolvconf import parse

LOOPBACK = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("2001:db8::1", ("2001:db8::1", 53, 0, 0)),
        ("fe80::1%lo", ("fe80::1", 53, 0, LOOPBACK)),
        ("fe80::1%7", ("fe80::1", 53, 0, 7)),
    ],
)
def test_the_device_is_part_of_a_link_local_address(host: str, address: SocketAddress) -> None:
    assert socket_address(host, 53) == address
    (upstream,) = parse(f"nameserver {host}\n")
    assert socket_address(*upstream) == address


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(OSError, match="interface"):
        socket_address("fe80::1%nothere0", 53)


def test_which_addresses_this_host_has() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.53")
    assert not is_here("fe80::1%nothere0")


def test_with_a_port() -> None:
    assert with_port("192.0.2.1", 53) == "192.0.2.1:53"
    assert with_port("fe80::1%lo", 5353) == "[fe80::1%lo]:5353"
