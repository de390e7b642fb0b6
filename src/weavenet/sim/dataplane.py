"""The data path of a history: workers of sleeve, devices of WireGuard, UDP that is cut, broadcasts of containers, and
what must hold of them.

Only in histories whose setup has ``sleeve``: heartbeats of workers cost events.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from weavenet.core.effects import VxlanUse
from weavenet.core.events import PlaneTraffic, SleeveReported
from weavenet.core.overlay.sleeve import SleeveStatus
from weavenet.core.types import PeerId
from weavenet.sim.frames import Frames
from weavenet.sim.host import Host
from weavenet.sim.sleeve import Worker
from weavenet.sim.tunnel import Device
from weavenet.sim.underlay import Cut, Underlay
from weavenet.sim.violation import Violation

if TYPE_CHECKING:
    from weavenet.sim.world import World

CUT_PROBABILITY = 0.15
WORKER_DIES_PROBABILITY = 0.03
BROADCAST_PROBABILITY = 0.3
OUTAGE_MAX_S = 20.0
WORKER_RESTART_S = 0.5


class DataPlane:
    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"data path {seed}")
        self.underlay = Underlay(world.network, world.scheduler, self._rng)
        self.underlay.has_tunnels = world.options.setup.wireguard
        world.network.vxlan_passes = lambda source, target: bool(
            self.underlay.vxlan_passes(world.hosts[source], world.hosts[target])
        )
        self.frames = Frames(world.hosts, self.underlay)
        self.frames.on_traffic = lambda host: host.deliver(PlaneTraffic())
        self._is_stopped = False
        by_host: dict[str, Host] = {host.host: host for host in world.hosts}

        def lookup(host: str) -> Worker | None:
            found = by_host.get(host)
            return None if found is None else found.worker

        for host in world.hosts:
            host.worker = Worker(
                host.index,
                host.host,
                scheduler=world.scheduler,
                underlay=self.underlay,
                rng=random.Random(f"worker {seed} {host.index}"),
                lookup=lookup,
                report=_reporting(host),
                deliver=self._delivering(host),
            )
            if world.options.setup.wireguard:
                rng = random.Random(f"tunnel {seed} {host.index}")
                host.tunnel = Device(scheduler=world.scheduler, rng=rng, report=host.deliver)

    def _delivering(self, host: Host) -> Callable[[PeerId, int, tuple[int, ...]], None]:
        return lambda _, frame, trail: self.frames.by_sleeve(host.index, frame, trail)

    def trouble(self) -> None:
        """Between two actions of the history."""
        rng = self._rng
        host = rng.choice(self._world.hosts)
        chance = rng.random()
        if chance < CUT_PROBABILITY:
            cuts = self.underlay.random_cut(len(self._world.hosts))
            self._world.scheduler.after(rng.uniform(0.2, OUTAGE_MAX_S), self._mend, cuts)
        elif chance < CUT_PROBABILITY + WORKER_DIES_PROBABILITY:
            if host.worker is not None and host.worker.is_running:
                host.worker.stop()
                host.deliver(SleeveReported(None))
                self._world.scheduler.after(WORKER_RESTART_S, self._restart, host)
        elif chance < CUT_PROBABILITY + WORKER_DIES_PROBABILITY + BROADCAST_PROBABILITY:
            self.frames.broadcast(host)

    def _mend(self, cuts: list[Cut]) -> None:
        self.underlay.mend(cuts)

    def _restart(self, host: Host) -> None:
        if host.worker is not None and not host.worker.is_running and host.is_running:
            host.worker.start()
            desired = host.sleeve
            if desired is not None:
                host.worker.apply(desired)

    def heal(self) -> None:
        self.underlay.cuts.clear()

    def unrest(self, members: list[Host]) -> str:
        """Who of a cluster is not on its best plane yet."""
        peers = {host.peer for host in members}
        for host in members:
            for peer in host.plane:
                if peer.peer in peers and peer.vxlan is not VxlanUse.CARRIES:
                    return f"{host.label} is not back on fastdp to {peer.peer.hex()[:6]}"
            if host.worker is not None:
                for path in host.worker.status().paths:
                    if path.peer in peers and not path.works:  # idle ones may stay relayed until their next round
                        return f"{host.label} has no sleeve path to {path.peer.hex()[:6]}"
        return ""

    def final(self) -> None:
        """One broadcast of each host arrives once at each other of its cluster. Raises Violation."""
        self.frames.is_calm = True
        sent = [(host, self.frames.broadcast(host)) for host in self._world.hosts if host.node is not None]
        self._world.advance(2.0)
        for host, frame in sent:
            missing = [
                label
                for label in self.frames.missing(frame)
                if any(
                    each.label == label and each.node and host.node and each.node.cluster.id == host.node.cluster.id
                    for each in self._world.hosts
                )
            ]
            if missing:
                raise Violation("broadcast", f"frame {frame} of {host.label} never came to {' '.join(missing)}")


def _reporting(host: Host) -> Callable[[SleeveStatus], None]:
    return lambda status: host.deliver(SleeveReported(status))
