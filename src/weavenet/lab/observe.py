"""What the hosts of a lab say about themselves, asked through ``weave report`` as a person would."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab.host import Host, Result

NO_PATH = "no data path"
LOG_LINE_MAX = 1000


class Attributes(msgspec.Struct, frozen=True):
    name: str
    reason: str = ""


class Connection(msgspec.Struct, frozen=True, rename="pascal"):
    state: str
    info: str
    address: str
    attrs: Attributes
    nick_name: str = ""
    uid: str = msgspec.field(default="", name="UID")


class Router(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    nick_name: str
    cluster: str
    connections: list[Connection]
    attachments: int
    uid: str = msgspec.field(name="UID")


class Owner(msgspec.Struct, frozen=True, rename="pascal"):
    peer: str
    nickname: str
    size: int
    is_self: bool


class Ipam(msgspec.Struct, frozen=True, rename="pascal"):
    status: str
    entries: list[Owner]
    active: int = msgspec.field(name="ActiveIPs")


class Report(msgspec.Struct, frozen=True, rename="pascal"):
    router: Router
    warnings: list[str]
    ipam: Ipam | None = msgspec.field(default=None, name="IPAM")


def report(host: Host) -> Report:
    """Raises ``WeaveError`` when the daemon does not answer, or not as documented."""
    text = host.weave("report", check=True).stdout
    try:
        return msgspec.json.decode(text, type=Report)
    except msgspec.DecodeError as problem:
        raise WeaveError(
            Failure(Code.HOST, f"`weave report` on {host.name} prints the documented JSON", f"{problem}: {text[:200]}")
        ) from None


def linked(host: Host) -> set[str]:
    """Nicknames of the peers with an established link and an open data path."""
    return {
        connection.nick_name
        for connection in report(host).router.connections
        if connection.state == "established" and connection.attrs.name != NO_PATH
    }


def missing_links(hosts: Sequence[Host]) -> list[str]:
    """Ordered pairs, as ``h1 to h2``, without link and data path; empty when everybody has everybody."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = dict(zip((host.name for host in hosts), pool.map(linked, hosts), strict=True))
    return [f"{a} to {b}" for a in found for b in found if a != b and b not in found[a]]


def owners(host: Host) -> dict[str, int]:
    """How many addresses each peer owns, as this host sees the ring."""
    ipam = report(host).ipam
    return {owner.peer: owner.size for owner in ipam.entries} if ipam else {}


def on_each(hosts: Sequence[Host], *arguments: str, timeout_s: float = 120.0) -> list[Result]:
    """The same ``weave`` command on all hosts at the same moment; in the order of the hosts."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(lambda host: host.weave(*arguments, timeout_s=timeout_s), hosts))


def log_tail(host: Host, lines: int = 5) -> str:
    """The end of the host's weave log; empty when there is none."""
    file = host.disk / "log" / "weave.log"
    if not file.is_file():
        return ""
    return "\n".join(line[:LOG_LINE_MAX] for line in file.read_text(errors="replace").splitlines()[-lines:])
