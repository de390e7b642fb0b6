"""``weave report``: a ``NodeReport`` as the JSON document described in docs/report.md.

Pure. Roots and names are those of the original (``Ready``, ``Version``, ``Router``, ``IPAM``; CamelCase), so that
existing templates and scripts keep working; what the original did not have is added beside it. Keys are only ever
added.
"""

from __future__ import annotations

from weavenet.control.service import Identity
from weavenet.core.limits import PROTOCOL_MAX, PROTOCOL_MIN
from weavenet.core.report import (
    ConnectionReport,
    DnsReport,
    IpamReport,
    NodeReport,
    OwnerReport,
    PeerReport,
    RangeReport,
    RemovedReport,
    TargetReport,
)

Document = dict[str, object]


def document(report: NodeReport, identity: Identity) -> Document:
    """The whole report. ``IPAM`` is absent when address allocation is off, as in the original."""
    content: Document = {
        "Ready": True,
        "Version": identity.version,
        "StartedAt": identity.started_at,
        "Pid": identity.pid,
        "Warnings": list(warnings_of(report)),
        "Router": _router(report, identity),
    }
    if report.ipam.state != "off":
        content["IPAM"] = _ipam(report.ipam)
    content["DNS"] = _dns(report.dns)
    return content


def _dns(dns: DnsReport) -> Document:
    return {
        "Domain": dns.domain,
        "Address": dns.address,
        "TTL": dns.ttl_s,
        "Upstream": list(dns.upstreams),
        "Queries": {
            "Own": dns.queries.own,
            "Forwarded": dns.queries.forwarded,
            "FromCache": dns.queries.from_cache,
            "Stale": dns.queries.stale,
            "Failed": dns.queries.failed,
            "Refused": dns.queries.refused,
            "Malformed": dns.queries.malformed,
            "Dropped": dns.queries.dropped,
            "FalseAnswers": dns.queries.false_answers,
        },
        "Entries": [
            {
                "Hostname": entry.name,
                "Address": entry.address,
                "ContainerID": entry.owner,
                "Origin": entry.origin_name,
                "OriginNickName": entry.origin_nickname,
                "OriginUID": entry.origin,
            }
            for entry in dns.entries
        ],
    }


def reachable_others(report: NodeReport) -> int:
    """Peers that can be reached now, without this one."""
    return sum(1 for peer in report.peers if peer.reachable and peer.peer != report.peer)


def warnings_of(report: NodeReport) -> tuple[str, ...]:
    """The node's own warnings, what is held, and that no target was reached: a node cannot tell whether that is normal
    (the first host of many), a person can."""
    warnings = (*report.warnings, *_held_warnings(report.ipam))
    wanted = [target for target in report.targets if target.state != "self"]
    if not wanted or reachable_others(report):
        return warnings
    count = "the only target" if len(wanted) == 1 else f"any of {len(wanted)} targets"
    return (*warnings, f"no link to {count}; next: `weave status targets` says why")


def _held_warnings(ipam: IpamReport) -> tuple[str, ...]:
    """While somebody waits for a removal the node's warnings tell about it."""
    if ipam.removals or not ipam.held_addresses:
        return ()
    missing = ", ".join(ipam.waiting_for) or "peers that are known"
    return (
        f"{ipam.held_addresses} addresses of removed peers are held until {missing} confirmed; "
        "next: bring those back, or `weave rmpeer` them too",
    )


def _router(report: NodeReport, identity: Identity) -> Document:
    return {
        "Protocol": "weave",
        "ProtocolMinVersion": PROTOCOL_MIN,
        "ProtocolMaxVersion": PROTOCOL_MAX,
        "Encryption": report.encryption,
        "PeerDiscovery": report.discovery,
        "Name": report.name,
        "NickName": report.nickname,
        "UID": report.peer,
        "Incarnation": report.incarnation,
        "Cluster": report.cluster,
        "Port": identity.port,
        "MTU": report.mtu,
        "MTUReason": report.mtu_reason,
        "Peers": [_peer(peer) for peer in report.peers],
        "Connections": [_connection(connection) for connection in report.connections],
        "TerminationCount": report.terminations,
        "Targets": [target.target for target in report.targets],
        "TargetDetails": [_target(target) for target in report.targets],
        "Attachments": report.attachments,
    }


def _peer(peer: PeerReport) -> Document:
    return {
        "Name": peer.name,
        "NickName": peer.nickname,
        "UID": peer.peer,
        "Version": peer.software,
        "Elector": peer.elector,
        "Reachable": peer.reachable,
        "UnreachableSeconds": peer.unreachable_s,
        "Connections": [
            {"Name": name, "NickName": nickname, "Address": address, "Outbound": outbound, "Established": True}
            for name, nickname, address, outbound in peer.neighbours
        ],
    }


def _connection(connection: ConnectionReport) -> Document:
    return {
        "Address": connection.address,
        "Outbound": connection.outbound,
        "State": connection.state,
        "Info": connection.info,
        "Attrs": {
            "name": connection.plane,
            "reason": connection.plane_reason,
            "security": connection.security,
            "linkRTTms": connection.link_rtt_ms,
            "planeRTTms": connection.plane_rtt_ms,
            "planeLossPercent": connection.plane_loss_percent,
        },
        "UID": connection.peer,
        "Name": connection.name,
        "NickName": connection.nickname,
    }


def _target(target: TargetReport) -> Document:
    return {
        "Target": target.target,
        "Origin": target.origin,
        "Addresses": list(target.addresses),
        "State": target.state,
        "Info": target.info,
        "RetryInSeconds": target.retry_in_s,
    }


def _ipam(ipam: IpamReport) -> Document:
    return {
        "Status": ipam.state,
        "Detail": ipam.detail,
        "Paxos": {
            "Elector": ipam.is_elector,
            "KnownNodes": ipam.electors_known,
            "Quorum": ipam.quorum,
            "Electors": list(ipam.electors),
            "Voters": list(ipam.voters),
            "Role": ipam.role,
            "Lease": ipam.lease,
            "Missing": list(ipam.electors_missing),
        },
        **(_range(ipam.ranges[0]) if ipam.ranges else {}),
        "Ranges": [_range(each) for each in ipam.ranges],
        "Segments": ipam.segments,
        "PendingAllocates": list(ipam.pending),
        "Blocked": list(ipam.blocked),
        "Conflicts": list(ipam.conflicts),
        "RemovalState": ipam.removal_state,
        "Removals": list(ipam.removals),
        "Held": list(ipam.held),
        "WaitingFor": list(ipam.waiting_for),
        "Leaving": ipam.leaving,
        "LeavingNeeds": list(ipam.leaving_needs),
        "Removed": [_removed(removed) for removed in ipam.removed],
    }


def _range(report: RangeReport) -> Document:
    return {
        "Range": report.range,
        "RangeNumIPs": report.addresses,
        "ActiveIPs": report.active,
        "DefaultSubnet": report.default_subnet,
        "Entries": [_owner(owner) for owner in report.owners],
        "Unreachable": _unreachable(report),
        "HeldIPs": report.held_addresses,
    }


def _unreachable(report: RangeReport) -> Document:
    """What owners out of reach hold together."""
    absent = [owner for owner in report.owners if owner.unreachable_s is not None]
    return {
        "Peers": len(absent),
        "Size": sum(owner.addresses for owner in absent),
        "Percent": sum(owner.percent for owner in absent),
    }


def _removed(removed: RemovedReport) -> Document:
    return {
        "Peer": removed.name,
        "Nickname": removed.nickname,
        "UID": removed.peer,
        "Heir": removed.heir,
        "HeirName": removed.heir_name,
        "HeirNickname": removed.heir_nickname,
    }


def _owner(owner: OwnerReport) -> Document:
    return {
        "Peer": owner.name,
        "Nickname": owner.nickname,
        "UID": owner.peer,
        "Size": owner.addresses,
        "Percent": owner.percent,
        "IsSelf": owner.is_self,
        "IsKnownPeer": owner.unreachable_s is None,
        "UnreachableSeconds": owner.unreachable_s,
    }
