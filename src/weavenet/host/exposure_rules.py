"""What exposing the host adds to the firewall, as data: masquerading in tables of ours, accept rules in others' chains.

- ``ip`` and ``ip6``: tables ``weave`` with one NAT chain, absent while nothing is masqueraded. Traffic from outside to
  a container gets the host's address on the network, traffic of containers to outside that of the way out; what stays
  on the bridge, and multicast, stays as it is.
- Where a chain of a table ``filter`` drops what is forwarded, traffic from and to exposed subnets is accepted at the
  top of DOCKER-USER, else of that chain. Such a rule says in its comment what it is for; by that it is found, and
  removed with ``hide``.

Pure functions; :mod:`weavenet.host.firewall` applies them.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from weavenet.core.limits import BRIDGE
from weavenet.host.nft import Command
from weavenet.host.rules import ACCEPT, IFNAME, TABLE, closed_chains, delete_table, field, gate, match

COMMENT = "weave expose"
OUTPUT_NAME: Command = {"meta": {"key": "oifname"}}
SOURCE_NAT_PRIORITY = 100
MASQUERADE: Command = {"masquerade": None}
MULTICAST = {"ip": "224.0.0.0/4", "ip6": "ff00::/8"}
FAMILIES = ("ip", "ip6")


class Exposed(NamedTuple):
    """A subnet (CIDR without host bits) in which this host has an address."""

    subnet: str
    masquerade: bool = True

    @property
    def family(self) -> str:
        return "ip" if ipaddress.ip_network(self.subnet).version == 4 else "ip6"


def _prefix(subnet: str) -> Command:
    address, _, length = subnet.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def nat_tables(exposed: Iterable[Exposed]) -> list[Command]:
    """Both tables anew, in one transaction with whatever else."""
    wanted = sorted({item for item in exposed if item.masquerade})
    commands: list[Command] = []
    for family in FAMILIES:
        commands += delete_table(family)
        subnets = [item.subnet for item in wanted if item.family == family]
        if subnets:
            commands += _nat_table(family, subnets)
    return commands


def _nat_table(family: str, subnets: Sequence[str]) -> list[Command]:
    chain = {"family": family, "table": TABLE, "name": "postrouting"}
    place = {"family": family, "table": TABLE, "chain": "postrouting"}
    hook = {"type": "nat", "hook": "postrouting", "prio": SOURCE_NAT_PRIORITY, "policy": "accept"}
    source, destination = field(family, "saddr"), field(family, "daddr")
    expressions: list[list[Command]] = [[match(destination, _prefix(MULTICAST[family])), {"return": None}]]
    for subnet in subnets:
        inside = _prefix(subnet)
        expressions.append(
            [match(OUTPUT_NAME, BRIDGE), match(destination, inside), match(source, inside, "!="), MASQUERADE]
        )
        expressions.append([match(OUTPUT_NAME, BRIDGE, "!="), match(source, inside), MASQUERADE])
    return [
        {"add": {"table": {"family": family, "name": TABLE}}},
        {"add": {"chain": chain | hook}},
        *({"add": {"rule": place | {"expr": expression}}} for expression in expressions),
    ]


class Opening(NamedTuple):
    """One accept rule: ``is_inbound`` for what is forwarded to the subnet, else for what comes from it."""

    subnet: str
    is_inbound: bool

    @property
    def comment(self) -> str:
        return f"{COMMENT} {'to' if self.is_inbound else 'from'} {self.subnet}"

    def nft(self, family: str, chain: str) -> Command:
        interface, name = (OUTPUT_NAME, "daddr") if self.is_inbound else (IFNAME, "saddr")
        protocol = Exposed(self.subnet).family
        expression = [match(interface, BRIDGE), match(field(protocol, name), _prefix(self.subnet)), ACCEPT]
        body = {"family": family, "table": "filter", "chain": chain, "comment": self.comment, "expr": expression}
        return {"insert": {"rule": body}}

    def legacy(self) -> list[str]:
        """Arguments of iptables after the chain."""
        interface, side = ("-o", "-d") if self.is_inbound else ("-i", "-s")
        tag = ["-m", "comment", "--comment", self.comment]
        return [side, self.subnet, interface, BRIDGE, *tag, "-j", "ACCEPT"]


def openings(exposed: Iterable[Exposed], family: str) -> list[Opening]:
    """Those for the tables of a family; ``inet`` has both."""
    subnets = sorted({item.subnet for item in exposed if family in (item.family, "inet")})
    return [Opening(subnet, is_inbound) for subnet in subnets for is_inbound in (True, False)]


def forward_changes(ruleset: Iterable[Command], exposed: Sequence[Exposed]) -> list[Command]:
    """What to insert and delete in tables ``filter`` of others. ``ruleset``: objects of ``list ruleset``."""
    ruleset = tuple(ruleset)
    present: dict[tuple[str, str], dict[str, Command]] = {}
    for rule in (item["rule"] for item in ruleset if "rule" in item):
        if rule.get("table") == "filter" and str(rule.get("comment", "")).startswith(COMMENT):
            present.setdefault((rule["family"], gate(rule["chain"])), {})[rule["comment"]] = rule
    commands: list[Command] = []
    kept: set[tuple[str, str, str]] = set()
    for family, chain in closed_chains(ruleset):
        there = present.get((family, gate(chain)), {})
        wanted = openings(exposed, family)
        kept |= {(family, gate(chain), opening.comment) for opening in wanted}
        commands += [opening.nft(family, chain) for opening in wanted if opening.comment not in there]
    for (family, name), rules in present.items():
        for comment, rule in rules.items():
            if (family, name, comment) not in kept:
                place = {key: rule[key] for key in ("family", "table", "chain", "handle")}
                commands.append({"delete": {"rule": place}})
    return commands


def legacy_drops(listing: str) -> bool:
    """Whether FORWARD drops what no rule accepts: by its policy, or by a rule at the end. ``listing``: what ``-S``
    prints."""
    starts = ("-P FORWARD DROP", "-A FORWARD -j DROP", "-A FORWARD -j REJECT")
    return any(line.startswith(starts) for line in listing.splitlines())


def legacy_chain(listing: str) -> str:
    """Where an accept rule goes."""
    return "DOCKER-USER" if "-N DOCKER-USER" in listing.splitlines() else "FORWARD"


def legacy_changes(listing: str, exposed: Sequence[Exposed], family: str) -> list[list[str]]:
    """Arguments for iptables-legacy, one list per call. ``listing``: what ``-S`` prints."""
    lines = [shlex.split(line) for line in listing.splitlines()]
    chain = legacy_chain(listing)
    wanted = {opening.comment: opening for opening in openings(exposed, family)} if legacy_drops(listing) else {}
    present = {word: line for line in lines if line[:1] == ["-A"] for word in line if word.startswith(COMMENT)}
    calls = [["-I", chain, *opening.legacy()] for comment, opening in wanted.items() if comment not in present]
    calls += [["-D", *line[1:]] for comment, line in present.items() if comment not in wanted]
    return calls
