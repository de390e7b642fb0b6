"""Two hosts as nameless network namespaces, joined by a veth underlay, driven from one event loop.

Nothing here has a name in the machine's namespace directory, so nothing can be left behind: the namespaces vanish with
their file descriptors.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from weavenet.core.commands import (
    AddName,
    Addresses,
    Allocate,
    Attachment,
    Attachments,
    Claim,
    Command,
    Destroyed,
    Died,
    Done,
    ListAttachments,
    Lookup,
    PutAttachment,
    Release,
    RemoveAttachment,
    Result,
)
from weavenet.core.effects import Endpoint, PlanePeer
from weavenet.core.errors import Code, Failure
from weavenet.core.types import PeerId, bridge_mac, plane_mac
from weavenet.host import netns
from weavenet.host.attach import Attacher
from weavenet.host.bridge import Bridge
from weavenet.host.firewall import Firewall
from weavenet.host.kernel import Kernel
from weavenet.plane.vxlan import VxlanPlane

DEADLINE_S = 20.0


def run(namespace: int, *command: str, check: bool = True) -> str:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


async def run_async(namespace: int, *command: str, check: bool = True) -> str:
    return await asyncio.to_thread(run, namespace, *command, check=check)


async def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.02)


async def eventually(attempt: Callable[[], Awaitable[object]], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not await attempt():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.02)


@dataclass
class Host:
    """One host's namespace and, while :meth:`start`-ed, the parts of a daemon that touch the kernel."""

    number: int
    namespace: int
    firewalled: bool = True
    mtu: int = 1376
    peers: tuple[PlanePeer, ...] = ()
    containers: list[int] = field(default_factory=list)
    kernel: Kernel = field(init=False)
    bridge: Bridge = field(init=False)
    plane: VxlanPlane = field(init=False)
    attacher: Attacher = field(init=False)
    firewall: Firewall | None = None

    @property
    def peer(self) -> PeerId:
        return PeerId(bytes([self.number]) * 16)

    @property
    def underlay(self) -> str:
        return f"192.0.2.{self.number}"

    async def start(self) -> None:
        self.kernel = await Kernel.open(self.namespace)
        self.bridge = Bridge(
            self.kernel.netlink, self.kernel.links, mac=bridge_mac(self.peer), mtu=self.mtu, namespace=self.namespace
        )
        self.firewall = Firewall(self.namespace) if self.firewalled else None
        if self.firewall is not None:
            await self.firewall.open()
        self.plane = VxlanPlane(
            self.kernel, self.bridge, mac=plane_mac(self.peer), mtu=self.mtu, firewall=self.firewall
        )
        self.attacher = Attacher(self.kernel, self.bridge, peer=self.peer, mtu=self.mtu)
        await self.plane.open()
        if self.peers:
            await self.plane.apply(self.peers)

    async def stop(self) -> None:
        await self.plane.close()
        if self.firewall is not None:
            await self.firewall.close()
        self.kernel.close()

    async def apply(self, *peers: PlanePeer) -> None:
        self.peers = peers
        await self.plane.apply(peers)

    def as_peer(self, *endpoints: Endpoint) -> PlanePeer:
        return PlanePeer(self.peer, self.underlay, plane_mac(self.peer), endpoints)

    async def container(self, ident: str, *addresses: str) -> tuple[int, Endpoint]:
        """A nameless namespace, plugged in."""
        namespace = netns.create()
        self.containers.append(namespace)
        mac = await self.attacher.plug(netns.Container(f"netns:{ident}", ident, namespace), addresses)
        return namespace, Endpoint(mac, addresses)

    def discard(self) -> None:
        for namespace in (*self.containers, self.namespace):
            os.close(namespace)


class Pair:
    """Two started hosts. ``async with Pair() as (a, b)``."""

    def __init__(self, *, firewalled: bool = True, underlay_mtu: int = 1500) -> None:
        self.hosts = tuple(Host(number, netns.create(), firewalled) for number in (1, 2))
        self._underlay_mtu = underlay_mtu

    async def __aenter__(self) -> tuple[Host, Host]:
        a, b = self.hosts
        async with await Kernel.open(a.namespace) as kernel:
            await kernel.netlink.add_veth(
                "under", mtu=self._underlay_mtu, peer_name="under", peer_mac=bytes.fromhex("020000aa0002"),
                peer_namespace=b.namespace
            )  # fmt: skip
        for host in self.hosts:
            run(host.namespace, "ip", "address", "add", f"{host.underlay}/24", "dev", "under")
            run(host.namespace, "ip", "link", "set", "under", "up")
            run(host.namespace, "ip", "link", "set", "lo", "up")
            await host.start()
        return a, b

    async def __aexit__(self, *_: object) -> None:
        for host in self.hosts:
            await host.stop()
            host.discard()


class FakeNode:
    """Answers attachment commands as the node would, from memory, and keeps what it was told."""

    def __init__(self) -> None:
        self.held: dict[str, list[str]] = {}
        self.attachments: dict[str, Attachment] = {}
        self.log: list[Command] = []
        self.refuse: type | None = None
        self.delay_s = 0.0
        self._next = 1

    async def request(self, command: Command) -> Result:
        await asyncio.sleep(self.delay_s if isinstance(command, Allocate | Claim) else 0)
        self.log.append(command)
        if self.refuse is not None and isinstance(command, self.refuse):
            return Failure(Code.NO_SPACE, "there must be an address", "there is none")
        match command:
            case Allocate(ident, subnet):
                return Addresses((self._allocate(ident, subnet),))
            case Claim(ident, address):
                self._hold(ident, address)
                return Addresses((address,))
            case Lookup(ident, _):
                return Addresses(tuple(self.held.get(ident, ())))
            case Release(ident, addresses):
                held = self.held.get(ident, [])
                freed = [a for a in held if not addresses or a.partition("/")[0] in addresses]
                self.held[ident] = [a for a in held if a not in freed]
                return Addresses(tuple(freed))
            case Died(_):
                return Done()
            case Destroyed(ident, remembered):
                self.held.pop(ident, None)
                self.attachments.pop(ident, None)
                if remembered is not None:
                    self.attachments[ident] = remembered
                return Done()
            case PutAttachment(attachment):
                self.attachments[attachment.ident] = attachment
                return Done()
            case AddName(_):
                return Done()
            case RemoveAttachment(ident):
                self.attachments.pop(ident, None)
                return Done()
            case ListAttachments():
                return Attachments(tuple(self.attachments.values()))
            case _:
                return Failure(Code.INVALID, f"{type(command).__name__} is not expected here")

    def dying_after(self, last: type) -> Callable[[Command], Awaitable[Result]]:
        """The node as a daemon sees it that is killed when the first ``last`` was done: who asks goes no further."""
        is_dead = False

        async def request(command: Command) -> Result:
            nonlocal is_dead
            if not is_dead:
                result = await self.request(command)
                is_dead = isinstance(command, last)
                if not is_dead:
                    return result
            raise asyncio.CancelledError

        return request

    def _allocate(self, ident: str, subnet: str) -> str:
        prefix = subnet.partition("/")[0].rsplit(".", 1)[0] if subnet else "10.32.0"
        for address in self.held.get(ident, ()):
            if address.startswith(prefix + "."):
                return address
        address = f"{prefix}.{self._next}/{subnet.partition('/')[2] or '12'}"
        self._next += 1
        self._hold(ident, address)
        return address

    def _hold(self, ident: str, address: str) -> None:
        held = self.held.setdefault(ident, [])
        if address not in held:
            held.append(address)
