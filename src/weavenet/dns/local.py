"""Answers that we give ourselves: our domain, single labels, reverse names of the network, what is refused.

An existing name asked for another type gets NOERROR and the SOA, at once (a client that asked for AAAA beside A must
not wait); an unknown one NXDOMAIN and the SOA (RFC 2308). The SOA's last field, how long "there is none" may be
remembered, is the TTL of everything else. Pure functions of the zone and the query.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from weavenet.dns import wire
from weavenet.dns.wire import HEADER_BYTES, QUESTION_NAME, Query, Record
from weavenet.dns.zone import LOCALHOST, Entry, Zone, reverse_address

SHUFFLES = 7
"""Orders of the addresses of one name that are prepared; odd, so that a client that asks for A and AAAA in turn sees
them all."""
RECORD_BYTES_MIN = 16
"""Of an IPv4 address."""
REFRESH_S, RETRY_S, EXPIRE_S = 3600, 600, 86_400
"""Of the SOA; nobody transfers this zone."""
_OF_THE_ROOT = {wire.NS, wire.SOA, wire.DS, wire.DNSKEY}
"""What resolvers ask about a single label that is a top-level domain."""
_TIMES = struct.Struct("!5I")


class LocalAnswers:
    """``ttl_s``: of every record. ``rng``: for the order of addresses."""

    def __init__(self, zone: Zone, ttl_s: int, rng: random.Random) -> None:
        self.zone = zone
        self._ttl_s = ttl_s
        self._rng = rng

    def answer(self, query: Query, limit_bytes: int, shuffles: int = 1) -> tuple[bytes, ...] | None:
        """Whole messages, in up to ``shuffles`` orders of the addresses, each at most ``limit_bytes`` long. None: not
        ours, ask an upstream."""
        if query.klass != wire.IN or wire.META_FIRST <= query.kind <= wire.META_LAST or query.kind in (wire.OPT, 0):
            return (wire.respond(query, wire.REFUSED, flags=wire.RA),)
        folded = query.folded
        below = self.zone.below(folded)
        if below >= 0:
            entry = self.zone.find(folded)
            return self._named(query, entry, wire.pointer(HEADER_BYTES + below), limit_bytes, shuffles)
        if len(folded) > 1 and len(folded) == folded[0] + 2:
            return self._single(query, limit_bytes, shuffles)
        address = reverse_address(folded)
        if address is not None and self.zone.speaks_for(address):
            return (self._reverse(query, address, limit_bytes),)
        return None

    def _single(self, query: Query, limit_bytes: int, shuffles: int) -> tuple[bytes, ...] | None:
        """A name of one label stands for that name in our domain."""
        complete = query.folded[:-1] + self.zone.domain
        if query.folded == LOCALHOST:
            entry = self.zone.find(LOCALHOST)
        else:
            entry = self.zone.find(complete) if len(complete) <= wire.NAME_BYTES_MAX else None
            if entry is None and query.kind in _OF_THE_ROOT:
                return None
        return self._named(query, entry, self.zone.domain, limit_bytes, shuffles)

    def _named(
        self, query: Query, entry: Entry | None, domain: bytes, limit_bytes: int, shuffles: int
    ) -> tuple[bytes, ...]:
        """``domain``: as the owner of the SOA."""
        if entry is None:
            return (self._negative(query, wire.NXDOMAIN, domain, limit_bytes),)
        if query.kind in (wire.SOA, wire.ANY) and query.folded == self.zone.domain:
            soa = self._soa(domain)
            return (wire.respond(query, wire.NOERROR, flags=_OURS, answers=[soa], limit_bytes=limit_bytes),)
        records: list[bytes] = []
        if query.kind in (wire.A, wire.ANY):
            records += self._records(wire.A, entry.addresses4)
        if query.kind in (wire.AAAA, wire.ANY):
            records += self._records(wire.AAAA, entry.addresses6)
        if not records:
            return (self._negative(query, wire.NOERROR, domain, limit_bytes),)
        return tuple(
            wire.respond(query, wire.NOERROR, flags=_OURS, answers=order, limit_bytes=limit_bytes)
            for order in self._orders(records, limit_bytes, shuffles)
        )

    def _orders(self, records: list[bytes], limit_bytes: int, shuffles: int) -> list[list[bytes]]:
        """Of as many as an answer takes, and one more, by which it is known to be truncated."""
        if len(records) == 1:
            return [records]
        count = min(len(records), limit_bytes // RECORD_BYTES_MIN + 1)
        return [self._rng.sample(records, count) for _ in range(shuffles)]

    def _reverse(self, query: Query, address: bytes, limit_bytes: int) -> bytes:
        names = self.zone.names(address)
        zone = wire.pointer(HEADER_BYTES + list(wire.labels_of(query.folded))[-3])  # 10.in-addr.arpa, d.ip6.arpa
        if not names:
            return self._negative(query, wire.NXDOMAIN, zone, limit_bytes)
        if query.kind not in (wire.PTR, wire.ANY):
            return self._negative(query, wire.NOERROR, zone, limit_bytes)
        answers: Sequence[bytes] = [self._record(wire.PTR, name) for name in names]
        return wire.respond(query, wire.NOERROR, flags=_OURS, answers=answers, limit_bytes=limit_bytes)

    def _record(self, kind: int, data: bytes) -> bytes:
        return Record(QUESTION_NAME, kind, self._ttl_s, data).encode()

    def _records(self, kind: int, addresses: Sequence[bytes]) -> list[bytes]:
        """``addresses`` are of one length."""
        if not addresses:
            return []
        head = self._record(kind, addresses[0])[: -len(addresses[0])]
        return [head + address for address in addresses]

    def _negative(self, query: Query, rcode: int, domain: bytes, limit_bytes: int) -> bytes:
        return wire.respond(query, rcode, flags=_OURS, authority=self._soa(domain), limit_bytes=limit_bytes)

    def _soa(self, owner: bytes) -> bytes:
        times = _TIMES.pack(self.zone.serial, REFRESH_S, RETRY_S, EXPIRE_S, self._ttl_s)
        data = b"\2ns" + self.zone.domain + b"\x0ahostmaster" + self.zone.domain + times
        return Record(owner, wire.SOA, self._ttl_s, data).encode()


_OURS = wire.AA | wire.RA
