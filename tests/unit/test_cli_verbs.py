"""Verbs of the CLI against a fake daemon behind the real control server."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fake_daemon import NAMES, RunningDaemon, ipam_report, running
from weavenet import program
from weavenet.cli import client, layers, offers, quick, unheard
from weavenet.cli.main import VERBS, run
from weavenet.cli.quick import main
from weavenet.cli.spawn import DAEMON
from weavenet.control.status import SECTIONS
from weavenet.core.commands import Connect, Consense, Done, Explain, Forget
from weavenet.core.errors import Code, Failure
from weavenet.core.report import EndReport, Explanation, WayReport
from weavenet.runtime.settings import NameFrom, Settings, WireguardUse

CapFd = pytest.CaptureFixture[str]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    with running(tmp_path) as started:
        monkeypatch.setenv("WEAVE_HTTP_ADDR", started.socket_path)
        yield started


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVE_HTTP_ADDR", str(tmp_path / "absent.sock"))
    monkeypatch.setattr(unheard, "lock_files", lambda settings: (tmp_path / "weave.pid", tmp_path / "weave.lock"))


def test_places_are_those_of_the_daemon() -> None:
    assert Settings().control_socket == client.CONTROL_SOCKET
    assert quick.PARTS == SECTIONS


def test_a_daemon_that_hangs_is_not_waited_for_in_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: CapFd
) -> None:
    """A backlog that is full keeps whoever connects waiting."""
    path = str(tmp_path / "control.sock")
    monkeypatch.setenv("WEAVE_HTTP_ADDR", path)
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as queued:
        listener.bind(path)
        listener.listen(0)
        queued.connect(path)
        assert main(["status"]) == 2
    assert "no answer from the daemon" in capfd.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capfd: CapFd) -> None:
    assert run(["help", verb]) == 0
    text = capfd.readouterr().out
    if verb != "help":
        assert text.startswith(f"Usage: weave {verb}")
    assert "Example:" in text


def test_help_lists_every_verb_without_loading_them(capfd: CapFd) -> None:
    assert run(["--help"]) == 0
    text = capfd.readouterr().out
    assert all(re.search(rf"^  {verb} ", text, re.M) for verb in VERBS)


def test_unknown_verb_suggests(capfd: CapFd) -> None:
    assert run(["statsu"]) == 1
    assert "did you mean `weave status`?" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["attach"], ["launch", "--nonsense"], ["status", "nothing"], ["ps", "-o", "yaml"], ["connect"]]
)
def test_wrong_usage_exits_with_1(arguments: list[str], capfd: CapFd, nobody: None) -> None:
    assert run(arguments) == 1
    assert capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "peers"],
        ["status", "-o", "json"],
        ["report"],
        ["ps"],
        ["attach", "netns:x"],
        ["detach", "netns:x"],
        ["consense"],
        ["connect", "h"],
        ["forget", "h"],
    ],
)
def test_without_a_daemon_says_what_to_run(arguments: list[str], capfd: CapFd, nobody: None) -> None:
    assert main(arguments) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "`weave launch`" in captured.err


@pytest.mark.parametrize("part", ["", *SECTIONS])
def test_quick_and_full_status_print_the_same(part: str, fake: RunningDaemon, capfd: CapFd) -> None:
    arguments = ["status", part] if part else ["status"]
    assert main(arguments) == 0
    quickly = capfd.readouterr().out
    assert run(arguments) == 0
    assert re.sub(r"Uptime:.*", "", capfd.readouterr().out) == re.sub(r"Uptime:.*", "", quickly)


def test_status_as_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["status", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["Router"]["Name"] == NAMES[0]
    assert run(["status", "ipam", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["Status"] == "ready"
    assert run(["status", "peers", "-o", "json"]) == 0
    assert len(json.loads(capfd.readouterr().out)) == 3


def test_report_is_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["report"]) == 0
    assert json.loads(capfd.readouterr().out)["IPAM"]["Range"] == "10.32.0.0/12"


def test_explain_says_which_way_or_what_to_do(fake: RunningDaemon, capfd: CapFd) -> None:
    addresses, mac = ("10.32.0.1/12",), "02:00:00:00:00:01"
    web = EndReport("netns:web", "a" * 32, "::1", "h1", True, "netns:web", addresses, mac, ("web.",))
    host = EndReport("h2", "b" * 32, "::2", "h2", False, "weave:expose", (), "", ())
    way = WayReport("fastdp", "VXLAN answers", "not encrypted", 0.4123, 0.0, 1376)
    fake.daemon.answers[Explain] = Explanation(web, host, "yes", "", "", way)
    assert run(["explain", "netns:web", "h2"]) == 0
    assert capfd.readouterr().out == (
        "source   netns:web on this host, h1: 10.32.0.1/12, MAC 02:00:00:00:00:01, web.\n"
        "target   h2 itself: no address now\n"
        "yes      by fastdp (VXLAN answers), not encrypted, round trip 0.412 ms, loss 0 %, MTU 1376\n"
    )
    fake.daemon.answers[Explain] = Explanation(web, host, "no", "it has no address", "weave expose on h2", None)
    assert run(["explain", "netns:web", "h2"]) == 1
    assert capfd.readouterr().out.endswith("no       it has no address\n         next: weave expose on h2\n")
    fake.daemon.answers[Explain] = Explanation(web, host, "unknown", "elsewhere", "run on h2: …", None)
    assert run(["explain", "netns:web", "h2", "-o", "json"]) == 2
    assert json.loads(capfd.readouterr().out)["verdict"] == "unknown"
    fake.daemon.answers[Explain] = Failure(Code.NOT_FOUND, "expected a container", "'x'")
    assert run(["explain", "x", "h2"]) == 4


def test_report_fills_in_a_template(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["report", "-f", '{{.Ready}} {{len .Router.Peers}}{{"\\n"}}']) == 0
    out, _ = capfd.readouterr()
    assert out == f"true {len(fake.daemon.report.peers)}\n"
    assert run(["report", "-f", "{{.Redy}}"]) == 1
    assert "did you mean .Ready?" in capfd.readouterr().err
    assert run(["report", "-f", "{{.Ready}}", "-o", "json"]) == 1
    assert "one of -f and -o" in capfd.readouterr().err


def test_attach_prints_addresses_without_prefix_on_one_line(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["attach", "10.32.5.5/12", "net:10.40.0.0/16", "--no-multicast-route", "netns:web"]) == 0
    assert capfd.readouterr().out == "10.32.0.1 10.33.0.1\n"
    (spec,) = fake.daemon.attached
    assert (spec.container, spec.addresses) == ("netns:web", ("10.32.5.5/12", "net:10.40.0.0/16"))
    assert spec.multicast_route is False


def test_attach_as_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["attach", "-o", "json", "pid:12"]) == 0
    assert json.loads(capfd.readouterr().out) == {"addresses": ["10.32.0.1/12", "10.33.0.1/24"]}


@pytest.mark.parametrize("container", ["web", "netns:", "pid:x", "10.32.0.1/12"])
def test_attach_refuses_what_is_no_container(container: str, fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["attach", container]) == 1
    captured = capfd.readouterr().err
    assert "expected" in captured
    assert "found" in captured
    assert not fake.daemon.attached


def test_attach_refuses_a_name_that_is_not_to_be_registered(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["attach", "--without-dns", "-h", "web", "netns:a"]) == 1
    assert "expected one of --without-dns and -h" in capfd.readouterr().err
    assert fake.daemon.attached == []


def test_attach_of_an_absent_container_exits_with_4(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["attach", "netns:absent"]) == 4
    assert "ip netns list" in capfd.readouterr().err


def test_attach_says_what_it_waits_for_and_gives_up_at_the_timeout(
    fake: RunningDaemon, capfd: CapFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weavenet.cli.attachments.SILENT_S", 0.02)
    monkeypatch.setattr("weavenet.cli.waiting.LOOK_EVERY_S", 0.02)
    fake.daemon.hold.add("netns:web")
    ipam = ipam_report(pending=("netns:web waits for space from h2",))
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam)
    assert run(["attach", "--timeout", "300ms", "netns:web"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("weave: waiting: netns:web waits for space from h2") == 1
    assert "not done within 0.3 s" in captured.err


def test_attach_says_why_the_addresses_are_not_divided(
    fake: RunningDaemon, capfd: CapFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weavenet.cli.attachments.SILENT_S", 0.02)
    fake.daemon.hold.add("netns:web")
    ipam = ipam_report(
        state="awaiting consensus",
        detail="the lock is of no use yet: found no folder /shared; next: mount it",
        pending=("netns:web: an address in the default subnet, since 3 s: the addresses are not divided yet",),
    )
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam)
    assert run(["attach", "--timeout", "300ms", "netns:web"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "divided yet (the lock is of no use yet: found no folder /shared); next: `weave status ipam`" in last


def test_detach_and_ps(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["detach", "netns:web"]) == 0
    assert capfd.readouterr().out == "10.32.0.1\n"
    assert run(["ps"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "netns:web 0a:1b:2c:3d:4e:5f 10.32.0.1/12"
    assert run(["ps", "netns:web", "netns:nowhere"]) == 4
    out, err = capfd.readouterr()
    assert out.startswith("netns:web ")
    assert "netns:nowhere" in err
    assert run(["ps", "-o", "json", "netns:db"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["container"] == "netns:db"


@pytest.mark.parametrize("verb", ["consense", "prime"])
def test_consense_prints_the_role(verb: str, fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[Consense] = Done("member, not elector")
    assert run([verb]) == 0
    assert capfd.readouterr().out == "member, not elector\n"


def test_consense_shows_progress_and_times_out(
    fake: RunningDaemon, capfd: CapFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weavenet.cli.waiting.LOOK_EVERY_S", 0.02)
    fake.daemon.hold_consense = True
    ipam = ipam_report(state="awaiting consensus", electors_known=1, electors_missing=("h2", "h3"))
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam)
    assert run(["consense", "--timeout", "200ms"]) == 2
    captured = capfd.readouterr()
    assert "awaiting consensus: quorum 2, known 1, missing h2, h3" in captured.err
    assert "next: launch or reach the missing peers, then `weave consense` again" in captured.err
    assert captured.out == ""


def test_consense_leaves_advice_to_the_daemon_that_has_some_and_says_in_json_that_it_waits(
    fake: RunningDaemon, capfd: CapFd
) -> None:
    fake.daemon.hold_consense = True
    ipam = ipam_report(state="awaiting consensus", detail="the lock is of no use; next: mount it", electors_missing=())
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam)
    assert run(["consense", "--timeout", "200ms", "-o", "json"]) == 2
    captured = capfd.readouterr()
    assert "launch or reach" not in captured.err
    document = json.loads(captured.out)
    assert (document["result"], document["elector"]) == ("waiting", False)
    assert "mount it" in document["detail"]


def test_consense_with_ipam_off_exits_with_4(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[Consense] = Failure(Code.IPAM_OFF, "allocation is off", "", "launch with --ipalloc-range")
    assert run(["consense"]) == 4


def test_connect_and_forget(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["connect", "h1", "192.0.2.7:7000"]) == 0
    assert run(["connect", "--replace"]) == 0
    assert run(["forget", "h1"]) == 0
    assert fake.daemon.commands == [Connect(("h1", "192.0.2.7:7000")), Connect((), True), Forget(("h1",))]
    assert capfd.readouterr().out == ""
    fake.daemon.answers[Forget] = Done("h1 is from the configuration file; remove it there as well")
    assert run(["forget", "h1"]) == 0
    assert "configuration file" in capfd.readouterr().err


def test_refusals_are_shown_as_expected_found_next(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[Connect] = Failure(Code.INVALID, "expected a host", "'a b'", "write it as host:port")
    assert run(["connect", "a b"]) == 1
    assert capfd.readouterr().err == "weave: expected a host\n  found: 'a b'\n  next: write it as host:port\n"


def test_second_launch_exits_with_3(fake: RunningDaemon, capfd: CapFd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.delenv("WEAVE_CONF", raising=False)
    assert run(["launch"]) == 3
    assert "already running" in capfd.readouterr().err


def test_stop_asks_and_waits_for_the_end(fake: RunningDaemon, capfd: CapFd) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    fake.daemon.identity = msgspec.structs.replace(fake.daemon.identity, pid=process.pid)
    fake.daemon.request_stop = process.stdin.close  # type: ignore[method-assign]
    try:
        assert run(["stop"]) == 0
        assert process.wait(10) is not None
    finally:
        process.kill()
        process.wait()


def test_stop_of_nothing_is_no_error(nobody: None, capfd: CapFd) -> None:
    assert run(["stop"]) == 0
    assert capfd.readouterr().err == "weave is not running\n"


@pytest.fixture
def unheard_daemon(nobody: None, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process under the daemon's name that holds the lock beside the store, and answers nowhere."""
    code = "from weavenet.runtime.lock import Lock; import sys, pathlib; lock = Lock.acquire(pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", f"{code}; print(flush=True); input()", DAEMON, str(tmp_path / "weave.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("arguments", [["status"], ["ps"]])
def test_a_daemon_whose_socket_is_gone_is_named(
    arguments: list[str], unheard_daemon: subprocess.Popen[str], capfd: CapFd
) -> None:
    assert main(arguments) == 1
    said = capfd.readouterr().err
    assert f"a daemon is running (pid {unheard_daemon.pid}), but nobody answers" in said
    assert "`weave stop`" in said


def test_stop_ends_a_daemon_whose_socket_is_gone(unheard_daemon: subprocess.Popen[str], capfd: CapFd) -> None:
    assert run(["stop"]) == 0
    assert unheard_daemon.wait(10) == -signal.SIGTERM
    assert capfd.readouterr().err == ""


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever connects is let in and hears nothing."""
    path = str(tmp_path / "hung.sock")
    monkeypatch.setenv("WEAVE_HTTP_ADDR", path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        yield


def test_a_daemon_that_hangs_is_named_with_the_way_out(
    unheard_daemon: subprocess.Popen[str], hung: None, capfd: CapFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weavenet.cli.client.ask.__kwdefaults__", {"timeout_s": 0.05})
    assert main(["stop"]) == 2
    assert f"kill -9 {unheard_daemon.pid}; weave launch" in capfd.readouterr().err


@pytest.mark.parametrize("verb", [["consense"], ["rmpeer", "h3"], ["attach", "netns:x"], ["expose"]])
def test_a_daemon_that_hangs_holds_nobody_up_beyond_the_timeout(
    verb: list[str], nobody: None, hung: None, capfd: CapFd
) -> None:
    began = time.monotonic()
    assert main([*verb, "--timeout", "300ms"]) == 2
    assert time.monotonic() - began < 10
    said = capfd.readouterr().err
    assert "not done within 0.3 s: the daemon does not answer; next: " in said
    assert "missing" not in said


def test_stop_leaves_a_process_alone_that_only_has_the_pid_of_an_earlier_daemon(
    nobody: None, tmp_path: Path, capfd: CapFd
) -> None:
    command = [sys.executable, "-c", "input()", DAEMON]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        (tmp_path / "weave.lock").write_text(f"{process.pid}\n")
        assert run(["stop"]) == 0
        assert process.poll() is None
        process.kill()
    assert "not running" in capfd.readouterr().err


def test_version(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["version"]) == 0
    assert capfd.readouterr().out.splitlines()[1] == "weave 0.1.0"


def test_version_without_a_daemon(nobody: None, capfd: CapFd) -> None:
    assert run(["version", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["daemon"] is None


def test_passwords_are_long_and_differ(capfd: CapFd) -> None:
    assert run(["password"]) == run(["password"]) == 0
    first, second = capfd.readouterr().out.split()
    assert first != second
    assert len(first) >= 32


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capfd: CapFd) -> None:
    assert run(["completion", shell]) == 0
    assert "_WEAVE_COMPLETE" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("weave con", {"connect", "consense"}),
        ("weave --h", {"--help"}),
        ("weave nonsense zz", set()),
        ("weave lab ", {"up", "down", "list", "exec"}),
        ("weave lab mt", {"mtu"}),
        ("weave lab up --top", {"--topology"}),
        ("weave sim --see", {"--seed", "--seeds"}),
        ("weave help la", {"launch", "lab"}),
        ("weave help lab d", {"down", "demo"}),
        ("weave help attach ", set()),
        ("weave launch --log-level ", {"debug", "info", "warning", "error"}),
        ("weave launch --wireguard a", {"any"}),
        ("weave attach net", {"netns:web", "netns:db"}),
        ("weave attach 10.32.0.7/12 netns:w", {"netns:web"}),
        ("weave attach netns :", {"web", "db"}),
        ("weave attach netns : w", {"web"}),
        ("weave detach netns:d", {"netns:db"}),
        ("weave ps netns:d", {"netns:db"}),
        ("weave dns-add netns:d", {"netns:db"}),
    ],
)
def test_completion_answers(
    line: str, expected: set[str], tmp_path: Path, capfd: CapFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web").touch()
    (tmp_path / "db").touch()
    monkeypatch.setattr(offers, "NAMED", tmp_path)
    monkeypatch.setenv("_WEAVE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    with pytest.raises(SystemExit):
        main([])
    captured = capfd.readouterr()
    found = {item.removeprefix("plain,") for item in captured.out.split()}
    assert captured.err == ""
    assert expected <= found if line.endswith("lab ") else expected == found


def test_what_launch_offers_is_what_it_takes() -> None:
    words = {option.name: option.words for option in layers.OPTIONS if option.words}
    assert words["name-from"] == tuple(NameFrom)
    assert words["wireguard"] == tuple(WireguardUse)


def test_status_path_imports_nothing_heavy(fake: RunningDaemon) -> None:
    code = (
        "import sys; sys.argv = ['weave', 'status']; from weavenet.cli.quick import main; main(['status']);"
        "heavy = {'click', 'asyncio', 'ssl', 'pyroute2', 'http.client', 'msgspec', 'json'};"
        "print('heavy:', *sorted(heavy & set(sys.modules)))"
    )
    source = str(Path(client.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": source, "WEAVE_HTTP_ADDR": fake.socket_path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Verdict" in result.stdout
    assert result.stdout.rpartition("heavy:")[2].strip() == ""


def weave(*arguments: bytes | str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    command = [sys.executable, "-I", "-S", str(Path(program.source) / "weavenet/program.py"), "weavenet.cli.quick"]
    return subprocess.run([*command, *arguments], stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=60)


# The help of launch is longer than a buffer.
@pytest.mark.parametrize("verb", [["help"], ["version"], ["password"], ["launch", "--help"]])
def test_output_that_cannot_be_written_is_one_sentence(verb: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = weave(*verb, stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


@pytest.mark.parametrize("verb", [["help"], ["--help"], ["password"], ["launch", "--help"]])
def test_a_reader_that_went_away_is_no_error(verb: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = weave(*verb, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", ["dns-lookup absent", "frobnicate", "ps --frobnicate"])
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_words_that_cannot_be_written_change_neither_status_nor_output(verb: str, where: str) -> None:
    command = [sys.executable, "-I", "-S", str(Path(program.source) / "weavenet/program.py"), "weavenet.cli.quick"]
    line = f"WEAVE_HTTP_ADDR=/nowhere.sock {' '.join(map(shlex.quote, command))} {verb} {where}"
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


def test_an_attach_is_not_given_up_because_its_words_go_nowhere(fake: RunningDaemon) -> None:
    fake.daemon.note = "no DNS server runs here"
    command = [sys.executable, "-I", "-S", str(Path(program.source) / "weavenet/program.py"), "weavenet.cli.quick"]
    for where in ("2>/dev/full", "2>&-"):
        line = f"{' '.join(map(shlex.quote, command))} attach netns:web {where}"
        done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"10.32.0.1 10.33.0.1\n")


def test_what_the_locale_cannot_write_ends_no_command(capfd: CapFd, monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(1), "w", encoding="latin-1") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert main(["help"]) == 0
    assert "VERB \\u2026" in capfd.readouterr().out


def test_without_a_standard_output_nothing_is_written_elsewhere() -> None:
    command = [sys.executable, "-I", "-S", str(Path(program.source) / "weavenet/program.py"), "weavenet.cli.quick"]
    line = " ".join(map(shlex.quote, [*command, "version"]))
    done = subprocess.run(["sh", "-c", f"{line} >&-"], stderr=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_argument_that_is_no_text_is_refused() -> None:
    done = weave("attach", b"netns:\xff")
    assert done.returncode == 1
    assert b"UTF-8; found: netns:\\xff" in done.stderr


def test_help_of_what_is_not_there_is_an_error() -> None:
    assert weave("help", "lab", "frobnicate").returncode == 1


@pytest.mark.parametrize("words", [["attach"], ["lab"], ["lab", "up"]])
def test_help_of_a_verb_is_its_own(words: list[str]) -> None:
    assert weave("help", *words).stdout == weave(*words, "--help").stdout != b""
