"""What the data path's packets meet: UDP that is blocked by port and direction, on top of the network's own reach."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from weavenet.core.limits import PORT_DEFAULT, VXLAN_PORT
from weavenet.sim.network import Network
from weavenet.sim.scheduler import Scheduler

PORTS = (VXLAN_PORT, PORT_DEFAULT)
"""Of VXLAN and of sleeve."""

Cut = tuple[int, int, int]
"""(UDP port, from, to): nothing passes."""


class Underlay:
    def __init__(self, network: Network, scheduler: Scheduler, rng: random.Random) -> None:
        self._network = network
        self._scheduler = scheduler
        self._rng = rng
        self.cuts: set[Cut] = set()

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
        ports = rng.choice((PORTS[:1], PORTS[:1], PORTS[1:], PORTS))
        return [cut for port in ports for cut in self.cut(port, pairs)]
