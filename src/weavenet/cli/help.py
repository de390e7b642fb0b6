"""``weave help``."""

from __future__ import annotations

import click

from weavenet.cli.outcome import ERROR, Ended


@click.command(name="help")
@click.argument("verb", required=False)
def help_(verb: str | None) -> None:
    """Show the verbs, or the help of one.

    \b
    Example:  weave help attach
    """
    from weavenet.cli.main import cli

    context = click.Context(cli, info_name="weave")
    if verb is None:
        click.echo(cli.get_help(context))
        return
    command = cli.get_command(context, verb)
    if command is None:
        raise Ended(ERROR, f"unknown verb {verb!r}; next: `weave help` lists the verbs")
    click.echo(command.get_help(click.Context(command, info_name=verb, parent=context)))
