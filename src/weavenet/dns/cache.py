"""Answers of upstreams, kept for as long as they said, and longer for when no upstream answers (RFC 8767).

Invariants: an answer is given for exactly the question it was given for; its TTLs shrink with its age; what is kept is
bounded in number and bytes, and the least recently used goes first.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import NamedTuple

from weavenet.dns import wire
from weavenet.dns.wire import HEADER_BYTES, Query, Response

ENTRIES_MAX = 2000
BYTES_MAX = 1 << 20
"""Of messages; with what Python adds, less than 2 MB."""
MESSAGE_BYTES_MAX = 4096
"""A longer answer is not kept."""
TTL_MAX_S, NEGATIVE_TTL_MAX_S = 3600, 300
STALE_S = 86_400.0
"""How long after its time an answer may still serve (RFC 8767, section 5: one to three days)."""
STALE_TTL_S = 30
"""TTL of such an answer (RFC 8767, section 4)."""

_TTL = struct.Struct("!I")


class Key(NamedTuple):
    """What makes two questions the same one."""

    folded: bytes
    kind: int
    has_edns: bool
    dnssec_ok: bool
    flags: int

    @classmethod
    def of(cls, query: Query) -> Key:
        edns = query.edns
        return cls(
            query.folded,
            query.kind,
            edns is not None,
            edns is not None and edns.dnssec_ok,
            query.flags & (wire.RD | wire.AD | wire.CD),
        )


class Kept(NamedTuple):
    message: bytes
    ttls: tuple[int, ...]
    since: float
    until: float


class Cache:
    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, now: float, key: Key, message: bytes, response: Response) -> None:
        """``message`` was checked: ``response`` is what it says."""
        ttl_s = lifetime_s(response)
        if not ttl_s or len(message) > MESSAGE_BYTES_MAX:
            return
        self._drop(key)
        self._kept[key] = Kept(message, response.ttls, now, now + ttl_s)
        self.size_bytes += len(message)
        while len(self._kept) > ENTRIES_MAX or self.size_bytes > BYTES_MAX:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size_bytes -= len(kept.message)

    def get(self, now: float, key: Key, *, stale: bool = False) -> bytes | None:
        """The message as of ``now``; with ``stale`` also one whose time is over, with TTLs of 30 s."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if now >= kept.until + STALE_S:
            self._drop(key)
            return None
        if now >= kept.until and not stale:
            return None
        self._kept.move_to_end(key)
        message = bytearray(kept.message)
        age = int(now - kept.since)
        for at in kept.ttls:
            ttl = STALE_TTL_S if now >= kept.until else max(0, _TTL.unpack_from(message, at)[0] - age)
            _TTL.pack_into(message, at, ttl)
        return bytes(message)

    def clear(self) -> None:
        """When the upstreams changed: others may know other names."""
        self._kept.clear()
        self.size_bytes = 0


def lifetime_s(response: Response) -> int:
    """For how many seconds an answer holds; 0: not to be kept."""
    if response.flags & wire.TC or response.rcode not in (wire.NOERROR, wire.NXDOMAIN):
        return 0
    ttl_s, negative_ttl_s = response.ttl_s or 0, response.negative_ttl_s
    if negative_ttl_s is not None:  # an alias may lead to the name that is not there, and soon to another one
        return min(ttl_s, negative_ttl_s, NEGATIVE_TTL_MAX_S)
    return min(ttl_s, TTL_MAX_S) if response.answers and response.rcode == wire.NOERROR else 0


def fit(message: bytes, query: Query, limit_bytes: int) -> bytes:
    """``message``, an upstream's checked answer, for this client: its id, its spelling of the name, TC and no records
    when it is too long."""
    flags = int.from_bytes(message[2:4], "big")
    if len(message) > limit_bytes:
        return wire.respond(query, flags & wire.RCODE, flags=wire.TC | flags & (wire.RA | wire.AD))
    flags = flags & ~(wire.RD | wire.CD) | query.flags & (wire.RD | wire.CD)
    head = query.number.to_bytes(2, "big") + flags.to_bytes(2, "big") + message[4:HEADER_BYTES]
    return head + query.name + message[HEADER_BYTES + len(query.name) :]
