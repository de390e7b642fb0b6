"""Can this talk to that? What a node knows about it, for ``weave explain``.

Reads only. Everything is as seen from this host: what is attached where is announced by each host, the data path to a
peer is measured here. Of a path between two other hosts nothing is known here but that both can be reached.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from weavenet.core.commands import Addresses
from weavenet.core.errors import Code, Failure
from weavenet.core.messages.gossip import KIND_ENDPOINT, EndpointRecord, record_body
from weavenet.core.names import EXPOSE
from weavenet.core.overlay.planes import FASTDP, SLEEVE, WIREGUARD
from weavenet.core.overlay.reporting import measured, plane_of
from weavenet.core.removal.naming import resolve
from weavenet.core.report import NO_PATH, EndReport, Explanation, WayReport
from weavenet.core.types import PeerId, mac_text, peer_text, without_prefix

if TYPE_CHECKING:
    from weavenet.core.node import Node

_SEALED = {
    FASTDP: "not encrypted",
    WIREGUARD: "encrypted by WireGuard",
    SLEEVE: "encrypted from end to end",
}
_NO_NAMES = ("pid-", "netns-", "weave:")
"""Idents of processes, of namespaces given by a path, and of what is no container."""
_decoder = msgspec.msgpack.Decoder(EndpointRecord)


class _End(NamedTuple):
    """``ident``: of the container, ``weave:expose`` for the host itself. ``reference``: what to call it there.
    ``addresses``: CIDR text, none while it is not there."""

    asked: str
    peer: PeerId
    ident: str
    reference: str
    addresses: tuple[str, ...] = ()
    mac: bytes = b""


def explain(node: Node, now: float, source: str, target: str) -> Explanation | Failure:
    """``source``, ``target``: a container of this host, an address, a name, an ident of any host, or a peer."""
    ends = []
    for text in (source, target):
        found = _find(node, text.strip())
        if isinstance(found, Failure):
            return found
        ends.append(found)
    one, other = ends
    verdict, because, next_step = _obstacle(node, now, one, other)
    way = None
    if not verdict:
        verdict, because, next_step, way = _way(node, now, one, other)
    return Explanation(_report(node, one), _report(node, other), verdict, because, next_step, way)


# --- who is meant ---


def _find(node: Node, text: str) -> _End | Failure:
    for end in _own_endpoints(node, text):
        if text in (end.ident, end.reference):
            return end
    addresses: tuple[str, ...]
    try:
        addresses = (str(ipaddress.ip_address(text)),)
    except ValueError:
        named = node.names.lookup(text) if node.config.dns_domain else None
        addresses = named.addresses if isinstance(named, Addresses) else ()
    for address in addresses:
        for end in _endpoints(node, text):
            if any(without_prefix(each) == address for each in end.addresses):
                return end
    if addresses:
        return Failure(
            Code.NOT_FOUND,
            f"expected an address that a container of this network has: {', '.join(addresses)}",
            "no host that is known here has it",
            "see `weave ps` on its host, and `weave status peers`",
        )
    ident = text.removeprefix("netns:")
    found = [end for end in _endpoints(node, text) if end.ident == ident]
    if found:
        return found[0]
    peer = _peer(node, text)
    if not isinstance(peer, Failure):
        exposed = [end for end in _endpoints(node, text) if (end.peer, end.ident) == (peer, EXPOSE)]
        return exposed[0] if exposed else _End(text, peer, EXPOSE, EXPOSE)
    if peer.code is not Code.NOT_FOUND:
        return peer
    return Failure(
        Code.NOT_FOUND,
        "expected a container, an address, a name or a peer",
        f"{text!r} is none that is known here",
        "see `weave ps`, `weave status dns` and `weave status peers`",
    )


def _peer(node: Node, text: str) -> PeerId | Failure:
    """Who is there goes before who is not, has left or was removed: a host comes back as a new peer of the old name."""
    present = {node.config.peer, *node.mesh.reachable()}
    return resolve(text, node.membership.directory(), lambda peer: peer not in present)


def _own_endpoints(node: Node, asked: str) -> Iterator[_End]:
    for attachment in node.endpoints.all():
        shown = node.endpoints.shown(attachment.ident)
        yield _End(asked, node.config.peer, attachment.ident, attachment.container, shown, attachment.mac)


def _endpoints(node: Node, asked: str) -> Iterator[_End]:
    """Everything that is attached anywhere: here, then where somebody is reachable, then elsewhere."""
    me, reachable = node.config.peer, node.mesh.reachable()
    yield from _own_endpoints(node, asked)
    for peer in sorted(node.mesh.known_peers() - {me}, key=lambda peer: (peer not in reachable, peer)):
        for body in node.mesh.records_of(peer, KIND_ENDPOINT):
            record = record_body(_decoder, body)
            if record is not None:
                yield _End(asked, peer, record.ident, _reference(record.ident), record.addresses, record.mac)


def _reference(ident: str) -> str:
    """What a container of another host is called there, of which its ident is told: a named namespace's is its name."""
    return ident if ident.startswith(_NO_NAMES) else f"netns:{ident}"


# --- what is in the way ---


def _obstacle(node: Node, now: float, one: _End, other: _End) -> tuple[str, str, str]:
    """(verdict, why, next step) where it is not a matter of the way; an empty verdict otherwise."""
    for end in (one, other):
        if end.peer not in node.mesh.reachable():
            since = node.mesh.unreachable_since(end.peer)
            for_s = "" if since is None else f" for {max(0.0, now - since):.0f} s"
            why = f"{_host(node, end.peer)} has been out of reach{for_s}"
            return "no", why, "see `weave status connections` and `weave status targets`"
    if (one.peer, one.ident) == (other.peer, other.ident):
        return "yes", "it is the same", ""
    if one.ident == other.ident == EXPOSE and not (one.addresses and other.addresses):
        return "", "", ""  # only whether the hosts reach each other
    for end in (one, other):
        if not end.addresses:
            where = "" if end.peer == node.config.peer else f" on {_host(node, end.peer)}"
            step = f"weave expose{where}" if end.ident == EXPOSE else f"weave attach {end.reference}{where}"
            return "no", f"{_title(end)} has no address on the network now", step
    if not _share_a_subnet(one.addresses, other.addresses):
        subnet = ipaddress.ip_interface(one.addresses[0]).network
        where = "" if other.peer == node.config.peer else f", on {_host(node, other.peer)}"
        verb = "expose" if other.ident == EXPOSE else "attach"
        container = "" if other.ident == EXPOSE else f" {other.reference}"
        return "no", "they have no subnet in common", f"weave {verb} net:{subnet}{container}{where}"
    return "", "", ""


def _share_a_subnet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether each of a pair takes the other for a neighbour, so that no router is asked."""
    ours, theirs = ([ipaddress.ip_interface(text) for text in texts] for texts in (one, other))
    return any(a.version == b.version and b.ip in a.network and a.ip in b.network for a in ours for b in theirs)


# --- the way ---


def _way(node: Node, now: float, one: _End, other: _End) -> tuple[str, str, str, WayReport | None]:
    me = node.config.peer
    if one.peer == other.peer:
        return "yes", f"both are on the bridge of {_host(node, one.peer)}", "", None
    if me not in (one.peer, other.peer):
        step = f"run on {_host(node, one.peer)}: weave explain {one.asked} {other.asked}"
        return "unknown", "neither is on this host, and each host measures only its own paths", step, None
    peer = other.peer if one.peer == me else one.peer
    plane, reason = plane_of(node, now, peer)
    if plane == NO_PATH:
        return "no", f"there is no data path to {_host(node, peer)}: {reason}", "see `weave status connections`", None
    rtt_ms, loss_percent = measured(node, peer)
    record = node.mesh.peer_record(peer)
    mtu = min(node.config.mtu, record.mtu) if record is not None else node.config.mtu
    return "yes", "", "", WayReport(plane, reason, _SEALED[plane], rtt_ms, loss_percent, mtu)


# --- for people ---


def _report(node: Node, end: _End) -> EndReport:
    named = node.membership.named(end.peer)
    names = sorted({entry.name for entry in node.names.directory.of(end.peer) if entry.owner == end.ident})
    return EndReport(
        asked=end.asked,
        peer=peer_text(end.peer),
        peer_name=named.name,
        peer_nickname=named.nickname,
        is_here=end.peer == node.config.peer,
        container=end.reference,
        addresses=end.addresses,
        mac=mac_text(end.mac) if end.mac else "",
        names=tuple(names),
    )


def _host(node: Node, peer: PeerId) -> str:
    if peer == node.config.peer:
        return "this host"
    named = node.membership.named(peer)
    return named.nickname or named.name or peer_text(peer)


def _title(end: _End) -> str:
    return "the host itself" if end.ident == EXPOSE else end.reference
