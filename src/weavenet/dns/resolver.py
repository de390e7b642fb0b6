"""One question in, one answer out: our own answers first, then the cache, then the upstreams. No sockets."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from weavenet.dns import wire
from weavenet.dns.forward import Forwarder, Reply
from weavenet.dns.local import SHUFFLES, LocalAnswers
from weavenet.dns.wire import Malformed
from weavenet.dns.zone import Zone


class Counted(msgspec.Struct):
    """Since the start of the worker; what the fast path answers counts as local too."""

    local: int = 0
    malformed: int = 0
    dropped: int = 0


class Local(NamedTuple):
    """Answers of which one is as good as another. ``name``: folded; until the zone says something else about it, the
    same datagram gets the same answers. Empty: it may not. ``is_passing``: for a second only, since TTLs shrink."""

    answers: tuple[bytes, ...]
    name: bytes = b""
    is_passing: bool = False


class Resolver:
    """``before_forwarding`` is called before each question to an upstream (to look for new ones)."""

    def __init__(
        self,
        zone: Zone,
        ttl_s: int,
        forwarder: Forwarder,
        rng: random.Random,
        before_forwarding: Callable[[float], None] = lambda now: None,
    ) -> None:
        self.zone = zone
        self.forwarder = forwarder
        self.counted = Counted()
        self._local = LocalAnswers(zone, ttl_s, rng)
        self._before_forwarding = before_forwarding

    def set_zone(self, zone: Zone) -> None:
        self.zone = self._local.zone = zone

    def handle(self, packet: bytes, client: bytes, reply: Reply, *, stream: bool) -> Local | None:
        """Answer now, or later through ``reply``, or (to what is no query) never. What is answered now for certain is
        returned instead of being given to ``reply``. ``client``: the address that asks, without its port. ``stream``:
        over TCP, where answers may be long."""
        try:
            query = wire.parse_query(packet)
        except Malformed as error:
            if not error.answer:
                self.counted.dropped += 1
                return None
            self.counted.malformed += 1
            return Local((error.answer,))
        limit_bytes = wire.MESSAGE_BYTES_MAX if stream else query.limit_bytes
        name = b"" if query.edns is not None and query.edns.has_options else query.folded
        answers = self._local.answer(query, limit_bytes, SHUFFLES if name and not stream else 1)
        if answers is not None:
            self.counted.local += 1
            return Local(answers, name)
        now = time.monotonic()
        if self.forwarder.is_probe(now, query.folded) or not query.flags & wire.RD:
            return Local((wire.respond(query, wire.REFUSED, flags=wire.RA),))
        self._before_forwarding(now)
        known = self.forwarder.known(now, query, limit_bytes)
        if known is not None:
            return Local((known,), name, is_passing=True)
        self.forwarder.ask(now, query, limit_bytes, client, reply)
        return None
