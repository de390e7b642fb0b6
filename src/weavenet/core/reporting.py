"""Assembling the report of a node: what is true, and first of all what is wrong and what to do about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from weavenet.core.election import turnout
from weavenet.core.limits import MTU_DEFAULT
from weavenet.core.names import EXPOSE
from weavenet.core.overlay.conflicts import address_conflicts
from weavenet.core.overlay.reporting import mtu_warnings, with_plane
from weavenet.core.ranges import RANGE_BITS, Ranges
from weavenet.core.report import (
    NO_PATH,
    ConnectionReport,
    DnsReport,
    IpamReport,
    NameReport,
    NodeReport,
    PeerReport,
    RemovedReport,
)
from weavenet.core.ring.reporting import range_reports
from weavenet.core.types import PeerId, peer_text
from weavenet.core.words import duration, titled

if TYPE_CHECKING:
    from weavenet.core.node import Node


OWNERS_NAMED = 7
"""As many as vote: without a quorum all unreachable voters have to be named."""
ADDRESSES_NAMED = 3
"""In the verdict, of each kind; all of them are in ``status ipam``."""
OBSERVERS_ONLY_S = 30.0
"""A peer that may vote is given so long to turn up before people are told that only observers are there."""


def node_report(node: Node, now: float, *, with_names: bool = True) -> NodeReport:
    """Everything ``weave status`` and ``weave report`` show, at ``now``."""
    config = node.config
    connections = tuple(with_plane(node, now, report) for report in node.mesh.connection_reports(now))
    ipam = _ipam_report(node, now)
    return NodeReport(
        peer=peer_text(config.peer),
        name=config.name,
        nickname=config.nickname,
        incarnation=node.incarnation,
        cluster=node.cluster.id.hex(),
        discovery=config.discovery,
        encryption="TLS 1.3, password" if config.authenticated else "TLS 1.3, unauthenticated (no password)",
        mtu=config.mtu,
        mtu_reason="--mtu" if config.mtu_explicit else f"default {MTU_DEFAULT}: fits VXLAN on a 1460-byte underlay",
        warnings=tuple(_warnings(node, ipam, connections)),
        targets=node.mesh.target_reports(now),
        connections=connections,
        peers=tuple(_with_absence(node, now, report) for report in node.mesh.peer_reports()),
        ipam=ipam,
        attachments=sum(each.live for each in node.endpoints.all() if each.ident != EXPOSE),
        log_length=len(node.log),
        ring_hash=node.ipam.ring_hash.hex(),
        terminations=node.mesh.terminations,
        dns=_dns_report(node, with_names),
    )


def _dns_report(node: Node, with_names: bool) -> DnsReport:
    count = len(node.names.directory)
    if not with_names:
        return DnsReport(node.names.domain, count=count)
    labels: dict[PeerId, tuple[str, str]] = {}
    entries = []
    for entry, origin in node.names.directory.entries():
        if origin not in labels:
            named = node.membership.named(origin)
            labels[origin] = (named.name, named.nickname)
        address = str(ipaddress.ip_address(entry.address))
        entries.append(NameReport(entry.name, address, entry.owner, peer_text(origin), *labels[origin]))
    return DnsReport(node.names.domain, tuple(entries), count=count)


def _with_absence(node: Node, now: float, report: PeerReport) -> PeerReport:
    since = None if report.reachable else node.mesh.unreachable_since(PeerId(bytes.fromhex(report.peer)))
    return report if since is None else msgspec.structs.replace(report, unreachable_s=max(0.0, now - since))


def _ipam_report(node: Node, now: float) -> IpamReport:
    def label(peer: PeerId) -> tuple[str, str]:
        named = node.membership.named(peer)
        return named.name, named.nickname

    def container(ident: str) -> str:
        attachment = node.endpoints.get(ident)
        return attachment.container if attachment is not None else ident

    report = node.ipam.report(now, label=label, unreachable_since=node.mesh.unreachable_since, container=container)
    genesis = node.log.genesis
    electors = node.log.electors if genesis else node.founding.known_electors()
    electorate = node.electorate
    n = len(node.log.voters) if genesis else electorate.n
    membership = node.membership
    removals = membership.removals.reports(now) if genesis else ()
    state, detail = report.state, report.detail
    if node.config.ranges and genesis is None:
        waiting = node.founding.is_wanted or node.founding.is_wanted_elsewhere()
        state = "awaiting consensus" if waiting else "idle"
        detail = _consensus_detail(node, now, len(electors), waiting)
        # Perhaps that of a peer whose operator chose one: it will be divided, whatever we were launched with.
        area = Ranges.parse(node.cluster.ranges)
        report = msgspec.structs.replace(report, ranges=range_reports(area, node.config.default_subnets))
    if node.ipam.seed_share.is_awaited:
        missing = ", ".join(_missing_seeds(node)) or "none, it takes a moment"
        state, detail = "awaiting seeds", f"most seeds that have taken a share, or all others; missing: {missing}"
    return msgspec.structs.replace(
        report,
        state=state,
        detail=detail,
        electors=tuple(_title(node, peer) for peer in electors),
        is_elector=node.membership.roster.is_elector if genesis else node.config.peer in electors,
        quorum=n // 2 + 1 if n else 0,
        electors_known=len(electors),
        electors_missing=() if genesis else node.mesh.missing_targets(),
        voters=tuple(_title(node, peer) for peer in node.log.voters),
        role=membership.roster.role if genesis else "",
        **_lease(node, now),
        removals=removals,
        held=tuple(_held(node)),
        waiting_for=tuple(_title(node, peer) for peer in membership.collect.waiting_for),
        conflicts=address_conflicts(node),
        leaving=_leaving(node),
        leaving_needs=membership.leaving.needs,
        **(_removed(node, report, removals) if genesis else {}),
    )


def _leaving(node: Node) -> str:
    leaving = node.membership.leaving
    return "surrendering" if leaving.is_surrendering else "seeking" if leaving.is_leaving else ""


def _lease(node: Node, now: float) -> dict[str, Any]:
    lease = node.membership.leasing.own
    if not lease.ttl_s:
        return {}
    age_s = lease.age_s(now)
    since = "not renewed yet" if age_s is None else f"renewed by a quorum of the voters {duration(age_s)} ago"
    is_over = lease.is_needed and not lease.may_allocate
    stopped = "" if not is_over else "; no addresses are given out"
    stopped += "" if lease.may_carry else ", data paths are shut"
    return {"lease": f"TTL {duration(lease.ttl_s)}, {since}{stopped}", "is_lease_over": is_over}


def _removed(node: Node, report: IpamReport, removals: tuple[str, ...]) -> dict[str, Any]:
    """Fields of the report about removed peers, and how far unfinished removals are."""
    membership, log = node.membership, node.log
    known = {each.peer: (each.name, each.nickname) for each in membership.directory()}
    known[node.config.peer] = (node.config.name, node.config.nickname)

    def removed(peer: PeerId) -> RemovedReport:
        heir = log.heir(peer)
        return RemovedReport(peer_text(peer), *known.get(peer, ("", "")), peer_text(heir), *known.get(heir, ("", "")))

    ranges = tuple(
        msgspec.structs.replace(each, held_addresses=_held_of(node, number))
        for number, each in enumerate(report.ranges)
    )
    held = sum(each.held_addresses for each in ranges)
    is_waiting = bool(held or removals or membership.collect.waiting_for)
    latest = sorted(log.removed, key=lambda peer: (log.removed[peer][1], peer), reverse=True)
    return {
        "removal_state": "pending" if membership.removals.is_undecided else "held" if is_waiting else "",
        "ranges": ranges,
        "removed": tuple(removed(peer) for peer in latest),
    }


def _held_of(node: Node, number: int) -> int:
    """Addresses of range ``number`` that this peer inherits and cannot use yet."""
    held = sum(high - low for low, high in node.ipam.held if low >> RANGE_BITS == number)
    me, log, shares = node.config.peer, node.log, node.ring.shares_of(number)
    inherited = (owner for owner in shares if owner in log.removed and log.heir(owner) == me)
    return held + sum(shares[owner] for owner in inherited)  # not stamped before everybody has applied the removal


def _consensus_detail(node: Node, now: float, known: int, waiting: bool) -> str:
    if not waiting and not (node.founding.locked is not None and node.founding.locked.failure):
        return "addresses are divided when the first one is needed, or by `weave consense`"
    if node.founding.locked is not None:
        return node.founding.locked.words()
    electorate = node.electorate
    if known == 0 and node.founding.wanted_for(now) < OBSERVERS_ONLY_S:
        return "waiting for a peer that may vote"
    if known == 0:
        return "only observers are reachable; next: launch at least one peer that may vote (without --observer)"
    if not electorate.settled:
        return "trying each target once, to count the electors"
    count = f"quorum {electorate.quorum} of {electorate.n} ({electorate.why(lambda peer: _title(node, peer))})"
    if known >= electorate.quorum:
        return f"{count}, reachable {known}; voting"
    refused = [each for each in node.mesh.connection_reports(now) if each.state == "refused"]
    if refused:
        return f"{count}, reachable {known}; refused: {refused[0].address}: {_without_retry(refused[0].info)}"
    step = f"--ipalloc-init consensus={known}" if electorate.contradicted != known else "--ipalloc-init lock=URL"
    return (
        f"{count}, reachable {known}; it goes on when a target answers; next: if no other elector exists, `weave stop` "
        f"and `weave launch {step}` (or seed=NAMES, lock=URL) here"
    )


def _held(node: Node) -> Iterator[str]:
    """Inherited ranges that are not usable yet."""
    area = node.ipam.estate.area
    waiting = ", ".join(_title(node, peer) for peer in node.membership.collect.waiting_for)
    for low, high in node.ipam.held if area is not None else ():
        if area is not None:
            yield f"{area.address(low)}-{area.address(high - 1)}: {high - low} addresses, held until {waiting} confirms"


def _title(node: Node, peer: PeerId) -> str:
    return node.membership.named(peer).short_title


def _warnings(node: Node, ipam: IpamReport, connections: tuple[ConnectionReport, ...]) -> list[str]:
    warnings: list[str] = []
    warnings += [f"blocked here, since it was lost to another peer: {text}" for text in ipam.blocked[:ADDRESSES_NAMED]]
    if len(ipam.blocked) > ADDRESSES_NAMED:
        more = len(ipam.blocked) - ADDRESSES_NAMED
        warnings.append(f"{more} more addresses are blocked here; next: `weave status ipam` lists them")
    warnings += ipam.conflicts[:ADDRESSES_NAMED]
    if ipam.is_lease_over:
        warnings.append(
            f"this peer is ephemeral and its lease is over ({ipam.lease}); next: bring back a quorum of the voters, "
            "or let it reach them; it goes on by itself, under a new identity if it was removed meanwhile"
        )
    warnings += _minority(node)
    warnings += ipam.removals
    if ipam.leaving:
        text = f"this peer is leaving (`weave reset`): {'; '.join(ipam.leaving_needs) or 'at work'}"
        is_final = ipam.leaving == "surrendering"
        warnings.append(f"{text}, and goes on by itself; next: bring back who is missing" if is_final else text)
    if ipam.state == "awaiting consensus":
        warnings.append(f"no addresses yet: {ipam.detail}")
    elif not node.log.genesis and node.founding.locked is not None and node.founding.locked.failure:
        warnings.append(node.founding.locked.words())  # nobody waits any more, but somebody will
    if ipam.state == "all owners unreachable":
        absent = dict.fromkeys(owner.nickname or owner.peer for owner in ipam.owners if not owner.is_self)
        names = " ".join(list(absent)[:OWNERS_NAMED])
        warnings.append(
            f"no addresses: {ipam.detail}; next: bring an owner back, or if all of them are gone for good: "
            f"weave rmpeer --force {names}"
        )
    genesis = node.log.genesis
    electorate = node.electorate
    if not genesis and electorate.contradicted:
        warnings.append(
            f"--ipalloc-init consensus={electorate.contradicted} is not the count of electors here, which is "
            f"{electorate.n} ({electorate.why(lambda peer: _title(node, peer))}); next: launch all with one count"
        )
    if genesis and node.config.range_explicit and node.config.ranges not in {(), genesis.ranges}:
        warnings.append(
            f"--ipalloc-range {','.join(node.config.ranges)} has no effect: this cluster has divided "
            f"{','.join(genesis.ranges)}; next: launch without --ipalloc-range"
        )
    refused = [report for report in connections if report.state in {"refused", "failed"}]
    for report in refused[:3]:
        warnings.append(f"{report.address}: {_without_retry(report.info)}")
    warnings += node.datapaths.sleeve.warnings
    warnings += mtu_warnings(node)
    warnings += _domain_warnings(node)
    dead = [report for report in connections if report.state == "established" and report.plane == NO_PATH]
    for report in dead[:3]:
        warnings.append(f"no data path to {titled(report.name, report.nickname)}: {report.plane_reason}")
    if node.ipam.seed_share.is_awaited:
        warnings.append(
            f"this seed has a blank store, and takes its share only after meeting {ipam.detail}; next: start them, "
            "`weave rmpeer` those that are gone for good, or launch with --first-start if this is the very first start"
        )
    warnings += _label_warnings(node)
    return warnings


def _without_retry(info: str) -> str:
    """Without when it is tried again, which is no part of the advice after ``next:``."""
    return info.partition("; next attempt in ")[0]


def _minority(node: Node) -> list[str]:
    """Without a quorum of the voters: what works all the same, and what waits."""
    voters = node.log.voters
    missing, lacking = turnout(voters, node.membership.roster.voter_address)
    if node.log.genesis is None or not lacking or node.ipam.seed_share.is_awaited:
        return []
    present = len(voters) - len(missing)
    return [
        f"{present} of {len(voters)} voters within reach, {present + lacking} are needed to decide: what is free here "
        "and at peers within reach is still given out; removals, new electors and the reset of voters wait; next: "
        f"bring back {', '.join(_title(node, voter) for voter in missing)}; if they are gone for good, `weave rmpeer` "
        "says how to go on without them"
    ]


def _domain_warnings(node: Node) -> list[str]:
    elsewhere = sorted(node.names.elsewhere.items())
    if not elsewhere:
        return []
    peers = ", ".join(_title(node, origin) for origin, _ in elsewhere[:OWNERS_NAMED])
    more = f" and {len(elsewhere) - OWNERS_NAMED} more" if len(elsewhere) > OWNERS_NAMED else ""
    return [
        f"names of {peers}{more} are not below {node.names.domain} and not answered here ({elsewhere[0][1]}); "
        "next: launch all with the same --dns-domain"
    ]


def _missing_seeds(node: Node) -> list[str]:
    """Seeds, by name, that are out of reach."""
    records = (node.mesh.peer_record(peer) for peer in node.mesh.reachable())
    present = {record.name for record in records if record is not None} | {node.config.name}
    return [name for name in node.config.seeds if name not in present]


def _told_apart(node: Node, peer: PeerId) -> str:
    return f"{node.membership.named(peer).nickname} {peer_text(peer)[:12]}".strip()


def _label_warnings(node: Node) -> list[str]:
    holders: dict[str, list[PeerId]] = {}
    for peer in sorted(node.mesh.reachable()):
        record = node.mesh.peer_record(peer)
        if record is not None:
            holders.setdefault(record.name, []).append(peer)
    return [
        f"{len(peers)} live peers are named {name} ({', '.join(_told_apart(node, peer) for peer in peers)}): two hosts "
        "were given one name, or the disk of one was copied to the other; next: launch one with another --name"
        for name, peers in holders.items()
        if len(peers) > 1
    ]
