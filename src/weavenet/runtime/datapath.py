"""The kernel side of one life: bridge, plane, firewall and attachments behind the calls that the executor makes.

What the kernel is to be like goes through the :class:`Applier`.

Everything of ``host`` and ``plane`` is imported when it is opened, since pyroute2 alone takes 140 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from weavenet.control.service import AttachSpec, ExposeSpec, HideSpec
from weavenet.core.commands import Addresses, Attachments, Command, Result
from weavenet.core.effects import PlanePeer
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.events import Event, PlaneTraffic, ProbeReceived, WireguardReported
from weavenet.core.limits import BRIDGE, DNS_DOMAIN_DEFAULT, SLEEVE_UNIT_BYTES, WIREGUARD_DEVICE
from weavenet.core.overlay.planes import FASTDP, SLEEVE, WIREGUARD
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId, bridge_mac, plane_mac
from weavenet.runtime.applier import Applier, Blocked

if TYPE_CHECKING:
    from weavenet.host.attachments import Attachments as AttachmentKeeper
    from weavenet.host.bridge import Bridge
    from weavenet.host.dnsaddress import DnsAddress
    from weavenet.host.exposure import Exposure
    from weavenet.host.firewall import Firewall
    from weavenet.host.kernel import Kernel
    from weavenet.plane.vxlan import VxlanPlane
    from weavenet.plane.wireguard import Tunnel
    from weavenet.runtime.sleeveworker import SleeveWorker

NO_WIREGUARD = (
    "--wireguard any has no effect: it takes a password, the kernel data path, and WireGuard in the kernel or the "
    "program wireguard-go; next: apt-get install wireguard-go, or launch without it"
)


class NameOwner(NamedTuple):
    """``name``: what it calls itself, or empty."""

    ident: str
    name: str = ""


class SleevePlace(NamedTuple):
    """``host``: address to bind, empty: all. ``port``: UDP."""

    run_dir: str
    host: str
    port: int


class WireguardPlace(NamedTuple):
    """``port``: UDP. ``has_process``: ``wireguard-go`` may be used where the kernel has no WireGuard."""

    port: int
    has_process: bool


class Datapath(Protocol):
    """What a life needs of the host. ``on_dns_addresses``, set before :meth:`open`, gets the (address, device) at
    which containers may ask this host's DNS server, now and whenever they change; None: nobody serves there."""

    on_dns_addresses: Callable[[tuple[tuple[str, str], ...]], None] | None

    async def open(self, post: Callable[[Event], None]) -> None:
        """Raises WeaveError or OSError."""

    async def adopt(self, request: Callable[[Command], Awaitable[Result]]) -> None:
        """Bring attachments in line with what is remembered; the node must answer ``request`` by now."""

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        """``done`` once nobody is in the kernel who is not among ``peers``."""

    def set_sleeve(self, desired: SleeveDesired) -> None: ...

    def set_blocked(self, blocked: Blocked, done: Callable[[], None]) -> None: ...

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None: ...

    async def attach(self, spec: AttachSpec) -> Addresses | Failure: ...

    async def detach(self, container: str, addresses: tuple[str, ...]) -> Addresses | Failure: ...

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure: ...

    async def hide(self, spec: HideSpec) -> Addresses | Failure: ...

    def owner(self, container: str) -> NameOwner | Failure:
        """Whom names of ``container`` belong to."""

    async def ps(self) -> Attachments: ...

    async def vacate(self) -> None:
        """Take every container and the host itself off the network for good. Raises WeaveError or OSError."""

    async def withdraw(self) -> None:
        """Close, and take this host off the network if it still is on it. Raises WeaveError or OSError."""

    def warnings(self) -> tuple[str, ...]: ...

    async def close(self) -> None:
        """Stop watching; everything in the kernel stays."""


def _has_bridge() -> bool:
    """Asked without the netlink library, whose import takes longest of all."""
    return any(name == BRIDGE for _, name in socket.if_nameindex())


class KernelDatapath:
    """Implements :class:`Datapath` with the real kernel. ``planes`` empty: bridge and attachments only. ``sleeve``:
    where its worker is to be found; None: none is run. ``wireguard``: likewise of its device. ``in_clear``: whether the
    kernel's VXLAN may carry frames as they are."""

    def __init__(
        self,
        peer: PeerId,
        *,
        mtu: int,
        planes: tuple[str, ...],
        domain: str = DNS_DOMAIN_DEFAULT,
        sleeve: SleevePlace | None = None,
        wireguard: WireguardPlace | None = None,
        in_clear: bool = True,
    ) -> None:
        self.on_dns_addresses: Callable[[tuple[tuple[str, str], ...]], None] | None = None
        self._domain = domain
        self._peer, self._mtu, self._planes = peer, mtu, planes
        self._sleeve_place = sleeve
        self._wireguard_place = wireguard if WIREGUARD in planes else None
        self._lacks_wireguard = WIREGUARD not in planes and wireguard is not None and wireguard.has_process
        self._unit_bytes = None if in_clear else SLEEVE_UNIT_BYTES
        self._worker: SleeveWorker | None = None
        self._kernel: Kernel | None = None
        self._bridge: Bridge | None = None
        self._plane: VxlanPlane | None = None
        self._firewall: Firewall | None = None
        self._attachments: AttachmentKeeper | None = None
        self._exposure: Exposure | None = None
        self._dns_address: DnsAddress | None = None
        # Without a bridge nothing passes, so nobody has to be closed before peers may hear of us.
        self._applier = Applier(self._block, self._apply if planes else None, None if _has_bridge() else frozenset())
        self._task: asyncio.Task[None] | None = None
        self._undo = contextlib.AsyncExitStack()

    async def open(self, post: Callable[[Event], None]) -> None:
        from weavenet.host.bridge import Bridge
        from weavenet.host.firewall import Firewall
        from weavenet.host.kernel import Kernel

        try:
            self._kernel = kernel = await Kernel.open()
            self._undo.callback(kernel.close)
            self._bridge = Bridge(kernel.netlink, kernel.links, mac=bridge_mac(self._peer), mtu=self._mtu)
            self._firewall = Firewall()
            await self._firewall.open()
            self._undo.push_async_callback(self._firewall.close)
            left = kernel.links.get(WIREGUARD_DEVICE)
            if left is not None and self._wireguard_place is None:  # of a start with other settings
                await kernel.netlink.delete_link(left.index)
            if self._planes:
                self._plane = self._make_plane(post)
                await self._plane.open()
                self._undo.push_async_callback(self._plane.close)
            else:
                await self._bridge.ensure()
            await self._open_dns_address(kernel, self._bridge, self._firewall)
        except PermissionError as error:
            await self._undo.aclose()
            raise WeaveError(
                Failure(
                    Code.HOST,
                    "expected the right to make network devices",
                    str(error),
                    "run as root with the capability CAP_NET_ADMIN",
                )
            ) from error
        except BaseException:
            await self._undo.aclose()
            raise
        if self._sleeve_place is not None and self._plane is not None and SLEEVE in self._planes:
            self._start_sleeve(post, self._sleeve_place, self._plane)
        self._task = asyncio.create_task(self._applier.run())

    def _start_sleeve(self, post: Callable[[Event], None], place: SleevePlace, plane: VxlanPlane) -> None:
        from weavenet.runtime.sleeveworker import SleeveWorker

        worker = SleeveWorker(
            self._peer,
            run_dir=place.run_dir,
            host=place.host,
            port=place.port,
            post=post,
            is_plugged=plane.sleeve_port,
        )
        self._worker = worker
        self._undo.push_async_callback(worker.close)
        self._applier.on_sleeve = worker.set_desired
        worker.start()

    async def _open_dns_address(self, kernel: Kernel, bridge: Bridge, firewall: Firewall) -> None:
        """Nothing when nobody serves there."""
        from weavenet.host.dnsaddress import DnsAddress

        if self.on_dns_addresses is None:
            return
        self._dns_address = address = DnsAddress(kernel, bridge, firewall, self.on_dns_addresses, self._attached)
        await address.open()
        self._undo.push_async_callback(address.close)

    async def _attached(self) -> list[str]:
        attached = (await self._attachments.ps()).attachments if self._attachments is not None else ()
        return [attachment.container for attachment in attached]

    def _make_plane(self, post: Callable[[Event], None]) -> VxlanPlane:
        from weavenet.plane.vxlan import VxlanPlane

        if self._kernel is None or self._bridge is None:
            raise RuntimeError("the plane sits on kernel and bridge")
        plane = VxlanPlane(
            self._kernel,
            self._bridge,
            mac=plane_mac(self._peer),
            mtu=self._mtu,
            firewall=self._firewall,
            has_vxlan=FASTDP in self._planes,
            tunnel=self._make_tunnel(post, self._kernel),
        )
        plane.on_probe = lambda mac, nonce, is_answer: post(ProbeReceived(mac, nonce, is_answer))
        plane.on_traffic = lambda: post(PlaneTraffic())
        return plane

    def _make_tunnel(self, post: Callable[[Event], None], kernel: Kernel) -> Tunnel | None:
        if self._wireguard_place is None:
            return None
        from weavenet.plane.wireguard import Tunnel
        from weavenet.runtime.wireguardkeys import X25519Keys

        return Tunnel(
            kernel,
            mtu=self._mtu,
            port=self._wireguard_place.port,
            keys=X25519Keys(),
            has_process=self._wireguard_place.has_process,
            on_keys=lambda keys, port: post(WireguardReported(keys, port)),
        )

    async def adopt(self, request: Callable[[Command], Awaitable[Result]]) -> None:
        from weavenet.host.attach import Attacher
        from weavenet.host.attachments import Attachments as AttachmentKeeper

        if self._kernel is None or self._bridge is None:
            raise RuntimeError("attachments need the bridge")
        on_link = () if self._dns_address is None else (f"{self._dns_address.address}/32",)
        attacher = Attacher(
            self._kernel,
            self._bridge,
            peer=self._peer,
            mtu=self._mtu,
            on_link=on_link,
            unit_bytes=self._unit_bytes,
        )
        keeper = AttachmentKeeper(self._kernel, attacher, request, domain=self._domain)
        self._undo.push_async_callback(keeper.close)
        await keeper.open()
        self._attachments = keeper
        await self._adopt_exposure(self._kernel, self._bridge, request)

    async def _adopt_exposure(
        self, kernel: Kernel, bridge: Bridge, request: Callable[[Command], Awaitable[Result]]
    ) -> None:
        from weavenet.host.exposure import Exposure

        if self._firewall is None:
            raise RuntimeError("exposing needs the firewall")
        exposure = Exposure(kernel, bridge, self._firewall, request, self._domain)
        self._undo.push_async_callback(exposure.close)
        await exposure.set_blocked(self._applier.blocked)
        await exposure.open()
        self._exposure = exposure

    async def _block(self, blocked: Blocked) -> None:
        if self._firewall is not None:
            await self._firewall.set_blocked(blocked)
        if self._exposure is not None:
            await self._exposure.set_blocked(blocked)

    async def _apply(self, peers: tuple[PlanePeer, ...]) -> None:
        if self._plane is not None:
            await self._plane.apply(peers)

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        self._applier.set_plane(peers, done)

    def set_sleeve(self, desired: SleeveDesired) -> None:
        self._applier.set_sleeve(desired)

    def set_blocked(self, blocked: Blocked, done: Callable[[], None]) -> None:
        self._applier.set_blocked(blocked, done)

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        if self._plane is not None:
            self._plane.probe(mac, nonce, is_answer)

    async def attach(self, spec: AttachSpec) -> Addresses | Failure:
        if self._attachments is None:
            return STARTING
        from weavenet.host.requests import Wishes

        wishes = Wishes(spec.multicast_route, spec.dns, spec.name, spec.rewrite_hosts, spec.hosts)
        return await self._attachments.attach(spec.container, spec.addresses, wishes)

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure:
        if self._exposure is None:
            return STARTING
        return await self._exposure.expose(spec.addresses, spec.name, masquerade=spec.masquerade)

    async def hide(self, spec: HideSpec) -> Addresses | Failure:
        return STARTING if self._exposure is None else await self._exposure.hide(spec.addresses)

    def owner(self, container: str) -> NameOwner | Failure:
        if self._attachments is None:
            return STARTING
        found = self._attachments.owner(container)
        return found if isinstance(found, Failure) else NameOwner(*found)

    async def detach(self, container: str, addresses: tuple[str, ...]) -> Addresses | Failure:
        if self._attachments is None:
            return STARTING
        return await self._attachments.detach(container, addresses)

    async def ps(self) -> Attachments:
        attached = (await self._attachments.ps()).attachments if self._attachments is not None else ()
        host = self._exposure.attachment if self._exposure is not None else None
        return Attachments((host, *attached) if host is not None and host.addresses else attached)

    async def vacate(self) -> None:
        if self._attachments is None or self._exposure is None:
            raise WeaveError(STARTING)
        await self._exposure.vacate()
        await self._attachments.vacate()

    async def withdraw(self) -> None:
        if self._exposure is not None:
            await self._exposure.vacate()
        await self.close()

    def warnings(self) -> tuple[str, ...]:
        parts = (self._plane, self._firewall, self._dns_address, self._worker)
        found = tuple(text for part in parts if part is not None for text in part.warnings())
        return (*found, NO_WIREGUARD) if self._lacks_wireguard else found

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._undo.aclose()


STARTING = Failure(Code.BUSY, "expected a daemon that is ready", "it is still starting", "try again in a second")
