"""Who belongs to the cluster and who votes, after genesis: decrees, removals and what follows from them for this peer.

Composes the decree election, proposals of removal, the heir's rounds and the peers ever met, and tells mesh and data
paths what the log says about removed peers. Applying a removal is one step with learning it: links and data paths to
the removed are closed, their records dropped, before anything else of that event is looked at or confirmed.

Fencing: a peer that meets its own removal, in its log or in words of a peer whose epoch is not below its own, says
nothing any more but ``Fence``.

What this does not do: the genesis (``Founding``), stamping (ring). Who can be reached and who votes: ``Roster``.
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
from weavenet.core.lease import Leasing
from weavenet.core.leaving import Departed, Leaving
from weavenet.core.limits import ELECTORS_MAX, PENDING_REQUESTS_MAX
from weavenet.core.mesh.changes import MeshChanges
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages.gossip import KIND_LEFT
from weavenet.core.messages.lease import LapseAnswer, LapseQuery, LapseSettled, LeaseAnswer, LeaseRenew
from weavenet.core.messages.leaving import LeavingBody
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
    MembershipBody,
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
from weavenet.core.removal.naming import Named
from weavenet.core.ring import Ipam, Log
from weavenet.core.roster import Roster
from weavenet.core.types import Electors, LogEntry, PeerId
from weavenet.core.words import decree_words


class Membership:
    """``disk``: what earlier starts persisted; ``rows(table)``: those of one table, sorted."""

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
        self.reopen: set[PeerId] = set()
        """Peers whose paths were closed for want of a confirmation; the data paths hand over to them again."""
        self.withdraw: Callable[[float], str] = lambda now: ""
        """Set by ``Founding``: undo what it left outside of the cluster; what is still missing, in words."""
        self.fenced = ""
        """The reason, once this peer met its own removal."""
        self.gate = Gate(planes=planes, outbox=outbox, rng=rng)
        self.known = Known(config.peer, rows("known"), outbox)
        self.roster = roster = Roster(
            config=config,
            log=log,
            ipam=ipam,
            cluster=cluster,
            mesh=mesh,
            known=self.known,
            is_leaving=lambda: self.leaving.is_leaving,
            stand_ins=lambda: self.departed.stand_ins,
        )
        self.decrees = DecreeElection(
            me=config.peer,
            log=log,
            acceptor=DecreeAcceptor(rows("acceptor"), outbox),
            outbox=outbox,
            rng=rng,
            wanted=self._wanted,
            votes_as=roster.votes_as,
            address=roster.voter_address,
        )
        self.collect = Collect(
            me=config.peer,
            log=log,
            ipam=ipam,
            state=cluster,
            done_row=disk.get(Collect.disk_key()),
            outbox=outbox,
            rng=rng,
            known=lambda: roster.witnesses,
            reachable=mesh.reachable,
            spread=mesh.push_ring,
        )
        self.attests = Attests(rows("unseen"), outbox)
        self.removals = Removals(
            me=config.peer,
            log=log,
            collect=self.collect,
            around=roster,
            append=self.append,
            attests=self.attests,
            rows=rows("removals"),
            outbox=outbox,
            rng=rng,
        )
        self.leasing = Leasing(
            config=config,
            log=log,
            ipam=ipam,
            planes=planes,
            around=roster,
            attests=self.attests,
            rows=rows("leases"),
            outbox=outbox,
            rng=rng,
        )
        self.reconfiguration = Reconfiguration(me=config.peer, log=log, around=roster, outbox=outbox, rng=rng)
        self.departed = Departed(
            me=config.peer,
            log=log,
            rows=rows("left"),
            outbox=outbox,
            publisher=mesh,
            unreachable_for=roster.unreachable_for,
            owns_space=ipam.owns_space,
        )
        self.leaving = Leaving(
            me=roster.me,
            log=log,
            ipam=ipam,
            departed=self.departed,
            around=roster,
            duties=self,
            is_ephemeral=config.ephemeral_ttl_s > 0,
            row=disk.get(Leaving.disk_key()),
            outbox=outbox,
            rng=rng,
        )
        self.has_promised: Callable[[], bool] = lambda: False
        """Set by ``Founding``: whether we voted on a genesis."""

    # --- the node's interface ---

    def start(self, now: float) -> None:
        """Apply what an earlier life learnt and may not have finished applying."""
        self.departed.start(now)
        self.leaving.start(now)
        self.leasing.start(now)
        self.follow_log(now)

    @property
    def is_over(self) -> bool:
        """Fenced, or gone: this life only ends."""
        return bool(self.fenced) or self.leaving.is_gone

    @property
    def is_watchful(self) -> bool:
        """Something here goes on with any event, sooner than its deadline says: leaving, a lease, a word to take
        back."""
        return self.leaving.is_leaving or self.leasing.own.is_needed or bool(self.attests)

    def deadline(self) -> float | None:
        parts = (
            self.decrees,
            self.removals,
            self.gate,
            self.reconfiguration,
            self.departed,
            self.leaving,
            self.leasing,
        )
        times = [part.deadline() for part in parts]
        return earliest([*times, self.collect.deadline() if self._collects else None])

    @property
    def _collects(self) -> bool:
        """A leaver does not begin to inherit."""
        return not self.leaving.is_surrendering or self._ipam.holds

    def advance(self, now: float) -> None:
        """To be called once per settling round, after news was exchanged."""
        self.leaving.advance(now)
        if self.is_over:
            return
        self.departed.tick(now)
        if self._log.genesis is None:
            return
        self.attests.review(now, self._log.is_gone, self.roster.is_reachable)
        self.leasing.advance(now)
        self.removals.advance(now)
        self.reconfiguration.advance(now)
        self.decrees.advance(now)
        entry, self.decrees.decided = self.decrees.decided, None
        if entry is not None:
            self._outbox.note("info", "decree", f"position {entry.position.number}: {decree_words(entry)}")
            self.append(now, entry)
        self.follow_log(now)
        if self._collects:
            self.collect.advance(now)
        if self._log.departed:
            self._ipam.succeed(now)
        self.gate.tick(now)
        for peer in self.gate.overdue(now):
            self._outbox.note("warning", "removal", f"path to {peer.hex()} closed: it has not confirmed a removal")
            self._planes.close(peer)
            self._handover.forget(peer)
            self.reopen.add(peer)

    def handle(self, now: float, source: PeerId, body: MembershipBody) -> None:
        if isinstance(body, LeavingBody):
            self.leaving.handle(now, source, body)
            self.follow_log(now)
            return
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
            case StampAnswer():
                if not self.leaving.stamped(source, body):
                    self.collect.handle(now, source, body)
            case LeaseRenew() | LeaseAnswer() | LapseQuery() | LapseAnswer() | LapseSettled():
                self.leasing.handle(now, source, body)
            case AppliedQuery() | RingPull() | RingPage() | StampPage() | HoldQuery():
                self.collect.handle(now, source, body)
            case _:
                assert_never(body)

    def linked(self, changes: MeshChanges) -> None:
        """Links came up, or may have at their other end: whoever was told that we accept its hello may know of us from
        then on, whatever we hear of it (history: a leaver that took itself for alone between the two)."""
        if changes.greeted or changes.links_up:
            self._meet_linked((*changes.greeted, *changes.links_up))
        strangers = self.known.unconfirmed.intersection(changes.rejected)
        self.known.forget(strangers - self._mesh.known_peers())

    def _meet_linked(self, peers: Iterable[PeerId]) -> None:
        """One that was removed here and is let in for its greater epoch counts only when our log is replaced by its."""
        established = self._mesh.established_peers()
        for peer in peers:
            hello = self._mesh.greeting(peer)
            if hello is None or self._log.is_gone(peer):
                continue
            named = Named(peer, hello.name, hello.nickname)
            if peer not in established:
                self.known.may_be_known_to((named,))
            elif peer not in self.known.peers or peer in self.known.unconfirmed:
                self.known.meet((named,))

    def met(self, now: float, peers: Iterable[PeerId]) -> None:
        """Records of ``peers`` changed."""
        for peer in sorted(peers):
            for left in self.departed.read(peer, self._mesh.records_of(peer, KIND_LEFT)):
                if left.peer in self.roster.own_ids:
                    self.fence(now, "others know that this peer left the cluster by `weave reset`")
                self.departed.learn(now, left)
            record = self._mesh.peer_record(peer)
            if record is None:
                if self._mesh.expired(peer) and not self._ipam.owns_space(peer):
                    self.known.forget((peer,))
                    self.leasing.others.forget((peer,))
                continue
            self.known.meet((self.roster.meet(peer, record),))
            self.leasing.met(now, peer, record)
        self.roster.tidy()

    def command(self, now: float, request: int, command: RemovePeers) -> None:
        if self.leaving.is_leaving:
            expected, step = "expected a peer that stays", "run this on another host"
            self._outbox.append(Reply(request, Failure(Code.CONFLICT, expected, "it is leaving (`weave reset`)", step)))
            return
        self.removals.command(now, request, command)

    def cancel(self, now: float, request: int) -> None:
        self._consensing = [each for each in self._consensing if each != request]
        self.removals.cancel(request)
        self.leaving.cancel(now, request)

    def check(self) -> None:
        """Raises InvariantBroken when somebody removed still has a way in."""
        if self.is_over:
            return
        removed = self._log.removed.keys() | self._log.departed.keys()
        if removed & self._planes.peers:
            raise InvariantBroken("a data path to a removed peer is open")
        if removed & self.known.peers or removed & self._mesh.known_peers():
            raise InvariantBroken("a removed peer is still known")
        for peer in removed & self._mesh.established_peers():
            if peer in self._log.departed or self._mesh.epoch_of(peer) <= self._log.chain.epoch:
                raise InvariantBroken(f"a link to {peer.hex()} is up, which was removed")

    def yielded(self) -> None:
        """Our own cluster was given up for another."""
        self.decrees.forget()
        self.removals.forget()
        self.attests.forget()
        self.leasing.forget()
        self.known.forget(tuple(self.known.peers))
        self.departed.forget_all()
        self._seen_log = b""

    # --- consense ---

    @property
    def consensing(self) -> bool:
        return bool(self._consensing)

    def consense(self, request: int) -> None:
        if not self._config.ranges:
            failure = Failure(
                Code.IPAM_OFF,
                "expected an address range to divide",
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
        if not self._consensing or not self._ipam.has_ring or self._wants_to_grow() or self.leaving.is_leaving:
            return
        if self._ipam.seed_share.is_awaited:
            return
        for request in self._consensing:
            self._outbox.append(Reply(request, Done(self.roster.role)))
        self._consensing.clear()

    @property
    def wants_decree(self) -> bool:
        """Somebody here waits for the voters."""
        return self._wants_to_grow() or self.removals.is_undecided or self.reconfiguration.wanted is not None

    def _wants_to_grow(self) -> bool:
        return (
            bool(self._consensing)
            and self._log.genesis is not None
            and self._cluster.is_elector_mode
            and not self.roster.is_elector
            and not self.leaving.is_leaving
            and len(self._log.electors) < ELECTORS_MAX
        )

    def _wanted(self, now: float) -> Proposal | None:
        removal = self.removals.wanted(now) or self.leasing.others.wanted(now)
        if removal is not None:
            return removal
        without_us = self.leaving.wanted(now)
        if without_us is not None:
            return without_us
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
        """Let everything here agree with what the log says about removed peers, and with who left."""
        if self.departed.fresh:
            self._drop_departed(now)
        if self._log.hash == self._seen_log:
            return
        self._seen_log = self._log.hash
        self.decrees.follow_log()
        removed = frozenset(self._log.removed)
        gone = next((peer for peer in (self._config.peer, self._ipam.seed_share.bound_as) if peer in removed), None)
        if gone is not None:
            heir = self._log.heir(gone)
            self.fence(now, f"this peer was removed from the cluster in favour of {heir.hex()}")
            return
        fresh, taken_back = removed - self._applied, self._applied - removed
        self._applied = removed
        self._drop(now, fresh)
        self._meet_linked(sorted(taken_back))
        if fresh:
            self.departed.republish(now)
            if self._handover.unfinished - self._planes.peers:
                self.gate.shut(now, len(self._log) - 1, self._log.hash)

    def _drop_departed(self, now: float) -> None:
        fresh, self.departed.fresh = frozenset(self.departed.fresh), set()
        self._drop(now, fresh, have_left=True)
        self.roster.dismiss(fresh, self.departed.names())
        self.collect.restart()
        self.departed.republish(now)

    def _drop(self, now: float, gone: frozenset[PeerId], *, have_left: bool = False) -> None:
        """Close paths and links to ``gone``, and forget what they said."""
        for peer in sorted(gone):
            self._planes.close(peer)
            self._handover.forget(peer)
        if gone:
            self._ipam.dismiss(gone)
            self.leasing.others.forget(gone)
            self.known.forget(gone)
            self._mesh.banish(now, gone, have_left=have_left)

    def fence(self, now: float, reason: str) -> None:
        if self.leaving.is_surrendering:
            self.leaving.cut_off(now, reason)
        elif not self.fenced:
            self.fenced = reason
            self._outbox.append(Fence(reason))

    # --- who is who (see Roster) ---

    @property
    def witnesses(self) -> frozenset[PeerId]:
        return self.roster.witnesses

    def named(self, peer: PeerId) -> Named:
        return self.roster.named(peer)

    def directory(self) -> list[Named]:
        return self.roster.directory()

    # --- what is left to do here before this peer may leave (phases.Duties) ---

    @property
    def holds(self) -> bool:
        return self.collect.is_needed

    def last_one_out(self, now: float) -> str:
        return self.withdraw(now)

    def give_up_removals(self) -> None:
        self.removals.forget()
