"""Which forwarding entries a set of peers needs, and what has to change to get there. Pure functions on sets.

Kernel facts behind it (vxlan without learning, port with ``neigh_suppress``): the device forwards by its own table, an
all-zero MAC is the flood list; the bridge answers ARP and ND for an address only when its neighbour table knows the
address and its own forwarding table has the MAC pinned to the suppressing port.

A peer that is not on VXLAN now keeps only the entry that lets heartbeats reach its plane device, or none at all; MACs
behind it are pinned to the port of the sleeve worker, which answers and suppresses like that of VXLAN.

Invariant: puts are to be executed before removes, so that an entry that moves is never missing in between.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from weavenet.core.effects import PlanePeer, VxlanUse
from weavenet.core.limits import ENDPOINT_ADDRESSES_MAX
from weavenet.core.types import PeerId, without_prefix

NO_TUNNELS: Mapping[PeerId, str] = MappingProxyType({})
TAP = 1
"""In place of an address family: the port of the sleeve worker."""


class Kind(enum.IntEnum):
    """In the order in which entries are put; they are removed in the opposite order."""

    DEVICE = 1
    """``mac`` lives behind address ``where``, of the underlay or of a tunnel (``address%index``)."""
    PIN = 2
    """The bridge forwards ``mac`` to the overlay port."""
    NEIGHBOUR = 3
    """The bridge answers for address ``where`` with ``mac``."""
    FLOOD = 4
    """Broadcasts go to address ``where``, of the underlay or of a tunnel."""


class Entry(NamedTuple):
    """``family``: 4 or 6, that of the VXLAN device, or TAP; 0 for neighbours, which are the bridge's."""

    kind: Kind
    family: int
    mac: bytes
    where: str


def family_of(host: str) -> int:
    """4 or 6. Raises ValueError when ``host`` is no numeric address."""
    return ipaddress.ip_address(host).version


def canonical(address: str) -> str:
    host, percent, link = address.partition("%")
    return f"{ipaddress.ip_address(host)}{percent}{link}"


def _is_of_a_container(address: str) -> bool:
    """Others must not have an answer given in the name of what every host has for itself, such as its DNS server."""
    found = ipaddress.ip_address(address)
    return not (found.is_link_local or found.is_loopback or found.is_multicast or found.is_unspecified)


def wanted(
    peers: Iterable[PlanePeer],
    tunnels: Mapping[PeerId, str] = NO_TUNNELS,
    here: Collection[bytes] = frozenset(),
) -> tuple[frozenset[Entry], tuple[str, ...]]:
    """Entries that ``peers`` need, and sentences about what was left out. ``tunnels``: where VXLAN goes for peers that
    are reached through one; a peer that is to be and is not among them is not on VXLAN. ``here``: MACs of this host,
    which are nobody else's whatever he announces: what containers send to this host would go to him.

    When two peers claim one MAC or one address, the lower PeerId has it, so that every host decides alike.
    """
    entries: set[Entry] = set()
    complaints: list[str] = []
    macs: dict[bytes, PeerId] = {}
    addresses: dict[str, bytes] = {}
    peers = sorted(peers, key=lambda peer: peer.peer)
    for peer in peers:
        macs.setdefault(peer.mac, peer.peer)  # derived from its id, so before what anybody announces
    for peer in peers:
        try:
            family, host = family_of(peer.host), canonical(peer.host)
        except ValueError:
            complaints.append(f"no data path to {peer.peer.hex()}: {peer.host!r} is no underlay address")
            continue
        use = peer.vxlan
        if peer.tunnel is not None:
            family, host = 4, tunnels.get(peer.peer, "")
            use = use if host else VxlanUse.CLOSED
        carries = use is VxlanUse.CARRIES
        if carries:
            entries.add(Entry(Kind.FLOOD, family, b"", host))
        if use is not VxlanUse.CLOSED and macs.setdefault(peer.mac, peer.peer) == peer.peer:
            entries.add(Entry(Kind.DEVICE, family, peer.mac, host))
        for endpoint in peer.endpoints:
            is_unicast = not endpoint.mac[0] & 1 and any(endpoint.mac)
            if not is_unicast or endpoint.mac in here or macs.setdefault(endpoint.mac, peer.peer) != peer.peer:
                complaints.append(
                    f"MAC {endpoint.mac.hex(':')} announced by {peer.peer.hex()} is taken or no unicast MAC"
                )
                continue
            if carries:
                entries.add(Entry(Kind.DEVICE, family, endpoint.mac, host))
            entries.add(Entry(Kind.PIN, family if carries else TAP, endpoint.mac, ""))
            for text in endpoint.addresses[:ENDPOINT_ADDRESSES_MAX]:
                address = canonical(without_prefix(text))
                if not _is_of_a_container(address):
                    complaints.append(f"address {address} announced by {peer.peer.hex()} is none of a container")
                elif addresses.setdefault(address, endpoint.mac) == endpoint.mac:
                    entries.add(Entry(Kind.NEIGHBOUR, 0, endpoint.mac, address))
    return frozenset(entries), tuple(complaints)


def difference(present: Iterable[Entry], target: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """(puts, removes) that lead from ``present`` to ``target``; execute the puts first.

    A neighbour entry is keyed by its address alone, so putting it anew replaces it and the old one is not removed.
    """
    have, want = frozenset(present), frozenset(target)
    puts = sorted(want - have)
    kept = {entry.where for entry in want if entry.kind is Kind.NEIGHBOUR}
    removes = [entry for entry in have - want if entry.kind is not Kind.NEIGHBOUR or entry.where not in kept]
    return puts, sorted(removes, reverse=True)


class Present:
    """The entries believed to be in the kernel; neighbours are found by address as well."""

    def __init__(self) -> None:
        self._entries: set[Entry] = set()
        self._neighbours: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries

    def add(self, entry: Entry) -> None:
        if entry.kind is Kind.NEIGHBOUR:
            self._entries.discard(self._neighbours.get(entry.where, entry))
            self._neighbours[entry.where] = entry
        self._entries.add(entry)

    def discard(self, entry: Entry) -> None:
        self._entries.discard(entry)
        if self._neighbours.get(entry.where) == entry:
            del self._neighbours[entry.where]

    def neighbour(self, address: str) -> Entry | None:
        return self._neighbours.get(address)
