"""What the ports of the overlay let out, as a classic BPF program in traffic control (tc-bpf(8), clsact): no ARP for or
from the address of the DNS server, which every host has.

Why not nftables: a hook of its ``netdev`` family runs for every frame, and two of them made a round trip a tenth longer
(docs/benchmarks.md). Traffic control looks at a filter's protocol first, so IP frames pay for one comparison; still,
one more filter on the way in would cost a round trip 4 %. Classic BPF needs no compiler, no loader and no map: a
program is a few numbers in a netlink message.

Invariant: putting the filter where it is already changes nothing and opens no gap. It goes with its device.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import NamedTuple

from weavenet.host.dnsaddress import ADDRESS as DNS_ADDRESS
from weavenet.host.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, attribute, message, open_socket, request

ETH_P_ARP = 0x0806
ARP_SENDER, ARP_TARGET = 28, 38
"""Offsets of the protocol addresses from the start of the frame (RFC 826 over Ethernet)."""

LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
"""linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K."""
GO_ON, DROP = 0xFFFFFFFF, 2
"""linux/pkt_cls.h: TC_ACT_UNSPEC leaves the frame to the filters of others, TC_ACT_SHOT."""

RTM_NEWQDISC, RTM_NEWTFILTER = 36, 44
CLSACT, CLSACT_HANDLE, EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF3
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS = 4, 5, 8
DIRECT_ACTION = 1
PRIORITY, HANDLE = 6784, 1
"""Where our filter stands among those of others; the same place again replaces it."""

_TC = struct.Struct("=BxxxiIII")
_INSTRUCTION = struct.Struct("=HBBI")


class Instruction(NamedTuple):
    """struct sock_filter (linux/filter.h): the jumps count instructions that are skipped."""

    code: int
    value: int
    if_equal: int = 0
    if_not: int = 0


Program = tuple[Instruction, ...]


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


def put(namespace: int | None, index: int) -> None:
    """The filter on the port ``index``. Raises OSError with a sentence when this kernel lacks traffic control
    (``sch_ingress``, ``cls_bpf``), or the port is gone."""
    with open_socket(namespace) as sock:
        request(sock, _clsact(index), "cannot add the clsact qdisc", tolerate=errno.EEXIST)
        request(sock, _filter(index, EGRESS, ETH_P_ARP, no_arp_about(DNS_ADDRESS)), "cannot filter ARP")


def _clsact(index: int) -> bytes:
    body = _TC.pack(socket.AF_UNSPEC, index, CLSACT_HANDLE, CLSACT, 0) + attribute(TCA_KIND, b"clsact\0")
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def _filter(index: int, parent: int, protocol: int, program: Program) -> bytes:
    operations = b"".join(_INSTRUCTION.pack(code, yes, no, value) for code, value, yes, no in program)
    options = (
        attribute(TCA_BPF_OPS_LEN, struct.pack("=H", len(program)))
        + attribute(TCA_BPF_OPS, operations)
        + attribute(TCA_BPF_FLAGS, struct.pack("=I", DIRECT_ACTION))
    )
    place = _TC.pack(socket.AF_UNSPEC, index, HANDLE, parent, PRIORITY << 16 | socket.htons(protocol))
    body = place + attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, options)
    return message(RTM_NEWTFILTER, NLM_F_CREATE, body)
