"""Fallback to sleeve and back, relays, transfers over every plane, multicast once at each member."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.clusters import (
    NOTICE_DEADLINE_S,
    Attached,
    attach_new,
    form,
    launch_together,
    wait_for_links,
    wait_for_pings,
)
from lab.fresh import MakeLab
from lab.traffic import assert_intact, block_udp, echo, multicast, unblock_udp, wait_for_plane
from weavenet.core.limits import PORT_DEFAULT, VXLAN_PORT
from weavenet.lab.lab import Lab
from weavenet.lab.nat import Nat
from weavenet.lab.pings import Pings
from weavenet.lab.topology import HostEntry, LinkEntry, Topology
from weavenet.lab.waiting import wait_until

TRANSFERS = (("udp", 60), ("udp", 512), ("udp", 1300), ("udp", 9000), ("tcp", 65_536), ("tcp", 5_000_000))


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(3)
    form(lab)
    return lab


@pytest.fixture(scope="module")
def containers(lab: Lab) -> list[Attached]:
    return [attach_new(host, f"{host.name}-c") for host in lab.hosts]


@pytest.fixture(autouse=True)
def whole_again(lab: Lab) -> Iterator[None]:
    yield
    for host in lab.hosts:
        host.run(["nft", "delete", "table", "inet", "filtered"])
    lab.heal()
    for host in lab.hosts:
        for other in lab.hosts:
            if host.name != other.name:
                wait_for_plane(host, other, "established fastdp")


def assert_transfers(containers: list[Attached]) -> None:
    for source, _ in containers:
        for target, address in containers:
            if source is not target:
                with echo(target):
                    for kind, size in TRANSFERS:
                        assert_intact(source, address, kind, size)


def test_transfers_over_fastdp(lab: Lab, containers: list[Attached]) -> None:
    assert_transfers(containers[:2])


def test_filtered_vxlan_falls_to_sleeve_and_returns_without_a_restart(lab: Lab, containers: list[Attached]) -> None:
    h1, h2, _ = lab.hosts
    pids = h1.daemon_pids()
    with Pings(containers[0][0], containers[1][1]) as pings:
        block_udp(h1, VXLAN_PORT, h2)
        wait_for_plane(h1, h2, "established sleeve")
        before = pings.answered()
        wait_until(lambda: pings.answered() > before, NOTICE_DEADLINE_S, "pings over sleeve")
        assert_transfers(containers[:2])
        unblock_udp(h1)
        wait_for_plane(h1, h2, "established fastdp")
        before = pings.answered()
        wait_until(lambda: pings.answered() > before, NOTICE_DEADLINE_S, "pings over fastdp again")
        counted = pings.stop()
    print(f"the change to sleeve and back cost {counted.longest_gap * 10} ms in a row")
    assert counted.lost < counted.sent
    assert h1.daemon_pids() == pids


def test_hosts_without_a_direct_path_are_relayed(lab: Lab, containers: list[Attached]) -> None:
    h1, _, h3 = lab.hosts
    for port in (VXLAN_PORT, PORT_DEFAULT):
        block_udp(h1, port, h3)
    wait_for_plane(h1, h3, "relayed by h2")
    assert_transfers([containers[0], containers[2]])


def test_a_link_that_is_cut_and_moved_is_followed_under_traffic(lab: Lab, containers: list[Attached]) -> None:
    (c1, _), (c2, _), (_, a3) = containers
    with Pings(c1, a3) as first, Pings(c2, a3) as second:
        lab.cut("h1", "h3")
        before = first.answered()
        wait_until(lambda: first.answered() > before + 50, NOTICE_DEADLINE_S, "c1 to reach c3 over h2")
        lab.heal()
        lab.cut("h2", "h3")
        before = second.answered()
        wait_until(lambda: second.answered() > before + 50, NOTICE_DEADLINE_S, "c2 to reach c3 over h1")
        before = first.answered()
        wait_until(lambda: first.answered() > before + 50, NOTICE_DEADLINE_S, "c1 to reach c3 directly")
        first.stop()
        second.stop()


def test_multicast_comes_once_to_every_member_over_mixed_planes(lab: Lab, containers: list[Attached]) -> None:
    h1, h2, h3 = lab.hosts
    for port in (VXLAN_PORT, PORT_DEFAULT):
        block_udp(h1, port, h3)
    block_udp(h2, VXLAN_PORT, h3)
    wait_for_plane(h1, h3, "relayed by h2")
    wait_for_plane(h2, h3, "established sleeve")
    wait_for_plane(h3, h2, "established sleeve")
    wait_for_plane(h3, h1, "relayed by h2")
    beside = attach_new(h1, "beside")
    everybody = [*containers, beside]
    for sender in everybody:
        receivers = [each for each in everybody if each is not sender]

        def comes_whole(sender: Attached = sender, receivers: list[Attached] = receivers) -> bool:
            """A busy machine may lose a datagram; none may come twice."""
            found = multicast(sender, receivers, 50)
            assert all(set(numbers.values()) == {1} for numbers in found.values()), f"from {sender[0].name}: {found}"
            return all(len(numbers) == 50 for numbers in found.values())

        wait_until(comes_whole, NOTICE_DEADLINE_S, f"everything from {sender[0].name} at every member")


@pytest.mark.parametrize("size", [1280, 576])
def test_an_underlay_that_swallows_large_packets_is_no_black_hole(
    lab: Lab, containers: list[Attached], size: int
) -> None:
    """Nobody says that packets are too large: heartbeats of full size find out, and sleeve which size gets through."""
    h1, h2, _ = lab.hosts
    lab.mtu("h1", "h2", size)
    wait_for_plane(h1, h2, "established sleeve")
    wait_for_plane(h2, h1, "established sleeve")
    wait_for_plane(h1, h2, "the path to")
    assert_transfers(containers[:2])


def test_a_partial_mesh_from_the_start(make_lab: MakeLab) -> None:
    links = [LinkEntry(("h1", "h2")), LinkEntry(("h2", "h3"))]
    lab = make_lab(Topology(hosts=[HostEntry("h1"), HostEntry("h2"), HostEntry("h3")], links=links))
    launch_together(lab.hosts)
    wait_for_links(lab.hosts[:2])
    wait_for_links(lab.hosts[1:])
    for host in lab.hosts:
        host.weave("consense", "--timeout", "50s", check=True)
    found = [attach_new(host, f"{host.name}-c") for host in lab.hosts]
    wait_until(lambda: found[0][0].ping(found[2][1]), NOTICE_DEADLINE_S, "h1's container to reach h3's over h2")
    assert_transfers([found[0], found[2]])
    lab.down()


@pytest.mark.parametrize("kind", list(Nat))
def test_two_hosts_behind_different_nats_meet_through_a_third(make_lab: MakeLab, kind: Nat) -> None:
    lab = make_lab(3)
    h1, h2, h3 = lab.hosts
    for host in (h1, h3):
        lab.nat(host.name, kind)
    for host in (h2, h1, h3):
        host.weave("launch", *([] if host is h2 else ["h2"]), check=True)
    h2.weave("consense", "--timeout", "50s", check=True)
    found = [attach_new(host, f"{host.name}-c") for host in lab.hosts]
    wait_for_pings(lab, found, NOTICE_DEADLINE_S)
    way = "direct to 192.168.77.3:6783" if kind is Nat.CONE else "relayed by h2"
    wait_for_plane(h1, h3, way)
    assert_transfers([found[0], found[2]])
    lab.down()


def test_sleeve_outlives_the_daemon_and_a_killed_worker_is_replaced(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    for host in lab.hosts:
        host.weave("launch", "--no-fastdp", "h1", "h2", check=True)
    wait_for_links(lab.hosts)
    found = [attach_new(host, f"{host.name}-c") for host in lab.hosts]
    wait_for_pings(lab, found, NOTICE_DEADLINE_S)
    wait_for_plane(h1, h2, "direct to")
    worker = h1.run(["pgrep", "-f", "weavenet.sleeve"], check=True).stdout.split()
    with Pings(found[0][0], found[1][1]) as pings:
        h1.kill_daemon()
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 50, NOTICE_DEADLINE_S, "pings without a daemon")
        h1.weave("launch", "--no-fastdp", "h1", "h2", check=True)
        wait_for_plane(h1, h2, "direct to")
        counted = pings.stop()
    assert counted.lost == 0
    assert h1.run(["pgrep", "-f", "weavenet.sleeve"], check=True).stdout.split() == worker
    with Pings(found[0][0], found[1][1]) as pings:
        h1.run(["kill", "-9", *worker], check=True)
        before = pings.answered()
        wait_until(lambda: pings.answered() > before + 50, NOTICE_DEADLINE_S, "pings over the next worker")
    assert h1.run(["pgrep", "-f", "weavenet.sleeve"], check=True).stdout.split() != worker
    lab.down()
