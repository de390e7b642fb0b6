"""Whom this peer has ever met: everybody whose confirmation an heir must wait for.

Records of others are memory only, so without this an heir that restarts could forget a peer that is cut off and holds a
grant of the removed one, and release the hold without it. Names are kept along, so that people can speak of a peer that
was already gone when everybody else was started anew, and the seed that it stands for, so that this one goes with it.
Durable, one row per peer, written when a record of it that says something else about these is taken in; dropped when
the peer is removed, or was gone so long that its records expired everywhere.

Does not know whether somebody is reachable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import PEERS_MAX
from weavenet.core.removal.naming import Known as Named
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import Label, PeerId

TABLE = "known"


class Known:
    """``rows`` are those of table ``known``. Beyond PEERS_MAX nobody is added; the records refuse such peers too."""

    def __init__(self, me: PeerId, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._me = me
        self._outbox = outbox
        self._named = {PeerId(key): _decode(PeerId(key), value) for key, value in rows}
        self.peers = set(self._named)

    def names(self) -> dict[PeerId, Named]:
        """Of everybody whose names were ever heard."""
        return {peer: named for peer, named in self._named.items() if named.name}

    def meet(self, met: Iterable[Named]) -> None:
        fresh = [named for named in met if named.peer != self._me and self._named.get(named.peer) != named]
        room = PEERS_MAX - len(self.peers)
        for named in fresh:
            if named.peer not in self.peers:
                if room <= 0:
                    continue
                room -= 1
            self.peers.add(named.peer)
            self._named[named.peer] = named
            self._outbox.persist(Change(TABLE, named.peer, _encode(named)))

    def forget(self, peers: Iterable[PeerId]) -> None:
        gone = [peer for peer in sorted(peers) if peer in self.peers]
        self.peers.difference_update(gone)
        for peer in gone:
            del self._named[peer]
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in gone))


class Row(msgspec.Struct, frozen=True, array_like=True):
    """As stored."""

    name: Label
    nickname: Label
    votes_as: Annotated[bytes, msgspec.Meta(max_length=16)] = b""


_decoder = msgspec.msgpack.Decoder(Row)


def _encode(named: Named) -> bytes:
    return msgspec.msgpack.encode(Row(named.name, named.nickname, named.votes_as))


def _decode(peer: PeerId, row: bytes) -> Named:
    """Raises WeaveError for a row that was not written here."""
    try:
        stored = _decoder.decode(row)
    except msgspec.DecodeError as error:
        raise unreadable_row(TABLE, peer, str(error)) from error
    return Named(peer, stored.name, stored.nickname, stored.votes_as)
