"""How a big mesh behaves: no faults, many peers, few links each.

Peers form a connected random graph of about ``links`` links each (a circle plus random chords), without discovery.
Measured: virtual time until every peer knows every other; the time until all have a change made at that moment, among
all the others of a mesh that is just forming; the time until nothing is news any more; then, for single changes, the
time until all have it and the copies of it that each peer received; then the bytes of an idle minute; and this
process' memory. Data paths are left out (no planes are offered): a handover is between two peers and does not depend on
size.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from statistics import median

import msgspec

from weavenet.core.commands import Attachment, PutAttachment, Result
from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.events import Requested
from weavenet.core.messages import Message, encode
from weavenet.core.messages.gossip import KIND_ENDPOINT, Push
from weavenet.core.types import PeerId
from weavenet.sim.disk import Disk
from weavenet.sim.faults import FaultOptions
from weavenet.sim.host import Host
from weavenet.sim.network import Network
from weavenet.sim.recordlock import RecordLock
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.violation import Violation

FORM_MAX_S = 600.0
SPREAD_MAX_S = 60.0
QUIET_S = 3.0
"""Nothing is news any more when no records were pushed for so long."""
IDLE_S = 60.0


class ScaleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``changes``: single changes to spread, one after another, once the mesh has formed."""

    peers: int = 1000
    links: int = 20
    seed: int = 1
    changes: int = 10
    launch_spread_s: float = 10.0


class ScaleFigures(msgspec.Struct, frozen=True, kw_only=True):
    peers: int
    links_mean: float
    formed_s: float
    spread_forming_s: float
    quiet_s: float
    spread_median_s: float
    spread_max_s: float
    copies_per_peer: float
    messages_per_change: float
    idle_bytes_per_s_per_peer: float
    memory_kb_per_peer: float

    def text(self) -> str:
        return "\n".join(
            (
                f"peers                       {self.peers} with {self.links_mean:.1f} links each",
                f"all know all                {self.formed_s:.1f} s after the last launch",
                f"one change at that moment   {self.spread_forming_s:.2f} s",
                f"nothing is news any more    {self.quiet_s:.1f} s after the last launch",
                f"one change at all peers     {self.spread_median_s:.2f} s median, {self.spread_max_s:.2f} s worst",
                f"copies of it per peer       {self.copies_per_peer:.2f}",
                f"messages carrying it        {self.messages_per_change:.0f}",
                f"idle, sent per peer         {self.idle_bytes_per_s_per_peer:.0f} bytes/s",
                f"memory of the simulation    {self.memory_kb_per_peer:.0f} kB per peer",
            )
        )


class _CountingNetwork(Network):
    """Counts bytes while asked to, and messages that carry the records of one origin."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, options: FaultOptions) -> None:
        super().__init__(scheduler, rng, options)
        self.pushed_at = 0.0
        """When records were pushed last."""
        self.bytes_sent: int | None = None
        self.watched: PeerId | None = None
        self.copies = 0

    def send_from(self, host: Host, link: int, message: Message) -> None:
        if self.bytes_sent is not None:
            self.bytes_sent += len(encode(message)) + 4
        if isinstance(message, Push) and message.records:
            self.pushed_at = self._scheduler.now
            if self.watched is not None:
                self.copies += any(delta.origin == self.watched and delta.records for delta in message.records)
        self.send(host, link, message)


class _ScaleHost(Host):
    counting: _CountingNetwork

    def send(self, link: int, message: Message) -> None:
        self.counting.send_from(self, link, message)


class ScaleWorld:
    """Watches nothing but figures."""

    def __init__(self, options: ScaleOptions) -> None:
        self.options = options
        self.rng = random.Random(options.seed)
        self.scheduler = Scheduler()
        faults = FaultOptions(delay_min_s=0.001, delay_max_s=0.005)
        self.network = _CountingNetwork(self.scheduler, self.rng, faults)
        self.targets = self._graph()
        self.hosts: list[_ScaleHost] = []
        for index in range(options.peers):
            host = _ScaleHost(
                index,
                seed=options.seed,
                configure=self._configure,
                disk=Disk(self.scheduler, self.rng, faults),
                scheduler=self.scheduler,
                network=self.network,
                record_lock=RecordLock(self.scheduler, self.rng, faults),
                watcher=self,
                trace=None,
                codec_every=0,
                check_every=1_000_000_000,
            )
            host.counting = self.network
            self.network.add(host)
            self.hosts.append(host)

    def _graph(self) -> list[set[int]]:
        """For each host the indexes it dials: the next one of a circle, and random others."""
        peers = self.options.peers
        chosen: list[set[int]] = [set() for _ in range(peers)]
        for index in range(peers):
            if peers > 1:
                chosen[index].add((index + 1) % peers)
            # In a small mesh everybody may be linked to this one before it has dialled its share.
            linked = {index, *chosen[index], *(other for other in range(peers) if index in chosen[other])}
            while len(chosen[index]) < self.options.links / 2 and len(linked) < peers:
                other = self.rng.randrange(peers)
                if other != index and index not in chosen[other]:
                    chosen[index].add(other)
                    linked.add(other)
        return chosen

    def _configure(self, host: Host) -> NodeConfig:
        is_elector = host.index < 3
        return NodeConfig(
            peer=host.peer,
            name=host.name,
            nickname=host.label,
            mode=GenesisMode.CONSENSUS if is_elector else GenesisMode.OBSERVER,
            count=min(3, self.options.peers) if is_elector else 0,
            launch_targets=tuple(self.hosts[index].host for index in sorted(self.targets[host.index])),
            discovery=False,
            planes=(),
            local_hosts=(host.host,),
        )

    # --- Watcher: nobody looks ---

    def stepped(self, host: Host) -> None: ...
    def started(self, host: Host) -> None: ...
    def stopped(self, host: Host, *, kernel_lost: bool) -> None: ...
    def kernel_changed(self, host: Host) -> None: ...
    def vacated(self, host: Host) -> None:
        """Nobody leaves here."""

    def replied(self, host: Host, request: int, result: Result) -> None: ...

    # --- figures ---

    def run(self) -> ScaleFigures:
        options = self.options
        for host in self.hosts:
            self.scheduler.after(self.rng.random() * options.launch_spread_s, host.start)
        self.scheduler.run_until(options.launch_spread_s)
        formed_s = self._until(self._all_know_all, FORM_MAX_S, 0.5)
        spread_forming_s, _ = self._spread(0)
        self._until(lambda: self.scheduler.now > self.network.pushed_at + QUIET_S, FORM_MAX_S, 0.5)
        quiet_s = self.network.pushed_at - options.launch_spread_s
        spreads, copies = [], 0
        for change in range(1, options.changes + 1):
            taken, seen = self._spread(change)
            spreads.append(taken)
            copies += seen
        self.network.bytes_sent = 0
        self.scheduler.run_until(self.scheduler.now + IDLE_S)
        links = len(self.network.links())
        return ScaleFigures(
            peers=options.peers,
            links_mean=links / options.peers,
            formed_s=formed_s,
            spread_forming_s=spread_forming_s,
            quiet_s=quiet_s,
            spread_median_s=median(spreads),
            spread_max_s=max(spreads),
            copies_per_peer=copies / options.changes / options.peers,
            messages_per_change=copies / options.changes,
            idle_bytes_per_s_per_peer=self.network.bytes_sent / IDLE_S / options.peers,
            memory_kb_per_peer=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / options.peers,
        )

    def _spread(self, change: int) -> tuple[float, int]:
        """Put one attachment somewhere; virtual time until everybody has its record, and messages that carried it."""
        host = self.hosts[self.rng.randrange(len(self.hosts))]
        self.network.watched, self.network.copies = host.peer, 0
        attachment = Attachment(f"c{change}", "c", bytes([2, 0, 0, 0, 0, change]), (), ("10.32.0.9/12",), False, True)
        before = len(self._endpoints(self.hosts[0], host.peer))
        host.deliver(Requested(change + 1, PutAttachment(attachment)))
        wanted = before + 1
        taken = self._until(
            lambda: all(len(self._endpoints(each, host.peer)) >= wanted for each in self.hosts), SPREAD_MAX_S, 0.01
        )
        self.scheduler.run_until(self.scheduler.now + 2.0)
        return taken, self.network.copies

    def _endpoints(self, host: Host, origin: PeerId) -> list[bytes]:
        return [] if host.node is None else host.node.mesh.records_of(origin, KIND_ENDPOINT)

    def _all_know_all(self) -> bool:
        wanted = {host.peer for host in self.hosts}
        return all(host.node is not None and host.node.mesh.reachable() == wanted for host in self.hosts)

    def _until(self, reached: Callable[[], bool], within_s: float, every_s: float) -> float:
        began = self.scheduler.now
        while not reached():
            if self.scheduler.now - began > within_s:
                raise Violation("liveness", f"{self.options.peers} peers did not agree within {within_s:.0f} s")
            self.scheduler.run_until(self.scheduler.now + every_s)
        return self.scheduler.now - began


def run_scale(options: ScaleOptions) -> ScaleFigures:
    """Raises Violation when the mesh does not form or a change does not reach everybody."""
    return ScaleWorld(options).run()
