"""The verbs about names, against a fake daemon behind the real control server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fake_daemon import NAMES, PEERS, RunningDaemon, running
from weavenet.cli.main import run
from weavenet.control.service import ExposeSpec, HideSpec, NameSpec
from weavenet.core.commands import Addresses, LookupName
from weavenet.core.report import DnsReport, NameReport

CapFd = pytest.CaptureFixture[str]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    with running(tmp_path) as started:
        monkeypatch.setenv("WEAVE_HTTP_ADDR", started.socket_path)
        yield started


@pytest.mark.parametrize(
    ("arguments", "spec"),
    [
        (["netns:web"], NameSpec(container="netns:web")),
        (["netns:web", "-h", "www"], NameSpec(container="netns:web", name="www")),
        (["-h", "www", "10.32.0.9", "pid:7"], NameSpec(container="pid:7", addresses=("10.32.0.9",), name="www")),
        (
            ["10.9.9.9", "fd00::1", "-h", "db.weave.local"],
            NameSpec(container="weave:external", addresses=("10.9.9.9", "fd00::1"), name="db.weave.local"),
        ),
        (
            ["10.9.9.9", "weave:extern", "-h", "db"],
            NameSpec(container="weave:extern", addresses=("10.9.9.9",), name="db"),
        ),
    ],
)
@pytest.mark.parametrize("verb", ["add", "remove"])
def test_the_forms_of_the_original(fake: RunningDaemon, verb: str, arguments: list[str], spec: NameSpec) -> None:
    assert run([f"dns-{verb}", *arguments]) == 0
    assert fake.daemon.named == [(verb, spec)]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dns-add", "10.9.9.9"], "-h NAME"),
        (["dns-add", "web", "-h", "x"], "netns:NAME"),
        (["dns-add", "netns:web", "10.9.9.9", "-h", "x"], "container comes last"),
        (["dns-add", "10.9.9.9/24", "netns:web"], "without prefix"),
        (["dns-add", "10.9.9.9/24", "-h", "x"], "without prefix"),
        (["dns-remove", "10.9.9.999", "-h", "x"], "expected IP addresses"),
    ],
)
def test_wrong_usage_says_what_was_expected(fake: RunningDaemon, capfd: CapFd, arguments: list[str], word: str) -> None:
    assert run(arguments) == 1
    assert word in capfd.readouterr().err
    assert fake.daemon.named == []


def test_lookup_prints_a_line_for_each(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[LookupName] = Addresses(("10.32.0.1", "10.40.0.1"))
    assert run(["dns-lookup", "web"]) == 0
    assert capfd.readouterr().out == "10.32.0.1\n10.40.0.1\n"
    assert fake.daemon.commands == [LookupName("web")]
    fake.daemon.answers[LookupName] = Addresses(())
    assert run(["dns-lookup", "web"]) == 4
    assert "weave status dns" in capfd.readouterr().err


def test_status_and_arguments_for_docker(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["dns-args"]) == 4
    assert "--no-dns" in capfd.readouterr().err
    entry = NameReport("web.weave.local.", "10.32.0.1", "0123456789abcdef", PEERS[1], NAMES[1], "h2")
    dns = DnsReport("weave.local.", (entry,), "169.254.53.53")
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, dns=dns)
    assert run(["dns-args"]) == 0
    assert capfd.readouterr().out == "--dns=169.254.53.53 --dns-search=weave.local."
    assert run(["status", "dns"]) == 0
    assert capfd.readouterr().out == f"web          10.32.0.1       0123456789ab {NAMES[1]}(h2)\n"
    elsewhere = msgspec.structs.replace(dns, address="192.0.2.1:5353")
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, dns=elsewhere)
    assert run(["dns-args"]) == 4
    assert "port 53" in capfd.readouterr().err
    assert run(["status", "dns", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["Entries"][0]["Hostname"] == "web.weave.local."


def test_attach_asks_for_a_name_unless_told_not_to(fake: RunningDaemon) -> None:
    assert run(["attach", "netns:web"]) == 0
    assert run(["attach", "--without-dns", "netns:web"]) == 0
    assert run(["attach", "-h", "www", "netns:web"]) == 0
    assert [(spec.dns, spec.name) for spec in fake.daemon.attached] == [(True, ""), (False, ""), (True, "www")]


def test_what_attach_has_to_say_besides_goes_to_stderr(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.note = "netns:a-b- gets no DNS name"
    assert run(["attach", "netns:a-b-"]) == 0
    said = capfd.readouterr()
    assert (said.out, said.err) == ("10.32.0.1 10.33.0.1\n", "weave: netns:a-b- gets no DNS name\n")


def test_expose_and_hide(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["expose", "10.32.5.1/12", "-h", "gw", "--without-masquerade"]) == 0
    assert run(["hide"]) == 0
    assert capfd.readouterr().out == "10.32.0.7\n10.32.0.7\n"
    expected = ExposeSpec(addresses=("10.32.5.1/12",), name="gw", masquerade=False)
    assert fake.daemon.exposed == [expected, HideSpec()]
