"""``weave completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print shell completion, to be sourced by the shell.

    \b
    Example:  weave completion bash > /etc/bash_completion.d/weave
              weave completion zsh > "${fpath[1]}/_weave"
              weave completion fish > ~/.config/fish/completions/weave.fish
    """
    from weavenet.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "weave", "_WEAVE_COMPLETE").source())
