"""An IPv6 range beside the IPv4 one: both addresses for each container, on every path, whatever becomes of a host."""

from __future__ import annotations

import ipaddress
import json
import shutil
from typing import Any

import pytest

from lab.clusters import HEAL_DEADLINE_S, NOTICE_DEADLINE_S, launch_together, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from lab.traffic import block_udp, unblock_udp, wait_for_plane
from weavenet.lab import observe
from weavenet.lab.host import Container, Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

RANGES = "10.32.0.0/12,fd00:77::/64"
SIZES = {"10.32.0.0/12": 1 << 20, "fd00:77::/64": (1 << 64) - 1}
SERVER = "169.254.53.53"
DEADLINE_S = 30.0
SETTLE_DEADLINE_S = 60.0

Attached = tuple[Container, tuple[str, str]]


def form_both(lab: Lab) -> None:
    launch_together(lab.hosts, "--ipalloc-range", RANGES)
    wait_for_links(lab.hosts)
    for result in observe.on_each(lab.hosts, "consense", "--timeout", "50s"):
        assert result.returncode == 0, result.stderr


def attach_both(host: Host, name: str, *flags: str) -> Attached:
    container = host.start_container(name)
    first, second = container.attach(*flags)
    assert ipaddress.ip_address(first) in ipaddress.ip_network("10.32.0.0/12")
    assert ipaddress.ip_address(second) in ipaddress.ip_network("fd00:77::/64")
    return container, (first, second)


def wait_for_both(lab: Lab, attached: list[Attached]) -> None:
    """Until each of these containers gets an answer from every other, by both addresses."""
    wait_for_pings(lab, [(container, address) for container, addresses in attached for address in addresses])


def until_answers(asker: Host | Container, address: str) -> None:
    command = ["ping", "-n", "-q", "-c", "1", "-W", "2", address]
    wait_until(lambda: asker.run(command).returncode == 0, DEADLINE_S, f"{asker.name} to reach {address}")


def ipam(host: Host) -> dict[str, Any]:
    found = json.loads(host.weave("report", check=True).stdout)["IPAM"]
    assert isinstance(found, dict)
    return found


def shares(host: Host) -> dict[str, dict[str, int]]:
    """Range → UID → addresses."""
    return {each["Range"]: {entry["UID"]: entry["Size"] for entry in each["Entries"]} for each in ipam(host)["Ranges"]}


def uid(host: Host) -> str:
    return observe.report(host).router.uid


def absent(host: Host) -> set[str]:
    peers = json.loads(host.weave("report", check=True).stdout)["Router"]["Peers"]
    return {peer["NickName"] for peer in peers if not peer["Reachable"]}


def on_interface(container: Container, device: str = "ethwe") -> set[str]:
    """Global addresses with prefix length."""
    lines = container.run(["ip", "-o", "address", "show", "dev", device, "scope", "global"], check=True).stdout
    return {line.split()[3] for line in lines.splitlines()}


@pytest.fixture
def lab(make_lab: MakeLab) -> Any:
    lab = make_lab(3)
    form_both(lab)
    yield lab
    lab.down()


def test_every_container_has_both_and_reaches_every_other_by_both(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    attached = [attach_both(host, f"on-{host.name}") for host in lab.hosts]
    assert len({address for _, addresses in attached for address in addresses}) == 6
    wait_for_both(lab, attached)
    for container, (first, second) in attached:
        assert on_interface(container) == {f"{first}/12", f"{second}/64"}
        assert "tentative" not in container.run(["ip", "-6", "address", "show", "dev", "ethwe"]).stdout
        assert container.attach() == [first, second], "the same again"
        assert {first, second} <= set(container.host.weave("ps", check=True).stdout.replace("/", " ").split())

    # shares, and where they are shown
    for host in lab.hosts:
        assert {cidr: sum(owners.values()) for cidr, owners in shares(host).items()} == SIZES
        text = host.weave("status", "ipam", check=True).stdout
        assert text.count("% of 10.32.0.0/12)") == text.count("% of fd00:77::/64)") == 3
        assert "Range: fd00:77::/64 (18446744073709551615 addresses)" in text
    assert all(len(owners) == 3 for owners in shares(h1).values())

    # one of a subnet, a particular one, and back
    tool = h1.start_container("tool")
    (chosen,) = tool.attach("net:fd00:77:0:0:1::/80")
    assert ipaddress.ip_address(chosen) in ipaddress.ip_network("fd00:77:0:0:1::/80")
    assert tool.attach("fd00:77::2:0:0:9/80") == ["fd00:77::2:0:0:9"]
    taken = h2.weave("attach", "fd00:77::2:0:0:9/80", attached[1][0].id)
    assert taken.returncode == 1
    assert "used by tool" in taken.stderr
    assert tool.attach("net:default") != []
    gone = h1.weave("detach", "net:default", tool.id, check=True).stdout.split()
    assert [ipaddress.ip_address(each).version for each in gone] == [4, 6]
    assert on_interface(tool) == {f"{chosen}/80", "fd00:77::2:0:0:9/80"}
    outside = h1.weave("attach", "net:fd00:99::/64", tool.id)
    assert outside.returncode == 1
    assert RANGES in outside.stderr


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")
def test_names_mean_both_addresses_and_both_mean_the_name(lab: Lab) -> None:
    attached = [attach_both(host, f"on-{host.name}") for host in lab.hosts]

    def dig(asker: Container, *question: str) -> list[str]:
        done = asker.run(["dig", f"@{SERVER}", "+short", "+tries=1", "+time=1", *question])
        return done.stdout.split() if done.returncode == 0 else []

    for asker, _ in attached:
        for container, (first, second) in attached:
            name = f"{container.name}.weave.local"
            for wanted, question in (([first], [name, "A"]), ([second], [name, "AAAA"])):
                wait_until(lambda q=question, w=wanted, a=asker: dig(a, *q) == w, DEADLINE_S, f"{question}")
            for address in (first, second):
                wait_until(
                    lambda b=address, n=name, a=asker: dig(a, "-x", b) == [f"{n}."], DEADLINE_S, f"a name for {address}"
                )
    assert dig(attached[0][0], "-x", "fd00:77::aaaa:1") == []
    looked_up = lab.hosts[1].weave("dns-lookup", "on-h1", check=True).stdout.split()  # the server had it by then
    assert set(looked_up) == set(attached[0][1])


def test_an_exposed_host_is_reached_by_both(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    container, own = attach_both(h2, "web")
    first, second = h1.weave("expose", "-h", "gateway", check=True).stdout.split()
    for address in own:
        until_answers(h1, address)
    for address in (first, second):
        until_answers(container, address)
    tables = h1.run(["nft", "list", "ruleset"], check=True).stdout
    assert "table ip weave" in tables and "table ip6 weave" in tables
    assert h1.weave("hide", check=True).stdout.split() == [first, second]
    assert "table ip6 weave" not in h1.run(["nft", "list", "ruleset"], check=True).stdout
    assert not container.ping(second, 1)


def test_addresses_survive_a_restart_and_a_crash_of_the_daemon(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    attached = [attach_both(host, f"on-{host.name}") for host in lab.hosts]
    h1.weave("stop", check=True)
    h1.weave("launch", check=True)
    h2.kill_daemon()
    h2.weave("launch", check=True)
    wait_for_links(lab.hosts)
    wait_for_both(lab, attached)
    for container, addresses in attached:
        assert tuple(container.attach()) == addresses
    fresh = attach_both(h3, "fresh")
    assert not set(fresh[1]) & {address for _, addresses in attached for address in addresses}
    wait_for_both(lab, [*attached, fresh])


def test_both_families_travel_over_sleeve_too(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    attached = [attach_both(host, f"on-{host.name}") for host in (h1, h2)]
    block_udp(h1, 6784, h2)
    wait_for_plane(h1, h2, "established sleeve")
    wait_for_plane(h2, h1, "established sleeve")
    for container, _ in attached:
        container.run(["ip", "neigh", "flush", "all"], check=True)
    wait_for_both(lab, attached)
    unblock_udp(h1)
    wait_for_plane(h1, h2, "established fastdp")
    wait_for_both(lab, attached)


def test_both_sides_of_a_partition_give_out_both(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    lab.partition([["h1", "h2"], ["h3"]])
    wait_until(lambda: absent(h3) == {"h1", "h2"}, NOTICE_DEADLINE_S, "h3 to miss the others")
    attached = [attach_both(host, f"{host.name}-{number}") for host in (h1, h2, h3) for number in (1, 2)]
    assert len({address for _, addresses in attached for address in addresses}) == 2 * len(attached)
    lab.heal()
    wait_for_links(lab.hosts, NOTICE_DEADLINE_S)
    wait_for_both(lab, attached)


def test_a_dead_hosts_space_of_both_ranges_is_recovered_and_what_it_lost_is_filtered(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    kept = [attach_both(host, f"on-{host.name}") for host in (h1, h2)]
    web, (first, second) = attach_both(h3, "web")
    dead = uid(h3)
    lab.partition([["h1", "h2"], ["h3"]])
    wait_until(lambda: absent(h1) == absent(h2) == {"h3"}, NOTICE_DEADLINE_S, "the others to miss it")
    alert = h1.weave("status", "ipam", "--unreachable", "--threshold", "30%")
    assert alert.returncode == 2
    assert "% of fd00:77::/64)" in alert.stdout
    done = h1.weave("rmpeer", "h3", "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    for host in (h1, h2):
        wait_until(lambda host=host: all(dead not in o for o in shares(host).values()), HEAL_DEADLINE_S, "the removal")
        wait_until(
            lambda host=host: all(each["HeldIPs"] == 0 for each in ipam(host)["Ranges"]), HEAL_DEADLINE_S, "end of hold"
        )
        assert {cidr: sum(owners.values()) for cidr, owners in shares(host).items()} == SIZES
    heir = h1.start_container("heir")
    assert heir.attach(f"{first}/12", f"{second}/64") == [first, second]

    lab.heal()

    def is_new() -> bool:
        done = h3.weave("report")
        return done.returncode == 0 and json.loads(done.stdout)["Router"]["UID"] != dead

    wait_until(is_new, SETTLE_DEADLINE_S, "h3 to be back")
    wait_for_links(lab.hosts, SETTLE_DEADLINE_S)

    def refused() -> set[str]:
        return {text.partition(" ")[0] for text in ipam(h3)["Blocked"] if "used by heir" in text}

    wait_until(lambda: refused() == {first, second}, SETTLE_DEADLINE_S, "both addresses to be refused")
    rules = ["nft", "list", "table", "bridge", "weave"]
    wait_until(lambda: second in h3.run(rules).stdout, DEADLINE_S, "a filter")
    assert "nd-neighbor-advert" in h3.run(rules).stdout
    # h3's own containers, too, see the heir at the address and not the one that lost it
    other, _ = attach_both(h3, "other")
    mac = heir.run(["cat", "/sys/class/net/ethwe/address"], check=True).stdout.strip()
    for address in (first, second):
        until_answers(other, address)
        assert mac in other.run(["ip", "neigh", "show", address], check=True).stdout
    wait_for_both(lab, [*kept, (heir, (first, second))])
    fresh = h3.weave("detach", web.id)
    assert fresh.returncode == 0, fresh.stderr
    wait_for_both(lab, [*kept, (heir, (first, second)), (web, tuple(web.attach()))])  # type: ignore[list-item]


def test_a_host_that_leaves_hands_over_both(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    container, (first, second) = attach_both(h3, "on-h3")
    old = uid(h3)
    done = h3.weave("reset")
    assert done.returncode == 0, done.stderr
    assert "ethwe" not in container.run(["ip", "-o", "link"], check=True).stdout
    for host in (h1, h2):
        wait_until(lambda host=host: all(old not in o for o in shares(host).values()), HEAL_DEADLINE_S, "the departure")
        assert {cidr: sum(owners.values()) for cidr, owners in shares(host).items()} == SIZES
    claimer = h1.start_container("claimer")
    assert claimer.attach(f"{first}/12", f"{second}/64") == [first, second]


def test_a_host_with_another_range_is_refused_with_both_shown(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    h1.weave("launch", "--ipalloc-range", RANGES, "--ipalloc-init", "consensus=1", check=True)
    h1.weave("consense", "--timeout", "30s", check=True)
    attach_both(h1, "web")
    h2.weave("launch", "--ipalloc-range", "10.32.0.0/12", "--not-elector", "h1", check=True)
    words = f"expected --ipalloc-range 10.32.0.0/12, found {RANGES}"
    wait_until(lambda: words in h2.weave("status").stdout, NOTICE_DEADLINE_S, "the refusal")
    h2.weave("stop", check=True)
    h2.weave("reset", "--force", check=True)
    h2.weave("launch", "--not-elector", "h1", check=True)
    wait_for_links(lab.hosts)
    wait_for_both(lab, [(h1.container("web"), tuple(h1.container("web").attach())), attach_both(h2, "db")])  # type: ignore[list-item]


def test_a_container_without_ipv6_gets_it_for_our_interface_only(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    form_both(lab)
    quiet = h1.start_container("quiet")
    for scope in ("all", "default"):
        quiet.run(["sysctl", "-q", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=1"], check=True)
    first, second = quiet.attach()
    assert quiet.run(["cat", "/proc/sys/net/ipv6/conf/lo/disable_ipv6"], check=True).stdout.strip() == "1"
    wait_for_both(lab, [(quiet, (first, second)), attach_both(h2, "web")])
