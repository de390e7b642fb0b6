"""``weave rmpeer``."""

from __future__ import annotations

import click

from weavenet.cli.client import Call
from weavenet.cli.outcome import ABSENT, ERROR, Ended
from weavenet.cli.printing import Duration, as_json, output_option, timeout_option
from weavenet.cli.values import refuse
from weavenet.cli.waiting import Report, TimedOut, ipam_of, wait_for
from weavenet.core.plain import plain_lines

SILENT_S = 1.0


@click.command()
@click.option("--all-unreachable", is_flag=True, help="All peers that cannot be reached now, in one decision.")
@click.option("--older-than", type=Duration(), metavar="TIME", help="With --all-unreachable: for at least TIME (1h).")
@click.option("--force", is_flag=True, help="Do not ask whether others see them, and do not wait for confirmations.")
@click.option("--no-wait", is_flag=True, help="Return as soon as it is remembered; it is decided when it can be.")
@timeout_option
@output_option
@click.argument("peers", nargs=-1, metavar="PEER…")
def rmpeer(
    *,
    all_unreachable: bool,
    older_than: float | None,
    force: bool,
    no_wait: bool,
    timeout: float | None,
    output: str | None,
    peers: tuple[str, ...],
) -> None:
    """Remove dead peers for good; others take over their addresses.

    A PEER is a name, nickname or PeerId, as `weave status ipam --unreachable` prints them. A quorum of the voters has
    to be there and to see none of them. Returns when the addresses can be used again; until then progress goes to
    stderr. What was not done at the timeout stays asked for, and is checked again before it is decided.

    With --force nobody is asked, and addresses may be used twice if a peer is alive after all. Without a quorum it
    needs all voters that are out of reach to be named.

    Exit status: 0 done, or done before; 1 unknown, ambiguous, alive or refused; 2 not done within the timeout.

    \b
    Example:  weave rmpeer host3
              weave rmpeer --all-unreachable --older-than 1h
              weave rmpeer --timeout 60s 0a:00:00:00:00:03
    """
    _check(all_unreachable, older_than, peers)
    body = {
        "names": list(peers),
        "force": force,
        "all_unreachable": all_unreachable,
        "older_than_s": older_than or 0.0,
        "wait": not no_wait,
    }
    try:
        reply = wait_for(
            Call("POST", "/v1/rmpeer", body), describe=describe, silent_s=SILENT_S, timeout_s=timeout, hint=_next_step
        )
    except TimedOut as ended:
        if output:
            as_json({"result": _state(ended.report), "detail": ended.waited_for})
        raise
    except Ended as ended:
        # The other verbs say 4 for what is not there; here a script wants to know whether a peer could be removed.
        raise Ended(ERROR if ended.status == ABSENT else ended.status, ended.sentence) from None
    text = str(reply.json().get("text", ""))
    if output:
        is_pending = no_wait and text.startswith("pending")
        as_json({"result": "pending" if is_pending else "done", "detail": text})
    else:
        click.echo(plain_lines(text))


def _check(all_unreachable: bool, older_than: float | None, peers: tuple[str, ...]) -> None:
    if all_unreachable and peers:
        refuse("expected peers or --all-unreachable", "both", "leave one out")
    if not all_unreachable and not peers:
        refuse(
            "expected at least one peer, or --all-unreachable",
            next_step="`weave status ipam --unreachable` shows who is absent",
        )
    if older_than is not None and not all_unreachable:
        refuse("expected --older-than together with --all-unreachable", next_step="leave it out")


def describe(report: Report) -> str:
    """What removals wait for: the quorum, and who has not confirmed."""
    ipam = ipam_of(report)
    if not ipam:
        return "address allocation is off on this peer"
    parts = _texts(ipam, "Removals")
    said = " ".join(parts)
    waiting_for = [peer for peer in _texts(ipam, "WaitingFor") if peer not in said]
    if waiting_for:
        parts.append(f"not confirmed yet: {', '.join(waiting_for)}")
    paxos = ipam.get("Paxos")
    voters = len(paxos.get("Voters", ())) if isinstance(paxos, dict) else 0
    if ipam.get("RemovalState") == "pending" and voters:
        parts.append(f"a quorum is {voters // 2 + 1} of {voters} voters")
    return "; ".join(parts) or "the daemon is at work"


def _texts(ipam: Report, key: str) -> list[str]:
    found = ipam.get(key)
    return [str(text) for text in found] if isinstance(found, list) else []


def _state(report: Report) -> str:
    return "held" if ipam_of(report).get("RemovalState") == "held" else "pending"


def _is_remembered(report: Report) -> bool:
    return bool(ipam_of(report).get("Removals"))


def _next_step(report: Report) -> str:
    if _state(report) == "held":
        return (
            "bring those that are missing back, or `weave rmpeer` them too (the peers are removed, and their addresses "
            "held until all others confirmed); `weave status ipam` shows who is missing"
        )
    if not _is_remembered(report):
        return "run it again: the daemon has not answered, and it may not be remembered; `weave status ipam` shows"
    return (
        "nothing, it is remembered (pending), and decided when a quorum is there and does not see them; "
        "`weave status ipam` shows how it stands"
    )
