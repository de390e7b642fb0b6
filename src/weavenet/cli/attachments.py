"""``weave attach``, ``weave detach``, ``weave ps``."""

from __future__ import annotations

from urllib.parse import quote

import click

from weavenet.cli import offers
from weavenet.cli.client import Call, ask
from weavenet.cli.outcome import ABSENT, Ended
from weavenet.cli.printing import as_json, note, output_option, timeout_option
from weavenet.cli.values import addresses_and_container, refuse
from weavenet.cli.waiting import Report, ipam_of, wait_for

SILENT_S = 2.0
UNDIVIDED = ("awaiting consensus", "awaiting seeds")
"""States of IPAM whose detail is why there is no address for anybody."""


@click.command()
@click.option("--without-dns", is_flag=True, help="Register no name.")
@click.option("-h", "--hostname", metavar="NAME", default="", help="Register this name instead of its own.")
@click.option("--rewrite-hosts", is_flag=True, help="Put its name and addresses into its /etc/hosts.")
@click.option("--add-host", "hosts", multiple=True, metavar="NAME:IP", help="Put this into its /etc/hosts, too.")
@click.option("--no-multicast-route", is_flag=True, help="Make no route for 224.0.0.0/4.")
@timeout_option
@output_option
@click.argument("arguments", nargs=-1, required=True, metavar="[ADDR…] CONTAINER", shell_complete=offers.containers)
def attach(
    *,
    without_dns: bool,
    hostname: str,
    rewrite_hosts: bool,
    hosts: tuple[str, ...],
    no_multicast_route: bool,
    timeout: float | None,
    output: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Give a container the interface ethwe and addresses; prints them.

    An ADDR is [ip:]CIDR (exactly this one), net:CIDR (one from this subnet) or net:default; without any, one from the
    default subnet. A CONTAINER is netns:NAME, netns:/path or pid:N. Its name (NAME, or the hostname of a process that
    has its own) is registered in the DNS domain. Waits while there is no address to give, and says why.

    \b
    Example:  weave attach netns:web
              weave attach 10.32.5.5/12 net:10.40.0.0/16 netns:db
    """
    addresses, container = addresses_and_container(arguments)
    if without_dns and hostname:
        refuse("expected one of --without-dns and -h", "both", "leave one out")
    body = {
        "container": container,
        "addresses": list(addresses),
        "multicast_route": not no_multicast_route,
        "dns": not without_dns,
        "name": hostname,
        "rewrite_hosts": rewrite_hosts,
        "hosts": list(hosts),
    }
    reply = wait_for(
        Call("POST", "/v1/attach", body),
        describe=waiting_for,
        silent_s=SILENT_S,
        timeout_s=timeout,
        hint="`weave status ipam` shows who is missing",
    )
    answer = reply.json()
    if answer.get("note"):
        note(str(answer["note"]))
    print_addresses(answer, output)


def waiting_for(report: Report) -> str:
    """Why an address is not there yet."""
    ipam = ipam_of(report)
    pending = ipam.get("PendingAllocates")
    if isinstance(pending, list) and pending:
        text = f"waiting: {'; '.join(str(item) for item in pending[:3])}"
        why = str(ipam.get("Detail") or "").partition("; next: ")[0] if ipam.get("Status") in UNDIVIDED else ""
        return f"{text} ({why})" if why else text
    detail = ipam.get("Detail") or ipam.get("Status") or "the daemon is at work"
    return f"waiting: {detail}"


@click.command()
@output_option
@click.argument("arguments", nargs=-1, required=True, metavar="[ADDR…] CONTAINER", shell_complete=offers.containers)
def detach(output: str | None, arguments: tuple[str, ...]) -> None:
    """Take addresses from a container, and its interface with the last one; prints them.

    Without an ADDR: net:default, what attach gave it without one. A CONTAINER is named as for attach.

    \b
    Example:  weave detach netns:web
              weave detach 10.32.5.5/12 net:10.40.0.0/16 netns:db
    """
    addresses, container = addresses_and_container(arguments)
    reply = ask("POST", "/v1/detach", {"container": container, "addresses": list(addresses)}, timeout_s=60.0)
    print_addresses(reply.json(), output)


@click.command()
@output_option
@click.argument("containers", nargs=-1, metavar="[CONTAINER…]", shell_complete=offers.containers)
def ps(output: str | None, containers: tuple[str, ...]) -> None:
    """List attached containers: name, MAC, addresses. Exit status 4 when one that was named is not attached.

    \b
    Example:  weave ps
              weave ps netns:web
    """
    path = f"/v1/ps?containers={quote(','.join(containers))}" if containers else "/v1/ps"
    rows = ask("GET", path).json()["attachments"]
    assert isinstance(rows, list)
    if output:
        as_json(rows)
    for row in () if output else rows:
        gone = [] if row["live"] else ["(container is gone)"]
        click.echo(" ".join([row["container"] or row["id"], row["mac"], *row["addresses"], *gone]))
    unknown = [name for name in containers if not any(name in (row["container"], row["id"]) for row in rows)]
    if unknown:
        raise Ended(ABSENT, f"not attached here: {', '.join(unknown)}; next: `weave ps` lists what is")


def print_addresses(answer: dict[str, object], output: str | None) -> None:
    """IPs on one line, as the original, or all of it as JSON."""
    addresses = answer["addresses"]
    assert isinstance(addresses, list)
    if output:
        as_json({"addresses": addresses})
    elif addresses:
        click.echo(" ".join(str(address).partition("/")[0] for address in addresses))
