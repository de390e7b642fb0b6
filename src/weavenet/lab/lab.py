"""A lab as a whole: up, down, faults. ``with Lab.up("name", of_count(3)) as lab`` leaves nothing behind.

A change happens under the lab's lock, and its state is written before what it describes is made, so that ``down``
finds everything at any moment.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import processes, requirements, state, underlay
from weavenet.lab.host import Container, Host
from weavenet.lab.nat import Nat
from weavenet.lab.processes import UNDERLAY
from weavenet.lab.state import HostState, LabState, Loss, Narrow, pair
from weavenet.lab.topology import Topology, plan
from weavenet.lab.waiting import wait_until

START_TIMEOUT_S = 30.0
PINGS_AT_ONCE = 8

_BOOT = Path(__file__).with_name("boot.py")
_INIT = Path(__file__).with_name("init.py")
_CHECKOUT = Path(__file__).resolve().parents[3]


class Lab:
    """A lab that exists. Made by :meth:`up` or :meth:`open`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def up(cls, name: str, topology: Topology) -> Lab:
        """Makes the lab; on any failure or interruption nothing of it remains."""
        requirements.check()
        wanted = plan(state.check_name(name), topology)
        with state.locked(name):
            if name in state.existing():
                raise WeaveError(
                    Failure(
                        Code.ALREADY_TAKEN,
                        f"no lab named {name}",
                        _describe(name),
                        f"weave lab down --lab {name}, or choose another name: weave lab up 3 --name {name}2",
                    )
                )
            try:
                _make(wanted)
            except BaseException:
                _tear_down(name)
                raise
        return cls(name)

    @classmethod
    def open(cls, name: str) -> Lab:
        """A lab that is up; raises ``WeaveError`` when there is none or only leftovers of one."""
        found = state.load(state.check_name(name))
        if found is None or not found.is_up or not found.underlay_is_running:
            if name in state.existing():
                raise WeaveError(
                    Failure(Code.HOST, f"lab {name} is up", _describe(name), f"weave lab down --lab {name}")
                )
            known = ", ".join(state.existing()) or "none"
            raise WeaveError(
                Failure(Code.NOT_FOUND, f"a lab named {name}", f"labs: {known}", f"weave lab up 3 --name {name}")
            )
        return cls(name)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def down(self) -> None:
        down(self.name)

    @property
    def state(self) -> LabState:
        found = state.load(self.name)
        if found is None:
            raise WeaveError(Failure(Code.NOT_FOUND, f"lab {self.name} is up", "it was taken down", "weave lab up 3"))
        return found

    @property
    def hosts(self) -> list[Host]:
        return [self._host(name) for name in self.state.hosts]

    def host(self, name: str) -> Host:
        self._check_hosts(self.state, [name])
        return self._host(name)

    def _host(self, name: str) -> Host:
        return Host(self.name, name, lambda: self.state.hosts[name])

    def _check_hosts(self, current: LabState, names: Sequence[str]) -> None:
        for name in names:
            if name not in current.hosts:
                raise WeaveError(
                    Failure(
                        Code.NOT_FOUND,
                        f"a host of lab {self.name}: {', '.join(current.hosts)}",
                        repr(name),
                        "weave lab list",
                    )
                )

    def _change(self, change: Callable[[LabState], None]) -> None:
        """Changes the faults, on disk and in the underlay."""
        with state.locked(self.name):
            current = self.state
            change(current)
            state.save(current)
            underlay.apply_faults(current)

    def partition(self, groups: Sequence[Sequence[str]]) -> None:
        """Nothing passes between groups. Hosts in no group form one more together. Replaces the last partition."""

        def change(current: LabState) -> None:
            named = [name for group in groups for name in group]
            self._check_hosts(current, named)
            rest = [name for name in current.hosts if name not in named]
            sides = [list(group) for group in groups if group] + ([rest] if rest else [])
            if len(named) != len(set(named)) or len(sides) < 2:
                raise WeaveError(
                    Failure(
                        Code.INVALID,
                        "a partition has at least two sides and each host is on one of them",
                        " / ".join(",".join(group) for group in groups),
                        "weave lab partition h1,h2 / h3",
                    )
                )
            current.partition = sides

        self._change(change)

    def cut(self, a: str, b: str) -> None:
        """Nothing passes between these two."""

        def change(current: LabState) -> None:
            self._check_two(current, a, b)
            current.cuts = sorted({*current.cuts, pair(a, b)})

        self._change(change)

    def loss(self, a: str, b: str, per_100k: int) -> None:
        """This share of the frames between the two is lost, in each direction; 0 ends it."""

        def change(current: LabState) -> None:
            self._check_two(current, a, b)
            others = [loss for loss in current.loss if (loss.a, loss.b) != pair(a, b)]
            current.loss = [*others, Loss(*pair(a, b), per_100k)]

        self._change(change)

    def mtu(self, a: str, b: str, size: int) -> None:
        """Packets of more than ``size`` bytes between the two are dropped silently, in each direction; 0 ends it."""

        def change(current: LabState) -> None:
            self._check_two(current, a, b)
            before = current.narrowed_hosts()
            others = [narrow for narrow in current.narrow if (narrow.a, narrow.b) != pair(a, b)]
            current.narrow = [*others, Narrow(*pair(a, b), size)] if size else others
            underlay.hand_over_units(current, before - current.narrowed_hosts())

        self._change(change)

    def nat(self, name: str, kind: Nat | None) -> None:
        """Put a masquerading router in front of a host, or with None take it away. Connections that there are break."""

        def change(current: LabState) -> None:
            self._check_hosts(current, [name])
            if kind is None:
                current.nats.pop(name, None)
                underlay.translate(current.hosts[name], None)
            else:
                current.nats[name] = kind

        self._change(change)

    def _check_two(self, current: LabState, a: str, b: str) -> None:
        self._check_hosts(current, [a, b])
        if a == b:
            raise WeaveError(Failure(Code.INVALID, "two different hosts", f"{a} twice", "weave lab list"))

    def heal(self) -> None:
        """Ends partition, cuts, loss and small MTUs; what the topology says stays."""

        def change(current: LabState) -> None:
            underlay.hand_over_units(current, current.narrowed_hosts())
            current.partition, current.cuts, current.loss, current.narrow = [], [], [], []

        self._change(change)

    def kill(self, name: str) -> None:
        """The whole host loses power; its disk stays."""
        with state.locked(self.name):
            current = self.state
            self._check_hosts(current, [name])
            _stop_host(current, current.hosts[name])
            state.save(current)

    def reboot(self, name: str) -> None:
        """Power off, if it is on, and on again: same disk, machine-id and MAC, a new boot-id, empty /run and /tmp.
        Where `weave install-unit` was run, the daemon is ready when this returns."""
        with state.locked(self.name):
            current = self.state
            self._check_hosts(current, [name])
            host = current.hosts[name]
            _stop_host(current, host)
            state.save(current)
            _switch_on(current, host)
        self.host(name).run([sys.executable, "-I", "-S", str(_BOOT)], check=True)

    def clone(self, source: str, target: str, *, new_machine_id: bool = False) -> None:
        """Switches ``target`` off, gives it what is on the disk of ``source`` (data, weave.conf, and its machine-id
        unless ``new_machine_id``), and switches it on again. No daemon runs there afterwards; ``source`` goes on, its
        daemon stands still during the copy, so that the copy is what a snapshot of its disk would hold."""
        with state.locked(self.name):
            current = self.state
            self._check_two(current, source, target)
            host, model = current.hosts[target], current.hosts[source]
            _stop_host(current, host)
            state.save(current)
            running = self.host(source).daemon_pids() if model.is_running else []
            if running:
                self.host(source).pause_daemon()
            try:
                _copy_disk(state.disk_folder(self.name) / source, state.disk_folder(self.name) / target)
            finally:
                if running:
                    self.host(source).resume_daemon()
            if not new_machine_id:
                host.machine_id = model.machine_id
            (state.disk_folder(self.name) / target / "etc/machine-id").write_text(f"{host.machine_id}\n")
            _switch_on(current, host)

    def unreachable(self, containers: Sequence[tuple[Container, str]]) -> list[str]:
        """Pings all ordered pairs of (container, its address); the pairs without an answer, as sentences."""

        def try_pair(source: Container, target: Container, address: str) -> str | None:
            if source.ping(address):
                return None
            return (
                f"{source.name} on {source.host.name} got no answer from {target.name} on {target.host.name}, {address}"
            )

        pairs = [
            (source, target, address)
            for source, _ in containers
            for target, address in containers
            if (source.host.name, source.name) != (target.host.name, target.name)
        ]
        with ThreadPoolExecutor(PINGS_AT_ONCE) as pool:
            outcomes = list(pool.map(lambda one: try_pair(*one), pairs))
        return [outcome for outcome in outcomes if outcome]


def down(name: str) -> bool:
    """Removes everything of a lab, also after a crash or a half-made ``up``; False when there was nothing."""
    state.check_name(name)
    with state.locked(name):
        was_there = name in state.existing()
        _tear_down(name)
    return was_there


def _tear_down(name: str) -> None:
    processes.end_all(name)
    for folder in (state.run_folder(name), state.disk_folder(name)):
        if folder.is_dir():
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # the last lab takes the common folder along


def _describe(name: str) -> str:
    found = state.load(name)
    if found is None:
        return f"leftovers of a lab {name} that was not finished or not taken down"
    running = sum(host.is_running for host in found.hosts.values())
    return f"lab {name} with {running} of {len(found.hosts)} hosts running" + ("" if found.is_up else ", half-made")


def _make(wanted: LabState) -> None:
    folder = state.run_folder(wanted.name)
    folder.mkdir(mode=0o700, parents=True)
    state.save(wanted)
    for host in wanted.hosts.values():
        _make_disk(wanted, host)
    wanted.underlay_pid = _collect(wanted.name, UNDERLAY, _begin(wanted, UNDERLAY, {"kind": UNDERLAY}))
    wanted.underlay_started = processes.start_time(wanted.underlay_pid)
    underlay.build(wanted)
    hosts = list(wanted.hosts.values())
    _start_hosts(wanted, hosts)
    underlay.connect(wanted, hosts)
    underlay.apply_faults(wanted)
    wanted.is_up = True
    state.save(wanted)


def _make_disk(wanted: LabState, host: HostState) -> None:
    disk = state.disk_folder(wanted.name) / host.name
    etc = disk / "etc"
    etc.mkdir(parents=True)
    (disk / "data").mkdir(mode=0o700)
    (disk / "log").mkdir()
    disk.parent.chmod(0o700)
    known = "".join(f"{other.address} {other.name}\n" for other in wanted.hosts.values())
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n{known}")
    (etc / "hostname").write_text(f"{host.name}\n")
    (etc / "machine-id").write_text(f"{host.machine_id}\n")
    (etc / "resolv.conf").write_text("# the lab has no name server; its hosts are in /etc/hosts\n")
    configuration = etc / "weave.conf"
    configuration.write_text("# weave: settings of this host\n")
    configuration.chmod(0o600)


def _copy_disk(source: Path, target: Path) -> None:
    """A copy that ends halfway leaves the target's own data."""
    fresh = target / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source / "data", fresh)
    shutil.rmtree(target / "data")
    fresh.rename(target / "data")
    shutil.copy2(source / "etc/weave.conf", target / "etc/weave.conf")


def _start_hosts(current: LabState, hosts: Sequence[HostState]) -> None:
    launcher = _CHECKOUT / "weave"
    visible = {str(_CHECKOUT), sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}
    begun = []
    for host in hosts:
        spec: dict[str, object] = {
            "kind": "host",
            "host": host.name,
            "disk": str(state.disk_folder(current.name) / host.name),
            "boot_id": str(uuid.uuid4()),
            "visible": sorted(visible),
            "launcher": str(launcher) if launcher.is_file() else "",
            "python": sys.executable,
        }
        begun.append((host, _begin(current, host.name, spec)))
    for host, process in begun:
        host.pid = _collect(current.name, host.name, process)
        host.started = processes.start_time(host.pid)


def _begin(current: LabState, host: str, spec: dict[str, object]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_INIT), "weave-lab", current.name, host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**processes.marks(current.name, host), "PATH": requirements.SEARCH_PATH},
        start_new_session=True,  # Ctrl-C reaches the lab's command, which then takes the lab down in order
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec))
    process.stdin.close()
    process.stdin = None
    return process


def _end_inits(lab: str, host: str) -> bool:
    """False when there was none."""
    found = processes.inits(lab, host)
    for pid in found:
        processes.end_tree(pid)
    return bool(found)


def _collect(lab: str, host: str, process: subprocess.Popen[str]) -> int:
    try:
        out, err = process.communicate(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    if process.returncode != 0 or not out.strip().isdigit():
        raise WeaveError(
            Failure(
                Code.HOST,
                f"host {host} of lab {lab} should start",
                err.strip() or f"exit {process.returncode}",
                "weave setup says what this kernel lacks",
            )
        )
    return int(out)


def _switch_on(current: LabState, host: HostState) -> None:
    """A host that is down; on any failure or interruption it stays down."""
    try:
        _start_hosts(current, [host])
        underlay.connect(current, [host])
        underlay.apply_faults(current)
    except BaseException:
        _stop_host(current, host)
        state.save(current)
        raise
    state.save(current)


def _stop_host(current: LabState, host: HostState) -> None:
    """Also ends what a killed ``reboot`` started and did not note: two hosts would share one disk."""
    wait_until(lambda: not _end_inits(current.name, host.name), processes.END_DEADLINE_S, f"host {host.name} to end")
    host.pid = host.started = 0
    underlay.disconnect(current, host)
