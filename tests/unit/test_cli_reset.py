"""``weave reset`` against a fake daemon behind the real control server, and without any daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fake_daemon import RunningDaemon, ipam_report, running
from weavenet.cli.main import run
from weavenet.core.commands import Done, GetReport, Reset
from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab.waiting import wait_until
from weavenet.runtime import erasing, identity
from weavenet.runtime.lock import Lock
from weavenet.runtime.settings import Settings
from weavenet.runtime.store import open_store

CapFd = pytest.CaptureFixture[str]
DONE = "done: what this peer owned is h2's now"
NEEDS = ("nobody who could take over the addresses is reachable; missing: h2, h3",)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    monkeypatch.setattr("weavenet.cli.reset.SILENT_S", 0.02)
    monkeypatch.setattr("weavenet.cli.waiting.LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("weavenet.cli.reset.watch", lambda pid: None)
    with running(tmp_path) as started:
        started.daemon.answers[Reset] = Done(DONE)
        monkeypatch.setenv("WEAVE_HTTP_ADDR", started.socket_path)
        yield started


def leaving(fake: RunningDaemon, **changes: Any) -> None:
    """The reset does not end, and the report says ``changes``."""
    fake.daemon.hold_resets = True
    fake.daemon.report = msgspec.structs.replace(fake.daemon.report, ipam=ipam_report(**changes))


def asked(fake: RunningDaemon) -> list[object]:
    return [command for command in fake.daemon.commands if not isinstance(command, GetReport)]


@pytest.mark.parametrize(("arguments", "force"), [([], False), (["--force"], True), (["--timeout", "2m"], False)])
def test_what_was_asked_reaches_the_daemon(
    arguments: list[str], force: bool, fake: RunningDaemon, capfd: CapFd
) -> None:
    assert run(["reset", *arguments]) == 0
    assert capfd.readouterr().out == f"{DONE}\n"
    assert asked(fake) == [Reset(force)]


def test_json(fake: RunningDaemon, capfd: CapFd) -> None:
    assert run(["reset", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"result": "done", "detail": DONE}


def test_a_timeout_in_step_one_says_who_is_missing_and_that_nothing_changed(fake: RunningDaemon, capfd: CapFd) -> None:
    leaving(fake, leaving="seeking", leaving_needs=NEEDS)
    assert run(["reset", "--timeout", "300ms"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert NEEDS[0] in captured.err
    assert "stays as it was" in captured.err
    assert "weave reset --force" in captured.err
    wait_until(lambda: fake.daemon.cancelled == [Reset(False)], 10, "the command to be cancelled")


def test_a_timeout_in_step_two_says_that_it_goes_on(fake: RunningDaemon, capfd: CapFd) -> None:
    needs = "not confirmed yet what was handed over: h2"
    leaving(fake, leaving="surrendering", leaving_needs=(needs,))
    assert run(["reset", "--timeout", "300ms", "-o", "json"]) == 2
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"result": "leaving", "detail": needs}
    assert "goes on by itself" in captured.err


def test_what_could_not_be_removed_is_told(fake: RunningDaemon, capfd: CapFd) -> None:
    fake.daemon.answers[Reset] = Failure(Code.HOST, "expected to remove it all", "device weave: busy", "again")
    assert run(["reset"]) == 1
    assert "device weave: busy" in capfd.readouterr().err


# --- without a daemon ---


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    async def nothing(run_dir: str) -> None:
        """The kernel of the test's host is left alone."""

    monkeypatch.setattr(erasing, "erase_host", nothing)
    return Settings(data_dir=str(tmp_path / "lib"), run_dir=str(tmp_path / "run"), log_file=str(tmp_path / "log"))


def store(settings: Settings, *changes: Change) -> None:
    opened = open_store(Path(settings.data_dir))
    opened.write_now(changes)
    opened.close()


SEED = Change(identity.TABLE, identity.SEED, bytes(range(32)))
MEMBER = Change("log", bytes(4), b"whatever")


def test_nothing_is_left_of_a_host_that_is_no_member(settings: Settings) -> None:
    store(settings, SEED)
    Path(settings.log_file).write_text("old")
    assert "nothing" in erasing.erase(settings, force=False)
    assert not any(Path(place).exists() for place in (settings.data_dir, settings.run_dir, settings.log_file))
    assert "nothing" in erasing.erase(settings, force=False)


def test_a_member_needs_a_daemon_or_force(settings: Settings) -> None:
    store(settings, SEED, MEMBER)
    with pytest.raises(WeaveError) as caught:
        erasing.erase(settings, force=False)
    assert "weave launch" in caught.value.failure.next_step
    text = erasing.erase(settings, force=True)
    assert len(text.partition("weave rmpeer ")[2]) == 32
    assert not Path(settings.data_dir).exists()


def test_a_name_that_would_not_be_found_again_is_kept(settings: Settings) -> None:
    store(settings, SEED, Change(identity.TABLE, identity.NAME, b"0a:00:00:00:00:01"), Change("targets", b"x", b"y"))
    erasing.erase(settings, force=False)
    opened = open_store(Path(settings.data_dir))
    assert opened.load() == {(identity.TABLE, identity.NAME): b"0a:00:00:00:00:01"}
    opened.close()


def test_what_others_keep_there_stays(settings: Settings) -> None:
    store(settings, SEED)
    other = Path(settings.data_dir) / "mine"
    other.write_text("kept")
    erasing.erase(settings, force=False)
    assert list(Path(settings.data_dir).iterdir()) == [other]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("held", ["pid_file", "lock_file"])
def test_nothing_is_taken_from_under_a_daemon_that_does_not_answer(held: str, force: bool, settings: Settings) -> None:
    store(settings, SEED, MEMBER)
    lock = Lock.acquire(Path(getattr(settings, held)))
    try:
        with pytest.raises(WeaveError) as caught:
            erasing.erase(settings, force=force)
        assert f"pid {os.getpid()}" in caught.value.failure.found
        assert "`weave stop`" in caught.value.failure.next_step
        opened = open_store(Path(settings.data_dir))
        assert len(opened.load()) == 2
        opened.close()
    finally:
        lock.release()
