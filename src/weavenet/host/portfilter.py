"""What the ports of the overlay let through, as classic BPF programs in traffic control (tc-bpf(8), clsact).

- In: heartbeat frames only for this host's own plane MAC, so no container ever sees one.
- Out: no ARP for or from the address of the DNS server, which every host has.

Why not nftables: a hook of its ``netdev`` family runs for every frame, and two of them made a round trip a tenth longer
(docs/benchmarks.md). Traffic control looks at a filter's protocol first, so IP frames pay for one comparison. Classic
BPF needs no compiler, no loader and no map: a program is a few numbers in a netlink message.

Invariant: putting a filter where it is already changes nothing and opens no gap. Filters go with their device.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import NamedTuple

from weavenet.core.limits import HEARTBEAT_ETHERTYPE
from weavenet.host import netns
from weavenet.host.dnsaddress import ADDRESS as DNS_ADDRESS
from weavenet.host.links import NETLINK_ROUTE, NLM_F_REQUEST, NLMSG_ERROR, messages

ETH_P_ARP = 0x0806
ARP_SENDER, ARP_TARGET = 28, 38
"""Offsets of the protocol addresses from the start of the frame (RFC 826 over Ethernet)."""

LOAD_WORD, LOAD_HALF, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x15, 0x06
"""linux/bpf_common.h: LD|W|ABS, LD|H|ABS, JMP|JEQ|K, RET|K."""
GO_ON, DROP = 0xFFFFFFFF, 2
"""linux/pkt_cls.h: TC_ACT_UNSPEC leaves the frame to the filters of others, TC_ACT_SHOT."""

RTM_NEWQDISC, RTM_NEWTFILTER = 36, 44
NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x4, 0x200, 0x400
CLSACT, CLSACT_HANDLE, INGRESS, EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS = 4, 5, 8
DIRECT_ACTION = 1
PRIORITY, HANDLE = 6784, 1
"""Where our filters stand among those of others; the same place again replaces them."""

_HEADER = struct.Struct("=IHHII")
_TC = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_INSTRUCTION = struct.Struct("=HBBI")


class Instruction(NamedTuple):
    """struct sock_filter (linux/filter.h): the jumps count instructions that are skipped."""

    code: int
    value: int
    if_equal: int = 0
    if_not: int = 0


Program = tuple[Instruction, ...]


def only_for(mac: bytes) -> Program:
    """Drops frames for any MAC but this one."""
    return (
        Instruction(LOAD_WORD, 0),
        Instruction(JUMP_EQUAL, int.from_bytes(mac[:4], "big"), if_not=3),
        Instruction(LOAD_HALF, 4),
        Instruction(JUMP_EQUAL, int.from_bytes(mac[4:], "big"), if_not=1),
        Instruction(RETURN, GO_ON),
        Instruction(RETURN, DROP),
    )


def no_arp_about(address: str) -> Program:
    """Drops ARP packets whose sender or target has this IPv4 address."""
    number = int(ipaddress.IPv4Address(address))
    return (
        Instruction(LOAD_WORD, ARP_TARGET),
        Instruction(JUMP_EQUAL, number, if_equal=3),
        Instruction(LOAD_WORD, ARP_SENDER),
        Instruction(JUMP_EQUAL, number, if_equal=1),
        Instruction(RETURN, GO_ON),
        Instruction(RETURN, DROP),
    )


def put(namespace: int | None, index: int, mac: bytes) -> None:
    """Both filters on the port ``index``; ``mac``: that of this host's plane. Raises OSError with a sentence when this
    kernel lacks traffic control (``sch_ingress``, ``cls_bpf``), or the port is gone."""

    def make_socket() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        sock.bind((0, 0))
        return sock

    with netns.call(namespace, make_socket) as sock:
        _request(sock, _clsact(index), "cannot add the clsact qdisc", tolerate=errno.EEXIST)
        for parent, protocol, program in (
            (INGRESS, HEARTBEAT_ETHERTYPE, only_for(mac)),
            (EGRESS, ETH_P_ARP, no_arp_about(DNS_ADDRESS)),
        ):
            _request(sock, _filter(index, parent, protocol, program), f"cannot filter protocol {protocol:#06x}")


def _clsact(index: int) -> bytes:
    body = _TC.pack(socket.AF_UNSPEC, index, CLSACT_HANDLE, CLSACT, 0) + _attribute(TCA_KIND, b"clsact\0")
    return _message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def _filter(index: int, parent: int, protocol: int, program: Program) -> bytes:
    operations = b"".join(_INSTRUCTION.pack(code, yes, no, value) for code, value, yes, no in program)
    options = (
        _attribute(TCA_BPF_OPS_LEN, struct.pack("=H", len(program)))
        + _attribute(TCA_BPF_OPS, operations)
        + _attribute(TCA_BPF_FLAGS, struct.pack("=I", DIRECT_ACTION))
    )
    place = _TC.pack(socket.AF_UNSPEC, index, HANDLE, parent, PRIORITY << 16 | socket.htons(protocol))
    body = place + _attribute(TCA_KIND, b"bpf\0") + _attribute(TCA_OPTIONS, options)
    return _message(RTM_NEWTFILTER, NLM_F_CREATE, body)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body


def _request(sock: socket.socket, message: bytes, what: str, tolerate: int = 0) -> None:
    sock.send(message)
    for kind, _, payload in messages(sock.recv(64 * 1024)):
        code = -int(struct.unpack_from("=i", payload)[0]) if kind == NLMSG_ERROR else 0
        if code not in (0, tolerate):
            raise OSError(code, f"{what}: {os.strerror(code)}")
