"""The address arguments of ``weave attach`` and ``weave detach``: text to meaning. Pure.

``[ip:]IP/PREFIX`` asks for exactly that address, ``net:CIDR`` for any of that subnet, ``net:default`` for any of the
default subnet, one of each range. Whether an address is inside the range, and free, is IPAM's knowledge.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from weavenet.core.commands import Allocate, Attachment, Claim
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import ADDRESSES_PER_IDENT_MAX, DNS_ADDRESS
from weavenet.core.types import without_prefix

DEFAULT = "net:default"
EVERYTHING = "a subnet of all addresses; there would be no way to others"


class Wanted(msgspec.Struct, frozen=True):
    """One address argument in canonical form ``text``; exactly one of ``address`` and ``subnet`` is meant, both empty
    for the default subnet."""

    text: str
    address: str = ""
    subnet: str = ""

    def command(self, ident: str) -> Allocate | Claim:
        return Claim(ident, self.address) if self.address else Allocate(ident, self.subnet)


class Wishes(msgspec.Struct, frozen=True):
    """What an attach asks for besides addresses. ``is_named``: register a name, ``name`` or what it calls itself.
    ``rewrite_hosts``: put its name and ``hosts`` (``NAME:ADDRESS`` each) into its /etc/hosts."""

    multicast_route: bool = True
    is_named: bool = True
    name: str = ""
    rewrite_hosts: bool = False
    hosts: tuple[str, ...] = ()


NO_WISHES = Wishes()


def _invalid(text: str, found: str) -> WeaveError:
    return WeaveError(
        Failure(
            Code.INVALID,
            "expected an address as [ip:]IP/PREFIX, net:CIDR or net:default",
            f"{text[:100]!r}: {found}",
            "write it like 10.32.5.5/12 or net:10.40.0.0/16",
        )
    )


def parse(text: str) -> Wanted:
    """Raises WeaveError."""
    if text == DEFAULT:
        return Wanted(DEFAULT)
    kind, colon, value = text.partition(":")
    try:
        if kind == "net" and colon:
            subnet = str(ipaddress.ip_network(value, strict=True))
            if subnet.endswith("/0"):
                raise _invalid(text, EVERYTHING)
            return Wanted(f"net:{subnet}", subnet=subnet)
        value = value if kind == "ip" and colon else text
        if "/" not in value:
            raise _invalid(text, "the prefix length is missing")
        if "%" in value:  # which ipaddress would leave out
            raise _invalid(text, "an address of the network belongs to no device of this host")
        interface = ipaddress.ip_interface(value)
    except ValueError as error:
        raise _invalid(text, str(error)) from error
    problem = EVERYTHING if interface.network.prefixlen == 0 else _problem(interface.ip)
    if problem:
        raise _invalid(text, problem)
    return Wanted(f"ip:{interface}", address=str(interface))


def _problem(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Why no container, and no host on the network, can have it; empty when it can."""
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return "no container can have this address"
    if str(address) == DNS_ADDRESS:
        return "the DNS server of each host answers there"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"it means the IPv4 address {address.ipv4_mapped}"
    return ""


def parse_all(texts: Sequence[str]) -> tuple[Wanted, ...]:
    """Duplicates are taken once; nothing given means the default subnet. Raises WeaveError."""
    wanted = tuple(dict.fromkeys(parse(text) for text in texts)) or (Wanted(DEFAULT),)
    if len(wanted) > ADDRESSES_PER_IDENT_MAX:
        raise _invalid(texts[-1], f"more than {ADDRESSES_PER_IDENT_MAX} addresses for one container")
    return wanted


def chosen(attachment: Attachment, texts: Sequence[str]) -> tuple[str, ...]:
    """Which of the attachment's addresses ``texts`` mean; all of them when nothing is given. Raises WeaveError, also
    for an address that it has with another prefix."""
    if not texts:
        return attachment.addresses
    found: dict[str, None] = {}
    for wanted in (parse(text) for text in texts):
        for request, address in zip(attachment.requested, attachment.addresses, strict=False):
            if _means(wanted, request, address):
                found[address] = None
            elif wanted.address and without_prefix(wanted.address) == without_prefix(address):
                expected = f"expected an address that {attachment.container} has"
                raise WeaveError(Failure(Code.NOT_FOUND, expected, f"{wanted.address}; it has {address}"))
    return tuple(found)


def _means(wanted: Wanted, request: str, address: str) -> bool:
    interface = ipaddress.ip_interface(address)
    if wanted.address:
        return ipaddress.ip_interface(wanted.address) == interface
    if wanted.subnet:
        network = ipaddress.ip_network(wanted.subnet)
        return network.version == interface.version and interface.ip in network
    return request == wanted.text


def merge(
    old: Attachment | None, wanted: Iterable[Wanted], answers: Iterable[Sequence[str]]
) -> tuple[list[str], list[str]]:
    """(requested, addresses) in parallel: what was there, then what is new. ``answers``: what each of ``wanted`` got;
    the default subnet may be one per range."""
    requested = list(old.requested) if old else []
    held = list(old.addresses) if old else []
    del requested[len(held) :]
    for item, addresses in zip(wanted, answers, strict=True):
        for address in addresses:
            if address not in held:
                requested.append(item.text)
                held.append(address)
    return requested, held


def without(old: Attachment, gone: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(requested, addresses) of ``old`` after ``gone`` were taken away."""
    left = [(r, a) for r, a in zip(old.requested, old.addresses, strict=False) if a not in set(gone)]
    return tuple(r for r, _ in left), tuple(a for _, a in left)


def of_absent(old: Attachment, held: Sequence[str], texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(requested, of ``held`` what goes) when ``texts`` are detached, or all, from a container that is not there. Which
    of the requests an address was for is not known then: without any address the rest goes, too. Raises WeaveError."""
    wanted = tuple(parse(text) for text in texts)
    gone = tuple(address for address in held if any(_means(each, "", address) for each in wanted))
    requested = tuple(text for text in old.requested if parse(text) not in wanted)
    if not texts or not requested or (gone and len(gone) == len(held)):
        return (), tuple(held)
    return requested, gone
