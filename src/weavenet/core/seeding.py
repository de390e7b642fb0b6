"""When a seed with a blank store may take its share (spec "IPAM: ring, electors, decrees", Genesis: *lost-disk-seed*).

A blank store may be a lost one: the share was taken and given out in an earlier life, and only others know. So it takes
the share after it merged the rings of a majority of the seeds that have taken theirs, as those rings and everybody's
records say, or of every other seed. One that took its share may have been cut off since before our earlier life
(history *seed-that-slept*: it vouched, and the share had been granted on). A seed that is blank itself proves nothing
alone: it may have lost its disk too, or was removed and fenced (history *two-blank-seeds*: both bound, one of them a
share that had been granted on).

A handover that finished before the other seed took its share says nothing about what that seed learnt until then, so
it is repeated once.

What this does not do: stamp the share (``Ipam.allow_binding``), run handovers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.types import PeerId


class Seeding:
    """``record(peer)`` is what the mesh knows of a peer."""

    def __init__(self, config: NodeConfig, record: Callable[[PeerId], PeerRecord | None]) -> None:
        self._record = record
        self._others = frozenset(config.seeds) - {config.name}
        self._is_seed = config.mode is GenesisMode.SEED and config.name in config.seeds
        self._blank: dict[PeerId, str] = {}
        """Seeds handed over with before they had taken their share, and their names."""
        self._vouchers: dict[PeerId, str] = {}
        """The ids as which seeds vote that had taken it, and their names."""
        self._met: set[PeerId] = set()
        """Peers that are other seeds, handed over with or not."""

    def handed_over(self, peers: Iterable[PeerId]) -> None:
        """We and each of ``peers`` hold each other's ring now."""
        if not self._is_seed:
            return
        for peer in peers:
            record = self._record(peer)
            if record is None or record.name not in self._others:
                continue
            if record.votes_as:
                self._vouchers[PeerId(record.votes_as)] = record.name
            else:
                self._blank[peer] = record.name

    @property
    def has_met_seeds(self) -> bool:
        return bool(self._vouchers or self._blank)

    def is_enough(self, takers: frozenset[PeerId]) -> bool:
        """Our share may be taken. ``takers``: as which those vote that have taken a seed's share, by log and ring."""
        known = takers.union(*(self._votes_as(peer) for peer in self._met))
        if 2 * len(known & self._vouchers.keys()) > len(known):
            return True
        return bool(self._others) and self._others.issubset({*self._blank.values(), *self._vouchers.values()})

    def meet(self, origins: Iterable[PeerId]) -> frozenset[PeerId]:
        """Their records changed. Those of them whose handover counts only when it is done again."""
        if not self._is_seed:
            return frozenset()
        for peer in origins:
            record = self._record(peer)
            if record is not None and record.name in self._others:
                self._met.add(peer)
        again = frozenset(peer for peer in origins if peer in self._blank and self._votes_as(peer))
        for peer in again:
            del self._blank[peer]
        return again

    def _votes_as(self, peer: PeerId) -> frozenset[PeerId]:
        """The seed whose share it has taken, if it has and is not gone."""
        record = self._record(peer)
        return frozenset() if record is None or not record.votes_as else frozenset({PeerId(record.votes_as)})
