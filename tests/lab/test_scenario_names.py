"""Names on three hosts: who is told what, through deaths, partitions, restarts and reboots; and the exposed host."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from lab.clusters import HEAL_DEADLINE_S, NOTICE_DEADLINE_S, attach_new, form, wait_for_links
from lab.fresh import MakeLab
from weavenet.core.errors import WeaveError
from weavenet.lab import observe
from weavenet.lab.host import Container, Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

SPREAD_DEADLINE_S = 30.0
"""Generous: the machine may be busy. What is promised, and measured, is a second."""
ROUNDS = 5
PROBE = "probe"
"""A container on each host, which asks."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(make_lab: MakeLab) -> Lab:
    lab = make_lab(3)
    form(lab)
    for host in lab.hosts:
        attach_new(host, PROBE)
    return lab


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    cluster.heal()
    for host in cluster.hosts:
        if not host.daemon_pids():
            host.weave("launch", check=True)
    wait_for_links(cluster.hosts)
    bring_probes_back(cluster)
    yield cluster


def bring_probes_back(lab: Lab) -> None:
    for host in lab.hosts:
        if PROBE not in host.container_names():
            host.start_container(PROBE)
        wait_until(host.container(PROBE).addresses, NOTICE_DEADLINE_S, f"the probe of {host.name} to be attached")


def some_name(stem: str) -> str:
    return f"{stem}{next(_numbers)}"


def lookup(host: Host, name: str) -> set[str]:
    """What a program in a container of ``host`` is told."""
    return set(host.container(PROBE).resolve(name))


def wait_for(hosts: list[Host], name: str, addresses: set[str], deadline_s: float = SPREAD_DEADLINE_S) -> None:
    def agree() -> bool:
        return all(lookup(host, name) == addresses for host in hosts)

    wait_until(agree, deadline_s, f"{name} to be {sorted(addresses)} on {' '.join(host.name for host in hosts)}")


def named(host: Host, name: str) -> tuple[Container, str]:
    """A new container under ``name``, which others may have as well."""
    container = host.start_container(some_name("c"))
    done = host.weave("attach", "-h", name, container.id, check=True)
    return container, done.stdout.strip()


def test_containers_are_found_by_name_on_every_host_for_as_long_as_they_are_there(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    web, address = attach_new(h1, some_name("web"))
    wait_for(lab.hosts, web.name, {address})
    wait_for(lab.hosts, f"{web.name.upper()}.Weave.Local", {address})
    name = some_name("app")
    members = [named(host, name) for host in (h1, h1, h2, h3)]
    wait_for(lab.hosts, name, {each for _, each in members})
    h1.weave("detach", members[0][0].id, check=True)
    wait_for(lab.hosts, name, {each for _, each in members[1:]})
    members[2][0].remove()
    wait_for(lab.hosts, name, {members[1][1], members[3][1]})
    h3.weave("dns-remove", members[3][0].id, "-h", name, check=True)
    wait_for(lab.hosts, name, {members[1][1]})
    wait_until(lambda: members[3][0].ping(name), SPREAD_DEADLINE_S, f"a container to reach {name} by its name")
    assert h2.weave("dns-lookup", name, check=True).stdout.split() == [members[1][1]]
    hidden = h2.start_container(some_name("hidden"))
    h2.weave("attach", "--without-dns", hidden.id, check=True)
    assert lookup(h2, hidden.name) == set()
    listed = h3.weave("status", "dns", check=True).stdout
    assert any(name in line and members[1][1] in line and "h1" in line for line in listed.splitlines()), listed
    for container in (web, hidden, members[0][0], members[1][0], members[3][0]):
        container.remove()


def test_a_container_whose_name_cannot_be_one_is_told_so(lab: Lab) -> None:
    host = lab.hosts[0]
    container = host.start_container(some_name("odd") + "-")
    done = host.weave("attach", container.id, check=True)
    assert "no DNS name" in done.stderr and "-h NAME" in done.stderr
    assert done.stdout.split() == container.addresses()
    done = host.weave("attach", "-h", some_name("even"), container.id, check=True)
    assert done.stderr == ""
    assert host.weave("attach", container.id, check=True).stderr == "", "it has one now"
    container.remove()


def test_no_round_of_dying_and_starting_shows_a_dead_address(lab: Lab) -> None:
    """Once all hosts have seen a death, its address is never given for the name again."""
    name = some_name("job")
    for round_number in range(ROUNDS):
        host = lab.hosts[round_number % 3]
        container, address = named(host, name)
        wait_for(lab.hosts, name, {address})
        container.remove()
        wait_for(lab.hosts, name, set())
        for _ in range(10):
            assert [lookup(each, name) for each in lab.hosts] == [set()] * 3


def test_a_namespace_that_is_made_anew_under_its_name_has_its_names_again(lab: Lab) -> None:
    host = lab.hosts[0]
    name, alias = some_name("again"), some_name("alias")
    container, address = named(host, name)
    host.weave("dns-add", container.id, "-h", alias, check=True)
    for _ in range(ROUNDS):
        wait_for(lab.hosts, alias, {address})
        container.remove()
        wait_for(lab.hosts, name, set())
        wait_for(lab.hosts, alias, set())
        container = host.start_container(container.name)
        (address,) = wait_until(container.addresses, NOTICE_DEADLINE_S, "the container to be attached again")
        wait_for(lab.hosts, name, {address})
    container.remove()


def test_names_of_the_other_side_of_a_partition_leave_and_return(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    name = some_name("part")
    members = {host.name: named(host, name) for host in lab.hosts}
    addresses = {host: address for host, (_, address) in members.items()}
    wait_for(lab.hosts, name, set(addresses.values()))
    lab.partition([["h1"], ["h2", "h3"]])
    wait_for([h1], name, {addresses["h1"]}, NOTICE_DEADLINE_S)
    wait_for([h2, h3], name, {addresses["h2"], addresses["h3"]}, NOTICE_DEADLINE_S)
    late, at = named(h2, name)
    members["h2"][0].remove()
    wait_for([h2, h3], name, {at, addresses["h3"]})
    lab.heal()
    wait_for_links(lab.hosts, HEAL_DEADLINE_S)
    wait_for(lab.hosts, name, {addresses["h1"], at, addresses["h3"]})
    for container in (members["h1"][0], late, members["h3"][0]):
        container.remove()


def test_names_by_hand_outlive_the_daemon_and_the_machine(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    container, address = attach_new(h2, some_name("db"))
    alias, outside = some_name("alias"), some_name("outside")
    h2.weave("dns-add", container.id, "-h", alias, check=True)
    h2.weave("dns-add", "192.0.2.77", "192.0.2.78", "-h", f"{outside}.weave.local", check=True)
    for name, expected in ((container.name, {address}), (alias, {address}), (outside, {"192.0.2.77", "192.0.2.78"})):
        wait_for(lab.hosts, name, expected)
    h2.kill_daemon()
    h2.weave("launch", check=True)
    for name, expected in ((container.name, {address}), (alias, {address}), (outside, {"192.0.2.77", "192.0.2.78"})):
        wait_for(lab.hosts, name, expected, NOTICE_DEADLINE_S)
    lab.kill("h2")
    wait_for([h1], outside, set(), NOTICE_DEADLINE_S)
    lab.reboot("h2")
    h2.weave("launch", check=True)
    bring_probes_back(lab)
    wait_for(lab.hosts, outside, {"192.0.2.77", "192.0.2.78"}, NOTICE_DEADLINE_S)
    back = h2.start_container(container.name)
    wait_until(back.addresses, NOTICE_DEADLINE_S, "the container to have an address again")
    wait_for(lab.hosts, alias, set(back.addresses()))
    h2.weave("dns-remove", "192.0.2.77", "-h", outside, check=True)
    wait_for(lab.hosts, outside, {"192.0.2.78"})
    h2.weave("dns-remove", "weave:external", check=True)
    wait_for(lab.hosts, outside, set())
    back.remove()


def test_an_exposed_host_reaches_everybody_and_hides_without_a_trace(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    containers = [attach_new(host, some_name("target")) for host in lab.hosts]
    before = _traces(h1)
    address = h1.weave("expose", "-h", "gw", check=True).stdout.strip()
    wait_for(lab.hosts, "gw", {address})
    for container, target in containers:
        wait_until(lambda target=target: _reaches(h1, target), SPREAD_DEADLINE_S, f"h1 to reach {target}")
        wait_until(lambda container=container: container.ping(address), SPREAD_DEADLINE_S, f"{target} to reach h1")
    h1.run(["nft", "flush", "ruleset"], check=True)
    wait_until(lambda: "masquerade" in _traces(h1)[0], SPREAD_DEADLINE_S, "the rules to come back")
    lab.kill("h1")
    lab.reboot("h1")
    h1.weave("launch", check=True)
    wait_for_links(lab.hosts)
    bring_probes_back(lab)
    wait_for(lab.hosts, "gw", {address}, NOTICE_DEADLINE_S)
    for _, target in containers[1:]:
        wait_until(lambda target=target: _reaches(h1, target), SPREAD_DEADLINE_S, f"h1 to reach {target} again")
    assert h1.weave("hide", check=True).stdout.strip() == address
    wait_for(lab.hosts, "gw", set())
    with contextlib.suppress(WeaveError):  # what the reboot began may still be under way
        wait_until(lambda: _traces(h1) == before, SPREAD_DEADLINE_S, "h1 to be as it was")
    assert _traces(h1) == before
    assert observe.report(h2).router.name and h3.daemon_pids()
    for container, _ in containers[1:]:
        container.remove()


@pytest.mark.parametrize("flags", [(), ("--without-masquerade",)])
def test_networks_beyond_an_exposed_host_are_let_through(lab: Lab, flags: tuple[str, ...]) -> None:
    """Also where somebody's FORWARD chain drops; h2 stands for a machine that has no weave."""
    h1, h2, h3 = lab.hosts
    containers = [attach_new(host, some_name("inner")) for host in (h1, h3)]
    address = h1.weave("expose", *flags, check=True).stdout.strip()
    chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    h1.run(["nft", f"add table ip filter; {chain}"], check=True)
    for container, target in containers:
        h2.run(["ip", "route", "add", f"{target}/32", "via", h1.address], check=True)
        container.run(["ip", "route", "add", "default", "via", address], check=True)
        wait_until(
            lambda target=target: _reaches(h2, target), SPREAD_DEADLINE_S, f"a machine beyond h1 to reach {target}"
        )
        wait_until(lambda container=container: container.ping(h2.address), SPREAD_DEADLINE_S, f"{target} to reach it")
    h1.weave("hide", check=True)
    assert not _reaches(h2, containers[1][1])
    h1.run(["nft", "delete", "table", "ip", "filter"], check=True)
    for container, target in containers:
        h2.run(["ip", "route", "delete", f"{target}/32"], check=True)
        container.remove()


def _reaches(host: Host, address: str) -> bool:
    return host.run(["ping", "-n", "-c", "1", "-W", "1", address]).returncode == 0


def _traces(host: Host) -> tuple[str, str]:
    """Rules and addresses of the host; ``ip`` numbers devices, which differ after a reboot."""
    rules = host.run(["nft", "list", "ruleset"], check=True).stdout
    lines = host.run(["ip", "-o", "address", "show", "scope", "global"], check=True).stdout.splitlines()
    return rules, "\n".join(line.partition(": ")[2] for line in lines)
