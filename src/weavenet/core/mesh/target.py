"""A target: whom to dial, as an operator writes it."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from weavenet.core.errors import Code, Failure
from weavenet.core.limits import TARGET_TEXT_MAX

_HOST_LABELS = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_NUMERIC = re.compile(r"[0-9.]+")


class Target(msgspec.Struct, frozen=True):
    """``host[:port]``; ``port`` None stands for the port that this cluster uses."""

    host: str
    port: int | None

    @property
    def text(self) -> str:
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target | Failure:
    """``host``, ``host:port``, ``1.2.3.4[:port]``, ``fd00::1`` or ``[fd00::1]:port`` to its one canonical form."""
    if not 0 < len(text) <= TARGET_TEXT_MAX:
        return _malformed(text[:60], "1 to 261 characters")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return _malformed(text, "[IPv6 address]:port")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
    port: int | None = None
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:6]) < 65_536):
            return _malformed(text, "a port from 1 to 65535")
        port = int(port_text)
    canonical = _canonical_host(host, in_brackets=text.startswith("["))
    if canonical is None:
        return _malformed(text, "a host name or an IP address")
    return Target(canonical, port)


def _canonical_host(host: str, *, in_brackets: bool) -> str | None:
    if ":" in host or in_brackets or _NUMERIC.fullmatch(host):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return None
        return None if in_brackets and address.version == 4 else str(address)
    if len(host) > 253 or not _HOST_LABELS.fullmatch(host):
        return None
    return host.lower()


def _malformed(text: str, wanted: str) -> Failure:
    return Failure(
        Code.INVALID, f"expected {wanted} in a target", repr(text), "write it as host, host:port or [v6]:port"
    )
