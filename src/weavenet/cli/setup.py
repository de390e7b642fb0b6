"""``weave setup``: checks the host. The launcher fetched missing packages before this runs."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from weavenet.cli import layers
from weavenet.cli.client import NotRunning, ask
from weavenet.cli.outcome import ERROR, Ended
from weavenet.cli.printing import as_json, output_option

if TYPE_CHECKING:
    from weavenet.host.probe import Check


@click.command()
@output_option
def setup(output: str | None) -> None:
    """Check this host for what launch needs, and say what is missing and how to get it.

    Tries kernel features in a namespace of its own, so nothing of a running network is changed. Reads the range and the
    port from WEAVE_… variables and /etc/weave.conf. Exit status 1 when launch cannot work.

    \b
    Example:  weave setup && weave launch host1 host2
    """
    from weavenet.cli.compose import compose
    from weavenet.host import probe

    settings = compose(layers.read_layers({}, os.environ, layers.conf_path()), ()).settings
    port = _port_of_running_daemon()
    checks = asyncio.run(probe.everything(settings.ranges, settings.port))
    if port is not None:
        checks = tuple(check for check in checks if check.ok or check.name not in (f"tcp {port}", f"udp {port}"))
    if output:
        fields = ("name", "ok", "required", "found", "next_step")
        as_json([{field: getattr(check, field) for field in fields} for check in checks])
    else:
        for check in checks:
            click.echo(line(check))
    missing = [check.name for check in checks if check.required and not check.ok]
    if missing:
        raise Ended(ERROR, f"launch cannot work here yet: {', '.join(missing)}; next: see the lines above")


def line(check: Check) -> str:
    """``ok       VXLAN: works`` or ``MISSING  VXLAN: …``, with the next step on a line of its own."""
    state = "ok" if check.ok else "MISSING" if check.required else "note"
    text = f"{state:<8} {check.name}: {check.found}"
    return f"{text}\n{'':<8} next: {check.next_step}" if check.next_step else text


def _port_of_running_daemon() -> int | None:
    """A daemon of ours may hold the ports that a fresh host must have free."""
    try:
        port = ask("GET", "/v1/ping").json().get("port")
    except NotRunning:
        return None
    return port if isinstance(port, int) else None
