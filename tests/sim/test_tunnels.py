"""The plane ``wireguard`` in virtual time: choice, fallback and return, new keys, restarts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weavenet.core.commands import Attachment, PutAttachment
from weavenet.core.effects import VxlanUse
from weavenet.core.events import PlaneTraffic, WireguardReported
from weavenet.core.limits import PORT_DEFAULT
from weavenet.core.overlay.reporting import plane_of
from weavenet.sim.dataplane import DataPlane
from weavenet.sim.host import Host
from weavenet.sim.stage import Stage
from weavenet.sim.tunnel import LEAD_S, PORT
from weavenet.sim.world import draw_options, run_seed

FALLBACK_MAX_S = 3.0


def formed(seed: int, peers: int) -> tuple[Stage, DataPlane]:
    stage = Stage(seed, peers, sleeve=True, wireguard=True)
    stage.form()
    assert stage.dataplane is not None
    for host in stage.hosts:
        address = stage.allocate(host, "c")
        mac = bytes((2, 0, 0, 0, 1, host.index))
        attachment = Attachment("c", "netns:c", mac, (), (f"{address}/24",), False, True)
        stage.answer(stage.ask(host, PutAttachment(attachment)))
    busy(stage, LEAD_S + 3.0)
    return stage, stage.dataplane


def busy(stage: Stage, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        for host in stage.hosts:
            host.deliver(PlaneTraffic())
        stage.advance(0.1)


def plane(host: Host, other: Host) -> tuple[str, str]:
    assert host.node is not None
    return plane_of(host.node, host.local_now(), other.peer)


def row(host: Host, other: Host) -> tuple[VxlanUse, bool]:
    return next((peer.vxlan, peer.tunnel is not None) for peer in host.plane if peer.peer == other.peer)


def both_ways(a: int, b: int) -> list[tuple[int, int]]:
    return [(a, b), (b, a)]


def assert_broadcasts_arrive(stage: Stage, data: DataPlane) -> None:
    for host in stage.hosts:
        frame = data.frames.broadcast(host)
        stage.advance(0.5)
        assert data.frames.missing(frame) == []


def test_peers_with_a_password_are_on_wireguard_and_never_in_clear() -> None:
    stage, data = formed(1, 3)
    for host in stage.hosts:
        for other in stage.hosts:
            if host is not other:
                assert plane(host, other)[0] == "wireguard", plane(host, other)
                assert row(host, other) == (VxlanUse.CARRIES, True)
    assert_broadcasts_arrive(stage, data)


def test_filtered_wireguard_falls_to_sleeve_and_returns() -> None:
    stage, data = formed(2, 3)
    a, b, _ = stage.hosts
    cuts = data.underlay.cut(PORT, both_ways(0, 1))
    busy(stage, FALLBACK_MAX_S)
    assert row(a, b) == row(b, a) == (VxlanUse.PROBED, True)
    name, reason = plane(a, b)
    assert name == "sleeve"
    assert f"no answer over WireGuard on UDP {PORT}" in reason
    assert_broadcasts_arrive(stage, data)
    data.underlay.mend(cuts)
    busy(stage, 6.0)
    assert row(a, b) == row(b, a) == (VxlanUse.CARRIES, True)


def test_new_keys_lose_nothing() -> None:
    stage, data = formed(3, 3)
    a = stage.hosts[0]
    assert a.tunnel is not None
    before = a.tunnel.keys
    a.tunnel.replace_key()
    for _ in range(int(LEAD_S * 10) + 30):
        frames = [data.frames.broadcast(host) for host in stage.hosts]
        stage.advance(0.1)
        assert [data.frames.missing(frame) for frame in frames] == [[], [], []]
        assert plane(a, stage.hosts[1])[0] == "wireguard"
    assert a.tunnel.keys != before


def test_a_restarted_daemon_stays_on_wireguard() -> None:
    stage, data = formed(4, 3)
    a, b, _ = stage.hosts
    a.kill()
    a.start()
    for _ in range(100):
        assert row(a, b) == row(b, a) == (VxlanUse.CARRIES, True)
        frames = [data.frames.broadcast(host) for host in stage.hosts]
        stage.advance(0.1)
        assert [data.frames.missing(frame) for frame in frames] == [[], [], []]


def test_a_machine_that_lost_its_device_comes_back_with_other_keys() -> None:
    stage, data = formed(5, 3)
    a, b, _ = stage.hosts
    a.kill(kernel_lost=True)
    busy(stage, 4.0)
    a.start()
    busy(stage, LEAD_S + 20.0)
    assert plane(a, b)[0] == plane(b, a)[0] == "wireguard"
    assert_broadcasts_arrive(stage, data)


def test_a_host_whose_device_is_gone_is_on_sleeve() -> None:
    stage, data = formed(6, 2)
    a, b = stage.hosts
    assert a.tunnel is not None
    a.tunnel.stop()
    a.deliver(WireguardReported((), 0))
    busy(stage, FALLBACK_MAX_S)
    assert plane(a, b)[0] == plane(b, a)[0] == "sleeve"
    assert row(a, b) == (VxlanUse.CLOSED, False)
    assert_broadcasts_arrive(stage, data)
    a.tunnel.start()
    busy(stage, LEAD_S + 10.0)
    assert plane(a, b)[0] == plane(b, a)[0] == "wireguard"


def test_without_a_direct_datagram_of_any_kind_frames_are_relayed() -> None:
    stage, data = formed(7, 3)
    for port in (PORT, PORT_DEFAULT):
        data.underlay.cut(port, both_ways(0, 2))
    busy(stage, 5.0)
    assert "relayed by" in plane(stage.hosts[0], stage.hosts[2])[1]
    assert_broadcasts_arrive(stage, data)


@pytest.mark.parametrize("seed", range(6))
def test_histories_with_faults_end_on_wireguard(seed: int) -> None:
    options = draw_options(seed)
    options = replace(options, setup=replace(options.setup, sleeve=True, wireguard=True), steps=30)
    _, violation = run_seed(seed, options)
    assert violation is None, str(violation)
