"""Who is who among the peers, who of them can be reached, and who casts which vote.

Answers what removals, leases, leaving and the choice of voters ask (their ``Surroundings``) from log, ring, records and
the names ever heard. A seed and the peer that stands for it count as one wherever people or votes are meant. Changes
nothing but the names it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weavenet.core.cluster import Cluster
from weavenet.core.config import NodeConfig
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.removal import Known
from weavenet.core.removal.directory import Directory
from weavenet.core.removal.naming import Named
from weavenet.core.ring import Ipam, Log, seed_owner
from weavenet.core.types import PeerId
from weavenet.core.words import absence


class Roster:
    """``is_leaving()``: this peer is about to leave. ``stand_ins()``: who has to confirm in place of the departed."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        log: Log,
        ipam: Ipam,
        cluster: Cluster,
        mesh: Mesh,
        known: Known,
        is_leaving: Callable[[], bool],
        stand_ins: Callable[[], frozenset[PeerId]],
    ) -> None:
        self._me = config.peer
        self._log = log
        self._ipam = ipam
        self._cluster = cluster
        self._mesh = mesh
        self._known = known
        self._is_leaving = is_leaving
        self._stand_ins = stand_ins
        self._directory = Directory(
            Named(config.peer, config.name, config.nickname),
            {seed_owner(name, config.seed_salt): name for name in config.seeds},
        )
        self._directory.learn(known.names())

    # --- names ---

    @property
    def me(self) -> Named:
        return self._directory.me

    @property
    def own_ids(self) -> frozenset[PeerId]:
        return frozenset(each for each in (self._me, self._ipam.seed_share.bound_as) if each is not None)

    def ids_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        return self._directory.ids_of(peer)

    def named(self, peer: PeerId) -> Named:
        return self._directory.named(self._me if peer == self._ipam.seed_share.bound_as else peer)

    def directory(self) -> list[Named]:
        return self._directory.listed(self._nameable())

    def _nameable(self) -> set[PeerId]:
        log = self._log
        kept = {*self._mesh.known_peers(), *self._known.peers, *self._ipam.ring.shares}
        return kept | {*log.electors, *log.removed, *log.departed}

    def meet(self, peer: PeerId, record: PeerRecord) -> Named:
        """What ``peer`` says of itself now."""
        return self._directory.meet(peer, record)

    def tidy(self) -> None:
        """Forget names that nobody can speak of any more, when they have become many."""
        if self._directory.is_crowded:
            self._directory.keep(self._nameable())

    def dismiss(self, gone: frozenset[PeerId], names: Mapping[PeerId, Named]) -> None:
        """``gone`` left, so they stand for no seed any more. ``names``: of everybody who left."""
        self._directory.dismiss(gone)
        self._directory.learn(names)

    # --- reach ---

    def reachable(self) -> frozenset[PeerId]:
        """Others that can be reached."""
        return self._mesh.reachable() - {self._me}

    def neighbours(self) -> frozenset[PeerId]:
        return self._mesh.established_peers()

    def is_reachable(self, peer: PeerId) -> bool:
        reachable = self._mesh.reachable()
        return peer in reachable or self._directory.stand_ins.get(peer) in reachable

    def unreachable_for(self, now: float, peer: PeerId) -> float | None:
        stand_in = self._directory.stand_ins.get(peer)
        if self.is_reachable(peer) or (stand_in is None and peer in self._directory.virtual):
            return None
        since = self._mesh.unreachable_since(stand_in or peer)
        return None if since is None else max(0.0, now - since)

    def last_seen(self, now: float, peer: PeerId) -> str:
        absent_s = self.unreachable_for(now, peer)
        return "" if absent_s is None else absence(absent_s, is_known=peer in self._mesh.known_peers())

    # --- votes ---

    def votes_as(self) -> PeerId | None:
        voters = self._log.voters
        if self._me in voters:
            return self._me
        bound = self._ipam.seed_share.bound_as
        return bound if bound in voters else None

    def voter_address(self, voter: PeerId) -> PeerId | None:
        if voter == self.votes_as():
            return self._me
        reachable = self._mesh.reachable()
        if voter in reachable:
            return voter
        peer = self._directory.stand_ins.get(voter)
        return peer if peer in reachable else None

    @property
    def is_elector(self) -> bool:
        return self._me in self._log.electors or self._ipam.seed_share.bound_as in self._log.electors

    @property
    def role(self) -> str:
        """``voter``, ``standby`` or ``member, not elector``."""
        if self.votes_as() is not None:
            return "voter"
        return "standby" if self.is_elector else "member, not elector"

    def eligible(self) -> frozenset[PeerId]:
        """Reachable peers that may vote, ourselves included; without those who vote as the seed that they stand for."""
        stays = self._cluster.is_elector_mode and not self._is_leaving()
        found = {self._me} if stays and self._ipam.seed_share.bound_as not in self._log.electors else set()
        for peer in self._mesh.reachable():
            record = self._mesh.peer_record(peer)
            if record is None or not record.elector or record.leaving:
                continue
            if record.votes_as not in self._log.electors:
                found.add(peer)
        return frozenset(found)

    # --- who takes over, who has to be waited for ---

    def heir(self, without: frozenset[PeerId]) -> PeerId | None:
        if self._ipam.may_own:
            return self._me
        reachable = self._mesh.reachable()
        addresses = (self.voter_address(elector) for elector in self._log.electors if elector not in without)
        candidates = [peer for peer in addresses if peer in reachable and peer not in without]
        return min((peer for peer in candidates if peer is not None and self._stays(peer)), default=None)

    def _stays(self, peer: PeerId) -> bool:
        record = self._mesh.peer_record(peer)
        return record is None or not record.leaving

    @property
    def witnesses(self) -> frozenset[PeerId]:
        """Everybody whose word we wait for: known and not removed, without us. Nobody is behind a seed that was never
        started."""
        confirmed = self._known.peers - self._known.unconfirmed
        peers = {*confirmed, *self._mesh.known_peers(), *self._ipam.ring.shares, *self._log.electors}
        peers |= self._stand_ins()
        without = {self._me, *self._log.removed, *self._log.departed}
        return frozenset(peers - without - self._directory.virtual - self._directory.stand_ins.keys())

    @property
    def acquaintances(self) -> frozenset[PeerId]:
        return self.witnesses | self._known.unconfirmed
