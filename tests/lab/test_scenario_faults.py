"""Partition, crash, stop, reboot, death of containers: what is promised to hold, on the real kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from lab.clusters import (
    HEAL_DEADLINE_S,
    NOTICE_DEADLINE_S,
    Attached,
    attach_new,
    attached_on,
    form,
    wait_for_links,
    wait_for_pings,
)
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.pings import Pings
from weavenet.lab.waiting import wait_until

PINGS = 300  # at 100 a second
FREED_DEADLINE_S = 90.0  # a dead container's address is kept for 30 s

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(make_lab: MakeLab) -> tuple[Lab, list[Attached]]:
    lab = make_lab(3)
    form(lab)
    return lab, [attach_new(host, f"{host.name}-c{number}") for host in lab.hosts for number in (1, 2)]


@pytest.fixture
def lab(cluster: tuple[Lab, list[Attached]]) -> Iterator[Lab]:
    """Whole before each test, whatever the one before it did."""
    lab = cluster[0]
    lab.heal()
    for host in lab.hosts:
        if not host.daemon_pids():
            host.weave("launch", check=True)
    wait_for_links(lab.hosts)
    yield lab


@pytest.fixture
def containers(cluster: tuple[Lab, list[Attached]]) -> list[Attached]:
    return cluster[1]


def of(host: str, containers: list[Attached]) -> Attached:
    return next(each for each in containers if each[0].host.name == host)


def knowledge(host: Host) -> tuple[str, str, dict[str, int], set[str]]:
    """What a daemon must still know after anything that happened to it."""
    router = observe.report(host).router
    return router.name, router.cluster, observe.owners(host), attached_on(host)


def some_name(host: Host) -> str:
    return f"{host.name}-n{next(_numbers)}"


def test_both_sides_of_a_partition_allocate_and_no_address_is_used_twice(lab: Lab, containers: list[Attached]) -> None:
    h1, h2, h3 = lab.hosts
    lab.partition([["h1"], ["h2", "h3"]])
    assert not of("h1", containers)[0].ping(of("h2", containers)[1], timeout_s=1)
    wait_until(
        lambda: not observe.linked(h1) and observe.linked(h2) == {"h3"} and observe.linked(h3) == {"h2"},
        NOTICE_DEADLINE_S,
        "both sides to notice",
    )
    fresh = [attach_new(host, some_name(host)) for host in (h1, h2, h3, h1, h2, h3)]
    everything = [*containers, *fresh]
    addresses = [address for _, address in everything]
    assert len(set(addresses)) == len(addresses)
    lab.heal()
    wait_for_links(lab.hosts, HEAL_DEADLINE_S)
    wait_for_pings(lab, everything)
    wait_until(
        lambda: observe.owners(h1) == observe.owners(h2) == observe.owners(h3), HEAL_DEADLINE_S, "one ring on all hosts"
    )
    for container, _ in fresh:
        container.remove()


def test_a_killed_daemon_loses_no_ping_and_knows_everything_when_it_is_back(
    lab: Lab, containers: list[Attached]
) -> None:
    host = lab.host("h2")
    before = knowledge(host)
    source, (_, target) = of("h1", containers)[0], of("h2", containers)
    with Pings(source, target) as pings:
        host.kill_daemon()
        host.weave("launch", check=True)
        wait_for_links(lab.hosts)
        answered = pings.answered()
        wait_until(lambda: pings.answered() >= max(PINGS, answered + 100), 60, "enough pings")
        counted = pings.stop()
    assert counted.lost == 0, counted
    assert knowledge(host) == before
    _, address = attach_new(host, some_name(host))
    assert address not in before[3] | {address for _, address in containers}


def test_a_stopped_daemon_leaves_traffic_alone_and_resumes_without_a_peer_list(
    lab: Lab, containers: list[Attached]
) -> None:
    host = lab.host("h3")
    before = knowledge(host)
    targets = host.weave("status", "targets", check=True).stdout.split("\n")
    source, (_, target) = of("h1", containers)[0], of("h3", containers)
    with Pings(source, target) as pings:
        assert host.weave("stop").returncode == 0
        wait_until(lambda: not host.daemon_pids(), NOTICE_DEADLINE_S, "the daemon to end")
        answered = pings.answered()
        wait_until(lambda: pings.answered() >= answered + 100, 30, "pings without a daemon")
        host.weave("launch", check=True)
        wait_for_links(lab.hosts)
        answered = pings.answered()
        wait_until(lambda: pings.answered() >= max(PINGS, answered + 100), 30, "pings after it")
        counted = pings.stop()
    assert counted.lost == 0, counted
    assert knowledge(host) == before
    names = {line.split()[0] for line in targets if line}
    assert {line.split()[0] for line in host.weave("status", "targets").stdout.splitlines()} == names


def test_a_rebooted_host_knows_its_name_and_containers_get_their_addresses_back(
    lab: Lab, containers: list[Attached]
) -> None:
    host = lab.host("h3")
    explicit = "10.45.6.7"
    assert host.start_container("fixed").attach(f"ip:{explicit}/12") == [explicit]
    name, cluster, shares, _ = knowledge(host)
    lab.reboot("h3")
    host.weave("launch", check=True)
    wait_for_links(lab.hosts)
    assert knowledge(host)[:3] == (name, cluster, shares)
    own = [container.name for container, _ in containers if container.host.name == "h3"]
    back = {each: host.start_container(each) for each in ["fixed", *own]}
    for each, container in back.items():
        wait_until(container.addresses, NOTICE_DEADLINE_S, f"{each} to be on the network again, without a command")
    assert back["fixed"].addresses() == [explicit]
    had = {container.name: address for container, address in containers if container.name in own}
    assert {each: back[each].addresses()[0] for each in own} == had
    elsewhere = [each for each in containers if each[0].host.name != "h3"]
    containers[:] = elsewhere + [(back[each], back[each].addresses()[0]) for each in own]
    assert len({address for _, address in containers}) == len(containers)
    assert attached_on(host) == {explicit} | {address for container, address in containers if container.host is host}
    wait_for_pings(lab, [*containers, (back["fixed"], explicit)])
    back["fixed"].remove()


def test_addresses_of_a_dead_container_become_free(lab: Lab, containers: list[Attached]) -> None:
    host = lab.host("h1")

    def active() -> int:
        ipam = observe.report(host).ipam
        assert ipam is not None
        return ipam.active

    # Those of containers that the tests before removed go first.
    wait_until(lambda: active() == len(attached_on(host)), FREED_DEADLINE_S, "only what is attached to be in use")
    before = active()
    container, address = attach_new(host, some_name(host))
    assert active() == before + 1
    container.remove()
    wait_until(lambda: address not in attached_on(host), NOTICE_DEADLINE_S, "ps to forget the container")
    wait_until(lambda: active() == before, FREED_DEADLINE_S, "the address to be free")


def test_a_paused_daemon_is_missed_and_comes_back(lab: Lab, containers: list[Attached]) -> None:
    host = lab.host("h2")
    source, (_, target) = of("h1", containers)[0], of("h2", containers)
    with Pings(source, target) as pings:
        host.pause_daemon()
        wait_until(lambda: "h2" not in observe.linked(lab.host("h1")), NOTICE_DEADLINE_S, "h2 to be missed")
        host.resume_daemon()
        wait_for_links(lab.hosts, HEAL_DEADLINE_S)
        counted = pings.stop()
    assert counted.lost == 0, counted


def test_two_hosts_that_lost_their_direct_way_keep_every_other_pair(lab: Lab, containers: list[Attached]) -> None:
    lab.cut("h1", "h3")
    h1, h2, h3 = lab.hosts
    wait_until(lambda: observe.linked(h1) == {"h2"} and observe.linked(h3) == {"h2"}, NOTICE_DEADLINE_S, "the cut seen")
    assert observe.linked(h2) == {"h1", "h3"}
    wait_until(
        lambda: set(observe.owners(h1)) == set(observe.owners(h2)) == set(observe.owners(h3)),
        HEAL_DEADLINE_S,
        "the same owners on all hosts",
    )
    fresh = [attach_new(host, some_name(host)) for host in (h1, h2, h3)]
    wait_for_pings(lab, fresh[:2])
    wait_for_pings(lab, fresh[1:])
    lab.heal()
    wait_for_links(lab.hosts, HEAL_DEADLINE_S)
    wait_for_pings(lab, fresh)


def test_lost_packets_delay_but_do_not_divide(lab: Lab, containers: list[Attached]) -> None:
    lab.loss("h1", "h2", 5_000)
    fresh = [attach_new(lab.host(name), some_name(lab.host(name))) for name in ("h1", "h2", "h3")]
    addresses = {address for _, address in (*containers, *fresh)}
    assert len(addresses) == len(containers) + 3
    assert observe.linked(lab.host("h1")) == {"h2", "h3"}
