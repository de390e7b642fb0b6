"""Nothing remains of a lab: after down, after a crash, after a half-made up, after Ctrl-C in the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import remains
from lab.fresh import new_name
from weavenet.core.errors import Code, WeaveError
from weavenet.lab import lab as labs
from weavenet.lab import processes, state, underlay
from weavenet.lab.lab import Lab
from weavenet.lab.topology import of_count
from weavenet.lab.waiting import wait_until

LAUNCHER = Path(__file__).parents[2] / "weave"


class Demo:
    """``weave lab demo`` as a shell starts it: a process group of its own, to which Ctrl-C goes."""

    def __init__(self, out: Path) -> None:
        self.out = out
        with out.open("w") as file:
            self.process = subprocess.Popen(
                [LAUNCHER, "lab", "demo"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.lab = f"demo-{self.process.pid}"

    def says(self, words: str) -> bool:
        assert self.process.poll() is None or words in self.out.read_text(), self.out.read_text()
        return words in self.out.read_text()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path / "out")
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            os.killpg(demo.process.pid, signal.SIGKILL)
            demo.process.wait()
        labs.down(demo.lab)


def test_down_leaves_nothing(lab_name: str) -> None:
    before = remains.snapshot(lab_name)
    lab = Lab.up(lab_name, of_count(3))
    container = lab.host("h1").start_container("web")
    container.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & sleep 1001 >/dev/null 2>&1 &"], check=True)
    lab.host("h2").run(["sh", "-c", "mount -t tmpfs none /mnt; ip link add some type veth peer name other"], check=True)
    lab.partition([["h1"], ["h2"]])
    namespaces = remains.namespaces_of(lab_name)
    assert len(namespaces) >= 1 + 3 * 5
    assert remains.snapshot(lab_name) - before, "the snapshot sees a lab"
    assert labs.down(lab_name)
    remains.expect_nothing_added(lab_name, before, namespaces)
    assert not labs.down(lab_name)


def test_a_lab_in_use_adds_no_device_and_no_mount_to_the_machine(lab_name: str) -> None:
    before = remains.snapshot(lab_name)
    lab = Lab.up(lab_name, of_count(2))
    lab.host("h1").start_container("web")
    added = {line.split()[0] for line in remains.snapshot(lab_name) - before}
    assert added == {"process", "folder"}


def test_down_after_paused_killed_and_broken_parts(lab_name: str) -> None:
    before = remains.snapshot(lab_name)
    lab = Lab.up(lab_name, of_count(3))
    entered = lab.host("h1").popen(["sleep", "999"])
    wait_until(entered.pids, 20, "the command to run")
    lab.host("h1").pause()
    lab.kill("h2")
    os.kill(lab.state.underlay_pid, signal.SIGKILL)
    (state.run_folder(lab_name) / "lab.json").write_text("{")
    assert lab_name in state.existing()
    labs.down(lab_name)
    entered.process.communicate(timeout=20)
    remains.expect_nothing_added(lab_name, before)


def test_down_ends_what_entered_the_underlay_and_lost_its_marks(lab_name: str) -> None:
    before = remains.snapshot(lab_name)
    Lab.up(lab_name, of_count(1))
    namespaces = remains.namespaces_of(lab_name)
    entered = subprocess.Popen(
        [LAUNCHER, "lab", "exec", "--lab", lab_name, "underlay", "--", "env", "-i", "sleep", "999"]
    )
    try:
        wait_until(lambda: processes.arguments(entered.pid)[:1] == ["sleep"], 20, "the command to run")
        assert entered.pid not in processes.marked(lab_name)
        labs.down(lab_name)
        remains.expect_nothing_added(lab_name, before, namespaces)
        assert entered.wait(20) == -signal.SIGKILL
    finally:
        entered.kill()
        entered.wait()


@pytest.mark.parametrize("step", ["build", "connect", "apply_faults"])
def test_up_that_fails_leaves_nothing(lab_name: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    before = remains.snapshot(lab_name)
    monkeypatch.setattr(underlay, step, fail)
    with pytest.raises(KeyboardInterrupt):
        Lab.up(lab_name, of_count(2))
    remains.expect_nothing_added(lab_name, before)


def test_down_finishes_what_a_killed_up_began(lab_name: str) -> None:
    before = remains.snapshot(lab_name)
    process = subprocess.Popen([LAUNCHER, "lab", "up", "30", "--name", lab_name], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(processes.marked(lab_name)) >= 5, 60, "some hosts to start")
    process.kill()
    process.wait()
    with pytest.raises(WeaveError) as caught:
        Lab.up(lab_name, of_count(1))
    assert caught.value.failure.code is Code.ALREADY_TAKEN
    with pytest.raises(WeaveError) as caught:
        Lab.open(lab_name)
    assert caught.value.failure.next_step == f"weave lab down --lab {lab_name}"
    assert (
        subprocess.run([LAUNCHER, "lab", "down", "--lab", lab_name], capture_output=True, check=False).returncode == 0
    )
    remains.expect_nothing_added(lab_name, before)


def test_down_of_one_lab_spares_another_and_foreign_processes(lab_name: str) -> None:
    in_container = {**processes.marks(lab_name, "h1"), processes.MACHINE: "pid:[1]"}
    foreign = [
        subprocess.Popen(["sleep", "1234"]),
        subprocess.Popen(["sleep", "1234"], env={**os.environ, **in_container}),  # of a lab with the same name
    ]
    neighbour = new_name()
    try:
        Lab.up(neighbour, of_count(1))
        Lab.up(lab_name, of_count(1))
        labs.down(lab_name)
        assert Lab.open(neighbour).host("h1").run(["true"]).returncode == 0
        assert [process.poll() for process in foreign] == [None, None]
    finally:
        labs.down(neighbour)
        for process in foreign:
            process.kill()
            process.wait()


def test_racing_ups_of_one_name_make_one_lab(lab_name: str) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            Lab.up(lab_name, of_count(2))
            outcomes.append("up")
        except WeaveError as problem:
            outcomes.append(problem.failure.code)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [Code.ALREADY_TAKEN, Code.ALREADY_TAKEN, "up"]
    assert Lab.open(lab_name).host("h2").run(["true"]).returncode == 0


def test_the_demo_tells_its_story_and_leaves_nothing(demo: Demo) -> None:
    before = remains.snapshot(demo.lab)
    wait_until(lambda: demo.says("weave attach"), 120, "the demo to attach containers")
    namespaces = remains.namespaces_of(demo.lab)
    assert demo.process.wait(300) == 0, demo.out.read_text()
    told = demo.out.read_text()
    for words in ("30 of 30 answered", "none twice", "links and data paths are back", "0 lost"):
        assert words in told
    assert "\033[" not in told  # not a terminal
    remains.expect_nothing_added(demo.lab, {line for line in before if demo.lab not in line}, namespaces)


@pytest.mark.parametrize(
    ("moment", "number", "to_group"),
    [
        ("Three hosts", signal.SIGINT, True),
        ("weave starts", signal.SIGTERM, False),
        ("weave attach", signal.SIGINT, True),
        ("The network breaks", signal.SIGHUP, False),
    ],
)
def test_an_interrupted_demo_leaves_nothing(demo: Demo, moment: str, number: signal.Signals, to_group: bool) -> None:
    before = remains.snapshot(demo.lab)
    wait_until(lambda: demo.says(moment), 120, f"the demo to say {moment!r}")
    namespaces = remains.namespaces_of(demo.lab)
    send = os.killpg if to_group else os.kill
    send(demo.process.pid, number)
    send(demo.process.pid, number)  # an impatient person
    assert demo.process.wait(60) == 128 + number, demo.out.read_text()
    assert f"interrupted by {number.name}" in demo.out.read_text()
    remains.expect_nothing_added(demo.lab, {line for line in before if demo.lab not in line}, namespaces)
