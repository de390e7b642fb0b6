"""Hosts as if behind a masquerading router: they reach others, others reach them only in answer.

The translation is done in the host's own namespace, so each host has a router, and a table of flows, of its own. What
leaves gets a source port of the router; what comes in passes only as part of a flow that began inside, from exactly the
address and port that it went to ("port-restricted"). ``CONE`` keeps the source port where it is free, as Linux and most
home routers do: two such hosts can reach each other when both know where to aim. ``SYMMETRIC`` takes another port for
each flow, as carriers do: two such hosts need a third.
"""

from __future__ import annotations

from enum import StrEnum

TABLE = "weavelab"
PORTS = "20000-59999"


class Nat(StrEnum):
    """See the module docstring."""

    CONE = "cone"
    SYMMETRIC = "symmetric"


def rules(nat: Nat | None) -> str:
    """For ``nft -f -`` in the host's namespace; replaces what was there. None: no router in between."""
    clear = f"table ip {TABLE}\ndelete table ip {TABLE}\n"
    if nat is None:
        return clear
    ports = f" to :{PORTS} random" if nat is Nat.SYMMETRIC else ""
    return (
        f"{clear}table ip {TABLE} {{\n"
        " chain out {\n"
        "  type nat hook postrouting priority 100\n"
        f'  oifname "eth0" meta l4proto {{ tcp, udp }} masquerade{ports}\n'
        " }\n"
        " chain in {\n"
        "  type filter hook input priority -30\n"
        '  iifname "eth0" ct state established,related return\n'
        '  iifname "eth0" drop\n'
        " }\n}\n"
    )
