"""``weave version``."""

from __future__ import annotations

import click

from weavenet import __version__
from weavenet.cli.client import ask
from weavenet.cli.outcome import Ended
from weavenet.cli.printing import as_json, output_option


@click.command()
@output_option
def version(output: str | None) -> None:
    """Version of this command, and of the daemon when it runs.

    \b
    Example:  weave version
    """
    try:
        daemon = ask("GET", "/v1/ping").json().get("version")
    except Ended:  # it does not run, or may not be asked by this user: this command's version is known all the same
        daemon = None
    if output:
        as_json({"script": __version__, "daemon": daemon})
        return
    click.echo(f"weave script {__version__}")
    if daemon is not None:
        click.echo(f"weave {daemon}")
