"""Clients: containers that come, get addresses, die and go, and operators who connect, forget and ask.

A client believes what it was told: from a reply on, its address must survive every crash until it begins to give it
back. A client whose daemon died asks again after the restart, as ``attach`` does.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from weavenet.core.commands import (
    AddName,
    Addresses,
    Allocate,
    Attachment,
    Claim,
    Command,
    Connect,
    Consense,
    Destroyed,
    Died,
    Explain,
    Forget,
    GetReport,
    Lookup,
    PutAttachment,
    Release,
    RemoveAttachment,
    RemoveName,
    RemovePeers,
    Reset,
    Result,
    Revived,
)
from weavenet.core.errors import Failure
from weavenet.core.events import Cancelled, PlaneTraffic, Requested
from weavenet.core.ranges import Ranges
from weavenet.sim.checkers import Checker
from weavenet.sim.host import Host
from weavenet.sim.naming import name_command
from weavenet.sim.scheduler import Scheduler
from weavenet.sim.violation import Violation

IDENTS_PER_HOST_MAX = 40
RECONCILE_S = 0.05
"""After a start."""


@dataclass
class Container:
    """``held``: subnet as asked → address text with prefix, as told. ``leaving``: its address is being given back."""

    ident: str
    held: dict[str, str] = field(default_factory=dict)
    leaving: bool = False
    dead: bool = False
    plugged: Attachment | None = None
    """As the daemon was told last; followed only where names are played with."""


@dataclass
class Pending:
    container: Container | None
    command: Command
    since: float


class Workload:
    def __init__(
        self,
        hosts: list[Host],
        *,
        scheduler: Scheduler,
        rng: random.Random,
        checker: Checker,
        area: Ranges,
        subnets: tuple[str, ...],
        removals: float = 0.0,
        forced_removals: float = 0.0,
        names: float = 0.0,
        resets: float = 0.0,
        electors: int = 0,
    ) -> None:
        """``removals``, ``resets``: weight of ``rmpeer`` and ``reset`` among the actions; ``forced_removals``: share of
        the former with ``--force``. ``names``: weight of actions on names; containers then tell of their attachments
        what a real host would. ``electors``: of the hosts the first so many vote; 0: all."""
        self._hosts = hosts
        self._scheduler = scheduler
        self._rng = rng
        self._checker = checker
        self._area = area
        self._subnets = subnets
        self._forced_removals = forced_removals
        self._names = names
        self._resets = resets
        self._is_calm = False
        self._electors = electors
        self._next_request = 0
        self._next_ident = 0
        self.containers: list[dict[str, Container]] = [{} for _ in hosts]
        self.pending: list[dict[int, Pending]] = [{} for _ in hosts]
        self.replies = 0
        self._actions: tuple[tuple[float, Callable[[Host], None]], ...] = (
            (10.0, self.attach),
            (2.0, self.claim),
            (3.0, self.release),
            (1.5, self.destroy),
            (1.0, self.die),
            (1.0, self.revive),
            (0.7, self.cancel),
            (0.7, self.look),
            (0.7, self.consense),
            (0.4, self.connect),
            (0.2, self.forget),
            (1.0, self.traffic),
            (removals, self.remove),
            (names, self.name),
            (resets, self.reset),
        )

    def act(self) -> None:
        """One random action on one random host."""
        host = self._rng.choice(self._hosts)
        if host.is_running:
            weights = [weight for weight, _ in self._actions]
            action = self._rng.choices(self._actions, weights=weights)[0][1]
            action(host)

    # --- actions ---

    def request(self, host: Host, command: Command, container: Container | None = None) -> int:
        self._next_request += 1
        request = self._next_request
        self.pending[host.index][request] = Pending(container, command, self._scheduler.now)
        host.deliver(Requested(request, command))
        return request

    def attach(self, host: Host) -> None:
        containers = self.containers[host.index]
        living = [each for each in containers.values() if not (each.leaving or each.dead)]
        if living and self._rng.random() < 0.25:
            container = self._rng.choice(living)
        elif len(containers) < IDENTS_PER_HOST_MAX:
            container = self._new(host)
        else:
            return
        self.request(host, Allocate(container.ident, self._rng.choice(self._subnets)), container)

    def claim(self, host: Host) -> None:
        if self._rng.random() < 0.2:
            text = f"172.30.0.{self._rng.randint(1, 20)}/24"
        else:
            areas = self._area.areas
            area = areas[0] if len(areas) == 1 else self._rng.choice(areas)
            text = f"{area.address(self._rng.randrange(min(area.size, 4096)))}/{area.prefix_length}"
        container = self._new(host)
        self.request(host, Claim(container.ident, text), container)

    def release(self, host: Host) -> None:
        container = self._some(host)
        if container is None:
            return
        if len(container.held) > 1 and not self._is_asking(host, container) and self._rng.random() < 0.5:
            subnet = self._rng.choice(sorted(container.held))
            address = container.held[subnet].partition("/")[0]
            for key in [key for key, text in container.held.items() if text.partition("/")[0] == address]:
                del container.held[key]
            self._unacknowledge(host, container.ident, address)
            self._plugged_anew(host, container)
            self.request(host, Release(container.ident, (address,)))
        else:
            self._leave(host, container)
            self._unplug(host, container)
            self.request(host, Release(container.ident), container)

    def _is_asking(self, host: Host, container: Container) -> bool:
        """Whether something is being done to it: a host attaches and detaches the same container one after the other,
        and an answer that is on its way would bring back what is taken meanwhile (seed 14726)."""
        return any(pending.container is container for pending in self.pending[host.index].values())

    def destroy(self, host: Host) -> None:
        container = self._some(host)
        if container is not None:
            self._leave(host, container)
            self.request(host, Destroyed(container.ident), container)

    def die(self, host: Host) -> None:
        """The container's process ends; whether it returns in time is open, so nobody relies on its address."""
        container = self._some(host)
        if container is not None:
            for address in container.held.values():
                self._unacknowledge(host, container.ident, address.partition("/")[0])
            container.held.clear()
            container.dead = True
            if container.plugged is not None:
                self.request(host, PutAttachment(replace(container.plugged, live=False)))
            self.request(host, Died(container.ident))

    def revive(self, host: Host) -> None:
        dead = [each for each in self.containers[host.index].values() if each.dead and not each.leaving]
        if dead:
            container = self._rng.choice(dead)
            container.dead = False
            self.request(host, Revived(container.ident))

    def cancel(self, host: Host) -> None:
        waiting = sorted(self.pending[host.index])
        if waiting:
            request = self._rng.choice(waiting)
            pending = self.pending[host.index].pop(request)
            host.deliver(Cancelled(request))
            if pending.container is not None and not pending.container.leaving:
                self._leave(host, pending.container)  # whether it got its address nobody knows: clean up
                self.request(host, Destroyed(pending.container.ident), pending.container)

    def look(self, host: Host) -> None:
        container = self._some(host)
        if container is not None and self._rng.random() < 0.7:
            self.request(host, Lookup(container.ident), container)
        else:
            self.request(host, GetReport())

    def consense(self, host: Host) -> None:
        self.request(host, Consense())

    def connect(self, host: Host) -> None:
        self.request(host, Connect((self._rng.choice(self._hosts).host,)))

    def forget(self, host: Host) -> None:
        self.request(host, Forget((self._rng.choice(self._hosts).host,)))

    def remove(self, host: Host) -> None:
        """Somebody asserts that another peer is dead, true or not; mostly of one that is out of reach."""
        node = host.node
        if node is None:
            return
        reachable = node.mesh.reachable()
        known = [named.peer for named in node.membership.directory() if named.name]
        missing = [peer.hex() for peer in known if peer not in reachable]
        victims = missing if missing and self._rng.random() < 0.9 else [each.label for each in self._hosts]
        is_forced = self._rng.random() < self._forced_removals
        if is_forced:
            self._checker.force()
        names: tuple[str, ...] = (self._rng.choice(victims),)
        if self._rng.random() < 0.3:
            names = (*names, self._rng.choice(victims))
        elif is_forced and self._rng.random() < 0.5:
            names = tuple(missing)
        self.request(host, RemovePeers(names, is_forced, wait=self._rng.random() < 0.7))

    def name(self, host: Host) -> None:
        """Somebody registers a name, or takes one away."""
        attached = [each for each in self.containers[host.index].values() if each.plugged and not each.leaving]
        held = {each.ident: [text.partition("/")[0] for text in each.held.values()] for each in attached}
        self.request(host, name_command(self._rng, held))

    def reset(self, host: Host) -> None:
        """The host leaves, or its operator gives up after a while. Most have to stay: like a lost disk before the
        cluster record is everywhere, a new identity is one elector more than anybody counts."""
        nodes = [each.node for each in self._hosts]
        is_formed = all(node is None or node.log.genesis is not None for node in nodes)
        if not is_formed or not self.may_blank(host):
            return
        request = self.request(host, Reset())
        self._scheduler.after(self._rng.choice((1.0, 5.0, 30.0)), self._give_up, host, request)

    def may_blank(self, host: Host) -> bool:
        """Whether enough would remain if ``host`` were somebody new: blank electors that are a quorum by what they were
        told could divide the addresses a second time."""
        asked = {each.index for each in self._hosts if any(map(_is_reset, self.pending[each.index].values()))}
        blank = {each.index for each in self._hosts if each.is_blanked} | asked | {host.index}
        electors = self._electors or len(self._hosts)
        return len(blank) <= len(self._hosts) // 2 and sum(index < electors for index in blank) <= electors // 2

    def calm(self) -> None:
        """Nobody leaves who may still stay, and nobody who left comes back."""
        self._is_calm = True
        for host in self._hosts:
            for request in [each for each, pending in self.pending[host.index].items() if _is_reset(pending)]:
                self._give_up(host, request)

    def _give_up(self, host: Host, request: int) -> None:
        if self.pending[host.index].pop(request, None) is not None:
            host.deliver(Cancelled(request))

    def traffic(self, host: Host) -> None:
        host.deliver(PlaneTraffic())

    # --- what happens to clients ---

    def started(self, host: Host) -> None:
        """The daemon is back: whoever still waits asks again."""
        if self._names:
            self._scheduler.after(RECONCILE_S, self._reconcile, host)
        waiting, self.pending[host.index] = self.pending[host.index], {}
        for pending in waiting.values():
            container = pending.container
            if isinstance(pending.command, Allocate | Claim | Release | Destroyed | Consense):
                self._scheduler.after(self._rng.random() * 0.5, self._ask_again, host, container, pending.command)

    def _ask_again(self, host: Host, container: Container | None, command: Command) -> None:
        if container is not None and self.containers[host.index].get(container.ident) is not container:
            return
        if isinstance(command, Allocate | Claim) and (container is None or container.leaving):
            return
        if host.is_running:
            if isinstance(command, Release) and container is not None and container.leaving:
                self._unplug(host, container)  # whoever detaches again does all of it again
            self.request(host, command, container)

    def lost(self, host: Host) -> None:
        """The machine lost its disk and its containers."""
        self.containers[host.index] = {}
        self.pending[host.index] = {}

    def vacated(self, host: Host) -> None:
        """Its containers are off the network; whoever resets it goes on waiting."""
        for container in self.containers[host.index].values():
            container.leaving = True
        self.containers[host.index] = {}
        if not host.is_running:
            self.pending[host.index] = {}
            if self._resets and not self._is_calm and self._rng.random() < 0.5:
                self._scheduler.after(self._rng.uniform(0.1, 10.0), host.start)
            return
        self.pending[host.index] = {
            request: pending for request, pending in self.pending[host.index].items() if pending.container is None
        }

    def replied(self, host: Host, request: int, result: Result) -> None:
        self.replies += 1
        pending = self.pending[host.index].pop(request, None)
        if pending is None:
            return
        container = pending.container
        match pending.command:
            case Allocate(subnet=subnet):
                self._told(host, container, subnet, result)
            case Claim(address=address):
                self._told(host, container, address, result)
            case Lookup():
                self._compare(host, container, result)
            case Release() | Destroyed():
                if container is not None and container.leaving:
                    self.containers[host.index].pop(container.ident, None)
            case Forget() | RemovePeers() | AddName() | RemoveName() | Explain():
                pass
            case _:
                if isinstance(result, Failure) and not isinstance(pending.command, Connect):
                    raise Violation("reply", f"{host.label}: {pending.command} failed: {result.sentence()}")

    def _told(self, host: Host, container: Container | None, key: str, result: Result) -> None:
        if container is None or container.leaving:
            return
        if isinstance(result, Failure):
            asks = any(pending.container is container for pending in self.pending[host.index].values())
            if not container.held and not asks:
                self.containers[host.index].pop(container.ident, None)
            return
        assert isinstance(result, Addresses)
        for number, text in enumerate(result.addresses):
            self._has(host, container, f"{key}#{number}" if number else key, text)
        if container.held and not container.dead and self._rng.random() < 0.5:
            mac = b"\x02" + hashlib.sha256(f"{host.index}/{container.ident}".encode()).digest()[:5]
            addresses = tuple(container.held.values())
            attachment = Attachment(container.ident, container.ident, mac, (), addresses, False, True)
            self._scheduler.after(0.001, self._plug, host, container, attachment)

    def _has(self, host: Host, container: Container, key: str, text: str) -> None:
        """The client was told ``text``, for what it asked as ``key``."""
        address = text.partition("/")[0]
        before = container.held.get(key)
        if before is not None and before != text:
            raise Violation("acknowledged", f"{host.label}: {container.ident} had {before} and was told {text}")
        if ("alloc", f"{container.ident}\0{address}".encode()) not in host.disk.durable and not container.dead:
            raise Violation("durable-before", f"{host.label} promised {text} to {container.ident} without having it")
        if container.dead:
            return
        container.held[key] = text
        self._checker.told(host, container.ident, address)

    def _plug(self, host: Host, container: Container, attachment: Attachment) -> None:
        if host.is_running and container.held and not container.leaving:
            if not self._names:
                self.request(host, PutAttachment(attachment))
                return
            container.plugged = attachment
            self._plugged_anew(host, container, self._rng.choice(("", container.ident, "n1")))

    def _plugged_anew(self, host: Host, container: Container, name: str = "") -> None:
        """Tell the daemon what a plugged container has now."""
        if container.plugged is not None:
            addresses = tuple(dict.fromkeys(container.held.values()))
            container.plugged = replace(container.plugged, addresses=addresses)
            self.request(host, PutAttachment(container.plugged, name))

    def _unplug(self, host: Host, container: Container) -> None:
        if container.plugged is not None:
            self.request(host, RemoveAttachment(container.ident))

    def _reconcile(self, host: Host) -> None:
        """The daemon is back: it finds out what became of the attachments, as on a real host."""
        for container in list(self.containers[host.index].values()) if host.is_running else ():
            if container.plugged is None:
                continue
            if container.leaving:
                self._unplug(host, container)
            elif container.dead:
                self._leave(host, container)
                self.request(host, Destroyed(container.ident), container)
            else:
                self._plugged_anew(host, container)

    def has_living(self, hosts: Iterable[Host], address: str) -> bool:
        """Whether a container on one of ``hosts`` lives and was told ``address``."""
        return any(
            text.partition("/")[0] == address and not (container.dead or container.leaving)
            for host in hosts
            for container in self.containers[host.index].values()
            for text in container.held.values()
        )

    def _compare(self, host: Host, container: Container | None, result: Result) -> None:
        if container is None or container.leaving or container.dead or not isinstance(result, Addresses):
            return
        for text in container.held.values():
            if text not in result.addresses:
                raise Violation("reply", f"{host.label}: lookup of {container.ident} lacks {text}: {result.addresses}")

    # --- shared ---

    def _new(self, host: Host) -> Container:
        self._next_ident += 1
        container = Container(f"c{self._next_ident}")
        self.containers[host.index][container.ident] = container
        return container

    def _some(self, host: Host) -> Container | None:
        living = [
            each for each in self.containers[host.index].values() if each.held and not (each.leaving or each.dead)
        ]
        return self._rng.choice(living) if living else None

    def _leave(self, host: Host, container: Container) -> None:
        container.leaving = True
        for address in container.held.values():
            self._unacknowledge(host, container.ident, address.partition("/")[0])

    def _unacknowledge(self, host: Host, ident: str, address: str) -> None:
        self._checker.acknowledged[host.index].pop((ident, address), None)

    def waiting(self) -> list[tuple[Host, Pending]]:
        """Allocations and claims without an answer."""
        return [
            (host, pending)
            for host in self._hosts
            for pending in self.pending[host.index].values()
            if isinstance(pending.command, Allocate | Claim)
        ]


def _is_reset(pending: Pending) -> bool:
    return isinstance(pending.command, Reset)
