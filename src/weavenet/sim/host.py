"""A machine: what outlives the process on it (disk, kernel state, clock), and how the process dies and comes back.

The kernel's data path and filters stay when only the daemon dies (containers keep talking), and are gone after a
reboot. A lost disk brings a new key, hence a new peer on the same address.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from weavenet.core.commands import Result, Vacated
from weavenet.core.config import NodeConfig
from weavenet.core.effects import NameRecord, PlanePeer, VxlanUse
from weavenet.core.events import Event, Requested, Tick
from weavenet.core.leaving import departed_disk
from weavenet.core.messages import Message
from weavenet.core.node import Node
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.removal.fence import fenced_disk
from weavenet.core.types import PeerId
from weavenet.sim.disk import Disk
from weavenet.sim.driver import Departed, Driver, Fenced, ProcessDied, node_seed
from weavenet.sim.network import Network
from weavenet.sim.recordlock import RecordLock
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.sleeve import Worker
from weavenet.sim.trace import Trace
from weavenet.sim.tunnel import Device

WAKE_LATENCY_S = 0.0002
"""A timer that is due comes this much later at the earliest, as in any event loop."""


VACATE_S = 0.005
"""Taking containers off the network takes this long."""
VACATED_REQUEST = -1
"""Of the command by which that is reported; clients count from 1."""
FENCE_PAUSE_S = 0.3
"""Making a new key and certificates takes this long."""


def sim_peer_id(index: int, generation: int) -> PeerId:
    """The identity made on the ``generation``-th blank disk of host ``index``."""
    return PeerId(hashlib.sha256(f"simulated key {index} {generation}".encode()).digest()[:16])


class Watcher(Protocol):
    """The world, told about everything that a checker or a client may want to know."""

    def stepped(self, host: Host) -> None:
        """The node handled an event."""
        ...

    def started(self, host: Host) -> None: ...
    def stopped(self, host: Host, *, kernel_lost: bool) -> None: ...
    def kernel_changed(self, host: Host) -> None:
        """Data path or filter of the host changed."""
        ...

    def replied(self, host: Host, request: int, result: Result) -> None: ...
    def vacated(self, host: Host) -> None:
        """Its containers are off the network for good."""
        ...


class Departure(msgspec.Struct, frozen=True):
    """What a leaver belonged to: its ``cluster``, empty for none, and whom the log there had ``removed`` by then."""

    cluster: bytes = b""
    removed: frozenset[PeerId] = frozenset()


class Host:
    def __init__(
        self,
        index: int,
        *,
        seed: int,
        configure: Callable[[Host], NodeConfig],
        disk: Disk,
        scheduler: Scheduler,
        network: Network,
        record_lock: RecordLock,
        watcher: Watcher,
        trace: Trace | None,
        codec_every: int,
        check_every: int,
    ) -> None:
        self.index = index
        self.label = f"h{index}"
        self.host = f"192.168.{index >> 8}.{(index & 255)}"
        self.port = 6783
        self.name = f"00:00:00:00:{index >> 8:02x}:{index & 255:02x}"
        self.generation = 0
        self.departed: dict[PeerId, Departure] = {}
        """As whom it left → what."""
        self.is_blanked = False
        """Its disk was lost, or it left: whoever is started here has never been before."""
        self.peer = sim_peer_id(index, 0)
        self.life = 0
        self.is_running = False
        self.is_paused = False
        self.is_torn = False
        """The daemon died among effects: until the next one speaks, kernel and worker may not have heard the same."""
        self.clock_offset_s = 0.0
        self.plane: tuple[PlanePeer, ...] = ()
        self.open_peers: frozenset[PeerId] = frozenset()
        self.vxlan_peers: frozenset[PeerId] = frozenset()
        """From whom VXLAN is taken."""
        self.worker: Worker | None = None
        """Of sleeve, where it is among the planes."""
        self.sleeve: SleeveDesired | None = None
        """What the worker was last told."""
        self.tunnel: Device | None = None
        """Of WireGuard, where it is among the planes."""
        self.kernel_peer = self.peer
        """As whom the data path was last set."""
        self.is_set_back = False
        """Its disk lacks what was told to others in its name, and it has not come back as somebody else yet."""
        self.blocked: frozenset[tuple[str, str]] = frozenset()
        self.names: dict[str, tuple[bytes, ...]] = {}
        """What this host's DNS server answers."""
        self.disk = disk
        disk.on_durable = self._on_durable
        self.driver: Driver | None = None
        self._seed = seed
        self._configure = configure
        self._scheduler = scheduler
        self._network = network
        self._record_lock = record_lock
        self._watcher = watcher
        self._trace = trace
        self._codec_every = codec_every
        self._check_every = check_every
        self._inbox: deque[Event | None] = deque()
        self._timer = 0
        self._timer_at: float | None = None

    @property
    def node(self) -> Node | None:
        return self.driver.node if self.driver is not None else None

    def local_now(self) -> float:
        return self._scheduler.now + self.clock_offset_s

    # --- life and death ---

    def start(self) -> None:
        """Start the daemon from what the disk holds."""
        if self.is_running:
            return
        self.life += 1
        self.is_running = True
        if not self.open_peers:
            self.kernel_peer = self.peer
        config = self._configure(self)
        self.name = config.name
        node = Node(config, dict(self.disk.durable), node_seed(self._seed, self.index, self.life))
        self.driver = Driver(node, self.disk, self, self._trace, self._codec_every, self._check_every)
        self._watcher.started(self)
        if self.worker is not None and not self.worker.is_running:
            self.worker.start()
        self._guard(self.driver.start)
        if self.tunnel is not None:
            self.tunnel.start()

    def kill(self, *, kernel_lost: bool = False) -> None:
        """The daemon dies at once; ``kernel_lost``: the whole machine does."""
        if self.is_running:
            self.is_running = False
            self.life += 1
            self.driver = None
            self._inbox.clear()
            self._timer += 1
            self._timer_at = None
            self._network.drop_links(self.index, silently=kernel_lost)
            self.disk.crash()
        self.is_paused = False
        self._say("machine died" if kernel_lost else "process died")
        if kernel_lost and self.worker is not None:
            self.worker.stop()
        if kernel_lost and self.tunnel is not None:
            self.tunnel.stop()
        if kernel_lost:
            self.is_torn = False
            self.vxlan_peers, self.sleeve = frozenset(), None
            self.plane, self.open_peers, self.blocked = (), frozenset(), frozenset()
        self._watcher.stopped(self, kernel_lost=kernel_lost)

    def _die_among_effects(self) -> None:
        self.kill()
        self.is_torn = True

    def lose_disk(self) -> None:
        """The machine dies and comes back blank: no containers, and a new key."""
        self.kill(kernel_lost=True)
        self.disk.wipe()
        self.is_blanked = True
        self.generation += 1
        self.is_set_back = False
        self.peer = sim_peer_id(self.index, self.generation)
        self._say("disk lost")

    def set_back(self, rows: dict[tuple[str, bytes], bytes]) -> None:
        """The machine dies, and comes back with the disk as it once was: ``rows``."""
        self.kill(kernel_lost=True)
        self.disk.wipe()
        self.disk.durable = dict(rows)
        self.is_set_back = True
        self._say("disk set back")

    def become_copy(self, original: Host, *, is_recognised: bool) -> None:
        """The machine dies, and comes back with a copy of the disk of ``original``. ``is_recognised``: by the
        fingerprint of this machine, so that it starts as somebody new; else both are the same peer."""
        self.set_back(original.disk.durable)
        self.generation += 1
        if is_recognised:
            self.disk.write_now(fenced_disk(self.disk.durable))
            self.is_set_back = False
            self.peer = sim_peer_id(self.index, self.generation)
        else:
            self.peer = original.peer
            original.is_set_back = True  # what the copy promises, its disk does not hold

    def fence(self) -> None:
        """The node met its own removal: a new key, its part in the cluster dropped, its containers blocked."""
        self.kill()
        self.disk.write_now(fenced_disk(self.disk.durable))
        self.generation += 1
        self.is_set_back = False
        self.peer = sim_peer_id(self.index, self.generation)
        self._say("fenced")
        self._scheduler.after(FENCE_PAUSE_S, self._restart, self.life)

    def depart(self) -> None:
        """The node has left the cluster: nothing of it remains; whoever is started here again is somebody new."""
        node = self.node
        left = Departure() if node is None else Departure(node.cluster.id, frozenset(node.log.removed))
        self.departed[self.peer] = left
        self.kill(kernel_lost=True)
        self.disk.write_now(departed_disk(self.disk.durable))
        self.is_blanked = True
        self.generation += 1
        self.is_set_back = False
        self.peer = sim_peer_id(self.index, self.generation)
        self._watcher.vacated(self)
        self._say("departed")

    def _restart(self, life: int) -> None:
        if self.life == life:
            self.start()

    def pause(self) -> None:
        self.is_paused = True
        self._say("paused")

    def resume(self) -> None:
        """Everything that came meanwhile is handled in one burst."""
        if not self.is_paused:
            return
        self.is_paused = False
        self._say("resumed")
        while self._inbox and self.is_running and not self.is_paused:
            event = self._inbox.popleft()
            self._process(event)

    # --- events ---

    def deliver(self, event: Event) -> None:
        if not self.is_running:
            return
        if self.is_paused:
            self._inbox.append(event)
        else:
            self._process(event)

    def _process(self, event: Event | None) -> None:
        driver = self.driver
        if driver is None:
            return
        if event is None:
            self._guard(driver.release)
            return
        self._guard(lambda: driver.handle(event))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except ProcessDied:
            self._die_among_effects()
            return
        except Fenced:
            self.fence()
            return
        except Departed:
            self.depart()
            return
        if self.is_running:
            self._watcher.stepped(self)
            self._arm()

    def _on_durable(self) -> None:
        if self.is_paused:
            self._inbox.append(None)
        elif self.driver is not None:
            try:
                self.driver.release()
            except ProcessDied:
                self._die_among_effects()
            except Fenced:
                self.fence()
            except Departed:
                self.depart()

    def _arm(self) -> None:
        if self.driver is None:
            return
        deadline = self.driver.node.deadline()
        if deadline is None:
            return
        at = max(deadline - self.clock_offset_s, self._scheduler.now + WAKE_LATENCY_S)
        if self._timer_at is None or at < self._timer_at:
            self._timer += 1
            self._timer_at = at
            self._scheduler.at(at, self._fire, self._timer)

    def _fire(self, timer: int) -> None:
        if timer != self._timer or self.driver is None:
            return
        self._timer_at = None
        deadline = self.driver.node.deadline()
        if deadline is None:
            return
        if self.local_now() >= deadline:
            self.deliver(Tick())
        else:
            self._arm()

    # --- what effects act on ---

    def send(self, link: int, message: Message) -> None:
        self._network.send(self, link, message)

    def resolve(self, target: str) -> None:
        self._network.resolve(self, target)

    def offer_record(self, record: bytes) -> None:
        self._record_lock.offer(self, record)

    def withdraw_record(self, record: bytes) -> None:
        self._record_lock.withdraw(self, record)

    def dial(self, dial: int, host: str, port: int) -> None:
        self._network.dial(self, dial, host, port)

    def close_link(self, link: int, sentence: str) -> None:
        self._network.close(self, link, sentence)

    def set_plane(self, peers: tuple[PlanePeer, ...]) -> None:
        self.plane = peers
        self.kernel_peer = self.peer
        self.open_peers = frozenset(peer.peer for peer in peers)
        self.vxlan_peers = frozenset(peer.peer for peer in peers if peer.vxlan is not VxlanUse.CLOSED)
        self._watcher.kernel_changed(self)

    def set_sleeve(self, desired: SleeveDesired) -> None:
        self.sleeve = desired
        self.is_torn = False
        if self.worker is not None:
            self.worker.apply(desired)

    def set_blocked(self, blocked: tuple[tuple[str, str], ...]) -> None:
        self.blocked = frozenset(blocked)
        self._watcher.kernel_changed(self)

    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None:
        if whole:
            self.names = {}
        for record in names:
            if record.addresses:
                self.names[record.name.lower()] = record.addresses
            else:
                self.names.pop(record.name.lower(), None)

    def probe(self, peer: PeerId, nonce: int, is_answer: bool) -> None:
        self._network.probe(self, peer, nonce, is_answer)

    def reply(self, request: int, result: Result) -> None:
        self._watcher.replied(self, request, result)

    def vacate(self) -> None:
        self._watcher.vacated(self)
        self._scheduler.after(VACATE_S, self._vacated, self.life)

    def _vacated(self, life: int) -> None:
        if self.life == life:
            self.deliver(Requested(VACATED_REQUEST, Vacated()))

    def sees_plane_of(self, peer: PeerId) -> bool:
        return peer in self.vxlan_peers

    def _say(self, text: str) -> None:
        if self._trace is not None:
            self._trace.add(self.local_now(), self.label, text)
