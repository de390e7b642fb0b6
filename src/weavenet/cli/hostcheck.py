"""What `launch` checks on the host before it starts anything: does a range collide with a route, is there IPv6 for an
IPv6 range?

Reads /proc/net/route (main table, IPv4) and /proc/net/ipv6_route: netlink would cost more time than the rest of the
launch. Names of devices in there are bytes of any kind. The full set of checks is `weave setup`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from weavenet.cli.outcome import ERROR, Ended, sentence_of
from weavenet.runtime.settings import Settings

OWN_DEVICE = "weave"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ROUTES_SHOWN = 3
FLAG_LOCAL = 0x80000000
"""RTF_LOCAL of linux/ipv6_route.h: an address of this host, beside which there is the route of its subnet."""


def check_host(settings: Settings, proc: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Warnings about a chosen range that hides a route of this host. Raises Ended when a kernel without IPv6 is to have
    an IPv6 range."""
    if not settings.range_explicit:
        return ()
    return tuple(
        f"the range {text} overlaps a route of this host ({found}); next: choose another --ipalloc-range"
        for text in settings.ranges
        if (found := _overlaps(text, proc))
    )


def default_overlap(settings: Settings, proc: Path = Path("/proc/net")) -> str:
    """The same of the default range, which nobody chose: the daemon refuses it, unless it has divided it already."""
    return "" if settings.range_explicit else ", ".join(_overlaps(text, proc) for text in settings.ranges)


def _overlaps(text: str, proc: Path) -> str:
    whole = ipaddress.ip_network(text)
    routes = _routes(proc / "route") if whole.version == 4 else _routes6(whole, proc / "ipv6_route")
    found = [f"{network} on {device}" for network, device in routes if _overlap(network, whole)]
    return ", ".join(found[:ROUTES_SHOWN])


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (one.subnet_of(other) or other.subnet_of(one))  # type: ignore[arg-type]


def _routes(path: Path) -> Iterator[tuple[Network, str]]:
    """IPv4 routes of other devices than ours; the default route hides nothing."""
    for line in path.read_text(errors="replace").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[0] == OWN_DEVICE:
            continue
        destination, mask = (bytes.fromhex(fields[column])[::-1] for column in (1, 7))
        if any(mask):
            yield ipaddress.IPv4Network((destination, str(ipaddress.IPv4Address(mask))), strict=False), fields[0]


def _routes6(whole: Network, path: Path) -> Iterator[tuple[Network, str]]:
    """The same of IPv6."""
    try:
        text = path.read_text(errors="replace")
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
