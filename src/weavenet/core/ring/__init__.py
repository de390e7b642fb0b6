"""Who owns which addresses: the ring, the decree log, and this peer's part in both.

``segments`` and ``log`` are the replicated state, ``genesis`` the first division, ``free`` a set of intervals. ``ipam``
composes the rest: ``subnets`` (what was asked for), ``holdings`` (who uses what here), ``space`` (what we may use),
``granting`` and ``seeking`` (space between peers), ``pages`` (a ring as it is sent), ``reporting`` (words for people).
"""

from __future__ import annotations

from weavenet.core.ring.free import FreeSpace
from weavenet.core.ring.genesis import initial_ring, seed_genesis, seed_owner
from weavenet.core.ring.ipam import Ipam
from weavenet.core.ring.log import Chain, Log, LogInvalid, genesis_entry
from weavenet.core.ring.segments import Ring, SegmentsInvalid

__all__ = [
    "Chain",
    "FreeSpace",
    "Ipam",
    "Log",
    "LogInvalid",
    "Ring",
    "SegmentsInvalid",
    "genesis_entry",
    "initial_ring",
    "seed_genesis",
    "seed_owner",
]
