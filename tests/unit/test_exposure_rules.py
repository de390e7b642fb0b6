"""Rules for exposed subnets as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from weavenet.host.exposure_rules import Exposed, forward_changes, legacy_changes, nat_tables

SUBNET = Exposed("10.32.0.0/12")
LISTING = "-P FORWARD DROP\n-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n"


def forward(policy: str) -> dict[str, Any]:
    return {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy}}


def tagged(comment: str) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 7, "comment": comment}}


def test_only_what_is_masqueraded_has_a_chain() -> None:
    assert "chain" not in json.dumps(nat_tables([Exposed("10.32.0.0/12", masquerade=False)]))
    text = json.dumps(nat_tables([SUBNET, Exposed("fd32::/64")]))
    assert text.count('"chain": {') == 2
    assert text.count("masquerade") == 4


def test_openings_come_where_something_drops_and_go_with_the_subnet() -> None:
    assert forward_changes([forward("accept")], [SUBNET]) == []
    inserted = forward_changes([forward("drop")], [SUBNET])
    comments = [command["insert"]["rule"]["comment"] for command in inserted]
    assert comments == ["weave expose to 10.32.0.0/12", "weave expose from 10.32.0.0/12"]
    held = [forward("drop"), *map(tagged, comments)]
    assert forward_changes(held, [SUBNET]) == []
    assert [set(command) for command in forward_changes(held, [])] == [{"delete"}, {"delete"}]
    assert forward_changes([forward("drop"), tagged("weave"), tagged("somebody else's")], []) == []


def test_a_chain_for_both_families_is_opened_for_subnets_of_either() -> None:
    body = {"family": "inet", "table": "filter", "name": "forward", "hook": "forward", "policy": "drop"}
    inserted = [
        command["insert"]["rule"] for command in forward_changes([{"chain": body}], [SUBNET, Exposed("fd32::/64")])
    ]
    assert {(rule["family"], rule["chain"]) for rule in inserted} == {("inet", "forward")}
    protocols = [rule["expr"][1]["match"]["left"]["payload"]["protocol"] for rule in inserted]
    assert protocols == ["ip", "ip", "ip6", "ip6"]
    held = [{"rule": rule | {"handle": 7}} for rule in inserted]
    assert forward_changes([{"chain": body}, *held], [SUBNET, Exposed("fd32::/64")]) == []
    assert [set(command) for command in forward_changes([{"chain": body}, *held], [])] == [{"delete"}] * 4


def test_a_legacy_rule_that_rejects_the_rest_is_a_reason() -> None:
    listing = "-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n"
    assert [call[:2] for call in legacy_changes(listing, [SUBNET], "ip")] == [["-I", "FORWARD"]] * 2
    assert legacy_changes("-P FORWARD ACCEPT\n-A FORWARD -i eth1 -j DROP\n", [SUBNET], "ip") == []


def test_dockers_chain_is_preferred() -> None:
    docker = {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}
    (first, _) = forward_changes([forward("drop"), docker], [SUBNET])
    assert first["insert"]["rule"]["chain"] == "DOCKER-USER"


@pytest.mark.parametrize("subnets", [(), (SUBNET,)])
def test_the_same_with_iptables_legacy(subnets: tuple[Exposed, ...]) -> None:
    calls = legacy_changes(LISTING, [SUBNET], "ip")
    assert [call[:2] for call in calls] == [["-I", "DOCKER-USER"], ["-I", "DOCKER-USER"]]
    lines = [" ".join(f'"{word}"' if " " in word else word for word in ["-A", *call[1:]]) for call in calls]
    left = legacy_changes(LISTING + "\n".join(lines), subnets, "ip")
    assert left == ([] if subnets else [["-D", *call[1:]] for call in calls])
    assert legacy_changes(LISTING, [SUBNET], "ip6") == []
