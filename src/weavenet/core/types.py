"""Value types shared by every core: identities, stamps, segments, decrees, ranges.

Everything here is an immutable value. Structs are ``array_like``: their field order is their wire order, so fields are
only ever appended. Addresses are *offsets* within an :class:`AddressRange`; text form exists only at the edges.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Annotated, NewType

import msgspec

PeerId = NewType("PeerId", bytes)
"""SHA-256(raw Ed25519 public key)[:16]; never reused. The ring, votes and records use it."""

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes8 = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Bytes6 = Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
WirePeerId = Annotated[PeerId, msgspec.Meta(min_length=16, max_length=16)]
Uint = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Sentence = Annotated[str, msgspec.Meta(max_length=500)]
Label = Annotated[str, msgspec.Meta(max_length=255)]

ZERO8 = bytes(8)
ZERO16 = bytes(16)


class Position(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A place in the decree log: (epoch, epoch id, number), totally ordered. Genesis is ((0, zeros), 0)."""

    epoch: Uint
    epoch_id: Bytes8
    number: Uint


GENESIS_POSITION = Position(0, ZERO8, 0)


class Stamp(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Ownership of an address: totally ordered lexicographically; two stamps are equal iff they are identical."""

    position: Position
    version: Annotated[int, msgspec.Meta(ge=1)]
    owner: WirePeerId


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Addresses ``start <= offset < end`` carry ``stamp``."""

    start: Uint
    end: Uint
    stamp: Stamp


class Genesis(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The cluster record. ``owners`` get equal initial shares; ``electors`` may vote."""

    cluster: Bytes16
    ranges: tuple[Label, ...]
    electors: tuple[WirePeerId, ...]
    owners: tuple[WirePeerId, ...]


class Electors(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """``electors := S`` (decreed from "IPAM complete" on; carried and merged today)."""

    electors: tuple[WirePeerId, ...]


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """``remove {X…}, heir H``: whatever the removed own counts as the heir's."""

    removed: tuple[WirePeerId, ...]
    heir: WirePeerId


Decree = Genesis | Electors | Remove


class LogEntry(msgspec.Struct, frozen=True, array_like=True):
    """One decided decree, chained to its predecessor by hash (zeros for the genesis)."""

    position: Position
    predecessor: Bytes16
    decree: Decree


def entry_hash(entry: LogEntry) -> bytes:
    """16-byte identity of a log entry: SHA-256 of its canonical msgpack encoding, truncated."""
    import hashlib  # its library takes 4 MB, which workers that import this module do not need

    return hashlib.sha256(msgspec.msgpack.encode(entry)).digest()[:16]


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Paxos ballot. ``nonce`` is fresh per process start, so that a blank store is a new proposer
    (*lost-disk-elector*)."""

    round: Uint
    proposer: WirePeerId
    nonce: Bytes8


ZERO_BALLOT = Ballot(0, PeerId(ZERO16), ZERO8)


def peer_text(peer: PeerId) -> str:
    """Lower-case hex of a PeerId, as shown to people."""
    return peer.hex()


def plane_mac(peer: PeerId) -> bytes:
    """Locally administered unicast MAC of a peer's VXLAN device; derived, so nobody needs to be told."""
    return bytes([(peer[0] & 0xFC) | 0x02]) + peer[1:6]


def bridge_mac(peer: PeerId) -> bytes:
    """Locally administered unicast MAC of a peer's bridge ``weave``."""
    return bytes([(peer[6] & 0xFC) | 0x02]) + peer[7:12]


def mac_text(mac: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in mac)


@lru_cache(maxsize=8192)
def without_prefix(text: str) -> str:
    """``10.32.0.1`` of ``10.32.0.1/12``."""
    return text.partition("/")[0]


def is_ip_address(text: str) -> bool:
    """Whether ``text`` is an IPv4 or IPv6 address without prefix length. What others say is asked again and again."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class AddressRange(msgspec.Struct, frozen=True):
    """A CIDR that owns offsets ``0 … size-1``.

    At most 2^64 - 1 addresses, since msgpack integers stop there (an IPv6 /64 loses its last address).
    """

    version: int
    base: int
    prefix_length: int

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(cidr: str) -> AddressRange:
        """Parse ``10.32.0.0/12``. Raises ValueError when host bits are set or the text is no CIDR."""
        network = ipaddress.ip_network(cidr, strict=True)
        return AddressRange(network.version, int(network.network_address), network.prefixlen)

    @property
    def size(self) -> int:
        return min(self._span, (1 << 64) - 1)

    @property
    def _span(self) -> int:
        return 1 << ((32 if self.version == 4 else 128) - self.prefix_length)

    @property
    def cidr(self) -> str:
        return f"{self.address(0)}/{self.prefix_length}"

    def address(self, offset: int) -> str:
        """Text form of the address at ``offset``."""
        value = self.base + offset
        if self.version == 4:
            return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
        return str(ipaddress.IPv6Address(value))

    def offset(self, address: str) -> int | None:
        """Offset of ``address``, or None when it is outside. Raises ValueError when it is no address."""
        parsed = ipaddress.ip_address(address)
        if parsed.version != self.version:
            return None
        offset = int(parsed) - self.base
        return offset if 0 <= offset < self.size else None

    def window(self, subnet: AddressRange) -> tuple[int, int] | None:
        """Offsets [low, high) of ``subnet`` within this range, clipped; None when they do not overlap."""
        if subnet.version != self.version:
            return None
        low = max(subnet.base, self.base) - self.base
        high = min(subnet.base + subnet._span, self.base + self.size) - self.base
        return (low, high) if low < high else None
