"""The pure parts of the lab: shapes, fault rules, names, counted pings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weavenet.core.errors import Code, WeaveError
from weavenet.lab import processes, state
from weavenet.lab.nat import Nat
from weavenet.lab.nat import rules as nat_rules
from weavenet.lab.pings import Count, count
from weavenet.lab.state import LabState, Loss, Narrow
from weavenet.lab.topology import (
    HostEntry,
    LinkEntry,
    Topology,
    of_count,
    parse_count,
    parse_loss,
    parse_mtu,
    plan,
    read,
)
from weavenet.lab.underlay import rules


def planned(hosts: int = 3) -> LabState:
    return plan("some", of_count(hosts))


def test_hosts_have_addresses_macs_and_machine_ids_of_their_own() -> None:
    hosts = list(planned(50).hosts.values())
    assert [host.name for host in hosts] == [f"h{number}" for number in range(1, 51)]
    for values in zip(*((host.address, host.mac, host.machine_id) for host in hosts), strict=True):
        assert len(set(values)) == 50


@pytest.mark.parametrize("number", [0, -1, 51, 1000])
def test_a_lab_has_1_to_50_hosts(number: int) -> None:
    with pytest.raises(WeaveError) as caught:
        of_count(number)
    assert caught.value.failure.found == str(number)


@pytest.mark.parametrize("text", [None, "", "x", "-1", "1.5", "٣", "1" * 5000])
def test_numbers_of_hosts_that_are_none(text: str | None) -> None:
    with pytest.raises(WeaveError, match="a number of hosts"):
        parse_count(text)


def test_a_number_of_hosts_may_begin_with_zeros() -> None:
    assert parse_count("03") == 3


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 5000), ("5", 5000), ("0.1%", 100), ("0.001%", 1), ("0%", 0), ("100%", 100_000)]
)
def test_loss_shares(text: str, value: int) -> None:
    assert parse_loss(text) == value


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "five", "0.0001%", "5 %", "1e1%"])
def test_loss_shares_that_are_none(text: str) -> None:
    with pytest.raises(WeaveError):
        parse_loss(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("576", 576), ("1280", 1280), ("65535", 65535)])
def test_packet_sizes(text: str, value: int) -> None:
    assert parse_mtu(text) == value


@pytest.mark.parametrize("text", ["", "abc", "-1", "10", "575", "65536", "1e3", "٥٧٦٠", "9" * 5000])
def test_packet_sizes_that_are_none(text: str) -> None:
    with pytest.raises(WeaveError, match="from 576 to 65535 bytes, or 0"):
        parse_mtu(text)


@pytest.mark.parametrize(
    ("links", "partition", "cuts", "blocked"),
    [
        (None, [], [], set()),
        (None, [["h1"], ["h2", "h3"]], [], {("h1", "h2"), ("h1", "h3")}),
        (None, [["h1"], ["h2"], ["h3"]], [], {("h1", "h2"), ("h1", "h3"), ("h2", "h3")}),
        (None, [], [("h3", "h1")], {("h1", "h3")}),
        ([("h1", "h2")], [], [], {("h1", "h3"), ("h2", "h3")}),
        ([("h1", "h2")], [["h1"], ["h2", "h3"]], [], {("h1", "h2"), ("h1", "h3"), ("h2", "h3")}),
    ],
)
def test_blocked_pairs(
    links: list[tuple[str, str]] | None,
    partition: list[list[str]],
    cuts: list[tuple[str, str]],
    blocked: set[tuple[str, str]],
) -> None:
    lab = planned()
    lab.links, lab.partition, lab.cuts = links, partition, cuts
    assert lab.blocked_pairs() == blocked


def test_rules_replace_the_earlier_ones_and_block_both_directions() -> None:
    lab = planned()
    assert rules(lab).split("\n")[:2] == ["table bridge weavelab", "delete table bridge weavelab"]
    assert "drop" not in rules(lab)
    lab.cuts = [("h1", "h3")]
    assert '"h1" . "h3", "h3" . "h1"' in rules(lab)


def test_what_is_too_large_is_dropped_towards_the_one_host_only() -> None:
    lab = planned()
    lab.narrow = [Narrow("h1", "h2", 1280)]
    for host in lab.hosts.values():
        host.pid, host.started = os.getpid(), processes.start_time(os.getpid())
    text = rules(lab)
    assert f"ether daddr {lab.hosts['h2'].mac} meta length > 1294 drop" in text
    assert text.count("meta length") == 2
    assert lab.hosts["h3"].mac not in text


@pytest.mark.parametrize(
    ("nat", "words"), [(Nat.CONE, "masquerade\n"), (Nat.SYMMETRIC, "masquerade to :20000-59999 random")]
)
def test_a_router_in_front_lets_in_only_answers(nat: Nat, words: str) -> None:
    assert words in nat_rules(nat)
    assert "established,related return" in nat_rules(nat)
    assert "masquerade" not in nat_rules(None)


def test_a_host_that_is_down_has_no_port_to_hook() -> None:
    lab = planned()
    lab.loss = [Loss("h1", "h2", 5000)]
    assert "ingress" not in rules(lab)


@pytest.mark.parametrize(
    "shape",
    [
        Topology(hosts=[HostEntry("h1"), HostEntry("h1")]),
        Topology(hosts=[HostEntry("H1")]),
        Topology(hosts=[HostEntry("a-very-long-name")]),
        Topology(hosts=[HostEntry("underlay")]),
        Topology(hosts=[HostEntry("all")]),
        Topology(hosts=[HostEntry("h1")], address="127.0.0.0/24"),
        Topology(hosts=[HostEntry("h1")], address="224.0.0.0/24"),
        Topology(hosts=[HostEntry("h1")], address="0.0.0.0/24"),
        Topology(hosts=[HostEntry("h1")], address="169.254.0.0/16"),
        Topology(hosts=[HostEntry("h1", "10.0.0.1")]),
        Topology(hosts=[HostEntry("h1", "192.168.77.254")]),
        Topology(hosts=[HostEntry("h1", "192.168.77.9"), HostEntry("h2", "192.168.77.9")]),
        Topology(hosts=[HostEntry("h1", "here")]),
        Topology(hosts=[HostEntry("h1")], address="10.40.0.0/16"),
        Topology(hosts=[HostEntry("h1")], address="192.168.77.0/31"),
        Topology(hosts=[HostEntry("h1")], address="192.168.77.1/24"),
        Topology(hosts=[HostEntry("h1")], links=[LinkEntry(("h1", "h2"))]),
        Topology(hosts=[HostEntry("h1")], links=[LinkEntry(("h1", "h1"))]),
    ],
    ids=repr,
)
def test_topologies_that_are_refused(shape: Topology) -> None:
    with pytest.raises(WeaveError) as caught:
        plan("some", shape)
    assert caught.value.failure.next_step


def test_a_topology_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "line.toml"
    file.write_text(
        '[[host]]\nname = "a"\n[[host]]\nname = "b"\naddress = "192.168.77.1"\n[[link]]\nbetween = ["b", "a"]\n'
    )
    lab = plan("some", read(file))
    assert {name: host.address for name, host in lab.hosts.items()} == {"a": "192.168.77.2", "b": "192.168.77.1"}
    assert lab.links == [("a", "b")]


@pytest.mark.parametrize(
    "content", ["[[host]]\nname = 1", "host = 3", "[[hosts]]", "[", "", '[[host]]\nname="a"\nmtu=1']
)
def test_a_topology_file_that_is_none_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(WeaveError) as caught:
        read(file)
    assert "bad.toml" in caught.value.failure.expected


@pytest.mark.parametrize("name", ["", "Lab", "a/b", "../x", "1", "-", "a" * 33, "a b"])
def test_names_of_labs(name: str) -> None:
    with pytest.raises(WeaveError) as caught:
        state.check_name(name)
    assert caught.value.failure.code is Code.INVALID


@pytest.mark.parametrize(
    ("answered", "sent", "expected"),
    [
        ([1, 2, 3], 3, Count(3, 0, 0)),
        ([1, 2], 3, Count(2, 0, 0)),  # the last one was under way
        ([1, 4, 5], 5, Count(5, 2, 2)),
        ([1, 3, 5, 5], 5, Count(5, 2, 1)),  # one answered twice
        ([], 10, Count(9, 9, 9)),
    ],
)
def test_counted_pings(answered: list[int], sent: int, expected: Count) -> None:
    lines = [f"64 bytes from 10.32.0.1: icmp_seq={number} ttl=64 time=0.1 ms" for number in answered]
    output = "\n".join([*lines, "--- 10.32.0.1 ping statistics ---", f"{sent} packets transmitted, 1 received"])
    assert count(output) == expected


def test_a_ping_that_could_not_be_sent_is_lost() -> None:
    output = (
        "x icmp_seq=1 ttl=64 x\nping: sendmsg: Network is unreachable\nx icmp_seq=2 ttl=64 x\n2 packets transmitted"
    )
    assert count(output) == Count(3, 1, 0)
