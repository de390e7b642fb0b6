"""``/metrics``: a ``NodeReport`` as Prometheus text (exposition format 0.0.4), one name per figure of ``weave status``.

Pure, apart from importing prometheus-client at the first scrape: with what it imports it takes 2.7 MB and 20 ms,
which a daemon that nobody scrapes does not pay. Names and labels are described in docs/metrics.md; they are only added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from weavenet.control.report import warnings_of
from weavenet.control.service import Identity
from weavenet.core.report import NO_PATH, ConnectionReport, IpamReport, NodeReport

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Rows = Iterable[tuple[tuple[str, ...], float]]


def render(report: NodeReport | None, identity: Identity) -> bytes:
    """All metrics of this peer at this moment; ``None``: it does not serve, so there is little to say."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(report, identity))
    return generate_latest(registry)


class _Figures:
    """A collector over one report; made anew for each scrape, so nothing is kept between them."""

    def __init__(self, report: NodeReport | None, identity: Identity) -> None:
        self._report = report
        self._identity = identity

    def collect(self) -> Iterator[Metric]:
        report, identity = self._report, self._identity
        yield _single("weave_serving", "1; or 0 while commands are refused, as on a full disk.", report is not None)
        yield _single("weave_start_time_seconds", "Start of the daemon, Unix time.", identity.started_at)
        if report is not None:
            yield from self._of(report, identity)

    def _of(self, report: NodeReport, identity: Identity) -> Iterator[Metric]:
        labels = ("version", "name", "nickname", "peer", "cluster")
        who = (identity.version, report.name, report.nickname, report.peer, report.cluster)
        yield _gauge("weave_peer_info", "Who this is; always 1.", labels, [(who, 1)])
        yield _single("weave_warnings", "Things that need attention: the verdict of weave status.", _warnings(report))
        yield _counts("weave_targets", "Targets by state.", (target.state for target in report.targets))
        yield _counts("weave_connections", "Links by state.", (each.state for each in report.connections))
        yield _counts(
            "weave_peers",
            "Known peers, this one included, by whether they can be reached.",
            ("reachable" if peer.reachable else "unreachable" for peer in report.peers),
        )
        yield _counter("weave_connection_terminations", "Links that ended since the start.", report.terminations)
        yield _single("weave_attachments", "Containers attached on this host.", report.attachments)
        yield _single("weave_decrees", "Length of the decree log.", report.log_length)
        yield _single("weave_dns_entries", "Names with their addresses, of all hosts in reach.", report.dns.count)
        yield from _paths(report.connections)
        if report.ipam.state != "off":
            yield from _ipam(report.ipam)


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for values, figure in rows:
        family.add_metric(values, figure)
    return family


def _counter(name: str, text: str, figure: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, text, value=figure)


def _single(name: str, text: str, figure: float) -> Metric:
    return _gauge(name, text, (), [((), figure)])


def _counts(name: str, text: str, states: Iterable[str]) -> Metric:
    return _gauge(name, text, ("state",), [((state,), count) for state, count in sorted(Counter(states).items())])


def _warnings(report: NodeReport) -> int:
    return len(warnings_of(report))


def _paths(connections: tuple[ConnectionReport, ...]) -> Iterator[Metric]:
    """Of established links, by peer."""
    established = [each for each in connections if each.state == "established" and each.peer]
    labels = ("peer", "name", "nickname")
    named = [((each.peer, each.name, each.nickname), each) for each in established]
    yield _gauge(
        "weave_path_info",
        "Data path in use to a peer; always 1.",
        (*labels, "plane"),
        [((*who, each.plane or NO_PATH), 1) for who, each in named],
    )
    yield _gauge(
        "weave_link_round_trip_seconds",
        "Round trip on the control link.",
        labels,
        [(who, each.link_rtt_ms / 1e3) for who, each in named if each.link_rtt_ms is not None],
    )
    yield _gauge(
        "weave_path_round_trip_seconds",
        "Round trip on the data path.",
        labels,
        [(who, each.plane_rtt_ms / 1e3) for who, each in named if each.plane_rtt_ms is not None],
    )
    yield _gauge(
        "weave_path_loss_ratio",
        "Heartbeats lost on the data path, 0 to 1.",
        labels,
        [(who, each.plane_loss_percent / 100) for who, each in named if each.plane_loss_percent is not None],
    )


def _ipam(ipam: IpamReport) -> Iterator[Metric]:
    who = ("peer", "name", "nickname")
    owners = {(owner.peer, owner.name, owner.nickname): owner for owner in ipam.owners}
    yield _gauge("weave_ipam_state", "State of address allocation; always 1.", ("state",), [((ipam.state,), 1)])
    yield _gauge(
        "weave_ipam_owned_addresses",
        "Share of each owner.",
        ("range", *who),
        [
            ((each.range, owner.peer, owner.name, owner.nickname), owner.addresses)
            for each in ipam.ranges
            for owner in each.owners
        ],
    )
    yield _gauge(
        "weave_ipam_owner_absent_seconds",
        "How long an owner has been out of reach.",
        who,
        [(peer, owner.unreachable_s) for peer, owner in owners.items() if owner.unreachable_s is not None],
    )
    lost = [sum(owner.addresses for owner in each.owners if owner.unreachable_s is not None) for each in ipam.ranges]
    shares = [size / each.addresses for size, each in zip(lost, ipam.ranges, strict=True)]
    figures = (
        ("weave_ipam_range_addresses", "Addresses of the whole range.", [each.addresses for each in ipam.ranges]),
        ("weave_ipam_unreachable_addresses", "Addresses whose owners are out of reach.", lost),
        ("weave_ipam_unreachable_ratio", "The same as a share of the range, 0 to 1.", shares),
        ("weave_ipam_active_addresses", "Addresses in use on this host.", [each.active for each in ipam.ranges]),
        (
            "weave_ipam_held_addresses",
            "Inherited addresses that are not usable yet.",
            [each.held_addresses for each in ipam.ranges],
        ),
    )
    for name, text, found in figures:
        ranges = [(each.range,) for each in ipam.ranges]
        yield _gauge(name, text, ("range",), list(zip(ranges, found, strict=True)))
    yield _single("weave_ipam_blocked_addresses", "Addresses lost to another peer, blocked here.", len(ipam.blocked))
    yield _single(
        "weave_ipam_conflicts", "Addresses outside of the range, used here twice or elsewhere too.", len(ipam.conflicts)
    )
    yield _single("weave_ipam_pending_requests", "Requests that wait for addresses.", len(ipam.pending))
    yield _single("weave_ipam_pending_removals", "Removals asked for here and not finished.", len(ipam.removals))
    yield _single("weave_ipam_segments", "Segments of the ring.", ipam.segments)
    yield _single("weave_ipam_electors", "Electors.", len(ipam.electors))
    yield _single("weave_ipam_voters", "Electors that vote now.", len(ipam.voters))
