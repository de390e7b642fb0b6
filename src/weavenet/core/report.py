"""What a node says about itself: the source of ``weave status``, ``weave report`` and metrics.

Values are text or numbers ready for people and JSON; peers carry hex PeerId, label and nickname.
"""

from __future__ import annotations

import msgspec

NO_PATH = "no data path"
"""In place of a plane."""


class TargetReport(msgspec.Struct, frozen=True):
    """``state``: resolving, connecting, connected, waiting, self, unresolved. ``origin``: conf, cli."""

    target: str
    origin: str
    addresses: tuple[str, ...]
    state: str
    info: str
    retry_in_s: float | None


class ConnectionReport(msgspec.Struct, frozen=True):
    """``state``: connecting, handshake, established, retrying, failed, refused. ``plane``: data path in use, e.g.
    ``fastdp``, or ``no data path``; ``plane_reason`` says why. ``security``: ``unauthenticated`` or ``password line
    N``."""

    address: str
    outbound: bool
    state: str
    info: str
    peer: str
    name: str
    nickname: str
    security: str
    plane: str
    plane_reason: str
    link_rtt_ms: float | None
    plane_rtt_ms: float | None
    plane_loss_percent: float | None


class PeerReport(msgspec.Struct, frozen=True):
    peer: str
    name: str
    nickname: str
    software: str
    elector: bool
    reachable: bool
    neighbours: tuple[tuple[str, str, str, bool], ...]
    """(name, nickname, address, outbound) of each link the peer reports."""
    unreachable_s: float | None = None
    """Seconds since it was last reachable, None while it is."""
    ttl_s: int = 0
    """Of an ephemeral peer: it is removed by itself when it was gone for this long."""


class OwnerReport(msgspec.Struct, frozen=True):
    """``unreachable_s``: seconds since this owner was last reachable, None while it is."""

    peer: str
    name: str
    nickname: str
    addresses: int
    percent: float
    is_self: bool
    unreachable_s: float | None


class RemovedReport(msgspec.Struct, frozen=True):
    """A peer that was removed for good, and who stands for it now. Names are empty when nobody here met it since the
    start."""

    peer: str
    name: str
    nickname: str
    heir: str
    heir_name: str
    heir_nickname: str


class RangeReport(msgspec.Struct, frozen=True):
    """One of the ranges that the cluster divides. ``active``: addresses in use on this host. ``held_addresses``: how
    many inherited ones are not usable yet, those included that are not stamped as ours so far."""

    range: str
    addresses: int
    default_subnet: str
    active: int = 0
    owners: tuple[OwnerReport, ...] = ()
    held_addresses: int = 0


class IpamReport(msgspec.Struct, frozen=True):
    """``state``: ready, idle, awaiting consensus, awaiting seeds, waiting for space, all owners unreachable, off.
    ``ranges``: at most one per address family; none when it is off."""

    state: str
    detail: str
    ranges: tuple[RangeReport, ...]
    electors: tuple[str, ...]
    is_elector: bool
    quorum: int
    electors_known: int
    electors_missing: tuple[str, ...]
    pending: tuple[str, ...]
    blocked: tuple[str, ...]
    segments: int
    voters: tuple[str, ...] = ()
    """Those of the electors that vote on decrees now."""
    lease: str = ""
    """Of an ephemeral peer: its TTL and how its lease stands."""
    is_lease_over: bool = False
    """It gives out no addresses and lets nothing through its data paths."""
    role: str = ""
    """Of this peer: voter, standby, or neither; empty before genesis."""
    removals: tuple[str, ...] = ()
    """Each a removal asked for here and not finished, with what it waits for."""
    held: tuple[str, ...] = ()
    """Inherited ranges that are not usable yet."""
    waiting_for: tuple[str, ...] = ()
    """Peers whose confirmation a removal waits for."""
    removal_state: str = ""
    """``pending`` while a removal asked for here is not decided, ``held`` while what the removed owned waits for
    confirmations, else empty."""
    removed: tuple[RemovedReport, ...] = ()
    """The latest removal first."""
    conflicts: tuple[str, ...] = ()
    """Addresses outside of the range that are used here and elsewhere; each with the next step."""
    leaving: str = ""
    """``seeking`` while `weave reset` may still be given up, ``surrendering`` when not, else empty."""
    leaving_needs: tuple[str, ...] = ()
    """What leaving waits for; each a clause."""

    @property
    def range(self) -> str:
        """All ranges, as given to ``--ipalloc-range``."""
        return ",".join(each.range for each in self.ranges)

    @property
    def active(self) -> int:
        """Addresses in use on this host."""
        return sum(each.active for each in self.ranges)

    @property
    def owners(self) -> tuple[OwnerReport, ...]:
        """Of every range, one after the other."""
        return tuple(owner for each in self.ranges for owner in each.owners)

    @property
    def held_addresses(self) -> int:
        """How many inherited addresses are not usable yet."""
        return sum(each.held_addresses for each in self.ranges)


class NameReport(msgspec.Struct, frozen=True):
    """One name of one address. ``owner``: the ident of a container, ``weave:external`` or ``weave:expose``.
    ``origin``: hex PeerId of the host that registered it."""

    name: str
    address: str
    owner: str
    origin: str
    origin_name: str
    origin_nickname: str


class DnsQueries(msgspec.Struct, frozen=True):
    """How the DNS server of this host answered since it started. ``own``: names of the network, and what was asked
    before. ``stale``: answers whose time was over, for want of others. ``failed``: SERVFAIL, ``refused`` of them for
    want of room. ``malformed``: FORMERR; ``dropped``: no queries at all. ``false_answers``: what upstreams, or others
    in their name, sent that was not believed."""

    own: int = 0
    forwarded: int = 0
    from_cache: int = 0
    stale: int = 0
    failed: int = 0
    refused: int = 0
    malformed: int = 0
    dropped: int = 0
    false_answers: int = 0


class DnsReport(msgspec.Struct, frozen=True):
    """``entries``: of hosts that can be reached, by name, if they were asked for; ``count`` of them. ``address``: where
    the DNS server of this host answers its containers; empty when there is none. ``upstreams``: whom it asks about
    other names. (All about the server is filled in by the daemon.)"""

    domain: str
    entries: tuple[NameReport, ...] = ()
    address: str = ""
    ttl_s: int = 0
    upstreams: tuple[str, ...] = ()
    queries: DnsQueries = DnsQueries()
    count: int = 0


class EndReport(msgspec.Struct, frozen=True):
    """One end of what ``weave explain`` was asked about. ``asked``: as given. ``container``: what it is called on its
    host, ``weave:expose`` for the host itself. ``addresses``: CIDR text, none while it is not there."""

    asked: str
    peer: str
    peer_name: str
    peer_nickname: str
    is_here: bool
    container: str
    addresses: tuple[str, ...]
    mac: str
    names: tuple[str, ...]


class WayReport(msgspec.Struct, frozen=True):
    """The data path between two hosts. ``plane`` and ``reason`` as of a connection; ``encryption``: words."""

    plane: str
    reason: str
    encryption: str
    rtt_ms: float | None
    loss_percent: float | None
    mtu: int


class Explanation(msgspec.Struct, frozen=True):
    """``verdict``: yes, no or unknown. ``because``: why, where there is no ``way``. ``next_step``: what to run then."""

    source: EndReport
    target: EndReport
    verdict: str
    because: str
    next_step: str
    way: WayReport | None


class NodeReport(msgspec.Struct, frozen=True):
    peer: str
    name: str
    nickname: str
    incarnation: int
    cluster: str
    discovery: bool
    encryption: str
    mtu: int
    mtu_reason: str
    warnings: tuple[str, ...]
    """Each a full sentence with the next step; the verdict of ``weave status``."""
    targets: tuple[TargetReport, ...]
    connections: tuple[ConnectionReport, ...]
    peers: tuple[PeerReport, ...]
    ipam: IpamReport
    attachments: int
    log_length: int
    ring_hash: str
    terminations: int
    dns: DnsReport = DnsReport("")
