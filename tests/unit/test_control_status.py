"""Status text and report document as functions of a NodeReport."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from fake_daemon import NAMES, FakeDaemon, ipam_report, node_report, range_report
from weavenet.control import report as report_json
from weavenet.control.status import SECTIONS, render
from weavenet.core.report import IpamReport, NameReport, OwnerReport
from weavenet.core.words import duration

IDENTITY = FakeDaemon().identity


def summary(**changes: object) -> str:
    return render(node_report(**changes), IDENTITY, now=100.0)


def test_labels_are_aligned_to_15_columns_and_framed_by_empty_lines() -> None:
    text = summary()
    assert text.startswith("\n") and text.endswith("\n\n")
    labelled = [line for line in text.splitlines() if ": " in line]
    assert all(line.index(":") == 15 for line in labelled), text
    assert "        Service: router\n       Protocol: weave 1\n" in text
    assert "        Service: ipam\n         Status: ready\n          Range: 10.32.0.0/12\n" in text


def test_verdict_comes_first() -> None:
    assert summary().splitlines()[1].startswith("        Verdict: well")
    text = summary(warnings=("h3 is refused: other cluster; next: weave forget h3", "no data path to h2"))
    assert text.splitlines()[1:5] == [
        "        Verdict: 2 things need attention",
        "                 1. h3 is refused: other cluster",
        "                    next: weave forget h3",
        "                 2. no data path to h2",
    ]


def test_verdict_of_a_lonely_peer_says_how_to_go_on() -> None:
    text = summary(targets=(), peers=node_report().peers[:1], connections=())
    assert "weave connect" in text.splitlines()[1]


def test_verdict_counts_who_is_known_and_cannot_be_reached() -> None:
    peers = node_report().peers
    assert not any(peer.reachable for peer in peers[-1:]), "the last one is absent"
    assert "known but not" in summary().splitlines()[1]
    present = tuple(peer for peer in peers if peer.reachable)
    assert "known but not" not in summary(peers=present).splitlines()[1]


def test_verdict_when_no_target_is_reached() -> None:
    text = summary(peers=node_report().peers[:1], connections=())
    assert text.splitlines()[1:4] == [
        "        Verdict: 1 thing needs attention",
        "                 1. no link to any of 2 targets",
        "                    next: `weave status targets` says why",
    ]


def test_waiting_for_consensus_shows_quorum_and_who_is_missing() -> None:
    ipam = ipam_report(
        state="awaiting consensus", electors_known=1, quorum=2, owners=(), electors=(), electors_missing=("h2", "h3")
    )
    assert "awaiting consensus (quorum: 2, known: 1)" in summary(ipam=ipam)
    part = render(node_report(ipam=ipam), IDENTITY, "ipam")
    assert "Quorum: 2, known: 1, this peer: elector" in part
    assert "Missing: h2, h3" in part


def test_ipam_lists_self_first_with_shares_and_absence() -> None:
    lines = render(node_report(), IDENTITY, "ipam").splitlines()
    assert lines[0] == "0a:00:00:00:00:01(h1)                   524288 IPs (50.0% of total) (2 active)"
    assert lines[1].endswith("524288 IPs (50.0% of total) - unreachable! (for 1m 15s)")


def two_ranges() -> IpamReport:
    owners = (
        OwnerReport("22" * 16, NAMES[1], "h2", 1 << 63, 50.0, False, 75.0),
        OwnerReport("11" * 16, NAMES[0], "h1", (1 << 63) - 1, 50.0, True, None),
    )
    second = range_report(
        range="fd00:77::/64",
        addresses=(1 << 64) - 1,
        default_subnet="fd00:77:0:0:1::/80",
        active=1,
        owners=owners,
        held_addresses=7,
    )
    return ipam_report(ranges=(range_report(), second))


def test_two_ranges_are_told_apart() -> None:
    lines = render(node_report(ipam=two_ranges()), IDENTITY, "ipam").splitlines()
    assert lines[0] == "0a:00:00:00:00:01(h1)                   524288 IPs (50.0% of 10.32.0.0/12) (2 active)"
    assert lines[2].endswith(" 9223372036854775807 IPs (50.0% of fd00:77::/64) (1 active)")
    assert lines[3].endswith(" 9223372036854775808 IPs (50.0% of fd00:77::/64) - unreachable! (for 1m 15s)")
    assert "          Range: fd00:77::/64 (18446744073709551615 addresses)" in lines
    assert "  DefaultSubnet: fd00:77:0:0:1::/80" in lines
    text = summary(ipam=two_ranges())
    assert "          Range: 10.32.0.0/12,fd00:77::/64\n" in text
    assert "  DefaultSubnet: 10.32.0.0/12,fd00:77:0:0:1::/80\n" in text
    assert "3 addresses in use on this host" in text


def test_the_report_has_each_range_and_the_first_as_before() -> None:
    document = json.loads(msgspec.json.encode(report_json.document(node_report(ipam=two_ranges()), IDENTITY)))
    first, second = document["IPAM"]["Ranges"]
    assert {key: document["IPAM"][key] for key in first} == first
    assert (second["Range"], second["RangeNumIPs"], second["HeldIPs"]) == ("fd00:77::/64", (1 << 64) - 1, 7)
    assert sum(entry["Size"] for entry in second["Entries"]) == second["RangeNumIPs"]
    assert second["Unreachable"] == {"Peers": 1, "Size": 1 << 63, "Percent": 50.0}


def test_ipam_shows_removals_what_is_held_and_who_was_removed() -> None:
    ipam = ipam_report(
        removals=("h3 is removed; its addresses are held until h2 confirms",),
        held=("10.37.85.88-10.42.170.171: 349524 addresses, held until h2 confirms",),
        held_addresses=349524,
        waiting_for=(f"{NAMES[1]}(h2)",),
    )
    lines = render(node_report(ipam=ipam), IDENTITY, "ipam").splitlines()
    assert "         Voters: 0a:00:00:00:00:01(h1)" in lines
    assert "        Removal: h3 is removed; its addresses are held until h2 confirms" in lines
    assert "           Held: 10.37.85.88-10.42.170.171: 349524 addresses, held until h2 confirms" in lines
    assert f"        Removed: 0a:00:00:00:00:04(h4) {'44' * 16}, heir 0a:00:00:00:00:01(h1)" in lines
    early = ipam_report(held_addresses=4, waiting_for=(f"{NAMES[1]}(h2)",))
    line = f"           Held: 4 addresses, until {NAMES[1]}(h2) confirms"
    assert line in render(node_report(ipam=early), IDENTITY, "ipam").splitlines()


def test_a_hold_without_a_command_is_in_the_verdict() -> None:
    text = summary(
        ipam=ipam_report(
            held=("10.32.0.0-10.32.0.3: 4 addresses, held until h2 confirms",), held_addresses=4, waiting_for=("h2",)
        )
    )
    assert "1. 4 addresses of removed peers are held until h2 confirmed" in text


def test_many_removed_peers_are_cut_short() -> None:
    removed = ipam_report().removed * 9
    assert render(node_report(ipam=ipam_report(removed=removed)), IDENTITY, "ipam").count("  Removed: ") == 6


def test_connections_show_plane_reason_and_security() -> None:
    established, refused = render(node_report(), IDENTITY, "connections").splitlines()
    assert established.startswith("-> 192.0.2.2:6783        established fastdp 0a:00:00:00:00:02(h2) password line 1")
    assert "(VXLAN answers)" in established
    assert refused == "-> 192.0.2.3:6783        refused     other cluster"


def columns_of(text: str, *words: str) -> set[int]:
    """Where in its line the first of ``words`` that is there begins."""
    return {next(line.index(word) for word in words if word in line) for line in text.splitlines()}


def test_long_names_and_addresses_leave_the_columns_in_line() -> None:
    report, long = node_report(), "[2001:db8:1111:2222:3333:4444:5555:6666]:6783"
    first = msgspec.structs.replace(report.connections[0], address=long)
    connections = render(node_report(connections=(first, report.connections[1])), IDENTITY, "connections")
    assert len(columns_of(connections, "established", "refused")) == 1
    neighbour = (NAMES[1], "h2", long, True)
    peer = msgspec.structs.replace(report.peers[0], neighbours=(neighbour, report.peers[0].neighbours[0]))
    peers = render(node_report(peers=(peer,)), IDENTITY, "peers").splitlines()[1:]
    assert len(columns_of("\n".join(peers), NAMES[1])) == 1
    owners = (
        OwnerReport("22" * 16, NAMES[1], "a-nickname-longer-than-the-column", 524288, 50.0, False, 75.0),
        OwnerReport("11" * 16, NAMES[0], "h1", 524288, 50.0, True, None),
    )
    ipam = render(node_report(ipam=ipam_report(owners=owners)), IDENTITY, "ipam").partition("\n\n")[0]
    assert len(columns_of(ipam, " IPs (")) == 1
    entries = tuple(
        NameReport(f"{name}.weave.local.", address, "web", "11" * 16, NAMES[0], "h1")
        for name, address in (("a-name-longer-than-12", "10.32.0.1"), ("web", "fd00:77:1111:2222:3333:4444:5555:6666"))
    )
    dns = msgspec.structs.replace(report.dns, domain="weave.local.", entries=entries)
    assert len(columns_of(render(node_report(dns=dns), IDENTITY, "dns"), NAMES[0])) == 1


def test_peers_of_the_same_name_are_told_apart() -> None:
    report = node_report()
    again = msgspec.structs.replace(report.peers[2], name=NAMES[1], nickname="h2")
    lines = render(node_report(peers=(*report.peers[:2], again)), IDENTITY, "peers").splitlines()
    assert f"{NAMES[1]}(h2) {report.peers[1].peer}" in lines
    assert f"{NAMES[1]}(h2) {again.peer}  [not an elector, UNREACHABLE for 2h 0m]" in lines
    assert f"{NAMES[0]}(h1)  [this peer]" in lines


def test_peers_neither_make_up_lines_nor_command_the_terminal() -> None:
    connection = msgspec.structs.replace(
        node_report().connections[0], nickname="h2\n-> 192.0.2.9:6783 established", info="\x1b[2J\x9b31m\u202e"
    )
    text = render(node_report(connections=(connection,)), IDENTITY, "connections")
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text[:-1].isprintable()


def test_a_peer_without_a_link_shows_its_data_path() -> None:
    connection = msgspec.structs.replace(
        node_report().connections[0], state="connecting", plane="sleeve", plane_reason="relayed by h2"
    )
    text = render(node_report(connections=(connection,)), IDENTITY, "connections")
    assert text.rstrip().endswith("data path: sleeve (relayed by h2)")
    without = msgspec.structs.replace(connection, plane="no data path")
    assert "data path" not in render(node_report(connections=(without,)), IDENTITY, "connections")


def test_peers_and_targets_are_readable() -> None:
    peers = render(node_report(), IDENTITY, "peers")
    assert "0a:00:00:00:00:03(h3)  [not an elector, UNREACHABLE for 2h 0m]\n" in peers
    assert "   <- 192.0.2.1:40000       0a:00:00:00:00:01(h1)\n" in peers
    targets = render(node_report(), IDENTITY, "targets").splitlines()
    assert targets[1].startswith("nowhere.example  unresolved")
    assert targets[1].endswith("Name or service not known; next try in 4s")


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_an_empty_node_renders(section: str) -> None:
    bare = node_report(targets=(), connections=(), peers=(), ipam=ipam_report(owners=(), electors=(), state="off"))
    text = render(bare, IDENTITY, section)
    assert "None" not in text


def test_no_line_ends_with_a_blank() -> None:
    for section in ("", *SECTIONS):
        for line in render(node_report(), IDENTITY, section).splitlines():
            assert line == line.rstrip()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.2, "1s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_000, "1d 1h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_report_has_the_roots_of_the_original() -> None:
    document = json.loads(msgspec.json.encode(report_json.document(node_report(), IDENTITY)))
    assert document["Ready"] is True
    assert document["Router"]["Targets"] == ["192.0.2.2", "nowhere.example"]
    assert document["Router"]["Peers"][0]["Connections"][0]["Established"] is True
    assert document["IPAM"]["Paxos"]["Quorum"] == 2
    assert document["IPAM"]["Unreachable"] == {"Peers": 1, "Size": 524288, "Percent": 50.0}
    assert document["IPAM"]["Removed"][0]["Nickname"] == "h4"
    assert sum(entry["Size"] for entry in document["IPAM"]["Entries"]) == document["IPAM"]["RangeNumIPs"]


def test_report_omits_what_is_off() -> None:
    document = report_json.document(node_report(ipam=ipam_report(state="off")), IDENTITY)
    assert "IPAM" not in document


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text()

    def keys(value: object) -> set[str]:
        match value:
            case dict():
                return set(value) | {key for item in value.values() for key in keys(item)}
            case list():
                return {key for item in value for key in keys(item)}
            case _:
                return set()

    missing = {key for key in keys(report_json.document(node_report(), IDENTITY)) if f"`{key}`" not in text}
    assert not missing
