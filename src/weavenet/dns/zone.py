"""What names stand for: the table that the daemon feeds, and what follows from it (reverse names, names in between).

Invariants: a name is found whatever its case and given back as it was entered; the reverse of an address exists exactly
while some name has it; a name above an entered one and below the domain exists without records (RFC 8020). Names
outside the domain are not taken in.

Bounds: the core's (``NAME_ENTRIES_MAX`` per peer); nothing that a container sends makes the table grow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from weavenet.dns.wire import encode_name, labels_of

LOCALHOST = encode_name("localhost")
REVERSE_NAMES_MAX = 16
"""Names given for one address."""
DOMAIN_BYTES_MAX = 200
"""On the wire: leaves room for names in it, and for that of its administrator in the SOA."""
_REVERSE4, _REVERSE6 = encode_name("in-addr.arpa"), encode_name("ip6.arpa")
_NIBBLES = {ord(digit): value for value, digit in enumerate("0123456789abcdef")}


class Entry(NamedTuple):
    """``name``: on the wire, as entered."""

    name: bytes
    addresses4: tuple[bytes, ...]
    addresses6: tuple[bytes, ...]


NOTHING = Entry(b"", (), ())
_LOCALHOST_ENTRY = Entry(LOCALHOST, (b"\x7f\0\0\1",), (b"\0" * 15 + b"\1",))


class Zone:
    """``domain``: with or without the last dot. ``ranges``: CIDRs whose addresses we speak for, named or not. Raises
    ValueError for what is neither."""

    def __init__(self, domain: str, ranges: Iterable[str] = ()) -> None:
        self.domain = encode_name(domain.lower())
        if not 1 < len(self.domain) <= DOMAIN_BYTES_MAX:
            raise ValueError(f"expected a domain of 1 to {DOMAIN_BYTES_MAX - 2} characters; found: {domain!r}")
        self.serial = 1
        """Grows with every change."""
        self._ranges = tuple(ipaddress.ip_network(text) for text in ranges)
        self._entries: dict[bytes, Entry] = {}
        self._between: dict[bytes, int] = {}  # folded name -> how many entered names are below it
        self._reverse: dict[bytes, dict[bytes, bytes]] = {}  # address -> folded -> as entered

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, name: str, addresses: Iterable[bytes]) -> list[bytes]:
        """``addresses``: packed; none: the name is gone. Returns the (folded) names about which something else is to be
        said from now on. Raises ValueError for a name or address that cannot be."""
        wire = encode_name(name)
        folded = wire.lower()
        packed = tuple(dict.fromkeys(addresses))
        if any(len(address) not in (4, 16) for address in packed):
            raise ValueError(f"expected packed addresses of 4 or 16 bytes for {name}")
        if self.below(folded) <= 0:
            return []
        self.serial = self.serial + 1 & 0xFFFFFFFF
        before = self._remove(folded)
        if packed:
            four = tuple(address for address in packed if len(address) == 4)
            six = tuple(address for address in packed if len(address) == 16)
            self._add(folded, Entry(wire, four, six))
        names = [folded, *self._above(folded)]
        single = names[-1][: names[-1][0] + 1] + b"\0"  # stands for the one just below the domain
        return [*names, single, *(reverse_name(address) for address in {*before, *packed})]

    def _add(self, folded: bytes, entry: Entry) -> None:
        self._entries[folded] = entry
        for above in self._above(folded):
            self._between[above] = self._between.get(above, 0) + 1
        for address in (*entry.addresses4, *entry.addresses6):
            self._reverse.setdefault(address, {})[folded] = entry.name

    def _remove(self, folded: bytes) -> tuple[bytes, ...]:
        """The addresses it had."""
        entry = self._entries.pop(folded, None)
        if entry is None:
            return ()
        for above in self._above(folded):
            self._between[above] -= 1
            if not self._between[above]:
                del self._between[above]
        for address in (*entry.addresses4, *entry.addresses6):
            names = self._reverse[address]
            del names[folded]
            if not names:
                self._reverse.pop(address)
        return (*entry.addresses4, *entry.addresses6)

    def _above(self, folded: bytes) -> list[bytes]:
        """Names strictly between ``folded`` and the domain."""
        last = self.below(folded)
        return [folded[at:] for at in labels_of(folded) if 0 < at < last]

    def below(self, folded: bytes) -> int:
        """Where the domain begins in ``folded``: 0 when it is the domain, -1 when it is not below it."""
        at = len(folded) - len(self.domain)
        if at < 0 or not folded.endswith(self.domain):
            return -1
        return at if at == 0 or at in labels_of(folded) else -1

    def find(self, folded: bytes) -> Entry | None:
        """``folded`` is below the domain or ``localhost``. Without addresses: the name exists, no more."""
        entry = self._entries.get(folded)
        if entry is not None:
            return entry
        if folded == LOCALHOST:
            return _LOCALHOST_ENTRY
        return NOTHING if folded == self.domain or folded in self._between else None

    def names(self, address: bytes) -> list[bytes]:
        """Of a packed address, as entered, in the order of their lower-case forms."""
        found = self._reverse.get(address)
        return [found[folded] for folded in sorted(found)[:REVERSE_NAMES_MAX]] if found else []

    def speaks_for(self, address: bytes) -> bool:
        """Whether ``address`` (packed) is one of the network's."""
        if address in self._reverse:
            return True
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._ranges)


def reverse_name(address: bytes) -> bytes:
    """On the wire, of a packed address; the reverse of :func:`reverse_address`."""
    if len(address) == 4:
        labels = [b"%d" % octet for octet in reversed(address)]
        return b"".join(bytes([len(label)]) + label for label in labels) + _REVERSE4
    return b"".join(b"\1%c" % digit for digit in reversed(address.hex().encode())) + _REVERSE6


def reverse_address(folded: bytes) -> bytes | None:
    """The packed address of a complete reverse name (RFC 1035, 3.5; RFC 3596, 2.5); None for any other name."""
    if folded.endswith(_REVERSE4):
        labels = _labels(folded, len(_REVERSE4))
        if len(labels) != 4:
            return None
        octets = [int(label) for label in labels if label.isdigit() and len(label) <= 3]
        if len(octets) != 4 or any(octet > 255 or str(octet).encode() != labels[i] for i, octet in enumerate(octets)):
            return None
        return bytes(reversed(octets))
    if folded.endswith(_REVERSE6):
        labels = _labels(folded, len(_REVERSE6))
        if len(labels) != 32 or any(len(label) != 1 or label[0] not in _NIBBLES for label in labels):
            return None
        nibbles = [_NIBBLES[label[0]] for label in reversed(labels)]
        return bytes(nibbles[i] << 4 | nibbles[i + 1] for i in range(0, 32, 2))
    return None


def _labels(folded: bytes, suffix_bytes: int) -> list[bytes]:
    """Labels before the last ``suffix_bytes``; none when these do not begin at a label."""
    end = len(folded) - suffix_bytes
    found = [(at, folded[at + 1 : at + 1 + folded[at]]) for at in labels_of(folded)]
    return [label for at, label in found if at < end] if any(at == end for at, _ in found) else []
