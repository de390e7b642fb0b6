"""``weave password``."""

from __future__ import annotations

import secrets

import click

from weavenet.cli.printing import as_json, output_option

PASSWORD_BYTES = 24
"""192 bits: no guess will ever find it, whatever hashing costs."""


@click.command()
@output_option
def password(output: str | None) -> None:
    """Print a strong random password. Give the same one to every host.

    \b
    Example:  (umask 077; weave password > /etc/weave.password)
              weave launch --password-file /etc/weave.password host1 host2
    """
    text = secrets.token_urlsafe(PASSWORD_BYTES)
    if output:
        as_json({"password": text})
    else:
        click.echo(text)
