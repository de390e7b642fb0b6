"""Whom this peer has ever met: everybody whose confirmation an heir must wait for.

Records of others are memory only, so without this an heir that restarts could forget a peer that is cut off and holds a
grant of the removed one, and release the hold without it. Durable, one row per peer, written when a first record of it
is taken in; dropped when the peer is removed, or was gone so long that its records expired everywhere.

Does not know whether somebody is reachable.
"""

from __future__ import annotations

from collections.abc import Iterable

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import PEERS_MAX
from weavenet.core.types import PeerId

TABLE = "known"


class Known:
    """``rows`` are those of table ``known``. Beyond PEERS_MAX nobody is added; the records refuse such peers too."""

    def __init__(self, me: PeerId, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._me = me
        self._outbox = outbox
        self.peers = {PeerId(key) for key, _ in rows}

    def meet(self, peers: Iterable[PeerId]) -> None:
        fresh = [peer for peer in sorted(peers) if peer != self._me and peer not in self.peers]
        fresh = fresh[: max(0, PEERS_MAX - len(self.peers))]
        self.peers.update(fresh)
        self._outbox.persist(*(Change(TABLE, peer, b"1") for peer in fresh))

    def forget(self, peers: Iterable[PeerId]) -> None:
        gone = [peer for peer in sorted(peers) if peer in self.peers]
        self.peers.difference_update(gone)
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in gone))
