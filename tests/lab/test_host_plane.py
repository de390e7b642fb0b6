"""The VXLAN plane, the firewall and container interfaces on the real kernel: two hosts, one event loop."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from host_pair import Host, Pair, eventually, run, run_async, until

from weavenet.core.effects import Endpoint
from weavenet.core.errors import WeaveError
from weavenet.core.limits import SLEEVE_DEVICE
from weavenet.core.types import PeerId, bridge_mac, mac_text, plane_mac
from weavenet.host import netns
from weavenet.host.bridge import port_name
from weavenet.host.links import LinkCache
from weavenet.sleeve.tap import open_tap

pytestmark = pytest.mark.lab


def drive(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 120))  # type: ignore[arg-type]


async def connected(a: Host, b: Host) -> tuple[int, int]:
    """A container on each host, and planes that know them."""
    left, left_endpoint = await a.container("left", "10.32.0.1/12", "fd32::1/64")
    right, right_endpoint = await b.container("right", "10.32.0.2/12", "fd32::2/64")
    await a.apply(b.as_peer(right_endpoint))
    await b.apply(a.as_peer(left_endpoint))
    return left, right


async def pings(namespace: int, address: str) -> bool:
    out = await run_async(namespace, "ping", "-c1", "-W1", address, check=False)
    return ", 0% packet loss" in out


def test_containers_reach_each_other_both_ways_and_arp_stays_local() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, right = await connected(a, b)
            tap = netns.call(
                b.namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
            )
            tap.bind(("vxlan-6784", 0x0806))
            tap.setblocking(False)
            for source, target in ((left, "10.32.0.2"), (right, "10.32.0.1"), (left, "fd32::2"), (right, "fd32::1")):
                assert await pings(source, target), target
            with pytest.raises(BlockingIOError):  # neigh_suppress answered; no ARP crossed the underlay
                tap.recv(2048)
            tap.close()
            assert a.plane.warnings() == ()

    drive(scenario)


def test_a_taken_port_is_named_and_no_device_is_left() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            await a.stop()
            run(a.namespace, "ip", "link", "delete", "vxlan-6784")
            taken = netns.call(a.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with taken:
                taken.bind(("0.0.0.0", 6784))
                with pytest.raises(OSError) as caught:
                    await a.start()
                assert caught.value.errno == errno.EADDRINUSE
                assert "vxlan-6784" not in run(a.namespace, "ip", "link")
            await a.stop()
            await a.start()
            assert "vxlan-6784" in run(a.namespace, "ip", "link")

    drive(scenario)


@pytest.mark.parametrize(
    "vandalism",
    [
        "ip link delete vxlan-6784",
        "ip link delete weave",
        "ip link set vxlan-6784 nomaster",
        "ip link set vxlan-6784 down",
        "bridge link set dev vxlan-6784 isolated off neigh_suppress off",
        "bridge fdb del 00:00:00:00:00:00 dev vxlan-6784 dst 192.0.2.2 self",
        "ip neighbour flush dev weave nud permanent",
        "nft flush ruleset",
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
        "ip link set PORT down",
        "bridge link set dev PORT hairpin off",
        "bridge link set dev PORT isolated on",
    ],
)
def test_what_others_delete_comes_back(vandalism: str) -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)

            def state() -> tuple[list[str], list[str], list[str], str]:
                forwarding = run(a.namespace, "bridge", "fdb", check=False).splitlines()
                neighbours = run(a.namespace, "ip", "neighbour", "show", "dev", "weave", check=False).splitlines()
                links = json.loads(run(a.namespace, "ip", "-j", "-d", "link"))
                ports = [
                    f"{link['ifname']} {link.get('master')} {flag} {port.get(flag)}"
                    for link in links
                    for port in (link.get("linkinfo", {}).get("info_slave_data", {}),)
                    for flag in ("isolated", "neigh_suppress", "hairpin")
                ] + [f"{link['ifname']} {'UP' in link['flags']}" for link in links]
                pinned = sorted(line for line in forwarding if "vxlan" in line)
                return pinned, sorted(neighbours), sorted(ports), run(a.namespace, "nft", "list", "ruleset")

            before = state()
            run(a.namespace, *vandalism.replace("PORT", port_name("left")).split())
            assert state() != before
            await eventually(lambda: asyncio.to_thread(lambda: state() == before), f"restored after {vandalism}")
            assert await pings(left, "10.32.0.2")

    drive(scenario)


class FloodedSocket:
    """Loses events as often as ``overflows`` says."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.overflows = 0

    def recv(self, size: int) -> bytes:
        if self.overflows:
            self.overflows -= 1
            raise OSError(errno.ENOBUFS, "events were lost")
        return self._inner.recv(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_events_lost_twice_in_a_row_take_no_link_away_that_is_there() -> None:
    """With so many links that a dump takes several reads."""

    async def scenario() -> None:
        with netns.scratch() as namespace:
            for number in range(60):
                run(namespace, "ip", "link", "add", f"b{number}", "type", "bridge")
            links = LinkCache(namespace)
            await links.open()
            gone: list[str] = []
            links.on_link.append(lambda link, is_gone: gone.append(link.name) if is_gone else None)
            assert links._socket is not None
            flooded = FloodedSocket(links._socket)
            links._socket = flooded  # type: ignore[assignment]
            links.drain()
            links._loop.remove_reader(flooded.fileno())  # type: ignore[union-attr]
            run(namespace, "ip", "link", "delete", "b7")
            while True:
                try:
                    flooded._inner.recv(1 << 18)  # lost
                except BlockingIOError:
                    break
            flooded.overflows = 2
            for _ in range(20):
                links.drain()
                await asyncio.sleep(0.02)
            assert gone == ["b7"]
            assert len(links.all()) == 60
            links.close()

    drive(scenario)


def test_without_ipv6_no_neighbour_of_it_is_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weavenet.host.ipv6.is_on", lambda namespace, device: False)

    async def scenario() -> None:
        async with Pair() as (a, b):
            run(a.namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            left, _ = await connected(a, b)
            assert "fd32::2" not in run(a.namespace, "ip", "neighbour", "show", "dev", "weave")
            assert a.plane.warnings() == ()
            assert await pings(left, "fd32::2")

    drive(scenario)


def test_the_device_of_the_sleeve_worker_counts_once_it_is_a_port_of_the_bridge() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            plugged = asyncio.create_task(a.plane.sleeve_port())
            tap = netns.call(a.namespace, lambda: open_tap(SLEEVE_DEVICE))
            try:
                await plugged
                (port,) = json.loads(run(a.namespace, "ip", "-j", "link", "show", SLEEVE_DEVICE))
                assert port["master"] == "weave" and "UP" in port["flags"]
                await a.plane.sleeve_port()
                run(a.namespace, "ip", "link", "delete", SLEEVE_DEVICE)
                await until(lambda: a.kernel.links.get(SLEEVE_DEVICE) is None, "the device to be gone")
                again = asyncio.create_task(a.plane.sleeve_port())
                await asyncio.sleep(0)
                assert not again.done()
                again.cancel()
            finally:
                os.close(tap)

    drive(scenario)


def test_restart_of_the_daemon_loses_no_ping() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            assert await pings(left, "10.32.0.2")
            flood = asyncio.create_task(run_async(left, "ping", "-i0.01", "-c250", "-W1", "10.32.0.2"))
            peers = a.peers
            for host in (a, b, a):
                await asyncio.sleep(0.3)
                await host.stop()
                await asyncio.sleep(0.2)
                await host.start()
            out = await flood
            assert "250 packets transmitted, 250 received, 0% packet loss" in out
            assert a.peers == peers

    drive(scenario)


def test_a_peer_cannot_take_the_place_of_this_host_or_of_its_dns_server() -> None:
    """Announcing the bridge's MAC, or the address that every host has for itself, as a container's."""
    server = "169.254.53.53"

    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            run(a.namespace, "ip", "address", "add", f"{server}/32", "dev", "weave")
            run(a.namespace, "ip", "route", "add", "10.32.0.0/12", "dev", "weave")
            run(left, "ip", "route", "add", server, "dev", "ethwe")
            own = mac_text(bridge_mac(a.peer))
            evil = bytes([2, 6, 6, 6, 6, 6])
            await a.apply(b.as_peer(Endpoint(bridge_mac(a.peer), ()), Endpoint(evil, (f"{server}/32",))))
            found = [line for line in run(a.namespace, "bridge", "fdb").splitlines() if line.startswith(own)]
            assert found and not [line for line in found if "vxlan" in line]
            assert await pings(left, server)
            assert own in run(left, "ip", "neighbour", "show", server)
            assert len(a.plane.warnings()) == 2

    drive(scenario)


def test_peers_that_are_gone_are_removed_and_only_they() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            await a.stop()
            a.peers = ()
            await a.start()
            assert await pings(left, "10.32.0.2")  # adopted, although nothing was applied yet
            await a.plane.apply(())
            assert "dst 192.0.2.2" not in run(a.namespace, "bridge", "fdb")
            assert "PERMANENT" not in run(a.namespace, "ip", "neighbour", "show", "dev", "weave")
            assert not await pings(left, "10.32.0.2")

    drive(scenario)


def test_heartbeats_arrive_and_no_container_sees_them() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, right = await connected(a, b)
            heard: list[tuple[bytes, int, bool]] = []
            b.plane.on_probe = lambda *frame: heard.append(frame)

            def tap() -> socket.socket:
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
                sock.bind(("ethwe", 3))
                return sock

            taps = [netns.call(namespace, tap) for namespace in (left, right)]
            a.plane.probe(plane_mac(b.peer), 2**64 - 1, False)
            a.plane.probe(plane_mac(b.peer), 7, True)
            await until(lambda: len(heard) == 2, "two heartbeats")
            assert heard == [(plane_mac(a.peer), 2**64 - 1, False), (plane_mac(a.peer), 7, True)]
            for nobody in (b"\xff" * 6, plane_mac(PeerId(b"\x63" * 16))):  # would be flooded to every peer
                a.plane.probe(nobody, 8, False)
            assert await pings(left, "10.32.0.2")  # later than the heartbeats on the same path
            for sock in taps:
                seen = []
                while True:
                    try:
                        seen.append(sock.recv(2048))
                    except BlockingIOError:
                        break
                assert seen and not [frame for frame in seen if frame[12:14] == b"\x88\xb5"]
                sock.close()
            assert len(heard) == 2

    drive(scenario)


def test_traffic_is_noticed_and_heartbeats_are_not_traffic() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            seen: list[int] = []
            a.plane.on_traffic = lambda: seen.append(1)

            async def only_heartbeats() -> bool:
                """Group reports and solicitations after plugging are traffic, and end by themselves."""
                seen.clear()
                for nonce in range(20):
                    a.plane.probe(plane_mac(b.peer), nonce, False)
                await asyncio.sleep(1.5)
                return not seen

            await eventually(only_heartbeats, "heartbeats that are not taken for traffic", 60.0)
            assert await pings(left, "10.32.0.2")
            await until(lambda: seen, "traffic noticed")

    drive(scenario)


def test_blocked_address_is_dropped_at_the_port_and_the_other_address_works() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, left_endpoint = await a.container("left", "10.32.0.1/12", "10.40.0.1/16", "fd32::1/64")
            _, right_endpoint = await b.container("right", "10.32.0.2/12", "10.40.0.2/16", "fd32::2/64")
            await a.apply(b.as_peer(right_endpoint))
            await b.apply(a.as_peer(left_endpoint))
            assert a.firewall is not None
            assert await pings(left, "10.32.0.2") and await pings(left, "fd32::2")
            await a.firewall.set_blocked((("left", "10.32.0.1"), ("left", "fd32::1")))
            assert a.firewall.warnings() == ()
            assert not await pings(left, "10.32.0.2")
            assert not await pings(left, "fd32::2")
            assert await pings(left, "10.40.0.2")
            await a.firewall.set_blocked(())
            assert await pings(left, "10.32.0.2")
            assert "bridge weave" not in run(a.namespace, "nft", "list", "tables")

    drive(scenario)


def test_vxlan_from_strangers_is_dropped() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            assert await pings(left, "10.32.0.2")
            await b.apply()  # b no longer counts a among its peers, and a does not know
            run(a.namespace, "ping", "-c1", "-W1", "192.0.2.2")
            assert not await pings(left, "10.32.0.2")
            rules = run(b.namespace, "nft", "list", "table", "inet", "weave")
            assert re.search(r"udp dport 6784 drop", rules) and "192.0.2.1" not in rules

    drive(scenario)


def test_forward_chain_that_drops_is_opened_with_a_tagged_rule() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            await a.container("other", "10.32.0.3/12")
            if run(a.namespace, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables", check=False).strip() != "1":
                pytest.skip("bridged frames do not pass iptables here")
            chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
            run(a.namespace, "nft", f"add table ip filter; {chain}; add chain ip filter DOCKER-USER;"
                " add rule ip filter FORWARD jump DOCKER-USER")  # fmt: skip
            await eventually(lambda: pings(left, "10.32.0.3"), "bridged traffic accepted again")
            rules = run(a.namespace, "nft", "list", "chain", "ip", "filter", "DOCKER-USER")
            assert rules.count('comment "weave"') == 1

    drive(scenario)


def test_address_that_moves_to_another_host_is_reached() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            left, _ = await connected(a, b)
            await a.container("extra", "10.32.0.9/12")
            assert await pings(left, "10.32.0.9")
            await a.attacher.remove("extra")
            _, moved = await b.container("moved", "10.32.0.9/12")
            await a.apply(*(b.as_peer(*a.peers[0].endpoints, moved),))
            await eventually(lambda: pings(left, "10.32.0.9"), "moved address")

    drive(scenario)


def test_small_underlay_is_warned_about_while_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weavenet.plane.vxlan.MEASURE_S", 0.5)

    async def scenario() -> None:
        async with Pair(underlay_mtu=1400) as (a, b):
            await connected(a, b)
            (warning,) = a.plane.warnings()
            assert "1400" in warning and "--mtu 1350" in warning
            run(a.namespace, "ip", "link", "set", "under", "mtu", "1500")
            await until(lambda: a.plane.warnings() == (), "no warning")
            run(a.namespace, "ip", "link", "set", "under", "mtu", "1300")
            await until(lambda: "--mtu 1250" in "".join(a.plane.warnings()), "another warning")

    drive(scenario)


def test_ipv6_underlay_gets_a_device_of_its_own() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            for host in (a, b):
                run(host.namespace, "ip", "address", "add", f"fd00:9::{host.number}/64", "dev", "under", "nodad")
            left, left_endpoint = await a.container("left", "10.32.0.1/12")
            _, right_endpoint = await b.container("right", "10.32.0.2/12")
            peers = [host.as_peer(endpoint) for host, endpoint in ((a, left_endpoint), (b, right_endpoint))]
            peers = [type(p)(p.peer, f"fd00:9::{i}", p.mac, p.endpoints) for i, p in enumerate(peers, 1)]
            await a.apply(peers[1])
            await b.apply(peers[0])
            heard: list[object] = []
            b.plane.on_probe = lambda *frame: heard.append(frame)
            a.plane.probe(plane_mac(b.peer), 1, False)
            assert await pings(left, "10.32.0.2")
            await until(lambda: heard, "heartbeat over IPv6")

    drive(scenario)


def test_host_without_nftables_works_and_says_so() -> None:
    async def scenario() -> None:
        from weavenet.host.firewall import Firewall
        from weavenet.host.nft import Nft, NftError

        class NoNft(Nft):
            backend = ""  # type: ignore[assignment]

            def run_now(self, commands: object) -> list[dict[str, object]]:
                raise NftError(2, "neither libnftables.so.1 nor the nft command is installed")

        async with Pair(firewalled=False) as (a, b):
            left, _ = await connected(a, b)
            firewall = Firewall(a.namespace, NoNft(a.namespace))
            await firewall.open()
            await firewall.set_hosts(frozenset())
            assert "firewall off" in firewall.warnings()[0]
            await firewall.close()
            assert await pings(left, "10.32.0.2")

    drive(scenario)


def test_plugging_is_idempotent_and_what_fails_leaves_nothing() -> None:
    async def scenario() -> None:
        async with Pair(firewalled=False) as (a, _):
            namespace = netns.create()
            a.containers.append(namespace)
            container = netns.Container("netns:web", "web", namespace)
            mac = await a.attacher.plug(container, ["10.32.0.1/12"])
            assert await a.attacher.plug(container, ["10.32.0.1/12", "10.40.0.1/16"]) == mac
            shown = json.loads(run(namespace, "ip", "-j", "-d", "address", "show", "ethwe"))[0]
            assert sorted(i["local"] for i in shown["addr_info"] if i["family"] == "inet") == ["10.32.0.1", "10.40.0.1"]
            assert shown["gso_max_size"] == 65536 and shown["mtu"] == 1376
            assert "224.0.0.0/4" in run(namespace, "ip", "route")
            assert run(namespace, "cat", "/proc/sys/net/ipv4/neigh/ethwe/ucast_solicit").strip() == "1"
            assert not await a.attacher.unplug(container, ["10.32.0.1/12"])
            assert await a.attacher.unplug(container, ["10.40.0.1/16"])
            assert a.attacher.host_end("web") is None
            with pytest.raises(WeaveError, match="ff02::7"):  # the kernel refuses a group as an address
                await a.attacher.plug(container, ["10.32.0.1/12", "ff02::7/64"])
            assert a.kernel.links.get(port_name("web")) is None
            assert "ethwe" not in run(namespace, "ip", "link")

    drive(scenario)
