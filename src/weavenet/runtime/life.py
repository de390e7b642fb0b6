"""One life of a node: from what is on disk, through any number of events, to the failure or stop that ends it.

Composes store, links, data path, node and executor. A life never continues after a failed commit or a bug in the node;
the daemon then begins another one from the store.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from weavenet.core.commands import Command, Result, Vacated
from weavenet.core.config import NodeConfig
from weavenet.core.effects import NameRecord, PlanePeer
from weavenet.core.errors import Failure, RefusalCode, WeaveError
from weavenet.core.events import Event
from weavenet.core.messages import Message
from weavenet.core.node import Node
from weavenet.core.overlay.planes import FASTDP, WIREGUARD
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId
from weavenet.runtime.applier import Blocked
from weavenet.runtime.datapath import Datapath
from weavenet.runtime.executor import Executor
from weavenet.runtime.foundation import Foundation
from weavenet.runtime.identity import Me, node_rows
from weavenet.runtime.issuing import peer_id
from weavenet.runtime.links import Links
from weavenet.runtime.resolver import local_hosts
from weavenet.runtime.settings import Settings, WireguardUse
from weavenet.runtime.tls import Credentials

if TYPE_CHECKING:
    from weavenet.runtime.recordlock import RecordLock

_log = logging.getLogger("weave.life")

DatapathFactory = Callable[[NodeConfig], Datapath]


def node_config(settings: Settings, me: Me, *, port: int, software: str) -> NodeConfig:
    """What the node is told. Raises nothing: settings were validated."""
    return NodeConfig(
        peer=PeerId(peer_id(me.issued.public_key)),
        name=me.name,
        nickname=me.nickname,
        software=software,
        port=port,
        ranges=settings.ranges,
        range_explicit=settings.range_explicit,
        default_subnets=settings.default_subnets,
        mode=settings.mode,
        count=settings.count,
        seeds=settings.seeds,
        lock=settings.lock,
        seed_salt=me.issued.authorities[0].fingerprint,
        first_start=settings.first_start,
        ephemeral_ttl_s=settings.ephemeral_ttl_s,
        conf_targets=settings.conf_targets,
        launch_targets=settings.targets,
        discovery=settings.discovery,
        conn_limit=settings.conn_limit,
        planes=_planes(settings),
        trusted_subnets=settings.trusted_subnets,
        mtu=settings.mtu,
        mtu_explicit=settings.mtu_explicit,
        local_hosts=local_hosts(),
        authenticated=bool(settings.passwords),
        dns_domain=settings.dns_domain,
    )


def _planes(settings: Settings) -> tuple[str, ...]:
    """Those of the settings, and WireGuard where there is a password, VXLAN and a WireGuard that may be used."""
    if FASTDP not in settings.planes or not settings.passwords or settings.wireguard is WireguardUse.OFF:
        return settings.planes
    from weavenet.host import wireguardkernel, wireguardprocess

    is_there = wireguardkernel.is_available() or (
        settings.wireguard is WireguardUse.ANY and bool(wireguardprocess.program())
    )
    return (*settings.planes, WIREGUARD) if is_there else settings.planes


class Life:
    """Call :meth:`start` once, then :meth:`open_datapath` once, :meth:`close` once. ``on_end`` is called when it ends
    by itself, with the reason."""

    def __init__(
        self,
        foundation: Foundation,
        me: Me,
        make_datapath: DatapathFactory,
        on_end: Callable[[Failure], None],
        software: str,
    ) -> None:
        settings = foundation.settings
        self._store = foundation.store
        self._run_dir = settings.run_dir
        credentials = Credentials(me.issued, authenticated=bool(settings.passwords))
        self._links = Links(credentials, host=settings.host, port=settings.port, post=self._post)
        self.on_names: Callable[[bool, tuple[NameRecord, ...]], None] = lambda whole, names: None
        """Gets what names stand for, as in :class:`weavenet.core.effects.SetNames`; to be set before :meth:`start`."""
        self._lock: RecordLock | None = None
        self._vacating: asyncio.Task[None] | None = None
        self._links.listen()
        try:
            config = node_config(settings, me, port=self._links.port, software=software)
            self.datapath = make_datapath(config)
            node = Node(config, node_rows(foundation.rows), random.Random(os.urandom(32)))
            foundation.rows = {}  # the node has its own copies by now
            self._executor = Executor(node, self._store, self, on_end)
        except BaseException:
            self._links.stop_listening()
            raise

    def _post(self, event: Event) -> None:
        self._executor.post(event)

    @property
    def port(self) -> int:
        return self._links.port

    def start(self) -> None:
        """Let the node begin: it connects and answers commands while the data path is being opened."""
        self._store.start(self._executor.durable, self._executor.end)
        self._executor.start()

    async def open_datapath(self) -> None:
        """Raises WeaveError or OSError when the host cannot do what is needed; then still close the life."""
        await self.datapath.open(self._post)
        await self.datapath.adopt(self._executor.request)

    async def request(self, command: Command) -> Result:
        return await self._executor.request(command)

    def submit(self, command: Command, done: Callable[[Result], None]) -> Callable[[], None]:
        return self._executor.submit(command, done)

    async def erase(self) -> None:
        """Remove from the kernel what this life keeps there. Still close it. Raises WeaveError or OSError."""
        from weavenet.runtime.erasing import erase_host

        await self.datapath.withdraw()
        await erase_host(self._run_dir)

    async def close(self, reason: Failure) -> None:
        """Links are told; the data path is left as it is. The store is the foundation's to close."""
        await self.datapath.close()  # what it was about to do is given back while the node still answers
        self._executor.end(reason)
        await self._links.close(reason.expected)

    # --- what the executor drives ---

    def send(self, link: int, message: Message) -> None:
        self._links.send(link, message)

    def resolve(self, target: str) -> None:
        self._links.resolve(target)

    def offer_record(self, url: str, record: bytes) -> None:
        self._record_lock().offer(url, record)

    def withdraw_record(self, url: str, record: bytes) -> None:
        self._record_lock().withdraw(url, record)

    def _record_lock(self) -> RecordLock:
        if self._lock is None:
            from weavenet.runtime.recordlock import RecordLock  # its HTTP client takes 15 ms that few need

            self._lock = RecordLock(self._post)
        return self._lock

    def dial(self, dial: int, host: str, port: int) -> None:
        self._links.dial(dial, host, port)

    def close_link(self, link: int, code: RefusalCode, sentence: str) -> None:
        self._links.close_link(link, code, sentence)

    def pause_reading(self, paused: bool) -> None:
        self._links.pause_reading(paused)

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        self.datapath.set_plane(peers, done)

    def set_sleeve(self, desired: SleeveDesired) -> None:
        self.datapath.set_sleeve(desired)

    def set_blocked(self, blocked: Blocked, done: Callable[[], None]) -> None:
        self.datapath.set_blocked(blocked, done)

    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None:
        self.on_names(whole, names)

    def vacate(self) -> None:
        if self._vacating is None or self._vacating.done():
            self._vacating = asyncio.get_running_loop().create_task(self._vacate())

    async def _vacate(self) -> None:
        """The node asks again if this fails."""
        try:
            await self.datapath.vacate()
        except (WeaveError, OSError) as error:
            _log.warning("containers are not all off the network yet: %s", error)
            return
        await self._executor.request(Vacated())

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        self.datapath.probe(mac, nonce, is_answer)
