"""The lease of an ephemeral peer, which will be removed without anybody asking once the voters have not heard from it
for TTL.

It asks each voter for a renewal every TTL × RENEW_SHARE. A renewal counts from when it was *asked for*, so that
whatever the answer took is on our side. Without those of a quorum younger than TTL × LEASE_SHARE this peer gives out
and grants no address and lets nothing through its data paths, until a quorum answers again (or it learns that it was
removed). A new start has no renewals and gives out nothing before it got them, but leaves the data paths of the one
before open for as long as a lease lasts: a restart must not lose packets.

``now`` is CLOCK_BOOTTIME, so after a suspend the lease is over before anything else is done. A clock that stood still
(a paused machine) is not noticed: safety rests on the heir's hold and on fencing, not on this (histories
*zombie-containers*, *suspend*, *vm-pause*). Memory only.
"""

from __future__ import annotations

from collections.abc import Callable

from weavenet.core.effects import Outbox
from weavenet.core.election.electorate import quorum
from weavenet.core.limits import LEASE_SHARE, RENEW_SHARE
from weavenet.core.messages.lease import LeaseAnswer, LeaseRenew
from weavenet.core.ring.log import Log
from weavenet.core.types import PeerId

_ASKED_KEPT = 64
_NEVER = float("-inf")


class Lease:
    """``ttl_s`` 0: this peer needs none. ``address(voter)``: the reachable peer that casts this vote, or None."""

    def __init__(
        self, *, me: PeerId, ttl_s: float, log: Log, address: Callable[[PeerId], PeerId | None], outbox: Outbox
    ) -> None:
        self._me = me
        self.ttl_s = ttl_s
        self._log = log
        self._address = address
        self._outbox = outbox
        self._started_at = 0.0
        self._number = 0
        self._asked: dict[int, float] = {}
        self._renewed: dict[PeerId, float] = {}
        """Voter → when the latest renewal that it answered was asked for."""
        self._ask_at = 0.0
        self.may_allocate = ttl_s == 0
        self.may_carry = True

    def start(self, now: float) -> None:
        self._started_at = now

    @property
    def is_needed(self) -> bool:
        return self.ttl_s > 0 and self._log.genesis is not None

    @property
    def _renewed_at(self) -> float:
        """Since when a quorum of the present voters counts our lease."""
        voters = self._log.voters
        times = sorted((self._renewed.get(voter, _NEVER) for voter in voters), reverse=True)
        return times[quorum(len(voters)) - 1] if voters else _NEVER

    @property
    def _over_at(self) -> float:
        return self._renewed_at + LEASE_SHARE * self.ttl_s

    def deadline(self) -> float | None:
        if not self.is_needed:
            return None
        ends = max(self._over_at, self._started_at + LEASE_SHARE * self.ttl_s)
        return min(self._ask_at, ends) if self.may_carry else self._ask_at

    def advance(self, now: float) -> None:
        """What may be done now; renewals when due. To be called before anything else is done with an event."""
        if not self.is_needed:
            return
        self.may_allocate = now < self._over_at
        self.may_carry = self.may_allocate or now < self._started_at + LEASE_SHARE * self.ttl_s
        if now < self._ask_at:
            return
        share = RENEW_SHARE if self.may_allocate else RENEW_SHARE / 4
        self._ask_at = now + share * self.ttl_s
        self._number += 1
        self._asked[self._number] = now
        for number in [number for number in self._asked if number <= self._number - _ASKED_KEPT]:
            del self._asked[number]
        for voter in self._log.voters:
            peer = self._address(voter)
            if peer == self._me:  # a removal that left no elector made us one
                self._renewed[voter] = now
                self.may_allocate = now < self._over_at
                self.may_carry = self.may_carry or self.may_allocate
            elif peer is not None:
                self._outbox.unicast(peer, LeaseRenew(self._number))

    def answered(self, now: float, answer: LeaseAnswer) -> None:
        asked_at = self._asked.get(answer.number)
        if asked_at is not None and answer.voter in self._log.voters:
            self._renewed[answer.voter] = max(asked_at, self._renewed.get(answer.voter, _NEVER))
            self.advance(now)

    def hurry(self) -> None:
        """Voters that were out of reach may be back."""
        if not self.may_allocate:
            self._ask_at = 0.0

    def age_s(self, now: float) -> float | None:
        """Of the renewals of a quorum; None without."""
        since = self._renewed_at
        return None if since == _NEVER else now - since
