"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from fake_daemon import FakeDaemon, ipam_report, node_report, range_report
from weavenet.control.metrics import render
from weavenet.core.report import NodeReport

IDENTITY = FakeDaemon().identity
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(report: NodeReport | None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = render(report, IDENTITY).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(report: NodeReport, name: str) -> float:
    return sum(value for (found, _), value in samples(report).items() if found == name)


def test_the_figures_are_those_of_the_report() -> None:
    report = node_report()
    assert total(report, "weave_peers") == len(report.peers)
    assert total(report, "weave_connections") == len(report.connections)
    assert total(report, "weave_ipam_owned_addresses") == sum(owner.addresses for owner in report.ipam.owners)
    assert total(report, "weave_ipam_range_addresses") == report.ipam.ranges[0].addresses
    assert total(report, "weave_attachments") == report.attachments


def test_a_daemon_that_does_not_serve_says_so() -> None:
    assert samples(node_report())["weave_serving", ()] == 1
    assert samples(None) == {("weave_serving", ()): 0, ("weave_start_time_seconds", ()): IDENTITY.started_at}


def test_absent_owners_are_counted_as_an_alert_needs_it() -> None:
    own = msgspec.structs.replace(ipam_report().owners[-1], is_self=True, unreachable_s=None)
    absent = msgspec.structs.replace(own, peer="22" * 16, is_self=False, unreachable_s=4000.0)
    report = node_report(ipam=ipam_report(owners=(own, absent)))
    assert total(report, "weave_ipam_unreachable_addresses") == absent.addresses
    assert total(report, "weave_ipam_unreachable_ratio") == absent.addresses / report.ipam.ranges[0].addresses
    assert total(report, "weave_ipam_owner_absent_seconds") == 4000.0


def test_figures_of_two_ranges_have_a_label() -> None:
    second = range_report(range="fd00:77::/64", addresses=1 << 40, active=1, held_addresses=7)
    found = samples(node_report(ipam=ipam_report(ranges=(range_report(), second))))
    label = (("range", "fd00:77::/64"),)
    assert found["weave_ipam_range_addresses", label] == 1 << 40
    assert found["weave_ipam_active_addresses", label] == 1
    assert found["weave_ipam_held_addresses", label] == 7
    assert found["weave_ipam_unreachable_ratio", (("range", "10.32.0.0/12"),)] == 0.5
    assert sum(1 for name, _ in found if name == "weave_ipam_owned_addresses") == 4
    assert sum(1 for name, _ in found if name == "weave_ipam_owner_absent_seconds") == 1


def test_names_that_others_chose_cannot_make_up_lines() -> None:
    nickname = 'evil"} 1\nweave_warnings 99\n# \\'
    peer = msgspec.structs.replace(node_report().connections[0], nickname=nickname)
    found = samples(node_report(connections=(peer,)))
    assert any(("nickname", nickname) in labels for _, labels in found)
    assert found["weave_warnings", ()] != 99


def test_without_allocation_there_are_no_figures_of_it() -> None:
    found = samples(node_report(ipam=ipam_report(state="off")))
    assert not any(name.startswith("weave_ipam") for name, _ in found)


def test_all_metrics_are_documented_and_no_others() -> None:
    documented = set(re.findall(r"`(weave_\w+)`", DOCUMENT.read_text()))
    absent = msgspec.structs.replace(ipam_report().owners[-1], is_self=False, unreachable_s=1.0)
    shown = {name for name, _ in samples(node_report(ipam=ipam_report(owners=(absent,))))}
    assert shown <= documented
    assert {name for name in documented if "round_trip" not in name and "loss" not in name} <= shown


def test_the_library_is_loaded_by_the_first_scrape_only() -> None:
    code = "import sys, weavenet.control.server; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
