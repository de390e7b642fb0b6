"""What the mesh says about itself in ``weave status targets``, ``connections`` and ``peers``."""

from __future__ import annotations

from collections.abc import Callable

from weavenet.core.errors import RefusalCode
from weavenet.core.mesh.dialing import Address, AddressOutcome, Aim, Dialer
from weavenet.core.mesh.failures import InboundFailures
from weavenet.core.mesh.links import Link, Links, LinkState
from weavenet.core.mesh.surroundings import Surroundings
from weavenet.core.messages.gossip import PeerRecord
from weavenet.core.report import ConnectionReport, PeerReport, TargetReport
from weavenet.core.types import PeerId, peer_text

RecordOf = Callable[[PeerId], PeerRecord | None]

_LINK_STATES = {LinkState.GREETING: "handshake", LinkState.AGREED: "handshake", LinkState.ESTABLISHED: "established"}
_FAILED_CODES = frozenset({None, RefusalCode.SLOW, RefusalCode.SILENT, RefusalCode.MALFORMED, RefusalCode.STOPPING})


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _retry_in(now: float, at: float) -> float:
    return max(0.0, round(at - now, 1))


# --- targets ---


def target_reports(now: float, dialer: Dialer) -> tuple[TargetReport, ...]:
    return tuple(_target_report(now, dialer, aim) for aim in dialer.aims.values())


def _target_report(now: float, dialer: Dialer, aim: Aim) -> TargetReport:
    addresses = [dialer.addresses[endpoint] for endpoint in aim.addresses]
    state, info, retry_in_s = _target_state(now, dialer, aim, addresses)
    texts = tuple(address_text(address.host, address.port) for address in addresses)
    return TargetReport(aim.text, aim.origin, texts, state, info, retry_in_s)


def _target_state(now: float, dialer: Dialer, aim: Aim, addresses: list[Address]) -> tuple[str, str, float | None]:
    if not addresses:
        if aim.error and not aim.resolving:
            return "unresolved", aim.error, _retry_in(now, aim.retry_at)
        return "resolving", aim.error, None
    others = [address for address in addresses if not dialer.is_self(address)]
    if not others:
        return "self", "this is ourselves", None
    connected = sum(dialer.is_connected(address) for address in others)
    if connected:
        return "connected", f"{connected} of {len(others)} addresses" if len(others) > 1 else "", None
    if any(address.is_busy for address in others):
        return "connecting", next((address.info for address in others if address.info), ""), None
    nearest = min(others, key=lambda address: address.next_at)
    return "waiting", nearest.info, _retry_in(now, nearest.next_at)


def missing_targets(dialer: Dialer) -> tuple[str, ...]:
    missing = []
    for aim in dialer.aims.values():
        addresses = [dialer.addresses[endpoint] for endpoint in aim.addresses]
        if not any(dialer.is_self(address) or dialer.is_connected(address) for address in addresses):
            missing.append(aim.text)
    return tuple(missing)


# --- connections ---


def connection_reports(
    now: float, links: Links, dialer: Dialer, failures: InboundFailures, record_of: RecordOf
) -> tuple[ConnectionReport, ...]:
    """Links that are up or coming, then addresses that are not connected, then who failed to connect to us."""
    found = [_link_report(link) for link in links.by_id.values() if link.state in _LINK_STATES]
    for address in dialer.addresses.values():
        report = _address_report(now, dialer, address, record_of)
        if report is not None:
            found.append(report)
    for failure in failures.recent(now):
        state = "failed" if failure.code in _FAILED_CODES else "refused"
        where = address_text(failure.host, failure.port)
        who = (failure.peer, failure.name, failure.nickname)
        found.append(_report(where, False, state, failure.sentence, who))
    return tuple(found)


def _report(
    address: str,
    outbound: bool,
    state: str,
    info: str,
    who: tuple[str, str, str],
    *,
    security: str = "",
    rtt_ms: float | None = None,
) -> ConnectionReport:
    peer, name, nickname = who
    return ConnectionReport(
        address=address,
        outbound=outbound,
        state=state,
        info=info,
        peer=peer,
        name=name,
        nickname=nickname,
        security=security,
        plane="",
        plane_reason="",
        link_rtt_ms=rtt_ms,
        plane_rtt_ms=None,
        plane_loss_percent=None,
    )


def _link_report(link: Link) -> ConnectionReport:
    return _report(
        address_text(link.host, link.port),
        link.outbound,
        _LINK_STATES[link.state],
        link.info,
        (peer_text(link.peer), link.name, "" if link.hello is None else link.hello.nickname),
        security=f"password line {link.password_line}" if link.password_line else "unauthenticated",
        rtt_ms=None if link.rtt_s is None else round(link.rtt_s * 1000, 3),
    )


def _address_report(now: float, dialer: Dialer, address: Address, record_of: RecordOf) -> ConnectionReport | None:
    if address.link is not None or dialer.is_self(address) or dialer.is_connected(address):
        return None
    peer, name, nickname = "", "", ""
    if address.peer is not None:
        record = record_of(address.peer)
        peer = peer_text(address.peer)
        name, nickname = (record.name, record.nickname) if record is not None else ("", "")
    state = "connecting"
    info = address.info
    if address.outcome is AddressOutcome.REFUSED:
        state = "refused"
    elif address.outcome is AddressOutcome.FAILED and address.dial is None:
        state = "retrying"
    if address.dial is None and address.outcome is not AddressOutcome.UNKNOWN:
        info = f"{info}; next attempt in {_retry_in(now, address.next_at):.0f} s"
    return _report(address_text(address.host, address.port), True, state, info, (peer, name, nickname))


# --- peers ---


def peer_reports(origins: list[PeerId], around: Surroundings, own_links: Links, own: PeerId) -> tuple[PeerReport, ...]:
    """Everybody whose records are held, with the links each of them reports."""
    reachable = around.routes.reachable()
    record_of = around.peer_record
    found = []
    for peer in origins:
        record = record_of(peer)
        if record is None:
            continue
        neighbours: list[tuple[PeerId, str, int, bool]] = (
            [(link.peer, *link.listening, link.outbound) for link in own_links.established()]
            if peer == own
            else [(near.peer, near.host, near.port, near.outbound) for near in around.neighbours_of(peer)]
        )
        found.append(
            PeerReport(
                peer=peer_text(peer),
                name=record.name,
                nickname=record.nickname,
                software=record.software,
                elector=record.elector or bool(record.votes_as),
                reachable=peer in reachable,
                neighbours=tuple(_neighbour(record_of, *neighbour) for neighbour in neighbours),
                ttl_s=record.ttl_s,
            )
        )
    return tuple(found)


def _neighbour(record_of: RecordOf, peer: PeerId, host: str, port: int, outbound: bool) -> tuple[str, str, str, bool]:
    record = record_of(peer)
    name, nickname = (record.name, record.nickname) if record is not None else (peer_text(peer), "")
    return name, nickname, address_text(host, port), outbound
