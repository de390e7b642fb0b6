"""The first division of addresses: equal shares for the owners that a cluster record names.

Everything here is a pure function of the cluster record (or, for ``seed=``, of the operator's words), so every peer
computes the same ring without being told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from weavenet.core.limits import SUBNET_ADDRESSES_MIN
from weavenet.core.ranges import Ranges, base
from weavenet.core.ring.segments import Ring
from weavenet.core.types import GENESIS_POSITION, AddressRange, Genesis, PeerId, Segment, Stamp


def initial_ring(genesis: Genesis) -> Ring:
    """Of each range equal shares in the order of the owners' PeerIds, bounds rounded down to multiples of 4.

    With more owners than blocks of 4 some get nothing and live by grants. Raises ValueError without owners.
    """
    sizes = Ranges.parse(genesis.ranges).sizes
    owners = sorted(set(genesis.owners))
    if not owners:
        raise ValueError("a cluster record without owners would leave every address to nobody")
    return Ring(sizes, [share for number, size in enumerate(sizes) for share in _shares(base(number), size, owners)])


def _shares(start: int, size: int, owners: Sequence[PeerId]) -> Iterator[Segment]:
    step = SUBNET_ADDRESSES_MIN
    whole = -(-size // step) * step  # of a /64, which lacks its last address: its halves still begin where a /65 does
    bounds = [start + whole * index // len(owners) // step * step for index in range(len(owners))] + [start + size]
    for owner, (low, high) in zip(owners, pairwise(bounds), strict=True):
        if low < high:
            yield Segment(low, high, Stamp(GENESIS_POSITION, 1, owner))


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
