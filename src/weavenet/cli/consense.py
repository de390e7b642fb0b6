"""``weave consense`` (= ``prime``)."""

from __future__ import annotations

import click

from weavenet.cli.client import Call
from weavenet.cli.printing import as_json, output_option, timeout_option
from weavenet.cli.waiting import SILENCE_STEP, Report, TimedOut, ipam_of, wait_for


@click.command(name="consense")
@timeout_option
@output_option
def consense(timeout: float | None, output: str | None) -> None:
    """Divide the addresses now, and wait until the division is decided and durable.

    Without it the same happens when the first address is needed. Progress goes to stderr: the quorum, how many electors
    are known, who is missing. Prints `voter`, `standby` (an elector that votes when it
    takes the place of a voter) or `member, not elector`.

    \b
    Example:  weave consense --timeout 60s
    """
    try:
        reply = wait_for(
            Call("POST", "/v1/consense", {}), describe=describe, silent_s=1.0, timeout_s=timeout, hint=_next_step
        )
    except TimedOut as ended:
        if output:
            as_json({"result": "waiting", "elector": False, "detail": ended.waited_for})
        raise
    text = str(reply.json().get("text", ""))
    if output:
        as_json({"result": text, "elector": text in {"voter", "standby"}})
    else:
        click.echo(text)


def describe(report: Report) -> str:
    """``awaiting consensus: quorum 2, known 1, missing h2, h3``."""
    ipam = ipam_of(report)
    paxos = ipam.get("Paxos")
    if not isinstance(paxos, dict):
        return "address allocation is off"
    detail = ipam.get("Detail")
    if ipam.get("Status") == "awaiting seeds":
        return f"awaiting seeds: {detail}"
    text = f"{ipam.get('Status')}: quorum {paxos['Quorum']}, known {paxos['KnownNodes']}"
    missing = ", ".join(paxos["Missing"])
    if missing:
        text += f", missing {missing}"
    return f"{text} ({detail})" if detail else text


def _next_step(report: Report) -> str:
    """What the daemon advises stands before this."""
    if not report:
        return SILENCE_STEP
    if "next:" in describe(report):
        return "`weave consense` again; `weave status ipam` shows the state"
    return "launch or reach the missing peers, then `weave consense` again; `weave status ipam` shows the state"
