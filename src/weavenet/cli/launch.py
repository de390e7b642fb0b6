"""``weave launch``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
import msgspec

from weavenet.cli import layers, offers
from weavenet.cli.client import NotRunning, ask
from weavenet.cli.layers import OPTIONS, Kind
from weavenet.cli.outcome import ERROR, RUNNING, Ended
from weavenet.cli.printing import as_json, note, output_option


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        flag = f"--{option.name}"
        text = f"{option.help} [{option.variable}]"
        if option.kind is Kind.SWITCH:
            function = click.option(flag, is_flag=True, help=text)(function)
        else:
            offer = offers.one_of(option.words) if option.words else None
            function = click.option(flag, metavar=option.metavar, help=text, shell_complete=offer)(function)
    return function


@click.command()
@_options
@output_option
@click.argument("peers", nargs=-1, metavar="[PEER…]")
def launch(output: str | None, peers: tuple[str, ...], **flags: Any) -> None:
    """Start the daemon, join the peers, and return when it is ready; prints the peer name.

    A PEER is a host name or address, with :PORT if it is not our own. Listing this host itself is harmless, and a name
    that does not resolve is tried again. Without peers the remembered ones are used; given ones replace them.

    Every flag can be given as a WEAVE_… variable or as a key in /etc/weave.conf (TOML; the flag without dashes, and
    peers = ["host1", …], or WEAVE_PEERS). A flag beats a variable beats the file. Of an earlier launch
    only peers and --name are remembered.

    \b
    Example:  weave launch host1 host2 host3
              weave launch --password-file /etc/weave.password --observer host1
    """
    given = {name.replace("_", "-"): value for name, value in flags.items()}
    read = layers.read_layers(given, os.environ, layers.conf_path())
    # Everything is checked before anything is touched; what is heavy to import comes after what is cheap to refuse.
    from weavenet.cli.compose import compose

    composed = compose(read, peers)
    if os.geteuid() != 0:
        raise Ended(ERROR, "launch needs root: it makes network devices; next: sudo weave launch …")
    _refuse_second()
    from weavenet.cli.hostcheck import check_host, default_overlap
    from weavenet.cli.spawn import run_in_foreground, start_in_background

    for warning in (*layers.misspelt(os.environ), *composed.warnings, *check_host(composed.settings)):
        note(f"warning: {warning}")
    settings = msgspec.structs.replace(composed.settings, range_overlap=default_overlap(composed.settings))
    if composed.foreground:
        run_in_foreground(settings)
    word = start_in_background(settings)
    for warning in word.warnings:
        note(f"warning: {warning}")
    if output:
        as_json({"name": word.name})
    else:
        click.echo(word.name)


def _refuse_second() -> None:
    try:
        identity = ask("GET", "/v1/ping").json()
    except NotRunning:
        return
    raise Ended(
        RUNNING,
        f"weave is already running (pid {identity.get('pid')}, {identity.get('name')}); "
        "you can stop it with `weave stop`",
    )
