"""``weave lab …``: the command line over :mod:`weavenet.lab.lab`.

Errors are sentences with the next step. Exit status 0, 1, or 4 for what does not exist.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import lab as labs
from weavenet.lab import processes, requirements, state
from weavenet.lab.host import LIFELONG, Host
from weavenet.lab.interruption import Interrupted, interruptible
from weavenet.lab.lab import Lab
from weavenet.lab.nat import Nat
from weavenet.lab.state import HostState, LabState
from weavenet.lab.topology import of_count, parse_count, parse_loss, parse_mtu, read

EXIT_ERROR = 1
EXIT_ABSENT = 4
LEFT_OVER = "left over"

Function = TypeVar("Function", bound=Callable[..., object])


def main(arguments: list[str]) -> int:
    """Runs one command line; returns the exit status."""
    try:
        outcome = group.main(arguments or ["--help"], prog_name="weave lab", standalone_mode=False)
    except WeaveError as problem:
        return _refuse(problem.failure)
    except click.ClickException as problem:
        problem.show()
        return EXIT_ERROR
    except Interrupted as interrupted:
        print(f"weave lab: {interrupted}", file=sys.stderr)
        return interrupted.status
    except (click.Abort, KeyboardInterrupt):
        print("weave lab: interrupted", file=sys.stderr)
        return 130
    return outcome if isinstance(outcome, int) else 0


def _refuse(failure: Failure) -> int:
    print(f"weave lab: expected: {failure.expected}", file=sys.stderr)
    for label, text in (("found", failure.found), ("next", failure.next_step)):
        if text:
            print(f"  {label}: {text}", file=sys.stderr)
    return EXIT_ABSENT if failure.code is Code.NOT_FOUND else EXIT_ERROR


def _of_lab(function: Function) -> Function:
    text = "which lab; not needed while there is only one"
    return click.option("--lab", "name", metavar="NAME", help=text)(function)


def _chosen(name: str | None) -> str:
    """The lab that was named, or the only one there is."""
    if name is not None:
        return state.check_name(name)
    existing = state.existing()
    if len(existing) > 1:
        raise WeaveError(
            Failure(Code.INVALID, "one lab, or --lab NAME", f"labs: {', '.join(existing)}", f"--lab {existing[0]}")
        )
    return existing[0] if existing else state.DEFAULT_NAME


def _open(name: str | None) -> Lab:
    requirements.check()
    return Lab.open(_chosen(name))


@click.group(name="lab", context_settings={"max_content_width": 100})
def group() -> None:
    """Many hosts on this machine, with the real kernel.

    A host is a set of namespaces with its own disk, name and machine-id; `weave` on it is this weave. Hosts reach each
    other by name (h1, h2, …). Nothing outside the lab is touched, and `weave lab down` removes all of it.

    \b
    Example:  weave lab up 3
              weave lab exec h1 -- weave launch h1 h2 h3
              weave lab run h1 --name web
              weave lab exec h1 -- weave attach netns:web
              weave lab exec h1:web -- ping 10.32.0.2
              weave lab down
    """


@group.command()
@click.argument("count", required=False)
@click.option("--name", "--lab", "name", default=state.DEFAULT_NAME, show_default=True, metavar="NAME")
@click.option("--topology", type=click.Path(path_type=Path), help="hosts, addresses and links from a TOML file")
@click.option("--docker", is_flag=True, help="refused: not in this version")
def up(count: str | None, name: str, topology: Path | None, docker: bool) -> None:
    """Start a lab of COUNT hosts, 1 to 50.

    \b
    Example:  weave lab up 3
              weave lab up --topology line.toml --name line
    A topology file:
              [[host]]
              name = "h1"
              address = "192.168.77.10"     # optional
              [[host]]
              name = "h2"
              [[link]]                      # with any link given, only linked hosts reach each other
              between = ["h1", "h2"]
              loss = "1%"                   # optional
    """
    if docker:
        raise WeaveError(
            Failure(
                Code.INVALID,
                "hosts of this lab have no dockerd",
                "--docker",
                "leave it out; `weave lab run` starts containers that are network namespaces",
            )
        )
    number = parse_count(count) if count is not None or topology is None else None
    shape = of_count(number or 0) if topology is None else read(topology)
    if number is not None and number != len(shape.hosts):
        raise WeaveError(
            Failure(Code.INVALID, f"{topology} describes {len(shape.hosts)} hosts", str(number), "leave the number out")
        )
    with interruptible():
        lab = Lab.up(name, shape)
    addresses = ", ".join(f"{host.name} {host.address}" for host in lab.hosts)
    print(f"lab {name} is up: {addresses}", file=sys.stderr)
    print(f"next: weave lab exec {lab.hosts[0].name} -- weave launch", file=sys.stderr)


@group.command()
@_of_lab
@click.option("--name", "also_name", metavar="NAME", hidden=True)
@click.option("--all", "everything", is_flag=True, help="every lab, and leftovers of every lab")
def down(name: str | None, also_name: str | None, everything: bool) -> int:
    """Remove a lab and everything that is left of it, also after a crash.

    \b
    Example:  weave lab down
    """
    requirements.check()
    name = name or also_name
    existing = state.existing()
    if everything or (name is None and not existing):
        for each in existing:
            labs.down(each)
        print(f"taken down: {', '.join(existing) or 'nothing, there is no lab'}", file=sys.stderr)
        return 0
    chosen = _chosen(name)
    if not labs.down(chosen):
        known = ", ".join(existing) or "none"
        raise WeaveError(Failure(Code.NOT_FOUND, f"a lab named {chosen}", f"labs: {known}", "weave lab list"))
    print(f"taken down: {chosen}", file=sys.stderr)
    return 0


class HostSummary(msgspec.Struct, frozen=True):
    name: str
    address: str
    state: str
    containers: list[str]


class LabSummary(msgspec.Struct, frozen=True):
    name: str
    state: str
    hosts: list[HostSummary]
    partition: list[list[str]]
    cuts: list[tuple[str, str]]
    loss: list[tuple[str, str, str]]
    mtu: list[tuple[str, str, int]]
    nat: dict[str, str]


@group.command("list")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="text or json")
def list_(output: str) -> None:
    """List labs: one line per host with its lab, address, state and containers, and one per fault.

    \b
    Example:  weave lab list
    """
    requirements.check()
    found = [_summary(name) for name in state.existing()]
    is_inside = processes.inside_host()
    if is_inside:  # whose processes are not to be seen from here is not left over for that
        found = [summary for summary in found if summary.state != LEFT_OVER]
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    for summary in found:
        _print_summary(summary)
    if not found and not is_inside:
        print("no lab; next: weave lab up 3", file=sys.stderr)


def _summary(name: str) -> LabSummary:
    current = state.load(name)
    if current is None:
        return LabSummary(name, _condition(name, current), [], [], [], [], [], {})
    hosts = [_host_summary(name, host) for host in current.hosts.values()]
    loss = [(loss.a, loss.b, f"{loss.per_100k / 1000:g}%") for loss in current.loss]
    mtu = [(narrow.a, narrow.b, narrow.mtu) for narrow in current.narrow]
    nat = {host: kind.value for host, kind in current.nats.items()}
    return LabSummary(name, _condition(name, current), hosts, current.partition, current.cuts, loss, mtu, nat)


def _condition(name: str, current: LabState | None) -> str:
    if current is not None and current.is_up and current.underlay_is_running:
        return "up"
    if state.is_changing(name):
        return "changing"
    if current is None and processes.marked(name):
        return "in use"  # by somebody whose /run is not ours: a lab writes its state before it starts anything
    return LEFT_OVER


def _host_summary(lab: str, host: HostState) -> HostSummary:
    containers = Host(lab, host.name, lambda: host).container_names() if host.is_running else []
    return HostSummary(host.name, host.address, "running" if host.is_running else "down", containers)


def _print_summary(summary: LabSummary) -> None:
    name = summary.name
    if summary.state != "up":
        step = f"; next: weave lab down --lab {name}" if summary.state == LEFT_OVER else ""
        print(f"{name} is {summary.state}{step}")
    for host in summary.hosts:
        print(" ".join([name, host.name, host.address, host.state, ",".join(host.containers)]).rstrip())
    if summary.partition:
        print(f"{name} partition {' / '.join(','.join(side) for side in summary.partition)}")
    for a, b in summary.cuts:
        print(f"{name} cut {a} {b}")
    for a, b, share in summary.loss:
        print(f"{name} loss {a} {b} {share}")
    for a, b, size in summary.mtu:
        print(f"{name} mtu {a} {b} {size}")
    for behind, kind in summary.nat.items():
        print(f"{name} nat {behind} {kind}")


@group.command("exec", context_settings={"allow_interspersed_args": False})
@_of_lab
@click.argument("place", metavar="HOST[:CONTAINER]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec_(name: str | None, place: str, command: tuple[str, ...]) -> None:
    """Run a command on a host, in a container of it, or in the `underlay`; a shell when none is given.

    \b
    Example:  weave lab exec h2 -- weave status
              weave lab exec h1:web -- ping 10.32.0.2
              weave lab exec underlay -- tcpdump -ni underlay
    """
    lab = _open(name)
    argv = list(command[1:] if command[:1] == ("--",) else command) or ["sh"]
    if place == processes.UNDERLAY:
        entering = [requirements.tool("nsenter"), "-t", str(lab.state.underlay_pid), "-n", "--", *argv]
        environment = {**os.environ, **processes.marks(lab.name, processes.UNDERLAY)}
    else:
        host_name, _, container = place.partition(":")
        host = lab.host(host_name)
        entering = host.entering(host.container(container).entering(argv) if container else argv)
        environment = host.environment()
    sys.stdout.flush()
    os.execve(entering[0], entering, environment)


@group.command()
@_of_lab
@click.argument("host")
@click.option("--name", "container", required=True, metavar="NAME", help="the container's name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(name: str | None, host: str, container: str, command: tuple[str, ...]) -> None:
    """Start a container on a host: a network namespace with a command that keeps running in it.

    \b
    Example:  weave lab run h1 --name web
              weave lab run h1 --name files -- python3 -m http.server 80
              weave lab exec h1 -- weave attach netns:web
    """
    started = _open(name).host(host).start_container(container, command or LIFELONG)
    print(started.id)


@group.command()
@_of_lab
@click.argument("host")
@click.argument("container")
def rm(name: str | None, host: str, container: str) -> None:
    """End a container that `weave lab run` started.

    \b
    Example:  weave lab rm h1 web
    """
    _open(name).host(host).container(container).remove()


@group.command()
@_of_lab
@click.argument("sides", nargs=-1, required=True)
def partition(name: str | None, sides: tuple[str, ...]) -> None:
    """Let nothing pass between groups of hosts; hosts that are not named form one more group.

    \b
    Example:  weave lab partition h1,h2 / h3
    """
    groups = [side.replace(",", " ").split() for side in " ".join(sides).split("/")]
    _open(name).partition(groups)


@group.command()
@_of_lab
def heal(name: str | None) -> None:
    """End partition, cuts, loss and small MTUs.

    \b
    Example:  weave lab heal
    """
    _open(name).heal()


@group.command()
@_of_lab
@click.argument("a")
@click.argument("b")
def cut(name: str | None, a: str, b: str) -> None:
    """Let nothing pass between two hosts.

    \b
    Example:  weave lab cut h1 h3
    """
    _open(name).cut(a, b)


@group.command()
@_of_lab
@click.argument("a")
@click.argument("b")
@click.argument("share")
def loss(name: str | None, a: str, b: str, share: str) -> None:
    """Lose a share of the packets between two hosts, in each direction; 0% ends it.

    \b
    Example:  weave lab loss h1 h2 5%
    """
    _open(name).loss(a, b, parse_loss(share))


@group.command()
@_of_lab
@click.argument("a")
@click.argument("b")
@click.argument("size")
def mtu(name: str | None, a: str, b: str, size: str) -> None:
    """Drop packets of more than SIZE bytes between two hosts, without a word; 0 ends it.

    \b
    Example:  weave lab mtu h1 h2 1280
    """
    _open(name).mtu(a, b, parse_mtu(size))


@group.command()
@_of_lab
@click.argument("host")
@click.option("--symmetric", is_flag=True, help="another port for each flow, as carriers do")
@click.option("--off", is_flag=True, help="take the router away")
def nat(name: str | None, host: str, symmetric: bool, off: bool) -> None:
    """Put a masquerading router in front of a host: others reach it only in answer.

    \b
    Example:  weave lab nat h3
    """
    kind = Nat.SYMMETRIC if symmetric else Nat.CONE
    _open(name).nat(host, None if off else kind)


_WHOLE = click.option("--host", "whole", is_flag=True, help="the whole host, not only its weave daemon")


@group.command()
@_of_lab
@click.argument("host")
@_WHOLE
def pause(name: str | None, host: str, whole: bool) -> None:
    """Stop the weave daemon of a host, as SIGSTOP does, until `resume`.

    \b
    Example:  weave lab pause h2
    """
    chosen = _open(name).host(host)
    if whole:
        chosen.pause()
    else:
        chosen.pause_daemon()


@group.command()
@_of_lab
@click.argument("host")
@_WHOLE
def resume(name: str | None, host: str, whole: bool) -> None:
    """Let a paused daemon or host go on.

    \b
    Example:  weave lab resume h2
    """
    chosen = _open(name).host(host)
    if whole:
        chosen.resume()
    else:
        chosen.resume_daemon()


@group.command()
@_of_lab
@click.argument("host")
@_WHOLE
def kill(name: str | None, host: str, whole: bool) -> None:
    """Kill the weave daemon of a host, as `kill -9` does; or, with --host, cut the host's power.

    \b
    Example:  weave lab kill h2
    """
    lab = _open(name)
    if whole:
        lab.kill(host)
    else:
        lab.host(host).kill_daemon()


@group.command()
@_of_lab
@click.argument("host")
def reboot(name: str | None, host: str) -> None:
    """Switch a host off and on: same disk, machine-id and MAC; a new boot-id, no containers.

    The daemon starts with it where `weave install-unit` was run, as systemd would start it.

    \b
    Example:  weave lab reboot h2
    """
    with interruptible():
        _open(name).reboot(host)


@group.command()
@_of_lab
@click.option("--new-machine-id", is_flag=True, help="As a well-made image: the copy keeps a machine-id of its own.")
@click.argument("source")
@click.argument("target")
def clone(name: str | None, source: str, target: str, *, new_machine_id: bool) -> None:
    """Give a host a copy of another one's disk, as a cloned virtual machine has, and switch it on.

    \b
    Example:  weave lab clone h1 h3; weave lab exec h3 -- weave launch
    """
    with interruptible():
        _open(name).clone(source, target, new_machine_id=new_machine_id)


@group.command()
def demo() -> int:
    """Three hosts become one network, are divided, heal, and survive a crash: a story of about 30 s.

    \b
    Example:  weave lab demo
    """
    from weavenet.lab.demo import tell

    requirements.check(needs_ping=True)
    return tell()
