"""Explicit addresses outside of the allocation range that more than one container uses, here and elsewhere.

Nobody owns such addresses, so nobody can refuse one; what containers have is announced with their names, and equal ones
are told to people. Those of peers out of reach do not count: a service that was moved by hand keeps its address.

Linear in the announced endpoints, and only while this host uses such an address.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from weavenet.core.messages.gossip import KIND_ENDPOINT, EndpointRecord, record_body
from weavenet.core.names import EXPOSE
from weavenet.core.types import PeerId, without_prefix

if TYPE_CHECKING:
    from weavenet.core.node import Node

SHOWN_MAX = 50

_decoder = msgspec.msgpack.Decoder(EndpointRecord)


def address_conflicts(node: Node) -> tuple[str, ...]:
    """A sentence for each, with what to run here; at most SHOWN_MAX."""
    own = _explicit_addresses(node)
    if not own:
        return ()
    users = {address: [f"{container} on this host" for container, _ in holders] for address, holders in own.items()}
    for peer in sorted(node.planes.peers & node.mesh.reachable()):
        for address in _shared_with(node, peer, own.keys()):
            users[address].append(f"{_holder(node, peer, address)} on {node.membership.named(peer).short_title}")
    found = sorted(address for address, names in users.items() if len(names) > 1)
    return tuple(
        f"{address} is used by {' and by '.join(users[address])}, and only one of them is reached; "
        f"next: {_way_out(*own[address][0])}, or take it from the other"
        for address in found[:SHOWN_MAX]
    )


def _explicit_addresses(node: Node) -> dict[str, list[tuple[str, str]]]:
    """Address without prefix → [(container, address with prefix)] of this host, where it is outside of the range."""
    area = node.ipam.estate.area if node.ipam.estate.is_on else None
    found: dict[str, list[tuple[str, str]]] = {}
    for attachment in node.endpoints.all():
        for text in node.endpoints.shown(attachment.ident):
            address = without_prefix(text)
            if area is None or area.offset(address) is None:
                found.setdefault(address, []).append((attachment.container, text))
    return found


def _shared_with(node: Node, peer: PeerId, addresses: Collection[str]) -> list[str]:
    row = node.planes.get(peer)
    if row is None:
        return []
    announced = (without_prefix(text) for _, texts in row.endpoints for text in texts)
    return [address for address in dict.fromkeys(announced) if address in addresses]


def _holder(node: Node, peer: PeerId, address: str) -> str:
    for body in node.mesh.records_of(peer, KIND_ENDPOINT):
        record = record_body(_decoder, body)
        if record is not None and any(without_prefix(text) == address for text in record.addresses):
            return record.ident
    return "a container"


def _way_out(container: str, text: str) -> str:
    return f"weave hide {text}" if container == EXPOSE else f"weave detach {text} {container}"
