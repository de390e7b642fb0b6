"""``weave help``."""

from __future__ import annotations

import click


def _deeper(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What may follow the words that are there."""
    from weavenet.cli.main import cli

    command: click.Command | None = cli
    for word in context.params["verb"] or ():
        command = command.get_command(context, word) if isinstance(command, click.Group) else None
    names = command.list_commands(context) if isinstance(command, click.Group) else []
    return [name for name in names if name.startswith(incomplete)]


@click.command(name="help")
@click.argument("verb", nargs=-1, shell_complete=_deeper)
def help_(verb: tuple[str, ...]) -> object:
    """Show the verbs, or the help of one.

    \b
    Example:  weave help attach
              weave help lab up
    """
    from weavenet.cli.main import cli

    return cli.main([*verb, "--help"], prog_name="weave", standalone_mode=False)
