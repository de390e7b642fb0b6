"""``weave lab …`` as a person types it: what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.fresh import MakeLab, new_name
from weavenet.lab import lab as labs
from weavenet.lab import processes, requirements, state
from weavenet.lab.cli import main
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

LAUNCHER = Path(__file__).parents[2] / "weave"


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(3)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(list(arguments))
    said = capsys.readouterr()
    assert said.out == ""
    assert status != 0
    return status, said.err


def test_exec_passes_output_input_and_exit_status(lab: Lab) -> None:
    command = [LAUNCHER, "lab", "exec", "--lab", lab.name]
    done = subprocess.run(
        [*command, "h2", "--", "sh", "-c", "hostname; cat; exit 7"], input=b"in", capture_output=True, check=False
    )
    assert (done.stdout, done.returncode) == (b"h2\nin", 7)
    assert subprocess.run([*command, "h2", "hostname"], capture_output=True, check=False).stdout == b"h2\n"
    under = subprocess.run([*command, "underlay", "--", "ls", "/sys/class/net"], capture_output=True, check=False)
    assert under.returncode == 0


def test_a_host_does_not_inherit_the_callers_settings(lab: Lab) -> None:
    done = subprocess.run(
        [LAUNCHER, "lab", "exec", "--lab", lab.name, "h1", "--", "env"],
        env={**os.environ, "WEAVE_PASSWORD": "secret", "PYTHONPATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "secret" not in done.stdout
    assert "PYTHONPATH" not in done.stdout


def test_run_exec_in_and_rm_of_a_container(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "h1", "--name", "web", "--lab", lab.name, "--", "sleep", "500"]) == 0
    assert capsys.readouterr().out == "netns:web\n"
    command = [LAUNCHER, "lab", "exec", "--lab", lab.name, "h1:web", "--", "ip", "-o", "link"]
    assert "eth0" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert main(["rm", "h1", "web", "--lab", lab.name]) == 0
    assert refused(capsys, "rm", "h1", "web", "--lab", lab.name)[0] == 4


def test_options_of_a_containers_command_are_its_own(lab: Lab) -> None:
    whole = [
        LAUNCHER,
        "lab",
        "run",
        "h1",
        "--name",
        "own",
        "--lab",
        lab.name,
        "--",
        "sh",
        "-c",
        "echo hello; sleep 500",
    ]
    assert subprocess.run(whole, capture_output=True, text=True, check=False).stdout == "netns:own\n"
    log = lab.host("h1").disk / "log/container-own.log"
    wait_until(lambda: log.exists() and log.read_text() == "hello\n", 20, "the command to speak")
    lab.host("h1").container("own").remove()


def test_list_shows_hosts_and_faults(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    of_lab = ["--lab", lab.name]
    assert main(["partition", *of_lab, "h1,h2", "/", "h3"]) == 0
    assert main(["cut", *of_lab, "h2", "h1"]) == 0
    assert main(["loss", *of_lab, "h1", "h3", "2.5%"]) == 0
    assert main(["mtu", *of_lab, "h3", "h1", "1280"]) == 0
    assert main(["nat", *of_lab, "h2"]) == 0
    assert main(["list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{lab.name} ")]
    assert lines == [
        f"{lab.name} h1 192.168.77.1 running",
        f"{lab.name} h2 192.168.77.2 running",
        f"{lab.name} h3 192.168.77.3 running",
        f"{lab.name} partition h1,h2 / h3",
        f"{lab.name} cut h1 h2",
        f"{lab.name} loss h1 h3 2.5%",
        f"{lab.name} mtu h1 h3 1280",
        f"{lab.name} nat h2 cone",
    ]
    assert main(["list", "-o", "json"]) == 0
    mine = next(each for each in json.loads(capsys.readouterr().out) if each["name"] == lab.name)
    assert mine["partition"] == [["h1", "h2"], ["h3"]]
    assert main(["nat", *of_lab, "h2", "--off"]) == 0
    assert main(["heal", *of_lab]) == 0


def test_no_lab_in_use_is_called_left_over(lab: Lab, lab_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    inside = [LAUNCHER, "lab", "exec", "--lab", lab.name, "h1", "--", LAUNCHER, "lab", "list"]
    done = subprocess.run(inside, capture_output=True, text=True, check=True)
    assert "left over" not in done.stdout and "next:" not in done.stdout + done.stderr
    folder = state.disk_folder(lab_name)
    folder.mkdir(parents=True)
    try:
        with state.locked(lab_name):
            assert main(["list"]) == 0
            assert f"{lab_name} is changing\n" in capsys.readouterr().out
        assert main(["list"]) == 0
        assert f"{lab_name} is left over; next: weave lab down --lab {lab_name}\n" in capsys.readouterr().out
        asleep = subprocess.Popen(["sleep", "60"], env={**os.environ, **processes.marks(lab_name, "underlay")})
        try:
            wait_until(lambda: asleep.pid in processes.marked(lab_name), 30.0, "the mark")
            assert main(["list"]) == 0
            assert f"{lab_name} is in use\n" in capsys.readouterr().out
        finally:
            asleep.kill()
            asleep.wait()
    finally:
        folder.rmdir()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["up", "0"], 1, "1 to 50 hosts"),
        (["up", "51"], 1, "1 to 50 hosts"),
        (["up", "three"], 1, "a number of hosts"),
        (["up"], 1, "a number of hosts"),
        (["up", "3", "--name", "No/Good"], 1, "lab's name"),
        (["up", "3", "--docker"], 1, "--docker"),
        (["up", "--topology", "/no/such/file.toml"], 1, "/no/such/file.toml"),
        (["down", "--lab", "nobody-made-this"], 4, "nobody-made-this"),
        (["exec", "--lab", "nobody-made-this", "h1", "--", "true"], 4, "weave lab up"),
        (["frobnicate"], 1, "frobnicate"),
    ],
)
def test_bad_input_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    found, said = refused(capsys, *arguments)
    assert found == status
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["exec", "--lab", "{}", "h9", "--", "true"], 4, "h1, h2, h3"),
        (["exec", "--lab", "{}", "h1:db", "--", "true"], 4, "db"),
        (["run", "--lab", "{}", "h1", "--name", "Bad Name"], 1, "container's name"),
        (["partition", "--lab", "{}", "h1,h2,h3"], 1, "at least two sides"),
        (["partition", "--lab", "{}", "h1", "/", "h7"], 4, "h7"),
        (["cut", "--lab", "{}", "h1", "h1"], 1, "two different hosts"),
        (["loss", "--lab", "{}", "h1", "h2", "lots"], 1, "0% to 100%"),
        (["kill", "--lab", "{}", "h2"], 4, "weave launch"),
        (["pause", "--lab", "{}", "h2"], 4, "weave launch"),
        (["reboot", "--lab", "{}", "h0"], 4, "h0"),
        (["clone", "--lab", "{}", "h1", "h0"], 4, "h0"),
        (["clone", "--lab", "{}", "h1", "h1"], 1, "two different hosts"),
        (["up", "3", "--name", "{}"], 1, "weave lab down"),
    ],
)
def test_bad_input_to_a_lab_is_refused(
    lab: Lab, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    found, said = refused(capsys, *(argument.format(lab.name) for argument in arguments))
    assert found == status
    assert words in said
    assert lab.host("h1").run(["true"]).returncode == 0


def test_missing_tools_come_with_the_line_that_installs_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        requirements.shutil, "which", lambda name, path=None: None if name in ("nft", "ip") else which(name, path=path)
    )
    status, said = refused(capsys, "up", "3")
    assert status == 1
    assert "apt-get install -y iproute2 nftables" in said


def test_without_root_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, said = refused(capsys, "list")
    assert status == 1
    assert "root" in said


def test_a_named_lab_can_be_left_out_only_while_it_is_the_only_one(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    other = new_name()
    try:
        assert main(["up", "1", "--name", other]) == 0
        capsys.readouterr()
        status, said = refused(capsys, "heal")
        assert status == 1
        assert other in said
        assert lab.name in said
    finally:
        labs.down(other)
