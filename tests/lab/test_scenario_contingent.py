"""A fixed core of two and observers that come and go by the dozen (spec "Operations", deployment type 3)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from lab.clusters import attach_new, launch_together, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.waiting import wait_until

CORE, OBSERVERS = 2, 20
JOIN_DEADLINE_S = 300.0
RANGE_ADDRESSES = 1 << 20
AT_ONCE = 8
"""Commands that the test itself runs at the same time."""


def absent(host: Host) -> list[str]:
    done = host.weave("status", "ipam", "--unreachable", "-o", "json", check=True)
    return sorted(peer["Nickname"] for peer in json.loads(done.stdout)["Peers"])


def links_sideways(host: Host) -> bool:
    """Has it found more than the core, which is all it was told of?"""
    connections = observe.report(host).router.connections
    return sum(connection.state == "established" for connection in connections) > CORE


def test_twenty_join_at_once_ten_are_killed_and_recovered_by_one_command_and_ten_leave(make_lab: MakeLab) -> None:
    lab = make_lab(CORE + OBSERVERS)
    core, observers = lab.hosts[:CORE], lab.hosts[CORE:]
    launch_together(core)
    wait_for_links(core)
    for done in observe.on_each(core, "consense", "--timeout", "50s"):
        assert done.returncode == 0, done.stderr
    with ThreadPoolExecutor(AT_ONCE) as threads:
        joins = [threads.submit(host.weave, "launch", "--observer", "h1", "h2", timeout_s=300) for host in observers]
        busy = [threads.submit(attach_new, core[number % CORE], f"core{number}") for number in range(6)]
        for join in joins:
            assert join.result().returncode == 0, join.result().stderr
        containers = [one.result() for one in busy]
        containers += threads.map(lambda host: attach_new(host, f"{host.name}-c"), observers)
    assert len({address for _, address in containers}) == len(containers) == 6 + OBSERVERS
    wait_until(lambda: observe.owners(core[0]) == observe.owners(core[1]), JOIN_DEADLINE_S, "the core to agree")
    assert sum(observe.owners(core[0]).values()) == RANGE_ADDRESSES

    wait_until(lambda: links_sideways(observers[0]), JOIN_DEADLINE_S, "an observer to be linked with other observers")

    dead, living = observers[: OBSERVERS // 2], observers[OBSERVERS // 2 :]
    names = sorted(host.name for host in dead)
    for host in dead:
        lab.kill(host.name)
    for host in core:
        wait_until(lambda host=host: absent(host) == names, JOIN_DEADLINE_S, f"{host.name} to miss {len(dead)} hosts")
    alert = core[0].weave("status", "ipam", "--unreachable", "--threshold", "0.001%")
    assert alert.returncode == 2, alert
    assert "weave rmpeer" in alert.stderr
    done = core[1].weave("rmpeer", "--all-unreachable", "--timeout", "240s", timeout_s=300)
    assert done.returncode == 0, done.stderr
    for host in core:
        wait_until(lambda host=host: not absent(host), JOIN_DEADLINE_S, f"{host.name} to miss nobody")
        assert sum(observe.owners(host).values()) == RANGE_ADDRESSES
        assert host.weave("status", "ipam", "--unreachable", "--threshold", "0.001%").returncode == 0
    left = [(container, address) for container, address in containers if container.host.name not in names]
    fresh = [attach_new(host, f"{host.name}-new") for host in (*core, living[0])]
    assert len({address for _, address in [*left, *fresh]}) == len(left) + len(fresh)
    wait_for_pings(lab, [fresh[0], fresh[1], fresh[2], left[-1]])

    with ThreadPoolExecutor(AT_ONCE) as threads:
        leaving = [threads.submit(host.weave, "reset", "--timeout", "240s", timeout_s=300) for host in living]
        busy = [threads.submit(attach_new, core[number % CORE], f"late{number}") for number in range(6)]
        for leave in leaving:
            assert leave.result().returncode == 0, leave.result().stderr
        late = [one.result() for one in busy]
    kept = [each for each in left if each[0].host.name in {"h1", "h2"}] + fresh[:CORE]
    assert len({address for _, address in [*kept, *late]}) == len(kept) + len(late)
    names = {observe.report(host).router.name for host in core}
    for host in core:
        wait_until(lambda host=host: set(observe.owners(host)) == names, JOIN_DEADLINE_S, "all space back in the core")
        assert sum(observe.owners(host).values()) == RANGE_ADDRESSES
    wait_for_pings(lab, [kept[0], kept[-1], late[0], late[1]])
    lab.down()
