"""A world driven by hand: scenarios read as what happens, to whom, and what must hold then."""

from __future__ import annotations

from weavenet.core.commands import Addresses, Allocate, Claim, Command, Consense, Result
from weavenet.core.types import PeerId, Stamp
from weavenet.sim.faults import CALM, FaultOptions
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap, Setup
from weavenet.sim.trace import Trace
from weavenet.sim.violation import Violation
from weavenet.sim.workload import Container
from weavenet.sim.world import HistoryOptions, World

PATIENCE_S = 60.0


class Stage(World):
    """``bootstrap`` and the rest as in :class:`Setup`; no faults but those that the scenario causes."""

    def __init__(
        self,
        seed: int,
        peers: int,
        *,
        bootstrap: Bootstrap = Bootstrap.FULL_LIST,
        range_cidr: str = "10.32.0.0/24",
        electors: int | None = None,
        faults: FaultOptions = CALM,
        discovery: bool = True,
        seed_twin: bool = False,
        ephemerals: int = 0,
        ttl_s: int = 20,
        sleeve: bool = False,
        wireguard: bool = False,
        trace: Trace | None = None,
    ) -> None:
        setup = Setup(
            peers=peers,
            electors=peers if electors is None else electors,
            bootstrap=bootstrap,
            range_cidr=range_cidr,
            launch_spread_s=0.0,
            discovery=discovery,
            seed_twin=seed_twin,
            ephemerals=ephemerals,
            ttl_s=ttl_s,
            sleeve=sleeve,
            wireguard=wireguard,
        )
        super().__init__(seed, HistoryOptions(setup=setup, faults=faults, is_forced=seed_twin), trace)
        self.answers: dict[int, Result] = {}

    def replied(self, host: Host, request: int, result: Result) -> None:
        self.answers[request] = result
        super().replied(host, request, result)

    # --- what happens ---

    def start(self, *hosts: Host) -> None:
        for host in hosts or tuple(self.hosts):
            host.start()

    def ask(self, host: Host, command: Command) -> int:
        """Let a client ask; its believing what it is told is checked like any other's."""
        container = None
        if isinstance(command, Allocate | Claim):
            containers = self.workload.containers[host.index]
            container = containers.setdefault(command.ident, Container(command.ident))
        return self.workload.request(host, command, container)

    def answer(self, request: int, within_s: float = PATIENCE_S) -> Result:
        self.until(lambda: request in self.answers, within_s, f"answer to request {request}", every_s=0.01)
        return self.answers[request]

    def allocate(self, host: Host, ident: str, subnet: str = "") -> str:
        """The address that ``ident`` gets, without its prefix."""
        result = self.answer(self.ask(host, Allocate(ident, subnet)))
        if not isinstance(result, Addresses):
            raise Violation("reply", f"{host.label}: {ident} got {result}")
        return result.addresses[0].partition("/")[0]

    def form(self) -> None:
        """Launch everybody and wait for one cluster in which all have data paths to all."""
        self.start()
        self.answer(self.ask(self.hosts[0], Consense()))
        self.settle()

    def settle(self, within_s: float = PATIENCE_S) -> float:
        return self.until(lambda: not self.unrest(), within_s, "rest")

    def partition(self, *sides: tuple[Host, ...]) -> None:
        """Nothing passes between hosts of different sides."""
        side_of = {host.index: number for number, side in enumerate(sides) for host in side}
        self.network.block([(a, b) for a in side_of for b in side_of if side_of[a] != side_of[b]])

    def reunite(self) -> None:
        self.network.blocked.clear()
        self.network.flush()

    def fill(self, host: Host, count: int, prefix: str) -> list[str]:
        """``count`` containers on ``host`` ask for addresses; those that got one within a second."""
        requests = [self.ask(host, Allocate(f"{prefix}{number}")) for number in range(count)]
        self.advance(1.0)
        found = []
        for request in requests:
            result = self.answers.get(request)
            if isinstance(result, Addresses):
                found.append(result.addresses[0].partition("/")[0])
        return found

    # --- what is seen ---

    def stamp(self, host: Host, address: str) -> Stamp:
        offset = self.area.offset(address)
        assert host.node is not None and offset is not None
        stamp = host.node.ring.stamp_at(offset)
        assert stamp is not None
        return stamp

    def owner(self, host: Host, address: str) -> PeerId:
        return self.stamp(host, address).owner

    def clusters(self) -> list[bytes]:
        """Cluster ids of the running hosts, without repetition."""
        return sorted({host.node.cluster.id for host in self.hosts if host.node is not None})

    def links_between(self, host: Host, other: Host) -> bool:
        return host.node is not None and host.node.mesh.next_hop(other.peer) is not None
