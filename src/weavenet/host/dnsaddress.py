"""The address at which containers of this host find its DNS server: the same on every host, never seen beyond it.

``169.254.53.53/32`` sits on the bridge; each container has an on-link route to it (:mod:`weavenet.host.attach`); ARP
for it is dropped where it would enter the overlay (:mod:`weavenet.host.portfilter`), so that only this host answers.
Answers find back without the host having an address or a route of the network, since the server's sockets are bound to
the bridge, and the kernel takes what leaves through a named device for on-link. It needs no NAT, no Docker and no
``expose``.

Queries come from addresses to which this host has no route, which its reverse-path filter may refuse (Debian and Ubuntu
let them in by the default route, a hardened host does not). Where it does, a rule sends what comes from this address to
the bridge; the filter looks up the way back with source and destination exchanged and finds it. Only there: the first
rule that a host has costs every packet that it receives two slow lookups (7 % of a round trip over the overlay,
docs/benchmarks.md).

Invariant: while it is kept, what somebody removes or makes stricter is mended within CHECK_S (the address) or
CHECKS_PER_RULE times that (the rule); where connections are tracked, queries are not, within the same time. The server
itself binds whether or not the address is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from weavenet.core.errors import WeaveError
from weavenet.core.limits import BRIDGE, DNS_ADDRESS
from weavenet.core.types import without_prefix
from weavenet.host import dnsprobe, reversepath
from weavenet.host.bridge import Bridge
from weavenet.host.kernel import Kernel

if TYPE_CHECKING:
    from weavenet.host.firewall import Firewall

ADDRESS = DNS_ADDRESS
TABLE = 6784
"""Routing table and priority of the rule."""
CHECK_S = 1.0
CHECKS_PER_RULE = 10
DOCKER_BRIDGE = "docker0"
_DOCKER_NETWORK = re.compile(r"br-[0-9a-f]{12}|docker_gwbridge")
"""Bridges of networks that somebody made with Docker (or Compose, or Swarm), as Docker names them."""
PROBED_MAX = 5
"""Containers of which the first that is still there is probed."""
PROBE_AGAIN = 30
"""Thorough checks between probes that succeed: 5 minutes."""
MISSES_TOLD = 2
"""In a row; the server may just have been started again."""

DockerState = tuple[int, bool, tuple[str, ...]]
"""Of Docker's bridge: index, whether it is up; names of the bridges of its other networks."""

log = logging.getLogger(__name__)


class DnsAddress:
    """``kernel`` and ``bridge`` are the host's own. ``on_addresses`` gets (address, device) of every place where
    containers can ask: ours, and while Docker's bridge has an address, that on each bridge of Docker, since a container
    of any of its networks may be told to ask there. ``containers``: references to those attached now."""

    def __init__(
        self,
        kernel: Kernel,
        bridge: Bridge,
        firewall: Firewall,
        on_addresses: Callable[[tuple[tuple[str, str], ...]], None],
        containers: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        self._containers = containers
        self._probe_in = 0  # thorough checks
        self._misses = 0
        self._firewall = firewall
        self.address = ADDRESS
        self._kernel, self._bridge, self._on_addresses = kernel, bridge, on_addresses
        self._task: asyncio.Task[None] | None = None
        self._bridge_index = 0
        self._docker = ""
        self._docker_state: DockerState | None = None
        self._trouble = ""

    async def open(self) -> None:
        """Put it there and keep it there. Raises OSError or WeaveError."""
        await self._ensure()
        await self._look_at_docker()
        await self._firewall.look_at_conntrack()
        self._tell()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop watching; the address stays, as the data path does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def warnings(self) -> tuple[str, ...]:
        found = [self._trouble] if self._trouble else []
        if self._is_unanswered():
            found.append(
                f"containers of this host get no answer from its DNS server at {ADDRESS}, probably because a firewall "
                f"drops their queries: accept UDP and TCP port 53 that comes in on {BRIDGE} (ufw allow in on {BRIDGE} "
                f"to any port 53; firewall-cmd --zone=trusted --add-interface={BRIDGE})"
            )
        return tuple(found)

    def _is_unanswered(self) -> bool:
        return self._misses >= MISSES_TOLD

    def _tell(self) -> None:
        devices = (DOCKER_BRIDGE, *self._docker_state[2]) if self._docker_state and self._docker else ()
        self._on_addresses(((ADDRESS, BRIDGE), *((self._docker, device) for device in devices)))

    def _look_for_docker(self) -> DockerState | None:
        link = self._kernel.links.get(DOCKER_BRIDGE)
        if link is None:
            return None
        networks = sorted(one.name for one in self._kernel.links.all() if _DOCKER_NETWORK.fullmatch(one.name))
        return link.index, link.is_up, tuple(networks)

    async def _look_at_docker(self) -> bool:
        """Whether Docker's bridge has another IPv4 address than before, or none any more, or other networks."""
        before = self._docker, self._docker_state and self._docker_state[2]
        self._docker_state = self._look_for_docker()
        found: list[str] = []
        if self._docker_state is not None:
            with contextlib.suppress(OSError):
                found = await self._kernel.netlink.addresses(self._docker_state[0])
        self._docker = next((without_prefix(text) for text in found if ":" not in text), "")
        return before != (self._docker, self._docker_state and self._docker_state[2])

    async def _ensure(self) -> None:
        link = await self._bridge.ensure()
        await self._kernel.netlink.add_address(link.index, f"{ADDRESS}/32")
        # Containers without answers are reason enough: the kernel was not asked about their own addresses.
        if self._is_unanswered() or not reversepath.is_let_in(
            self._kernel.namespace, link.index, reversepath.UNROUTED, ADDRESS
        ):
            await self._kernel.netlink.answer_through(link.index, ADDRESS, TABLE)
        self._bridge_index = link.index

    async def _keep(self) -> None:
        checks = 0
        while True:
            await asyncio.sleep(CHECK_S)
            checks += 1
            try:
                await self._check(is_thorough=checks % CHECKS_PER_RULE == 0)
            except Exception:
                log.exception("could not look after %s, trying again", ADDRESS)

    async def _check(self, *, is_thorough: bool) -> None:
        if is_thorough:
            await self._firewall.look_at_conntrack()
            self._probe_in -= 1
            if self._probe_in <= 0:
                await self._probe()
        if (self._look_for_docker() != self._docker_state or is_thorough) and await self._look_at_docker():
            self._tell()
        link = self._kernel.links.get(BRIDGE)
        # Without a bridge: whoever owns it makes it anew first.
        if link is not None and (link.index != self._bridge_index or is_thorough or not _is_here()):
            await self._repair()

    async def _probe(self) -> None:
        """Until a container got an answer each time, afterwards now and then: firewalls are switched on later too."""
        for container in tuple(await self._containers())[:PROBED_MAX]:
            answered = await dnsprobe.is_answered(container, ADDRESS)
            if answered:
                self._misses, self._probe_in = 0, PROBE_AGAIN
                return
            if answered is False:
                self._misses += 1
                return

    async def _repair(self) -> None:
        try:
            await self._ensure()
            self._trouble = ""
        except (OSError, WeaveError) as error:
            self._trouble = f"containers cannot reach the DNS server at {ADDRESS}: {error}"
            log.warning("%s", self._trouble)


def _is_here() -> bool:
    """Whether this host has the address; no netlink request, which would leave garbage in pyroute2 each time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((ADDRESS, 0))
        except OSError:
            return False
    return True
