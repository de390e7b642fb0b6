"""``weave stop``."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import click

from weavenet.cli.client import NotRunning, ask
from weavenet.cli.outcome import LIMIT, Ended, tell

STOP_TIMEOUT_S = 15.0


@click.command()
def stop() -> None:
    """Stop the daemon. Its state, the bridge and attached containers stay, containers keep talking, and names are
    answered for ten minutes more.

    \b
    Example:  weave stop && weave launch
    """
    try:
        pid = ask("GET", "/v1/ping").json().get("pid")
        process = watch(pid) if isinstance(pid, int) else None
        ask("POST", "/v1/stop", {})
    except NotRunning:
        _stop_unheard()
        return
    if process is not None:
        wait_for_end(process, pid)


def _stop_unheard() -> None:
    """A daemon whose socket is gone is told by a signal, which means the same to it."""
    from weavenet.cli.unheard import running_pid

    pid = running_pid()
    process = watch(pid) if pid is not None else None
    if process is None or pid != running_pid():  # once more, now that nobody else can get this pid
        tell("weave is not running")
        return
    signal.pidfd_send_signal(process, signal.SIGTERM)
    wait_for_end(process, pid)


def watch(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it has."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return None


def wait_for_end(process: int, pid: object) -> None:
    """Closes the descriptor. Raises Ended when it takes too long."""
    poller = select.poll()
    poller.register(process, select.POLLIN)
    try:
        if not poller.poll(STOP_TIMEOUT_S * 1000):
            raise Ended(LIMIT, f"the daemon (pid {pid}) has not ended within {STOP_TIMEOUT_S:.0f} s; next: kill {pid}")
    finally:
        os.close(process)
