"""What the mesh needs from the rest of the node: ring, log and admission, seen from outside.

The mesh replicates them without understanding them. Whatever ``merge_*`` takes in is persisted through the common
outbox before it returns, so the forwarding that follows is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.link import Hello, Refusal
from weavenet.core.types import ZERO8, LogEntry, PeerId


class HelloFields(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a :class:`Hello` that is about the cluster."""

    cluster: bytes = b""
    ranges: tuple[str, ...] = ()
    range_explicit: bool = False
    singleton: bool = False
    seeds: bytes = b""
    elector: bool = True
    settled_n: int = 0
    epoch: tuple[int, bytes] = (0, ZERO8)
    peers: int = 0
    electors: int = 0
    addresses: int = 0


class Shared(Protocol):
    """Implemented by :class:`weavenet.core.cluster.Cluster`."""

    def hello(self) -> HelloFields: ...

    def admit(self, now: float, peer: PeerId, hello: Hello) -> Refusal | None:
        """None: this peer and we may share state. May give up a cluster of our own that nobody used."""

    def log_length(self) -> int: ...

    def log_hash(self) -> bytes:
        """16 bytes: identity of the last entry, zeros when empty."""

    def log_epoch(self) -> tuple[int, bytes]: ...

    def log_gap(self, start: int, entries: Sequence[LogEntry]) -> int | None:
        """From where on the log has to be pulled before ``entries`` from index ``start`` on can be merged; None when
        they can be, or are of no use here."""

    def ring_gap(self, delta: RingDelta) -> int | None:
        """From where on the log has to be pulled before ``delta`` may be merged (I3); None when it may be."""

    def ring_hash(self) -> bytes:
        """16 bytes."""

    def log_from(self, start: int) -> tuple[LogEntry, ...]: ...

    def merge_log(self, now: float, start: int, entries: Sequence[LogEntry]) -> bool:
        """True when something new was learnt."""

    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None:
        """What of ``delta`` was new, None when nothing was."""

    def ring_bucket_hashes(self, range_index: int) -> tuple[bytes, ...]:
        """64 hashes of 8 bytes, one per 1/64 of the range."""

    def ring_buckets(self, range_index: int, buckets: Sequence[int]) -> RingDelta:
        """The segments within the given buckets."""
