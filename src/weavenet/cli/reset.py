"""``weave reset``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from weavenet.cli.client import UNIT_PATH, Call, NotRunning, ask
from weavenet.cli.outcome import ERROR, LIMIT, Ended, sentence_of, status_of
from weavenet.cli.printing import Duration, as_json, note, output_option
from weavenet.cli.stop import wait_for_end, watch
from weavenet.cli.waiting import Report, TimedOut, ipam_of, wait_for

SILENT_S = 1.0
TIMEOUT_S = 30.0


@click.command()
@click.option("--force", is_flag=True, help="Forget everything at once, without handing anything over.")
@click.option(
    "--timeout", type=Duration(), default=TIMEOUT_S, metavar="TIME", help="Give up after TIME (30s); exit status 2."
)
@output_option
def reset(*, force: bool, timeout: float, output: str | None) -> None:
    """Leave the cluster: give this host's addresses away, then forget and remove everything.

    First it is made sure that others are there to take the addresses and, if this peer votes, that the rest go on
    without it. If that takes too long, nothing has changed: containers keep their network. Then containers and the host
    itself leave the network, the addresses are handed over, and this has to be confirmed; from here on there is no way
    back, and what is not done at the timeout goes on by itself. At last the daemon ends, and nothing remains but
    a peer name that would not be found again (given with --name, or random).

    With --force nothing is handed over, and the others have to be told: the line to run there is printed.

    Exit status: 0 done, or nothing was left to do; 1 refused; 2 not done within the timeout.

    \b
    Example:  weave reset
              weave reset --timeout 2m
    """
    try:
        text = _by_daemon(force, timeout, output)
    except NotRunning:
        text = _without_daemon(force)
    if Path(UNIT_PATH).exists():
        note("the next boot starts weave here again, as a new peer; next: weave install-unit --uninstall")
    if output:
        as_json({"result": "done", "detail": text})
    else:
        click.echo(text)


def _by_daemon(force: bool, timeout: float, output: str | None) -> str:
    pid = ask("GET", "/v1/ping").json().get("pid")
    process = watch(pid) if isinstance(pid, int) else None
    try:
        reply = wait_for(
            Call("POST", "/v1/reset", {"force": force}),
            describe=describe,
            silent_s=SILENT_S,
            timeout_s=timeout,
            hint="",
        )
    except TimedOut as ended:
        if process is not None:
            os.close(process)
        report = _now(ended.report)
        text = f"not done within {timeout:g} s: {describe(report)}; next: {next_step(report)}"
        if output:
            result = "leaving" if ipam_of(report).get("Leaving") == "surrendering" else "unchanged"
            as_json({"result": result, "detail": describe(report)})
        raise Ended(LIMIT, text) from None
    if process is not None:
        wait_for_end(process, pid)
    return str(reply.json().get("text", ""))


def _now(last: Report) -> Report:
    """The report after the command was taken back, in case it had just gone past the point of no return; ``last`` with
    its needs if it is still what it was."""
    try:
        report = ask("GET", "/v1/report").json()
    except Ended:
        return last
    return report if ipam_of(report).get("Leaving") else last


def describe(report: Report) -> str:
    """What leaving waits for."""
    needs = ipam_of(report).get("LeavingNeeds")
    return "; ".join(str(need) for need in needs) if isinstance(needs, list) and needs else "the daemon is at work"


def next_step(report: Report) -> str:
    if ipam_of(report).get("Leaving") == "surrendering":
        return (
            "containers of this host are off the network, and there is no way back: it goes on by itself; bring those "
            "that are missing back, or `weave rmpeer` them elsewhere if they are gone for good"
        )
    return (
        "this host stays as it was, and its containers keep their network; bring those that are missing back, or "
        "`weave rmpeer` them if they are gone for good, and reset again; `weave reset --force` waits for nobody"
    )


def _without_daemon(force: bool) -> str:
    """No daemon: what an earlier one left behind is removed."""
    if os.geteuid() != 0:
        raise Ended(ERROR, "reset needs root: it removes network devices; next: sudo weave reset")
    import json

    from weavenet.cli import layers
    from weavenet.cli.compose import compose
    from weavenet.cli.spawn import run_erasing

    settings = compose(layers.read_layers({}, os.environ, layers.conf_path()), ()).settings
    answer = json.loads(run_erasing(settings, force=force))
    failure = answer.get("failure")
    if isinstance(failure, dict):
        raise Ended(status_of(str(failure.get("code", ""))), sentence_of(failure))
    return str(answer.get("text", ""))
