"""Desired forwarding entries, their difference to what is there, and frames and counters as bytes."""

from __future__ import annotations

import random
import struct

import pytest
from msgspec.structs import replace

from weavenet.core.effects import Endpoint, PlanePeer, VxlanUse
from weavenet.core.overlay.wireguard import WireguardRecord
from weavenet.core.types import PeerId
from weavenet.host import announce
from weavenet.host.attach import container_mac
from weavenet.host.bridge import is_port_name, port_name
from weavenet.host.inotify import parse as parse_inotify
from weavenet.host.links import messages, parse_neighbour
from weavenet.host.netlink import Route
from weavenet.host.probe import conflicts
from weavenet.plane import heartbeat, traffic
from weavenet.plane.fake import FakePlane, FakeWire
from weavenet.plane.forwarding import TAP, Entry, Kind, Present, difference, wanted


def peer(number: int, host: str, *endpoints: Endpoint) -> PlanePeer:
    return PlanePeer(PeerId(bytes([number]) * 16), host, bytes([2, 9, 0, 0, 0, number]), endpoints)


WEB = Endpoint(bytes([2, 7, 0, 0, 0, 1]), ("10.32.0.1/12", "fd00:0::1/64"))


def test_entries_of_one_peer() -> None:
    entries, complaints = wanted([peer(1, "192.0.2.1", WEB)])
    assert entries == {
        Entry(Kind.FLOOD, 4, b"", "192.0.2.1"),
        Entry(Kind.DEVICE, 4, bytes([2, 9, 0, 0, 0, 1]), "192.0.2.1"),
        Entry(Kind.DEVICE, 4, WEB.mac, "192.0.2.1"),
        Entry(Kind.PIN, 4, WEB.mac, ""),
        Entry(Kind.NEIGHBOUR, 0, WEB.mac, "10.32.0.1"),
        Entry(Kind.NEIGHBOUR, 0, WEB.mac, "fd00::1"),
    }
    assert complaints == ()


def test_a_peer_on_sleeve_keeps_heartbeats_and_has_its_macs_behind_the_tap() -> None:
    on_sleeve = replace(peer(1, "192.0.2.1", WEB), vxlan=VxlanUse.PROBED)
    behind_tap = {
        Entry(Kind.PIN, TAP, WEB.mac, ""),
        Entry(Kind.NEIGHBOUR, 0, WEB.mac, "10.32.0.1"),
        Entry(Kind.NEIGHBOUR, 0, WEB.mac, "fd00::1"),
    }
    assert wanted([on_sleeve])[0] == behind_tap | {Entry(Kind.DEVICE, 4, on_sleeve.mac, "192.0.2.1")}
    assert wanted([replace(on_sleeve, vxlan=VxlanUse.CLOSED)])[0] == behind_tap


TUNNELLED = replace(peer(1, "2001:db8::1", WEB), tunnel=WireguardRecord((b"k" * 32,), 6785))
THROUGH = {TUNNELLED.peer: "240.1.2.3%7"}


def test_a_peer_behind_a_tunnel_is_reached_through_it_whatever_its_underlay() -> None:
    entries, complaints = wanted([TUNNELLED], THROUGH)
    assert {(entry.kind, entry.family, entry.where) for entry in entries if entry.kind is not Kind.NEIGHBOUR} == {
        (Kind.FLOOD, 4, "240.1.2.3%7"),
        (Kind.DEVICE, 4, "240.1.2.3%7"),
        (Kind.PIN, 4, ""),
    }
    assert complaints == ()


def test_without_its_tunnel_nothing_goes_to_a_peer_in_clear() -> None:
    entries, _ = wanted([TUNNELLED])
    assert {entry.kind for entry in entries} == {Kind.PIN, Kind.NEIGHBOUR}
    assert {entry.family for entry in entries if entry.kind is Kind.PIN} == {TAP}


def test_a_change_of_plane_puts_before_it_removes() -> None:
    before = wanted([peer(1, "192.0.2.1", WEB)])[0]
    after = wanted([replace(peer(1, "192.0.2.1", WEB), vxlan=VxlanUse.PROBED)])[0]
    puts, removes = difference(before, after)
    assert puts == [Entry(Kind.PIN, TAP, WEB.mac, "")]
    assert removes[0].kind is Kind.FLOOD  # no frame goes both ways for longer than it has to
    assert Entry(Kind.PIN, 4, WEB.mac, "") in removes


def test_ipv6_underlay_uses_the_other_device() -> None:
    entries, _ = wanted([peer(1, "2001:db8:0::1")])
    assert {entry.family for entry in entries} == {6}
    assert Entry(Kind.FLOOD, 6, b"", "2001:db8::1") in entries


def test_disputed_mac_and_address_go_to_the_lower_peer_in_any_order() -> None:
    thief = Endpoint(WEB.mac, ("10.32.0.9/12",))
    squatter = Endpoint(bytes([2, 7, 0, 0, 0, 3]), ("10.32.0.1/12",))
    peers = [peer(1, "192.0.2.1", WEB), peer(2, "192.0.2.2", thief), peer(3, "192.0.2.3", squatter)]
    entries, complaints = wanted(peers)
    assert entries == wanted(reversed(peers))[0]
    assert Entry(Kind.DEVICE, 4, WEB.mac, "192.0.2.1") in entries
    assert Entry(Kind.NEIGHBOUR, 0, WEB.mac, "10.32.0.1") in entries
    assert not [entry for entry in entries if entry.where == "10.32.0.9"]
    assert len(complaints) == 1


def test_unusable_peers_and_macs_are_left_out_with_a_complaint() -> None:
    entries, complaints = wanted([peer(1, "host.example"), peer(2, "192.0.2.2", Endpoint(b"\xff" * 6, ()))])
    assert {entry.where for entry in entries} == {"192.0.2.2"}
    assert len(complaints) == 2


def test_what_every_host_has_for_itself_is_nobody_elses() -> None:
    """Whoever announced it would be sent what containers ask their own host, the DNS server above all."""
    here = bytes([2, 1, 1, 1, 1, 1])
    special = ("169.254.53.53/32", "fe80::1%eth0/64", "127.0.0.1/8", "224.0.0.251/32", "0.0.0.0/0", "::/0")
    endpoints = [Endpoint(here, ("10.32.0.9/12",)), Endpoint(bytes(6), ("10.32.0.9/12",)), Endpoint(WEB.mac, special)]
    victim = peer(2, "192.0.2.2")
    endpoints.append(Endpoint(victim.mac, ("10.32.0.9/12",)))
    entries, complaints = wanted([peer(1, "192.0.2.1", *endpoints), victim], here={here})
    assert {entry.mac for entry in entries if entry.kind is Kind.PIN} == {WEB.mac}
    assert not [entry for entry in entries if entry.kind is Kind.NEIGHBOUR]
    assert Entry(Kind.DEVICE, 4, victim.mac, "192.0.2.2") in entries
    assert len(complaints) == 3 + len(special)


def test_difference_applied_in_order_reaches_the_target_and_never_drops_what_stays() -> None:
    rng = random.Random(7)

    def some() -> frozenset[Entry]:
        peers = []
        for number in rng.sample(range(1, 9), rng.randint(0, 8)):
            endpoints = [
                Endpoint(bytes([2, 7, 0, 0, 0, rng.randint(1, 9)]), (f"10.32.0.{rng.randint(1, 9)}/12",))
                for _ in range(rng.randint(0, 3))
            ]
            peers.append(peer(number, f"192.0.2.{rng.randint(1, 5)}", *endpoints))
        return wanted(peers)[0]

    for _ in range(300):
        present, target = some(), some()
        puts, removes = difference(present, target)
        neighbours = {entry.where: entry for entry in present if entry.kind is Kind.NEIGHBOUR}
        others = {entry for entry in present if entry.kind is not Kind.NEIGHBOUR}
        for entry in puts:
            if entry.kind is Kind.NEIGHBOUR:
                neighbours[entry.where] = entry
            else:
                others.add(entry)
        assert others >= {entry for entry in target if entry.kind is not Kind.NEIGHBOUR}
        for entry in removes:
            if entry.kind is Kind.NEIGHBOUR:
                del neighbours[entry.where]
            else:
                others.remove(entry)
        assert others | set(neighbours.values()) == target
        assert difference(target, target) == ([], [])


def test_present_finds_neighbours_by_address() -> None:
    present = Present()
    old, new = (Entry(Kind.NEIGHBOUR, 0, bytes([2, 0, 0, 0, 0, i]), "10.32.0.1") for i in (1, 2))
    present.add(old)
    present.add(new)
    assert set(present) == {new} and present.neighbour("10.32.0.1") == new
    present.discard(old)
    assert present.neighbour("10.32.0.1") == new
    present.discard(new)
    assert present.neighbour("10.32.0.1") is None and new not in present


def test_heartbeat_frames() -> None:
    ours, theirs = bytes([2, 9, 0, 0, 0, 1]), bytes([2, 9, 0, 0, 0, 2])
    frame = heartbeat.encode(theirs, ours, 2**64 - 1, True)
    assert heartbeat.decode(frame) == (ours, 2**64 - 1, True)
    assert heartbeat.decode(frame + bytes(30)) == (ours, 2**64 - 1, True)
    for broken in (frame[:-1], frame[:12] + b"\x08\x00" + frame[14:], frame[:18] + b"\x02" + frame[19:], b""):
        assert heartbeat.decode(broken) is None


@pytest.mark.parametrize(("frame", "accepted"), [("ours", True), ("other mac", False), ("other type", False)])
def test_filter_program_lets_only_our_heartbeats_through(frame: str, accepted: bool) -> None:
    mac = bytes([0xFE, 9, 8, 7, 6, 5])
    data = {
        "ours": heartbeat.encode(mac, bytes(6), 1, False),
        "other mac": heartbeat.encode(mac[:5] + b"\0", bytes(6), 1, False),
        "other type": mac + bytes(6) + b"\x08\x00" + bytes(14),
    }[frame]
    steps = list(struct.iter_unpack("=HBBI", heartbeat.program(mac)))
    at, accumulator = 0, 0
    while True:
        code, jump_true, jump_false, k = steps[at]
        at += 1
        match code:
            case 0x28:
                accumulator = int.from_bytes(data[k : k + 2], "big")
            case 0x20:
                accumulator = int.from_bytes(data[k : k + 4], "big")
            case 0x15:
                at += jump_true if accumulator == k else jump_false
            case _:
                assert bool(k) == accepted
                return


def test_announcements() -> None:
    mac = bytes([2, 1, 2, 3, 4, 5])
    arp = announce.frame(mac, "10.32.0.1")
    assert arp[:14] == b"\xff" * 6 + mac + b"\x08\x06" and arp[28:32] == arp[38:42] == bytes([10, 32, 0, 1])
    advertisement = announce.frame(mac, "fd00::1")
    source, destination, body = advertisement[22:38], advertisement[38:54], advertisement[54:]
    pseudo = source + destination + struct.pack("!IxxxB", len(body), 58) + body
    assert sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo)) % 0xFFFF == 0
    assert body[0] == 136 and body[-6:] == mac


def test_counting_frames_of_some_devices() -> None:
    text = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier comp
    lo: 100 7 0 0 0 0 0 0 100 7 0 0 0 0 0 0
vxlan-6784: 1000 10 0 0 0 0 0 0 500 5 0 0 0 0 0 0
"""
    assert traffic.parse(text, ["vxlan-6784"]) == 15
    assert traffic.parse(text, ["none"]) == 0


def test_netlink_and_inotify_records() -> None:
    body = struct.pack("=BxxxiHBB", 2, 5, 0x20, 0, 0) + struct.pack("=HH4s", 8, 1, bytes([10, 0, 0, 1]))
    datagram = struct.pack("=IHHII", 16 + len(body), 29, 0, 3, 0) + body
    ((kind, sequence, payload), *rest) = messages(datagram + datagram[:10])
    assert (kind, sequence, rest) == (29, 3, [])
    gone = parse_neighbour(payload)
    assert (gone.index, gone.address, gone.mac, gone.is_forwarding) == (5, "10.0.0.1", b"", False)
    out_of_link = struct.pack("=BxxxiHBB", 7, 5, 0x80, 2, 0) + body[12:] + struct.pack("=HHI", 8, 8, 9)
    assert parse_neighbour(memoryview(out_of_link)).address == "10.0.0.1%9"
    event = struct.pack("=iIII", 1, 0x100, 0, 8) + b"web\0\0\0\0\0"
    assert parse_inotify(event + event) == [(0x100, "web")] * 2


def test_names_and_macs() -> None:
    assert len(port_name("x" * 128)) == 14 and is_port_name(port_name("web"))
    assert not is_port_name("vethwepl12345") and not is_port_name("vethwexyz01234")
    a, b = PeerId(bytes(16)), PeerId(bytes([1]) * 16)
    assert container_mac(a, "web") == container_mac(a, "web") != container_mac(b, "web")
    assert container_mac(a, "web")[0] & 3 == 2


def test_routes_that_overlap_a_range() -> None:
    routes = [Route(text, index, True) for index, text in enumerate(("10.0.0.0/8", "10.32.5.0/24", "192.168.0.0/16"))]
    assert [r.index for r in conflicts(["10.32.0.0/12"], routes)] == [0, 1]
    assert conflicts(["10.32.0.0/12"], routes, frozenset((0, 1))) == []
    assert conflicts(["172.16.0.0/16", "fd00::/64"], routes) == []
    assert conflicts(["10.32.0.0/12"], [Route("0.0.0.0/0", 1, False), Route("224.0.0.0/4", 1, True)]) == []


def test_fake_planes_reach_each_other_only_when_applied() -> None:
    wire = FakeWire()
    a, b = (FakePlane(wire, f"192.0.2.{i}", bytes([2, 9, 0, 0, 0, i])) for i in (1, 2))
    a.is_open = b.is_open = True
    heard: list[tuple[bytes, int, bool]] = []
    b.on_probe = lambda *frame: heard.append(frame)
    a.probe(b.mac, 1, False)
    a.peers = (peer(2, "192.0.2.2"),)
    a.probe(b.mac, 2, False)
    wire.cut.add(frozenset((a.host, b.host)))
    a.probe(b.mac, 3, False)
    assert heard == [(a.mac, 2, False)]
