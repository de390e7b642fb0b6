"""Both halves of leases in one node: our own, if this peer is ephemeral, and those of others, if it votes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import assert_never

from weavenet.core.config import NodeConfig
from weavenet.core.deadlines import earliest
from weavenet.core.effects import Outbox
from weavenet.core.lease.holder import Lease
from weavenet.core.lease.voter import Leases, Surroundings
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.messages.lease import (
    LapseAnswer,
    LapseQuery,
    LapseSettled,
    LeaseAnswer,
    LeaseBody,
    LeaseRenew,
)
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.removal.attests import Attests
from weavenet.core.ring import Ipam, Log
from weavenet.core.types import PeerId


class Leasing:
    """``rows`` are those of table ``leases``."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        log: Log,
        ipam: Ipam,
        planes: OpenPlanes,
        around: Surroundings,
        attests: Attests,
        rows: Iterable[tuple[bytes, bytes]],
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._ipam = ipam
        self._planes = planes
        self.own = Lease(
            me=config.peer, ttl_s=config.ephemeral_ttl_s, log=log, address=around.voter_address, outbox=outbox
        )
        self.others = Leases(me=config.peer, log=log, around=around, attests=attests, rows=rows, outbox=outbox, rng=rng)

    def start(self, now: float) -> None:
        self.own.start(now)
        self.look_at_clock(now)

    def look_at_clock(self, now: float) -> None:
        """Before anything is done with an event: what an ephemeral peer may do by now."""
        if self.own.is_needed:
            self.own.advance(now)
            self._ipam.set_leased(now, self.own.may_allocate)
            self._planes.shut(not self.own.may_carry)

    def deadline(self) -> float | None:
        return earliest((self.own.deadline(), self.others.deadline()))

    def advance(self, now: float) -> None:
        self.look_at_clock(now)
        self.others.advance(now)

    def met(self, now: float, peer: PeerId, record: PeerRecord) -> None:
        """A record of ``peer`` is new or has changed."""
        self.own.hurry()
        if record.ttl_s:
            self.others.met(now, peer, record.ttl_s)

    def handle(self, now: float, source: PeerId, body: LeaseBody) -> None:
        match body:
            case LeaseAnswer():
                self.own.answered(now, body)
            case LeaseRenew() | LapseQuery() | LapseAnswer() | LapseSettled():
                self.others.handle(now, source, body)
            case _:
                assert_never(body)

    def forget(self) -> None:
        """This peer gave up its cluster for another."""
        self.others.forget(tuple(self.others.ttls))
