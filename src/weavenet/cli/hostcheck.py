"""What `launch` checks on the host before it starts anything: does the range collide with a route?

Reads /proc/net/route (main table, IPv4): netlink would cost more time than the rest of the launch. The full set of
checks is `weave setup`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from weavenet.cli.outcome import ERROR, Ended, sentence_of
from weavenet.runtime.settings import Settings

OWN_DEVICE = "weave"
ROUTES = Path("/proc/net/route")


def check_host(settings: Settings, routes: str | None = None) -> tuple[str, ...]:
    """Warnings; raises Ended when the default range, which nobody chose, would hide a route of this host."""
    if not settings.ranges:
        return ()
    text = ROUTES.read_text() if routes is None else routes
    whole = ipaddress.IPv4Network(settings.ranges[0])
    clashes = [f"{network} on {device}" for network, device in _routes(text) if network.overlaps(whole)]
    if not clashes:
        return ()
    found = ", ".join(clashes[:3])
    if settings.range_explicit:
        return (f"the range {whole} overlaps a route of this host ({found}); next: choose another --ipalloc-range",)
    fields: dict[str, object] = {
        "expected": f"expected the default range {whole} not to overlap a route of this host",
        "found": found,
        "next_step": "weave launch --ipalloc-range CIDR with a free range, the same on every host",
    }
    raise Ended(ERROR, sentence_of(fields))


def _routes(text: str) -> Iterator[tuple[ipaddress.IPv4Network, str]]:
    """Routes of other devices than ours; the default route hides nothing."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[0] == OWN_DEVICE:
            continue
        destination, mask = (bytes.fromhex(fields[column])[::-1] for column in (1, 7))
        if any(mask):
            yield ipaddress.IPv4Network((destination, str(ipaddress.IPv4Address(mask))), strict=False), fields[0]
