"""Containers of hosts that share a password talk over VXLAN through WireGuard, here Debian's ``wireguard-go``."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from lab.clusters import Attached, attach_new, wait_for_links
from lab.fresh import MakeLab
from lab.test_scenario_reset import traces
from lab.test_scenario_sleeve import MARK, PASSWORD, listening
from lab.traffic import PYTHON, assert_intact, block_udp, echo, multicast, unblock_udp, wait_for_plane
from weavenet.core.limits import PORT_DEFAULT, WIREGUARD_DEVICE, WIREGUARD_PORT_OFFSET
from weavenet.lab import processes
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.pings import Pings
from weavenet.lab.waiting import wait_until

PORT = PORT_DEFAULT + WIREGUARD_PORT_OFFSET
TRANSFERS = (("udp", 60), ("udp", 1300), ("udp", 9000), ("tcp", 3_000_000))
KEY_DEADLINE_S = 90.0
_DEVICE = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/wireguard/weave-wg.sock")
s.sendall(b"get=1\\n\\n")
print(s.recv(1 << 20).decode())
"""


def launch(host: Host, *targets: str) -> None:
    done = host.weave("launch", "--wireguard", "any", *targets, environment={"WEAVE_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr


def private_key(host: Host) -> str:
    """Of the device, in hex."""
    said = host.run([PYTHON, "-c", _DEVICE], check=True).stdout
    return next(line.partition("=")[2] for line in said.splitlines() if line.startswith("private_key="))


def wireguard_pids(host: Host) -> list[int]:
    return [pid for pid in processes.inside(host.pid) if "wireguard-go" in " ".join(processes.arguments(pid))]


def wait_for_wireguard(lab: Lab) -> None:
    for host in lab.hosts:
        for other in lab.hosts:
            if host.name != other.name:
                wait_for_plane(host, other, "established wireguard")


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(3)
    for host in lab.hosts:
        launch(host, *(other.name for other in lab.hosts))
    wait_for_links(lab.hosts)
    assert lab.hosts[0].weave("consense", "--timeout", "30s").returncode == 0
    return lab


@pytest.fixture(scope="module")
def containers(lab: Lab) -> list[Attached]:
    return [attach_new(host, f"{host.name}-c") for host in lab.hosts]


@pytest.fixture(autouse=True)
def on_wireguard(lab: Lab) -> Iterator[None]:
    wait_for_wireguard(lab)
    yield
    for host in lab.hosts:
        host.run(["nft", "delete", "table", "inet", "filtered"])


def test_what_containers_say_is_not_in_clear_on_the_underlay(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address), _ = containers
    with listening(target.host.pid) as inside, listening(lab.state.underlay_pid) as outside:
        done = source.run(["ping", "-c", "30", "-i", "0.02", "-s", "1000", "-p", MARK.hex(), address])
        assert done.returncode == 0, done.stdout
    assert inside["marked"] >= 30, "the method sees what is in clear"
    assert outside["packets"] > 60
    assert outside["marked"] == 0


def test_transfers_and_multicast(containers: list[Attached]) -> None:
    for source, _ in containers[:2]:
        for target, address in containers:
            if source is not target:
                with echo(target):
                    for kind, size in TRANSFERS:
                        assert_intact(source, address, kind, size)
    found = multicast(containers[0], containers[1:], 50)
    for name, numbers in found.items():
        assert numbers == {str(number): 1 for number in range(50)}, name


def test_only_vxlan_comes_out_of_the_tunnel(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    (address,) = [
        word.partition("/")[0]
        for word in h2.run(["ip", "-o", "-4", "addr", "show", "dev", WIREGUARD_DEVICE], check=True).stdout.split()
        if word.startswith("2") and word.endswith("/32")
    ][:1]
    assert h1.run(["ping", "-c", "2", "-W", "1", address]).returncode != 0


def test_addresses_that_others_take_off_the_device_come_back(lab: Lab, containers: list[Attached]) -> None:
    """As a network manager does with a device that it does not know."""
    host = lab.hosts[0]

    def shown() -> list[str]:
        return host.run(["ip", "-o", "-4", "address", "show", "dev", "weave-wg"], check=True).stdout.splitlines()

    wait_until(lambda: len(shown()) == 2, KEY_DEADLINE_S, "the change of key that follows a launch")
    time.sleep(11)  # by then the key is in use
    host.run(["ip", "address", "flush", "dev", "weave-wg"], check=True)
    wait_until(lambda: shown() != [], 30, "an address of the device")
    wait_for_wireguard(lab)
    with Pings(containers[0][0], containers[1][1]) as pings:
        wait_until(lambda: pings.answered() > 20, 10, "pings over WireGuard again")


def test_filtered_wireguard_falls_to_sleeve_and_returns(lab: Lab, containers: list[Attached]) -> None:
    h1, h2, _ = lab.hosts
    pids = h1.daemon_pids()
    with Pings(containers[0][0], containers[1][1]) as pings:
        block_udp(h1, PORT, h2)
        wait_for_plane(h1, h2, "established sleeve")
        wait_for_plane(h1, h2, f"no answer over WireGuard on UDP {PORT}")
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 20, 10, "pings over sleeve")
        unblock_udp(h1)
        wait_for_plane(h1, h2, "established wireguard")
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 20, 10, "pings over WireGuard again")
        counted = pings.stop()
    print(f"filtering WireGuard cost {counted.longest_gap * 10} ms")
    assert h1.daemon_pids() == pids


def test_a_restarted_daemon_loses_nothing_and_changes_the_key(lab: Lab, containers: list[Attached]) -> None:
    """The device goes on without a daemon; the next one keeps its key, and changes it while packets flow."""
    host = lab.hosts[1]
    device, key = wireguard_pids(host), private_key(host)
    with Pings(containers[0][0], containers[1][1]) as pings:
        host.kill_daemon()
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 50, 10, "pings without a daemon")
        launch(host)
        wait_for_links(lab.hosts)
        wait_for_wireguard(lab)
        counted = pings.stop()
    assert counted.lost == 0 or private_key(host) != key, counted  # on a slow machine the change comes this early
    with Pings(containers[0][0], containers[1][1]) as pings, Pings(containers[1][0], containers[2][1]) as others:
        wait_until(lambda: private_key(host) != key, KEY_DEADLINE_S, "another key")
        before, before_others = pings.answered(), others.answered()
        wait_until(lambda: pings.answered() > before + 100, 10, "pings to it with the new key")
        wait_until(lambda: others.answered() > before_others + 100, 10, "pings from it with the new key")
        counted, counted_others = pings.stop(), others.stop()
    print(f"a new key cost {counted.lost} and {counted_others.lost} of {counted.sent} pings")
    assert wireguard_pids(host) == device
    wait_for_wireguard(lab)


def test_a_killed_process_is_replaced_and_traffic_goes_on(lab: Lab, containers: list[Attached]) -> None:
    (source, _), (target, address), _ = containers
    (victim,) = wireguard_pids(target.host)
    with Pings(source, address) as pings:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: any(pid != victim for pid in wireguard_pids(target.host)), 10.0, "another process")
        wait_for_wireguard(lab)
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 20, 10.0, "traffic again")
        counted = pings.stop()
    print(f"a killed wireguard-go cost {counted.longest_gap * 10} ms")


def test_no_secret_is_told(lab: Lab) -> None:
    for host in lab.hosts:
        key = private_key(host)
        for pid in [*host.daemon_pids(), *wireguard_pids(host)]:
            assert not any(key in text or PASSWORD in text for text in processes.arguments(pid))
            assert not any(key in value for value in processes.environment(pid).values())
        for log in host.disk.rglob("*.log"):
            said = log.read_text(errors="replace")
            assert key not in said and hashlib.sha256(bytes.fromhex(key)).hexdigest() not in said
        assert key not in host.weave("report", check=True).stdout


def test_what_is_removed_or_reset_is_closed(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    before = traces(h2)
    for host in lab.hosts:
        launch(host, "h1", "h2")
    wait_for_links(lab.hosts)
    assert h1.weave("consense", "--timeout", "30s").returncode == 0
    wait_for_wireguard(lab)
    assert h1.run(["ip", "route", "show", "dev", WIREGUARD_DEVICE], check=True).stdout.strip()
    done = h2.weave("reset")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not wireguard_pids(h2), 10.0, "no process of WireGuard")
    assert traces(h2) == before
    assert h2.run(["ls", "/run/wireguard"]).stdout == ""
    wait_until(
        lambda: not h1.run(["ip", "route", "show", "dev", WIREGUARD_DEVICE], check=True).stdout.strip(),
        30.0,
        "no route to who left",
    )
    assert "240" not in h1.run(["bridge", "fdb"], check=True).stdout
    assert "public_key" not in h1.run([PYTHON, "-c", _DEVICE], check=True).stdout
    h1.weave("stop", check=True)
    done = h1.weave("launch", "--no-fastdp", environment={"WEAVE_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not wireguard_pids(h1), 10.0, "no process where WireGuard is not wanted any more")
    lab.down()
