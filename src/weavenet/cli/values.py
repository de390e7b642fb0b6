"""What option values may be. Each function takes a value with its source and returns the parsed one, or refuses with
what was expected, what was found, and what to do.

Pure, except that a password file is read.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple, NoReturn

from weavenet.cli.outcome import ERROR, Ended, sentence_of
from weavenet.core.limits import (
    DNS_DOMAIN_CHARACTERS_MAX,
    LEASE_TTL_MAX_S,
    LEASE_TTL_MIN_S,
    TRUSTED_SUBNETS_MAX,
)
from weavenet.core.ranges import IPV6_PREFIX_MIN

PASSWORD_FILE_BYTES_MAX = 64 * 1024
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("logfmt", "json")
NICKNAME_MAX = 255
DNS_PORT = 53
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class Given(NamedTuple):
    """A value as written, and where: ``--mtu``, ``WEAVE_MTU``, ``/etc/weave.conf, line 3, mtu``."""

    text: str
    source: str


def refuse(expected: str, found: str = "", next_step: str = "") -> NoReturn:
    raise Ended(ERROR, sentence_of({"expected": expected, "found": found, "next_step": next_step}))


def wrong(given: Given, expected: str, next_step: str = "correct it") -> NoReturn:
    refuse(f"{given.source}: expected {expected}", repr(given.text), next_step)


def number(given: Given, low: int, high: int, what: str) -> int:
    text = given.text.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 12) or not low <= int(text) <= high:
        wrong(given, f"{what} from {low} to {high}")
    return int(text)


def ttl(given: Given) -> int:
    """Seconds that an ephemeral peer may be gone."""
    match = re.fullmatch(r"(\d{1,8})(s|m|h|d)?", given.text.strip())
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2] or "s"] if match else 0
    if not LEASE_TTL_MIN_S <= seconds <= LEASE_TTL_MAX_S:
        wrong(given, "a time from 1m to 30d")
    return seconds


def choice(given: Given, allowed: tuple[str, ...]) -> str:
    if given.text not in allowed:
        wrong(given, f"one of {', '.join(allowed)}")
    return given.text


def ip_address(given: Given) -> str:
    try:
        return str(ipaddress.ip_address(given.text))
    except ValueError:
        wrong(given, "an IP address of this host")


def ip_and_port(given: Given) -> str:
    """``IP:PORT`` or ``[v6]:PORT``; empty stays empty."""
    if not given.text:
        return ""
    host, _, port = given.text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        wrong(given, "IP:PORT such as 127.0.0.1:6782, or '' for none")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        wrong(given, "IP:PORT such as 127.0.0.1:6782, or '' for none")
    return given.text


def listen_addresses(given: Given) -> tuple[str, ...]:
    """``IP[:PORT]``, several with commas, as ``IP:PORT`` and ``[v6]:PORT``; the port is 53 unless given. Never all
    addresses at once: some of them may be public."""
    return tuple(_listen_address(given, part.strip()) for part in given.text.split(","))


def _listen_address(given: Given, text: str) -> str:
    wanted = "addresses of this host, as in 10.0.0.5, 10.0.0.5:53 or [fd00::5]:53"
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):  # no port
        host, port = text, str(DNS_PORT)
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        wrong(given, wanted)
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        wrong(given, wanted)
    if address.is_unspecified or address.is_multicast:
        wrong(given, wanted, "name each address: a DNS server that strangers reach is used to attack others")
    if address.version == 6 and address.is_link_local and not address.scope_id:
        wrong(given, wanted, f"name the device of a link-local address, as in [{address}%eth0]:{port}")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


_NO_DOMAINS = ("in-addr.arpa", "ip6.arpa", "localhost")
"""Their names mean addresses, or the host itself (RFC 6761, section 6.3)."""


def _is_below(domain: str, other: str) -> bool:
    return f".{domain}".endswith(f".{other}")


def dns_domain(given: Given) -> str:
    """In lower case, with its last dot."""
    domain = given.text.lower().removesuffix(".")
    labels = domain.split(".")
    if len(domain) > DNS_DOMAIN_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        wrong(given, f"a domain such as weave.local, of at most {DNS_DOMAIN_CHARACTERS_MAX} characters")
    if labels[-1].isdigit() or any(_is_below(domain, other) or _is_below(other, domain) for other in _NO_DOMAINS):
        wrong(given, "a domain whose names can be ours", "choose one such as weave.local")
    return f"{domain}."


def absolute_path(given: Given, what: str) -> str:
    if not given.text.startswith("/") or "\0" in given.text:
        wrong(given, f"{what}: an absolute path")
    return given.text


def nickname(given: Given) -> str:
    if not 0 < len(given.text.encode()) <= NICKNAME_MAX or not given.text.isprintable():
        wrong(given, f"1 to {NICKNAME_MAX} printable characters")
    return given.text


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def ranges(given: Given) -> tuple[Network, ...]:
    """The ranges to divide, separated by commas: at most one IPv4 CIDR and one IPv6 CIDR, in this order."""
    found: dict[int, Network] = {}
    for text in given.text.split(","):
        network = subnet(Given(text.strip(), given.source))
        if network.version in found:
            step = "leave one out, or choose one CIDR that includes both"
            wrong(given, "at most one IPv4 range and one IPv6 range", step)
        _check_range(Given(str(network), given.source), network)
        found[network.version] = network
    return tuple(found[version] for version in sorted(found))


NO_CONTAINERS = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/8", "fe80::/10", "ff00::/8"),
    )
)
"""This network, loopback, link-local and multicast (RFC 6890, RFC 4291): no container can have an address there."""


def _check_range(given: Given, network: Network) -> None:
    """Refuse a range to divide, well-formed, that is too large or from which no container could use an address."""
    if network.version == 6 and network.prefixlen < IPV6_PREFIX_MIN:
        step = f"choose one /{IPV6_PREFIX_MIN} in it, such as {network.network_address}/{IPV6_PREFIX_MIN}"
        wrong(given, f"an IPv6 range of at most 2^64 addresses (/{IPV6_PREFIX_MIN} or longer)", step)
    for special in NO_CONTAINERS:
        if network.version == special.version and network.overlaps(special):
            step = "choose one below 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
            if network.version == 6:
                step = "choose one below fd00::/8, such as fd00:77::/64"
            wrong(given, f"a range that containers can have addresses from, so none that overlaps {special}", step)


def default_subnets(given: Given, wholes: tuple[Network, ...]) -> tuple[Network, ...]:
    """Subnets of containers that ask for none, separated by commas, each within the range of its family."""
    found: dict[int, Network] = {}
    for text in given.text.split(","):
        network = subnet(Given(text.strip(), given.source))
        fitting = [whole for whole in wholes if whole.version == network.version and network.overlaps(whole)]
        if not fitting or network.version in found:
            which = ",".join(map(str, wholes))
            wrong(given, f"one subnet within each range {which}", "choose one there, or another --ipalloc-range")
        found[network.version] = network
    return tuple(found[version] for version in sorted(found))


def subnet(given: Given) -> Network:
    """A CIDR of at least 4 addresses without host bits."""
    try:
        network = ipaddress.ip_network(given.text, strict=False)
    except ValueError:
        wrong(given, "a CIDR such as 10.32.0.0/12")
    if "/" not in given.text or ipaddress.ip_interface(given.text).ip != network.network_address:
        prefixed = "/" in given.text
        length = 16 if network.version == 4 else 64
        step = f"did you mean {network}?" if prefixed else f"add how long its prefix is, as in {given.text}/{length}"
        wrong(given, "a CIDR that starts at its network address", step)
    if network.num_addresses < 4:
        wrong(given, f"a subnet of at least 4 addresses (/{network.max_prefixlen - 2})", "choose a larger one")
    return network


def subnets(given: Given) -> tuple[str, ...]:
    """Networks of the underlay in CIDR form, IPv4 or IPv6, separated by commas."""
    found = []
    for text in given.text.split(","):
        try:
            found.append(str(ipaddress.ip_network(text.strip(), strict=False)))
        except ValueError:
            wrong(Given(text.strip(), given.source), "subnets such as 192.0.2.0/24, separated by commas")
    if len(found) > TRUSTED_SUBNETS_MAX:
        wrong(given, f"at most {TRUSTED_SUBNETS_MAX} subnets", "join neighbours to larger ones")
    return tuple(dict.fromkeys(found))


def passwords(given: Given) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines of a password file, and warnings about the file itself."""
    from weavenet.core.errors import WeaveError
    from weavenet.runtime.settings import password_lines

    path = Path(given.text)
    try:
        with path.open("rb") as file:
            data = file.read(PASSWORD_FILE_BYTES_MAX + 1)
        mode = path.stat().st_mode
    except OSError as error:
        step = "correct the path, or make the file with `weave password`"
        refuse(f"{given.source}: expected a file that can be read", f"{given.text}: {error.strerror or error}", step)
    if len(data) > PASSWORD_FILE_BYTES_MAX:
        refuse(f"{given.source}: expected at most {PASSWORD_FILE_BYTES_MAX} bytes", f"{given.text} is larger")
    try:
        lines = password_lines(data.decode())
    except UnicodeDecodeError:
        refuse(f"{given.source}: expected UTF-8 text", given.text, "make the file with `weave password`")
    except WeaveError as error:
        failure = error.failure
        refuse(f"{given.source}: {failure.expected}", f"{given.text}: {failure.found}", failure.next_step)
    return lines, open_to_others(given.text, mode)


def open_to_others(path: str, mode: int) -> tuple[str, ...]:
    """A warning when others may read a file with a secret."""
    return (f"{path} has a password and others can read it; next: chmod 600 {path}",) if mode & 0o077 else ()


def addresses_and_container(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """``[ADDR…] CONTAINER``: the container comes last. What an ADDR may be is the daemon's to say."""
    *addresses, container = arguments
    return tuple(addresses), container_reference(container)


def container_reference(container: str) -> str:
    """``container`` when it can be one."""
    kind, colon, name = container.partition(":")
    if not colon or kind not in ("netns", "pid") or not name:
        refuse(
            "expected a container at the end: netns:NAME, netns:/path or pid:N",
            repr(container),
            "`ip netns list` shows the names; for a process use pid:N",
        )
    if kind == "pid" and not (name.isascii() and name.isdigit()):
        refuse("expected pid:N with the number of a process", repr(container), "`ps` shows the numbers")
    return container
