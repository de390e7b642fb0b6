"""``weave expose`` and ``weave hide``."""

from __future__ import annotations

import click

from weavenet.cli.attachments import SILENT_S, print_addresses, waiting_for
from weavenet.cli.client import Call, ask
from weavenet.cli.printing import output_option, timeout_option
from weavenet.cli.waiting import wait_for


@click.command()
@click.option("-h", "--hostname", metavar="NAME", default="", help="Register this name for the addresses.")
@click.option("--without-masquerade", is_flag=True, help="Leave the addresses of traffic between networks as they are.")
@timeout_option
@output_option
@click.argument("addresses", nargs=-1, metavar="[ADDR…]")
def expose(
    hostname: str, without_masquerade: bool, timeout: float | None, output: str | None, addresses: tuple[str, ...]
) -> None:
    """Give this host itself addresses on the network, so that it reaches containers on all hosts; prints them.

    An ADDR is as for attach; without any, one from the default subnet. It is remembered, and put back after a reboot.
    Traffic between containers and networks beyond this host is let through and masqueraded; whether it is, the last
    expose in a subnet decides for that subnet.

    \b
    Example:  weave expose
              weave expose 10.32.5.1/12 -h gateway.weave.local
    """
    body = {"addresses": list(addresses), "name": hostname, "masquerade": not without_masquerade}
    reply = wait_for(
        Call("POST", "/v1/expose", body),
        describe=waiting_for,
        silent_s=SILENT_S,
        timeout_s=timeout,
        hint="`weave status ipam` shows who is missing",
    )
    print_addresses(reply.json(), output)


@click.command()
@output_option
@click.argument("addresses", nargs=-1, metavar="[ADDR…]")
def hide(output: str | None, addresses: tuple[str, ...]) -> None:
    """Take addresses of this host off the network, with rules and names; prints them. Without an ADDR: all.

    \b
    Example:  weave hide
    """
    print_addresses(ask("POST", "/v1/hide", {"addresses": list(addresses)}, timeout_s=60.0).json(), output)
