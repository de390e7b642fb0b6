"""Containers of hosts that share a password talk over sleeve: sealed on the wire, through a killed worker and through a
restart of the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.clusters import NOTICE_DEADLINE_S, Attached, attach_new, wait_for_links
from lab.fresh import MakeLab
from lab.traffic import assert_intact, echo
from weavenet.core.limits import PORT_DEFAULT, SLEEVE_DEVICE, SLEEVE_UNIT_BYTES
from weavenet.lab import processes
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.pings import Pings
from weavenet.lab.waiting import wait_until
from weavenet.runtime.sleeveworker import SILENCE_S

PASSWORD = "correct horse battery staple 7391"
MARK = b"in clear 7391 ok"
"""Of 16 bytes: as many as ping takes for a pattern."""
HANG_DEADLINE_S = NOTICE_DEADLINE_S + SILENCE_S
_LISTEN = """
import json, select, signal, socket, sys
mark, port = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
found = {"packets": 0, "marked": 0, "sleeve": 0}
print("ready", flush=True)
while select.select([s, sys.stdin], [], [])[0][0] is s:
    packet = s.recv(1 << 17)
    found["packets"] += 1
    found["marked"] += mark in packet
    if packet[12:14] == b"\\x08\\x00" and packet[23] == 17:
        found["sleeve"] += packet[34:38] == port.to_bytes(2, "big") * 2
print(json.dumps(found), flush=True)
"""


@contextmanager
def listening(pid: int) -> Iterator[dict[str, int]]:
    """On every device of a network namespace; the counts are there when it ends."""
    command = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", _LISTEN, MARK.hex(), str(PORT_DEFAULT)]
    found: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield found
        finally:
            process.stdin.close()
            found.update(json.loads(process.stdout.readline() or "{}"))


def worker_pids(host: Host) -> list[int]:
    return [pid for pid in processes.inside(host.pid) if "weavenet.sleeve" in processes.arguments(pid)]


def launch(host: Host, *targets: str) -> None:
    done = host.weave("launch", *targets, environment={"WEAVE_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr


def wait_for_sleeve(lab: Lab) -> None:
    for host in lab.hosts:
        wait_until(
            lambda host=host: "established sleeve" in host.weave("status", "connections").stdout,  # type: ignore[misc]
            NOTICE_DEADLINE_S,
            f"sleeve carries on {host.name}",
        )


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(2)
    for host in lab.hosts:
        launch(host, *(other.name for other in lab.hosts))
    wait_for_links(lab.hosts)
    assert lab.hosts[0].weave("consense", "--timeout", "50s").returncode == 0
    wait_for_sleeve(lab)
    return lab


@pytest.fixture(scope="module")
def containers(lab: Lab) -> list[Attached]:
    return [attach_new(host, f"{host.name}-c") for host in lab.hosts]


def test_nothing_is_in_clear_on_the_underlay(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address) = containers
    with listening(target.host.pid) as inside, listening(lab.state.underlay_pid) as outside:
        done = source.run(["ping", "-c", "30", "-i", "0.02", "-s", "1000", "-p", MARK.hex(), address])
        assert done.returncode == 0, done.stdout
        with echo(target):
            assert_intact(source, address, "tcp", 3_000_000)
    assert inside["marked"] >= 30, "the method sees what is in clear"
    assert outside["sleeve"] > 60 and outside["packets"] > 60
    assert outside["marked"] == 0


def test_containers_send_units_that_sleeve_sends_at_once(containers: list[Attached]) -> None:
    for container, _ in containers:
        told = container.run(["ip", "-details", "link", "show", "ethwe"]).stdout
        assert f"gso_max_size {SLEEVE_UNIT_BYTES}" in told


def test_no_secret_is_told(lab: Lab) -> None:
    """Command lines, environments and logs of daemon and worker."""
    for host in lab.hosts:
        for pid in [*host.daemon_pids(), *worker_pids(host)]:
            assert not any(PASSWORD in text for text in processes.arguments(pid))
            assert not any(PASSWORD in value for value in processes.environment(pid).values())
        for log in host.disk.rglob("*.log"):
            assert PASSWORD not in log.read_text(errors="replace")


def test_a_killed_worker_is_replaced_and_traffic_goes_on(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address) = containers
    (victim,) = worker_pids(target.host)
    with Pings(source, address) as pings:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: any(pid != victim for pid in worker_pids(target.host)), NOTICE_DEADLINE_S, "another worker")
        wait_until(lambda: source.ping(address, 1), NOTICE_DEADLINE_S, "traffic again")
        counted = pings.stop()
    print(f"a killed worker cost {counted.longest_gap * 10} ms")
    with echo(target):
        assert_intact(source, address, "tcp", 1_000_000)


def test_a_worker_that_hangs_is_replaced(lab: Lab, containers: list[Attached]) -> None:
    """Also one that this daemon did not start."""
    (source, _), (target, address) = containers
    target.host.weave("stop", check=True)
    launch(target.host)
    (victim,) = worker_pids(target.host)
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: victim not in worker_pids(target.host), HANG_DEADLINE_S, "the hanging worker to go")
    wait_until(lambda: source.ping(address, 1), NOTICE_DEADLINE_S, "traffic again")


def test_the_worker_listens_where_the_daemon_is_told_to(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address) = containers
    before = worker_pids(target.host)
    for flags in (["--port", "7001"], []):
        target.host.weave("stop", check=True)
        launch(target.host, *flags, f"{source.host.name}:{PORT_DEFAULT}")
        port = int(flags[-1]) if flags else PORT_DEFAULT
        wait_until(
            lambda port=port: f":{port} " in target.host.run(["ss", "-Hlun"]).stdout,  # type: ignore[misc]
            NOTICE_DEADLINE_S,
            f"a worker at port {port}",
        )
        assert len(worker_pids(target.host)) == 1
        assert worker_pids(target.host) != before
        wait_until(lambda: source.ping(address, 1), NOTICE_DEADLINE_S, "traffic again")
    wait_for_sleeve(lab)


def test_the_worker_forwards_while_the_daemon_restarts(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address) = containers
    host = target.host
    before = worker_pids(host)
    with Pings(source, address) as pings:
        host.run(["weave", "stop"])
        launch(host)
        wait_for_links(lab.hosts)
        wait_for_sleeve(lab)
        counted = pings.stop()
    assert worker_pids(host) == before
    assert counted.lost == 0, counted
    assert SLEEVE_DEVICE in host.run(["ip", "-o", "link", "show", "master", "weave"]).stdout
