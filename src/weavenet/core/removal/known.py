"""Whom this peer has ever met: everybody whose confirmation an heir must wait for.

Records of others are memory only, so without this an heir that restarts could forget a peer that is cut off and holds a
grant of the removed one, and release the hold without it. Names are kept along, so that people can speak of a peer that
was already gone when everybody else was started anew, and the seed that it stands for, so that this one goes with it.
Durable, one row per peer, written when a record of it that says something else about these is taken in; dropped when
the peer is removed, or was gone so long that its records expired everywhere.

An *unconfirmed* one was only told that we accept its hello: it may wait for our word from then on, so we leave with a
word to it. We do not wait for its word: it may not have heard of us at all, and leave without one.

Does not know whether somebody is reachable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import PEERS_MAX
from weavenet.core.removal.naming import Named
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import Label, PeerId

TABLE = "known"


class Known:
    """``rows`` are those of table ``known``. Beyond PEERS_MAX nobody is added; the records refuse such peers too."""

    def __init__(self, me: PeerId, rows: Collection[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._me = me
        self._outbox = outbox
        self._named = {PeerId(key): _decode(PeerId(key), value) for key, value in rows}
        self.peers = set(self._named)
        self.unconfirmed = {PeerId(key) for key, value in rows if not _row(PeerId(key), value).confirmed}
        """Of these, the ones who may know of us, and are not known to."""

    def names(self) -> dict[PeerId, Named]:
        """Of everybody whose names were ever heard."""
        return {peer: named for peer, named in self._named.items() if named.name}

    def meet(self, met: Iterable[Named]) -> None:
        """They know of us, or others know of them."""
        self._meet([named for named in met if self._named.get(named.peer) != named or named.peer in self.unconfirmed])

    def may_be_known_to(self, peers: Iterable[Named]) -> None:
        """Those of ``peers`` who are not known yet are unconfirmed."""
        fresh = [named for named in peers if named.peer not in self.peers]
        self._meet(fresh, is_confirmed=False)

    def _meet(self, met: Iterable[Named], *, is_confirmed: bool = True) -> None:
        fresh = [named for named in met if named.peer != self._me]
        room = PEERS_MAX - len(self.peers)
        for named in fresh:
            if named.peer not in self.peers:
                if room <= 0:
                    continue
                room -= 1
            self.peers.add(named.peer)
            self._named[named.peer] = named
            if is_confirmed:
                self.unconfirmed.discard(named.peer)
            else:
                self.unconfirmed.add(named.peer)
            self._outbox.persist(Change(TABLE, named.peer, _encode(named, is_confirmed=is_confirmed)))

    def forget(self, peers: Iterable[PeerId]) -> None:
        gone = [peer for peer in sorted(peers) if peer in self.peers]
        self.peers.difference_update(gone)
        self.unconfirmed.difference_update(gone)
        for peer in gone:
            del self._named[peer]
        self._outbox.persist(*(Change(TABLE, peer, None) for peer in gone))


class Row(msgspec.Struct, frozen=True, array_like=True):
    """As stored."""

    name: Label
    nickname: Label
    votes_as: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    confirmed: bool = True


_decoder = msgspec.msgpack.Decoder(Row)


def _encode(named: Named, *, is_confirmed: bool) -> bytes:
    return msgspec.msgpack.encode(Row(named.name, named.nickname, named.votes_as, is_confirmed))


def _row(peer: PeerId, row: bytes) -> Row:
    """Raises WeaveError for a row that was not written here."""
    try:
        return _decoder.decode(row)
    except msgspec.DecodeError as error:
        raise unreadable_row(TABLE, peer, str(error)) from error


def _decode(peer: PeerId, row: bytes) -> Named:
    stored = _row(peer, row)
    return Named(peer, stored.name, stored.nickname, stored.votes_as)
