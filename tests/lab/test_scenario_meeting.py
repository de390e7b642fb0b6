"""Hosts that were launched alone meet later: one cluster where nobody loses by it, else words on both sides."""

from __future__ import annotations

from lab.clusters import HEAL_DEADLINE_S, attach_new, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.waiting import wait_until


def cluster(host: Host) -> str:
    return observe.report(host).router.cluster


def test_two_hosts_launched_without_peers_then_connected_are_one_cluster(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    for host in lab.hosts:
        host.weave("launch", check=True)
        host.weave("consense", "--timeout", "50s", check=True)
    assert cluster(h1) != cluster(h2)
    h2.weave("connect", "h1", check=True)
    wait_for_links(lab.hosts)
    assert cluster(h1) == cluster(h2)
    containers = [attach_new(host, f"{host.name}-c") for host in lab.hosts]
    assert len({address for _, address in containers}) == 2
    wait_for_pings(lab, containers)
    lab.down()


def test_the_one_in_use_stays_and_two_in_use_refuse_each_other_with_sizes_and_the_command(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    h1, h2, h3 = lab.hosts
    for host in lab.hosts:
        host.weave("launch", check=True)
    containers = [attach_new(h1, "h1-c"), attach_new(h3, "h3-c")]
    h2.weave("consense", "--timeout", "50s", check=True)
    in_use = cluster(h1)
    h2.weave("connect", "h1", check=True)
    wait_for_links([h1, h2])
    assert cluster(h1) == cluster(h2) == in_use

    containers.append(attach_new(h2, "h2-c"))
    other = cluster(h3)
    h3.weave("connect", "h1", check=True)

    def says(host: Host) -> bool:
        text = host.weave("status", "connections").stdout
        return "2 peers" in text and "1 peer, 1 elector, 1 address in use" in text and f"one, {other[:12]}," in text

    for host in (h1, h3):
        wait_until(lambda host=host: says(host), HEAL_DEADLINE_S, f"both sizes in words on {host.name}")
    wait_for_pings(lab, [containers[0], containers[2]])
    lab.down()
