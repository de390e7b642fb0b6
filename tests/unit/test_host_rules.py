"""nftables tables as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from weavenet.host import rules
from weavenet.host.bridge import port_name


def chains(commands: list[dict[str, Any]]) -> list[str]:
    return [c["add"]["chain"]["name"] for c in commands if "chain" in c.get("add", {})]


def test_every_table_is_ours_and_replaced_in_one_go() -> None:
    commands = rules.all_tables(["192.0.2.1"], [("web", "10.32.0.1")])
    for command in commands:
        ((verb, body),) = command.items()
        ((kind, item),) = body.items()
        assert verb in ("add", "delete")
        assert (item["name"] if kind == "table" else item["table"]) == "weave"
    families = [c["delete"]["table"]["family"] for c in commands if "delete" in c]
    assert sorted(families) == ["bridge", "inet"]
    json.dumps(commands)


def test_nothing_blocked_leaves_no_hook() -> None:
    assert chains(rules.bridge_table([])) == []
    assert chains(rules.bridge_table([("web", "10.32.0.1/12")])) == ["prerouting"]


def test_blocked_addresses_by_port_and_family() -> None:
    commands = rules.bridge_table([("web", "fd00::1"), ("web", "10.32.0.1"), ("db", "10.32.0.2"), ("web", "10.32.0.1")])
    sets = {c["add"]["set"]["name"]: c["add"]["set"].get("elem", []) for c in commands if "set" in c.get("add", {})}
    assert sorted(e["concat"][1] for e in sets["blocked4"]) == ["10.32.0.1", "10.32.0.2"]
    assert sets["blocked6"] == [{"concat": [port_name("web"), "fd00::1"]}]
    text = json.dumps(commands)
    assert "0xfd000000000000000000000000000001" in text and '"saddr ip"' in text


def test_what_is_not_known_yet_is_not_touched() -> None:
    assert rules.all_tables(None, None) == []
    assert "bridge" not in json.dumps(rules.all_tables([], None))
    assert chains(rules.all_tables(None, [("web", "10.32.0.1")])) == ["prerouting"]


def test_vxlan_only_from_peers_of_both_families() -> None:
    commands = rules.inet_table(["192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.2"])
    sets = {c["add"]["set"]["name"]: c["add"]["set"].get("elem", []) for c in commands if "set" in c.get("add", {})}
    assert sets == {"peers4": ["192.0.2.1", "192.0.2.2"], "peers6": ["2001:db8::1"]}
    assert commands[-1]["add"]["rule"]["expr"][-1] == {"drop": None}


def test_only_vxlan_of_peers_comes_out_of_the_tunnel_and_nothing_is_forwarded() -> None:
    commands = rules.inet_table(["192.0.2.1"], ["240.1.2.3"])
    sets = {c["add"]["set"]["name"]: c["add"]["set"].get("elem", []) for c in commands if "set" in c.get("add", {})}
    assert sets["tunnels4"] == ["240.1.2.3"] and sets["peers4"] == ["192.0.2.1"]
    found = [c["add"]["rule"] for c in commands if "rule" in c.get("add", {})]
    first, second = (rule["expr"] for rule in found if rule["chain"] == "input" and "weave-wg" in json.dumps(rule))
    assert "@tunnels4" in json.dumps(first) and first[-1] == {"accept": None}
    assert len(second) == 2 and second[-1] == {"drop": None}
    assert [rule["expr"][-1] for rule in found if rule["chain"] == "forward"] == [{"drop": None}] * 2
    assert "weave-wg" not in json.dumps(rules.inet_table(["192.0.2.1"]))


def test_queries_are_not_tracked_where_anything_is() -> None:
    assert chains(rules.inet_table(["192.0.2.1"])) == ["input"]
    commands = rules.inet_table(["192.0.2.1"], has_conntrack=True)
    assert chains(commands) == ["input", "prerouting", "output"]
    assert commands[-1]["add"]["rule"]["expr"][-1] == {"notrack": None}


def forward(policy: str, family: str = "ip") -> dict[str, Any]:
    return {"chain": {"family": family, "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy}}


def test_forward_rules_only_where_something_drops_and_once() -> None:
    docker = {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}
    ours = {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "comment": "weave"}}
    assert rules.missing_forward_rules([forward("accept"), docker]) == []
    assert rules.missing_forward_rules([forward("drop"), ours]) == []
    (rule,) = rules.missing_forward_rules([forward("drop"), docker])
    assert rule["insert"]["rule"]["chain"] == "DOCKER-USER" and rule["insert"]["rule"]["comment"] == "weave"
    both = rules.missing_forward_rules([forward("drop"), forward("drop", "ip6")])
    assert [r["insert"]["rule"]["family"] for r in both] == ["ip", "ip6"]


def rule(
    *expression: dict[str, Any], family: str = "ip", table: str = "filter", chain: str = "FORWARD"
) -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": chain, "expr": list(expression)}}


@pytest.mark.parametrize(
    ("last", "drops"),
    [
        ({"reject": {"type": "icmp", "expr": "host-prohibited"}}, True),
        ({"drop": None}, True),
        ({"xt": {"type": "target", "name": "REJECT"}}, True),
        ({"xt": None}, True),
        ({"xt": {"type": "target", "name": "LOG"}}, False),
        ({"accept": None}, False),
        ({"jump": {"target": "ufw-reject-forward"}}, False),
    ],
)
def test_a_rule_at_the_end_drops_like_a_policy(last: dict[str, Any], drops: bool) -> None:
    found = [forward("accept"), rule({"counter": {"packets": 0, "bytes": 0}}, last)]
    assert len(rules.missing_forward_rules(found)) == drops
    assert rules.missing_forward_rules([forward("accept"), rule(rules.match(rules.IFNAME, "eth0"), last)]) == []
    assert rules.missing_forward_rules([rule(last, chain="INPUT"), forward("accept")]) == []


def test_a_chain_of_nftables_own_style_is_opened_whatever_its_name() -> None:
    body = {"family": "inet", "table": "filter", "name": "forward", "hook": "forward", "policy": "drop"}
    (opened,) = rules.missing_forward_rules([{"chain": body}])
    assert (opened["insert"]["rule"]["family"], opened["insert"]["rule"]["chain"]) == ("inet", "forward")
    (other,) = rules.missing_forward_rules([{"chain": body}, forward("drop"), tagged("inet", "forward")])
    assert other["insert"]["rule"]["family"] == "ip"


def tagged(family: str, chain: str) -> dict[str, Any]:
    return {"rule": {"family": family, "table": "filter", "chain": chain, "comment": "weave"}}


def test_what_others_drop_in_tables_of_their_own_is_told_until_they_know_the_bridge() -> None:
    chain = {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}
    last = rule({"reject": {"type": "icmpx"}}, family="inet", table="firewalld", chain="filter_FORWARD")
    zone = rule(
        rules.match(rules.IFNAME, "weave"),
        {"goto": {"target": "filter_FWD_trusted"}},
        family="inet",
        table="firewalld",
        chain="filter_FORWARD_ZONES",
    )
    assert rules.missing_forward_rules([{"chain": chain}, last]) == []
    assert rules.unopened_chains([{"chain": chain}]) == []
    assert rules.unopened_chains([{"chain": chain}, last]) == ["inet firewalld filter_FORWARD"]
    assert rules.unopened_chains([{"chain": chain}, last, zone]) == []
    ours = {"family": "inet", "table": "weave", "name": "forward", "hook": "forward", "policy": "drop"}
    assert rules.unopened_chains([{"chain": ours}]) == []
