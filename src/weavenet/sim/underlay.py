"""What the data path's packets meet: UDP that is blocked by port and direction, on top of the network's own reach."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from weavenet.core.limits import PORT_DEFAULT, VXLAN_PORT
from weavenet.sim.network import Network
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.tunnel import PORT as WIREGUARD_PORT

if TYPE_CHECKING:
    from weavenet.sim.host import Host

PORTS = (VXLAN_PORT, PORT_DEFAULT)
"""Of VXLAN in clear and of sleeve."""

Cut = tuple[int, int, int]
"""(UDP port, from, to): nothing passes."""


class Underlay:
    def __init__(self, network: Network, scheduler: Scheduler, rng: random.Random) -> None:
        self._network = network
        self._scheduler = scheduler
        self._rng = rng
        self.cuts: set[Cut] = set()
        self.has_tunnels = False
        """VXLAN goes through WireGuard."""

    def vxlan_passes(self, source: Host, target: Host) -> int:
        """The UDP port over which VXLAN frames of one host come to another; 0 when they do not: through the tunnel if
        the sender was told of one, else in clear."""
        row = next((peer for peer in source.plane if peer.host == target.host), None)
        back = next((peer for peer in target.plane if peer.peer == source.kernel_peer), None)
        there = None if back is None else back.tunnel
        if row is None or row.tunnel is None:
            is_taken, port = there is None, VXLAN_PORT
        elif source.tunnel is None or target.tunnel is None or there is None or not source.tunnel.keys:
            return 0
        else:
            is_taken = target.tunnel.has(row.tunnel.keys[0]) and source.tunnel.keys[0] in there.keys
            port = WIREGUARD_PORT
        return port if is_taken and self.passes(port, source.index, target.index) else 0

    def passes(self, port: int, source: int, destination: int) -> bool:
        return (port, source, destination) not in self.cuts and self._network.passes(source, destination)

    def carry(self, port: int, source: int, destination: int, arrive: Callable[[], None]) -> None:
        """One packet: call ``arrive`` after a delay unless it is lost on the way."""
        if not self.passes(port, source, destination):
            return
        options = self._network.options
        if options.probe_loss_probability and self._rng.random() < options.probe_loss_probability:
            return
        delay_s = options.delay_min_s + self._rng.random() * (options.delay_max_s - options.delay_min_s)

        def land() -> None:
            if self.passes(port, source, destination):
                arrive()

        self._scheduler.after(delay_s, land)

    def cut(self, port: int, pairs: Iterable[tuple[int, int]]) -> list[Cut]:
        """Returns what to hand to :meth:`mend`."""
        cuts = [(port, source, destination) for source, destination in pairs]
        self.cuts.update(cuts)
        return cuts

    def mend(self, cuts: Iterable[Cut]) -> None:
        self.cuts.difference_update(cuts)

    def random_cut(self, hosts: int) -> list[Cut]:
        """UDP of one plane or both, between two hosts or around one, often in one direction only."""
        rng = self._rng
        if hosts < 2:
            return []
        one, other = rng.sample(range(hosts), 2)
        pairs = [(one, other), (other, one)]
        if rng.random() < 0.3:
            pairs = [(one, each) for each in range(hosts)] + [(each, one) for each in range(hosts)]
        if rng.random() < 0.3:
            pairs = [pair for pair in pairs if pair[0] == one]
        ports: tuple[int, ...] = rng.choice((PORTS[:1], PORTS[:1], PORTS[1:], PORTS))
        if self.has_tunnels:
            ports = tuple(WIREGUARD_PORT if port == VXLAN_PORT else port for port in ports)
        return [cut for port in ports for cut in self.cut(port, pairs)]
