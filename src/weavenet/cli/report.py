"""``weave report``."""

from __future__ import annotations

import click

from weavenet.cli.client import ask
from weavenet.cli.printing import output_option
from weavenet.cli.quick import write


@click.command()
@output_option
def report(output: str | None) -> None:
    """Everything the daemon knows, as JSON; the keys are described in docs/report.md.

    \b
    Example:  weave report | jq .IPAM.Status
    """
    write(ask("GET", "/v1/report").body)
