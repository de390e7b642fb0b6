"""Starts the DNS worker, or adopts the one that runs; feeds it, and starts it again when it ends: within milliseconds
once, then ever less eagerly.

The worker outlives the daemon and answers as it was last told while nobody is there. The table of names is kept here
too, so that a new worker gets all of it at once. Invariants: the worker is told everything in order, a whole table in
small frames before changes; how much waits to be told is bounded by the table itself, since of each name only its last
state waits. A worker that does not answer for SILENCE_S is killed. One for other settings, or of another release, is
replaced when this daemon is ready.

It outlives the lives of the node as well. A node that begins knows only the names of its own host, so a worker that
has a table keeps it for SETTLE_S, and is told just what changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import socket
import time
from pathlib import Path

import msgspec

import weavenet
from weavenet import program
from weavenet.core.effects import NameRecord
from weavenet.core.limits import BRIDGE
from weavenet.core.report import DnsQueries, DnsReport
from weavenet.dns.addresses import is_here, with_port
from weavenet.dns.feed import (
    FRAME_BYTES_MAX,
    NAMES_PER_FRAME,
    AskStatus,
    Configure,
    Listen,
    Listening,
    Name,
    Names,
    Status,
    Stop,
    ToDaemon,
    encode,
)
from weavenet.runtime import workers
from weavenet.runtime.settings import Settings
from weavenet.runtime.workers import Ended, Handle

PORT = 53
RESOLV_CONF = "/etc/resolv.conf"

RESTART_FIRST_S, RESTART_FACTOR, RESTART_CAP_S = 0.5, 2.0, 30.0
STABLE_S = 30.0
"""A worker that lived this long is started again without a pause."""
FAILURES_TOLD = 3
"""So many short lives in a row are no accident."""
ASK_EVERY_S, SILENCE_S = 5.0, 15.0
STATUS_S = 0.05
"""How long a report waits for fresh figures; `weave status` as a whole may take 100 ms."""
STOP_S = 2.0
SETTLE_S = 5.0
"""Links come up and bring the names of other hosts within a second or two."""
PREFIX = "dns-"

Connection = tuple[Handle, asyncio.StreamReader, asyncio.StreamWriter]

_log = logging.getLogger("weave.dns")


async def stop_workers(run_dir: str, but: Path | None = None) -> None:
    """End the workers that were started from ``run_dir``, all or all ``but`` one, and wait until they are gone."""
    await workers.stop(run_dir, PREFIX, encode(Stop()), but=but)


class NameServer:
    """``settings``: its ``dns_…`` fields, and the ranges."""

    def __init__(self, settings: Settings) -> None:
        self._run_dir = settings.run_dir
        self._fixed = tuple(map(_listen, settings.dns_listen))
        self._configuration = Configure(
            settings.dns_domain, settings.dns_ttl_s, settings.ranges, self._fixed, RESOLV_CONF
        )
        self._path = _socket_path(settings.run_dir, self._configuration)
        self._table: dict[str, NameRecord] = {}
        self._changed: set[str] = set()
        self._has_table = self._path.exists()  # the worker, that there is or that is to be adopted
        self._whole_at: float | None = None  # it needs all of the table, by then
        self._configure = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._worker: Handle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._listening = Listening((), ())
        self._status: Status | None = None
        self._heard_at = 0.0
        self._asked: list[asyncio.Future[None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._began_at = 0.0
        self._failures = 0
        self._why = ""

    # --- what others see ---

    @property
    def pid(self) -> int | None:
        """Of the worker that runs now."""
        return self._worker.pid if self._worker is not None else None

    @property
    def listening(self) -> tuple[Listen, ...]:
        return self._listening.open

    def set_names(self, whole: bool, names: tuple[NameRecord, ...]) -> None:
        """As in :class:`weavenet.core.effects.SetNames`."""
        if whole:
            self._table.clear()
            self._changed.clear()
            self._whole_at = time.monotonic() + SETTLE_S if self._has_table else 0.0
        for record in names:
            key = record.name.lower()
            if record.addresses:
                self._table[key] = record
            else:
                self._table.pop(key, None)
            if self._has_table and not whole:  # else it is told all of it anyway
                self._changed.add(key)
        self._wake.set()

    def set_addresses(self, addresses: tuple[tuple[str, str], ...]) -> None:
        """(address, device) at which containers reach this host; counts unless told otherwise by
        ``--dns-listen-address``. Also the host itself may ask there."""
        found: list[Listen] = list(self._fixed)
        if not found:
            for address, device in addresses:
                found += [Listen(address, PORT, device), Listen(address, PORT, "lo")]
            found = list(dict.fromkeys(found))
        configuration = msgspec.structs.replace(
            self._configuration, listen=tuple(found), own=tuple(address for address, _ in addresses)
        )
        if configuration != self._configuration:
            self._configuration = configuration
            self._configure = True
            self._wake.set()

    @property
    def address(self) -> str:
        """Where a container is told to ask: an address that it reaches even before it is attached, if there is one;
        with its port where that is another than 53."""
        found = [listen for listen in self._listening.open if listen.device != "lo"]
        if not found:
            return ""
        best = min(found, key=lambda one: (one.port != PORT, _is_loopback(one.host), one.device == BRIDGE))
        return best.host if best.port == PORT else with_port(best.host, best.port)

    async def report(self, report: DnsReport) -> DnsReport:
        """With what only the server knows."""
        status = await self.status()
        return msgspec.structs.replace(
            report,
            address=self.address,
            ttl_s=self._configuration.ttl_s,
            upstreams=status.upstreams if status is not None else (),
            queries=_queries(status) if status is not None else DnsQueries(),
        )

    async def status(self) -> Status | None:
        """Fresh figures, or the last ones when the worker takes too long, or None when it never said any."""
        if self._writer is not None:
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._asked.append(answered)
            self._writer.write(encode(AskStatus()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answered, STATUS_S)
        return self._status

    def warnings(self) -> tuple[str, ...]:
        """Full sentences with the next step."""
        found = []
        if self._failures >= FAILURES_TOLD:
            found.append(
                f"the DNS server of this host does not stay up ({self._failures} times in a row; {self._why}): names "
                "are not answered in between; the log has more, `weave launch --no-dns` does without"
            )
        for listen, why in self._listening.failed:
            found.append(
                f"the DNS server cannot listen on {listen.host} port {listen.port}: {why}; find who does with "
                f"`ss -lnp 'sport = :{listen.port}'`, or launch with --dns-listen-address or --no-dns"
            )
        for listen in self._listening.open:
            if listen in self._fixed and not is_here(listen.host):
                found.append(
                    f"no device of this host has the address {listen.host}, at which the DNS server was told to "
                    "answer: nobody reaches it there until one has; correct --dns-listen-address, or add the address"
                )
        if self._status is not None and self._status.looping:
            found.append(
                f"the DNS upstream {', '.join(self._status.looping)} asks us in turn and is left out: name another "
                f"resolver in {self._configuration.resolv_conf}"
            )
        return tuple(dict.fromkeys(found))  # one address on two devices is one thing to do

    # --- its life ---

    def start(self, pause_s: float = 0.0) -> None:
        """Start the worker in ``pause_s``; does nothing when it was started, or when there is nowhere to listen."""
        if self._task is None and self._configuration.listen:
            self._task = asyncio.create_task(self._keep_alive(pause_s))

    async def close(self) -> None:
        """Let go of the worker; it goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """End the worker."""
        await self.close()
        await stop_workers(self._run_dir)

    async def _keep_alive(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        pause_s = 0.0
        while True:
            self._began_at = time.monotonic()
            try:
                await self._run_worker()
            except Exception as error:  # whatever it was: names must be answered again
                self._why = str(error) or type(error).__name__
            self._has_table, self._whole_at = False, 0.0
            self._changed.clear()
            if time.monotonic() - self._began_at > STABLE_S:
                self._failures, pause_s = 0, 0.0
            self._failures += 1
            _log.warning("the DNS worker ended: %s; starting it again in %.1f s", self._why, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(max(RESTART_FIRST_S, pause_s * RESTART_FACTOR), RESTART_CAP_S)

    async def _run_worker(self) -> None:
        """Until it ends, which is always an exception."""
        worker, reader, writer = await self._adopt() or await self._spawn()
        tasks: list[asyncio.Task[None]] = []
        why = ""
        try:
            await stop_workers(self._run_dir, but=self._path)  # they answer until this one can
            self._worker, self._writer = worker, writer
            self._configure = True
            self._heard_at = time.monotonic()
            tasks += map(asyncio.create_task, (self._feed(writer), self._hear(reader), self._watch(writer)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            why = "; ".join(str(task.exception()) for task in done if task.exception() is not None)
            await worker.end(STOP_S)  # the next one needs its addresses
        finally:
            self._worker = self._writer = None
            self._listening = Listening((), ())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            worker.close()
        if text := workers.said(self._path):
            _log.error("the DNS worker said: %s", text)
        raise Ended(workers.last_words(self._path) or why)

    async def _adopt(self) -> Connection | None:
        """The worker that runs, if there is one."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path), limit=FRAME_BYTES_MAX)
            worker = Handle.of(writer)
        except OSError:
            return None
        _log.info("the DNS worker is adopted")
        return worker, reader, writer

    async def _spawn(self) -> Connection:
        self._has_table, self._whole_at = False, 0.0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # nobody can connect before the worker listens
            descriptor = listener.fileno()
            command = program.command("weavenet.dns", str(descriptor))
            self._process, reader, writer = await workers.spawn(self._path, command, pass_fds=(descriptor,))
        return Handle(self._process.pid), reader, writer

    async def _feed(self, writer: asyncio.StreamWriter) -> None:
        while True:
            if self._configure:
                self._configure = False
                writer.write(encode(self._configuration))
            if self._is_whole_due():
                self._whole_at = None
                self._changed.clear()
                self._has_table = True
                await self._send(writer, list(self._table.values()), whole=True)
            elif self._changed:
                changed, self._changed = self._changed, set()
                records = [self._table.get(key) or NameRecord(key, ()) for key in changed]
                await self._send(writer, records, whole=False)
            if not (self._configure or self._is_whole_due() or self._changed):
                self._wake.clear()
                patience_s = None if self._whole_at is None else self._whole_at - time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), patience_s)

    def _is_whole_due(self) -> bool:
        return self._whole_at is not None and time.monotonic() >= self._whole_at

    async def _send(self, writer: asyncio.StreamWriter, records: list[NameRecord], *, whole: bool) -> None:
        """A whole table begins with its first frame and ends with its last, be it empty."""
        for at in range(0, max(len(records), 1), NAMES_PER_FRAME):
            part = records[at : at + NAMES_PER_FRAME]
            names = tuple(Name(record.name, record.addresses) for record in part)
            is_last = at + NAMES_PER_FRAME >= len(records)
            writer.write(encode(Names(whole and at == 0, whole and is_last, names)))
            await writer.drain()
            if at:
                await asyncio.sleep(0)  # a table of 100,000 names must not hold up the node

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(ToDaemon)
        while True:
            try:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > FRAME_BYTES_MAX:
                    raise Ended(f"a frame of {size} bytes")
                message = decoder.decode(await reader.readexactly(size))
            except asyncio.IncompleteReadError:
                raise Ended("its stream ended") from None
            self._heard_at = time.monotonic()
            match message:
                case Listening():
                    self._set_listening(message)
                case Status():
                    self._status = message
                    asked, self._asked = self._asked, []
                    for one in asked:
                        if not one.done():
                            one.set_result(None)

    def _set_listening(self, listening: Listening) -> None:
        for listen, why in set(listening.failed) - set(self._listening.failed):
            _log.warning("cannot listen on %s port %d: %s", listen.host, listen.port, why)
        for listen in set(listening.open) - set(self._listening.open):
            _log.info("answers on %s port %d%s", listen.host, listen.port, listen.device and f", {listen.device} only")
        self._listening = listening

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            if time.monotonic() - self._heard_at > SILENCE_S:
                raise Ended(f"it was silent for {SILENCE_S:.0f} s")
            if time.monotonic() - self._began_at > STABLE_S:
                self._failures = 0
            writer.write(encode(AskStatus()))


def _queries(status: Status) -> DnsQueries:
    return DnsQueries(
        own=status.local,
        forwarded=status.forwarded,
        from_cache=status.from_cache,
        stale=status.stale,
        failed=status.failed,
        refused=status.refused,
        malformed=status.malformed,
        dropped=status.dropped,
        false_answers=status.false_answers,
    )


def _is_loopback(host: str) -> bool:
    """Then no container reaches it."""
    return ipaddress.ip_address(host).is_loopback


def _listen(text: str) -> Listen:
    """Of ``IP:PORT`` or ``[v6]:PORT``, checked before."""
    host, _, port = text.rpartition(":")
    return Listen(host.strip("[]"), int(port))


def _socket_path(run_dir: str, configuration: Configure) -> Path:
    """A worker is adopted by a daemon of the same release and zone; where it listens can change."""
    zone = (configuration.domain, configuration.ttl_s, configuration.ranges, configuration.resolv_conf)
    made_for = msgspec.json.encode((weavenet.__version__, zone))
    return Path(run_dir) / f"{PREFIX}{hashlib.sha256(made_for).hexdigest()[:12]}{workers.SUFFIX}"
