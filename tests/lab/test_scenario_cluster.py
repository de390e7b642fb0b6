"""Three hosts launched at the same moment: one cluster, unique addresses, everybody reaches everybody, true reports."""

from __future__ import annotations

import ipaddress
import json

import pytest

from lab.clusters import Attached, attach_new, attached_on, launch_together, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.lab import Lab

RANGE = ipaddress.IPv4Network("10.32.0.0/12")


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(3)
    names = [done.stdout.strip() for done in launch_together(lab.hosts)]
    assert len(set(names)) == 3
    return lab


@pytest.fixture(scope="module")
def containers(lab: Lab) -> list[Attached]:
    for done in observe.on_each(lab.hosts, "consense", "--timeout", "50s"):
        assert done.returncode == 0, done.stderr
    return [attach_new(host, f"{host.name}-c{number}") for host in lab.hosts for number in (1, 2)]


def test_exactly_one_cluster_forms_and_consense_returns_on_each(lab: Lab, containers: list[Attached]) -> None:
    wait_for_links(lab.hosts)
    clusters = {observe.report(host).router.cluster for host in lab.hosts}
    assert len(clusters) == 1
    assert clusters != {""}
    for done in observe.on_each(lab.hosts, "consense"):  # again: nothing to do
        assert done.returncode == 0


def test_every_container_reaches_every_other_by_an_address_of_its_own(lab: Lab, containers: list[Attached]) -> None:
    addresses = [address for _, address in containers]
    assert len(set(addresses)) == len(addresses) == 6
    assert all(ipaddress.ip_address(address) in RANGE for address in addresses)
    wait_for_links(lab.hosts)
    wait_for_pings(lab, containers)


def test_what_attach_printed_is_what_containers_have_and_ps_shows(lab: Lab, containers: list[Attached]) -> None:
    for container, address in containers:
        assert container.addresses() == [address]
    for host in lab.hosts:
        assert attached_on(host) == {address for container, address in containers if container.host.name == host.name}
        lines = host.weave("ps").stdout.splitlines()
        assert {word for line in lines for word in line.split()} >= {f"netns:{host.name}-c1", f"netns:{host.name}-c2"}


def test_the_shares_cover_the_range_and_all_hosts_know_the_same(lab: Lab, containers: list[Attached]) -> None:
    shares = [observe.owners(host) for host in lab.hosts]
    assert shares[0] == shares[1] == shares[2]
    assert sum(shares[0].values()) == RANGE.num_addresses
    assert set(shares[0]) == {observe.report(host).router.name for host in lab.hosts}


def test_status_and_its_parts_are_true(lab: Lab, containers: list[Attached]) -> None:
    wait_for_links(lab.hosts)
    for host in lab.hosts:
        others = [other for other in lab.hosts if other.name != host.name]
        status = host.weave("status", check=True).stdout
        assert "2 other peers reachable" in status
        connections = host.weave("status", "connections", check=True).stdout.splitlines()
        assert len(connections) == 2
        for other in others:
            assert any(other.address in line and "established fastdp" in line for line in connections)
        peers = host.weave("status", "peers", check=True).stdout
        targets = host.weave("status", "targets", check=True).stdout
        ipam = host.weave("status", "ipam", check=True).stdout
        for name in ("h1", "h2", "h3"):
            assert f"({name})" in peers
            assert name in targets
            assert f"({name})" in ipam
        assert json.loads(host.weave("report", check=True).stdout)["IPAM"]["ActiveIPs"] == 2


def test_explain_says_how_one_reaches_the_other(lab: Lab, containers: list[Attached]) -> None:
    wait_for_links(lab.hosts)
    host = lab.host("h1")
    for container, address in containers:
        if container.host.name != "h1":
            done = host.weave("explain", "netns:h1-c1", address, check=True)
            assert f"netns:{container.name} on {container.host.name}: {address}/" in done.stdout
            assert "by fastdp (VXLAN answers)" in done.stdout
    done = host.weave("explain", "h2-c1", "h3-c1")
    assert done.returncode == 2 and "run on h2: weave explain h2-c1 h3-c1" in done.stdout


def test_a_second_launch_says_that_it_runs_and_changes_nothing(lab: Lab, containers: list[Attached]) -> None:
    host = lab.host("h1")
    before = host.daemon_pids()
    done = host.weave("launch", "h2")
    assert done.returncode == 3
    assert done.stderr
    assert host.daemon_pids() == before


def test_detach_takes_the_address_and_attach_works_again(lab: Lab, containers: list[Attached]) -> None:
    host = lab.host("h2")
    container, address = attach_new(host, "short-lived")
    assert address in attached_on(host)
    done = host.weave("detach", container.id)
    assert done.returncode == 0, done.stderr
    assert address not in attached_on(host)
    assert container.addresses() == []
    assert container.attach() != []
    container.remove()


def test_another_range_at_relaunch_is_refused_with_both_and_the_way_out(lab: Lab, containers: list[Attached]) -> None:
    host = lab.hosts[0]
    host.weave("stop", check=True)
    refused = host.weave("launch", "--ipalloc-range", "10.99.0.0/16")
    assert refused.returncode == 1
    assert str(RANGE) in refused.stderr and "10.99.0.0/16" in refused.stderr
    assert "launch without --ipalloc-range" in refused.stderr and "weave reset" in refused.stderr
    host.weave("launch", "--ipalloc-range", str(RANGE), check=True)
    wait_for_links(lab.hosts)
    wait_for_pings(lab, containers)
