"""Containers ask the DNS server of their own host, at an address that every host has; no other host answers there."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import threading
import time

import pytest

from lab.clusters import Attached, attach_new, form, wait_for_links
from lab.fresh import MakeLab
from weavenet.core.limits import SLEEVE_DEVICE
from weavenet.lab import observe, processes
from weavenet.lab.host import Container, Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until
from weavenet.runtime import nameserver

SERVER = "169.254.53.53"
DEADLINE_S = 30.0
pytestmark = pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(2)
    for host in lab.hosts:  # new namespaces begin with the settings of this machine
        for place in ("all", "default"):
            host.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{place}.rp_filter=0"], check=True)
    form(lab)
    return lab


@pytest.fixture(scope="module")
def containers(lab: Lab) -> list[Attached]:
    return [attach_new(host, f"on-{host.name}") for host in lab.hosts]


def dig(asker: Host | Container, *arguments: str) -> list[str]:
    """Lines of ``dig +short``; none when nobody answers."""
    done = asker.run(["dig", f"@{SERVER}", "+short", "+tries=1", "+time=1", *arguments])
    return done.stdout.split() if done.returncode == 0 else []


def until_answers(asker: Host | Container, wanted: list[str], *arguments: str) -> None:
    wait_until(lambda: dig(asker, *arguments) == wanted, DEADLINE_S, f"{arguments} to be {wanted} for {asker.name}")


def worker(host: Host) -> int:
    found = [pid for pid in processes.inside(host.pid) if "weavenet.dns" in processes.arguments(pid)]
    assert len(found) == 1, found
    return found[0]


def test_every_container_and_host_asks_its_own_server(lab: Lab, containers: list[Attached]) -> None:
    for host, (container, own) in zip(lab.hosts, containers, strict=True):
        other = next(address for _, address in containers if address != own)
        other_name = next(f"{c.name}.weave.local" for c, address in containers if address == other)
        for asker in (container, host):
            until_answers(asker, [other], other_name)
            until_answers(asker, [other], "+tcp", other_name.upper())
            until_answers(asker, [f"{other_name}."], "-x", other)
        assert dig(container, "nobody.weave.local") == []
        assert observe.report(host) is not None
        assert SERVER in host.weave("status").stdout


def test_answers_follow_containers_that_come_and_go(lab: Lab, containers: list[Attached]) -> None:
    """On another host; an address that is gone is never answered again."""
    asker = containers[1][0]

    def answer() -> str:
        return asker.run(["dig", f"@{SERVER}", "+tries=1", "+time=1", "+norecurse", "coming.weave.local"]).stdout

    for _ in range(5):
        container, address = attach_new(lab.hosts[0], "coming")
        until_answers(asker, [address], "coming.weave.local")
        container.remove()
        wait_until(lambda: "status: NXDOMAIN" in answer(), DEADLINE_S, "the name to go with its container")
        assert not any(address in answer() for _ in range(5))


def rules_for_answers(host: Host) -> str:
    return host.run(["ip", "rule", "show", "priority", "6784"], check=True).stdout


def test_no_rule_where_the_kernel_lets_queries_in(lab: Lab, containers: list[Attached]) -> None:
    """The first rule of a host makes every packet that it receives slower."""
    assert [rules_for_answers(host) for host in lab.hosts] == ["" for _ in lab.hosts]


def test_the_address_works_with_a_strict_reverse_path_filter(lab: Lab, containers: list[Attached]) -> None:
    """Which somebody switches on meanwhile; a rule then leads answers back, and comes back itself."""
    host, (container, own) = lab.hosts[0], containers[0]
    host.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1"], check=True)
    try:
        for _ in range(2):
            for asker in (host, container):
                asker.run(["ip", "neigh", "flush", "all"], check=True)
            wait_until(lambda: SERVER in rules_for_answers(host), DEADLINE_S, "the rule for answers")
            until_answers(container, [own], f"{container.name}.weave.local")
            host.run(["ip", "rule", "delete", "priority", "6784"], check=True)
    finally:
        host.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0"], check=True)


def test_only_the_server_is_reached_at_its_address(lab: Lab, containers: list[Attached]) -> None:
    """Above all where answers of any service find back: a strict reverse-path filter makes us add a rule for them."""
    host, (container, _) = lab.hosts[1], containers[1]
    host.run(["ip", "rule", "add", "from", SERVER, "lookup", "99"], check=True)
    host.run(["ip", "route", "add", "default", "dev", "weave", "table", "99"], check=True)
    try:
        for port, is_reached in ((53, True), (6783, False), (22, False)):
            started = time.monotonic()
            tried = container.run(["timeout", "2", "bash", "-c", f"</dev/tcp/{SERVER}/{port}"])
            assert (tried.returncode == 0) is is_reached, (port, tried.stderr)
            assert is_reached or time.monotonic() - started > 1, "somebody refused it"
    finally:
        host.run(["ip", "route", "flush", "table", "99"], check=True)
        host.run(["ip", "rule", "del", "from", SERVER, "lookup", "99"], check=True)


def test_no_other_host_answers_in_its_place(lab: Lab, containers: list[Attached]) -> None:
    """ARP for the address does not cross the overlay, in either direction."""
    host, (container, _) = lab.hosts[0], containers[0]
    host.pause_daemon()  # it would put the address back
    try:
        host.run(["ip", "address", "delete", f"{SERVER}/32", "dev", "weave"], check=True)
        container.run(["ip", "neigh", "flush", "all"], check=True)
        assert container.run(["ping", "-c", "1", "-W", "1", SERVER]).returncode != 0
    finally:
        host.resume_daemon()
    until_answers(container, [containers[1][1]], f"{containers[1][0].name}.weave.local")


def test_what_somebody_removes_comes_back(lab: Lab, containers: list[Attached]) -> None:
    host, (container, own) = lab.hosts[0], containers[0]
    host.run(["ip", "address", "delete", f"{SERVER}/32", "dev", "weave"], check=True)
    until_answers(container, [own], f"{container.name}.weave.local")


def test_a_killed_worker_comes_back_with_all_names(lab: Lab, containers: list[Attached]) -> None:
    before = worker(lab.hosts[0])
    os.kill(before, signal.SIGKILL)
    for container, address in containers:
        until_answers(containers[0][0], [address], f"{container.name}.weave.local")
    assert worker(lab.hosts[0]) != before
    assert len(lab.hosts[0].daemon_pids()) == 1


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_names_are_answered_while_the_daemon_is_replaced(lab: Lab, containers: list[Attached], ending: str) -> None:
    """Also those of the other host, of which the next daemon knows nothing at first."""
    host, (asker, own), (other, address) = lab.hosts[0], *containers
    before = worker(host)
    wanted = {f"{asker.name}.weave.local": own, f"{other.name}.weave.local": address}
    for name, found in wanted.items():
        until_answers(asker, [found], name)
    missed, done = [], threading.Event()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            for name, found in wanted.items():
                asked += 1
                if dig(asker, "+time=5", name) != [found]:
                    missed.append(name)
        return asked

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            if ending == "stop":
                host.weave("stop", check=True)
            else:
                host.kill_daemon()
            host.weave("launch", lab.hosts[1].name, check=True)
            wait_for_links(lab.hosts)
            time.sleep(nameserver.SETTLE_S)  # then the table of the new daemon counts
        finally:
            done.set()
        asked = asking.result(DEADLINE_S)
    assert missed == []
    assert asked > 10
    assert worker(host) == before
    new, found = attach_new(host, f"after-{ending}")
    until_answers(containers[1][0], [found], f"{new.name}.weave.local")
    until_answers(asker, [found], f"{new.name}.weave.local")


def test_every_way_into_the_overlay_is_filtered(lab: Lab, containers: list[Attached]) -> None:
    """The port of the encrypted data path, which comes and goes with its worker, too; and again when somebody takes the
    filter away."""
    host = lab.hosts[0]

    def filtered(device: str) -> bool:
        return "protocol arp pref 6784 bpf" in host.run(["tc", "filter", "show", "dev", device, "egress"]).stdout

    for device in ("vxlan-6784", SLEEVE_DEVICE):
        wait_until(lambda device=device: filtered(device), DEADLINE_S, f"the filter of {device}")
        host.run(["tc", "qdisc", "delete", "dev", device, "clsact"], check=True)
        wait_until(lambda device=device: filtered(device), DEADLINE_S, f"the filter of {device} again")
    assert "modprobe" not in host.weave("status").stdout


def test_queries_do_not_fill_the_table_of_connections(lab: Lab, containers: list[Attached]) -> None:
    host, (container, own) = lab.hosts[0], containers[0]
    name = f"{container.name}.weave.local"

    def tracked() -> int:
        return int(host.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"], check=True).stdout)

    for command in ("table ip probe", "chain ip probe input { type filter hook input priority 0; }"):
        host.run(["nft", "add", *command.split()], check=True)
    host.run(["nft", "add", "rule", "ip", "probe", "input", "ct", "state", "new", "counter"], check=True)
    wait_until(
        lambda: dig(container, name) == [own] and "notrack" in host.run(["nft", "list", "ruleset"]).stdout,
        DEADLINE_S,
        "queries not to be tracked",
    )
    before = tracked()
    for _ in range(30):
        dig(container, name)
    assert tracked() < before + 15
    host.run(["nft", "delete", "table", "ip", "probe"], check=True)


def test_dockers_bridge_is_served_while_it_is_there(lab: Lab, containers: list[Attached]) -> None:
    """Nothing of Docker is needed but its bridges; who asks there need not be attached. Containers of a network made by
    hand or by Compose are told of the same address."""
    host, address = lab.hosts[0], "172.17.0.1"
    for command in (
        "link add docker0 type bridge",
        f"address add {address}/16 dev docker0",
        "link set docker0 up",
        "netns add plain",
        "link add plain0 type veth peer name eth0 netns plain",
        "link set plain0 master docker0 up",
        "-n plain address add 172.17.0.2/16 dev eth0",
        "-n plain link set eth0 up",
        "link add br-0123456789ab type bridge",
        "address add 172.18.0.1/16 dev br-0123456789ab",
        "link set br-0123456789ab up",
        "netns add composed",
        "link add composed0 type veth peer name eth0 netns composed",
        "link set composed0 master br-0123456789ab up",
        "-n composed address add 172.18.0.2/16 dev eth0",
        "-n composed link set eth0 up",
        "-n composed route add default via 172.18.0.1",
    ):
        host.run(["ip", *command.split()], check=True)
    question = ["dig", f"@{address}", "+short", "+tries=1", "+time=1", "on-h2.weave.local"]
    for asker in ("plain", "composed"):
        asked = ["ip", "netns", "exec", asker, *question]
        wait_until(
            lambda asked=asked: host.run(asked).stdout.split() == [containers[1][1]],
            DEADLINE_S,
            f"an answer for {asker}",
        )
    host.run(["ip", "netns", "delete", "composed"], check=True)
    host.run(["ip", "link", "delete", "br-0123456789ab"], check=True)
    assert f"--dns={address}" in host.weave("dns-args").stdout
    host.run(["ip", "netns", "delete", "plain"], check=True)
    host.run(["ip", "link", "delete", "docker0"], check=True)
    wait_until(lambda: f"--dns={SERVER}" in host.weave("dns-args").stdout, DEADLINE_S, "docker0 to be forgotten")


def test_the_bridge_made_anew_is_served_too(lab: Lab, containers: list[Attached]) -> None:
    host, (container, own) = lab.hosts[0], containers[0]
    host.run(["ip", "link", "delete", "weave"], check=True)
    until_answers(container, [own], f"{container.name}.weave.local")


def test_nobody_else_is_answered(lab: Lab, containers: list[Attached]) -> None:
    """What comes in on another device than the bridge is not for the server."""
    one, two = lab.hosts
    two.run(["ip", "route", "add", f"{SERVER}/32", "via", one.address, "table", "77"], check=True)
    two.run(["ip", "rule", "add", "to", SERVER, "priority", "5", "lookup", "77"], check=True)
    two.run(["ip", "rule", "delete", "from", "all", "priority", "0"], check=True)
    two.run(["ip", "rule", "add", "from", "all", "priority", "9", "lookup", "local"], check=True)
    try:
        assert dig(two, f"@{SERVER}", "-b", two.address, "on-h1.weave.local") == []
    finally:
        two.run(["ip", "rule", "add", "from", "all", "priority", "0", "lookup", "local"], check=True)
        for priority in ("5", "9"):
            two.run(["ip", "rule", "delete", "priority", priority], check=True)
    until_answers(two, [containers[0][1]], "on-h1.weave.local")


def test_without_a_server_there_is_nothing_of_it(lab: Lab) -> None:
    host = lab.hosts[1]
    host.weave("stop", check=True)
    host.run(["ip", "link", "delete", "weave"], check=True)
    host.weave("launch", "--no-dns", check=True)
    assert "no DNS server" in host.weave("status").stdout
    assert SERVER not in host.run(["ip", "address"], check=True).stdout
    assert not [pid for pid in processes.inside(host.pid) if "weavenet.dns" in processes.arguments(pid)]
