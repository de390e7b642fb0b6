"""``weave status`` with options; the plain form is answered by ``quick.py``."""

from __future__ import annotations

import click

from weavenet.cli.client import ask
from weavenet.cli.printing import as_json, output_option
from weavenet.cli.quick import PARTS, write

_PLACES = {
    "targets": ("Router", "TargetDetails"),
    "connections": ("Router", "Connections"),
    "peers": ("Router", "Peers"),
    "ipam": ("IPAM",),
}


@click.command()
@output_option
@click.argument("part", required=False, type=click.Choice(PARTS))
def status(output: str | None, part: str | None) -> None:
    """What is wrong and what to do next, then the facts; or one part, a line for each thing.

    \b
    targets       peers to connect to, and how each is doing
    connections   links and data paths, or why there is none
    peers         who is there, and who is linked to whom
    ipam          who owns how many addresses, quorum, who is missing

    \b
    Example:  weave status
              weave status connections
              weave status ipam -o json
    """
    if output is None:
        write(ask("GET", f"/v1/status/{part}" if part else "/v1/status").body)
        return
    value: object = ask("GET", "/v1/report").json()
    for key in _PLACES[part] if part else ():
        value = value.get(key) if isinstance(value, dict) else None
    as_json(value)
