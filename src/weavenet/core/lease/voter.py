"""The voters' part in leases: to renew them, and to give up on ephemeral peers that no longer ask.

A voter that has answered no renewal of X for X's TTL (since its last answer, since it met X, votes, or was started)
holds X's lease for lapsed. The first voter that can be reached asks the others whether they do too. Whoever does says
so durably (``Attests``) and from then on renews nothing for X until that is settled: X is removed, or a quorum of the
voters does renew it, or some do and a quorum cannot be had for either (voters are out of reach; else X would stay
without a lease for as long as they are), or nobody has asked for long. When a quorum has said it, the removal of all
such X is decreed without an operator; what follows is the same as after ``rmpeer``.

Durable: who is ephemeral, with its TTL (table ``leases``), and what was attested. Answers to renewals are memory only:
after a restart a voter waits a whole TTL again.

What this does not do: decide, inherit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.election.electorate import quorum
from weavenet.core.limits import LAPSE_CHECK_S, LAPSED_PER_QUERY_MAX, LEASE_TTL_MAX_S, SEEN_VALID_S
from weavenet.core.messages.lease import LapseAnswer, LapseQuery, LapseSettled, LeaseAnswer, LeaseRenew
from weavenet.core.removal.attests import Attests
from weavenet.core.ring.log import Log
from weavenet.core.types import PeerId, Remove

TABLE = "leases"


class Surroundings(Protocol):
    def votes_as(self) -> PeerId | None: ...

    def voter_address(self, voter: PeerId) -> PeerId | None: ...

    def heir(self, without: frozenset[PeerId]) -> PeerId | None: ...


class Leases:
    """``rows`` are those of table ``leases``: TTL in seconds per ephemeral peer."""

    def __init__(
        self,
        *,
        me: PeerId,
        log: Log,
        around: Surroundings,
        attests: Attests,
        rows: Iterable[tuple[bytes, bytes]],
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._log = log
        self._around = around
        self._attests = attests
        self._outbox = outbox
        self._rng = rng
        self.ttls: dict[PeerId, int] = {PeerId(key): msgspec.msgpack.decode(value, type=int) for key, value in rows}
        self._since: dict[PeerId, float] = {}
        """When it was met in this start, or its last renewal was answered."""
        self._votes_since: float | None = None
        self._check_at = 0.0
        self._session = 0
        self._asked_at = float("-inf")
        self._asked: frozenset[PeerId] = frozenset()
        self._answers: dict[PeerId, frozenset[PeerId]] = {}

    def met(self, now: float, peer: PeerId, ttl_s: int) -> None:
        """``peer`` says that it is ephemeral."""
        ttl_s = min(ttl_s, LEASE_TTL_MAX_S)
        self._since.setdefault(peer, now)
        if self.ttls.get(peer) != ttl_s and not self._log.is_gone(peer):
            self.ttls[peer] = ttl_s
            self._outbox.persist(Change(TABLE, peer, msgspec.msgpack.encode(ttl_s)))

    def forget(self, peers: Iterable[PeerId]) -> None:
        gone = [peer for peer in sorted(peers) if peer in self.ttls]
        for peer in gone:
            del self.ttls[peer]
            self._since.pop(peer, None)
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in gone))

    # --- time ---

    def deadline(self) -> float | None:
        return self._check_at if self.ttls and self._around.votes_as() is not None else None

    def advance(self, now: float) -> None:
        own = self._around.votes_as()
        if own is None:
            self._votes_since = None
            return
        if self._votes_since is None:
            self._votes_since = now
        if not self.ttls or now < self._check_at:
            return
        self._check_at = now + LAPSE_CHECK_S
        self.forget([peer for peer in self.ttls if self._log.is_gone(peer)])
        if self._leads():
            self._ask(now, own)

    def _leads(self) -> bool:
        first = next((peer for voter in self._log.voters if (peer := self._around.voter_address(voter))), None)
        return first == self._me

    def has_lapsed(self, now: float, peer: PeerId) -> bool:
        """In our own eyes."""
        ttl_s = self.ttls.get(peer)
        if ttl_s is None or self._votes_since is None:
            return False
        return now >= max(self._votes_since, self._since.get(peer, self._votes_since)) + ttl_s

    def _ask(self, now: float, own: PeerId) -> None:
        lapsed = sorted(peer for peer in self.ttls if peer in self._attests or self.has_lapsed(now, peer))
        asked = frozenset(lapsed[:LAPSED_PER_QUERY_MAX])
        is_over = now >= self._asked_at + SEEN_VALID_S
        if asked != self._asked or is_over:
            alive = self._renewed_elsewhere | (self._undecided if is_over else frozenset())
            self._settle(now, alive)
            self._asked, self._asked_at, self._answers = asked - alive, now, {}
            self._session = self._rng.getrandbits(62)
        if not self._asked:
            return
        self._attests.add(now, sorted(self._asked))
        self._answers[own] = self._asked
        query = LapseQuery(self._session, tuple(sorted(self._asked)))
        for voter in self._log.voters:
            peer = self._around.voter_address(voter)
            if voter not in self._answers and peer is not None and peer != self._me:
                self._outbox.unicast(peer, query)

    def _count(self, peer: PeerId, *, lapsed: bool) -> int:
        voters = self._log.voters
        return sum((peer in said) is lapsed for voter, said in self._answers.items() if voter in voters)

    @property
    def _renewed_elsewhere(self) -> frozenset[PeerId]:
        """Asked about, and a quorum of the voters renews it."""
        needed = quorum(len(self._log.voters))
        return frozenset(peer for peer in self._asked if self._count(peer, lapsed=False) >= needed)

    @property
    def _undecided(self) -> frozenset[PeerId]:
        """Asked about, and somebody renews it, but a quorum for neither has answered."""
        needed = quorum(len(self._log.voters))
        return frozenset(
            peer for peer in self._asked if self._count(peer, lapsed=False) and self._count(peer, lapsed=True) < needed
        )

    def _settle(self, now: float, alive: frozenset[PeerId]) -> None:
        """They are not removed, so those who gave them up take it back."""
        if not alive:
            return
        self._on_settled(now, alive)
        for voter in self._log.voters:
            peer = self._around.voter_address(voter)
            if peer is not None and peer != self._me:
                self._outbox.unicast(peer, LapseSettled(tuple(sorted(alive))))

    def _on_settled(self, now: float, peers: Iterable[PeerId]) -> None:
        known = [peer for peer in peers if peer in self.ttls]
        self._attests.drop(known)
        for peer in known:
            self._since[peer] = now

    def wanted(self, now: float) -> Remove | None:
        """The removal of those a quorum of the voters has given up."""
        if not self._asked or now >= self._asked_at + SEEN_VALID_S or not self._leads():
            return None
        needed = quorum(len(self._log.voters))
        due = {peer for peer in self._asked if not self._log.is_gone(peer)}
        gone = frozenset(peer for peer in due if self._count(peer, lapsed=True) >= needed)
        heir = self._around.heir(gone) if gone else None
        return None if heir is None else Remove(tuple(sorted(gone)), heir)

    # --- messages ---

    def handle(self, now: float, source: PeerId, message: LeaseRenew | LapseQuery | LapseAnswer | LapseSettled) -> None:
        own = self._around.votes_as()
        if own is None:
            return
        match message:
            case LeaseRenew():
                self._renew(now, source, own, message)
            case LapseQuery():
                lapsed = tuple(p for p in message.peers if p in self._attests or self.has_lapsed(now, p))
                self._attests.add(now, lapsed)
                self._outbox.unicast(source, LapseAnswer(message.session, own, lapsed))
            case LapseAnswer():
                if message.session == self._session:
                    self._answers[message.voter] = frozenset(message.lapsed)
                    alive = self._renewed_elsewhere
                    self._settle(now, alive)
                    self._asked -= alive
            case LapseSettled():
                self._on_settled(now, message.peers)

    def _renew(self, now: float, source: PeerId, own: PeerId, message: LeaseRenew) -> None:
        if source in self._attests:
            if not self._attests.is_stale(now, source):
                return
            self._attests.drop((source,))
        self._since[source] = now
        self._outbox.unicast(source, LeaseAnswer(message.number, own))
