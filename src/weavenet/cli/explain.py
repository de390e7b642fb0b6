"""``weave explain``."""

from __future__ import annotations

from typing import Any

import click

from weavenet.cli import offers
from weavenet.cli.client import ask
from weavenet.cli.outcome import ERROR, LIMIT, OK
from weavenet.cli.printing import as_json, output_option
from weavenet.core.plain import plain

_STATUS = {"yes": OK, "no": ERROR, "unknown": LIMIT}


@click.command()
@output_option
@click.argument("source", shell_complete=offers.containers)
@click.argument("target", shell_complete=offers.containers)
def explain(output: str | None, source: str, target: str) -> int:
    """Can SOURCE talk to TARGET, which way, and if not: what is in the way, and what to do about it?

    Each is a container of this host (as `weave ps` lists it), an address, a name, or a host (its name or nickname).
    What is known here is printed: where they are, their addresses and names, and the data path between them.

    Exit status: 0 yes; 1 no; 2 unknown here, run it where it says; 4 nobody knows SOURCE or TARGET.

    \b
    Example:  weave explain netns:web db.weave.local
              weave explain 10.32.0.1 10.44.0.3
              weave explain host1 host2
    """
    found: dict[str, Any] = ask("POST", "/v1/explain", {"source": source, "target": target}).json()
    if output:
        as_json(found)
    else:
        for line in lines(found):
            click.echo(plain(line))
    return _STATUS[str(found["verdict"])]


def lines(found: dict[str, Any]) -> list[str]:
    """Where both ends are, the verdict, and its reason or next step."""
    said = [f"source   {_end(found['source'])}", f"target   {_end(found['target'])}"]
    way = found["way"]
    said.append(f"{found['verdict']:<8} {_way(way) if way else found['because']}")
    if found["next_step"]:
        said.append(f"{'':<8} next: {found['next_step']}")
    return said


def _end(end: dict[str, Any]) -> str:
    host = end["peer_nickname"] or end["peer_name"] or end["peer"]
    where = f"this host, {host}" if end["is_here"] else host
    what = f"{where} itself" if end["container"] == "weave:expose" else f"{end['container']} on {where}"
    parts = [*end["addresses"], *([f"MAC {end['mac']}"] if end["mac"] else []), *end["names"]]
    return f"{what}: {', '.join(parts) or 'no address now'}"


def _way(way: dict[str, Any]) -> str:
    parts = [f"by {way['plane']} ({way['reason']})" if way["reason"] else f"by {way['plane']}", way["encryption"]]
    if way["rtt_ms"] is not None:
        parts.append(f"round trip {way['rtt_ms']:.3g} ms")
    if way["loss_percent"] is not None:
        parts.append(f"loss {way['loss_percent']:g} %")
    return ", ".join([*parts, f"MTU {way['mtu']}"])
