"""One history: a cluster of cores in virtual time, faults and clients, then a heal after which everything must agree.

A history has three acts. *Trouble*: hosts launch, clients work, faults of the menu strike. *Heal*: all faults are
lifted, everybody is started and connected. *Rest*: within bounded virtual time all peers of a cluster hold equal logs
and rings, have data paths to each other, and every client that can be served was served. Safety is checked after every
event of every act.

Same options and seed, same history, byte for byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from weavenet.core.commands import Allocate, Claim, Connect, Consense, RemovePeers, Result
from weavenet.core.effects import Change
from weavenet.core.election.locking import LockRecord
from weavenet.core.node import Node
from weavenet.core.ranges import Ranges
from weavenet.core.types import AddressRange
from weavenet.sim.checkers import Checker
from weavenet.sim.dataplane import DataPlane
from weavenet.sim.disk import Disk
from weavenet.sim.faults import CALM, FaultKind, FaultOptions, draw_faults
from weavenet.sim.host import Host, sim_peer_id
from weavenet.sim.naming import names_unrest
from weavenet.sim.network import Network
from weavenet.sim.recordlock import RecordLock
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.setup import CLUSTER_NAME, Bootstrap, Setup, configure, draw_setup, with_ipv6
from weavenet.sim.storm import Storm
from weavenet.sim.trace import Trace
from weavenet.sim.violation import Violation
from weavenet.sim.workload import Workload

FULL_SCAN_STEPS = 200
CONVERGENCE_MAX_S = 90.0
"""After the heal: longest retry of the product is 8 s, longest silence 10 s, and decisions need a few of them."""
QUIET_S = 3.0
"""What converged must stay so for a while."""
STEPS_DEFAULT = 60
SLEEVE_SHARE = 0.2
"""Of random histories, with workers of sleeve."""


class HistoryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``steps``: random actions before the heal; one every ``step_interval_s`` on average, of which
    ``fault_share`` are faults. ``check_every``: events between two runs of a node's own ``check()`` (the invariants of
    the specification are checked after each). ``is_forced``: see :class:`Checker`."""

    setup: Setup
    faults: FaultOptions
    steps: int = STEPS_DEFAULT
    step_interval_s: float = 0.5
    fault_share: float = 0.25
    codec_every: int = 0
    check_every: int = 1
    is_forced: bool = False
    removals: float = 0.0
    forced_removals: float = 0.0
    names: float = 0.0
    resets: float = 0.0


def draw_options(seed: int, *, peers_min: int = 5, peers_max: int = 7, steps: int = STEPS_DEFAULT) -> HistoryOptions:
    """The random history of this seed."""
    rng = random.Random(f"options {seed}")
    setup = draw_setup(rng, peers_min, peers_max)
    faults = draw_faults(rng, lost_disks=setup.bootstrap is not Bootstrap.ALONE)
    removals = rng.choice((0.0, 4.0, 10.0))
    if removals:  # a peer is out of reach for others only after some seconds of silence
        faults = msgspec.structs.replace(faults, outage_max_s=rng.choice((15.0, 40.0)))
    setup = with_ipv6(setup, random.Random(f"ranges {seed}"))
    return HistoryOptions(
        setup=msgspec.structs.replace(setup, sleeve=random.Random(f"planes {seed}").random() < SLEEVE_SHARE),
        faults=faults,
        steps=steps,
        step_interval_s=rng.choice((0.3, 0.6, 1.0) if removals else (0.1, 0.3, 0.6)),
        fault_share=rng.choice((0.1, 0.25, 0.5)),
        codec_every=rng.choice((0, 0, 0, 7)),
        check_every=rng.choice((5, 50, 50, 50)),
        removals=removals,
        forced_removals=rng.choice((0.0, 0.0, 0.0, 0.3)),
        names=rng.choice((0.0, 3.0, 8.0)),
        resets=rng.choice((0.0, 0.0, 2.0, 6.0)),
    )


class World:
    """Hosts, network, clients and checkers of one history. Scenario tests drive it by hand; :meth:`run` does it at
    random."""

    def __init__(self, seed: int, options: HistoryOptions, trace: Trace | None = None) -> None:
        self.seed = seed
        self.options = options
        self.trace = trace
        self.rng = random.Random(seed)
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, self.rng, options.faults)
        self.record_lock = RecordLock(self.scheduler, self.rng, options.faults)
        self.steps = 0
        area = Ranges.parse(options.setup.ranges)
        self.hosts: list[Host] = []
        for index in range(options.setup.peers):
            self.hosts.append(self._make_host(index))
        self.network.names[CLUSTER_NAME] = tuple(host.host for host in self.hosts)
        self.checker = Checker(
            self.hosts, area, is_genesis_unique=options.setup.is_genesis_unique, is_forced=options.is_forced
        )
        self.record_lock.on_withdrawn = lambda record: self.checker.withdrawn(
            bytes.fromhex(msgspec.json.decode(record, type=LockRecord).cluster)
        )
        self.workload = Workload(
            self.hosts,
            scheduler=self.scheduler,
            rng=self.rng,
            checker=self.checker,
            area=area,
            subnets=options.setup.subnets,
            removals=options.removals,
            forced_removals=options.forced_removals,
            names=options.names,
            resets=options.resets,
            electors=options.setup.electors,
        )
        self.storm = Storm(self, options.faults)
        self.area = area
        self.dataplane = DataPlane(self, seed) if options.setup.sleeve else None

    def _make_host(self, index: int) -> Host:
        host = Host(
            index,
            seed=self.seed,
            configure=lambda host: configure(self.options.setup, host),
            disk=Disk(self.scheduler, self.rng, self.options.faults),
            scheduler=self.scheduler,
            network=self.network,
            record_lock=self.record_lock,
            watcher=self,
            trace=self.trace,
            codec_every=self.options.codec_every,
            check_every=self.options.check_every,
        )

        def on_append(changes: tuple[Change, ...]) -> None:
            self.checker.appended(host, changes)

        host.disk.on_append = on_append
        host.clock_offset_s = self.rng.random() * self.options.faults.clock_skew_max_s
        self.network.add(host)
        return host

    # --- Watcher ---

    def stepped(self, host: Host) -> None:
        self.steps += 1
        self.checker.stepped(host)
        if self.steps % FULL_SCAN_STEPS == 0:
            self.checker.full_scan()

    def started(self, host: Host) -> None:
        self.checker.started(host)
        self.workload.started(host)

    def stopped(self, host: Host, *, kernel_lost: bool) -> None:
        self.checker.stopped(host, kernel_lost=kernel_lost)

    def kernel_changed(self, host: Host) -> None:
        self.checker.kernel_changed(host)

    def replied(self, host: Host, request: int, result: Result) -> None:
        self.workload.replied(host, request, result)

    def vacated(self, host: Host) -> None:
        self.checker.forget_host(host)
        self.workload.vacated(host)

    # --- acts ---

    def run(self) -> None:
        """The whole random history. Raises Violation."""
        self.launch()
        self.trouble()
        self.heal()
        self.rest()

    def launch(self) -> None:
        for host in self.hosts:
            self.scheduler.after(self.rng.random() * self.options.setup.launch_spread_s, host.start)

    def trouble(self) -> None:
        for _ in range(self.options.steps):
            self.advance(self.rng.expovariate(1 / self.options.step_interval_s))
            if self.rng.random() < self.options.fault_share:
                self.storm.strike()
            else:
                self.workload.act()
            if self.dataplane is not None:
                self.dataplane.trouble()

    def heal(self) -> None:
        """Lift every fault, start everybody, and connect all to all."""
        self.storm.stop()
        self.network.options = self.record_lock.options = CALM
        for host in self.hosts:
            host.disk.options = CALM
            if host.driver is not None:
                host.driver.crash_countdown = None
        if self.dataplane is not None:
            self.dataplane.heal()
        self.network.suspended.clear()
        self.network.blocked.clear()
        self.network.flush()
        for host in self.hosts:
            host.resume()
            host.start()
        self.workload.calm()
        for host in self.hosts:
            others = tuple(other.host for other in self.hosts if other is not host)
            self.workload.request(host, Connect(others))
        if self.options.setup.bootstrap is not Bootstrap.ALONE:
            self.workload.request(self.hosts[0], Consense())

    def _remove_lost(self) -> None:
        """The operator gives up those whose disks were lost: holds wait for everybody known."""
        lost = {sim_peer_id(host.index, generation) for host in self.hosts for generation in range(host.generation)}
        lost -= {host.peer for host in self.hosts}  # a copy goes on as whom it was copied from
        for host in self.hosts:
            node = host.node
            known = set() if node is None else {named.peer for named in node.membership.directory()}
            gone = sorted(peer.hex() for peer in lost & known if node is not None and not node.log.is_gone(peer))
            if node is not None and gone:
                self.workload.request(host, RemovePeers(tuple(gone)))
                return

    def rest(self, within_s: float = CONVERGENCE_MAX_S) -> None:
        """Wait until all is in order, and a little longer. Raises Violation ``liveness`` when it never is."""
        self.until(lambda: not self.unrest(), within_s, "after the heal")
        self.advance(QUIET_S)
        if self.options.removals:
            self._remove_lost()
            self.advance(QUIET_S)
        self.checker.full_scan()
        left = self.unrest()
        if left:
            self.until(lambda: not self.unrest(), within_s, "a little after all agreed")
        if self.dataplane is not None:
            self.dataplane.final()

    def advance(self, seconds: float) -> None:
        self.scheduler.run_until(self.scheduler.now + seconds)

    def until(self, reached: Callable[[], bool], within_s: float, what: str, every_s: float = 0.25) -> float:
        """Virtual seconds it took. Raises Violation ``liveness`` after ``within_s``."""
        began = self.scheduler.now
        while not reached():
            if self.scheduler.now - began > within_s:
                raise Violation("liveness", f"{what}, after {within_s:.0f} s: {self.unrest() or 'not reached'}")
            self.advance(every_s)
        return self.scheduler.now - began

    def unrest(self) -> str:
        """What is not in order yet, or an empty string."""
        running = [host for host in self.hosts if host.node is not None]
        clusters: dict[bytes, list[Host]] = {}
        for host in running:
            assert host.node is not None
            clusters.setdefault(host.node.cluster.id, []).append(host)
        if self.options.setup.is_genesis_unique and len(clusters) > 1:
            return "clusters: " + " ".join(
                f"{cluster.hex()[:6]}={len(members)}" for cluster, members in clusters.items()
            )
        if b"" in clusters and (len(clusters) > 1 or self.workload.waiting()):
            return f"no cluster record at {' '.join(host.label for host in clusters[b''])}"
        for members in clusters.values():
            text = _disagreement(members) or _unfinished(members) or self._misnamed(members)
            if not text and self.dataplane is not None:
                text = self.dataplane.unrest(members)
            if text:
                return text
        return self._unforgotten(running) or self._unserved()

    def _unforgotten(self, running: list[Host]) -> str:
        if self.checker.is_forced:  # somebody may have left a cluster whose other members were removed by a lie
            return ""
        present = {host.peer for host in running}
        # Whoever is still the one that the leaver's log had removed has met nobody who knows of that log: the leaver
        # was its last member, by a removal of the living (history: the voter of two removes the other, then leaves).
        departed = {
            peer: departure.cluster
            for host in self.hosts
            for peer, departure in host.departed.items()
            if present.isdisjoint(departure.removed)
        }
        for host in running:
            if host.node is None:
                continue
            own = host.node.cluster.id
            for peer in host.node.membership.witnesses & departed.keys():
                # A newcomer between two clusters passes on who is there before it joins one of them. That somebody
                # left the other one is said only there, since the two refuse each other: it counts until somebody runs
                # rmpeer (history: seed 580).
                if not (own and departed[peer]) or own == departed[peer]:
                    return f"{host.label} still waits for the word of a peer that left"
        return ""

    def _misnamed(self, members: list[Host]) -> str:
        if not self.options.names:
            return ""
        return names_unrest(members, self.area, lambda address: self.workload.has_living(members, address))

    def _unserved(self) -> str:
        for host, pending in self.workload.waiting():
            node, command = host.node, pending.command
            if node is None:
                return f"{host.label} does not run"
            if isinstance(command, Claim):
                if self._is_owner_present(host, command.address):
                    return f"{host.label} has not answered {command}"
                continue
            assert isinstance(command, Allocate)
            windows = (command.subnet,) if command.subnet else self.options.setup.ranges
            if all(self._free_within(host, AddressRange.parse(window)) for window in windows):
                return f"{host.label} still waits for {command}"
        return ""

    def _is_owner_present(self, asker: Host, claim: str) -> bool:
        """Whether the owner of a claimed address runs, in the asker's cluster (history: seed 13230, where owners that
        had not heard of a genesis founded another), and may use it, so that it can say yes or no."""
        offset = self.area.offset(claim.partition("/")[0])
        if offset is None or asker.node is None:
            return True
        stamp = asker.node.ring.stamp_at(offset)
        owners = [] if stamp is None else [host.node for host in self.hosts if host.peer == stamp.owner]
        cluster = asker.node.cluster.id
        return any(
            node.cluster.id == cluster and not node.ipam.estate.space.held.count(offset, offset + 1)
            for node in owners
            if node is not None
        )

    def _free_within(self, asker: Host, window: AddressRange) -> bool:
        """Whether some reachable peer of the asker's cluster has a free address in the window."""
        clipped = self.area.window(window)
        if clipped is None or asker.node is None:
            return False
        low, high = clipped
        low += self.area.address(low) == window.address(0)
        high -= self.area.address(high - 1) == window.address(window.size - 1)
        for host in self.hosts:
            node = host.node
            if node is None or node.cluster.id != asker.node.cluster.id:
                continue
            held = node.ipam.estate.holdings.by_offset
            for start, end in node.ring.owned(host.peer):
                first, last = max(start, low), min(end, high)
                if node.ipam.estate.space.held.count(first, max(first, last)):
                    continue
                if last - first > sum(1 for offset in held if first <= offset < last):
                    return True
        return False


def _disagreement(members: list[Host]) -> str:
    first = members[0].node
    assert first is not None
    peers = {host.peer for host in members}
    for host in members:
        node = host.node
        assert node is not None
        if node.log.hash != first.log.hash:
            return f"{members[0].label} and {host.label} hold different logs"
        if node.ring.segments != first.ring.segments:
            return f"{members[0].label} and {host.label} hold different rings"
        missing = sorted(peers - host.open_peers - {host.peer})
        # Without a lease it keeps its paths shut, and whoever could renew it left after giving it up (seed 13479).
        is_given_up = node.planes.is_shut and not _has_quorum(node, members)
        if missing and not is_given_up:
            return f"{host.label} has no data path to {' '.join(peer.hex()[:6] for peer in missing)}"
    return ""


def _has_quorum(node: Node, members: list[Host]) -> bool:
    """Whether most of its voters are among those that run in its cluster."""
    running = {host.peer for host in members}
    running.update(each.node.ipam.seed_share.bound_as or each.peer for each in members if each.node is not None)
    return 2 * len(running.intersection(node.log.voters)) > len(node.log.voters)


def _unfinished(members: list[Host]) -> str:
    """Decrees and inheritances that nothing stands in the way of."""
    peers = {host.peer for host in members}
    for host in members:
        node = host.node
        assert node is not None
        leaving = node.membership.leaving
        if leaving.is_surrendering and leaving.waits_for(host.local_now()) <= peers:
            return f"{host.label} is still leaving: {'; '.join(leaving.needs)}"
        collect = node.membership.collect
        if collect.is_needed and set(collect.waiting_for) <= peers:
            return f"{host.label} still holds what it inherited"
        for owner in node.ring.shares:
            if owner in node.log.departed and node.log.heir(owner) in peers and not collect.is_needed:
                return f"{host.label} shows space of a departed peer"
            if owner in node.log.removed and node.log.heir(owner) in peers and not collect.is_needed:
                heir = next(each for each in members if each.peer == node.log.heir(owner))
                if heir.node is not None and not heir.node.membership.collect.is_needed:
                    return f"{host.label} shows space of a removed peer"
        if node.membership.wants_decree and _has_quorum(node, members):
            return f"{host.label} waits for a decree"
    return ""


def run_seed(
    seed: int, options: HistoryOptions | None = None, trace: Trace | None = None
) -> tuple[World, Violation | None]:
    """Run the history of ``seed``; the violation is returned, not raised."""
    world = World(seed, options or draw_options(seed), trace)
    try:
        world.run()
    except Violation as violation:
        return world, violation
    return world, None


__all__ = ["FaultKind", "HistoryOptions", "World", "draw_options", "run_seed"]
