"""The mesh of one peer: links, what travels over them, and who can be reached.

Composes targets, dialling, links, records, replication and routes, and owns none of their rules. Everything leaves
through the outbox shared with the rest of the node, so it is behind whatever was persisted before.

Sign of life: one timer beats for all links. A link is silent when nothing was heard for three intervals of the sender,
at most 10 s; after a pause of our own (stopped process, suspended host) each link first gets one interval to be heard
(history *suspend*).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

import msgspec

from weavenet.core.commands import Done
from weavenet.core.config import NodeConfig
from weavenet.core.deadlines import earliest
from weavenet.core.effects import Outbox, Persist, Send
from weavenet.core.errors import Failure, InvariantBroken, RefusalCode
from weavenet.core.events import DialFailed, Event, InboundFailed, LinkClosed, LinkOpened, Received, Resolved, Tick
from weavenet.core.incarnation import PROMISES, last_incarnation, last_published, published_row
from weavenet.core.limits import (
    NEIGHBOUR_WAIT_S,
    TARGET_SETTLE_S,
)
from weavenet.core.mesh.changes import NO_CHANGES, MeshChanges
from weavenet.core.mesh.dialing import Dialer
from weavenet.core.mesh.failures import InboundFailure
from weavenet.core.mesh.greeting import outlived
from weavenet.core.mesh.links import Link, Links, LinkState
from weavenet.core.mesh.records import MalformedDelta, Origin, RecordRefused, Records
from weavenet.core.mesh.replication import Replication
from weavenet.core.mesh.reports import connection_reports, missing_targets, peer_reports, target_reports
from weavenet.core.mesh.room import Room
from weavenet.core.mesh.sessions import Sessions
from weavenet.core.mesh.shared import Shared
from weavenet.core.mesh.surroundings import Surroundings
from weavenet.core.mesh.target import Target
from weavenet.core.mesh.targets import Suppressed, TargetSet
from weavenet.core.messages import Body, MalformedMessage, Message, decode_body
from weavenet.core.messages.gossip import (
    KIND_NEIGHBOUR,
    KIND_PEER,
    LogPull,
    NeighbourRecord,
    PeerRecord,
    Prune,
    Push,
    RecordBuckets,
    RecordMarks,
    RecordPull,
    RingBuckets,
    RingDelta,
)
from weavenet.core.messages.link import Digest, Heartbeat, Hello, Refusal
from weavenet.core.messages.unicast import Routed
from weavenet.core.report import ConnectionReport, PeerReport, TargetReport
from weavenet.core.types import ZERO8, Genesis, PeerId

_neighbour_decoder = msgspec.msgpack.Decoder(NeighbourRecord)
_encoder = msgspec.msgpack.Encoder()
_PROMISE_WAIT_S = 1.0
"""Promises made within this time are published together."""


class Mesh:
    """``obligated(peer)``: its records are kept however long it is gone. ``removed(peer)``: they are refused for
    ever."""

    def __init__(  # noqa: PLR0917
        self,
        config: NodeConfig,
        disk: Mapping[tuple[str, bytes], bytes],
        outbox: Outbox,
        rng: random.Random,
        shared: Shared,
        incarnation: int,
        obligated: Callable[[PeerId], bool] = lambda peer: False,
        removed: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self.config = config
        self._outbox = outbox
        self._shared = shared
        self._links = Links()
        self._targets = TargetSet(disk, outbox, config.port)
        self._dialer = Dialer(
            config,
            outbox,
            rng,
            self._links,
            is_suppressed=self._is_suppressed,
            is_reachable=lambda peer: peer in self._routes.reachable(),
        )
        self._records = Records(
            config.peer,
            incarnation,
            obligated,
            removed,
            last=last_incarnation(disk),
            last_top=last_published(disk),
            reserve=lambda bound: outbox.persist(published_row(incarnation, bound)),
        )
        self._around = Surroundings(config, self._records, self._links, self._dialer)
        self._routes = self._around.routes
        self._replication = Replication(
            own=config.peer,
            records=self._records,
            links=self._links,
            shared=shared,
            outbox=outbox,
            rng=rng,
            on_applied=self._around.applied,
        )
        self._sessions = Sessions(
            config=config,
            incarnation=incarnation,
            outbox=outbox,
            rng=rng,
            shared=shared,
            links=self._links,
            records=self._records,
            dialer=self._dialer,
            room=Room(config, self._links, self._routes, self._dialer),
            on_greeted=lambda link: self._greeted.append(link.peer),
            on_rejected=lambda link: self._rejected.append(link.peer),
            on_up=self._up,
            on_down=self._down,
        )
        self._started_at = 0.0
        self._now = 0.0
        self._is_settled = False
        self._greeted: list[PeerId] = []
        self._rejected: list[PeerId] = []
        self._links_up: list[PeerId] = []
        self._links_down: list[PeerId] = []
        self._bodies: list[tuple[PeerId, Body]] = []
        self._targets_changed = True

    # --- the node's interface ---

    def start(self, now: float) -> None:
        self._started_at = self._now = now
        self._around.start(now)
        self._targets.start(self.config.conf_targets, self.config.launch_targets)
        self._dialer.set_targets(self._targets.active())
        self._tick(now)
        self._follow_targets(now)

    def handle(self, now: float, event: Event) -> None:
        """Whatever is due is done with any event, even with one that is not for the mesh."""
        self._now = now
        self._sessions.notice_pause(now)
        match event:
            case Resolved():
                self._dialer.resolved(now, event)
            case DialFailed():
                self._dialer.failed(now, event)
            case LinkOpened():
                self._sessions.opened(now, event)
            case LinkClosed():
                self._sessions.closed(now, event)
            case InboundFailed():
                failure = InboundFailure(now, event.host, event.port, event.code, event.sentence)
                self._sessions.failures.add(failure)
            case Received():
                link = self._links.by_id.get(event.link)
                if link is not None:
                    self._received(now, link, event.message)
        due = self.deadline()
        if due is not None and now >= due:
            self._tick(now)
        self._follow_targets(now)
        self._around.follow_reachability(now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.handle(now, Tick())

    def deadline(self) -> float | None:
        times = (
            self._dialer.deadline(),
            self._replication.deadline(),
            self._sessions.deadline(),
            self._around.deadline(),
            None if self._is_settled else self._started_at + TARGET_SETTLE_S,
        )
        return earliest(times)

    def _tick(self, now: float) -> None:
        self._dialer.tick(now)
        self._replication.tick(now)
        if self._sessions.is_due(now):
            digest = self._replication.repair.digest()
            self._sessions.tick(now, lambda link: self._replication.repair.beat(now, link, digest))
        self._around.tick(now)

    def _follow_targets(self, now: float) -> None:
        if self._dialer.has_changed:
            self._dialer.has_changed = False
            self._targets_changed = True
        if not self._is_settled and self._are_targets_tried(now):
            self._is_settled = self._targets_changed = True

    def _are_targets_tried(self, now: float) -> bool:
        return now >= self._started_at + TARGET_SETTLE_S or all(map(self._dialer.is_tried, self._dialer.aims.values()))

    @property
    def terminations(self) -> int:
        """Established links that ended since start, duplicates apart."""
        return self._sessions.terminations

    @property
    def has_news(self) -> bool:
        """Whether :meth:`take_changes` would say anything."""
        return bool(
            self._routes.has_changed
            or self._around.changed
            or self._greeted
            or self._rejected
            or self._links_up
            or self._links_down
            or self._bodies
            or self._targets_changed
        )

    def take_changes(self) -> MeshChanges:
        """What happened since the last call."""
        if not self.has_news:
            return NO_CHANGES
        topology, self._routes.has_changed = self._routes.has_changed, False
        changes = MeshChanges(
            greeted=tuple(self._greeted),
            rejected=tuple(self._rejected),
            links_up=tuple(self._links_up),
            links_down=tuple(self._links_down),
            topology=topology,
            touched=frozenset(self._routes.touched),
            records=frozenset(self._around.changed),
            bodies=tuple(self._bodies),
            targets=self._targets_changed,
        )
        self._greeted, self._rejected = [], []
        self._links_up, self._links_down, self._bodies = [], [], []
        self._around.changed.clear()
        self._routes.touched.clear()
        self._targets_changed = False
        return changes

    # --- own state to spread ---

    def publish(self, now: float, kind: int, key: bytes, body: bytes, *, wait_s: float = 0.0) -> None:
        """Publish an own record; replaces the one with equal (kind, key). It may wait ``wait_s`` for company."""
        try:
            before = self._records.put(kind, key, body)
        except RecordRefused as refusal:
            self._outbox.note("error", "records", f"not published: {refusal}")
            return
        if before is not None:
            self._replication.push_records(now, before, wait_s=wait_s)

    def mark_promises(self, now: float) -> None:
        """If this event makes promises to others durable, publish a sequence number that shows it."""
        if not self._outbox.effects:
            return
        persists = (effect for effect in self._outbox.effects if isinstance(effect, Persist))
        if any(change.table in PROMISES for persist in persists for change in persist.changes):
            before = self._records.promised(KIND_PEER, b"")
            if before is not None:
                self._replication.push_records(now, before, wait_s=_PROMISE_WAIT_S)

    def withdraw(self, now: float, kind: int, key: bytes) -> None:
        before = self._records.drop(kind, key)
        if before is not None:
            self._replication.push_records(now, before)

    def push_ring(self, now: float, delta: RingDelta) -> None:
        self._replication.push_ring(now, delta)

    def push_log(self, now: float, start: int) -> None:
        """Spread our log from index ``start`` on."""
        self._replication.push_log(now, start)

    # --- targets ---

    def connect(self, now: float, targets: Iterable[str], replace: bool) -> Failure | None:
        failure = self._targets.connect(tuple(targets), replace=replace)
        if failure is None:
            self._retarget(now)
        return failure

    def forget(self, now: float, targets: Iterable[str]) -> Done | Failure:
        """Stops reconnecting, also by discovery and after a restart; existing links stay."""
        texts = tuple(targets)
        named = [self._targets.named(text) for text in texts]
        behind = {target.text: self._behind(target) for target in named if isinstance(target, Target)}
        result = self._targets.forget(texts, behind)
        if isinstance(result, Done):
            self._retarget(now)
        return result

    def _retarget(self, now: float) -> None:
        self._dialer.set_targets(self._targets.active())
        self._targets_changed = True
        self._around.want_discovery(now)
        self._tick(now)

    def _behind(self, target: Target) -> Suppressed:
        """Addresses and peers that ``target`` is known to lead to."""
        aim = self._dialer.aims.get(target.text)
        endpoints = set(aim.addresses) if aim is not None else {(target.host, target.port or self.config.port)}
        addresses = (self._dialer.addresses.get(endpoint) for endpoint in endpoints)
        peers = {address.peer for address in addresses if address is not None and address.peer is not None}
        peers |= {link.peer for link in self._links.established() if link.listening in endpoints}
        return Suppressed(tuple(sorted(endpoints)), tuple(sorted(peers)))

    def _is_suppressed(self, host: str, port: int, peer: PeerId) -> bool:
        return any(
            peer in suppressed.peers or (host, port) in suppressed.addresses
            for suppressed in self._targets.suppressed.values()
        )

    def target_count(self) -> tuple[int, bool]:
        """(electors that the targets stand for, ourselves included; whether that is settled: each was tried once, or
        a second has passed since start)."""
        return 1 + self._dialer.electors(self._is_observer), self._is_settled

    def missing_targets(self) -> tuple[str, ...]:
        """Targets behind which no peer is connected."""
        return missing_targets(self._dialer)

    def _is_observer(self, peer: PeerId) -> bool:
        link = self._links.by_peer.get(peer)
        if link is not None and link.hello is not None:
            return not link.hello.elector
        record = self.peer_record(peer)
        return record is not None and not record.elector

    # --- views ---

    def reachable(self) -> frozenset[PeerId]:
        """Peers that a unicast can get to, ourselves included."""
        return self._routes.reachable()

    def next_hop(self, peer: PeerId) -> int | None:
        """Id of the link that leads to ``peer``."""
        neighbour = self._routes.next_peer(peer)
        link = None if neighbour is None else self._links.by_peer.get(neighbour)
        return None if link is None else link.id

    def link_host(self, peer: PeerId) -> str | None:
        """Underlay address of ``peer``: that of our established link, else one that others reach it at."""
        link = self._links.by_peer.get(peer)
        if link is not None:
            return link.host
        for record in self._around.sightings(peer):
            return record.host
        return None

    def observed_host(self, peer: PeerId) -> str:
        """Our underlay address as ``peer`` sees it; empty without a link."""
        link = self._links.by_peer.get(peer)
        return "" if link is None or link.hello is None else link.hello.observed_host

    def hosts_of(self, peer: PeerId) -> tuple[str, ...]:
        """Underlay addresses at which ``peer`` is reached, that of our own link first."""
        link = self._links.by_peer.get(peer)
        own = [] if link is None else [link.host]
        return tuple(dict.fromkeys([*own, *(record.host for record in self._around.sightings(peer))]))

    def neighbours(self, peer: PeerId) -> list[PeerId]:
        """To whom ``peer`` has a link that both ends report."""
        return self._routes.neighbours(peer)

    def link_rtt_ms(self, peer: PeerId) -> float | None:
        link = self._links.by_peer.get(peer)
        return None if link is None or link.rtt_s is None else link.rtt_s * 1000

    def established_peers(self) -> frozenset[PeerId]:
        return frozenset(self._links.by_peer)

    def greeting(self, peer: PeerId) -> Hello | None:
        """What ``peer`` said on a link that it may count as up."""
        link = self._links.by_peer.get(peer) or next(iter(self._links.of_peer(peer, LinkState.AGREED)), None)
        return None if link is None else link.hello

    def epoch_of(self, peer: PeerId) -> tuple[int, bytes]:
        """What ``peer`` said of its log when its link came up."""
        link = self._links.by_peer.get(peer)
        return (0, ZERO8) if link is None or link.hello is None else (link.hello.epoch, link.hello.epoch_id)

    def known_peers(self) -> frozenset[PeerId]:
        """Everybody whose records are held, ourselves included."""
        return frozenset(self._records.origins)

    def knows(self, peer: PeerId) -> bool:
        return peer in self._records.origins

    def incarnation(self, peer: PeerId) -> int:
        """Of the records held of ``peer`` or its link, whichever is later; 0 when unknown."""
        link = self._links.by_peer.get(peer)
        return max(self._records.mark(peer).incarnation, 0 if link is None else link.incarnation)

    def expired(self, peer: PeerId) -> bool:
        """``peer`` was gone so long that nobody remembers its records any more."""
        return self._around.expired(self._now, peer)

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]:
        held = self._records.origins.get(origin)
        return [] if held is None else held.bodies(kind)

    def others(self) -> list[Origin]:
        """What is known of each other peer."""
        return [origin for peer, origin in self._records.origins.items() if peer != self.config.peer]

    def peer_record(self, peer: PeerId) -> PeerRecord | None:
        return self._around.peer_record(peer)

    def is_genesis_wanted(self) -> bool:
        """Whether some reachable peer says that it waits for the first division of addresses, ourselves included."""
        own = self.peer_record(self.config.peer)
        return (own is not None and own.wants_genesis) or not self._around.wishing.isdisjoint(self.reachable())

    def unreachable_since(self, peer: PeerId) -> float | None:
        """None while ``peer`` is reachable; for one never heard of, since we started."""
        return self._around.unreachable_since(peer)

    def target_reports(self, now: float) -> tuple[TargetReport, ...]:
        return target_reports(now, self._dialer)

    def connection_reports(self, now: float) -> tuple[ConnectionReport, ...]:
        """The data path's fields are empty."""
        return connection_reports(now, self._links, self._dialer, self._sessions.failures, self.peer_record)

    def peer_reports(self) -> tuple[PeerReport, ...]:
        origins = sorted(self._records.origins)
        return peer_reports(origins, self._around, self._links, self.config.peer)

    # --- links ---

    def refuse_cluster(self, now: float, cluster: bytes) -> None:
        """Refuse the links into ``cluster``, admitted before it or we had a cluster."""
        own = self._shared.hello().cluster
        self._sessions.refuse_links(
            now,
            RefusalCode.CLUSTER,
            f"expected cluster {own.hex()[:12]}, found cluster {cluster.hex()[:12]}: each divided the addresses for "
            "itself; next: the next attempt to connect says which side is the smaller and what to run there",
            {link.id for link in self._links.established() if cluster == link.cluster},
        )

    @property
    def identity_ended(self) -> str:
        """Why we may not go on as this peer: one refused us as removed, or we are outlived. Else empty."""
        return self._sessions.removed_us or outlived(self._records)

    def banish(self, now: float, peers: Iterable[PeerId], *, have_left: bool = False) -> None:
        """These were removed, or left by themselves: end their links and drop their records."""
        gone = frozenset(peers)
        self._sessions.banish(now, gone, have_left=have_left)
        for peer in sorted(gone):
            self._around.banish(peer)
        self._around.follow_reachability(now)

    def _up(self, now: float, link: Link, replaced: Link | None) -> None:
        """``link`` stands for its peer now, in place of ``replaced``."""
        peer = link.peer
        if replaced is None or replaced.incarnation != link.incarnation:
            self._links_up.append(peer)
            if replaced is not None:
                self._links_down.append(peer)
        self._routes.set_linked(peer, True)
        host, port = link.listening
        record = NeighbourRecord(peer, host, port, link.outbound)
        self.publish(now, KIND_NEIGHBOUR, peer, _encoder.encode(record), wait_s=NEIGHBOUR_WAIT_S)
        self._replication.started(now, link)
        self._around.want_discovery(now)

    def _down(self, now: float, link: Link) -> None:
        self._links_down.append(link.peer)
        self._routes.set_linked(link.peer, False)
        self.withdraw(now, KIND_NEIGHBOUR, link.peer)
        self._around.want_discovery(now)

    def _received(self, now: float, link: Link, message: Message) -> None:
        match message:
            case Hello():
                link.heard_at = now
                self._sessions.greeted(now, link, message)
            case Refusal():
                self._sessions.refused(now, link, message)
            case _:
                if self._sessions.heard(now, link):
                    try:
                        self._dispatch(now, link, message)
                    except MalformedDelta as error:
                        text = f"expected sound records, found: {error}; next: upgrade the older of the two"
                        self._sessions.refuse(now, link, RefusalCode.MALFORMED, text)

    def _dispatch(self, now: float, link: Link, message: Message) -> None:
        match message:
            case Heartbeat():
                self._sessions.beaten(now, link, message)
            case Digest():
                self._replication.repair.on_digest(now, link, message)
            case Push():
                link.used_at = now
                if message.log and isinstance(message.log[0].decree, Genesis):
                    link.cluster = message.log[0].decree.cluster
                self._replication.on_push(now, link, message)
            case Prune():
                self._replication.on_prune(link)
            case LogPull():
                self._replication.repair.on_log_pull(now, link, message)
            case RingBuckets():
                self._replication.repair.on_ring_buckets(now, link, message)
            case RecordBuckets():
                self._replication.repair.on_record_buckets(now, link, message)
            case RecordMarks():
                self._replication.repair.on_record_marks(now, link, message)
            case RecordPull():
                self._replication.repair.on_record_pull(now, link, message)
            case Routed():
                self._route(now, link, message)
            case Hello() | Refusal():
                raise InvariantBroken("hellos and refusals are handled before anything is dispatched")

    def _route(self, now: float, link: Link, message: Routed) -> None:
        """Deliver or pass on. What can be neither is dropped: whoever sent it tries again."""
        link.used_at = now
        if message.source == self.config.peer:
            return
        if message.destination == self.config.peer:
            try:
                self._bodies.append((message.source, decode_body(message.body)))
            except MalformedMessage as error:
                self._outbox.note("warning", "links", f"unicast of {message.source.hex()} dropped: {error}")
            return
        hop = self.next_hop(message.destination)
        if hop is None or hop == link.id or message.hops_left < 1:
            return
        self._links.by_id[hop].used_at = now
        passed_on = Routed(message.source, message.destination, message.hops_left - 1, message.body)
        self._outbox.append(Send(hop, passed_on))

    def check(self) -> None:
        """Raises InvariantBroken."""
        self._links.check()
        self._records.check()
        self._routes.check()
        self._dialer.check()
        own = self._records.origins[self.config.peer]
        published = {_neighbour_decoder.decode(body).peer for body in own.bodies(KIND_NEIGHBOUR)}
        if published != set(self._links.by_peer):
            raise InvariantBroken("published neighbours are not the established links")
        if not self.reachable() >= published:
            raise InvariantBroken("a linked peer is not reachable")
