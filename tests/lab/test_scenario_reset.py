"""A host leaves: what `weave reset` promises, on the real kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import weavenet
from lab.clusters import (
    HEAL_DEADLINE_S,
    NOTICE_DEADLINE_S,
    attach_new,
    form,
    launch_together,
    wait_for_links,
    wait_for_pings,
)
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Container, Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

RANGE_ADDRESSES = 1 << 20
TRACES = (
    "ip -o link | cut -d: -f2; nft list ruleset; ip rule; ip route show table all | grep -v eth0; "
    "cat /proc/sys/net/ipv4/ip_forward; find /var/lib/weave /run/weave /var/log/weave.log 2>/dev/null; "
    "pgrep -af 'weavenet[.]' | cut -d' ' -f2-"
)


def traces(host: Host) -> str:
    """Devices, rules, routes, files and processes of a host."""
    return host.run(["sh", "-c", TRACES]).stdout


def ipam(host: Host) -> dict[str, Any]:
    found = json.loads(host.weave("report", check=True).stdout)["IPAM"]
    assert isinstance(found, dict)
    return found


def uid(host: Host) -> str:
    return observe.report(host).router.uid


def shares(host: Host) -> dict[str, int]:
    return {entry["UID"]: entry["Size"] for entry in ipam(host)["Entries"]}


def absent(host: Host) -> set[str]:
    peers = json.loads(host.weave("report", check=True).stdout)["Router"]["Peers"]
    return {peer["NickName"] for peer in peers if not peer["Reachable"]}


def interfaces(container: Container) -> str:
    return container.run(["ip", "-o", "link"], check=True).stdout


def test_a_host_of_three_leaves_and_nothing_of_it_remains(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    h1, h2, h3 = lab.hosts
    before = traces(h3)
    form(lab)
    containers = [attach_new(host, f"{host.name}-c1") for host in lab.hosts]
    h3.weave("expose", check=True)
    assert "ethwe" in interfaces(containers[2][0])
    assert traces(h3) != before
    old = uid(h3)
    done = h3.weave("reset")
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    assert traces(h3) == before
    assert "ethwe" not in interfaces(containers[2][0])

    for host in (h1, h2):
        wait_until(lambda host=host: old not in shares(host), HEAL_DEADLINE_S, f"{host.name} to know it")
        assert sum(shares(host).values()) == RANGE_ADDRESSES
        assert ipam(host)["HeldIPs"] == 0
        wait_until(lambda host=host: absent(host) == set(), HEAL_DEADLINE_S, f"{host.name} to miss nobody")
        wait_until(
            lambda host=host: "h3" not in " ".join(ipam(host)["Paxos"]["Voters"]), HEAL_DEADLINE_S, "another voter"
        )
    told = h1.weave("rmpeer", old)
    assert told.returncode == 0, told.stderr
    assert "left by itself" in told.stdout
    # What it had is the others' at once.
    claimer = h1.start_container("claimer")
    address = containers[2][1]
    assert claimer.attach(f"ip:{address}/12") == [address]
    wait_for_pings(lab, [*containers[:2], (claimer, address)])
    again = h3.weave("reset")
    assert again.returncode == 0, again.stderr
    assert traces(h3) == before

    h3.weave("launch", "h1", "h2", check=True)
    wait_for_links(lab.hosts)
    assert uid(h3) != old
    everybody = [*containers[:2], (claimer, address), attach_new(h3, "h3-new")]
    wait_for_pings(lab, everybody)


def test_a_host_that_is_cut_off_stays_as_it_was(lab: Lab) -> None:
    _, _, h3 = lab.hosts
    own = [attach_new(h3, f"h3-c{number}") for number in (1, 2)]
    old = uid(h3)
    lab.partition([["h1", "h2"], ["h3"]])
    wait_until(lambda: absent(h3) == {"h1", "h2"}, NOTICE_DEADLINE_S, "h3 to miss the others")
    tried = h3.weave("reset", "--timeout", "4s")
    assert tried.returncode == 2, tried
    assert "h1" in tried.stderr and "h2" in tried.stderr
    assert "stays as it was" in tried.stderr
    assert ipam(h3)["Leaving"] == ""
    wait_for_pings(lab, own)
    own.append(attach_new(h3, "h3-c3"))
    lab.heal()
    wait_for_links(lab.hosts, NOTICE_DEADLINE_S)
    assert uid(h3) == old
    wait_for_pings(lab, own)
    done = h3.weave("reset")
    assert done.returncode == 0, done.stderr


def test_one_of_two_leaves_and_then_the_last(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    before = traces(h1)
    form(lab)
    voter = ipam(h1)["Paxos"]["Voters"][0]
    leaver, other = (h1, h2) if "h1" in voter else (h2, h1)
    attach_new(leaver, "leaving-c1")
    kept = [attach_new(other, f"c{number}") for number in (1, 2)]
    done = leaver.weave("reset")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: shares(other) == {uid(other): RANGE_ADDRESSES}, HEAL_DEADLINE_S, "everything to be the other's")
    assert other.name in ipam(other)["Paxos"]["Voters"][0]
    wait_for_pings(lab, kept)
    last = other.weave("reset")
    assert last.returncode == 0, last.stderr
    assert "no other peer" in last.stdout
    assert traces(h1) == before


def test_all_hosts_leave_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    before = {host.name: traces(host) for host in lab.hosts}
    form(lab)
    for host in lab.hosts:
        attach_new(host, f"{host.name}-c1")
    for result in observe.on_each(lab.hosts, "reset"):
        assert result.returncode == 0, result.stderr
    assert {host.name: traces(host) for host in lab.hosts} == before
    launch_together(lab.hosts)
    wait_for_links(lab.hosts)


def test_force_waits_for_nobody_and_prints_the_line_to_run_elsewhere(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    h1, h2, h3 = lab.hosts
    before = traces(h3)
    form(lab)
    lab.partition([["h1", "h2"], ["h3"]])
    done = h3.weave("reset", "--force")
    assert done.returncode == 0, done.stderr
    assert traces(h3) == before
    line = done.stdout.strip().partition("weave rmpeer ")[2]
    lab.heal()
    wait_until(lambda: absent(h1) == absent(h2) == {"h3"}, NOTICE_DEADLINE_S, "the others to miss it")
    recovered = h1.weave("rmpeer", line, "--timeout", "60s", timeout_s=90)
    assert recovered.returncode == 0, recovered.stderr
    wait_until(lambda: line not in shares(h2), HEAL_DEADLINE_S, "h2 to know who has its addresses")
    assert sum(shares(h2).values()) == RANGE_ADDRESSES


def test_without_a_daemon_nothing_can_be_handed_over(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    before = traces(h2)
    form(lab)
    attach_new(h2, "h2-c1")
    h2.weave("expose", check=True)
    old = uid(h2)
    h2.weave("stop", check=True)
    refused = h2.weave("reset")
    assert refused.returncode == 1
    assert "weave launch" in refused.stderr
    done = h2.weave("reset", "--force")
    assert done.returncode == 0, done.stderr
    assert f"weave rmpeer {old}" in done.stdout
    assert traces(h2) == before
    assert h1.weave("status").returncode == 0


INTERRUPT = """
from pathlib import Path
import msgspec
from weavenet.core.effects import Change
from weavenet.core.leaving import Leaving, Phase, State
from weavenet.runtime.store import open_store
store = open_store(Path("/var/lib/weave"))
store.write_now((Change(*Leaving.disk_key(), msgspec.msgpack.encode(State(Phase.VACATING, ()))),))
store.close()
"""


def test_a_daemon_that_died_past_the_point_of_no_return_goes_on_after_launch(lab: Lab) -> None:
    """Nobody asks for it any more: containers leave, the addresses are handed over, and it is gone."""
    h1, h2, h3 = lab.hosts
    container, _ = attach_new(h3, "h3-c1")
    old = uid(h3)
    h3.weave("stop", check=True)
    source = str(Path(weavenet.__file__).parent.parent)
    h3.run([sys.executable, "-c", INTERRUPT], environment={"PYTHONPATH": source}, check=True)
    assert "ethwe" in interfaces(container)
    h3.weave("launch", check=True)
    for host in (h1, h2):
        wait_until(lambda host=host: old not in shares(host), HEAL_DEADLINE_S, f"{host.name} to know it")
        wait_until(lambda host=host: absent(host) == set(), HEAL_DEADLINE_S, f"{host.name} to miss nobody")
    wait_until(lambda: "weave is not running" in h3.weave("status").stderr, HEAL_DEADLINE_S, "the daemon to end")
    assert "ethwe" not in interfaces(container)
    assert not [line for line in traces(h3).splitlines() if "weavenet" in line or line.startswith(" weave")]
    assert "what this peer owned is" in observe.log_tail(h3, 50), "nobody was told, so the log stays"
