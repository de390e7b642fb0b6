"""One peer: the composition of mesh, ring, election and overlay behind a single ``handle(now, event) -> effects``.

Invariants: sub-cores share one outbox, so their effects have one order, and a driver that obeys the rule in
``weavenet.core.effects`` never shows state that a crash could take back. After each event the parts are run until none
has news for another (:meth:`Node._settle`).

What this does not do: I/O, clocks, randomness of its own. Drivers: ``weavenet.runtime`` and ``weavenet.sim``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import assert_never

import msgspec

from weavenet.core import reporting
from weavenet.core.census import Census, containers_of
from weavenet.core.cluster import Cluster
from weavenet.core.commands import (
    AddName,
    Allocate,
    Attachments,
    Claim,
    Command,
    Connect,
    Consense,
    Destroyed,
    Died,
    Done,
    Explain,
    Forget,
    GetReport,
    ListAttachments,
    Lookup,
    LookupName,
    PutAttachment,
    Release,
    RemoveAttachment,
    RemoveName,
    RemovePeers,
    Reset,
    Revived,
    Vacated,
)
from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.datapaths import DataPaths
from weavenet.core.deadlines import earliest
from weavenet.core.effects import (
    Effect,
    Fence,
    Outbox,
    Persist,
    Reply,
    Send,
    SetBlocked,
    SetPlane,
    SetSleeve,
    Unicast,
)
from weavenet.core.election import Electorate, GenesisElection
from weavenet.core.errors import InvariantBroken
from weavenet.core.events import (
    Cancelled,
    Event,
    PlaneTraffic,
    ProbeReceived,
    RecordOffered,
    Requested,
    SleeveReported,
    WireguardReported,
)
from weavenet.core.explaining import explain
from weavenet.core.founding import Founding
from weavenet.core.incarnation import incarnation_row, next_incarnation
from weavenet.core.limits import BALLOT_ROUND_MAX, ROUTE_HOPS_MAX
from weavenet.core.membership import Membership
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.messages import Body, encode
from weavenet.core.messages.gossip import KIND_PEER, PeerRecord
from weavenet.core.messages.unicast import (
    Accept,
    Accepted,
    HandoverDone,
    HandoverOffer,
    HandoverPage,
    HandoverPull,
    Nack,
    Prepare,
    Promise,
    Routed,
    SpaceDenied,
    SpaceGrant,
    SpaceRequest,
    highest_round,
)
from weavenet.core.names import Names
from weavenet.core.overlay.endpoints import Endpoints
from weavenet.core.overlay.handover import Handover
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.paths import Paths
from weavenet.core.quiet import concerns_only_client, may_be_quiet
from weavenet.core.removal import rejoin_of
from weavenet.core.report import NodeReport
from weavenet.core.ring import Ipam, Log, Ring, genesis_entry, seed_genesis
from weavenet.core.types import PeerId

Disk = Mapping[tuple[str, bytes], bytes]
"""(table, key) → value: everything ever persisted and not deleted."""

_SETTLE_ROUNDS_MAX = 1000
"""Parts that keep making news for each other within one event are a programming error."""


def _rows(disk: Disk, table: str) -> list[tuple[bytes, bytes]]:
    return sorted((key, value) for (name, key), value in disk.items() if name == table)


class Node:
    """``disk`` is what earlier starts persisted; ``rng`` must be seeded differently at each start."""

    def __init__(self, config: NodeConfig, disk: Disk, rng: random.Random) -> None:
        rejoin = rejoin_of(disk)
        if rejoin is not None and config.ranges:  # its containers' addresses are of the cluster's range
            config = msgspec.structs.replace(config, ranges=rejoin.ranges, first_start=False)
        self.config = config
        self._outbox = Outbox()
        self.incarnation = next_incarnation(disk, rng)

        self._electorate = Electorate(me=config.peer, given=config.count, disk=disk, outbox=self._outbox)
        self.log = Log(_rows(disk, "log"), self._outbox)
        self.ipam = Ipam(config, self.log, disk, self._outbox, rng, self.incarnation)
        self.cluster = Cluster(
            config=config,
            log=self.log,
            ipam=self.ipam,
            enrolled_row=disk.get(Cluster.disk_key()),
            outbox=self._outbox,
            settled_n=lambda: self._electorate.announced,
            on_genesis=self._on_genesis,
            on_yield=self._on_yield,
            rejoin=rejoin,
        )
        self.mesh = Mesh(
            config, disk, self._outbox, rng, self.cluster, self.incarnation, self._is_obligated, self._is_removed
        )
        self.endpoints = Endpoints(_rows(disk, "attachments"), self._outbox, self.mesh)
        self.names = Names(
            config.peer, config.dns_domain, _rows(disk, "names"), self._outbox, self.endpoints, self.mesh
        )
        self.handover = Handover(state=self.cluster, outbox=self._outbox, rng=rng)
        self.planes = OpenPlanes(_rows(disk, "planes"), self._outbox)
        self.paths = Paths(outbox=self._outbox, rng=rng)
        self.membership = Membership(
            config=config,
            disk=disk,
            rows=lambda table: _rows(disk, table),
            log=self.log,
            ipam=self.ipam,
            cluster=self.cluster,
            mesh=self.mesh,
            planes=self.planes,
            handover=self.handover,
            outbox=self._outbox,
            rng=rng,
        )
        self.founding = Founding(
            config=config,
            disk=disk,
            electorate=self._electorate,
            log=self.log,
            ipam=self.ipam,
            cluster=self.cluster,
            mesh=self.mesh,
            membership=self.membership,
            outbox=self._outbox,
            rng=rng,
        )
        self.datapaths = DataPaths(
            config=config,
            mesh=self.mesh,
            ipam=self.ipam,
            membership=self.membership,
            endpoints=self.endpoints,
            handover=self.handover,
            planes=self.planes,
            paths=self.paths,
            outbox=self._outbox,
            is_obligated=self._is_obligated,
        )
        self.cluster.census = self._census
        self._said: tuple[object, ...] = ()
        """What of the record about ourselves may change, as published."""
        self._deadline: float | None = None
        self._others_due: float | None = None
        """As far as it is not mesh or heartbeats that want it."""
        self._is_restless = True
        """The last round did something, so that another may, too."""
        self._blocked: tuple[tuple[str, str], ...] = ()

    # --- the driver's interface ---

    def start(self, now: float) -> list[Effect]:
        """First effects: the new incarnation, and the data paths and filters of the previous start, unchanged."""
        self._outbox.persist(incarnation_row(self.incarnation))
        self.membership.start(now)
        if self.membership.is_over:
            return self._last(now)
        self._blocked = self.ipam.blocked()
        if self._blocked:
            self._outbox.append(SetBlocked(self._blocked))
        self.datapaths.start(now)
        if self.config.mode is GenesisMode.SEED and self.log.genesis is None and self.cluster.may_found:
            genesis = seed_genesis(self.config.seeds, self.config.ranges, self.config.seed_salt)
            self.cluster.merge_log(now, 0, (genesis_entry(genesis),))
        if self.config.first_start:
            self.ipam.allow_binding(now)
        self.ipam.start(now)
        self.mesh.start(now)
        self.endpoints.set_blocked(now, self._blocked)
        self.endpoints.start(now)
        self._settle(now)
        return self._lower()

    def handle(self, now: float, event: Event) -> list[Effect]:
        """One event at ``now`` (seconds, never less than before) to its effects, in order."""
        if self.membership.is_over:
            return self._last(now)
        self.membership.leasing.look_at_clock(now)
        is_quiet = may_be_quiet(event)
        match event:
            case Requested():
                was_used = self.ipam.used
                self._command(now, event.request, event.command)
                is_quiet = concerns_only_client(event.command, self._outbox.effects) and was_used == self.ipam.used
                self._others_due = earliest((self._others_due, self.ipam.deadline()))
            case Cancelled():
                self.ipam.cancel(event.request)
                self.membership.cancel(now, event.request)
            case ProbeReceived():
                self.paths.received(now, event.mac, event.nonce, event.is_answer)
            case PlaneTraffic():
                self.paths.traffic(now)
            case SleeveReported():
                self.datapaths.sleeve_reported(now, event.status)
            case WireguardReported():
                self.datapaths.wireguard_reported(now, event.keys, event.port)
            case RecordOffered():
                self.founding.offered(now, event)
            case _:
                self.mesh.handle(now, event)
        if not (is_quiet and self._is_at_rest(now)):
            self._settle(now)
        return self._lower()

    def deadline(self) -> float | None:
        """When ``handle(now, Tick())`` is wanted at the latest; None: only events matter."""
        return self.membership.leaving.end_at if self.membership.is_over else self._deadline

    def check(self) -> None:
        """Raise InvariantBroken when the state of any part is not sound."""
        self.mesh.check()
        self.ipam.check()
        self.membership.check()
        self.names.check()
        if self.cluster.is_singleton and self.ipam.used:
            raise InvariantBroken("a used cluster of one must not count as a singleton")

    # --- views for checkers, metrics and tests ---

    @property
    def ring(self) -> Ring:
        return self.ipam.ring

    @property
    def electorate(self) -> Electorate:
        return self._electorate

    @property
    def election(self) -> GenesisElection:
        return self.founding.election

    # --- commands ---

    def _command(self, now: float, request: int, command: Command) -> None:
        match command:
            case Allocate() | Claim() | Release() | Lookup():
                self.ipam.command(now, request, command)
            case Died():
                self.endpoints.died(now, command.ident)
                self.ipam.command(now, request, command)
            case Revived():
                self.endpoints.revived(command.ident)
                self.ipam.command(now, request, command)
            case Destroyed():
                if command.remembered is not None:
                    self.endpoints.put(now, command.remembered)
                else:
                    self.endpoints.remove(now, command.ident)
                self.ipam.command(now, request, command)
            case PutAttachment():
                failure = self.names.register(command.attachment.ident, command.name) if command.name else None
                if failure is None:
                    self.endpoints.put(now, command.attachment)
                    self.datapaths.use_changed()
                self._outbox.append(Reply(request, failure or Done()))
            case RemoveAttachment():
                self.endpoints.remove(now, command.ident)
                self._outbox.append(Reply(request, Done()))
            case ListAttachments():
                self._outbox.append(Reply(request, Attachments(self.endpoints.all())))
            case AddName() | RemoveName():
                self._outbox.append(Reply(request, self.names.command(command)))
            case LookupName():
                self._outbox.append(Reply(request, self.names.lookup(command.name)))
            case Connect():
                failure = self.mesh.connect(now, command.targets, command.replace)
                self._outbox.append(Reply(request, failure or Done()))
            case Forget():
                self._outbox.append(Reply(request, self.mesh.forget(now, command.targets)))
            case Consense():
                self.membership.consense(request)
            case RemovePeers():
                self.membership.command(now, request, command)
            case Reset():
                self.membership.leaving.command(now, request, command)
            case Vacated():
                self.endpoints.clear(now)
                self.membership.leaving.vacated(now, request)
            case Explain():
                self._outbox.append(Reply(request, explain(self, now, command.source, command.target)))
            case GetReport():
                self._outbox.append(Reply(request, self.report(now, with_names=command.with_names)))
            case _:
                assert_never(command)

    def report(self, now: float, *, with_names: bool = True) -> NodeReport:
        return reporting.node_report(self, now, with_names=with_names)

    # --- settling: each part sees what the others did ---

    def _is_at_rest(self, now: float) -> bool:
        """After an event of mesh or heartbeats alone, or a command that was answered at once: whether nothing is new or
        due for any other part."""
        is_due = self._others_due is not None and now >= self._others_due
        if is_due or self._is_restless or self.membership.is_watchful:
            return False
        due = self.paths.deadline()
        if due is not None and now >= due:
            self.paths.tick(now)
        mesh_due = self.mesh.deadline()
        if mesh_due is not None and now >= mesh_due:
            self.mesh.tick(now)
            mesh_due = self.mesh.deadline()
        if self.mesh.has_news or self.paths.changed or self.mesh.identity_ended:
            return False
        self._deadline = earliest((self._others_due, mesh_due, self.paths.deadline()))
        return self._deadline is None or now < self._deadline

    def _settle(self, now: float) -> None:
        self._come_to_rest(now, is_due=self._deadline is not None and now >= self._deadline)
        self._find_deadline()
        if self._deadline is not None and now >= self._deadline:  # the event made something due at once
            self._come_to_rest(now, is_due=True)
            self._find_deadline()

    def _come_to_rest(self, now: float, *, is_due: bool) -> None:
        for _ in range(_SETTLE_ROUNDS_MAX):
            before = len(self._outbox.effects)
            if is_due:
                self._run_due(now)
            self.founding.advance(now)
            self.membership.advance(now)
            is_due = self._exchange_news(now)
            if not is_due:
                break
        else:
            raise InvariantBroken("the parts of a node never came to rest within one event")
        self.membership.answer_consense()
        self._publish_peer_record(now)
        self.datapaths.settle(now)
        blocked = self.ipam.blocked()
        if blocked != self._blocked:
            self._blocked = blocked
            self._outbox.append(SetBlocked(blocked))
            self.endpoints.set_blocked(now, blocked)
        self.names.advance(now)
        self.mesh.mark_promises(now)
        self.datapaths.lower(now)
        self._is_restless = len(self._outbox.effects) > before

    def _run_due(self, now: float) -> None:
        for part in (self.ipam, self.handover, self.paths, self.endpoints, self.mesh):
            due = part.deadline()
            if due is not None and now >= due:
                part.tick(now)

    def _find_deadline(self) -> None:
        parts = (self.ipam, self.handover, self.endpoints, self.membership, self.founding, self.names)
        self._others_due = earliest([part.deadline() for part in parts])
        self._deadline = earliest((self._others_due, self.mesh.deadline(), self.paths.deadline()))

    def _exchange_news(self, now: float) -> bool:
        self.membership.follow_log(now)
        if self.mesh.identity_ended:
            self.membership.fence(now, self.mesh.identity_ended)
        changes = self.mesh.take_changes()
        for peer in changes.links_up:
            self.paths.kick(now, peer)
        self.membership.linked(changes)
        if changes.targets:
            count, settled = self.mesh.target_count()
            self._electorate.count_targets(count, settled)
        if changes.topology or changes.links_up or changes.links_down:
            self.ipam.set_reachable(now, self.mesh.reachable())
        if changes.topology or changes.records:
            self.founding.meet(changes.records)
            self.membership.met(now, changes.records)
            self.names.met(changes.records)
        for source, body in changes.bodies:
            self._on_body(now, source, body)
        self.datapaths.follow(now, changes)
        self._refuse_foreign(now)
        self.membership.follow_log(now)
        delta = self.ipam.take_delta()
        while delta is not None:
            self.mesh.push_ring(now, delta)
            delta = self.ipam.take_delta()
        return bool(changes)

    def _on_body(self, now: float, source: PeerId, body: Body) -> None:
        if self.log.is_gone(source):
            return  # a removed peer's words count nowhere, whichever way they came
        if highest_round(body) > BALLOT_ROUND_MAX:
            return  # counting cannot have reached it, and one above it would not fit on the wire
        match body:
            case Prepare() | Promise() | Accept() | Accepted() | Nack():
                self.founding.handle(now, source, body)
            case SpaceRequest() | SpaceGrant() | SpaceDenied():
                self.ipam.body(now, source, body)
            case HandoverOffer() | HandoverPull() | HandoverPage() | HandoverDone():
                self.handover.handle(now, source, body)
                self.membership.follow_log(now)
            case _:
                self.membership.handle(now, source, body)

    # --- genesis ---

    def _on_genesis(self, now: float) -> None:
        """The cluster record is durable from here on; counting electors is over. A path that was agreed on before
        anybody had a record says nothing about who ends up in which cluster, so each is handed over anew."""
        self._electorate.forget()
        self.membership.reopen |= self.mesh.reachable() - {self.config.peer}
        self.datapaths.restart()

    def _on_yield(self, now: float) -> None:
        self.founding.forget()
        self._electorate.forget()
        self.membership.yielded()
        self.datapaths.restart()

    def _refuse_foreign(self, now: float) -> None:
        """A link that was admitted before either side had a cluster, and now leads into another one."""
        if not self.cluster.foreign or not self.cluster.id:
            return
        for cluster in sorted(self.cluster.foreign):
            self.mesh.refuse_cluster(now, cluster)
        self.cluster.foreign.clear()

    def _census(self) -> Census:
        containers = containers_of(self.mesh.others())
        return Census(self.ipam.active + containers, len(self.membership.witnesses) + 1, len(self.log.electors))

    def _is_removed(self, peer: PeerId) -> bool:
        return self.log.is_gone(peer)

    def _is_obligated(self, peer: PeerId) -> bool:
        """Peers that own addresses are remembered however long they are gone."""
        return self.ipam.owns_space(peer)

    def _publish_peer_record(self, now: float) -> None:
        is_elector = self.cluster.is_elector_mode and self.cluster.may_found
        settled_n = self._electorate.announced if self.log.genesis is None else 0
        wants_genesis, votes_as = self.founding.is_wanted, self.ipam.seed_share.bound_as or b""
        is_leaving = self.membership.leaving.is_leaving
        said = (is_elector, settled_n, wants_genesis, votes_as, is_leaving)
        if said == self._said:
            return
        self._said = said
        record = PeerRecord(
            name=self.config.name,
            nickname=self.config.nickname,
            software=self.config.software,
            elector=is_elector,
            settled_n=settled_n,
            wants_genesis=wants_genesis,
            port=self.config.port,
            mtu=self.config.mtu,
            planes=self.config.planes,
            votes_as=votes_as,
            trusts=self.config.trusted_subnets,
            leaving=is_leaving,
            ttl_s=self.config.ephemeral_ttl_s,
        )
        self.mesh.publish(now, KIND_PEER, b"", msgspec.msgpack.encode(record))

    # --- lowering ---

    def _last(self, now: float) -> list[Effect]:
        """What a node whose life is over still does."""
        self.membership.leaving.last_effects(now)
        return self._lower()

    def _lower(self) -> list[Effect]:
        """One event's effects as drivers get them: what goes to disk, then filters and data paths, then what others
        see. So a confirmation never overtakes the filter or the closed path that it stands for."""
        durable: list[Effect] = []
        filters: list[Effect] = []
        planes: list[Effect] = []
        shown: list[Effect] = []
        for effect in self._outbox.drain():
            match effect:
                case Send():
                    shown.append(effect)
                case Persist() | Fence():
                    durable.append(effect)
                case Unicast():
                    link = self.mesh.next_hop(effect.destination)
                    if link is not None:
                        body = encode(effect.body)
                        shown.append(Send(link, Routed(self.config.peer, effect.destination, ROUTE_HOPS_MAX, body)))
                case SetBlocked():
                    filters.append(effect)
                case SetPlane() | SetSleeve():
                    planes.append(effect)
                case _:
                    shown.append(effect)
        return durable if self.membership.fenced else durable + filters + planes + shown
