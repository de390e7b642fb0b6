"""Checks of the host on the real kernel; they change nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys

import pytest
from host_pair import run

from weavenet.host import addresses, netns, probe

pytestmark = pytest.mark.lab


def test_features_are_tried_and_leave_nothing() -> None:
    before = run(netns.own(), "ip", "-j", "link")
    checks = asyncio.run(probe.features())
    assert {check.name for check in checks} >= {"bridge", "VXLAN", "packet sockets", "nftables bridge"}
    assert [check for check in checks if not check.ok] == []
    names = [[link["ifname"] for link in json.loads(text)] for text in (before, run(netns.own(), "ip", "-j", "link"))]
    assert names[0] == names[1]


def test_port_in_use_is_found_with_a_next_step() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (links, *_) = probe.ports(port)
    assert not links.ok and links.required and str(port) in links.next_step


def test_a_port_of_our_own_sleeve_worker_is_fine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        arguments = [sys.executable, "-c", "print(flush=True); input()", probe.SLEEVE_WORKER, "--port", str(port)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()  # it runs under these arguments by now
            (_, ours, _) = probe.ports(port)
            worker.kill()
        (_, foreign, _) = probe.ports(port)
    assert ours.ok and f"our sleeve worker (pid {worker.pid})" in ours.found
    assert not foreign.ok and "--port" in foreign.next_step


def test_range_that_overlaps_a_route_is_found() -> None:
    with netns.scratch() as space:
        run(space, "ip", "link", "set", "lo", "up")
        run(space, "ip", "route", "add", "10.33.0.0/16", "dev", "lo")
        (clash,) = asyncio.run(probe.range_conflicts(["10.32.0.0/12"], space))
        (fine,) = asyncio.run(probe.range_conflicts(["172.20.0.0/16"], space))
    assert not clash.ok and "10.33.0.0/16" in clash.found and "lo" in clash.found
    assert fine.ok


def test_local_addresses_are_those_of_the_namespace() -> None:
    with netns.scratch() as space:
        run(space, "ip", "link", "set", "lo", "up")
        run(space, "ip", "address", "add", "192.0.2.9/32", "dev", "lo")
        run(space, "ip", "address", "add", "fd00::9/128", "dev", "lo")
        assert netns.call(space, addresses.local_hosts) == ("127.0.0.1", "192.0.2.9", "::1", "fd00::9")
