"""Several Ipams, their disks and a network that loses, repeats and reorders: for unit and property tests of the ring.

Effects of a host are executed in order and as late as the test likes; a crash forgets those that were not executed and
builds the host again from its disk.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from weavenet.core.commands import Addresses, Command, Result
from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.effects import Note, Outbox, Persist, Reply, Unicast
from weavenet.core.messages import Body
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.ring import Ipam, Log
from weavenet.core.ring.log import genesis_entry
from weavenet.core.ring.pages import delta_pages
from weavenet.core.types import Genesis, LogEntry, PeerId

RANGE = "10.32.0.0/26"
BOTH = "10.32.0.0/26,fd00:77::/122"


def peer_id(name: str) -> PeerId:
    return PeerId(name.encode().ljust(16, b"\0")[:16])


def genesis_of(*names: str, cidr: str = RANGE) -> Genesis:
    peers = tuple(sorted(peer_id(name) for name in names))
    return Genesis(b"cluster".ljust(16, b"\0"), tuple(cidr.split(",")), peers, peers)


@dataclass(frozen=True)
class State:
    """What one host tells another when they synchronise."""

    log: tuple[LogEntry, ...]
    ring: tuple[RingDelta, ...]


Told = Body | State


class Host:
    """One Ipam with its disk. ``queue`` holds effects not executed yet; ``replies`` what clients were told."""

    def __init__(self, name: str, config: NodeConfig | None = None, *, seed: int = 0) -> None:
        self.name = name
        self.peer = config.peer if config else peer_id(name)
        self.config = config or NodeConfig(peer=self.peer, name=name, nickname=f"host-{name}", ranges=(RANGE,))
        self.disk: dict[tuple[str, bytes], bytes] = {}
        self.queue: deque[object] = deque()
        self.replies: dict[int, Result] = {}
        self.notes: list[Note] = []
        self.starts = 0
        self.seed = seed
        self.reachable: frozenset[PeerId] = frozenset({self.peer})
        self.boot(0.0)

    def boot(self, now: float) -> None:
        """Start, or crash and start: memory and unexecuted effects are gone."""
        self.starts += 1
        self.queue.clear()
        self.outbox = Outbox()
        rows = [(key, value) for (table, key), value in self.disk.items() if table == "log"]
        self.log = Log(rows, self.outbox)
        rng = random.Random(f"{self.name}{self.seed}{self.starts}")
        self.ipam = Ipam(self.config, self.log, dict(self.disk), self.outbox, rng, self.starts << 32)
        self.ipam.start(now)
        self.ipam.set_reachable(now, self.reachable)
        self.collect()

    def collect(self) -> None:
        """Take what the last call wants done, with ring news behind it, as a node does."""
        self.queue.extend(self.outbox.drain())
        while (delta := self.ipam.take_delta()) is not None:
            self.queue.append(State(self.log.entries, (delta,)))

    def command(self, now: float, request: int, command: Command) -> None:
        assert self.ipam.command(now, request, command)
        self.collect()

    def tick(self, now: float) -> None:
        due = self.ipam.deadline()
        if due is not None and now >= due:
            self.ipam.tick(now)
            self.collect()

    def begin(self, now: float, genesis: Genesis) -> None:
        self.learn(now, State((genesis_entry(genesis),), ()))

    def learn(self, now: float, state: State) -> None:
        had = self.log.genesis is not None
        if self.log.merge(0, state.log) and not had:
            self.ipam.adopt_genesis(now)
        for delta in state.ring:
            self.ipam.merge_ring(now, delta)
        self.collect()

    def receive(self, now: float, source: PeerId, told: Told) -> None:
        if isinstance(told, State):
            self.learn(now, told)
        else:
            self.ipam.body(now, source, told)
            self.collect()

    def state(self) -> State:
        return State(self.log.entries, tuple(delta_pages(self.ipam.ring.segments, len(self.log), 512)))

    def execute(self, effects: int | None = None) -> list[tuple[PeerId | None, Told]]:
        """Execute so many effects (all by default); the messages that left (None: to everybody)."""
        left: list[tuple[PeerId | None, Told]] = []
        for _ in range(len(self.queue) if effects is None else min(effects, len(self.queue))):
            match self.queue.popleft():
                case Persist(changes):
                    for change in changes:
                        if change.value is None:
                            self.disk.pop((change.table, change.key), None)
                        else:
                            self.disk[change.table, change.key] = change.value
                case Reply(request, result):
                    assert request not in self.replies, "answered twice"
                    self.replies[request] = result
                case Unicast(destination, body):
                    left.append((destination, body))
                case State() as state:
                    left.append((None, state))
                case Note() as note:
                    self.notes.append(note)
                case other:
                    raise AssertionError(f"unexpected effect {other}")
        return left

    def addresses(self, request: int) -> tuple[str, ...]:
        result = self.replies[request]
        assert isinstance(result, Addresses), result
        return result.addresses

    def held(self) -> set[tuple[str, str]]:
        """(ident, address) as this host would defend it now."""
        return {(holding.ident, holding.address) for holding in self.ipam.estate.holdings}


@dataclass
class World:
    """Hosts that reach each other, and messages under way."""

    hosts: dict[str, Host] = field(default_factory=dict)
    now: float = 1.0
    wire: list[tuple[PeerId, PeerId, Told]] = field(default_factory=list)
    requests: int = 0

    @classmethod
    def of(cls, *names: str, owners: tuple[str, ...] | None = None, cidr: str = RANGE, seed: int = 0) -> World:
        """Hosts that all hold the genesis of ``owners`` (default: all) and reach each other."""
        world = cls({name: _host(name, cidr, seed) for name in names})
        for host in world.hosts.values():
            host.begin(world.now, genesis_of(*(owners or names), cidr=cidr))
        world.connect(*names)
        world.settle()
        return world

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def connect(self, *names: str) -> None:
        """These hosts reach each other, and nobody else."""
        peers = frozenset(peer_id(name) for name in names)
        for name in names:
            self[name].reachable = peers
            self[name].ipam.set_reachable(self.now, peers)
            self[name].collect()

    def ask(self, name: str, command: Command) -> int:
        """Give a command; the number of the request."""
        self.requests += 1
        self[name].command(self.now, self.requests, command)
        return self.requests

    def do(self, name: str, command: Command) -> Result:
        """Give a command and let everything happen that needs no time."""
        request = self.ask(name, command)
        self.settle()
        return self[name].replies[request]

    def execute(self, name: str, effects: int | None = None) -> None:
        host = self[name]
        for destination, told in host.execute(effects):
            receivers = host.reachable if destination is None else host.reachable & {destination}
            self.wire += [(host.peer, receiver, told) for receiver in sorted(receivers - {host.peer})]

    def deliver(self, index: int, *, keep: bool = False) -> None:
        source, destination, told = self.wire[index] if keep else self.wire.pop(index)
        for host in self.hosts.values():
            if host.peer == destination:
                host.receive(self.now, source, told)

    def settle(self) -> None:
        """Execute and deliver everything, in order, without time passing."""
        for _ in range(10_000):
            for name in self.hosts:
                self.execute(name)
            if not self.wire:
                return
            self.deliver(0)
        raise AssertionError("the hosts never came to rest")

    def wait(self, seconds: float) -> None:
        """Let time pass in half seconds, everything happening at once."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for host in self.hosts.values():
                host.tick(self.now)
            self.settle()

    def synchronise(self) -> None:
        """Everybody tells everybody everything."""
        for source in self.hosts.values():
            for host in self.hosts.values():
                if source is not host:
                    host.learn(self.now, source.state())
        self.settle()

    def crash(self, name: str) -> None:
        self[name].boot(self.now)

    def check(self) -> None:
        """Each host is sound, and no address is usable by two of them (I4)."""
        owned: list[tuple[int, int, str]] = []
        for host in self.hosts.values():
            host.ipam.check()
            owned += [(low, high, host.name) for low, high in host.ipam.ring.owned(host.peer)]
        owned.sort()
        for (_, high, first), (low, _, second) in pairwise(owned):
            assert high <= low, f"{first} and {second} both may use the addresses from offset {low}"


def _host(name: str, cidr: str, seed: int) -> Host:
    config = NodeConfig(peer=peer_id(name), name=name, nickname=f"host-{name}", ranges=tuple(cidr.split(",")))
    return Host(name, config, seed=seed)


def seed_host(name: str, seeds: tuple[str, ...], *, peer: PeerId | None = None) -> Host:
    """A host launched with ``seed=``, with a blank store."""
    config = NodeConfig(
        peer=peer or peer_id(name),
        name=name,
        nickname=f"host-{name}",
        ranges=(RANGE,),
        mode=GenesisMode.SEED,
        seeds=seeds,
        seed_salt=b"salt",
    )
    return Host(name, config)
