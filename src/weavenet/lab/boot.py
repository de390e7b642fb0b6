"""What systemd would do while a lab host starts: run the unit of weave, if it is enabled there, until it is ready. Run
as a script by path, in the host, with the standard library only. Exit status 1 and a sentence when it did not start.

Of the unit it heeds Environment=, EnvironmentFile= and ExecStart=, and of sd_notify(3) READY=1: no sandbox, no restart.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LINK = Path("/etc/systemd/system/multi-user.target.wants/weave.service")
NOTIFY_SOCKET = "/run/lab/notify"
LOG = Path("/var/log/weave.log")
READY_TIMEOUT_S = 60.0
TAIL_BYTES = 1000


def literal(text: str) -> list[str]:
    """Words of a setting, with what systemd would expand written doubly (systemd.syntax(7))."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(text)]


def read_unit(text: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment."""
    command: list[str] = []
    environment: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "Environment":
            environment.update(_variables(literal(value)))
        elif key == "EnvironmentFile":
            file = Path(value.removeprefix("-"))
            lines = file.read_text().splitlines() if file.exists() else []
            environment.update(_variables(word for each in lines for word in shlex.split(each, comments=True)))
        elif key == "ExecStart":
            command = literal(value)
    return command, environment


def _variables(words: Iterable[str]) -> dict[str, str]:
    return {name: value for name, found, value in (word.partition("=") for word in words) if found}


def start(command: list[str], environment: dict[str, str]) -> str:
    """What went wrong; empty when it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, LOG.open("ab") as log:
        notify.bind(NOTIFY_SOCKET)
        notify.settimeout(0.1)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **environment, "NOTIFY_SOCKET": NOTIFY_SOCKET},
        )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if b"READY=1" in notify.recv(4096).splitlines():
                    return ""
            except TimeoutError:
                if process.poll() is not None:
                    return f"ended with exit status {process.returncode}"
        return f"is not ready after {READY_TIMEOUT_S:.0f} s"


def main() -> int:
    if not LINK.exists():
        return 0
    problem = start(*read_unit(LINK.read_text()))
    if not problem:
        return 0
    tail = LOG.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    print(f"the unit {problem}; {LOG} ends with:\n{tail}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
