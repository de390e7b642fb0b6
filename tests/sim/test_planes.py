"""Choice of plane, fallback, return, relays and broadcasts, in virtual time."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weavenet.core.commands import Attachment, PutAttachment
from weavenet.core.effects import VxlanUse
from weavenet.core.events import PlaneTraffic
from weavenet.core.limits import PORT_DEFAULT, VXLAN_PORT
from weavenet.core.overlay.reporting import plane_of
from weavenet.sim.dataplane import DataPlane
from weavenet.sim.faults import CALM
from weavenet.sim.host import Host
from weavenet.sim.setup import Bootstrap
from weavenet.sim.stage import Stage
from weavenet.sim.world import draw_options, run_seed

FALLBACK_MAX_S = 3.0


def formed(seed: int, peers: int, **options: object) -> tuple[Stage, DataPlane]:
    stage = Stage(seed, peers, sleeve=True, **options)  # type: ignore[arg-type]
    stage.form()
    assert stage.dataplane is not None
    return stage, stage.dataplane


def use(host: Host, other: Host) -> VxlanUse:
    return next(peer.vxlan for peer in host.plane if peer.peer == other.peer)


def plane(stage: Stage, host: Host, other: Host) -> tuple[str, str]:
    assert host.node is not None
    return plane_of(host.node, host.local_now(), other.peer)


def both_ways(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    return [*pairs, *((b, a) for a, b in pairs)]


def attach_everywhere(stage: Stage) -> None:
    for host in stage.hosts:
        address = stage.allocate(host, "c")
        mac = bytes((2, 0, 0, 0, 1, host.index))
        attachment = Attachment("c", "netns:c", mac, (), (f"{address}/24",), False, True)
        stage.answer(stage.ask(host, PutAttachment(attachment)))
    stage.advance(1.0)


def busy(stage: Stage, seconds: float, data: DataPlane) -> None:
    """Traffic on every plane, noticed once a second as by the kernel's counters."""
    for _ in range(int(seconds * 10)):
        for host in stage.hosts:
            host.deliver(PlaneTraffic())
        stage.advance(0.1)


@pytest.mark.parametrize("one_way", [False, True])
def test_vxlan_that_is_filtered_falls_to_sleeve_and_returns(one_way: bool) -> None:
    stage, data = formed(1, 3)
    attach_everywhere(stage)
    a, b, _ = stage.hosts
    assert plane(stage, a, b) == ("fastdp", "VXLAN answers")
    busy(stage, 2.0, data)
    cuts = data.underlay.cut(VXLAN_PORT, [(0, 1)] if one_way else both_ways((0, 1)))
    busy(stage, FALLBACK_MAX_S, data)
    assert use(a, b) is use(b, a) is VxlanUse.PROBED
    name, reason = plane(stage, a, b)
    assert name == "sleeve"
    assert "direct to" in reason
    assert "UDP 6784" in reason
    frame = data.frames.broadcast(a)
    stage.advance(1.0)
    assert data.frames.missing(frame) == []
    data.underlay.mend(cuts)
    busy(stage, 6.0, data)
    assert use(a, b) is use(b, a) is VxlanUse.CARRIES


def test_a_pair_without_any_direct_datagram_is_relayed_and_recovers_when_the_relay_dies() -> None:
    stage, data = formed(2, 4)
    attach_everywhere(stage)
    a, b, c, d = stage.hosts
    cut = both_ways((0, 2))
    data.underlay.cut(VXLAN_PORT, cut)
    data.underlay.cut(PORT_DEFAULT, cut)
    busy(stage, 5.0, data)
    name, reason = plane(stage, a, c)
    assert name == "sleeve", reason
    assert "relayed by" in reason
    frame = data.frames.broadcast(a)
    stage.advance(1.0)
    assert data.frames.missing(frame) == []
    assert data.frames.relayed == 1
    relay = next(peer.relay for peer in a.sleeve.peers if peer.peer == c.peer) if a.sleeve else None
    assert relay in (b.peer, d.peer)
    gone = b if relay == b.peer else d
    gone.kill(kernel_lost=True)
    busy(stage, 5.0, data)
    frame = data.frames.broadcast(a)
    stage.advance(1.0)
    assert data.frames.missing(frame) == [gone.label]


def test_a_chain_without_shortcuts_relays_over_several_hops() -> None:
    """Links only between neighbours of a chain of five, in TCP and UDP alike."""
    stage = Stage(3, 5, sleeve=True, bootstrap=Bootstrap.CHAIN, electors=5, discovery=False)
    data = stage.dataplane
    assert data is not None
    far = both_ways(*((a, b) for a in range(5) for b in range(a + 2, 5)))
    stage.network.block(far)
    stage.start()
    stage.until(lambda: all(len(host.open_peers) == 4 for host in stage.hosts), 60, "data paths to all")
    attach_everywhere(stage)
    busy(stage, 8.0, data)
    frame = data.frames.broadcast(stage.hosts[0])
    stage.advance(2.0)
    assert data.frames.missing(frame) == []
    assert data.frames.relayed == 3
    data.frames.is_calm = True
    for host in stage.hosts:
        frame = data.frames.broadcast(host)
        stage.advance(1.0)
        assert data.frames.missing(frame) == []


def test_a_link_that_moves_is_followed() -> None:
    """a-b-c with a and c apart; then b-c is cut and a-c opens: everybody still reaches everybody within 5 s."""
    stage, data = formed(4, 3)
    attach_everywhere(stage)

    def cut(pairs: list[tuple[int, int]]) -> None:
        stage.network.block(pairs)

    cut(both_ways((0, 2)))
    busy(stage, 5.0, data)
    frame = data.frames.broadcast(stage.hosts[0])
    stage.advance(0.5)
    assert data.frames.missing(frame) == []
    cut(both_ways((1, 2)))
    stage.network.unblock(both_ways((0, 2)))
    busy(stage, 5.0, data)
    for host in stage.hosts:
        frame = data.frames.broadcast(host)
        stage.advance(0.5)
        assert data.frames.missing(frame) == []


def test_a_restarted_daemon_leaves_everybody_on_the_plane_that_carries() -> None:
    stage, data = formed(5, 3)
    attach_everywhere(stage)
    a, b, _ = stage.hosts
    data.underlay.cut(VXLAN_PORT, both_ways((0, 1)))
    busy(stage, 4.0, data)
    assert use(a, b) is VxlanUse.PROBED
    a.kill()
    a.start()
    for _ in range(80):
        assert use(a, b) is VxlanUse.PROBED
        frame = data.frames.broadcast(a)
        stage.advance(0.1)
        assert data.frames.missing(frame) == []
    assert plane(stage, a, b)[0] == "sleeve"


def test_a_path_that_comes_and_goes_does_not_drag_the_frames_along() -> None:
    stage, data = formed(6, 2)
    attach_everywhere(stage)
    a, b = stage.hosts
    changes, before = 0, use(a, b)
    for _ in range(20):
        cuts = data.underlay.cut(VXLAN_PORT, both_ways((0, 1)))
        busy(stage, 2.5, data)
        data.underlay.mend(cuts)
        for _ in range(25):
            busy(stage, 0.1, data)
            changes += use(a, b) is not before
            before = use(a, b)
    assert changes <= 10
    busy(stage, 10.0, data)
    assert use(a, b) is VxlanUse.CARRIES


def test_a_machine_under_a_new_identity_gets_broadcasts_once() -> None:
    """VXLAN's answers from it are lost: frames for the old identity still arrive there, those for the new one by
    sleeve."""
    stage, data = formed(9, 3)
    sender, machine = stage.hosts[0], stage.hosts[2]
    old = machine.peer
    data.underlay.cut(VXLAN_PORT, [(machine.index, sender.index)])
    machine.lose_disk()
    stage.advance(1.0)
    stage.start(machine)
    stage.until(lambda: {old, machine.peer} <= sender.open_peers, 30, "a path to both identities")
    stage.until(lambda: use(sender, machine) is VxlanUse.PROBED, 30, "sleeve to the new identity")
    stage.advance(2.0)
    frame = data.frames.broadcast(sender)
    stage.advance(1.0)
    assert data.frames.missing(frame) == []


@pytest.mark.parametrize("seed", range(6))
def test_histories_with_faults_end_on_the_best_plane(seed: int) -> None:
    options = draw_options(seed)
    options = replace(options, setup=replace(options.setup, sleeve=True), steps=30)
    _, violation = run_seed(seed, options)
    assert violation is None, str(violation)


def test_without_faults_nothing_falls_back() -> None:
    assert CALM.probe_loss_probability == 0
    stage, data = formed(7, 4)
    for _ in range(60):
        stage.advance(1.0)
        assert all(
            use(host, other) is VxlanUse.CARRIES for host in stage.hosts for other in stage.hosts if other is not host
        )
    frame = data.frames.broadcast(stage.hosts[0])
    stage.advance(1.0)
    assert data.frames.missing(frame) == []
    assert data.frames.relayed == 0


def test_peers_with_another_mtu_are_named() -> None:
    stage = Stage(8, 3)
    odd = stage.hosts[1]
    usual = odd._configure
    odd._configure = lambda host: replace(usual(host), mtu=1400)
    stage.form()
    texts = []
    for host in stage.hosts:
        assert host.node is not None
        texts.append([text for text in host.node.report(host.local_now()).warnings if "MTU" in text])
    assert len(texts[0]) == len(texts[1]) == len(texts[2]) == 1
    assert "MTU 1376 here and 1400 on" in texts[0][0]
    assert "(h1)" in texts[0][0]
    assert "at most 1376" in texts[1][0]
