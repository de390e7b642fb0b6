"""How a peer takes part in the genesis: whom it would vote with, when it proposes, what it does with the outcome.

The decision itself is :mod:`weavenet.core.election`, by votes or with ``lock=`` by the lock; here is what that needs to
know of the mesh, and who wants a ring.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from weavenet.core.cluster import Cluster
from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.effects import Outbox
from weavenet.core.election import Acceptor, Electorate, GenesisElection, LockedGenesis
from weavenet.core.events import RecordOffered
from weavenet.core.membership import Membership
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages.unicast import Accept, Accepted, Nack, Prepare, Promise
from weavenet.core.ring import Ipam, Log, genesis_entry
from weavenet.core.types import Genesis, PeerId

Ballots = Prepare | Promise | Accept | Accepted | Nack


class Founding:
    """``disk``: what earlier starts persisted. ``locked`` is there with ``lock=`` only, and decides then."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        disk: Mapping[tuple[str, bytes], bytes],
        electorate: Electorate,
        log: Log,
        ipam: Ipam,
        cluster: Cluster,
        mesh: Mesh,
        membership: Membership,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._electorate = electorate
        self._log = log
        self._ipam = ipam
        self._cluster = cluster
        self._mesh = mesh
        self._membership = membership
        self._outbox = outbox
        self._rng = rng
        self.election = GenesisElection(
            me=config.peer,
            electorate=electorate,
            acceptor=Acceptor(disk.get(Acceptor.disk_key()), outbox),
            outbox=outbox,
            rng=rng,
            draft=self._draft,
        )
        self._wanted_since: float | None = None
        membership.withdraw = self.withdraw
        self.locked = None if config.mode is not GenesisMode.LOCK else self._by_lock(disk)
        membership.has_promised = lambda: (
            self.election.has_promised or (self.locked is not None and self.locked.has_drafted)
        )

    def _by_lock(self, disk: Mapping[tuple[str, bytes], bytes]) -> LockedGenesis:
        return LockedGenesis(
            url=self._config.lock,
            authority=self._config.seed_salt,
            expected_ranges=self._config.ranges if self._config.range_explicit else (),
            draft_row=disk.get(LockedGenesis.disk_key()),
            outbox=self._outbox,
            draft=self._draft,
        )

    def _draft(self, electors: tuple[PeerId, ...]) -> Genesis:
        return Genesis(self._rng.randbytes(16), self._cluster.ranges, electors, electors)

    def deadline(self) -> float | None:
        """When :meth:`advance` is wanted at the latest."""
        if self._log.genesis is None:
            return (self.locked or self.election).deadline()
        return self.locked.deadline() if self.locked is not None and self._is_stranded() else None

    def wanted_for(self, now: float) -> float:
        """Seconds that somebody, here or elsewhere, has been waiting for the ring."""
        return 0.0 if self._wanted_since is None else max(0.0, now - self._wanted_since)

    @property
    def is_wanted(self) -> bool:
        """Somebody here waits for the ring."""
        return (
            self._log.genesis is None
            and self._cluster.may_found
            and (self._membership.consensing or self._ipam.needs_genesis)
        )

    def is_wanted_elsewhere(self) -> bool:
        """Some reachable peer waits for the ring; an observer can start the election that way."""
        return self._mesh.is_genesis_wanted()

    def known_electors(self) -> tuple[PeerId, ...]:
        """Reachable peers that would vote on a genesis, ourselves included if we would."""
        electors = {self._config.peer} if self._cluster.is_elector_mode else set()
        for peer in self._mesh.reachable():
            record = self._mesh.peer_record(peer)
            if record is not None and record.elector:
                electors.add(peer)
        return tuple(sorted(electors))

    def _settled(self, electors: tuple[PeerId, ...]) -> frozenset[PeerId]:
        """Those that announce how many electors they count."""
        records = ((peer, self._mesh.peer_record(peer)) for peer in electors)
        return frozenset(peer for peer, record in records if record is not None and record.settled_n)

    def meet(self, origins: frozenset[PeerId]) -> None:
        """The records of ``origins`` are new or have changed."""
        if self._log.genesis is not None or not self._cluster.is_elector_mode:
            return
        for peer in sorted(origins):
            record = self._mesh.peer_record(peer)
            if record is not None and record.elector:
                self._electorate.met(peer)
                self._electorate.heard(record.settled_n, peer)

    @property
    def _may_vote(self) -> bool:
        return self._log.genesis is None and self._cluster.is_elector_mode and self._cluster.may_found

    def handle(self, now: float, source: PeerId, body: Ballots) -> None:
        """One message of the election."""
        if self._may_vote and self.locked is None:
            self.election.handle(now, source, body)
            self._conclude(now, self.election.decided)

    def offered(self, now: float, event: RecordOffered) -> None:
        """The lock's answer."""
        if self.locked is not None:
            self.locked.handle(now, event)

    def withdraw(self, now: float) -> str:
        """The last member leaves: what is still missing until the lock is free for a new cluster, or an empty text."""
        genesis = self._log.genesis
        return "" if self.locked is None or genesis is None else self.locked.withdraw(now, genesis.cluster)

    def forget(self) -> None:
        """Our own cluster was given up for another."""
        self.election.forget()
        if self.locked is not None:
            self.locked.forget()

    def advance(self, now: float) -> None:
        """Propose, or go on proposing, where that is wanted."""
        if not self._may_vote:
            if self.locked is not None and self._log.genesis is not None:
                self.locked.settle()
                self._watch_lock(now, self.locked, self._log.genesis)
            if self._log.genesis is None:
                self._note_wanted(now)
            return
        wanted = self._note_wanted(now)
        if self.locked is not None:
            electorate = self._electorate
            self.locked.advance(
                now, wanted=wanted, electors=self.known_electors(), n=electorate.n, settled=electorate.settled
            )
            self._conclude(now, self.locked.decided)
            return
        if wanted or self.election.deadline() is not None:
            electors = self.known_electors()
            self.election.advance(now, wanted=wanted, electors=electors, settled=self._settled(electors))
            self._conclude(now, self.election.decided)

    def _is_stranded(self) -> bool:
        """The record came from the lock, nobody in it was ever met, and nothing was done with it."""
        genesis = self._log.genesis
        if genesis is None or self._ipam.used or self._membership.leaving.is_leaving:
            return False
        known, mesh, me = self._membership.known.peers, self._mesh, self._config.peer
        return not any(peer == me or peer in known or mesh.knows(peer) for peer in {*genesis.electors, *genesis.owners})

    def _watch_lock(self, now: float, locked: LockedGenesis, genesis: Genesis) -> None:
        if not self._is_stranded():
            locked.watch(now, None)
            return
        locked.watch(now, genesis.cluster)
        if locked.is_superseded:
            self._cluster.give_up(now)

    def _note_wanted(self, now: float) -> bool:
        wanted = self.is_wanted or self.is_wanted_elsewhere()
        if not wanted:
            self._wanted_since = None
        elif self._wanted_since is None:
            self._wanted_since = now
        return wanted

    def _conclude(self, now: float, genesis: Genesis | None) -> None:
        if genesis is None or self._log.genesis is not None:
            return
        self._outbox.note("info", "election", f"cluster {genesis.cluster.hex()[:12]}: {len(genesis.electors)} electors")
        self._cluster.merge_log(now, 0, (genesis_entry(genesis),))
        if self.locked is not None or len(self._mesh.reachable()) > 1:
            self._cluster.enrol()
        self._mesh.push_log(now, 0)
