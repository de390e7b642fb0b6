"""A daemon of a few lines behind the real control server: answers from memory, records what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from weavenet.control.server import ControlServer
from weavenet.control.service import AttachSpec, DetachSpec, ExposeSpec, HideSpec, Identity, NameSpec
from weavenet.core.commands import (
    Addresses,
    Allocate,
    Attachment,
    Attachments,
    Claim,
    Command,
    Consense,
    Done,
    GetReport,
    RemovePeers,
    Reset,
    Result,
)
from weavenet.core.errors import Code, Failure
from weavenet.core.report import (
    ConnectionReport,
    IpamReport,
    NodeReport,
    OwnerReport,
    PeerReport,
    RangeReport,
    RemovedReport,
    TargetReport,
)

PEERS = ("11" * 16, "22" * 16, "33" * 16)
NAMES = ("0a:00:00:00:00:01", "0a:00:00:00:00:02", "0a:00:00:00:00:03")


def range_report(**changes: Any) -> RangeReport:
    fields: dict[str, Any] = dict(  # noqa: C408 - reads like the call it becomes
        range="10.32.0.0/12",
        addresses=1048576,
        default_subnet="10.32.0.0/12",
        active=2,
        owners=(
            OwnerReport(PEERS[1], NAMES[1], "h2", 524288, 50.0, False, 75.0),
            OwnerReport(PEERS[0], NAMES[0], "h1", 524288, 50.0, True, None),
        ),
    )
    return RangeReport(**{**fields, **changes})


def ipam_report(**changes: Any) -> IpamReport:
    """``owners``, ``held_addresses``: of the only range."""
    of_range = {key: changes.pop(key) for key in ("owners", "held_addresses") if key in changes}
    fields: dict[str, Any] = dict(  # noqa: C408 - reads like the call it becomes
        state="ready",
        detail="",
        ranges=(range_report(**of_range),),
        electors=(f"{NAMES[0]}(h1)", f"{NAMES[1]}(h2)"),
        is_elector=True,
        quorum=2,
        electors_known=2,
        electors_missing=(),
        pending=(),
        blocked=(),
        segments=2,
        voters=(f"{NAMES[0]}(h1)",),
        removed=(RemovedReport("44" * 16, "0a:00:00:00:00:04", "h4", PEERS[0], NAMES[0], "h1"),),
    )
    return IpamReport(**{**fields, **changes})


def node_report(**changes: Any) -> NodeReport:
    fields: dict[str, Any] = dict(  # noqa: C408 - reads like the call it becomes
        peer=PEERS[0],
        name=NAMES[0],
        nickname="h1",
        incarnation=3,
        cluster="ab" * 16,
        discovery=True,
        encryption="TLS 1.3, password",
        mtu=1376,
        mtu_reason="default",
        warnings=(),
        targets=(
            TargetReport("192.0.2.2", "cli", ("192.0.2.2:6783",), "connected", "", None),
            TargetReport("nowhere.example", "conf", (), "unresolved", "Name or service not known", 4.2),
        ),
        connections=(
            ConnectionReport(
                "192.0.2.2:6783",
                True,
                "established",
                "",
                PEERS[1],
                NAMES[1],
                "h2",
                "password line 1",
                "fastdp",
                "VXLAN answers",
                0.41,
                0.35,
                0.0,
            ),
            ConnectionReport(
                "192.0.2.3:6783", True, "refused", "other cluster", "", "", "", "", "", "", None, None, None
            ),
        ),
        peers=(
            PeerReport(PEERS[0], NAMES[0], "h1", "0.1.0", True, True, ((NAMES[1], "h2", "192.0.2.2:6783", True),)),
            PeerReport(PEERS[1], NAMES[1], "h2", "0.1.0", True, True, ((NAMES[0], "h1", "192.0.2.1:40000", False),)),
            PeerReport(PEERS[2], NAMES[2], "h3", "0.1.0", False, False, (), 7200.0),
        ),
        ipam=ipam_report(),
        attachments=1,
        log_length=1,
        ring_hash="cd" * 16,
        terminations=0,
    )
    return NodeReport(**{**fields, **changes})


class FakeDaemon:
    """``hold``: idents whose allocation waits for ever (until cancelled)."""

    def __init__(self) -> None:
        self.identity = Identity(
            version="0.1.0", pid=4242, started_at=1.0, name=NAMES[0], nickname="h1", port=6783, log_path="/x.log"
        )
        self.report = node_report()
        self.commands: list[Command] = []
        self.attached: list[AttachSpec] = []
        self.exposed: list[ExposeSpec | HideSpec] = []
        self.named: list[tuple[str, NameSpec]] = []
        self.cancelled: list[Command] = []
        self.answers: dict[type, Result] = {}
        self.note = ""  # with the next attach
        self.hold: set[str] = set()
        self.hold_consense = False
        self.hold_removals = False
        self.hold_resets = False
        self.stopped = False

    async def request(self, command: Command) -> Result:
        self.commands.append(command)
        if isinstance(command, GetReport):
            return self.report
        if (
            (isinstance(command, Allocate) and command.ident in self.hold)
            or (isinstance(command, Consense) and self.hold_consense)
            or (isinstance(command, RemovePeers) and self.hold_removals)
            or (isinstance(command, Reset) and self.hold_resets)
        ):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled.append(command)
                raise
        if (answer := self.answers.get(type(command))) is not None:
            return answer
        match command:
            case Allocate():
                return Addresses(("10.32.0.1/12",))
            case Claim(address=address):
                return Addresses((address,))
            case Consense():
                return Done("voter")
            case _:
                return Done()

    def submit(self, command: Command, done: Callable[[Result], None]) -> Callable[[], None]:
        task = asyncio.get_running_loop().create_task(self.request(command))

        def finished(task: asyncio.Task[Result]) -> None:
            if not task.cancelled():
                done(task.result())

        task.add_done_callback(finished)

        def cancel() -> None:
            task.cancel()

        return cancel

    async def attach(self, spec: AttachSpec) -> Addresses | Failure:
        self.attached.append(spec)
        if spec.container == "netns:absent":
            return Failure(Code.NOT_FOUND, "no network namespace absent", "", "`ip netns list` shows those there are")
        if spec.container in self.hold:
            await asyncio.get_running_loop().create_future()
        return Addresses(("10.32.0.1/12", "10.33.0.1/24"), self.note)

    async def detach(self, spec: DetachSpec) -> Addresses | Failure:
        return Addresses(("10.32.0.1/12",))

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure:
        self.exposed.append(spec)
        return Addresses(("10.32.0.7/12",))

    async def hide(self, spec: HideSpec) -> Addresses | Failure:
        self.exposed.append(spec)
        return Addresses(("10.32.0.7/12",))

    async def add_name(self, spec: NameSpec) -> Done | Failure:
        self.named.append(("add", spec))
        return Done()

    async def remove_name(self, spec: NameSpec) -> Done | Failure:
        self.named.append(("remove", spec))
        return Done()

    async def ps(self, containers: tuple[str, ...]) -> Attachments | Failure:
        rows = (
            Attachment("netns:web", "netns:web", bytes.fromhex("0a1b2c3d4e5f"), (), ("10.32.0.1/12",), True, True),
            Attachment("netns:db", "netns:db", bytes.fromhex("0a1b2c3d4e60"), (), ("10.32.0.2/12",), True, False),
        )
        return Attachments(tuple(row for row in rows if not containers or row.container in containers))

    async def reset(self, force: bool) -> Done | Failure:
        result = await self.request(Reset(force))
        assert isinstance(result, Done | Failure)
        return result

    def request_stop(self) -> None:
        self.stopped = True


class RunningDaemon:
    """The fake behind a real control server, on a loop in a thread of its own."""

    def __init__(self, folder: Path, status_address: str = "") -> None:
        self.daemon = FakeDaemon()
        self.socket_path = str(folder / "control.sock")
        self.status_address = status_address
        self.warnings: tuple[str, ...] = ()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._server: ControlServer | None = None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _start(self) -> None:
        self._server = ControlServer(self.daemon, socket_path=self.socket_path, status_address=self.status_address)
        self.warnings = await self._server.start()

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    def stop(self) -> None:
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.close(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextlib.contextmanager
def running(folder: Path, status_address: str = "") -> Iterator[RunningDaemon]:
    fake = RunningDaemon(folder, status_address)
    fake.start()
    try:
        yield fake
    finally:
        fake.stop()
