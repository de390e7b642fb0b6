"""How large a cluster is, and the refusal of another one in words that both sides can act on.

The two sides of a link show each other their census in the hello, so both name the same side as the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weavenet.core.errors import RefusalCode
from weavenet.core.mesh.records import Origin
from weavenet.core.messages.gossip import KIND_ENDPOINT
from weavenet.core.messages.link import Hello, Refusal


class Census(msgspec.Struct, frozen=True, order=True):
    """In the order in which they count when the smaller side is looked for. ``addresses``: in use, as far as known
    here; of other peers one per container."""

    addresses: int = 0
    peers: int = 0
    electors: int = 0

    def words(self) -> str:
        addresses = "1 address" if self.addresses == 1 else f"{self.addresses} addresses"
        return f"{_some(self.peers, 'peer')}, {_some(self.electors, 'elector')}, {addresses} in use"


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def containers_of(origins: Iterable[Origin]) -> int:
    """Containers that these peers announce."""
    return sum(len(origin.by_kind.get(KIND_ENDPOINT, {})) for origin in origins)


def foreign(ours: bytes, own: Census, hello: Hello) -> Refusal:
    """Two clusters that divided the addresses separately and are in use: neither gives way by itself."""
    theirs = Census(hello.addresses, hello.peers, hello.electors)
    own_id, other_id = ours.hex()[:12], hello.cluster.hex()[:12]
    smaller = own_id if (own, ours) < (theirs, hello.cluster) else other_id
    return Refusal(
        RefusalCode.CLUSTER,
        f"expected cluster {own_id} ({own.words()}), found cluster {other_id} ({theirs.words()}): each divided the "
        f"addresses for itself; next: on each host of the smaller one, {smaller}, run `weave reset` and then `weave "
        "launch HOST` with a host of the other",
    )
