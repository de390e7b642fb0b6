"""WireGuard in the kernel, configured by generic netlink (linux/wireguard.h, version 1).

Two commands of one family are all that is needed, so the messages are made here: the netlink library's own support
costs its whole package. ``tests/unit/test_host_wireguard.py`` has that library read what is made here, and the other
way round. The device itself is made and deleted like any link.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from weavenet.host import netns
from weavenet.host.links import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attributes, messages
from weavenet.host.rtnetlink import NLM_F_ACK, attribute
from weavenet.host.wireguard import KEEPALIVE_S, KEY_BYTES, Change, DeviceState, PeerChange, TunnelPeer

FAMILY = "wireguard"
NETLINK_GENERIC = 16
NLA_F_NESTED = 0x8000
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
VERSION, WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE = 1, 0, 1
DEVICE_IFNAME, DEVICE_PRIVATE_KEY, DEVICE_LISTEN_PORT, DEVICE_PEERS = 2, 3, 6, 8
PEER_PUBLIC_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE, PEER_HANDSHAKE, PEER_ALLOWED = 1, 3, 4, 5, 6, 9
PEER_F_REMOVE, PEER_F_REPLACE_ALLOWED = 1, 2
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_MASK = 1, 2, 3
PEERS_PER_MESSAGE = 100
"""Some 120 bytes each; the kernel takes a message whole."""
TIMEOUT_S = 5.0
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBxx")


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def endpoint_bytes(endpoint: tuple[str, int]) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    address = ipaddress.ip_address(endpoint[0])
    port = endpoint[1].to_bytes(2, "big")
    if address.version == 4:
        return struct.pack("=H", socket.AF_INET) + port + address.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port + bytes(4) + address.packed + bytes(4)


def parse_endpoint(data: bytes) -> tuple[str, int] | None:
    if len(data) < 16:
        return None
    (family,) = struct.unpack_from("=H", data)
    port = int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(data[4:8])), port
    if family == socket.AF_INET6 and len(data) >= 28:
        return str(ipaddress.IPv6Address(data[8:24])), port
    return None


def device_attributes(name: str, change: Change, peers: Sequence[PeerChange]) -> bytes:
    """Of one ``WG_CMD_SET_DEVICE``, with ``peers`` for those of ``change``."""
    parts = [attribute(DEVICE_IFNAME, name.encode() + b"\0")]
    if change.private is not None:
        parts.append(attribute(DEVICE_PRIVATE_KEY, change.private))
    if change.port is not None:
        parts.append(attribute(DEVICE_LISTEN_PORT, struct.pack("=H", change.port)))
    if peers:
        parts.append(nested(DEVICE_PEERS, (nested(0, _peer_attributes(peer)) for peer in peers)))
    return b"".join(parts)


def _peer_attributes(peer: PeerChange) -> Iterator[bytes]:
    yield attribute(PEER_PUBLIC_KEY, peer.public)
    if peer.is_removed:
        yield attribute(PEER_FLAGS, struct.pack("=I", PEER_F_REMOVE))
        return
    if peer.address:
        yield attribute(PEER_FLAGS, struct.pack("=I", PEER_F_REPLACE_ALLOWED))
    if peer.endpoint is not None:
        yield attribute(PEER_ENDPOINT, endpoint_bytes(peer.endpoint))
    yield attribute(PEER_KEEPALIVE, struct.pack("=H", KEEPALIVE_S))
    if peer.address:
        address = ipaddress.ip_address(peer.address)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        allowed = (
            attribute(ALLOWED_FAMILY, struct.pack("=H", family)),
            attribute(ALLOWED_ADDRESS, address.packed),
            attribute(ALLOWED_MASK, bytes([address.max_prefixlen])),
        )
        yield nested(PEER_ALLOWED, [nested(0, allowed)])


def parse_device(bodies: Iterable[memoryview]) -> DeviceState:
    """``bodies``: attributes of the messages of one dump. A peer that did not fit into one goes on in the next."""
    private, port = bytes(KEY_BYTES), 0
    peers: dict[bytes, TunnelPeer] = {}
    for body in bodies:
        for kind, payload in attributes(body):
            if kind == DEVICE_PRIVATE_KEY:
                private = bytes(payload)
            elif kind == DEVICE_LISTEN_PORT:
                (port,) = struct.unpack("=H", payload[:2])
            elif kind == DEVICE_PEERS:
                for _, one in attributes(payload):
                    peer = _parse_peer(one)
                    before = peers.get(peer.public)
                    if before is not None:
                        addresses = before.addresses + peer.addresses
                        peer = TunnelPeer(before.public, before.endpoint, addresses, before.handshake_at)
                    peers[peer.public] = peer
    return DeviceState(private, port, tuple(peers.values()))


def _parse_peer(data: memoryview) -> TunnelPeer:
    public, endpoint, addresses, handshake_at = b"", None, [], 0
    for kind, payload in attributes(data):
        if kind == PEER_PUBLIC_KEY:
            public = bytes(payload)
        elif kind == PEER_ENDPOINT:
            endpoint = parse_endpoint(bytes(payload))
        elif kind == PEER_HANDSHAKE and len(payload) >= 8:
            (handshake_at,) = struct.unpack_from("=q", payload)
        elif kind == PEER_ALLOWED:
            for _, one in attributes(payload):
                found = dict(attributes(one))
                packed, mask = bytes(found.get(ALLOWED_ADDRESS, b"")), bytes(found.get(ALLOWED_MASK, b""))
                if len(packed) in (4, 16) and mask:
                    addresses.append(f"{ipaddress.ip_address(packed)}/{mask[0]}")
    return TunnelPeer(public, endpoint, tuple(addresses), handshake_at)


class _Generic:
    """One generic netlink socket, for one request after the other."""

    def __init__(self, namespace: int | None) -> None:
        self._socket = netns.call(namespace, self._make_socket)
        self._sequence = 0

    @staticmethod
    def _make_socket() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        sock.settimeout(TIMEOUT_S)
        sock.bind((0, 0))
        return sock

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> _Generic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, family: int, command: int, body: bytes, *, flags: int = 0) -> list[memoryview]:
        """Attributes of the answers. Raises OSError with the kernel's errno."""
        self._sequence += 1
        payload = _GENERIC.pack(command, VERSION) + body
        header = _HEADER.pack(16 + len(payload), family, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, 0)
        self._socket.send(header + payload)
        answers: list[memoryview] = []
        while True:
            for kind, sequence, answer in messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    code = -struct.unpack("=i", answer[:4])[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if kind == NLMSG_DONE:
                    return answers
                answers.append(answer[_GENERIC.size :])

    def family(self, name: str) -> int:
        """Number of a family; asking loads the module that has it. Raises OSError with ENOENT where there is none."""
        body = attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
        for answer in self.request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, body):
            found = dict(attributes(answer)).get(CTRL_ATTR_FAMILY_ID)
            if found is not None:
                return int(struct.unpack("=H", found[:2])[0])
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def is_available(namespace: int | None = None) -> bool:
    """Whether this kernel has WireGuard, loaded or to be loaded."""
    try:
        with _Generic(namespace) as generic:
            generic.family(FAMILY)
    except OSError:
        return False
    return True


class KernelDevice:
    """Implements :class:`weavenet.host.wireguard.Device` for the link ``name`` of ``namespace``."""

    def __init__(self, name: str, namespace: int | None = None) -> None:
        self._name = name
        self._namespace = namespace

    def read(self) -> DeviceState:
        with _Generic(self._namespace) as generic:
            body = attribute(DEVICE_IFNAME, self._name.encode() + b"\0")
            return parse_device(generic.request(generic.family(FAMILY), WG_CMD_GET_DEVICE, body, flags=NLM_F_DUMP))

    def write(self, change: Change) -> None:
        with _Generic(self._namespace) as generic:
            family = generic.family(FAMILY)
            head, rest = change.peers[:PEERS_PER_MESSAGE], change.peers[PEERS_PER_MESSAGE:]
            generic.request(family, WG_CMD_SET_DEVICE, device_attributes(self._name, change, head))
            for start in range(0, len(rest), PEERS_PER_MESSAGE):
                part = rest[start : start + PEERS_PER_MESSAGE]
                generic.request(family, WG_CMD_SET_DEVICE, device_attributes(self._name, Change(), part))
