"""Starts the daemon as a process of its own and waits for its word.

It is a fork of the command, which has loaded a fifth of what a daemon needs, and goes on under the name that it would
have had as a program of its own. Where the command was not started as the daemon would be (``-I``, see ``program``), or
there is no way to show another name, it becomes that program.

The settings go through an anonymous file that becomes its standard input, so that passwords appear in no argument list,
environment or named file. What comes back is one JSON line on a pipe, then its end; the end alone means that the daemon
died before it could say anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from weavenet import program
from weavenet.cli.outcome import ERROR, LIMIT, RUNNING, Ended, sentence_of, status_of
from weavenet.cli.processtitle import retitle
from weavenet.core.errors import Code, Failure
from weavenet.runtime.settings import Settings, encode_settings

READY_TIMEOUT_S = 60.0
READY_BYTES_MAX = 64 * 1024
LOG_TAIL_BYTES = 2000
LAST_WORDS_S = 10.0
VARIABLES = "WEAVE_"
"""How the names of our variables begin."""
_DESCRIPTORS_MAX = 1 << 20


class Word(msgspec.Struct, frozen=True):
    """What the daemon says: it is ready and who it is, and what else its launcher should know; or why it will not
    be."""

    ready: bool = False
    name: str = ""
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None


DAEMON = "weavenet.runtime"


def _environment() -> dict[str, str]:
    """Ours without ``WEAVE_…``: the settings hold all of it, and a password must not stay readable in /proc."""
    return {key: value for key, value in os.environ.items() if not key.startswith(VARIABLES)}


def _settings_file(settings: Settings) -> int:
    file = os.memfd_create("weave-settings")
    os.write(file, encode_settings(settings))
    os.lseek(file, 0, os.SEEK_SET)
    return file


def run_in_foreground(settings: Settings) -> NoReturn:
    """Become the daemon."""
    file = _settings_file(settings)
    os.dup2(file, 0)
    if file != 0:
        os.close(file)
    _become_daemon()


def _become_daemon(*arguments: str) -> NoReturn:
    environment = _environment()
    for variable in os.environ.keys() - environment.keys():
        del os.environ[variable]  # before they are overwritten, when they could not be found any more
    if not sys.flags.isolated or not retitle(program.command(DAEMON), VARIABLES):
        command = program.command(DAEMON, *arguments)
        os.execve(command[0], command, environment)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.exit(program.run(DAEMON, list(arguments)))


def _fork_daemon(settings_file: int, log: int, writer: int) -> int:
    """The daemon's process id. It says its word to ``writer``."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir("/")
        # Whoever called us with closed standard streams lets these be among 0, 1 and 2, and Python have none.
        ready, *streams = (fcntl.fcntl(each, fcntl.F_DUPFD, 3) for each in (writer, settings_file, log, log))
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        os.closerange(3, ready)
        os.closerange(ready + 1, _DESCRIPTORS_MAX)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        _become_daemon("--ready-fd", str(ready))
    except BaseException:  # nothing of the command may go on in here
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def run_erasing(settings: Settings, *, force: bool) -> bytes:
    """Reset this host without a daemon; the one line of JSON that it says. Raises Ended."""
    import subprocess

    file = _settings_file(settings)
    command = program.command("weavenet.runtime.erasing", *(["--force"] if force else []))
    try:
        done = subprocess.run(command, stdin=file, capture_output=True, env=_environment(), check=False)
    finally:
        os.close(file)
    if done.returncode != 0:
        raise Ended(ERROR, f"reset failed: {done.stderr.decode('utf-8', 'replace')[-LOG_TAIL_BYTES:].strip()}")
    return done.stdout


def start_in_background(settings: Settings) -> Word:
    """Start the daemon in a session of its own; returns when it is ready. Raises Ended when it refuses, dies, or is not
    ready in time (it then goes on starting)."""
    log = _open_log(settings.log_file)
    log_size = os.fstat(log).st_size
    file = _settings_file(settings)
    reader, writer = os.pipe()
    try:
        pid = _fork_daemon(file, log, writer)
    finally:
        for fd in (file, writer, log):
            os.close(fd)
    try:
        line = _read_line(reader, pid, settings.log_file)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    try:
        word = msgspec.json.decode(line, type=Word)
    except msgspec.DecodeError:  # nothing, or cut short
        word = Word()
    if word.failure is not None:
        raise _refused(word.failure)
    if not word.ready:
        raise Ended(ERROR, _last_words(pid, settings.log_file, log_size))
    return word


def _refused(failure: Failure) -> Ended:
    fields: dict[str, object] = {"expected": failure.expected, "found": failure.found, "next_step": failure.next_step}
    # BUSY: another daemon won the lock between our look at the socket and its start.
    status = RUNNING if failure.code is Code.BUSY else status_of(failure.code)
    return Ended(status, sentence_of(fields))


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        fields: dict[str, object] = {
            "expected": f"expected to write the log {path}",
            "found": error.strerror or str(error),
            "next_step": "check that folder, or launch with --foreground",
        }
        raise Ended(ERROR, sentence_of(fields)) from error


def _read_line(reader: int, pid: int, log_file: str) -> bytes:
    """Up to the newline or the end of file."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    data = b""
    while not data.endswith(b"\n") and len(data) < READY_BYTES_MAX:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Ended(
                LIMIT,
                f"the daemon (pid {pid}) is not ready after {READY_TIMEOUT_S:.0f} s and goes on starting; "
                f"next: see {log_file}, `weave status` or `weave stop`",
            )
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        data += chunk
    return data


def _last_words(pid: int, log_file: str, start: int) -> str:
    """What the daemon that died unasked wrote last."""
    result = "unknown"
    with contextlib.suppress(OSError):  # nobody to wait for any more where SIGCHLD is ignored
        process = os.pidfd_open(pid)
        select.select([process], [], [], LAST_WORDS_S)
        os.close(process)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            result = str(os.waitstatus_to_exitcode(status))
    with Path(log_file).open("rb") as log:
        log.seek(start)
        tail = log.read()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
    last = "\n".join(f"    {line}" for line in tail.splitlines()[-6:])
    return f"the daemon ended before it was ready (exit status {result}); next: see {log_file}" + (
        f", which ends with:\n{last}" if last else ""
    )
