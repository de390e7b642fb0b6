"""Dead peers are removed and come back: what rmpeer promises, on the real kernel."""

from __future__ import annotations

import json
from typing import Any

from lab.clusters import (
    HEAL_DEADLINE_S,
    NOTICE_DEADLINE_S,
    Attached,
    attach_new,
    attached_on,
    launch_together,
    wait_for_links,
    wait_for_pings,
)
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

RANGE_ADDRESSES = 1 << 20
SETTLE_DEADLINE_S = 60.0


def ipam(host: Host) -> dict[str, Any]:
    found = json.loads(host.weave("report", check=True).stdout)["IPAM"]
    assert isinstance(found, dict)
    return found


def uid(host: Host) -> str:
    return observe.report(host).router.uid


def absent_for(host: Host, others: set[str]) -> bool:
    """``host`` has noticed that exactly ``others`` cannot be reached."""
    peers = json.loads(host.weave("report", check=True).stdout)["Router"]["Peers"]
    return {peer["NickName"] for peer in peers if not peer["Reachable"]} == others


def wait_for_absence(hosts: list[Host], others: set[str]) -> None:
    for host in hosts:
        wait_until(lambda host=host: absent_for(host, others), NOTICE_DEADLINE_S, f"{host.name} to miss {others}")


def shares(host: Host) -> dict[str, int]:
    return {entry["UID"]: entry["Size"] for entry in ipam(host)["Entries"]}


def removed(host: Host) -> set[str]:
    return {entry["UID"] for entry in ipam(host)["Removed"]}


def blocked_on(host: Host, address: str) -> bool:
    return any(text.startswith(f"{address} ") or text.startswith(f"{address}/") for text in ipam(host)["Blocked"])


def test_a_dead_host_is_removed_and_its_addresses_are_given_out_again(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    containers = [attach_new(host, f"{host.name}-c1") for host in lab.hosts]
    dead, dead_share = uid(h3), shares(h1)[uid(h3)]
    lab.kill("h3")
    wait_for_absence([h1, h2], {"h3"})
    alert = h1.weave("status", "ipam", "--unreachable", "--threshold", "10%")
    assert alert.returncode == 2, alert
    assert dead in alert.stdout
    assert f"{dead_share} IPs" in alert.stdout
    assert "weave rmpeer h3" in alert.stderr
    assert h1.weave("status", "ipam", "--unreachable", "--threshold", "90%").returncode == 0
    assert "unreachable!" in h1.weave("status", "ipam", check=True).stdout

    done = h1.weave("rmpeer", "h3", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert "is removed, last seen" in done.stdout
    for host in (h1, h2):
        wait_until(lambda host=host: removed(host) == {dead}, HEAL_DEADLINE_S, f"{host.name} to know it")
        wait_until(lambda host=host: dead not in shares(host), HEAL_DEADLINE_S, f"{host.name} to know who has it now")
        wait_until(lambda host=host: ipam(host)["HeldIPs"] == 0, HEAL_DEADLINE_S, f"the end of the hold on {host.name}")
        assert sum(shares(host).values()) == RANGE_ADDRESSES
        again = host.weave("rmpeer", dead)
        assert again.returncode == 0, again.stderr
        assert "was removed before" in again.stdout
        assert host.weave("status", "ipam", "--unreachable", "--threshold", "10%").returncode == 0
    assert dead in h2.weave("status", "ipam", check=True).stdout

    # The lowest address of the dead host's share was in use there: now it may be had again, by exactly that claim.
    _, address = containers[2]
    claimer = h1.start_container("claimer")
    assert claimer.attach(f"ip:{address}/12") == [address]
    fresh = [attach_new(host, f"{host.name}-new") for host in (h1, h2)]
    living: list[Attached] = [*containers[:2], (claimer, address), *fresh]
    assert len({address for _, address in living}) == len(living)
    wait_for_pings(lab, living)


def test_what_is_wrong_is_refused_with_words_and_exit_status_1(lab: Lab) -> None:
    h1, _, h3 = lab.hosts
    before = shares(h1)
    alive = h1.weave("rmpeer", "h2")
    assert alive.returncode == 1
    assert "reachable" in alive.stderr
    assert "(h2)" in alive.stderr
    unknown = h1.weave("rmpeer", "h9")
    assert unknown.returncode == 1
    assert "h9" in unknown.stderr
    itself = h3.weave("rmpeer", "h3")
    assert itself.returncode == 1
    assert "weave reset" in itself.stderr
    nobody = h1.weave("rmpeer", "--all-unreachable")
    assert nobody.returncode == 0, nobody.stderr
    assert shares(h1) == before
    assert removed(h1) == set()


def test_a_minority_waits_and_what_it_asked_is_dropped_when_the_peer_is_back(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    lab.partition([["h1"], ["h2", "h3"]])
    wait_for_absence([h1], {"h2", "h3"})
    waited = h1.weave("rmpeer", "h3", "--timeout", "3s")
    assert waited.returncode == 2, waited
    assert "pending" in waited.stderr
    assert ipam(h1)["RemovalState"] == "pending"
    assert "pending" in h1.weave("status", "ipam", check=True).stdout
    at_once = h1.weave("rmpeer", "h3", "--no-wait")
    assert at_once.returncode == 0, at_once.stderr
    lab.heal()
    wait_for_links(lab.hosts, HEAL_DEADLINE_S)
    wait_until(lambda: not ipam(h1)["Removals"], SETTLE_DEADLINE_S, "the pending removal to be settled")
    assert "is back" in observe.log_tail(h1, 200)
    for host in lab.hosts:
        assert removed(host) == set()
        assert len(shares(host)) == 3
    containers = [attach_new(host, f"{host.name}-c1") for host in (h1, h2, h3)]
    wait_for_pings(lab, containers)


def test_both_sides_of_a_partition_ask_and_only_the_majority_decides(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    minority = uid(h1)
    containers = [attach_new(host, f"{host.name}-c1") for host in lab.hosts]
    lab.partition([["h1"], ["h2", "h3"]])
    wait_for_absence([h1], {"h2", "h3"})
    wait_for_absence([h2, h3], {"h1"})
    assert h1.weave("rmpeer", "h2", "h3", "--no-wait").returncode == 0
    done = h2.weave("rmpeer", "h1", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    lab.heal()
    returns_with_a_new_identity(lab, h1, minority)
    every_address_is_somebodys_alone(lab, containers)


def test_a_removed_host_returns_with_its_old_disk_under_a_new_identity(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    containers = [attach_new(host, f"{host.name}-c{number}") for host in lab.hosts for number in (1, 2)]
    before = uid(h3)
    lab.partition([["h1", "h2"], ["h3"]])
    wait_for_absence([h1, h2], {"h3"})
    done = h1.weave("rmpeer", "h3", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    # One of the addresses that h3 still uses is taken over meanwhile, as an operator would say it.
    taken = next(address for container, address in containers if container.host.name == "h3")
    claimer = h2.start_container("claimer")
    assert claimer.attach(f"ip:{taken}/12") == [taken]
    # Alone, h3 does not know that it was removed: its containers go on among themselves.
    own = [each for each in containers if each[0].host.name == "h3"]
    wait_for_pings(lab, own)
    lab.heal()
    returns_with_a_new_identity(lab, h3, before)
    every_address_is_somebodys_alone(lab, [*containers, (claimer, taken)], contested=taken)
    assert blocked_on(h3, taken)
    assert taken in h3.weave("status", check=True).stdout


def test_a_removed_host_that_was_off_returns_under_a_new_identity(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    containers = [attach_new(host, f"{host.name}-c1") for host in lab.hosts]
    before = uid(h3)
    lab.kill("h3")
    wait_for_absence([h1, h2], {"h3"})
    done = h2.weave("rmpeer", "--all-unreachable", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    lab.reboot("h3")
    h3.weave("launch", check=True)
    returns_with_a_new_identity(lab, h3, before)
    living = [*containers[:2], attach_new(h3, "h3-new")]
    assert len({address for _, address in living}) == 3
    wait_for_pings(lab, living)


def test_addresses_are_held_until_somebody_cut_off_has_confirmed(make_lab: MakeLab) -> None:
    lab = make_lab(4)
    electors, h4 = lab.hosts[:3], lab.hosts[3]
    h1, h2, _ = electors
    launch_together(electors)
    wait_for_links(electors)
    assert h1.weave("consense", "--timeout", "50s").returncode == 0
    h4.weave("launch", "--observer", "h1", check=True)
    wait_for_links(lab.hosts)
    lab.partition([["h1", "h2", "h3"], ["h4"]])
    lab.kill("h3")
    wait_for_absence([h1, h2], {"h3", "h4"})
    waited = h1.weave("rmpeer", "h3", "--timeout", "4s", "-o", "json")
    assert waited.returncode == 2, waited
    assert json.loads(waited.stdout)["result"] == "held"
    assert "(h4)" in waited.stderr
    assert ipam(h1)["HeldIPs"] > 0
    assert "Held" in h1.weave("status", "ipam", check=True).stdout
    assert "(h4)" in h1.weave("status", check=True).stdout
    lab.heal()
    done = h1.weave("rmpeer", "h3", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert ipam(h1)["HeldIPs"] == 0
    lab.down()


def test_the_last_of_three_goes_on_by_force_alone_and_names_everybody_for_it(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    dead = {uid(h2), uid(h3)}
    mine = attach_new(h1, "h1-c1")
    lab.kill("h2")
    lab.kill("h3")
    wait_for_absence([h1], {"h2", "h3"})
    waited = h1.weave("rmpeer", "h2", "h3", "--timeout", "3s")
    assert waited.returncode == 2, waited
    line = next(line for line in waited.stderr.splitlines() if "weave rmpeer --force" in line)
    assert all(peer in line for peer in dead)
    too_few = h1.weave("rmpeer", "--force", "h2")
    assert too_few.returncode == 1, too_few
    assert "(h3)" in too_few.stderr
    done = h1.weave("rmpeer", "--force", "h2", "h3", "--timeout", "30s")
    assert done.returncode == 0, done.stderr
    assert removed(h1) == dead
    assert shares(h1) == {uid(h1): RANGE_ADDRESSES}
    wait_for_pings(lab, [mine, attach_new(h1, "h1-c2")])


def test_a_host_that_joins_later_becomes_an_elector_and_an_observer_does_not(make_lab: MakeLab) -> None:
    lab = make_lab(4)
    h1, h2, h3, h4 = lab.hosts
    launch_together([h1, h2])
    assert h1.weave("consense", "--timeout", "50s").stdout in {"voter\n", "standby\n"}, "one of two votes"
    h3.weave("launch", "h1", check=True)
    h4.weave("launch", "--observer", "h1", check=True)
    grown = h3.weave("consense", "--timeout", "50s")
    assert (grown.returncode, grown.stdout) == (0, "voter\n"), grown
    watching = h4.weave("consense", "--timeout", "50s")
    assert (watching.returncode, watching.stdout) == (0, "member, not elector\n"), watching
    wait_until(lambda: len(ipam(h2)["Paxos"]["Electors"]) == 3, HEAL_DEADLINE_S, "h2 to know of three electors")
    assert len(ipam(h2)["Paxos"]["Voters"]) == 3
    lab.down()


def returns_with_a_new_identity(lab: Lab, host: Host, before: str) -> None:
    """``host`` meets its removal, comes back as somebody else, and everybody agrees on who owns what."""

    def is_new() -> bool:
        done = host.weave("report")
        return done.returncode == 0 and json.loads(done.stdout)["Router"]["UID"] != before

    wait_until(is_new, SETTLE_DEADLINE_S, f"a new identity of {host.name}")
    wait_for_links(lab.hosts, SETTLE_DEADLINE_S)
    for each in lab.hosts:
        wait_until(lambda each=each: before in removed(each), SETTLE_DEADLINE_S, f"{each.name} to know the removal")
        wait_until(lambda each=each: before not in shares(each), SETTLE_DEADLINE_S, f"{each.name} to know who has it")
        assert sum(shares(each).values()) == RANGE_ADDRESSES
    assert len({observe.report(each).router.cluster for each in lab.hosts}) == 1


def every_address_is_somebodys_alone(lab: Lab, containers: list[Attached], contested: str = "") -> None:
    """After a while each container keeps its address and reaches all others, or is blocked and reported."""

    def waiting() -> list[str]:
        """Blocked addresses that are not the contested one: still being claimed back."""
        return [text for host in lab.hosts for text in ipam(host)["Blocked"] if not text.startswith(contested or "-")]

    wait_until(lambda: not waiting(), SETTLE_DEADLINE_S, "addresses to be claimed back")
    seen = [each for each in containers if not blocked_on(each[0].host, each[1])]
    addresses = [address for _, address in seen]
    assert len(set(addresses)) == len(addresses), addresses
    assert len(seen) == len(containers) - bool(contested)
    wait_for_pings(lab, seen)
    for host in lab.hosts:
        mine = {address for container, address in containers if container.host.name == host.name}
        wait_until(lambda host=host, mine=mine: attached_on(host) == mine, SETTLE_DEADLINE_S, f"ps of {host.name}")
