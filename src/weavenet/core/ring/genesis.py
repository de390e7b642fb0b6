"""The first division of addresses: equal shares for the owners that a cluster record names.

Everything here is a pure function of the cluster record (or, for ``seed=``, of the operator's words), so every peer
computes the same ring without being told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from weavenet.core.limits import SUBNET_ADDRESSES_MIN
from weavenet.core.ring.segments import Ring
from weavenet.core.types import GENESIS_POSITION, AddressRange, Genesis, PeerId, Segment, Stamp


def initial_ring(genesis: Genesis, range_index: int = 0) -> Ring:
    """Equal shares in the order of the owners' PeerIds, bounds rounded down to multiples of 4.

    With more owners than blocks of 4 some get nothing and live by grants. Raises ValueError without owners.
    """
    size = AddressRange.parse(genesis.ranges[range_index]).size
    owners = sorted(set(genesis.owners))
    if not owners:
        raise ValueError("a cluster record without owners would leave every address to nobody")
    step = SUBNET_ADDRESSES_MIN
    bounds = [size * index // len(owners) // step * step for index in range(len(owners))] + [size]
    return Ring(
        size,
        [
            Segment(low, high, Stamp(GENESIS_POSITION, 1, owner))
            for owner, low, high in zip(owners, bounds, bounds[1:], strict=False)
            if low < high
        ],
    )


def seed_owner(name: str, salt: bytes) -> PeerId:
    """The virtual id that owns the share of the seed ``name`` until the peer of that name binds it."""
    return PeerId(hashlib.sha256(b"weave seed owner\0" + msgspec.msgpack.encode((salt, name))).digest()[:16])


def seed_genesis(names: Sequence[str], ranges: Sequence[str], salt: bytes) -> Genesis:
    """The cluster record that ``seed=names`` means. ``salt`` is the public fingerprint of the password's CA.

    Equal words give equal records on every peer; names in any order, repeated or not, are the same words.
    Raises ValueError for an unparsable range.
    """
    canonical_ranges = tuple(AddressRange.parse(text).cidr for text in ranges)
    ordered = tuple(sorted(set(names)))
    words = msgspec.msgpack.encode((ordered, canonical_ranges, salt))
    owners = tuple(sorted(seed_owner(name, salt) for name in ordered))
    return Genesis(
        cluster=hashlib.sha256(b"weave seed cluster\0" + words).digest()[:16],
        ranges=canonical_ranges,
        electors=owners,
        owners=owners,
    )
