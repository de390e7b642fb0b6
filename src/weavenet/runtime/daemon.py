"""The daemon: lives of one node, one after the other, behind one control API.

Usually there is one life, from launch to stop. When a commit fails (full disk, broken disk) or the node fails, that
life ends; the daemon says so, then begins another one from what is on disk, as often as needed, while the kernel keeps
moving packets. Invariant: between two lives every command is answered with the failure, and nothing is allocated.

Implements :class:`weavenet.control.service.Daemon`. Does not parse flags or make decisions about peers or addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import weavenet
from weavenet.control.server import ControlServer
from weavenet.control.service import AttachSpec, DetachSpec, ExposeSpec, HideSpec, Identity, NameSpec
from weavenet.core.commands import AddName, Addresses, Attachments, Command, Done, RemoveName, Reset, Result
from weavenet.core.config import NodeConfig
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import VXLAN_PORT, WIREGUARD_PORT_OFFSET
from weavenet.core.names import EXPOSE, EXTERNAL
from weavenet.core.overlay.planes import FASTDP, WIREGUARD
from weavenet.core.report import NodeReport
from weavenet.runtime.datapath import STARTING, Datapath, KernelDatapath, NameOwner, SleevePlace, WireguardPlace
from weavenet.runtime.foundation import Foundation
from weavenet.runtime.identity import Me
from weavenet.runtime.life import DatapathFactory, Life
from weavenet.runtime.nameserver import NameServer, stop_workers
from weavenet.runtime.notify import Notifier
from weavenet.runtime.settings import Settings, WireguardUse, password_warnings

RESTART_FIRST_S, RESTART_FACTOR, RESTART_CAP_S = 1.0, 2.0, 30.0
"""Pause before the next life; a full disk is looked at every half minute at least."""
ANSWER_S = 0.2
"""For the answer to `weave reset` to be on its way before its socket closes."""
FRESH_PAUSE_S = 0.5
"""Starting Python takes processor time that peers and the first address need more."""
STABLE_S = 60.0
"""A life that lasted this long starts the pauses from the beginning."""

STOPPED = Failure(Code.CANCELLED, "the daemon is stopping", "", "launch it again with `weave launch`")

_log = logging.getLogger("weave.daemon")


def kernel_datapath(settings: Settings) -> DatapathFactory:
    def make(config: NodeConfig) -> Datapath:
        is_sealed = config.authenticated and not config.trusted_subnets and WIREGUARD not in config.planes
        return KernelDatapath(
            config.peer,
            mtu=config.mtu,
            planes=config.planes,
            domain=config.dns_domain,
            sleeve=SleevePlace(settings.run_dir, settings.host, config.port),
            wireguard=WireguardPlace(config.port + WIREGUARD_PORT_OFFSET, settings.wireguard is WireguardUse.ANY),
            in_clear=FASTDP in config.planes and not is_sealed,
        )

    return make


def _done(result: Result) -> Done | Failure:
    if isinstance(result, Done | Failure):
        return result
    raise TypeError(f"the node answered with {type(result).__name__}")


def _remains(error: WeaveError | OSError) -> Failure:
    if isinstance(error, WeaveError):
        return error.failure
    expected = "expected to remove what weave made on this host"
    return Failure(Code.HOST, expected, str(error), "run `weave reset` again")


def _dated(failure: Failure, since: str) -> Failure:
    """The same as the answer to whoever asks meanwhile."""
    found = "; ".join(part for part in (failure.found, f"not serving since {since}") if part)
    return msgspec.structs.replace(failure, found=found)


def _longer(pause_s: float) -> float:
    return min(max(RESTART_FIRST_S, pause_s * RESTART_FACTOR), RESTART_CAP_S)


def _kernel_failure(error: OSError) -> Failure:
    found = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        step = f"find who has it with `ss -lunp 'sport = :{VXLAN_PORT}'` and `ip -d link show type vxlan`"
        return Failure(Code.HOST, f"expected UDP port {VXLAN_PORT} to be free for VXLAN", found, step)
    expected = "expected the kernel to provide bridge, VXLAN and namespaces"
    return Failure(Code.HOST, expected, found, "run `weave setup`, which says what is missing")


class Daemon:
    """``on_ready`` is called once with the peer name when commands are answered and containers can be attached."""

    def __init__(
        self,
        foundation: Foundation,
        on_ready: Callable[[str], None],
        *,
        make_datapath: DatapathFactory | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.settings: Settings = foundation.settings.public()
        self._foundation = foundation
        self._on_ready = on_ready
        self._make_datapath = make_datapath or kernel_datapath(self.settings)
        self._notifier = notifier if notifier is not None else Notifier()
        self._started_at = time.time()
        self._began_at = 0.0
        self._me: Me | None = None
        self._life: Life | None = None
        self._ended: asyncio.Future[Failure] | None = None
        self._stop = asyncio.Event()
        self._erased = asyncio.Event()
        """This peer left, and nothing of it remains but what ``_remains`` says."""
        self._remains: Failure | None = None
        self._is_heard = False
        self._why_not: Failure = STARTING
        self._name_server = NameServer(self.settings) if self.settings.dns else None
        self._renewed: tuple[str, ...] = ()
        """Why this daemon last took a new identity; for people, until it is restarted."""
        self._warnings = (*foundation.notices, *password_warnings(foundation.settings.passwords))

    # --- what control handlers see ---

    @property
    def identity(self) -> Identity:
        return Identity(
            version=weavenet.__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            name=self._me.name if self._me else "",
            nickname=self._me.nickname if self._me else "",
            port=self._life.port if self._life else self.settings.port,
            log_path=self.settings.log_file,
        )

    async def request(self, command: Command) -> Result:
        if self._life is None:
            return self._why_not
        result = await self._life.request(command)
        if isinstance(result, NodeReport) and self._life is not None:
            extra = (*self._warnings, *self._renewed, *self._life.datapath.warnings())
            if self._name_server is not None:
                extra += self._name_server.warnings()
                result = msgspec.structs.replace(result, dns=await self._name_server.report(result.dns))
            return msgspec.structs.replace(result, warnings=(*result.warnings, *extra)) if extra else result
        return result

    def submit(self, command: Command, done: Callable[[Result], None]) -> Callable[[], None]:
        if self._life is None:
            done(self._why_not)
            return lambda: None
        return self._life.submit(command, done)

    async def attach(self, spec: AttachSpec) -> Addresses | Failure:
        if self._life is None:
            return self._why_not
        return await self._life.datapath.attach(spec)

    async def detach(self, spec: DetachSpec) -> Addresses | Failure:
        if self._life is None:
            return self._why_not
        return await self._life.datapath.detach(spec.container, spec.addresses)

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure:
        return self._why_not if self._life is None else await self._life.datapath.expose(spec)

    async def hide(self, spec: HideSpec) -> Addresses | Failure:
        return self._why_not if self._life is None else await self._life.datapath.hide(spec)

    async def add_name(self, spec: NameSpec) -> Done | Failure:
        owner = self._owner(spec.container)
        if isinstance(owner, Failure):
            return owner
        name = spec.name or owner.name
        if not name:
            expected = f"expected the name to give to {spec.container}, which has none of its own"
            return Failure(Code.INVALID, expected, "none", "add -h NAME")
        return _done(await self.request(AddName(name, owner.ident, spec.addresses)))

    async def remove_name(self, spec: NameSpec) -> Done | Failure:
        owner = self._owner(spec.container)
        if isinstance(owner, Failure):
            return owner
        return _done(await self.request(RemoveName(spec.name, owner.ident, spec.addresses)))

    def _owner(self, container: str) -> NameOwner | Failure:
        if container in {EXTERNAL, "weave:extern"}:
            return NameOwner(EXTERNAL)
        if container == EXPOSE:
            return NameOwner(EXPOSE)
        return self._why_not if self._life is None else self._life.datapath.owner(container)

    async def ps(self, containers: tuple[str, ...]) -> Attachments | Failure:
        if self._life is None:
            return self._why_not
        found = await self._life.datapath.ps()
        if not containers:
            return found
        chosen = tuple(a for a in found.attachments if a.container in containers or a.ident in containers)
        return Attachments(chosen)

    async def reset(self, force: bool) -> Done | Failure:
        life = self._life
        if life is None:
            return self._why_not
        result = _done(await life.request(Reset(force)))
        if isinstance(result, Failure):
            return result
        self._is_heard = True
        await self._erased.wait()
        return self._remains or result

    def request_stop(self) -> None:
        self._stop.set()

    # --- the run ---

    async def run(self) -> None:
        """Until a stop is asked for. Raises WeaveError when the first life cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        # With a log file there is no terminal to lose: log rotation may send this out of habit.
        loop.add_signal_handler(signal.SIGHUP, (lambda: None) if self.settings.log_file else self.request_stop)
        control = ControlServer(
            self,
            socket_path=self.settings.control_socket,
            http_address=self.settings.http_address,
            status_address=self.settings.status_address,
        )
        watchdog: asyncio.Task[None] | None = None
        try:
            await self._begin(self._foundation.settle(), control)
            for warning in (*self._foundation.warnings, *self._warnings):
                _log.warning("%s", warning)
            if self._name_server is None:
                await stop_workers(self.settings.run_dir)  # a daemon before this one may have had names
            self._ready()
            watchdog = asyncio.create_task(self._feed_watchdog())
            await self._keep_alive()
        finally:
            self._notifier.tell(STOPPING="1", STATUS="stopping")
            if watchdog is not None:
                watchdog.cancel()
            await control.close()
            if self._name_server is not None:
                await self._name_server.close()
            await self._finish(STOPPED)
            self._foundation.close()
            _log.info("stopped")
            if self._erased.is_set():
                self._erase_traces()

    def _ready(self) -> None:
        name = self._me.name if self._me else ""
        gc.freeze()  # what start-up made lives as long as the daemon: later collections need not look at it
        gc.enable()
        self._notifier.tell(READY="1", STATUS=f"peer {name} is ready")
        _log.info("ready: peer %s, port %d", name, self.identity.port)
        self._on_ready(name)
        if self._name_server is not None:
            self._name_server.start(FRESH_PAUSE_S if self._foundation.is_fresh else 0.0)

    async def _begin(self, me: Me, control: ControlServer | None = None) -> None:
        """Begin a life. The first one starts ``control`` before its data path, whose imports take longest: peers
        connect and divide the range meanwhile."""
        self._me = me
        self._began_at = time.monotonic()
        ended: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self._ended = ended
        life = Life(
            self._foundation,
            me,
            self._make_datapath,
            lambda failure: ended.set_result(failure) if not ended.done() else None,
            weavenet.__version__,
        )
        self._life = life
        if self._name_server is not None:
            life.on_names = self._name_server.set_names
            if not self.settings.dns_listen:
                life.datapath.on_dns_addresses = self._name_server.set_addresses
        life.start()
        if control is not None:
            self._warnings += await control.start()
        try:
            await life.open_datapath()
        except OSError as error:
            raise WeaveError(_kernel_failure(error)) from error

    async def _finish(self, reason: Failure) -> None:
        """End the current life, if there is one."""
        life, self._life = self._life, None
        self._why_not = reason
        if life is not None:
            await life.close(reason)

    async def _keep_alive(self) -> None:
        """Begin a new life whenever one ends by itself; return when a stop is asked for."""
        pause_s = 0.0
        while (failure := await self._wait_for_end()) is not None:
            _log.error("stopped serving: %s", failure.sentence())
            self._notifier.tell(STATUS=f"not serving: {failure.expected}; {failure.found}")
            lasted_s = time.monotonic() - self._began_at
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            pause_s = RESTART_FIRST_S if lasted_s > STABLE_S else _longer(pause_s)
            if failure.code is Code.DEPARTED:
                await self._erase(failure)
                return
            await self._finish(_dated(failure, since))
            revive = self._foundation.reopen
            if failure.code is Code.FENCED:
                revive, pause_s = self._foundation.fence, 0.0
                why = failure.found.partition("; next: ")[0]
                step = "nothing; addresses of its containers that are in use elsewhere by now are named as blocked"
                self._renewed = (f"this host came back under a new identity: {why}; next: {step}",)
            while not await self._stops_within(pause_s):
                try:
                    await self._begin(await asyncio.to_thread(revive))
                except WeaveError as error:
                    _log.error("cannot serve yet: %s", error)
                    await self._finish(_dated(error.failure, since))
                    pause_s = _longer(pause_s)
                    continue
                break
            if self._life is not None:
                self._notifier.tell(STATUS=f"peer {self.identity.name} is ready")
                _log.info("serving again, from what is on disk")

    async def _erase(self, failure: Failure) -> None:
        """This peer has left: remove what it made, then tell who waits for that, and end."""
        life = self._life
        try:
            if self._name_server is not None:
                await self._name_server.stop()
            if life is not None:
                await life.erase()
        except (WeaveError, OSError) as error:
            self._remains = _remains(error)
        await self._finish(failure)
        try:
            await asyncio.to_thread(self._foundation.erase)
        except (WeaveError, OSError) as error:
            self._remains = _remains(error)
        if self._remains is not None:
            _log.error("left the cluster, but %s", self._remains.sentence())
        self._erased.set()
        await asyncio.sleep(ANSWER_S)

    def _erase_traces(self) -> None:
        """What was in use to the end. The log stays where nobody heard how it ended."""
        with contextlib.suppress(OSError):
            Path(self.settings.run_dir).rmdir()
        if self._is_heard and self.settings.log_file:
            Path(self.settings.log_file).unlink(missing_ok=True)

    async def _wait_for_end(self) -> Failure | None:
        """The failure that ended the life; None when a stop was asked for."""
        if self._ended is None or self._stop.is_set():
            return None
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((stopping, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return None if self._stop.is_set() else self._ended.result()

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()

    async def _feed_watchdog(self) -> None:
        """From the event loop itself: a loop that hangs starves the watchdog, which is what it is for."""
        while self._notifier.watchdog_s is not None:
            self._notifier.tell(WATCHDOG="1")
            await asyncio.sleep(self._notifier.watchdog_s)
