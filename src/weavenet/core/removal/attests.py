"""What this voter has said of others in writing: "I do not see X" (spec 04b, "Durable before").

A row is durable before the word leaves, so that a voter which restarts knows whom it has spoken against. It ends when X
is removed or has left by itself, or when X is there again and nobody has asked about it for ATTEST_KEPT_S. The word is
binding for leases only: whoever has said it renews none for X until that is settled. For any other peer a later answer
may differ, and the proposer asks again before it proposes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import ATTEST_KEPT_S
from weavenet.core.types import PeerId

TABLE = "unseen"


class Attests:
    """``rows`` are those of table ``unseen``: one per peer."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._outbox = outbox
        self._asked_at: dict[PeerId, float | None] = {PeerId(key): None for key, _ in rows}

    def __len__(self) -> int:
        return len(self._asked_at)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._asked_at

    def add(self, now: float, peers: Iterable[PeerId]) -> None:
        """Somebody asked about ``peers``, and is about to be told that we do not see them."""
        for peer in peers:
            if peer not in self._asked_at:
                self._outbox.persist(Change(TABLE, peer, b""))
            self._asked_at[peer] = now

    def drop(self, peers: Iterable[PeerId]) -> None:
        """It is settled, one way or the other."""
        gone = [peer for peer in sorted(peers) if peer in self._asked_at]
        for peer in gone:
            del self._asked_at[peer]
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in gone))

    def forget(self) -> None:
        """This peer gave up its cluster for another."""
        self.drop(tuple(self._asked_at))

    def is_stale(self, now: float, peer: PeerId) -> bool:
        """Nobody has asked about ``peer`` for long."""
        asked_at = self._asked_at.get(peer)
        if asked_at is None and peer in self._asked_at:
            asked_at = self._asked_at[peer] = now  # an earlier start said it; the asker may be about to ask again
        return asked_at is not None and now >= asked_at + ATTEST_KEPT_S

    def review(self, now: float, is_gone: Callable[[PeerId], bool], is_back: Callable[[PeerId], bool]) -> None:
        """Drop what is settled."""
        if self._asked_at:
            self.drop(
                [peer for peer in self._asked_at if is_gone(peer) or (self.is_stale(now, peer) and is_back(peer))]
            )
