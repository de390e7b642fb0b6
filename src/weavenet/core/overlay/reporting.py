"""Which plane a connection is on, and why: for ``weave status connections``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from weavenet.core.limits import VXLAN_PORT
from weavenet.core.overlay.choice import in_common
from weavenet.core.overlay.openplanes import OpenPlane
from weavenet.core.overlay.paths import PathState
from weavenet.core.overlay.planes import FASTDP, SLEEVE, WIREGUARD
from weavenet.core.report import NO_PATH, ConnectionReport
from weavenet.core.types import PeerId
from weavenet.core.words import titled

if TYPE_CHECKING:
    from weavenet.core.node import Node

VXLAN_IPV4_BYTES, VXLAN_IPV6_BYTES = 50, 70
"""Around the packets of containers: Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40 (RFC 7348)."""
UDP_IPV4_BYTES, UDP_IPV6_BYTES = 28, 48


def with_plane(node: Node, now: float, report: ConnectionReport) -> ConnectionReport:
    """``report`` of a link, with the data path that its peer is on."""
    if not report.peer:
        return report
    peer = PeerId(bytes.fromhex(report.peer))
    plane, reason = plane_of(node, now, peer)
    rtt_ms, loss_percent = measured(node, peer)
    return msgspec.structs.replace(
        report, plane=plane, plane_reason=reason, plane_rtt_ms=rtt_ms, plane_loss_percent=loss_percent
    )


def measured(node: Node, peer: PeerId) -> tuple[float | None, float | None]:
    """Round trip in ms and loss in percent of the heartbeats on the plane that ``peer`` is on; None where unknown."""
    row, path = node.planes.get(peer), node.datapaths.sleeve.path(peer)
    if row is None or row.plane != SLEEVE:
        return node.paths.rtt_ms(peer), node.paths.loss_percent(peer)
    if path is None or not path.works:
        return None, None
    return None if path.rtt_s is None else round(path.rtt_s * 1000, 3), round(path.loss * 100, 1)


def mtu_warnings(node: Node) -> list[str]:
    """A sentence when peers have another MTU than this one: what does not fit where it arrives is lost there."""
    others: dict[int, list[str]] = {}
    for peer in sorted(node.mesh.reachable() - {node.config.peer}):
        record = node.mesh.peer_record(peer)
        if record is not None and record.mtu != node.config.mtu:
            others.setdefault(record.mtu, []).append(titled(record.name, record.nickname))
    return [
        f"containers have MTU {node.config.mtu} here and {mtu} on {', '.join(names[:3])}"
        f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}, where larger packets are lost; "
        f"next: launch all with the same --mtu, at most {min(mtu, node.config.mtu)}"
        for mtu, names in sorted(others.items())
    ]


def plane_of(node: Node, now: float, peer: PeerId) -> tuple[str, str]:
    """(plane in use or ``no data path``, why)."""
    record = node.mesh.peer_record(peer)
    row = node.planes.get(peer)
    if not node.config.planes:
        return NO_PATH, "fastdp is off here (--no-fastdp)"
    if record is not None and not in_common(node.config.planes, record.planes):
        return NO_PATH, "fastdp is off there (--no-fastdp)"
    if row is None:
        return NO_PATH, "waiting until both sides have merged ring and log"
    why = _why_not_fastdp(node, now, peer, row)
    if row.plane == WIREGUARD:
        match node.datapaths.plane_state(now, peer, WIREGUARD):
            case PathState.WORKING:
                return WIREGUARD, "; ".join(text for text in ("VXLAN over WireGuard answers", why) if text)
            case PathState.BROKEN:
                return NO_PATH, _why_not_wireguard(node, now, peer, row) or why
            case _:
                return WIREGUARD, f"VXLAN over WireGuard to {row.host}, first heartbeat not answered yet"
    why = "; ".join(text for text in (why, _why_not_wireguard(node, now, peer, row)) if text)
    if row.plane == SLEEVE:
        state = node.datapaths.plane_state(now, peer, SLEEVE)
        if state is PathState.BROKEN:
            return NO_PATH, "; ".join(text for text in (why, _why_not_sleeve(node, peer)) if text)
        return SLEEVE, "; ".join(text for text in (_way(node, peer), why) if text)
    match node.datapaths.plane_state(now, peer, FASTDP):
        case PathState.WORKING:
            return FASTDP, "VXLAN answers"
        case PathState.BROKEN:
            return NO_PATH, why
        case _:
            return FASTDP, f"VXLAN to {row.host}, first heartbeat not answered yet"


def _why_not_fastdp(node: Node, now: float, peer: PeerId, row: OpenPlane) -> str:
    record = node.mesh.peer_record(peer)
    if FASTDP not in node.config.planes:
        return "fastdp is off here (--no-fastdp)"
    if record is not None and FASTDP not in record.planes:
        return "fastdp is off there (--no-fastdp)"
    if node.datapaths.must_seal(peer):
        return "encrypted, since there is a password and not both ends have the other in --trusted-subnets"
    if node.datapaths.plane_state(now, peer, FASTDP) is PathState.BROKEN:
        return _why_broken(node, peer, row.host)
    return ""


def _why_not_wireguard(node: Node, now: float, peer: PeerId, row: OpenPlane) -> str:
    """Empty where it is not to be expected, or could be used."""
    record, wireguard = node.mesh.peer_record(peer), node.datapaths.wireguard
    if record is None or row.is_vxlan_allowed or WIREGUARD not in in_common(node.config.planes, record.planes):
        return ""
    if not wireguard.is_running:
        return "WireGuard does not run here"
    offered = wireguard.record(peer)
    if offered is None:
        return "WireGuard does not run there"
    if row.tunnel is None:
        return "WireGuard cannot be used, since another peer has the same tunnel address"
    if node.datapaths.plane_state(now, peer, WIREGUARD) is PathState.BROKEN:
        return f"no answer over WireGuard on UDP {offered.port} to {row.host}: is it filtered?"
    return ""


def _why_broken(node: Node, peer: PeerId, host: str) -> str:
    is_ipv6 = ":" in host
    needed = node.config.mtu + (VXLAN_IPV6_BYTES if is_ipv6 else VXLAN_IPV4_BYTES)
    path = node.datapaths.sleeve.path(peer)
    if path is not None and path.works and path.endpoint is not None:
        takes = path.datagram_bytes + (UDP_IPV6_BYTES if is_ipv6 else UDP_IPV4_BYTES)
        if takes < needed:
            return f"the path to {host} takes packets of {takes} bytes, VXLAN needs {needed} at MTU {node.config.mtu}"
    return f"no answer on UDP {VXLAN_PORT} to {host}: is it filtered?"


def _why_not_sleeve(node: Node, peer: PeerId) -> str:
    sleeve = node.datapaths.sleeve
    if not sleeve.is_running:
        return "the sleeve worker does not run here"
    if sleeve.record(peer) is None:
        return "no sleeve worker runs there"
    return f"no answer on UDP {node.config.port} either, directly or over other peers"


def _way(node: Node, peer: PeerId) -> str:
    sleeve = node.datapaths.sleeve
    path, relay = sleeve.path(peer), sleeve.relay(peer)
    if path is not None and path.works and path.endpoint is not None:
        host = f"[{path.endpoint.host}]" if ":" in path.endpoint.host else path.endpoint.host
        return f"direct to {host}:{path.endpoint.port}"
    if relay is not None:
        record = node.mesh.peer_record(relay)
        return f"relayed by {record.nickname if record is not None else relay.hex()[:12]}"
    return "first heartbeat not answered yet"
