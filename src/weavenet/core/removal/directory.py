"""Peers by the names they gave themselves, and which of them stands for which seed.

Names are kept also of peers that are gone, so that people can speak of them; of those that nobody can name any more,
only some NAMES_KEPT. Does not know who is reachable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from weavenet.core.limits import NAMES_KEPT
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.removal.naming import Named
from weavenet.core.types import PeerId


class Directory:
    """``seeds``: virtual id of each seed of the configuration → its name."""

    def __init__(self, me: Named, seeds: Mapping[PeerId, str]) -> None:
        self.me = me
        self._seeds = dict(seeds)
        self._names = {me.peer: me}
        self._crowd = NAMES_KEPT
        self.stand_ins: dict[PeerId, PeerId] = {}
        """Virtual id → the peer that took that share and votes as it."""

    @property
    def virtual(self) -> frozenset[PeerId]:
        return frozenset(self._seeds)

    def learn(self, names: Mapping[PeerId, Named]) -> None:
        self._names |= names
        self.stand_ins |= {PeerId(named.votes_as): peer for peer, named in names.items() if named.votes_as}

    def meet(self, peer: PeerId, record: PeerRecord) -> Named:
        """What ``peer`` says of itself now."""
        self._names[peer] = named = Named(peer, record.name, record.nickname, record.votes_as)
        if record.votes_as:
            self.stand_ins[PeerId(record.votes_as)] = peer
        return named

    @property
    def is_crowded(self) -> bool:
        """So many names are kept that it is worth looking whose are still of use."""
        return len(self._names) > self._crowd

    def keep(self, peers: Collection[PeerId]) -> None:
        """Nobody can name any but ``peers``."""
        self._names = {peer: named for peer, named in self._names.items() if peer in peers or peer == self.me.peer}
        self._crowd = len(self._names) + NAMES_KEPT

    def dismiss(self, peers: frozenset[PeerId]) -> None:
        """These stand for no seed any more."""
        self.stand_ins = {voter: peer for voter, peer in self.stand_ins.items() if peer not in peers}

    def named(self, peer: PeerId) -> Named:
        """As it called itself when last heard of, perhaps by an earlier life of ours; without names when never. A seed
        is called like the peer that stands for it."""
        named = self._names.get(self.stand_ins.get(peer, peer))
        return named or Named(peer, self._seeds.get(peer, ""), "seed" if peer in self._seeds else "")

    def ids_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        """``peer`` and the seed that it stands for."""
        return (peer, *(voter for voter, stand_in in self.stand_ins.items() if stand_in == peer))

    def listed(self, peers: Iterable[PeerId]) -> list[Named]:
        """``peers`` with names, seeds that one of them stands for left out."""
        given = set(peers)
        hidden = {voter for voter, peer in self.stand_ins.items() if peer in given}
        return [self._names.get(peer) or Named(peer, self._seeds.get(peer, ""), "") for peer in sorted(given - hidden)]
