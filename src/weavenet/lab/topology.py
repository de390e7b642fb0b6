"""A lab's shape as a file: which hosts, which addresses, who is connected with whom.

address = "192.168.77.0/24"      # of the underlay; hosts without an address get the next free one

[[host]]
name = "h1"
address = "192.168.77.10"

[[host]]
name = "h2"

[[link]]                          # with any link given, only linked hosts reach each other
between = ["h1", "h2"]
loss = "1%"
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import tomllib
from pathlib import Path

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab.state import HostState, LabState, Loss, pair

HOSTS_MAX = 50
UNDERLAY = "192.168.77.0/24"
WEAVE_RANGE = ipaddress.IPv4Network("10.32.0.0/12")
UNFIT = (WEAVE_RANGE, *map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.53.53/32", "224.0.0.0/3")))
"""Weave's own, its DNS server's, and what no host on a network has (RFC 6890)."""
MTU_MIN, MTU_MAX = 576, 65_535
"""What every IPv4 host takes, and the largest there is (RFC 791)."""
HOST_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")  # also the name of its port, which the kernel bounds to 15
RESERVED = frozenset({"underlay", "localhost", "lo", "all", "default"})
"""Taken in the underlay or in /etc/hosts, or no name of a device: the kernel has settings of these names for all."""


class HostEntry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: str = ""


class LinkEntry(msgspec.Struct, forbid_unknown_fields=True):
    between: tuple[str, str]
    loss: str = "0%"


class Topology(msgspec.Struct, forbid_unknown_fields=True, rename={"hosts": "host", "links": "link"}):
    hosts: list[HostEntry] = []
    links: list[LinkEntry] | None = None
    address: str = UNDERLAY


def of_count(count: int) -> Topology:
    """h1 … hN, everybody connected with everybody."""
    if not 1 <= count <= HOSTS_MAX:
        raise _refused(f"a lab has 1 to {HOSTS_MAX} hosts", str(count), "weave lab up 3")
    return Topology(hosts=[HostEntry(f"h{number}") for number in range(1, count + 1)])


def read(file: Path) -> Topology:
    try:
        topology = msgspec.convert(tomllib.loads(file.read_text()), type=Topology)
    except OSError as problem:
        raise _refused(
            f"{file} is a readable topology file", problem.strerror or str(problem), "name another"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as problem:
        raise _refused(
            f"{file} is a topology as `weave lab up --help` shows", str(problem), "correct the file"
        ) from None
    if not 1 <= len(topology.hosts) <= HOSTS_MAX:
        raise _refused(f"{file} has 1 to {HOSTS_MAX} [[host]] entries", str(len(topology.hosts)), "correct the file")
    return topology


def parse_count(text: str | None) -> int:
    """How many hosts; whether a lab may have so many is another question."""
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text):
        raise _refused(f"a number of hosts, 1 to {HOSTS_MAX}", repr(text or ""), "weave lab up 3")
    return int(text)


def parse_loss(text: str) -> int:
    """``5%`` or ``0.1%`` -> thousandths of a percent."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?)%?", text)
    if found is None or float(found[1]) > 100:
        raise _refused("loss is a share from 0% to 100%, down to 0.001%", repr(text), "weave lab loss h1 h2 5%")
    return round(float(found[1]) * 1000)


def parse_mtu(text: str) -> int:
    """Bytes of the largest packet, or 0 for no bound."""
    size = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if size != 0 and not MTU_MIN <= size <= MTU_MAX:
        raise _refused(f"SIZE is from {MTU_MIN} to {MTU_MAX} bytes, or 0", repr(text), "weave lab mtu h1 h2 1280")
    return size


def plan(name: str, topology: Topology) -> LabState:
    """The state of a lab that does not run yet: names, addresses, MACs, machine ids."""
    try:
        network = ipaddress.IPv4Network(topology.address)
    except ValueError as problem:
        raise _refused("address is an IPv4 network", str(problem), f'address = "{UNDERLAY}"') from None
    if any(map(network.overlaps, UNFIT)) or network.num_addresses < len(topology.hosts) + 3:
        raise _refused(
            f"the underlay has room for {len(topology.hosts)} hosts and lies outside {', '.join(map(str, UNFIT))}",
            str(network),
            f'address = "{UNDERLAY}"',
        )
    state = LabState(name=name, prefix_length=network.prefixlen, underlay_address=str(network[-2]))
    given = {entry.address for entry in topology.hosts if entry.address}
    free = (address for address in map(str, network.hosts()) if address not in given)
    lab_bytes = secrets.token_bytes(2).hex(":")
    for number, entry in enumerate(topology.hosts, start=1):
        if not HOST_NAME.fullmatch(entry.name) or entry.name in RESERVED or entry.name in state.hosts:
            raise _refused(
                "each host has a name of its own: a small letter, then up to 11 small letters, digits, dashes",
                repr(entry.name),
                'name = "h1"',
            )
        address = entry.address or next(free)
        _check_address(address, network, state)
        state.hosts[entry.name] = HostState(
            name=entry.name,
            address=address,
            mac=f"02:77:{lab_bytes}:00:{number:02x}",
            machine_id=secrets.token_hex(16),
        )
    for link in topology.links or ():
        for end in link.between:
            if end not in state.hosts or link.between[0] == link.between[1]:
                raise _refused("a link is between two hosts of the file", repr(link.between), "correct the file")
    if topology.links is not None:
        state.links = [pair(*link.between) for link in topology.links]
        state.link_loss = [Loss(*pair(*link.between), parse_loss(link.loss)) for link in topology.links]
    return state


def _check_address(address: str, network: ipaddress.IPv4Network, state: LabState) -> None:
    try:
        parsed = ipaddress.IPv4Address(address)
        is_inside = network[0] < parsed < network[-2]
    except ValueError:
        is_inside = False
    if not is_inside or address in {host.address for host in state.hosts.values()}:
        raise _refused(
            f"each host has an address of its own in {network} (its last one is the bridge's)",
            address,
            "correct the file",
        )


def _refused(expected: str, found: str, next_step: str) -> WeaveError:
    return WeaveError(Failure(Code.INVALID, expected, found, next_step))
