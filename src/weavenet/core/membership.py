"""Who belongs to the cluster and who votes, after genesis: decrees, removals and what follows from them for this peer.

Composes the decree election, proposals of removal, the heir's rounds and the peers ever met, and tells mesh and data
paths what the log says about removed peers. Applying a removal is one step with learning it: links and data paths to
the removed are closed, their records dropped, before anything else of that event is looked at or confirmed.

Fencing: a peer that meets its own removal, in its log or in words of a peer whose epoch is not below its own, says
nothing any more but ``Fence``.

What this does not do: the genesis (node), stamping (ring).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from weavenet.core.cluster import Cluster
from weavenet.core.commands import Done, RemovePeers
from weavenet.core.config import NodeConfig
from weavenet.core.deadlines import earliest
from weavenet.core.effects import Fence, Outbox, Reply
from weavenet.core.election import DecreeAcceptor, DecreeElection, Reconfiguration
from weavenet.core.errors import Code, Failure, InvariantBroken
from weavenet.core.limits import ELECTORS_MAX, PENDING_REQUESTS_MAX
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages import Body
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import (
    AppliedAnswer,
    AppliedQuery,
    DecreeAccept,
    DecreeAccepted,
    DecreeNack,
    DecreePrepare,
    DecreePromise,
    HoldAnswer,
    HoldQuery,
    Proposal,
    RingPage,
    RingPull,
    SeenAnswer,
    SeenQuery,
    StampAnswer,
    StampPage,
)
from weavenet.core.overlay.gate import Gate
from weavenet.core.overlay.handover import Handover
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.removal import Attests, Collect, Known, Removals
from weavenet.core.removal.naming import Known as Named
from weavenet.core.ring import Ipam, Log, seed_owner
from weavenet.core.types import Electors, LogEntry, PeerId, Remove
from weavenet.core.words import duration

MembershipBody = (
    DecreePrepare
    | DecreePromise
    | DecreeAccept
    | DecreeAccepted
    | DecreeNack
    | SeenQuery
    | SeenAnswer
    | AppliedQuery
    | AppliedAnswer
    | RingPull
    | RingPage
    | StampPage
    | StampAnswer
    | HoldQuery
    | HoldAnswer
)


class Membership:
    """``rows(table)`` are the disk's, sorted; ``get`` looks up one row."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        disk: Mapping[tuple[str, bytes], bytes],
        rows: Callable[[str], list[tuple[bytes, bytes]]],
        log: Log,
        ipam: Ipam,
        cluster: Cluster,
        mesh: Mesh,
        planes: OpenPlanes,
        handover: Handover,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._log = log
        self._ipam = ipam
        self._cluster = cluster
        self._mesh = mesh
        self._planes = planes
        self._handover = handover
        self._outbox = outbox
        self._consensing: list[int] = []
        self._applied: frozenset[PeerId] = frozenset()
        self._seen_log = b""
        self._seed_voters: dict[PeerId, PeerId] = {}
        self._names = {config.peer: Named(config.peer, config.name, config.nickname)}
        self._virtual = frozenset(seed_owner(name, config.seed_salt) for name in config.seeds)
        self.reopen: set[PeerId] = set()
        """Peers whose paths were closed for want of a confirmation; the node hands over to them again."""
        self.fenced = ""
        """The reason, once this peer met its own removal."""
        self.gate = Gate(planes=planes, outbox=outbox, rng=rng)
        self.known = Known(config.peer, rows("known"), outbox)
        self._names |= self.known.names()
        self.decrees = DecreeElection(
            me=config.peer,
            log=log,
            acceptor=DecreeAcceptor(rows("acceptor"), outbox),
            outbox=outbox,
            rng=rng,
            wanted=self._wanted,
            votes_as=self.votes_as,
            address=self.voter_address,
        )
        self.collect = Collect(
            me=config.peer,
            log=log,
            ipam=ipam,
            state=cluster,
            done_row=disk.get(Collect.disk_key()),
            outbox=outbox,
            rng=rng,
            known=lambda: self.witnesses,
            reachable=mesh.reachable,
            spread=self._spread,
        )
        self.attests = Attests(rows("unseen"), outbox)
        self.removals = Removals(
            me=config.peer,
            log=log,
            collect=self.collect,
            around=self,
            attests=self.attests,
            rows=rows("removals"),
            outbox=outbox,
            rng=rng,
        )
        self.reconfiguration = Reconfiguration(me=config.peer, log=log, around=self, outbox=outbox, rng=rng)

    # --- the node's interface ---

    def start(self, now: float) -> None:
        """Apply what an earlier life learnt and may not have finished applying."""
        self.follow_log(now)

    def deadline(self) -> float | None:
        parts = (self.decrees, self.collect, self.removals, self.gate, self.reconfiguration)
        return earliest([part.deadline() for part in parts])

    def advance(self, now: float) -> None:
        """To be called once per settling round, after news was exchanged."""
        if self._log.genesis is None or self.fenced:
            return
        self.attests.review(now, self._log.removed, self.is_reachable)
        self.removals.advance(now)
        self.reconfiguration.advance(now)
        self.decrees.advance(now)
        entry, self.decrees.decided = self.decrees.decided, None
        if entry is not None:
            self._outbox.note("info", "decree", f"position {entry.position.number}: {_words(entry)}")
            self.append(now, entry)
        self.follow_log(now)
        self.collect.advance(now)
        self.gate.tick(now)
        for peer in self.gate.overdue(now):
            self._outbox.note("warning", "removal", f"path to {peer.hex()} closed: it has not confirmed a removal")
            self._planes.close(peer)
            self._handover.forget(peer)
            self.reopen.add(peer)

    def handle(self, now: float, source: PeerId, body: MembershipBody) -> None:
        match body:
            case DecreePrepare() | DecreePromise() | DecreeAccept() | DecreeAccepted() | DecreeNack():
                self.decrees.handle(now, source, body)
            case AppliedAnswer():
                self.gate.confirmed(source, body)
                self.collect.handle(now, source, body)
            case SeenQuery() | SeenAnswer() | HoldAnswer():
                self.removals.handle(now, source, body)
                if isinstance(body, SeenAnswer):
                    self.reconfiguration.answered(body)
            case AppliedQuery() | RingPull() | RingPage() | StampPage() | StampAnswer() | HoldQuery():
                self.collect.handle(now, source, body)
            case _:
                assert_never(body)

    def met(self, peers: Iterable[PeerId]) -> None:
        """Records of ``peers`` changed."""
        for peer in sorted(peers):
            record = self._mesh.peer_record(peer)
            if record is None:
                if self._mesh.expired(peer) and not self._ipam.owns_space(peer):
                    self.known.forget((peer,))
                continue
            self._names[peer] = named = Named(peer, record.name, record.nickname)
            self.known.meet((named,))
            if record.votes_as:
                self._seed_voters[PeerId(record.votes_as)] = peer

    def command(self, now: float, request: int, command: RemovePeers) -> None:
        self.removals.command(now, request, command)

    def cancel(self, request: int) -> None:
        self._consensing = [each for each in self._consensing if each != request]
        self.removals.cancel(request)

    def check(self) -> None:
        """Raises InvariantBroken when somebody removed still has a way in."""
        if self.fenced:
            return
        removed = self._log.removed.keys()
        if removed & self._planes.peers:
            raise InvariantBroken("a data path to a removed peer is open")
        if removed & self.known.peers or removed & self._mesh.known_peers():
            raise InvariantBroken("a removed peer is still known")
        for peer in removed & self._mesh.established_peers():
            if self._mesh.epoch_of(peer) <= self._log.chain.epoch:
                raise InvariantBroken(f"a link to {peer.hex()} is up, which was removed")

    def yielded(self) -> None:
        """Our own cluster was given up for another."""
        self.decrees.forget()
        self.removals.forget()
        self.attests.forget()
        self.known.forget(tuple(self.known.peers))
        self._seen_log = b""

    # --- consense ---

    @property
    def consensing(self) -> bool:
        return bool(self._consensing)

    def consense(self, request: int) -> None:
        if not self._config.ranges:
            failure = Failure(
                Code.IPAM_OFF,
                "an address range to divide",
                'IPAM is off (--ipalloc-range "")',
                "launch with --ipalloc-range",
            )
            self._outbox.append(Reply(request, failure))
        elif len(self._consensing) >= PENDING_REQUESTS_MAX:
            text = f"at most {PENDING_REQUESTS_MAX} waiting requests"
            self._outbox.append(Reply(request, Failure(Code.BUSY, text, "", "wait for those to finish")))
        else:
            self._consensing.append(request)

    def answer_consense(self) -> None:
        """Voter or standby by a decided decree, so a quorum of the voters knows it durably."""
        if not self._consensing or not self._ipam.has_ring or self._wants_to_grow():
            return
        for request in self._consensing:
            self._outbox.append(Reply(request, Done(self.role)))
        self._consensing.clear()

    @property
    def is_elector(self) -> bool:
        return self._config.peer in self._log.electors or self._ipam.bound_as in self._log.electors

    @property
    def role(self) -> str:
        """``voter``, ``standby`` or ``member, not elector``."""
        if self.votes_as() is not None:
            return "voter"
        if self.is_elector:
            return "standby"
        return "member, not elector"

    @property
    def wants_decree(self) -> bool:
        """Somebody here waits for the voters."""
        return self._wants_to_grow() or self.removals.is_undecided or self.reconfiguration.wanted is not None

    def _wants_to_grow(self) -> bool:
        return (
            bool(self._consensing)
            and self._log.genesis is not None
            and self._cluster.is_elector_mode
            and not self.is_elector
            and len(self._log.electors) < ELECTORS_MAX
        )

    def _wanted(self, now: float) -> Proposal | None:
        removal = self.removals.wanted(now)
        if removal is not None:
            return removal
        if self._wants_to_grow():
            return Electors(tuple(sorted({*self._log.electors, self._config.peer})))
        return self.reconfiguration.wanted

    # --- what the log says ---

    def append(self, now: float, entry: LogEntry) -> None:
        number = entry.position.number
        if self._cluster.merge_log(now, number, (entry,)):
            self._mesh.push_log(now, number)
        self.follow_log(now)

    def follow_log(self, now: float) -> None:
        """Let everything here agree with what the log says about removed peers."""
        if self._log.hash == self._seen_log:
            return
        self._seen_log = self._log.hash
        self.decrees.follow_log()
        removed = frozenset(self._log.removed)
        gone = next((peer for peer in (self._config.peer, self._ipam.bound_as) if peer in removed), None)
        if gone is not None:
            heir = self._log.heir(gone)
            self.fence(f"this peer was removed from the cluster in favour of {heir.hex()}")
            return
        fresh = removed - self._applied
        self._applied = removed
        for peer in sorted(fresh):
            self._planes.close(peer)
            self._handover.forget(peer)
        if fresh:
            self.known.forget(fresh)
            self._mesh.banish(now, fresh)
            if self._handover.unfinished - self._planes.peers:
                self.gate.shut(now, len(self._log) - 1, self._log.hash)

    def fence(self, reason: str) -> None:
        if not self.fenced:
            self.fenced = reason
            self._outbox.append(Fence(reason))

    # --- what removals ask (proposal.Surroundings) ---

    def votes_as(self) -> PeerId | None:
        voters = self._log.voters
        if self._config.peer in voters:
            return self._config.peer
        bound = self._ipam.bound_as
        return bound if bound in voters else None

    def voter_address(self, voter: PeerId) -> PeerId | None:
        if voter == self.votes_as():
            return self._config.peer
        reachable = self._mesh.reachable()
        if voter in reachable:
            return voter
        peer = self._seed_voters.get(voter)
        return peer if peer in reachable else None

    def is_reachable(self, peer: PeerId) -> bool:
        reachable = self._mesh.reachable()
        return peer in reachable or self._seed_voters.get(peer) in reachable

    def unreachable_for(self, now: float, peer: PeerId) -> float | None:
        if self.is_reachable(peer) or peer in self._virtual:
            return None
        since = self._mesh.unreachable_since(peer)
        return None if since is None else max(0.0, now - since)

    def last_seen(self, now: float, peer: PeerId) -> str:
        absent_s = self.unreachable_for(now, peer)
        if absent_s is None:
            return ""
        if peer in self._mesh.known_peers():
            return f"last seen {duration(absent_s)} ago"
        return f"not seen since this daemon started {duration(absent_s)} ago"

    def named(self, peer: PeerId) -> Named:
        """As it called itself when last heard of, perhaps by an earlier life of ours; without names when never."""
        return self._names.get(peer) or Named(peer, "", "")

    def directory(self) -> list[Named]:
        owners = self._ipam.ring.shares
        peers = {*self._mesh.known_peers(), *self.known.peers, *owners, *self._log.electors, *self._log.removed}
        stand_ins = {voter: peer for voter, peer in self._seed_voters.items() if peer in peers}
        unbound = {seed_owner(name, self._config.seed_salt): name for name in self._config.seeds}
        found = []
        for peer in sorted(peers - stand_ins.keys()):
            found.append(self._names.get(peer) or Named(peer, unbound.get(peer, ""), ""))
        return found

    def ids_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        return (peer, *(voter for voter, stand_in in self._seed_voters.items() if stand_in == peer))

    def eligible(self) -> frozenset[PeerId]:
        """Reachable peers that may vote, ourselves included; without those who vote as the seed that they stand for."""
        found = {self._config.peer} if self._cluster.is_elector_mode and self._ipam.bound_as is None else set()
        for peer in self._mesh.reachable():
            record = self._mesh.peer_record(peer)
            if record is not None and record.elector and not record.votes_as:
                found.add(peer)
        return frozenset(found)

    def heir(self, without: frozenset[PeerId]) -> PeerId | None:
        if self._ipam.may_own:
            return self._config.peer
        reachable = self._mesh.reachable()
        addresses = (self.voter_address(elector) for elector in self._log.electors if elector not in without)
        candidates = [peer for peer in addresses if peer in reachable and peer not in without]
        return min((peer for peer in candidates if peer is not None), default=None)

    @property
    def witnesses(self) -> frozenset[PeerId]:
        """Everybody known who is not removed, without us. Nobody is behind a seed that was never started."""
        peers = {*self.known.peers, *self._mesh.known_peers(), *self._ipam.ring.shares, *self._log.electors}
        without = {self._config.peer, *self._log.removed, *self._virtual, *self._seed_voters}
        return frozenset(peers - without)

    def _spread(self, now: float, delta: RingDelta) -> None:
        self._mesh.push_ring(now, delta)


def is_membership(body: Body) -> bool:
    return isinstance(body, MembershipBody)


def _words(entry: LogEntry) -> str:
    match entry.decree:
        case Electors(electors=electors):
            return f"{len(electors)} electors"
        case Remove(removed=removed, heir=heir):
            return f"{', '.join(peer.hex()[:12] for peer in removed)} removed, heir {heir.hex()[:12]}"
        case _:
            return "genesis"
