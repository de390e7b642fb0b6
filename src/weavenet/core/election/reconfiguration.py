"""Which voters the cluster should have, so that it can decide without anybody asking for that: growing, and replacing
those that are gone.

- Two more are reachable that may vote (electors of the log that stand by, or peers that are none yet): they are added,
  up to VOTERS_MAX; the number of voters stays odd, since one more would only raise the quorum.
- A voter that a quorum of the voters has not seen for VOTER_ABSENT_S is no elector any more. Somebody who stands by
  takes its place; without anybody, the voters shrink by two, but never below VOTERS_MIN by themselves. It keeps what it
  owns, and may be added again when it is back.
- An elector that has left by `weave reset` is none any more, at once. Mostly it saw to that itself; but it may have
  been made one on the other side of a partition while it left (history *elector-that-left*).

Only the first voter in the log's order that can be reached proposes, so that they do not compete. What it sees decides
nothing about safety: who voted when is a matter of the log alone. Memory only; looked at every VOTERS_CHECK_S.

What this does not do: decide (``DecreeElection``), remove peers.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Protocol

from weavenet.core.effects import Outbox
from weavenet.core.election.electorate import quorum
from weavenet.core.limits import (
    GROW_AFTER_S,
    SEEN_VALID_S,
    VOTER_ABSENT_S,
    VOTERS_CHECK_S,
    VOTERS_MAX,
    VOTERS_MIN,
)
from weavenet.core.messages.unicast import SeenAnswer, SeenQuery
from weavenet.core.ring.log import Chain, Log
from weavenet.core.types import Electors, PeerId


class Surroundings(Protocol):
    """What the choice of voters needs to know of the rest of the node."""

    def eligible(self) -> frozenset[PeerId]:
        """Peers that are reachable and may vote, ourselves included."""
        ...

    def unreachable_for(self, now: float, peer: PeerId) -> float | None: ...

    def votes_as(self) -> PeerId | None: ...

    def voter_address(self, voter: PeerId) -> PeerId | None: ...


def next_electors(
    chain: Chain, *, present: Collection[PeerId], eligible: Collection[PeerId], gone: Collection[PeerId]
) -> tuple[PeerId, ...] | None:
    """The electors to decree on top of ``chain``, or None when its voters are as they should be. ``present``: electors
    that can be reached; ``eligible``: peers that may become electors; ``gone``: voters nobody expects back soon."""
    kept = [voter for voter in chain.voters if voter not in gone]
    standby = sorted(set(chain.electors) & set(present) - set(chain.voters), key=lambda e: (chain.admitted[e], e))
    newcomers = sorted(set(eligible) - set(chain.electors) - chain.removed.keys())
    candidates = [*kept, *standby, *newcomers]
    size = min(VOTERS_MAX, len(candidates))
    size -= 1 - size % 2
    if size < min(len(chain.voters), VOTERS_MIN) if len(kept) < len(chain.voters) else size <= len(chain.voters):
        return None
    chosen = set(candidates[:size])
    electors = (set(chain.electors) - set(gone)) | chosen
    while True:
        after = chain.with_decree(chain.next_position, Electors(tuple(sorted(electors)))).voters
        older = set(after) - chosen  # stands by out of reach, and would vote before those chosen
        if not older:
            return tuple(sorted(electors))
        electors -= older


class Reconfiguration:
    """Watches the voters, and holds the decree that is due."""

    def __init__(self, *, me: PeerId, log: Log, around: Surroundings, outbox: Outbox, rng: random.Random) -> None:
        self._me = me
        self._log = log
        self._around = around
        self._outbox = outbox
        self._rng = rng
        self._check_at = 0.0
        self._wish: tuple[PeerId, ...] | None = None
        self._wish_log = b""
        self._wished_since = 0.0
        self._is_due = False
        self._absent: frozenset[PeerId] = frozenset()
        self._session = 0
        self._asked_at = float("-inf")
        self._answers: dict[PeerId, frozenset[PeerId]] = {}

    def deadline(self) -> float | None:
        return None if self._log.genesis is None or self._around.votes_as() is None else self._check_at

    @property
    def wanted(self) -> Electors | None:
        """To be decreed now."""
        if not self._is_due or self._wish is None or self._wish_log != self._log.hash:
            return None
        return Electors(self._wish)

    def advance(self, now: float) -> None:
        due = self.deadline()
        if due is None or now < due:
            return
        self._check_at = now + VOTERS_CHECK_S
        wish, is_replacement = self._choose(now) if self._leads() else (None, False)
        if wish != self._wish or self._wish_log != self._log.hash:
            self._wish, self._wish_log, self._wished_since = wish, self._log.hash, now
        self._is_due = wish is not None and (is_replacement or now >= self._wished_since + GROW_AFTER_S)

    def _leads(self) -> bool:
        first = next((peer for voter in self._log.voters if (peer := self._around.voter_address(voter))), None)
        return first == self._me

    def _choose(self, now: float) -> tuple[tuple[PeerId, ...] | None, bool]:
        around = self._around
        left = next((elector for elector in self._log.electors if elector in self._log.departed), None)
        if left is not None and len(self._log.electors) > 1:
            return tuple(elector for elector in self._log.electors if elector != left), True
        present = [peer for peer in self._log.electors if around.voter_address(peer) is not None]
        gone = self._gone(now)
        wish = next_electors(self._log.chain, present=present, eligible=around.eligible(), gone=gone)
        return wish, bool(gone)

    # --- who is gone ---

    def _gone(self, now: float) -> frozenset[PeerId]:
        """Voters that a quorum has not seen for long. Asks the others when we have not."""
        around = self._around
        times = {voter: around.unreachable_for(now, voter) for voter in self._log.voters}
        absent = frozenset(voter for voter, absent_s in times.items() if (absent_s or 0.0) >= VOTER_ABSENT_S)
        if absent != self._absent or now >= self._asked_at + SEEN_VALID_S:
            self._absent, self._answers = absent, {}
            self._session, self._asked_at = self._rng.getrandbits(62), now
        own = around.votes_as()
        if not absent or own is None:
            return frozenset()
        self._answers[own] = frozenset()
        for voter in self._log.voters:
            peer = around.voter_address(voter)
            if voter not in self._answers and peer is not None and peer != self._me:
                query = SeenQuery(self._session, tuple(sorted(absent)), int(VOTER_ABSENT_S))
                self._outbox.unicast(peer, query)
        needed = quorum(len(self._log.voters))
        answers = [seen for voter, seen in self._answers.items() if voter in self._log.voters]
        return frozenset(voter for voter in absent if sum(voter not in seen for seen in answers) >= needed)

    def answered(self, answer: SeenAnswer) -> None:
        """Of whichever question; those of others are ignored."""
        if answer.session == self._session:
            self._answers[answer.voter] = frozenset(answer.seen)
            self._check_at = 0.0  # perhaps that was a quorum
