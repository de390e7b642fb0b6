"""WireGuard's two control protocols as bytes and text; the netlink messages against another implementation of them."""

from __future__ import annotations

import base64
import errno

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from weavenet.host import wireguardkernel, wireguardprocess
from weavenet.host.wireguard import KEEPALIVE_S, Change, DeviceState, PeerChange, TunnelPeer
from weavenet.host.wireguardkernel import device_attributes, parse_device

PRIVATE, A, B = bytes(range(32)), bytes([1]) * 32, bytes([2]) * 32
HEADER_BYTES = 16 + 4


def text(key: bytes) -> bytes:
    return base64.b64encode(key)


def decoded(attributes: bytes) -> wgmsg:
    """As pyroute2 reads a message with these attributes."""
    data = (HEADER_BYTES + len(attributes)).to_bytes(4, "little") + bytes(12) + bytes([1, 1, 0, 0]) + attributes
    message = wgmsg(data)
    message.decode()
    return message


def test_a_change_as_the_kernel_reads_it() -> None:
    change = Change(
        private=PRIVATE,
        port=6785,
        peers=(
            PeerChange(A, ("192.0.2.1", 6785), "240.1.2.3"),
            PeerChange(B, ("2001:db8::1", 7785)),
            PeerChange(PRIVATE, is_removed=True),
        ),
    )
    message = decoded(device_attributes("weave-wg", change, change.peers))
    assert message.get_attr("WGDEVICE_A_IFNAME") == "weave-wg"
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") == text(PRIVATE)
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 6785
    first, second, third = message.get_attr("WGDEVICE_A_PEERS")
    assert first.get_attr("WGPEER_A_PUBLIC_KEY") == text(A)
    endpoint = first.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("192.0.2.1", 6785)
    assert first.get_attr("WGPEER_A_FLAGS") == wireguardkernel.PEER_F_REPLACE_ALLOWED
    assert first.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == KEEPALIVE_S
    (allowed,) = first.get_attr("WGPEER_A_ALLOWEDIPS")
    assert allowed.get_attr("WGALLOWEDIP_A_CIDR_MASK") == 32
    assert allowed.get_attr("WGALLOWEDIP_A_FAMILY") == 2
    assert bytes.fromhex(allowed.get_attr("WGALLOWEDIP_A_IPADDR").replace(":", "")) == bytes((240, 1, 2, 3))
    endpoint = second.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("2001:db8::1", 7785)
    assert second.get_attr("WGPEER_A_ALLOWEDIPS") is None and second.get_attr("WGPEER_A_FLAGS") is None
    assert third.get_attr("WGPEER_A_FLAGS") == wireguardkernel.PEER_F_REMOVE


def encoded(**fields: object) -> memoryview:
    """Attributes of a message as pyroute2 makes it."""
    message = wgmsg()
    message["attrs"] = [(f"WGDEVICE_A_{name.upper()}", value) for name, value in fields.items()]
    message.encode()
    return memoryview(bytes(message.data))[HEADER_BYTES:]


def peer_attributes(key: bytes, *addresses: str, **fields: object) -> dict[str, object]:
    allowed = []
    for address in addresses:
        ip, _, mask = address.partition("/")
        attributes = [
            ("WGALLOWEDIP_A_FAMILY", 2),
            ("WGALLOWEDIP_A_IPADDR", bytes(map(int, ip.split(".")))),
            ("WGALLOWEDIP_A_CIDR_MASK", int(mask)),
        ]
        allowed.append({"attrs": attributes})
    attributes_of_peer = [("WGPEER_A_PUBLIC_KEY", {"value": text(key)})]
    attributes_of_peer += [(f"WGPEER_A_{name.upper()}", value) for name, value in fields.items()]  # type: ignore[misc]
    return {"attrs": [*attributes_of_peer, ("WGPEER_A_ALLOWEDIPS", allowed)]}


def test_a_dump_of_the_kernel_is_read_also_when_a_peer_goes_on_in_the_next_message() -> None:
    endpoint = {"addr": "192.0.2.7", "port": 999}
    when = {"tv_sec": 1_700_000_000, "tv_nsec": 5}
    first = encoded(
        ifname="weave-wg",
        private_key={"value": text(PRIVATE)},
        listen_port=6785,
        peers=[peer_attributes(A, "240.1.2.3/32", endpoint=endpoint, last_handshake_time=when)],
    )
    second = encoded(peers=[peer_attributes(A, "240.1.2.4/32"), peer_attributes(B)])
    state = parse_device([first, second])
    assert state == DeviceState(
        PRIVATE,
        6785,
        (
            TunnelPeer(A, ("192.0.2.7", 999), ("240.1.2.3/32", "240.1.2.4/32"), 1_700_000_000),
            TunnelPeer(B, None, ()),
        ),
    )
    assert PRIVATE.hex() not in repr(state) and repr(PRIVATE) not in repr(state)


def test_a_generic_netlink_family_is_found_by_name() -> None:
    """On this kernel, with the family that every kernel has; ``nlctrl`` is number 16."""
    with wireguardkernel._Generic(None) as generic:
        assert generic.family("nlctrl") == wireguardkernel.GENL_ID_CTRL
        with pytest.raises(OSError) as caught:
            generic.family("no such family")
        assert caught.value.errno == errno.ENOENT


def test_a_request_to_the_process() -> None:
    change = Change(
        private=PRIVATE,
        port=6785,
        peers=(PeerChange(A, ("2001:db8::1", 6785), "240.1.2.3"), PeerChange(B, is_removed=True)),
    )
    assert wireguardprocess.request(change).splitlines() == [
        "set=1",
        f"private_key={PRIVATE.hex()}",
        "listen_port=6785",
        f"public_key={A.hex()}",
        "endpoint=[2001:db8::1]:6785",
        f"persistent_keepalive_interval={KEEPALIVE_S}",
        "replace_allowed_ips=true",
        "allowed_ip=240.1.2.3/32",
        f"public_key={B.hex()}",
        "remove=true",
        "",
    ]
    assert wireguardprocess.request(change).endswith("\n\n")


def test_an_answer_of_the_process() -> None:
    answer = f"""private_key={PRIVATE.hex()}
listen_port=6785
public_key={A.hex()}
preshared_key={bytes(32).hex()}
protocol_version=1
endpoint=[2001:db8::1]:6785
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
persistent_keepalive_interval=25
allowed_ip=240.1.2.3/32
public_key={B.hex()}
last_handshake_time_sec=0
errno=0

"""
    peers = (TunnelPeer(A, ("2001:db8::1", 6785), ("240.1.2.3/32",), 1_700_000_000), TunnelPeer(B, None, ()))
    assert wireguardprocess.parse(answer) == DeviceState(PRIVATE, 6785, peers)
    with pytest.raises(OSError) as caught:
        wireguardprocess.parse("errno=-98\n\n")
    assert caught.value.errno == errno.EADDRINUSE


def test_a_device_without_a_key_says_so() -> None:
    assert not any(wireguardprocess.parse("listen_port=0\nerrno=0\n\n").private)
    assert not any(parse_device([]).private)
