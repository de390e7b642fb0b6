"""Starting the daemon as a process: in most tests a script plays it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from weavenet import program
from weavenet.cli import spawn
from weavenet.cli.outcome import Ended
from weavenet.runtime.settings import Settings


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Settings]:
    """``play(code)``: settings with which ``start_in_background`` runs ``code`` as the daemon."""

    def prepare(code: str) -> Settings:
        script = tmp_path / "daemon.py"
        script.write_text("import json, os, sys\nsettings = json.load(sys.stdin)\n" + textwrap.dedent(code))
        monkeypatch.setattr(program, "command", lambda module, *arguments: [sys.executable, str(script), *arguments])
        return Settings(passwords=("secret-secret",), log_file=str(tmp_path / "weave.log"))

    return prepare


READY = """
fd = int(sys.argv[sys.argv.index("--ready-fd") + 1])
def tell(**fields):
    os.write(fd, json.dumps(fields).encode() + b"\\n")
"""


def test_ready_daemon(play: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEAVE_PASSWORD", "secret-secret")
    settings = play(
        READY
        + """
leaked = [key for key in os.environ if key.startswith("WEAVE_")]
seen = leaked, os.getsid(0) == os.getpid(), os.getcwd(), settings["passwords"]
with open(os.path.join(os.path.dirname(sys.argv[0]), "seen"), "w") as file:
    json.dump(seen, file)
tell(ready=True, name="::1", pid=os.getpid())
"""
    )
    assert spawn.start_in_background(settings).name == "::1"
    assert json.loads((tmp_path / "seen").read_text()) == [[], True, "/", ["secret-secret"]]


GOES_ON = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv.pop())
import weavenet.runtime.__main__ as daemon
from weavenet.cli import spawn
from weavenet.runtime.settings import Settings

def main(arguments):
    seen = json.load(sys.stdin)["passwords"], sys.argv[1:], arguments[0], os.getsid(0) == os.getpid(), os.getcwd()
    proc = [open(f"/proc/self/{name}", "rb").read().decode() for name in ("cmdline", "environ")]
    variables = "WEAVE_PASSWORD" in os.environ, os.environ["OTHER"]
    open_now = [os.readlink(f"/proc/self/fd/{number}").partition(":")[0] for number in (0, 1, 2, int(arguments[1]))]
    with open(sys.argv[2] + ".seen", "w") as file:
        json.dump([seen, proc, variables, open_now], file)
    print("said by the daemon", flush=True)
    os.write(int(arguments[1]), b'{"ready": true, "name": "::1"}\\n')
    os._exit(0)

def become(*_):
    raise SystemExit("it became a real daemon")

daemon.main = main
os.execve = become
sys.exit(spawn.start_in_background(Settings(passwords=("secret-secret",), log_file=sys.argv[2])).name)
"""


@pytest.mark.parametrize("streams", ["", "<&-", "<&- >&-"])
def test_the_command_goes_on_as_the_daemon(tmp_path: Path, streams: str) -> None:
    """In a fork, which shows the daemon's arguments and neither the command's nor its variables. Also where the caller
    closed the standard streams."""
    log = tmp_path / "weave.log"
    words = [sys.executable, "-I", "-c", GOES_ON, "the-password-of-the-command", str(log), json.dumps(sys.path)]
    environment = {"WEAVE_PASSWORD": "secret-secret", "OTHER": "stays"}
    done = subprocess.run(
        ["sh", "-c", f'"$@" {streams}', "sh", *words], stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    assert done.stderr == "::1\n"
    (passwords, _, flag, is_leader, folder), (shown, variables), kept, streams_now = json.loads(
        log.with_suffix(".log.seen").read_text()
    )
    assert (passwords, flag, is_leader, folder) == (["secret-secret"], "--ready-fd", True, "/")
    assert shown.rstrip("\0").split("\0") == program.command("weavenet.runtime")
    assert "password" not in shown + variables
    assert kept == [False, "stays"]
    assert [streams_now[0], *streams_now[1:3], streams_now[3]] == ["/memfd", str(log), str(log), "pipe"]
    assert "said by the daemon" in log.read_text()


def test_daemon_that_refuses(play: Callable[[str], Settings]) -> None:
    settings = play(
        READY + "tell(failure={'code': 'host', 'expected': 'port free', 'found': 'taken', 'next_step': 'x'})"
    )
    with pytest.raises(Ended) as caught:
        spawn.start_in_background(settings)
    assert (caught.value.status, caught.value.sentence) == (1, "port free\n  found: taken\n  next: x")


def test_daemon_that_lost_the_race_counts_as_second_launch(play: Callable[[str], Settings]) -> None:
    settings = play(READY + "tell(failure={'code': 'busy', 'expected': 'no other daemon'})")
    with pytest.raises(Ended) as caught:
        spawn.start_in_background(settings)
    assert caught.value.status == 3


def test_daemon_that_dies_shows_its_last_words(play: Callable[[str], Settings]) -> None:
    settings = play("raise SystemExit('no such kernel')")
    Path(settings.log_file).write_text("an old line\n")
    with pytest.raises(Ended) as caught:
        spawn.start_in_background(settings)
    assert "no such kernel" in caught.value.sentence
    assert "an old line" not in caught.value.sentence
    assert "exit status 1" in caught.value.sentence


def test_daemon_that_dies_where_its_end_is_ignored(play: Callable[[str], Settings]) -> None:
    """Some parents leave SIGCHLD ignored: the kernel collects the daemon, and nobody can ask how it ended."""
    settings = play("raise SystemExit('no such kernel')")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(Ended, match="no such kernel"):
            spawn.start_in_background(settings)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_daemon_that_is_slow(play: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "READY_TIMEOUT_S", 0.2)
    settings = play("import signal; print(os.getpid(), flush=True); signal.pause()")
    try:
        with pytest.raises(Ended) as caught:
            spawn.start_in_background(settings)
        assert caught.value.status == 2
        pid = int(caught.value.sentence.partition("pid ")[2].partition(")")[0])
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_log_that_cannot_be_written(play: Callable[[str], Settings]) -> None:
    settings = Settings(log_file="/proc/nothing/weave.log")
    with pytest.raises(Ended, match="--foreground"):
        spawn.start_in_background(settings)
