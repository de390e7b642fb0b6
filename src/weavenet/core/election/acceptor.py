"""The durable half of Paxos: what this peer promised and accepted for one place in the decree log.

Invariant: an answer is appended to the outbox after the persist that makes it true, so it cannot leave before it is
durable. A blank store is a new acceptor under a new PeerId, never the old one with its memory lost.
"""

from __future__ import annotations

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.messages.unicast import Accept, Accepted, Nack, Prepare, Promise
from weavenet.core.types import GENESIS_POSITION, ZERO_BALLOT, Ballot, Genesis

TABLE = "acceptor"
_KEY = msgspec.msgpack.encode(GENESIS_POSITION)


class AcceptorState(msgspec.Struct, frozen=True, array_like=True):
    """As stored: the highest ballot promised, and the last proposal accepted."""

    promised: Ballot
    accepted_ballot: Ballot | None
    accepted: Genesis | None


class Acceptor:
    """Answers proposers of the genesis. ``disk_row`` is what an earlier start persisted, or None."""

    def __init__(self, disk_row: bytes | None, outbox: Outbox) -> None:
        self._outbox = outbox
        self.state = (
            AcceptorState(ZERO_BALLOT, None, None)
            if disk_row is None
            else msgspec.msgpack.decode(disk_row, type=AcceptorState)
        )

    @staticmethod
    def disk_key() -> tuple[str, bytes]:
        return TABLE, _KEY

    def prepare(self, message: Prepare, *, n: int) -> Promise | Nack:
        """``n``: how many electors we know of; the larger count wins, so that quorums are counted alike. A ballot asked
        for twice (a slow disk, a repeated message) is promised twice: its nonce makes it the same proposal."""
        if n > message.n or message.ballot < self.state.promised:
            return Nack(message.ballot, self.state.promised, n)
        self._persist(AcceptorState(message.ballot, self.state.accepted_ballot, self.state.accepted))
        return Promise(message.ballot, n, self.state.accepted_ballot, self.state.accepted)

    def accept(self, message: Accept, *, n: int) -> Accepted | Nack:
        if n > message.n or message.ballot < self.state.promised:
            return Nack(message.ballot, self.state.promised, n)
        self._persist(AcceptorState(message.ballot, message.ballot, message.value))
        return Accepted(message.ballot, n)

    def forget(self) -> None:
        """Drop all promises: only for a peer that leaves its cluster (a yielding singleton)."""
        self.state = AcceptorState(ZERO_BALLOT, None, None)
        self._outbox.persist(Change(TABLE, _KEY, None))

    def _persist(self, state: AcceptorState) -> None:
        if state == self.state:
            return
        self.state = state
        self._outbox.persist(Change(TABLE, _KEY, msgspec.msgpack.encode(state)))
