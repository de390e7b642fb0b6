"""Ways to run a cluster from its first day on (spec "Operations", deployment types 1, 2 and 6), nobody watching."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lab.clusters import HEAL_DEADLINE_S, NOTICE_DEADLINE_S, attach_new, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.waiting import wait_until

RANGE_ADDRESSES = 1 << 20
IDENTITY_DEADLINE_S = 60.0
ELECTOR = {"voter", "standby"}
"""What `consense` prints on a host that is elector."""


def ipam(host: Host) -> dict[str, Any]:
    found = json.loads(host.weave("report", check=True).stdout)["IPAM"]
    assert isinstance(found, dict)
    return found


def uid(host: Host) -> str:
    """Empty while the daemon is between two identities."""
    report = host.weave("report")
    return str(json.loads(report.stdout)["Router"]["UID"]) if report.returncode == 0 else ""


def same_configuration(hosts: Sequence[Host], peers: Sequence[Host]) -> None:
    for host in hosts:
        host.path("/etc/weave.conf").write_text(f"peers = {json.dumps([peer.name for peer in peers])}\n")


def consense(*hosts: Host) -> list[str]:
    """At the same time on all; what each printed."""
    done = observe.on_each(hosts, "consense", "--timeout", "60s")
    for each in done:
        assert each.returncode == 0, each.stderr
    return [each.stdout.strip() for each in done]


def test_type_1_hosts_added_by_hand_are_remembered_through_reboots(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    h1, h2, h3 = lab.hosts
    for host in (h2, h3):
        host.path("/etc/weave.conf").write_text("not-elector = true\n")
    h1.weave("launch", check=True)
    h2.weave("launch", "h1", check=True)
    h3.weave("launch", check=True)
    h3.weave("connect", "h1", check=True)
    wait_for_links(lab.hosts)
    first = attach_new(h1, "first")
    containers = [first, attach_new(h2, "second"), attach_new(h3, "third")]
    assert len({address for _, address in containers}) == 3
    assert "member, not elector" in consense(h3)
    cluster = observe.report(h1).router.cluster
    for host in lab.hosts:
        host.weave("install-unit", check=True)
    for host in lab.hosts:
        lab.reboot(host.name)
        wait_for_links(lab.hosts)
        assert observe.report(host).router.cluster == cluster
    containers = [attach_new(host, f"{host.name}-again") for host in lab.hosts]
    assert len({address for _, address in containers}) == 3
    wait_for_pings(lab, containers)
    lab.down()


def test_type_2_a_uniform_cluster_grows_by_two_at_once_and_shrinks(make_lab: MakeLab) -> None:
    lab = make_lab(5)
    first, later = lab.hosts[:3], lab.hosts[3:]
    same_configuration(first, first)
    for done in observe.on_each(first, "launch"):
        assert done.returncode == 0, done.stderr
    assert set(consense(*first)) <= ELECTOR
    same_configuration(lab.hosts, lab.hosts)
    for done in observe.on_each(later, "launch"):
        assert done.returncode == 0, done.stderr
    assert set(consense(*later)) <= ELECTOR
    wait_for_links(lab.hosts)
    for host in lab.hosts:
        wait_until(lambda host=host: len(ipam(host)["Paxos"]["Electors"]) == 5, HEAL_DEADLINE_S, "five electors")
        assert sum(observe.owners(host).values()) == RANGE_ADDRESSES
    containers = [attach_new(host, f"{host.name}-c") for host in lab.hosts]
    assert len({address for _, address in containers}) == 5
    wait_for_pings(lab, containers)

    leaver, rest = lab.hosts[0], lab.hosts[1:]
    done = leaver.weave("reset", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    same_configuration(rest, rest)
    for host in rest:
        host.weave("forget", leaver.name, check=True)
        wait_until(lambda host=host: len(ipam(host)["Paxos"]["Electors"]) == 4, HEAL_DEADLINE_S, "four electors")
        wait_until(lambda host=host: len(observe.owners(host)) == 4, HEAL_DEADLINE_S, "four owners")
        assert sum(observe.owners(host).values()) == RANGE_ADDRESSES
    wait_for_pings(lab, containers[1:])
    lab.down()


def test_type_6_space_lost_in_a_partition_is_reported_recovered_and_the_dead_returns(make_lab: MakeLab) -> None:
    lab = make_lab(4)
    core, (gone, back) = lab.hosts[:2], lab.hosts[2:]
    same_configuration(lab.hosts, core)
    for host in (gone, back):
        with host.path("/etc/weave.conf").open("a") as conf:
            conf.write("observer = true\n")
    for done in observe.on_each(lab.hosts, "launch"):
        assert done.returncode == 0, done.stderr
    consense(*core)
    containers = {host.name: attach_new(host, f"{host.name}-c") for host in lab.hosts}
    before = {host.name: uid(host) for host in (gone, back)}
    lab.partition([[host.name for host in core], [gone.name, back.name]])
    stays = gone.weave("reset", "--timeout", "3s")
    assert stays.returncode == 2, stays  # nobody to hand the addresses to: nothing has changed
    assert containers[gone.name][0].addresses() == [containers[gone.name][1]]
    lab.kill(gone.name)
    threshold = ("status", "ipam", "--unreachable", "--threshold", "0.001%")
    for host in core:
        wait_until(lambda host=host: host.weave(*threshold).returncode == 2, NOTICE_DEADLINE_S, "the alert")
    wait_until(lambda: len(absent(core[0])) == 2, NOTICE_DEADLINE_S, "both to be missed")
    done = core[0].weave("rmpeer", "--all-unreachable", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert core[0].weave(*threshold).returncode == 0
    assert sum(observe.owners(core[0]).values()) == RANGE_ADDRESSES
    fresh = attach_new(core[0], "fresh")

    lab.heal()
    wait_for_new_identity(back, before[back.name])
    wait_for_links([*core, back])
    lab.reboot(gone.name)
    gone.weave("launch", check=True)
    wait_for_new_identity(gone, before[gone.name])
    wait_for_links(lab.hosts)
    again = attach_new(gone, "again")
    living = [containers[host.name] for host in core] + [fresh, again]
    assert len({address for _, address in living}) == len(living)
    wait_for_pings(lab, living)
    lab.down()


def wait_for_new_identity(host: Host, old: str) -> None:
    what = f"{host.name}, which was removed, to come back as somebody else"
    wait_until(lambda: uid(host) not in {"", old}, IDENTITY_DEADLINE_S, what)


def absent(host: Host) -> list[str]:
    done = host.weave("status", "ipam", "--unreachable", "-o", "json", check=True)
    return [peer["Nickname"] for peer in json.loads(done.stdout)["Peers"]]
