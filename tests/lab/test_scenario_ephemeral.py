"""Hosts that vanish without notice: with ``--ephemeral`` their addresses come back without anybody asking."""

from __future__ import annotations

from lab.clusters import HEAL_DEADLINE_S, attach_new, launch_together, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from lab.test_scenario_rmpeer import RANGE_ADDRESSES, ipam, removed, shares, uid
from weavenet.lab.waiting import wait_until

TTL_S = 60
REMOVED_DEADLINE_S = 2 * TTL_S


def test_killed_ephemeral_observers_are_removed_by_themselves(make_lab: MakeLab) -> None:
    lab = make_lab(5)
    core, guests = lab.hosts[:2], lab.hosts[2:]
    launch_together(core)
    core[0].weave("consense", "--timeout", "50s", check=True)
    refused = guests[0].weave("launch", "--ephemeral", "10s", core[0].name)
    assert refused.returncode == 1
    assert "1m" in refused.stderr
    for guest in guests:
        guest.weave("launch", "--ephemeral", "1m", *(host.name for host in core), check=True)
    wait_for_links(lab.hosts, HEAL_DEADLINE_S)
    containers = [attach_new(guest, f"{guest.name}-c1") for guest in guests]
    assert "Lease: TTL 1m 0s, renewed" in guests[0].weave("status", check=True).stdout
    assert "ephemeral, TTL 1m 0s" in core[0].weave("status", "peers", check=True).stdout
    *victims, living = guests
    gone = {uid(victim) for victim in victims}
    for victim in victims:
        lab.kill(victim.name)

    for host in (*core, living):
        wait_until(lambda host=host: removed(host) == gone, REMOVED_DEADLINE_S, f"{host.name} to know of the removals")
    wait_until(
        lambda: ipam(core[0])["HeldIPs"] == ipam(core[1])["HeldIPs"] == 0, HEAL_DEADLINE_S, "the end of the hold"
    )
    for host in (*core, living):
        wait_until(lambda host=host: not gone & set(shares(host)), HEAL_DEADLINE_S, "their space in other hands")
        assert sum(shares(host).values()) == RANGE_ADDRESSES
    wait_for_pings(lab, [containers[-1], attach_new(core[0], "core-c1")])
    assert uid(living) not in removed(core[0])
