"""``weave connect`` and ``weave forget``."""

from __future__ import annotations

import click

from weavenet.cli.client import ask
from weavenet.cli.outcome import ERROR, Ended
from weavenet.cli.printing import note


@click.command()
@click.option("--replace", is_flag=True, help="Connect to exactly these; without any, to nobody.")
@click.argument("peers", nargs=-1, metavar="PEER…")
def connect(replace: bool, peers: tuple[str, ...]) -> None:
    """Add peers to connect to; remembered. A PEER is a host name or address, with :PORT if it is not our own.

    A name that does not resolve is tried again; `weave status targets` shows how each is doing.

    \b
    Example:  weave connect host4 192.0.2.7:7000
    """
    if not peers and not replace:
        raise Ended(ERROR, "expected at least one peer; next: weave connect HOST, or --replace to connect to nobody")
    ask("POST", "/v1/connect", {"targets": list(peers), "replace": replace})


@click.command()
@click.argument("peers", nargs=-1, required=True, metavar="PEER…")
def forget(peers: tuple[str, ...]) -> None:
    """Stop trying to connect to peers, given as at launch or connect. Unknown ones are no error.

    \b
    Example:  weave forget host4
    """
    text = ask("POST", "/v1/forget", {"targets": list(peers)}).json().get("text")
    if text:
        note(str(text))
