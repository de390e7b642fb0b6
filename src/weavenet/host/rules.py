"""What our nftables tables contain, as data. Pure functions; :mod:`weavenet.host.firewall` applies them.

One table per family, always named ``weave``, always replaced as a whole in one transaction, absent when it would be
empty: a standing hook costs on every packet.

- ``bridge``: frames of a container that uses an address it has lost are dropped at its port (IPv4, ARP sender, IPv6,
  ND advertisement of the target). ``ifname . address`` sets work without NFT_BRIDGE_META. nft 1.0.6 gives the raw ND
  target another type than an IPv6 set, hence a rule per address there.
- ``inet``: VXLAN is accepted from known peers and dropped from anybody else. Out of the WireGuard device nothing else
  comes in, and nothing is forwarded from or to it: members get no way around a host's own filters. At the address of
  the DNS server containers reach that one only, not what else of this host listens on every address.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable

from weavenet.core.limits import BRIDGE, VXLAN_PORT, WIREGUARD_DEVICE
from weavenet.core.types import without_prefix
from weavenet.host.bridge import port_name
from weavenet.host.dnsaddress import ADDRESS as DNS_ADDRESS
from weavenet.host.nft import Command

TABLE = "weave"
DNS_PORT = 53
FORWARD_COMMENT = "weave"
"""Tag of the only rules that we put into tables of others."""
DROP: Command = {"drop": None}
ACCEPT: Command = {"accept": None}
FORWARD_FAMILIES = ("ip", "ip6", "inet")
IFNAME: Command = {"meta": {"key": "iifname"}}


def field(protocol: str, name: str) -> Command:
    return {"payload": {"protocol": protocol, "field": name}}


def match(left: Command, right: object, op: str = "==") -> Command:
    return {"match": {"op": op, "left": left, "right": right}}


def delete_table(family: str) -> list[Command]:
    """Add first, so that deleting never fails."""
    table = {"table": {"family": family, "name": TABLE}}
    return [{"add": table}, {"delete": table}]


def by_family(commands: Iterable[Command]) -> dict[str, list[Command]]:
    """``commands`` that add to or delete tables, in order."""
    found: dict[str, list[Command]] = {}
    for command in commands:
        ((_, objects),) = command.items()
        ((_, body),) = objects.items()
        found.setdefault(body["family"], []).append(command)
    return found


def _rule(family: str, chain: str, *expression: Command) -> Command:
    return {"add": {"rule": {"family": family, "table": TABLE, "chain": chain, "expr": list(expression)}}}


def _chain(family: str, name: str, hook: str, priority: int) -> Command:
    body: Command = {
        "family": family,
        "table": TABLE,
        "name": name,
        "type": "filter",
        "hook": hook,
        "prio": priority,
        "policy": "accept",
    }
    return {"add": {"chain": body}}


def _set(family: str, name: str, kind: str | list[str], elements: list[object]) -> Command:
    body: Command = {"family": family, "table": TABLE, "name": name, "type": kind}
    return {"add": {"set": body | ({"elem": elements} if elements else {})}}


def _split(addresses: Iterable[str]) -> tuple[list[str], list[str]]:
    parsed = [ipaddress.ip_address(text) for text in addresses]
    return [str(a) for a in parsed if a.version == 4], [str(a) for a in parsed if a.version == 6]


def bridge_table(blocked: Iterable[tuple[str, str]]) -> list[Command]:
    """``blocked``: (ident, address), with or without prefix."""
    parsed = {(port_name(ident), ipaddress.ip_address(without_prefix(text))) for ident, text in blocked}
    pairs = sorted(parsed, key=lambda pair: (pair[0], pair[1].version, int(pair[1])))
    commands = delete_table("bridge")
    if not pairs:
        return commands
    blocked4: list[object] = [{"concat": [port, str(a)]} for port, a in pairs if a.version == 4]
    blocked6 = [(port, a) for port, a in pairs if a.version == 6]
    elements6: list[object] = [{"concat": [port, str(a)]} for port, a in blocked6]
    commands += [
        {"add": {"table": {"family": "bridge", "name": TABLE}}},
        _set("bridge", "blocked4", ["ifname", "ipv4_addr"], blocked4),
        _set("bridge", "blocked6", ["ifname", "ipv6_addr"], elements6),
        _chain("bridge", "prerouting", "prerouting", -300),
    ]
    for protocol, name, members in (
        ("ip", "saddr", "@blocked4"),
        ("arp", "saddr ip", "@blocked4"),
        ("ip6", "saddr", "@blocked6"),
    ):
        left: Command = {"concat": [IFNAME, field(protocol, name)]}
        commands.append(_rule("bridge", "prerouting", match(left, members), DROP))
    for port, address in blocked6:
        commands.append(
            _rule(
                "bridge",
                "prerouting",
                match(IFNAME, port),
                match(field("icmpv6", "type"), "nd-neighbor-advert"),
                match({"payload": {"base": "th", "offset": 64, "len": 128}}, f"0x{int(address):032x}"),
                DROP,
            )
        )
    return commands


def inet_table(hosts: Iterable[str], tunnels: Iterable[str] = (), *, has_conntrack: bool = False) -> list[Command]:
    """``hosts``: underlay addresses from which VXLAN is welcome. ``tunnels``: those out of the WireGuard device.
    ``has_conntrack``: connections are tracked on this host; those to its DNS server then are not: each query comes from
    a new port, and the table of connections would fill up with them, to the harm of everybody."""
    hosts4, hosts6 = _split(sorted(set(hosts)))
    port = match(field("udp", "dport"), VXLAN_PORT)
    tunnels4 = sorted(set(tunnels))
    return [
        *delete_table("inet"),
        {"add": {"table": {"family": "inet", "name": TABLE}}},
        _set("inet", "peers4", "ipv4_addr", [*hosts4]),
        _set("inet", "peers6", "ipv6_addr", [*hosts6]),
        _chain("inet", "input", "input", -10),
        *(_tunnel_rules(tunnels4, port) if tunnels4 else []),
        _rule("inet", "input", port, match(field("ip", "saddr"), "@peers4"), ACCEPT),
        _rule("inet", "input", port, match(field("ip6", "saddr"), "@peers6"), ACCEPT),
        _rule("inet", "input", port, DROP),
        _rule("inet", "input", *_no_query(), DROP),
        *(_untracked("prerouting", "daddr", "dport") + _untracked("output", "saddr", "sport") if has_conntrack else []),
    ]


def _tunnel_rules(tunnels: list[str], port: Command) -> list[Command]:
    """Ahead of the rules for the underlay. WireGuard has checked the source address."""
    device = match(IFNAME, WIREGUARD_DEVICE)
    return [
        _set("inet", "tunnels4", "ipv4_addr", [*tunnels]),
        _rule("inet", "input", device, port, match(field("ip", "saddr"), "@tunnels4"), ACCEPT),
        _rule("inet", "input", device, DROP),
        _chain("inet", "forward", "forward", -10),
        _rule("inet", "forward", device, DROP),
        _rule("inet", "forward", match({"meta": {"key": "oifname"}}, WIREGUARD_DEVICE), DROP),
    ]


def _no_query() -> list[Command]:
    """What containers send to the address of the DNS server that is meant for something else. ICMP may be about an
    answer on its way; TCP and UDP have their ports at the same place."""
    return [
        match(IFNAME, BRIDGE),
        match(field("ip", "daddr"), DNS_ADDRESS),
        match(field("ip", "protocol"), "icmp", "!="),
        match(field("th", "dport"), DNS_PORT, "!="),
    ]


def _untracked(hook: str, address: str, port: str) -> list[Command]:
    """Ahead of connection tracking (priority -200)."""
    ours = [match(field("ip", address), DNS_ADDRESS), match(field("udp", port), DNS_PORT)]
    return [_chain("inet", hook, hook, -300), _rule("inet", hook, *ours, {"notrack": None})]


def all_tables(
    hosts: Iterable[str] | None,
    blocked: Iterable[tuple[str, str]] | None,
    *,
    tunnels: Iterable[str] = (),
    has_conntrack: bool = False,
) -> list[Command]:
    """Everything of ours as one transaction. What is not known yet (None) stays as an earlier daemon left it."""
    plane = inet_table(hosts, tunnels, has_conntrack=has_conntrack) if hosts is not None else []
    return plane + (bridge_table(blocked) if blocked is not None else [])


def _is_catch_all(rule: Command) -> bool:
    """Whether it drops or rejects whatever comes as far as it. iptables' own targets are an ``xt`` without details."""
    verdict = [part for part in rule.get("expr", ()) if "counter" not in part]
    if len(verdict) != 1:
        return False
    target = verdict[0].get("xt", {"name": ""}) or {"name": "REJECT"}
    return "drop" in verdict[0] or "reject" in verdict[0] or target.get("name") == "REJECT"


def _dropping(ruleset: Iterable[Command]) -> set[tuple[str, str, str]]:
    """(family, table, chain) of others that see what is forwarded and drop what none of their rules accepts: by policy,
    or by a rule at the end."""
    hooked: set[tuple[str, str, str]] = set()
    closed: set[tuple[str, str, str]] = set()
    for item in ruleset:
        chain, rule = item.get("chain"), item.get("rule")
        if chain and chain.get("hook") == "forward":
            place = (chain["family"], chain["table"], chain["name"])
            hooked.add(place)
            if chain.get("policy") == "drop":
                closed.add(place)
        elif rule and _is_catch_all(rule):
            closed.add((rule["family"], rule["table"], rule["chain"]))
    return {place for place in hooked & closed if place[0] in FORWARD_FAMILIES and place[1] != TABLE}


def gate(chain: str) -> str:
    """DOCKER-USER is where Docker wants the rules of others for FORWARD."""
    return "FORWARD" if chain == "DOCKER-USER" else chain


def closed_chains(ruleset: Iterable[Command]) -> list[tuple[str, str]]:
    """(family, chain) of tables ``filter`` that need an accept rule at their top."""
    ruleset = tuple(ruleset)
    chains = [item["chain"] for item in ruleset if "chain" in item]
    docker = {chain["family"] for chain in chains if chain["table"] == "filter" and chain["name"] == "DOCKER-USER"}
    closed = [(family, name) for family, table, name in _dropping(ruleset) if table == "filter"]
    return sorted(
        (family, "DOCKER-USER" if name == "FORWARD" and family in docker else name) for family, name in closed
    )


def unopened_chains(ruleset: Iterable[Command]) -> list[str]:
    """``FAMILY TABLE CHAIN`` of other people's tables that drop what is forwarded and say nothing about our bridge.
    What such a table consists of is known to its maker only (firewalld, for one), so we put nothing into it."""
    ruleset = tuple(ruleset)
    known = {
        (item["rule"]["family"], item["rule"]["table"])
        for item in ruleset
        if "rule" in item and f'"{BRIDGE}"' in json.dumps(item)
    }
    closed = {place for place in _dropping(ruleset) if place[1] != "filter"}
    return sorted(" ".join(place) for place in closed if place[:2] not in known)


def forward_rule(family: str, chain: str) -> Command:
    """Accept what is bridged between containers, at the top of somebody else's ``chain`` of table ``filter``."""
    return {
        "insert": {
            "rule": {
                "family": family,
                "table": "filter",
                "chain": chain,
                "comment": FORWARD_COMMENT,
                "expr": [match(IFNAME, BRIDGE), match({"meta": {"key": "oifname"}}, BRIDGE), ACCEPT],
            }
        }
    }


def missing_forward_rules(ruleset: Iterable[Command]) -> list[Command]:
    """Rules to insert where a chain of table ``filter`` drops what is forwarded and ours is not there yet. ``ruleset``:
    objects of ``list ruleset``."""
    ruleset = tuple(ruleset)
    rules = [item["rule"] for item in ruleset if "rule" in item]
    tagged = {
        (rule["family"], gate(rule["chain"]))
        for rule in rules
        if rule.get("table") == "filter" and rule.get("comment") == FORWARD_COMMENT
    }
    return [forward_rule(*place) for place in closed_chains(ruleset) if (place[0], gate(place[1])) not in tagged]
