"""Several meshes over a fake network: in-order links with a fixed delay, a resolver that knows every host, and cuts.

Messages arrive as the objects they are; their encoding is only measured. Deterministic: one event queue, ties in order
of creation. Ring and log are stand-ins that keep the contract of ``Shared``: the log is a list that only grows, the
ring a set of segments with a merge that takes the larger stamp.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import CloseLink, Dial, Note, Outbox, Persist, Resolve, Send, Unicast
from weavenet.core.errors import RefusalCode
from weavenet.core.events import DialFailed, DialOutcome, Event, LinkClosed, LinkOpened, Received, Resolved, Tick
from weavenet.core.mesh.mesh import Mesh, MeshChanges
from weavenet.core.mesh.shared import HelloFields
from weavenet.core.messages import encode
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.link import Hello, Refusal
from weavenet.core.messages.unicast import Body, Routed
from weavenet.core.types import ZERO8, ZERO16, LogEntry, PeerId, Segment, entry_hash

RING_SIZE = 6400


def peer_id(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"peer %d" % number).digest()[:16])


class FakeShared:
    """Ring: offset -> stamp. Log: grows at its end."""

    def __init__(self) -> None:
        self.fields = HelloFields(ranges=("10.32.0.0/12",))
        self.refusal: Refusal | None = None
        self.log: list[LogEntry] = []
        self.ring: dict[int, Segment] = {}
        self._ring_hash: bytes | None = None

    def hello(self) -> HelloFields:
        return self.fields

    def admit(self, now: float, peer: PeerId, hello: Hello) -> Refusal | None:
        return self.refusal

    def log_length(self) -> int:
        return len(self.log)

    def log_hash(self) -> bytes:
        return entry_hash(self.log[-1]) if self.log else ZERO16

    def log_epoch(self) -> tuple[int, bytes]:
        return (0, ZERO8)

    def log_gap(self, start: int, entries: Sequence[LogEntry]) -> int | None:
        return len(self.log) if start > len(self.log) else None

    def ring_gap(self, delta: RingDelta) -> int | None:
        return len(self.log) if delta.log_length > len(self.log) else None

    def ring_hash(self) -> bytes:
        if self._ring_hash is None:
            self._ring_hash = self._hash(sorted(self.ring), 16)
        return self._ring_hash

    def _hash(self, offsets: Iterable[int], size: int) -> bytes:
        data = msgspec.msgpack.encode([self.ring[offset] for offset in offsets if offset in self.ring])
        return hashlib.sha256(data).digest()[:size]

    def log_from(self, start: int) -> tuple[LogEntry, ...]:
        return tuple(self.log[start:])

    def merge_log(self, now: float, start: int, entries: Sequence[LogEntry]) -> bool:
        fresh = list(entries)[len(self.log) - start :]
        self.log += fresh
        return bool(fresh)

    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None:
        assert delta.log_length <= len(self.log)
        fresh = []
        for segment in delta.segments:
            held = self.ring.get(segment.start)
            if held is None or held.stamp < segment.stamp:
                self.ring[segment.start] = segment
                self._ring_hash = None
                fresh.append(segment)
        return RingDelta(delta.range_index, len(self.log), tuple(fresh)) if fresh else None

    def ring_bucket_hashes(self, range_index: int) -> tuple[bytes, ...]:
        step = RING_SIZE // 64
        return tuple(self._hash(range(bucket * step, bucket * step + step), 8) for bucket in range(64))

    def ring_buckets(self, range_index: int, buckets: Sequence[int]) -> RingDelta:
        step = RING_SIZE // 64
        offsets = [offset for bucket in buckets for offset in range(bucket * step, bucket * step + step)]
        return RingDelta(0, len(self.log), tuple(self.ring[offset] for offset in offsets if offset in self.ring))


class Host:
    """One mesh with its driver."""

    def __init__(self, network: Network, number: int, config: NodeConfig, disk: dict[tuple[str, bytes], bytes]) -> None:
        self.network = network
        self.number = number
        self.config = config
        self.disk = disk
        self.outbox = Outbox()
        self.shared = FakeShared()
        self.starts = 1 + getattr(network.hosts.get(number), "starts", 0)
        rng = random.Random(f"{network.seed} {number} {self.starts}")
        self.mesh = Mesh(config, disk, self.outbox, rng, self.shared, self.starts << 32 | rng.getrandbits(31))
        self.links: dict[int, tuple[int, int]] = {}
        self.bodies: list[tuple[PeerId, Body]] = []
        self.notes: list[str] = []
        self.changes: list[MeshChanges] = []
        self.dialled: list[tuple[float, str]] = []
        self.paused = False
        self.alive = True
        self.wake: float | None = None

    @property
    def peer(self) -> PeerId:
        return self.config.peer

    def handle(self, event: Event) -> None:
        if not self.alive:
            return
        self.mesh.handle(self.network.now, event)
        self.flush()

    def flush(self) -> None:
        changes = self.mesh.take_changes()
        if changes:
            self.changes.append(changes)
            self.bodies += changes.bodies
        if self.network.is_checking:
            self.mesh.check()
        self.network.plan(self)
        for effect in self.outbox.drain():
            match effect:
                case Persist():
                    for change in effect.changes:
                        if change.value is None:
                            self.disk.pop((change.table, change.key), None)
                        else:
                            self.disk[change.table, change.key] = change.value
                case Send():
                    self.network.send(self, effect.link, effect.message)
                case Dial():
                    self.dialled.append((self.network.now, effect.host))
                    self.network.dial(self, effect)
                case Resolve():
                    self.network.resolve(self, effect.target)
                case CloseLink():
                    self.network.close(self, effect.link)
                case Note():
                    self.notes.append(effect.text)
                case Unicast():
                    hop = self.mesh.next_hop(effect.destination)
                    if hop is not None:
                        body = encode(effect.body)
                        self.network.send(self, hop, Routed(self.peer, effect.destination, 16, body))
                case _:
                    raise AssertionError(effect)

    def root(self) -> bytes:
        return self.mesh._replication.repair.digest().records_root


class Network:
    """``names``: what names resolve to; numeric hosts resolve to themselves."""

    def __init__(self, seed: int = 0, delay_s: float = 0.002, is_checking: bool = True) -> None:
        self.seed = seed
        self.now = 1000.0
        self.delay_s = delay_s
        self.is_checking = is_checking
        self.hosts: dict[int, Host] = {}
        self.names: dict[str, tuple[tuple[str, int], ...]] = {}
        self.cut: Callable[[int, int], bool] = lambda one, other: False
        self.sent: Counter[str] = Counter()
        self.largest_bytes = 0
        self.on_message: Callable[[Host, Host, object], None] = lambda source, target, message: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._links = 0
        self._ends: dict[int, tuple[Host, Host, int]] = {}
        self._clear_at: dict[int, float] = {}

    def add(self, number: int, targets: Sequence[int | str] = (), **fields: object) -> Host:
        """A host at 10.0.0.NUMBER with the given targets; again: the same host started anew."""
        old = self.hosts.get(number)
        texts = tuple(target if isinstance(target, str) else self.address(target) for target in targets)
        settings = {
            "peer": peer_id(number),
            "name": f"::{number}",
            "nickname": f"host{number}",
            "conf_targets": texts,
        } | fields
        host = Host(self, number, NodeConfig(**settings), {} if old is None else old.disk)  # type: ignore[arg-type]
        self.hosts[number] = host
        host.mesh.start(self.now)
        host.flush()
        return host

    @staticmethod
    def address(number: int) -> str:
        return f"10.0.{number >> 8}.{number & 255}"

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._order, action))

    # --- effects ---

    def resolve(self, host: Host, target: str) -> None:
        name, _, port = target.partition(":")
        found = self.names.get(name)
        if found is None and name.replace(".", "").isdigit():
            found = ((name, int(port or 6783)),)
        answer = Resolved(target, found or (), "" if found else "no such name")
        self.at(self.delay_s, lambda: host.handle(answer))

    def dial(self, host: Host, dial: Dial) -> None:
        other = next((other for other in self.hosts.values() if self.address(other.number) == dial.host), None)
        if other is host:
            self.at(self.delay_s, lambda: host.handle(DialFailed(dial.dial, DialOutcome.SELF, "ourselves")))
        elif other is None or not other.alive:
            failure = DialFailed(dial.dial, DialOutcome.UNREACHABLE, "connection refused")
            self.at(self.delay_s, lambda: host.handle(failure))
        elif self.cut(host.number, other.number):
            failure = DialFailed(dial.dial, DialOutcome.TIMEOUT, "no answer within 4 s")
            self.at(4.0, lambda: host.handle(failure))
        else:
            self.at(self.delay_s, lambda: self._open(host, other, dial))

    def _open(self, host: Host, other: Host, dial: Dial) -> None:
        self._links += 2
        near, far = self._links, self._links + 1
        self._ends[near] = (host, other, far)
        self._ends[far] = (other, host, near)
        host.handle(LinkOpened(near, dial.dial, other.peer, other.config.name, dial.host, dial.port))
        inbound = LinkOpened(far, None, host.peer, host.config.name, self.address(host.number), 40_000 + near % 1000)
        self.at(self.delay_s, lambda: other.handle(inbound))

    def send(self, host: Host, link: int, message: object) -> None:
        if link not in self._ends:
            return
        _, other, far = self._ends[link]
        data = encode(message)  # type: ignore[arg-type]
        self.sent[type(message).__name__] += 1
        self.largest_bytes = max(self.largest_bytes, len(data))
        self.on_message(host, other, message)
        if self.cut(host.number, other.number):
            return
        received = Received(far, message)  # type: ignore[arg-type]
        self.at(self.delay_s * 2, lambda: other.handle(received) if far in self._ends and not other.paused else None)

    def close(self, host: Host, link: int) -> None:
        if link not in self._ends:
            return
        _, other, far = self._ends[link]
        self.at(self.delay_s, lambda: self._closed(host, link))
        if not self.cut(host.number, other.number):
            self.at(self.delay_s * 3, lambda: self._closed(other, far))

    def _closed(self, host: Host, link: int) -> None:
        if self._ends.pop(link, None) is not None:
            host.handle(LinkClosed(link, None, "closed by the peer"))

    def kill(self, number: int) -> None:
        host = self.hosts[number]
        host.alive = False
        for link, (owner, other, far) in list(self._ends.items()):
            if owner is host:
                del self._ends[link]
                self.at(self.delay_s, lambda other=other, far=far: self._closed(other, far))  # type: ignore[misc]

    # --- time ---

    def run(self, duration_s: float = 60.0, until: Callable[[], bool] | None = None) -> bool:
        """Until ``until`` holds or the time is over; whether it holds."""
        end = self.now + duration_s
        look_at = self.now
        while self.now < end:
            if until is not None and self.now >= look_at:
                if until():
                    return True
                look_at = self.now + self.delay_s * 2
            self._step(end)
        return until() if until is not None else True

    def plan(self, host: Host) -> None:
        """Wake ``host`` at its deadline, unless an earlier wake is planned."""
        due = host.mesh.deadline()
        if due is not None and (host.wake is None or due < host.wake):
            host.wake = due
            self.at(max(0.0, due - self.now), lambda: self._wake(host, due))

    def _wake(self, host: Host, planned: float) -> None:
        if host.wake != planned or not host.alive:
            return
        host.wake = None
        due = host.mesh.deadline()
        if due is not None and due <= self.now and not host.paused:
            host.handle(Tick())
        else:
            self.plan(host)

    def _step(self, end: float) -> None:
        if not self._queue or self._queue[0][0] > end:
            self.now = end
            return
        time, _, action = heapq.heappop(self._queue)
        self.now = max(self.now, time)
        action()

    # --- conditions ---

    def living(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.alive]

    def is_complete(self) -> bool:
        """Everybody has a link to everybody."""
        hosts = self.living()
        return all(len(host.mesh.established_peers()) == len(hosts) - 1 for host in hosts)

    def is_equal(self) -> bool:
        hosts = self.living()
        return len({host.root() for host in hosts}) == 1

    def is_connected(self) -> bool:
        hosts = self.living()
        return all(len(host.mesh.reachable()) == len(hosts) for host in hosts)


REFUSED = Refusal(RefusalCode.CLUSTER, "expected cluster a, found cluster b; next: launch one of them anew")
