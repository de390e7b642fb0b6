"""``weave status`` and its sub-reports: a ``NodeReport`` as text for people.

Pure. The layout is the original's (labels right-aligned to 15 columns, sections framed by empty lines), with one thing
before it: a verdict that says what is wrong and what to do next. Sub-reports are one line per thing, for ``grep``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from weavenet.control.report import reachable_others, warnings_of
from weavenet.control.service import Identity
from weavenet.core.errors import Failure
from weavenet.core.limits import PROTOCOL_MAX, PROTOCOL_MIN
from weavenet.core.plain import plain
from weavenet.core.report import NO_PATH, ConnectionReport, DnsReport, IpamReport, NodeReport, RangeReport, TargetReport
from weavenet.core.words import duration, titled

_S = TypeVar("_S", bound=msgspec.Struct)
LABEL_COLUMNS = 15
ADDRESSES_SHOWN = 5
REMOVED_SHOWN = 5

_CONNECTION_STATES = ("established", "pending", "retrying", "failed", "connecting", "refused")
_PENDING = {"handshake": "pending"}


def render(report: NodeReport, identity: Identity, section: str = "", *, now: float | None = None) -> str:
    """Text of the summary (``section`` empty) or of one of :data:`SECTIONS`. ``now`` is Unix time, for the uptime."""
    report = harmless(report)
    if section:
        return _RENDERERS[section](report)
    return _summary(report, identity, time.time() if now is None else now)


def render_failure(failure: Failure, identity: Identity, *, now: float | None = None) -> str:
    """What is left of the summary while the daemon does not serve."""
    facts = [("Version", identity.version), ("Uptime", _uptime(identity, time.time() if now is None else now))]
    if identity.log_path:
        facts.append(("Log", identity.log_path))
    return f"\n{_verdict((failure.sentence(),))}\n\n{_labelled(facts)}\n\n"


def _uptime(identity: Identity, now: float) -> str:
    return duration(max(0.0, now - identity.started_at))


def harmless(answer: _S) -> _S:
    """The same without control characters: nicknames, versions and the sentences of refusals are chosen by others, who
    must neither make up lines of an answer nor command the terminal that shows it."""
    return msgspec.convert(_plain(msgspec.to_builtins(answer)), type(answer))


def _plain(value: object) -> object:
    match value:
        case str():
            return plain(value)
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _summary(report: NodeReport, identity: Identity, now: float) -> str:
    blocks = [
        verdict(report),
        _labelled([("Version", identity.version), ("Uptime", _uptime(identity, now))]),
        _labelled(_router(report, identity)),
        _labelled(_ipam_summary(report.ipam)),
        _labelled(_dns_summary(report.dns)),
    ]
    return "\n" + "\n\n".join(blocks) + "\n\n"


def verdict(report: NodeReport) -> str:
    """One line when all is well; else a numbered list of what is wrong, each with its next step on a line of its
    own."""
    warnings = warnings_of(report)
    if not warnings:
        return _labelled([("Verdict", _well(report))])
    return _verdict(warnings)


def _verdict(warnings: Sequence[str]) -> str:
    count = len(warnings)
    lines = [_label("Verdict") + ("1 thing needs attention" if count == 1 else f"{count} things need attention")]
    indent = " " * (LABEL_COLUMNS + 2)
    for number, warning in enumerate(warnings, start=1):
        what, _, step = warning.partition("; next: ")
        lines.append(f"{indent}{number}. {what}")
        if step:
            lines.append(f"{indent}   next: {step}")
    return "\n".join(lines)


def _well(report: NodeReport) -> str:
    others = reachable_others(report)
    if not others and not report.targets:
        return "well; alone so far. Next: `weave launch THIS-HOST` on another host, or `weave connect HOST` here"
    peers = "1 other peer" if others == 1 else f"{others} other peers"
    absent = sum(1 for peer in report.peers if not peer.reachable)
    text = f"well; {peers} reachable"
    if absent:
        text += f", {absent} known but not"
    return f"{text}, no address asked for yet" if report.ipam.state == "idle" else text


def _router(report: NodeReport, identity: Identity) -> list[tuple[str, str]]:
    protocol = str(PROTOCOL_MAX) if PROTOCOL_MIN == PROTOCOL_MAX else f"{PROTOCOL_MIN}..{PROTOCOL_MAX}"
    rows = [
        ("Service", "router"),
        ("Protocol", f"weave {protocol}"),
        ("Name", titled(report.name, report.nickname)),
        ("Encryption", report.encryption),
        ("PeerDiscovery", "enabled" if report.discovery else "disabled"),
        ("Targets", _counted_targets(report.targets)),
        ("Connections", _counted_connections(report.connections)),
        ("Peers", _counted_peers(report)),
        ("MTU", f"{report.mtu} ({report.mtu_reason})" if report.mtu_reason else str(report.mtu)),
        ("Attachments", str(report.attachments)),
    ]
    if identity.log_path:
        rows.append(("Log", identity.log_path))
    return rows


def _counted_targets(targets: Sequence[TargetReport]) -> str:
    states = Counter(target.state for target in targets)
    shown = [f"{count} {state}" for state, count in states.most_common()]
    return f"{len(targets)} ({', '.join(shown)})" if shown else "0"


def _counted_connections(connections: Sequence[ConnectionReport]) -> str:
    states = Counter(_PENDING.get(connection.state, connection.state) for connection in connections)
    shown = [f"{states[state]} {state}" for state in _CONNECTION_STATES if states[state]]
    return f"{len(connections)} ({', '.join(shown)})" if shown else str(len(connections))


def _counted_peers(report: NodeReport) -> str:
    links = sum(len(peer.neighbours) for peer in report.peers if peer.reachable)
    reachable = sum(1 for peer in report.peers if peer.reachable)
    text = f"{reachable} (with {links} established connections)" if links else str(reachable)
    absent = len(report.peers) - reachable
    return f"{text}, {absent} known but unreachable" if absent else text


def _ipam_summary(ipam: IpamReport) -> list[tuple[str, str]]:
    if ipam.state == "off":
        return [("Service", "ipam"), ("Status", "off (--ipalloc-range '')")]
    rows = [
        ("Service", "ipam"),
        ("Status", _ipam_status(ipam)),
        ("Range", ipam.range),
        ("DefaultSubnet", ",".join(each.default_subnet for each in ipam.ranges)),
        ("Active", f"{ipam.active} address{'' if ipam.active == 1 else 'es'} in use on this host"),
    ]
    if ipam.role:
        rows.append(("Role", f"{ipam.role} ({len(ipam.voters)} of {len(ipam.electors)} electors vote)"))
    if ipam.lease:
        rows.append(("Lease", ipam.lease))
    rows += [("Waiting", pending) for pending in ipam.pending[:ADDRESSES_SHOWN]]
    return rows


def _ipam_status(ipam: IpamReport) -> str:
    state = ipam.state
    if state == "awaiting consensus":
        state = f"awaiting consensus (quorum: {ipam.quorum}, known: {ipam.electors_known})"
    return f"{state}: {ipam.detail}" if ipam.detail else state


def _targets(report: NodeReport) -> str:
    if not report.targets:
        return ""
    return _table([_target_row(target) for target in report.targets])


def _target_row(target: TargetReport) -> tuple[str, ...]:
    info = target.info
    if target.retry_in_s is not None:
        info = "; ".join(part for part in (info, f"next try in {duration(target.retry_in_s)}") if part)
    return (
        target.target,
        target.state,
        ",".join(target.addresses[:ADDRESSES_SHOWN]) or "-",
        f"from {target.origin}",
        info,
    )


def _connections(report: NodeReport) -> str:
    width = _width(21, (connection.address for connection in report.connections))
    return "".join(_connection_line(connection, width) for connection in report.connections)


def _width(least: int, texts: Iterable[str]) -> int:
    """Of a column that has the original's width until something in it is longer: an IPv6 address, a name."""
    return max((least, *map(len, texts)))


def _connection_line(connection: ConnectionReport, width: int) -> str:
    arrow = "->" if connection.outbound else "<-"
    start = f"{arrow} {connection.address:<{width}} {connection.state:<11} "
    if connection.state != "established":
        path = ""
        if connection.plane not in ("", NO_PATH):
            path = f"data path: {connection.plane} ({connection.plane_reason})"
        return (start + _joined([connection.info, _known(connection), path])).rstrip() + "\n"
    plane = connection.plane or NO_PATH
    measured = [
        _figure("rtt", connection.link_rtt_ms, "ms"),
        _figure("path-rtt", connection.plane_rtt_ms, "ms"),
        _figure("loss", connection.plane_loss_percent or None, "%"),
    ]
    words = [plane, _known(connection), connection.security, *measured]
    reason = f"({connection.plane_reason})" if connection.plane_reason else ""
    return (start + " ".join(word for word in [*words, reason, connection.info] if word)).rstrip() + "\n"


def _known(connection: ConnectionReport) -> str:
    return titled(connection.name, connection.nickname) if connection.name else ""


def _figure(label: str, value: float | None, unit: str) -> str:
    return "" if value is None else f"{label}={value:.3g}{unit}"


def _peers(report: NodeReport) -> str:
    lines = []
    titles = Counter(titled(peer.name, peer.nickname) for peer in report.peers)
    width = _width(21, (address for peer in report.peers for _, _, address, _ in peer.neighbours))
    for peer in report.peers:
        notes = [
            f"ephemeral, TTL {duration(peer.ttl_s)}" if peer.ttl_s else "" if peer.elector else "not an elector",
            "" if peer.reachable else _absence(peer.unreachable_s),
            "this peer" if peer.peer == report.peer else "",
        ]
        note = _joined(notes)
        title = titled(peer.name, peer.nickname)
        if titles[title] > 1:  # a host that came back as a new peer, and the old one: `rmpeer` takes this
            title += f" {peer.peer}"
        lines.append(f"{title}{f'  [{note}]' if note else ''}\n")
        for name, nickname, address, outbound in peer.neighbours:
            lines.append(f"   {'->' if outbound else '<-'} {address:<{width}} {titled(name, nickname)}\n")
    return "".join(lines)


def _absence(seconds: float | None) -> str:
    return "UNREACHABLE" if seconds is None else f"UNREACHABLE for {duration(seconds)}"


def _ipam(report: NodeReport) -> str:
    ipam = report.ipam
    if ipam.state == "off":
        return "address allocation is off on this peer (--ipalloc-range '')\n"
    lines = [line for each in ipam.ranges for line in _owner_lines(each, "total" if len(ipam.ranges) == 1 else "")]
    head = [("Status", _ipam_status(ipam))]
    for each in ipam.ranges:
        head.append(("Range", f"{each.range} ({each.addresses} addresses)"))
        if each.default_subnet != each.range:
            head.append(("DefaultSubnet", each.default_subnet))
    if ipam.electors or not ipam.owners:
        role = ipam.role or ("elector" if ipam.is_elector else "not an elector")
        head.append(("Quorum", f"{ipam.quorum}, known: {ipam.electors_known}, this peer: {role}"))
    if ipam.electors:
        head.append(("Electors", ", ".join(ipam.electors)))
    if ipam.voters:
        head.append(("Voters", ", ".join(ipam.voters)))
        standby = [elector for elector in ipam.electors if elector not in ipam.voters]
        if standby:
            head.append(("Standby", ", ".join(standby)))
    if ipam.lease:
        head.append(("Lease", ipam.lease))
    if ipam.electors_missing:
        head.append(("Missing", ", ".join(ipam.electors_missing)))
    head += [("Waiting", pending) for pending in ipam.pending]
    head += [("Blocked", blocked) for blocked in ipam.blocked]
    head += [("Conflict", conflict) for conflict in ipam.conflicts]
    head += _removal_rows(ipam)
    return "".join([*lines, "\n" if lines else "", _labelled(head), "\n"])


def _dns(report: NodeReport) -> str:
    """The original's columns: name, address, container, origin."""
    names = [entry.name.removesuffix("." + report.dns.domain) for entry in report.dns.entries]
    of_name, of_address = _width(12, names), _width(15, (entry.address for entry in report.dns.entries))
    return "".join(
        f"{name:<{of_name}} {entry.address:<{of_address}} {entry.owner[:12]:<12} "
        f"{titled(entry.origin_name, entry.origin_nickname) or entry.origin[:12]}\n"
        for name, entry in zip(names, report.dns.entries, strict=True)
    )


def _dns_summary(dns: DnsReport) -> list[tuple[str, str]]:
    return [
        ("Service", "dns"),
        ("Domain", dns.domain),
        ("Address", dns.address or "none: no DNS server runs on this host"),
        *((("Upstream", ", ".join(dns.upstreams) or "none"), ("TTL", str(dns.ttl_s))) if dns.address else ()),
        ("Entries", str(dns.count)),
    ]


def _removal_rows(ipam: IpamReport) -> list[tuple[str, str]]:
    """Removals that are not finished, what is held for whom to confirm, and who was removed."""
    rows = [("Removal", removal) for removal in ipam.removals]
    rows += [("Held", held) for held in ipam.held]
    if ipam.waiting_for and not ipam.held:
        rows.append(("Held", f"{ipam.held_addresses} addresses, until {', '.join(ipam.waiting_for)} confirms"))
    for removed in ipam.removed[:REMOVED_SHOWN]:
        heir = titled(removed.heir_name, removed.heir_nickname) or removed.heir
        who = " ".join(part for part in (titled(removed.name, removed.nickname), removed.peer) if part)
        rows.append(("Removed", f"{who}, heir {heir}"))
    if len(ipam.removed) > REMOVED_SHOWN:
        rows.append(("Removed", f"and {len(ipam.removed) - REMOVED_SHOWN} more, in `weave report`"))
    return rows


def _owner_lines(report: RangeReport, whole: str) -> list[str]:
    """This peer first. ``whole``: what the shares are of, else the range itself."""
    lines = []
    owners = sorted(report.owners, key=lambda owner: (not owner.is_self, owner.name))
    names = [titled(owner.name, owner.nickname) or owner.peer[:12] for owner in owners]
    of_name, of_size = _width(37, names), _width(8, (str(owner.addresses) for owner in owners))
    for name, owner in zip(names, owners, strict=True):
        share = f"{owner.addresses:>{of_size}} IPs ({owner.percent:04.1f}% of {whole or report.range})"
        note = ""
        if owner.is_self:
            note = f" ({report.active} active)"
        elif owner.unreachable_s is not None:
            note = f" - unreachable! (for {duration(owner.unreachable_s)})"
        lines.append(f"{name:<{of_name}} {share}{note}\n")
    return lines


def _label(label: str) -> str:
    return f"{label:>{LABEL_COLUMNS}}: "


def _labelled(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{_label(label)}{value}".rstrip() for label, value in rows)


def _joined(words: Iterable[str]) -> str:
    return ", ".join(word for word in words if word)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


_RENDERERS: dict[str, Callable[[NodeReport], str]] = {
    "targets": _targets,
    "connections": _connections,
    "peers": _peers,
    "dns": _dns,
    "ipam": _ipam,
}
SECTIONS = tuple(_RENDERERS)
