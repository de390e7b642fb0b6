"""``weave help``."""

from __future__ import annotations

import click


@click.command(name="help")
@click.argument("verb", nargs=-1)
def help_(verb: tuple[str, ...]) -> None:
    """Show the verbs, or the help of one.

    \b
    Example:  weave help attach
              weave help lab up
    """
    from weavenet.cli.main import cli

    cli.main([*verb, "--help"], prog_name="weave", standalone_mode=False)
