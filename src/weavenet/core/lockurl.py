"""Where a lock is: the URL of ``--ipalloc-init lock=URL``, parsed and checked once, before anything starts.

Pure. Credentials in a URL are refused: every status report and process list would show them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from weavenet.core.errors import Code, Failure
from weavenet.core.limits import LOCK_URL_CHARACTERS_MAX

ETCD_PORT = 2379
EXAMPLES = "file:/shared/weave.lock, https://host/weave.lock or etcd://host:2379/weave"


class LockKind(StrEnum):
    FILE = "file"
    HTTP = "http"
    HTTPS = "https"
    ETCD = "etcd"


class LockUrl(msgspec.Struct, frozen=True):
    """``places``: (host, port) of servers that are asked in this order; none for a file. ``path``: of the file, of the
    document (with its query), or the key in etcd."""

    kind: LockKind
    places: tuple[tuple[str, int], ...]
    path: str
    text: str


def parse_lock_url(text: str) -> LockUrl | Failure:
    """``file:/path``, ``http(s)://host[:port]/path`` or ``etcd://host[:port][,host[:port]…]/key``."""
    scheme, colon, rest = text.partition(":")
    if len(text) > LOCK_URL_CHARACTERS_MAX or not text.isprintable() or " " in text:
        return _wrong(text, f"at most {LOCK_URL_CHARACTERS_MAX} printable characters without spaces")
    try:
        kind = LockKind(scheme.lower())
    except ValueError:
        return _wrong(text, "a URL that begins with file:, http:, https: or etcd:")
    if not colon:
        return _wrong(text, f"a URL such as {EXAMPLES}")
    if kind is LockKind.FILE:
        path = rest.removeprefix("//")
        if not path.startswith("/") or path.endswith("/"):
            return _wrong(text, "file: with the absolute path of a file in a folder that all hosts share")
        return LockUrl(kind, (), path, text)
    return _on_servers(kind, rest, text)


def _on_servers(kind: LockKind, rest: str, text: str) -> LockUrl | Failure:
    authority, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not authority or not (slash and path) or "#" in path:
        return _wrong(text, f"{kind.value}://HOST/PATH")
    if "@" in authority:
        return _wrong(text, "a URL without user and password, which status reports and process lists would show")
    default = {LockKind.HTTP: 80, LockKind.HTTPS: 443}.get(kind, ETCD_PORT)
    if not text.isascii():
        return _wrong(text, "ASCII characters; others percent-encoded")
    places = []
    for part in authority.split(",") if kind is LockKind.ETCD else [authority]:
        host, port = _split(part, default)
        if not host or not 0 < port < 65_536:
            return _wrong(text, "HOST or HOST:PORT with a port from 1 to 65535")
        places.append((host, port))
    return LockUrl(kind, tuple(places), path if kind is LockKind.ETCD else f"/{path}", text)


def _split(place: str, default: int) -> tuple[str, int]:
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, str(default)
    if not (port.isascii() and port.isdigit() and len(port) < 6):
        return "", 0
    return host.removeprefix("[").removesuffix("]"), int(port)


def _wrong(text: str, wanted: str) -> Failure:
    return Failure(Code.INVALID, f"expected {wanted}", repr(text[:200]), f"write lock= and {EXAMPLES}")
