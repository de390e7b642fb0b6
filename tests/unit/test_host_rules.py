"""nftables tables as data."""

from __future__ import annotations

import json
from typing import Any

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
