"""``weave status`` with options; the plain form is answered by ``quick.py``."""

from __future__ import annotations

import click

from weavenet.cli.absent import Percent, show
from weavenet.cli.client import ask
from weavenet.cli.outcome import ERROR, Ended
from weavenet.cli.printing import Duration, as_json, output_option
from weavenet.cli.quick import PARTS, write

_PLACES = {
    "targets": ("Router", "TargetDetails"),
    "connections": ("Router", "Connections"),
    "peers": ("Router", "Peers"),
    "dns": ("DNS",),
    "ipam": ("IPAM",),
}


@click.command()
@click.option("--unreachable", is_flag=True, help="With ipam: absent peers, since when, how much they hold.")
@click.option(
    "--older-than", type=Duration(), metavar="TIME", help="With --unreachable: absent for at least TIME (1h)."
)
@click.option(
    "--threshold", type=Percent(), metavar="SHARE", help="With --unreachable: exit status 2 from SHARE (10%) on."
)
@output_option
@click.argument("part", required=False, type=click.Choice(PARTS))
def status(
    unreachable: bool, older_than: float | None, threshold: float | None, output: str | None, part: str | None
) -> None:
    """What is wrong and what to do next, then the facts; or one part, a line for each thing.

    \b
    targets       peers to connect to, and how each is doing
    connections   links and data paths, or why there is none
    peers         who is there, and who is linked to whom
    dns           names, their addresses, containers and hosts
    ipam          who owns how many addresses, quorum, who is missing

    \b
    Example:  weave status
              weave status connections
              weave status ipam -o json
              weave status ipam --unreachable --older-than 1h --threshold 10%
    """
    if unreachable:
        if part != "ipam":
            raise Ended(ERROR, "expected --unreachable together with ipam; next: weave status ipam --unreachable")
        show(older_than or 0.0, threshold, output)
        return
    if older_than is not None or threshold is not None:
        raise Ended(ERROR, "expected --older-than and --threshold together with --unreachable; next: add it")
    if output is None:
        write(ask("GET", f"/v1/status/{part}" if part else "/v1/status").body)
        return
    value: object = ask("GET", "/v1/report").json()
    for key in _PLACES[part] if part else ():
        value = value.get(key) if isinstance(value, dict) else None
    as_json(value)
