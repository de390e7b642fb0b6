"""The underlay: hosts, TCP-like links between them, and frames of the data path.

A link is two ordered streams. A message takes a random time; a lost packet stalls everything behind it; a partition
holds a stream until it heals or the sender's kernel gives up, which ends the link without telling the other side (its
own silence timer, or the reset that answers its next message, will). Nothing arrives twice or out of order on a link;
``Routed`` messages alone may be lost, repeated or overtaken, as relays and reconnects do to them.

Reachability is directed: ``blocked`` holds the pairs (from, to) that nothing passes; a suspended host neither sends nor
receives. Names are resolved by the table ``names``.

Does not know what messages mean.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from weavenet.core.events import (
    DialFailed,
    DialOutcome,
    Event,
    LinkClosed,
    LinkOpened,
    ProbeReceived,
    Received,
    Resolved,
)
from weavenet.core.limits import CONNECT_TIMEOUT_S
from weavenet.core.messages import Message
from weavenet.core.messages.unicast import Routed
from weavenet.core.types import PeerId, plane_mac
from weavenet.sim.faults import FaultOptions
from weavenet.sim.scheduler import Scheduler

_GIVE_UP_MIN_S, _GIVE_UP_MAX_S = 5.0, 20.0
"""A kernel retransmits into silence for this long before it ends a connection (the product sets TCP_USER_TIMEOUT)."""
_FIRST_EPHEMERAL_PORT = 32_768


class Station(Protocol):
    """A host as the network sees it. ``life`` changes whenever the process on it is replaced."""

    index: int
    host: str
    port: int
    life: int
    is_running: bool
    is_paused: bool
    peer: PeerId
    name: str

    def deliver(self, event: Event) -> None: ...
    def sees_plane_of(self, peer: PeerId) -> bool:
        """Whether the data path accepts frames of ``peer``."""
        ...


class _Closing:
    """In-stream end of a link: whoever reads it has read everything before it."""

    __slots__ = ("sentence",)

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence


class _End:
    """One side of a link; ``held`` is what it sent that waits for a partition to heal."""

    __slots__ = ("arrives_at", "held", "id", "is_open", "life", "other", "station")

    def __init__(self, station: Station, link: int) -> None:
        self.station = station
        self.id = link
        self.life = station.life
        self.is_open = True
        self.held: deque[Message | _Closing] = deque()
        self.arrives_at = 0.0
        self.other: _End = self


class Network:
    def __init__(self, scheduler: Scheduler, rng: random.Random, options: FaultOptions) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self.options = options
        self.stations: list[Station] = []
        self._by_host: dict[str, Station] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.suspended: set[int] = set()
        self._ends: list[dict[int, _End]] = []
        self._next_link = 0
        self._next_port = _FIRST_EPHEMERAL_PORT
        self.messages_sent = 0
        self.vxlan_passes: Callable[[int, int], bool] = self.passes
        self.intercept: Callable[[Station, Message], bool] | None = None
        """Scenarios only: sees every message as it is sent; False loses it."""

    def add(self, station: Station) -> None:
        self.stations.append(station)
        self._by_host[station.host] = station
        self._ends.append({})

    # --- reachability ---

    def passes(self, source: int, destination: int) -> bool:
        if source == destination:
            return True
        if self.suspended and (source in self.suspended or destination in self.suspended):
            return False
        return (source, destination) not in self.blocked

    def block(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.blocked.update(pairs)

    def unblock(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.blocked.difference_update(pairs)
        self.flush()

    def flush(self) -> None:
        """Retransmit what was held and passes now."""
        for ends in self._ends:
            for end in list(ends.values()):
                if end.held and self.passes(end.station.index, end.other.station.index):
                    held, end.held = end.held, deque()
                    for item in held:
                        self._schedule(end, item, self._rng.random() * 0.2)

    # --- names and dials ---

    def resolve(self, station: Station, target: str) -> None:
        rng, options = self._rng, self.options
        delay = rng.uniform(0.0005, 0.01)
        is_name = target.partition(":")[0] not in self._by_host
        if is_name and options.resolve_failure_probability and rng.random() < options.resolve_failure_probability:
            event = Resolved(target, (), "temporary failure in name resolution")
        else:
            host, _, port = target.partition(":")
            hosts = self.names.get(host, (host,) if host in self._by_host else ())
            number = int(port) if port else station.port
            event = Resolved(target, tuple((each, number) for each in hosts), "" if hosts else "no such host")
        self._to(station, delay, event)

    def dial(self, station: Station, dial: int, host: str, port: int) -> None:
        rng, options = self._rng, self.options
        target = self._by_host.get(host)
        delay = self._delay() + self._delay()
        if target is None or target.port != port:
            self._to(station, delay, DialFailed(dial, DialOutcome.UNREACHABLE, f"no route to {host}"))
        elif target is station:
            self._to(station, delay, DialFailed(dial, DialOutcome.SELF, "our own certificate"))
        elif options.dial_failure_probability and rng.random() < options.dial_failure_probability:
            self._to(station, delay, DialFailed(dial, DialOutcome.UNREACHABLE, "connection reset"))
        else:
            self._scheduler.after(delay, self._connect, station, station.life, dial, target)

    def _connect(self, station: Station, life: int, dial: int, target: Station) -> None:
        if station.life != life:
            return
        here, there = station.index, target.index
        if not (self.passes(here, there) and self.passes(there, here)) or (target.is_running and target.is_paused):
            self._to(station, CONNECT_TIMEOUT_S, DialFailed(dial, DialOutcome.TIMEOUT, "no answer in 4 s"))
            return
        if not target.is_running:
            self._to(station, self._delay(), DialFailed(dial, DialOutcome.UNREACHABLE, "connection refused"))
            return
        ours, theirs = self._pair(station, target)
        now = self._scheduler.now
        opened_at = now + self._delay() + self._delay()
        theirs.arrives_at = max(theirs.arrives_at, opened_at)
        event = LinkOpened(ours.id, dial, target.peer, target.name, target.host, target.port)
        self._scheduler.at(opened_at, self._arrive_event, ours, event)
        accepted_at = opened_at + self._delay()
        ours.arrives_at = max(ours.arrives_at, accepted_at)
        self._next_port += 1
        accepted = LinkOpened(theirs.id, None, station.peer, station.name, station.host, self._next_port)
        self._scheduler.at(accepted_at, self._arrive_event, theirs, accepted)

    def _pair(self, station: Station, target: Station) -> tuple[_End, _End]:
        self._next_link += 2
        ours, theirs = _End(station, self._next_link), _End(target, self._next_link + 1)
        ours.other, theirs.other = theirs, ours
        self._ends[station.index][ours.id] = ours
        self._ends[target.index][theirs.id] = theirs
        return ours, theirs

    # --- links ---

    def send(self, station: Station, link: int, message: Message) -> None:
        end = self._ends[station.index].get(link)
        if end is None:
            return
        self.messages_sent += 1
        if self.intercept is not None and not self.intercept(station, message):
            return
        options, rng = self.options, self._rng
        if isinstance(message, Routed):
            if options.routed_loss_probability and rng.random() < options.routed_loss_probability:
                return
            if options.routed_duplicate_probability and rng.random() < options.routed_duplicate_probability:
                self._stray(end, message)
            if options.routed_reorder_probability and rng.random() < options.routed_reorder_probability:
                self._stray(end, message)
                return
        if options.break_probability and rng.random() < options.break_probability:
            self.break_link(end.station.index, link)
            return
        self._put(end, message)

    def inject(self, station: Station, target: Station, message: Message) -> None:
        """A message that took a detour reaches ``target`` over its link with ``station`` now."""
        for end in self._ends[station.index].values():
            if end.other.station is target and end.other.is_open:
                self._put(end, message)
                return

    def close(self, station: Station, link: int, sentence: str) -> None:
        """What was sent is still delivered, then the other side reads the end."""
        end = self._ends[station.index].get(link)
        if end is None:
            return
        self._put(end, _Closing(sentence))
        self._shut(end)
        self._to(station, 0.0001, LinkClosed(link, None, "closed by us"))

    def break_link(self, index: int, link: int) -> None:
        """A connection reset in the middle: both sides notice, what was under way is gone."""
        end = self._ends[index].get(link)
        if end is None:
            return
        for side in (end, end.other):
            if side.is_open:
                self._shut(side)
                self._to(side.station, self._delay(), LinkClosed(side.id, None, "connection reset"))

    def drop_links(self, index: int, *, silently: bool) -> None:
        """The process at ``index`` ended. ``silently``: with its whole host, so that nobody is told."""
        for end in list(self._ends[index].values()):
            if not silently:
                self._put(end, _Closing("connection closed"))
            self._shut(end)
            if silently:
                end.held.clear()

    def links(self) -> list[tuple[int, int]]:
        """(host index, link) of each open end, in a stable order."""
        return [(index, link) for index, ends in enumerate(self._ends) for link in sorted(ends)]

    def _shut(self, end: _End) -> None:
        end.is_open = False
        self._ends[end.station.index].pop(end.id, None)

    def _put(self, end: _End, item: Message | _Closing) -> None:
        source, destination = end.station.index, end.other.station.index
        if end.held or not self.passes(source, destination):
            if not end.held:
                give_up = self._rng.uniform(_GIVE_UP_MIN_S, _GIVE_UP_MAX_S)
                self._scheduler.after(give_up, self._give_up, end, item)
            end.held.append(item)
            return
        stall = 0.0
        if self.options.stall_probability and self._rng.random() < self.options.stall_probability:
            stall = self._rng.random() * self.options.stall_max_s
        self._schedule(end, item, stall)

    def _schedule(self, end: _End, item: Message | _Closing, extra_s: float) -> None:
        at = self._scheduler.now + self._delay() + extra_s
        if at <= end.arrives_at:
            at = end.arrives_at + 1e-7
        end.arrives_at = at
        self._scheduler.at(at, self._arrive, end, item)

    def _give_up(self, end: _End, item: Message | _Closing) -> None:
        if not end.held or end.held[0] is not item:
            return
        end.held.clear()
        if end.is_open:
            self._shut(end)
            self._to(end.station, 0.0, LinkClosed(end.id, None, "connection timed out"))

    def _arrive(self, end: _End, item: Message | _Closing) -> None:
        other = end.other
        if not self.passes(end.station.index, other.station.index):
            # Cut off under way: the sender's kernel retransmits it after the partition.
            if end.is_open or isinstance(item, _Closing):
                if not end.held:
                    self._scheduler.after(_GIVE_UP_MAX_S, self._give_up, end, item)
                end.held.append(item)
            return
        if not other.is_open:
            self._reset(end)
        elif isinstance(item, _Closing):
            self._shut(other)
            other.station.deliver(LinkClosed(other.id, None, item.sentence))
        else:
            other.station.deliver(Received(other.id, item))

    def _reset(self, end: _End) -> None:
        """The other side no longer knows this link: its kernel answers with a reset, if that gets through."""
        if end.is_open and self.passes(end.other.station.index, end.station.index):
            self._shut(end)
            self._to(end.station, self._delay(), LinkClosed(end.id, None, "connection reset"))

    def _arrive_event(self, end: _End, event: LinkOpened) -> None:
        if end.station.life == end.life:
            end.station.deliver(event)

    def _stray(self, end: _End, message: Message) -> None:
        """A copy that took another way: it comes when it comes."""
        self._scheduler.after(self._rng.random() * self.options.routed_reorder_max_s, self._arrive_stray, end, message)

    def _arrive_stray(self, end: _End, message: Message) -> None:
        other = end.other
        if other.is_open and self.passes(end.station.index, other.station.index):
            other.station.deliver(Received(other.id, message))

    # --- the data path ---

    def probe(self, station: Station, peer: PeerId, nonce: int, is_answer: bool) -> None:
        """A frame to the plane of ``peer``: may be lost, doubled or overtaken; both planes must be open."""
        rng, options = self._rng, self.options
        if not station.sees_plane_of(peer):
            return
        if options.probe_loss_probability and rng.random() < options.probe_loss_probability:
            return
        copies = 1
        if options.probe_duplicate_probability and rng.random() < options.probe_duplicate_probability:
            copies = 2
        event = ProbeReceived(plane_mac(station.peer), nonce, is_answer)
        for _ in range(copies):
            self._scheduler.after(self._delay(), self._arrive_probe, station, peer, event)

    def _arrive_probe(self, source: Station, peer: PeerId, event: ProbeReceived) -> None:
        for station in self.stations:
            if station.peer == peer:
                if self.vxlan_passes(source.index, station.index) and station.sees_plane_of(source.peer):
                    station.deliver(event)
                return

    # --- shared ---

    def _delay(self) -> float:
        options = self.options
        return options.delay_min_s + self._rng.random() * (options.delay_max_s - options.delay_min_s)

    def _to(self, station: Station, delay_s: float, event: Event) -> None:
        self._scheduler.after(delay_s, self._deliver_if_alive, station, station.life, event)

    def _deliver_if_alive(self, station: Station, life: int, event: Event) -> None:
        if station.life == life:
            station.deliver(event)
