"""What `launch` checks on the host before it starts anything: does a range collide with a route, is there IPv6 for an
IPv6 range?

Reads /proc/net/route (main table, IPv4) and /proc/net/ipv6_route: netlink would cost more time than the rest of the
launch. The full set of checks is `weave setup`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from weavenet.cli.outcome import ERROR, Ended, sentence_of
from weavenet.runtime.settings import Settings

OWN_DEVICE = "weave"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FLAG_LOCAL = 0x80000000
"""RTF_LOCAL of linux/ipv6_route.h: an address of this host, beside which there is the route of its subnet."""


def check_host(settings: Settings, proc: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Warnings; raises Ended when the default range, which nobody chose, would hide a route of this host, and when a
    kernel without IPv6 is to have an IPv6 range."""
    warnings: list[str] = []
    for text in settings.ranges:
        whole = ipaddress.ip_network(text)
        warnings += _clash(whole, is_chosen=settings.range_explicit, proc=proc)
    return tuple(warnings)


def _clash(whole: Network, *, is_chosen: bool, proc: Path) -> list[str]:
    routes = _routes(proc / "route") if whole.version == 4 else _routes6(whole, proc / "ipv6_route")
    clashes = [f"{network} on {device}" for network, device in routes if _overlap(network, whole)]
    if not clashes:
        return []
    found = ", ".join(clashes[:3])
    if is_chosen:
        return [f"the range {whole} overlaps a route of this host ({found}); next: choose another --ipalloc-range"]
    fields: dict[str, object] = {
        "expected": f"expected the default range {whole} not to overlap a route of this host",
        "found": found,
        "next_step": "weave launch --ipalloc-range CIDR with a free range, the same on every host",
    }
    raise Ended(ERROR, sentence_of(fields))


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (one.subnet_of(other) or other.subnet_of(one))  # type: ignore[arg-type]


def _routes(path: Path) -> Iterator[tuple[Network, str]]:
    """IPv4 routes of other devices than ours; the default route hides nothing."""
    for line in path.read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[0] == OWN_DEVICE:
            continue
        destination, mask = (bytes.fromhex(fields[column])[::-1] for column in (1, 7))
        if any(mask):
            yield ipaddress.IPv4Network((destination, str(ipaddress.IPv4Address(mask))), strict=False), fields[0]


def _routes6(whole: Network, path: Path) -> Iterator[tuple[Network, str]]:
    """The same of IPv6."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        fields: dict[str, object] = {
            "expected": f"expected a kernel with IPv6 for the range {whole}",
            "found": f"no {path}: IPv6 is switched off for the whole host",
            "next_step": "boot without ipv6.disable=1, or use an --ipalloc-range without IPv6 on every host",
        }
        raise Ended(ERROR, sentence_of(fields)) from None
    for line in text.splitlines():
        fields6 = line.split()
        if len(fields6) < 10 or fields6[9] in {OWN_DEVICE, "lo"} or int(fields6[8], 16) & FLAG_LOCAL:
            continue
        network = ipaddress.IPv6Network((bytes.fromhex(fields6[0]), int(fields6[1], 16)))
        if network.prefixlen and not (network.is_multicast or network.is_link_local):
            yield network, fields6[9]
