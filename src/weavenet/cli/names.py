"""``weave dns-add``, ``dns-remove``, ``dns-lookup``, ``dns-args``."""

from __future__ import annotations

import ipaddress

import click

from weavenet.cli import offers
from weavenet.cli.client import ask
from weavenet.cli.outcome import ABSENT, Ended
from weavenet.cli.printing import as_json, output_option
from weavenet.cli.values import container_reference, refuse

EXTERNAL = "weave:external"
_OWNERS = (EXTERNAL, "weave:extern", "weave:expose")

_name_option = click.option("-h", "--hostname", "name", metavar="NAME", default="", help="The name; see above.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _spec(arguments: tuple[str, ...], name: str) -> dict[str, object]:
    """``[IP…] [CONTAINER]``; without a container the addresses belong to ``weave:external``."""
    addresses = [text for text in arguments if _is_address(text)]
    others = [text for text in arguments if not _is_address(text)]
    for text in others:
        if text[:1].isdigit():
            refuse("expected IP addresses, without prefix", text, "weave dns-add 10.32.5.5 -h db.weave.local")
    if not others:
        if not addresses:
            refuse("expected IP… or a CONTAINER", "neither", "weave dns-add 10.32.5.5 -h db.weave.local")
        return {"container": EXTERNAL, "addresses": addresses, "name": name}
    if len(others) > 1 or arguments[-1] != others[0]:
        step = "addresses have no prefix here, and the container comes last"
        refuse("expected [IP…] CONTAINER", " ".join(arguments), step)
    container = others[0] if others[0] in _OWNERS else container_reference(others[0])
    return {"container": container, "addresses": addresses, "name": name}


@click.command("dns-add")
@_name_option
@click.argument("arguments", nargs=-1, required=True, metavar="[IP…] [CONTAINER]", shell_complete=offers.containers)
def dns_add(name: str, arguments: tuple[str, ...]) -> None:
    """Let a name stand for addresses, on every host.

    With a CONTAINER (attached here): for all addresses it has, or for those given; NAME is its own unless -h says
    another, and the entry goes with the container. Without one: for the given addresses (owner weave:external), until
    dns-remove. A NAME without dots is one below the DNS domain.

    \b
    Example:  weave dns-add netns:web -h www
              weave dns-add 192.0.2.7 192.0.2.8 -h db.weave.local
    """
    spec = _spec(arguments, name)
    if spec["container"] == EXTERNAL and not name:
        refuse("expected the name that the addresses get", "none", "add -h NAME")
    ask("POST", "/v1/dns/add", spec)


@click.command("dns-remove")
@_name_option
@click.argument("arguments", nargs=-1, required=True, metavar="[IP…] [CONTAINER]", shell_complete=offers.containers)
def dns_remove(name: str, arguments: tuple[str, ...]) -> None:
    """Take away what dns-add or attach registered on this host: of the container, or of the given addresses.

    Without -h under every name, without addresses all of them.

    \b
    Example:  weave dns-remove netns:web -h www
              weave dns-remove 192.0.2.7 -h db.weave.local
    """
    ask("POST", "/v1/dns/remove", _spec(arguments, name))


@click.command("dns-lookup")
@output_option
@click.argument("name")
def dns_lookup(output: str | None, name: str) -> None:
    """Print the addresses of a name, one per line; exit status 4 when it has none.

    \b
    Example:  weave dns-lookup web
    """
    addresses = ask("POST", "/v1/dns/lookup", {"name": name}).json()["addresses"]
    assert isinstance(addresses, list)
    if output:
        as_json({"addresses": addresses})
    for address in () if output else addresses:
        click.echo(address)
    if not addresses:
        raise Ended(ABSENT, f"no addresses for {name}; next: `weave status dns` lists all names")


@click.command("dns-args")
@output_option
def dns_args(output: str | None) -> None:
    """Print the arguments that make `docker run` use our DNS server.

    \b
    Example:  docker run $(weave dns-args) …
    """
    dns = ask("GET", "/v1/report").json().get("DNS")
    assert isinstance(dns, dict)
    if not dns["Address"]:
        raise Ended(ABSENT, "there is no DNS server on this host; next: launch without --no-dns")
    address, domain = str(dns["Address"]), str(dns["Domain"])
    if not _is_address(address):
        raise Ended(ABSENT, f"containers ask at port 53, our server is at {address}; next: launch it at port 53")
    if output:
        as_json({"dns": address, "search": domain})
    else:
        click.echo(f"--dns={address} --dns-search={domain}", nl=False)
