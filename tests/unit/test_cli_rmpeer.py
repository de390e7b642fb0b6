"""``weave rmpeer`` and ``weave status ipam --unreachable`` against a fake daemon behind the real control server."""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fake_daemon import NAMES, PEERS, RunningDaemon, ipam_report, range_report, running
from weavenet.cli.main import run
from weavenet.cli.printing import Progress
from weavenet.core.commands import Done, GetReport, RemovePeers
from weavenet.core.errors import Code, Failure
from weavenet.core.report import OwnerReport
from weavenet.lab.waiting import wait_until

CapFd = pytest.CaptureFixture[str]
DONE = "h3 is removed; what it owned is this peer's"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    monkeypatch.setattr("weavenet.cli.rmpeer.SILENT_S", 0.02)
    monkeypatch.setattr("weavenet.cli.waiting.LOOK_EVERY_S", 0.02)
    with running(tmp_path) as started:
        started.daemon.answers[RemovePeers] = Done(DONE)
        monkeypatch.setenv("WEAVE_HTTP_ADDR", started.socket_path)
        yield started


def asked(fake: RunningDaemon) -> list[object]:
    return [command for command in fake.daemon.commands if not isinstance(command, GetReport)]


def reporting(fake: RunningDaemon, **changes: Any) -> None:
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam_report(**changes))


def waiting(fake: RunningDaemon, **changes: Any) -> None:
    """The removal does not end, and the report says ``changes``."""
    fake.daemon.hold_removals = True
    reporting(fake, **changes)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["h3"], RemovePeers(("h3",))),
        (["h3", NAMES[1], "--force"], RemovePeers(("h3", NAMES[1]), force=True)),
        (["--no-wait", PEERS[2]], RemovePeers((PEERS[2],), wait=False)),
        (["--all-unreachable"], RemovePeers(all_unreachable=True)),
        (["--all-unreachable", "--older-than", "1h"], RemovePeers(all_unreachable=True, older_than_s=3600.0)),
    ],
)
def test_what_was_asked_reaches_the_daemon(
    arguments: list[str], command: RemovePeers, fake: RunningDaemon, capfd: CapFd
) -> None:
    assert run(["rmpeer", *arguments]) == 0
    assert capfd.readouterr().out == f"{DONE}\n"
    assert asked(fake) == [command]


@pytest.mark.parametrize(
    "arguments",
    [[], ["h3", "--all-unreachable"], ["h3", "--older-than", "1h"], ["--all-unreachable", "--older-than", "soon"]],
)
def test_what_makes_no_sense_is_refused_before_it_is_asked(
    arguments: list[str], fake: RunningDaemon, capfd: CapFd
) -> None:
    assert run(["rmpeer", *arguments]) == 1
    assert "expected" in capfd.readouterr().err
    assert asked(fake) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [(Code.NOT_FOUND, "'h9'"), (Code.INVALID, "h3 twice"), (Code.CONFLICT, "h3 is back"), (Code.BUSY, "256")],
)
def test_refusals_exit_with_1_and_keep_their_words(code: Code, found: str, fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[RemovePeers] = Failure(code, "expected a peer that is gone", found, "look")
    assert run(["rmpeer", "h3"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == f"weave: expected a peer that is gone\n  found: {found}\n  next: look\n"


def test_pending_shows_the_quorum_and_exits_with_2(fake: RunningDaemon, capfd: CapFd) -> None:
    voters = tuple(f"h{number}" for number in (1, 2, 3))
    text = "removal of h3 is pending: it needs 1 more of the voters h2, h3"
    waiting(fake, removals=(text,), removal_state="pending", voters=voters)
    assert run(["rmpeer", "--timeout", "300ms", "h3"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count(f"weave: {text}; a quorum is 2 of 3 voters\n") == 1
    assert "not done within 0.3 s" in captured.err
    assert "next: nothing, it is remembered (pending)" in captured.err
    wait_until(lambda: fake.daemon.cancelled == [RemovePeers(("h3",))], 10, "the command to be cancelled")


def test_only_the_time_that_passes_is_no_progress(fake: RunningDaemon, capfd: CapFd) -> None:
    progress = Progress()
    for text in ("h3 (last seen 9s ago)", "h3 (last seen 10s ago)", "h3 (last seen 1m 2s ago)", "h4, since 2 s"):
        progress.show(text)
    assert capfd.readouterr().err == "weave: h3 (last seen 9s ago)\nweave: h4, since 2 s\n"


def test_progress_on_a_terminal_takes_back_all_rows_it_took() -> None:
    """A line that is wider than the terminal goes on in the next row, which ``\\r`` does not leave."""
    rows, one = "\r\x1b[2A\x1b[J", "\r\x1b[J"
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 20, 0, 0))
    with os.fdopen(theirs, "w") as terminal, pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        progress = Progress()
        progress.show("x" * 50)  # with "weave: " three rows of 20
        progress.show("y" * 13)  # one row, and the cursor is still in it
        progress.show("z")
        progress.end()
        text = ""
        while not text.endswith(f"z{one}") and select.select([ours], [], [], 10)[0]:
            text += os.read(ours, 4096).decode()
    os.close(ours)
    assert text == f"{one}weave: {'x' * 50}{rows}weave: {'y' * 13}{one}weave: z{one}"


def test_what_others_chose_commands_no_terminal(fake: RunningDaemon, capfd: CapFd) -> None:
    nickname = "\x1b[2J\nh2"
    reporting(fake, owners=(OwnerReport(PEERS[1], NAMES[1], nickname, 524288, 50.0, False, 75.0),))
    assert run(["status", "ipam", "--unreachable"]) == 0
    fake.daemon.answers[RemovePeers] = Failure(Code.CONFLICT, f"expected {nickname}", f"found {nickname}", "look")
    assert run(["rmpeer", "h2"]) == 1
    fake.daemon.answers[RemovePeers] = Done("\x1b[2J is removed\nh3 is removed")
    assert run(["rmpeer", "h2"]) == 0
    waiting(fake, removals=("\x1b[2J is not there",))
    assert run(["rmpeer", "--timeout", "300ms", "h2"]) == 2
    captured = capfd.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert f"{NAMES[1]}(\ufffd[2J\ufffdh2)" in captured.out
    assert captured.out.endswith("\n\ufffd[2J is removed\nh3 is removed\n")
    assert "weave: expected \ufffd[2J\ufffdh2\n  found: found \ufffd[2J\ufffdh2\n" in captured.err


def test_an_answer_that_is_there_at_once_counts_without_any_time_to_wait(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[RemovePeers] = Failure(Code.CONFLICT, "expected a peer that is gone", "h3 is reachable", "look")
    assert run(["rmpeer", "--timeout", "0", "h3"]) == 1
    assert "h3 is reachable" in capfd.readouterr().err


def test_what_the_daemon_has_not_taken_in_is_not_called_remembered(fake: RunningDaemon, capfd: CapFd) -> None:
    waiting(fake)
    assert run(["rmpeer", "--timeout", "0", "h3"]) == 2
    captured = capfd.readouterr()
    assert "next: run it again" in captured.err
    assert "it is remembered" not in captured.err


def test_held_shows_who_has_not_confirmed_and_exits_with_2(fake: RunningDaemon, capfd: CapFd) -> None:
    text = "h3 is removed; its addresses are held until h2 confirms"
    waiting(fake, removals=(text,), removal_state="held", waiting_for=("h2", f"{NAMES[2]}(h3)"))
    assert run(["rmpeer", "--timeout", "300ms", "-o", "json", "h3"]) == 2
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {
        "result": "held",
        "detail": f"{text}; not confirmed yet: {NAMES[2]}(h3)",
    }
    assert "(the peers are removed, and their addresses held until all others confirmed)" in captured.err


def test_result_as_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["rmpeer", "-o", "json", "h3"]) == 0
    assert json.loads(capfd.readouterr().out) == {"result": "done", "detail": DONE}
    fake.daemon.answers[RemovePeers] = Done("pending: removal of h3")
    assert run(["rmpeer", "-o", "json", "--no-wait", "h3"]) == 0
    assert json.loads(capfd.readouterr().out)["result"] == "pending"


def test_absent_peers_are_listed_with_since_when_and_how_much(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", "ipam", "--unreachable"]) == 0
    longest, holder, total = capfd.readouterr().out.splitlines()
    assert longest.startswith(f"{NAMES[2]}(h3)")
    assert "       0 IPs (00.0% of total) absent since 2" in longest
    assert longest.endswith(f"(2h 0m) {PEERS[2]}")
    assert "  524288 IPs (50.0% of total) absent since 2" in holder
    assert total == "2 absent peers, 524288 addresses, 50.0% of the range"


def test_what_the_absent_hold_of_two_ranges(fake: RunningDaemon, capfd: CapFd) -> None:
    """The threshold is reached when it is in one of them."""
    little = range_report(
        range="fd00:77::/64",
        addresses=1 << 40,
        owners=(
            OwnerReport(PEERS[1], NAMES[1], "h2", 1 << 39, 62.5, False, 75.0),
            OwnerReport(PEERS[0], NAMES[0], "h1", 1 << 39, 37.5, True, None),
        ),
    )
    reporting(fake, ranges=(range_report(), msgspec.structs.replace(little, addresses=5 << 37)))
    assert run(["status", "ipam", "--unreachable"]) == 0
    _, holder, total = capfd.readouterr().out.splitlines()
    assert "524288 IPs (50.0% of 10.32.0.0/12), 549755813888 IPs (62.5% of fd00:77::/64) absent since 2" in holder
    assert total == (
        "2 absent peers, 524288 addresses, 50.0% of 10.32.0.0/12, 549755813888 addresses, 80.0% of fd00:77::/64"
    )
    assert run(["status", "ipam", "--unreachable", "--threshold", "70%"]) == 2
    assert "weave rmpeer h2" in capfd.readouterr().err
    assert run(["status", "ipam", "--unreachable", "--threshold", "90%"]) == 0
    capfd.readouterr()
    assert run(["status", "ipam", "--unreachable", "-o", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["Size"] == 524288
    assert [each["Size"] for each in document["Ranges"]] == [524288, 1 << 39]


def test_absent_peers_with_long_names_are_in_line(fake: RunningDaemon, capfd: CapFd) -> None:
    long = OwnerReport(PEERS[1], NAMES[1], "a-nickname-longer-than-the-column", 524288, 50.0, False, 75.0)
    reporting(fake, owners=(long, OwnerReport(PEERS[2], NAMES[2], "h3", 1, 0.1, False, 80.0)))
    assert run(["status", "ipam", "--unreachable"]) == 0
    lines = capfd.readouterr().out.splitlines()[:2]
    assert len({line.index(" IPs (") for line in lines}) == 1


def test_absence_counts_from_the_age_asked_for(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", "ipam", "--unreachable", "--older-than", "1h", "--threshold", "1%"]) == 0
    assert capfd.readouterr().out.splitlines()[1] == "1 absent peer, 0 addresses, 0.0% of the range"


@pytest.mark.parametrize(("threshold", "status"), [("50%", 2), ("10", 2), ("50.1%", 0)])
def test_threshold(threshold: str, status: int, fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", "ipam", "--unreachable", "--threshold", threshold]) == status
    captured = capfd.readouterr()
    assert NAMES[1] in captured.out
    assert ("weave rmpeer h2" in captured.err) == (status == 2)


@pytest.mark.parametrize("nickname", ["h 2", "$(reboot)", "--force", "h2;ls", ""])
def test_what_a_shell_would_not_take_as_a_name_is_advised_by_its_id(
    nickname: str, fake: RunningDaemon, capfd: CapFd
) -> None:
    reporting(fake, owners=(OwnerReport(PEERS[1], NAMES[1], nickname, 524288, 50.0, False, 75.0),))
    peers = tuple(
        msgspec.structs.replace(each, nickname=nickname) if each.peer == PEERS[1] else each
        for each in fake.daemon.report.peers
    )
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, peers=peers)
    assert run(["status", "ipam", "--unreachable", "--threshold", "10%"]) == 2
    assert capfd.readouterr().err.endswith(f"weave rmpeer {PEERS[1]}\n")


def test_absence_as_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", "ipam", "--unreachable", "--threshold", "10%", "-o", "json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert (found["Size"], found["Percent"], found["Threshold"], found["Reached"]) == (524288, 50.0, 10.0, True)
    assert [peer["UID"] for peer in found["Peers"]] == [PEERS[2], PEERS[1]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--unreachable"],
        ["peers", "--unreachable"],
        ["ipam", "--threshold", "10%"],
        ["ipam", "--older-than", "1h"],
        ["ipam", "--unreachable", "--threshold", "0%"],
        ["ipam", "--unreachable", "--threshold", "much"],
        ["ipam", "--unreachable", "--older-than", "9" * 400],
    ],
)
def test_wrong_questions_are_refused(arguments: list[str], fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", *arguments]) == 1
    assert "expected" in capfd.readouterr().err


def test_absence_with_allocation_off_exits_with_4(fake: RunningDaemon, capfd: CapFd) -> None:
    reporting(fake, state="off")
    assert run(["status", "ipam", "--unreachable"]) == 4
