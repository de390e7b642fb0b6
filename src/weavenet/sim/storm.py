"""Faults as they strike: each kind of :class:`FaultKind` on random victims, lifted again after a random while.

Several may be in force at once. Which hosts may lose their disk is bounded: only when everybody has the cluster record
(before that, a blank store is one elector more than anybody counts), and never more than a third of them. A disk is
set back or copied to a machine that is not told from the old one only behind the cluster record, and not a voter's: one
that forgot its vote and hears of it too late may vote again, which no counting of voters makes good.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from weavenet.core.types import PeerId
from weavenet.sim.disk import Disk
from weavenet.sim.faults import FaultKind, FaultOptions
from weavenet.sim.host import Host

if TYPE_CHECKING:
    from weavenet.sim.world import World

CRASH_EFFECTS_MAX = 40


class Storm:
    def __init__(self, world: World, options: FaultOptions) -> None:
        self._world = world
        self._options = options
        self._kinds = [kind for kind in FaultKind if options.weights.get(kind, 0.0) > 0]
        self._weights = [options.weights[kind] for kind in self._kinds]
        self._stopped = False
        self._disks_lost = 0
        self._electors_lost = 0

    @property
    def _rng(self) -> random.Random:
        return self._world.rng

    def stop(self) -> None:
        """Nothing strikes and nothing is lifted any more."""
        self._stopped = True

    def strike(self) -> None:
        """One random fault."""
        if self._kinds:
            self.cause(self._rng.choices(self._kinds, weights=self._weights)[0], self._rng.choice(self._world.hosts))

    def cause(self, kind: FaultKind, victim: Host) -> None:
        """``kind`` strikes ``victim`` now."""
        outage = self._rng.uniform(0.05, self._options.outage_max_s)
        if self._world.trace is not None:
            self._world.trace.add(self._world.scheduler.now, "**", f"{kind.value} {victim.label} {outage:.2f}s")
        match kind:
            case FaultKind.CRASH | FaultKind.STORE_FAILS:
                victim.kill()
                self._later(outage * self._rng.random(), victim.start)
            case FaultKind.CRASH_AMONG_EFFECTS:
                if victim.driver is not None:
                    victim.driver.crash_countdown = self._rng.randrange(CRASH_EFFECTS_MAX)
                self._later(outage, victim.start)
            case FaultKind.REBOOT:
                victim.kill(kernel_lost=True)
                victim.clock_offset_s = -self._world.scheduler.now + self._rng.random() * 60
                self._later(outage, victim.start)
            case FaultKind.LOST_DISK:
                self._lose_disk(victim, outage)
            case FaultKind.ROLLBACK:
                copy, peer = dict(victim.disk.durable), victim.peer
                self._later(outage, self._roll_back, victim, copy, peer, outage * self._rng.random())
            case FaultKind.CLONE:
                self._clone(victim, outage)
            case FaultKind.PARTITION | FaultKind.ISOLATE | FaultKind.ONE_WAY:
                self._cut(self._pairs(kind, victim), outage)
            case FaultKind.FLAP:
                pairs = self._pairs(FaultKind.PARTITION, victim)
                for turn in range(self._rng.randint(2, 5)):
                    self._later(outage * turn / 2, self._cut, pairs, outage / 4)
            case FaultKind.SWIZZLE:
                self._swizzle(outage)
            case FaultKind.CUT_LINK:
                links = self._world.network.links()
                if links:
                    self._world.network.break_link(*self._rng.choice(links))
            case FaultKind.PAUSE:
                victim.pause()
                self._later(outage, victim.resume)
            case FaultKind.SUSPEND:
                self._suspend(victim, outage, clock_stands=False)
            case FaultKind.VM_PAUSE:
                self._suspend(victim, outage, clock_stands=True)
            case FaultKind.SLOW_DISK:
                self._slow_disk(victim.disk, outage)

    def _later(self, delay_s: float, action: object, *arguments: object) -> None:
        self._world.scheduler.after(delay_s, self._unless_stopped, action, arguments)

    def _unless_stopped(self, action: object, arguments: tuple[object, ...]) -> None:
        if not self._stopped and callable(action):
            action(*arguments)

    # --- network ---

    def _pairs(self, kind: FaultKind, victim: Host) -> list[tuple[int, int]]:
        hosts = range(len(self._world.hosts))
        if kind is FaultKind.ISOLATE:
            side = {victim.index}
        elif kind is FaultKind.ONE_WAY:
            towards = [index for index in hosts if index != victim.index and self._rng.random() < 0.5]
            if self._rng.random() < 0.5:
                return [(victim.index, index) for index in towards]
            return [(index, victim.index) for index in towards]
        else:
            side = {index for index in hosts if self._rng.random() < 0.5}
        return [(a, b) for a in hosts for b in hosts if (a in side) != (b in side)]

    def _cut(self, pairs: list[tuple[int, int]], outage_s: float) -> None:
        self._world.network.block(pairs)
        self._later(outage_s, self._world.network.unblock, pairs)

    def _swizzle(self, outage_s: float) -> None:
        """Cut off random hosts one by one, then let them back in another order (FoundationDB)."""
        hosts = [host for host in self._world.hosts if self._rng.random() < 0.6]
        back = list(hosts)
        self._rng.shuffle(back)
        for turn, host in enumerate(hosts):
            pairs = self._pairs(FaultKind.ISOLATE, host)
            self._later(outage_s * turn / 10, self._world.network.block, pairs)
            returns = outage_s * (1 + back.index(host) / 5)
            self._later(returns, self._world.network.unblock, pairs)

    # --- hosts ---

    def _suspend(self, victim: Host, outage_s: float, *, clock_stands: bool) -> None:
        """Nothing runs and nothing passes; afterwards the clock has jumped, or not moved at all."""
        if victim.index in self._world.network.suspended:
            return
        self._world.network.suspended.add(victim.index)
        victim.pause()
        self._later(outage_s, self._wake, victim, outage_s if clock_stands else 0.0, victim.clock_offset_s)

    def _wake(self, victim: Host, lag_s: float, offset_s: float) -> None:
        """``offset_s``: of the clock that stood; a reboot meanwhile has begun another one."""
        self._world.network.suspended.discard(victim.index)
        if victim.clock_offset_s == offset_s:
            victim.clock_offset_s -= lag_s
        victim.resume()
        self._world.network.flush()

    def _lose_disk(self, victim: Host, outage_s: float) -> None:
        if self._may_lose_disk(victim):
            self._count_lost(victim)
            victim.lose_disk()
            self._later(outage_s, victim.start)

    def _may_lose_disk(self, victim: Host) -> bool:
        world = self._world
        hosts = world.hosts
        if self._disks_lost >= len(hosts) // 3 or not all(_has_record(host.disk) for host in hosts):
            return False
        electors = world.options.setup.electors
        if victim.index < electors and 2 * (self._electors_lost + 1) > electors:
            return False  # electors that are blank again, and a quorum among themselves, may decide another genesis
        left = electors - self._electors_lost - (victim.index < electors)
        if world.options.setup.ephemerals and 2 * left <= electors:
            return False  # without a quorum there is no lease
        return not world.options.resets or world.workload.may_blank(victim)

    def _count_lost(self, victim: Host) -> None:
        self._electors_lost += victim.index < self._world.options.setup.electors
        self._disks_lost += 1
        self._world.workload.lost(victim)
        self._world.checker.forget_host(victim)

    def _clone(self, victim: Host, outage_s: float) -> None:
        """Another host's disk is copied onto the machine of ``victim``, whose own is lost."""
        if not self._may_lose_disk(victim):
            return
        is_recognised = self._rng.random() < 0.5
        electors = self._world.options.setup.electors
        others = [host for host in self._world.hosts if host.peer != victim.peer and not host.is_set_back]
        if not is_recognised:  # the original may be the one that ends up as somebody new
            others = [host for host in others if host.index >= electors and not self._may_vote(host, {host.peer})]
        if not others:
            return
        original = self._rng.choice(others)
        self._count_lost(victim)
        victim.become_copy(original, is_recognised=is_recognised)
        self._later(outage_s, victim.start)

    def _roll_back(self, victim: Host, copy: dict[tuple[str, bytes], bytes], peer: PeerId, outage_s: float) -> None:
        """The disk of ``victim`` becomes what it was when ``copy`` was made, if it is still ``peer``."""
        world = self._world
        is_formed = all(_has_record(host.disk) for host in world.hosts) and any(table == "log" for table, _ in copy)
        if victim.peer != peer or self._may_vote(victim, {peer}) or not is_formed:
            return
        world.workload.lost(victim)
        world.checker.forget_host(victim)
        victim.set_back(copy)
        self._later(outage_s, victim.start)

    def _may_vote(self, victim: Host, ids: set[PeerId]) -> bool:
        """Whether any log names it, also as the seed that it was."""
        if victim.node is None:
            return True
        if victim.node.ipam.seed_share.bound_as is not None:
            ids = {*ids, victim.node.ipam.seed_share.bound_as}
        nodes = [host.node for host in self._world.hosts if host.node is not None]
        return any(ids.intersection(node.log.voters) for node in nodes)

    def _slow_disk(self, disk: Disk, outage_s: float) -> None:
        from msgspec.structs import replace

        slow_s = self._rng.uniform(0.05, 1.5)
        disk.options = replace(disk.options, fsync_max_s=slow_s, slow_fsync_max_s=2 * slow_s)
        self._later(outage_s, self._mend, disk)

    def _mend(self, disk: Disk) -> None:
        disk.options = self._options


def _has_record(disk: Disk) -> bool:
    return any(table == "log" for table, _ in disk.durable)
