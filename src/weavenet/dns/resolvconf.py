"""The host's own upstreams: ``nameserver`` lines of resolv.conf(5), read again when the file changes.

The file may vanish and come back (a DHCP client writes it anew): while it is not there, or names nobody, the last
upstreams stay in use.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from weavenet.dns.forward import Upstream

PORT = 53
BYTES_MAX = 65_536
LOOK_EVERY_S = 1.0


def parse(text: str) -> tuple[Upstream, ...]:
    """In their order, each once; lines that are none are skipped, as the C library does."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(Upstream(str(ipaddress.ip_address(words[1])), PORT))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


class ResolvConf:
    """``own``: addresses that we answer at ourselves; they are no upstreams."""

    def __init__(self, path: str, own: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._own = own
        self._seen: tuple[int, int, int] | None = None
        self._looked_at: float | None = None
        self.upstreams: tuple[Upstream, ...] = ()

    def set_own(self, own: frozenset[str]) -> None:
        self._own = own
        self._seen = self._looked_at = None

    def changed(self, now: float) -> bool:
        """Look at the file, at most once a second; whether there are other upstreams now."""
        if self._looked_at is not None and now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        try:
            status = Path(self._path).stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            with Path(self._path).open("rb") as file:
                text = file.read(BYTES_MAX).decode("utf-8", "replace")
        except OSError:
            return False
        self._seen = seen
        upstreams = tuple(one for one in parse(text) if one.host not in self._own)
        if not upstreams or upstreams == self.upstreams:
            return False
        self.upstreams = upstreams
        return True
