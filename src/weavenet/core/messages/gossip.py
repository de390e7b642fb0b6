"""Replication of shared state: one ring, one decree log, and records that only their origin writes.

Changes are pushed along a self-building tree (Plumtree: Leitão, Pereira, Rodrigues, "Epidemic Broadcast Trees", SRDS
2007): a push that taught nothing is answered by ``Prune``, and the link becomes lazy. Lazy links and heartbeats carry a
``Digest``; a difference is repaired by buckets, then marks, then a push with ``repair`` set, which makes the link
eager.

Records of one origin: ``sequence`` is gap-free per (origin, incarnation); ``top`` is the high-water mark. A record at
or below my mark that I do not hold was deleted. A higher incarnation replaces the lower one entirely.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from weavenet.core.errors import UNDECODABLE
from weavenet.core.types import Bytes6, Bytes8, Label, LogEntry, Port, Segment, Uint, WirePeerId

Body = TypeVar("Body")


def record_body(decoder: msgspec.msgpack.Decoder[Body], body: bytes) -> Body | None:
    """None for the body of a faulty or newer peer: what one origin writes must stop nobody else."""
    try:
        return decoder.decode(body)
    except UNDECODABLE:
        return None


# --- record bodies (msgpack inside Record.body; unknown kinds are carried untouched) ---

KIND_PEER = 1
KIND_NEIGHBOUR = 2
KIND_ENDPOINT = 3
KIND_NAME = 4
KIND_SLEEVE = 5
"""Body: :class:`weavenet.core.overlay.sleeve.SleeveRecord`."""
KIND_SLEEVE_PATH = 6
"""Body: :class:`weavenet.core.overlay.sleeve.SleevePathRecord`."""
KIND_LEFT = 7
"""Body: :class:`weavenet.core.messages.leaving.LeftRecord`."""
KIND_WIREGUARD = 8
"""Body: :class:`weavenet.core.overlay.wireguard.WireguardRecord`."""


class PeerRecord(msgspec.Struct, frozen=True, array_like=True):
    """One per origin. ``settled_n``: count of electors it would demand for genesis (0: not settled yet).
    ``trusts``: subnets (CIDR) of the underlay over which its data need not be encrypted.
    ``wants_genesis``: somebody there waits for the ring. ``votes_as``: the id of the seed whose share it took and as
    which it votes, or empty. ``leaving``: it is about to leave, so nothing may be given to it."""

    name: Label
    nickname: Label
    software: Label
    elector: bool
    settled_n: Uint
    wants_genesis: bool
    port: Uint
    mtu: Uint
    planes: tuple[Label, ...]
    votes_as: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    trusts: Annotated[tuple[Label, ...], msgspec.Meta(max_length=64)] = ()
    leaving: bool = False
    ttl_s: Uint = 0
    """Of an ephemeral peer, which has to renew its lease; 0: it is none."""


class NeighbourRecord(msgspec.Struct, frozen=True, array_like=True):
    """The origin has a link to ``peer`` and reaches it at ``host``:``port`` (its listening port)."""

    peer: WirePeerId
    host: Label
    port: Port
    outbound: bool


class EndpointRecord(msgspec.Struct, frozen=True, array_like=True):
    """A MAC on the origin's bridge with its addresses in CIDR form."""

    ident: Label
    mac: Bytes6
    addresses: Annotated[tuple[Label, ...], msgspec.Meta(max_length=256)]


class EntryRecord(msgspec.Struct, frozen=True, array_like=True):
    """``name`` (absolute) stands for ``address`` (packed, 4 or 16 bytes). ``owner``: the ident of a container of the
    origin, ``weave:external`` or ``weave:expose``."""

    name: Label
    address: Annotated[bytes, msgspec.Meta(max_length=16)]
    owner: Label


# --- transport ---


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    sequence: Uint
    kind: Uint
    body: Annotated[bytes, msgspec.Meta(max_length=2048)]


class OriginDelta(msgspec.Struct, frozen=True, array_like=True):
    """Everything live with ``base < sequence <= top``. ``dropped`` names sequences at or below ``base`` that this delta
    deletes, whether or not the receiver ever held them. With ``live`` (catch-up, when the sender does not know every
    deletion after ``base``) the ascending sequences at or below ``base`` that still exist, each as the distance from
    the one before; all others are gone. ``age_s``: how long the origin has been unreachable for the sender."""

    origin: WirePeerId
    incarnation: Uint
    base: Uint
    top: Uint
    records: tuple[Record, ...]
    dropped: tuple[Uint, ...]
    live: tuple[Uint, ...] | None
    age_s: Uint


class RingDelta(msgspec.Struct, frozen=True, array_like=True):
    """Segments of range number ``range_index``; a receiver whose log is shorter than ``log_length`` stores nothing of
    it and asks for the log first (I3)."""

    range_index: Uint
    log_length: Uint
    segments: tuple[Segment, ...]


class Push(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """``log`` is applied first, then ``ring``, then ``records``. ``log_start`` is the index of ``log[0]``."""

    log_start: Uint
    log: tuple[LogEntry, ...]
    ring: tuple[RingDelta, ...]
    records: tuple[OriginDelta, ...]
    repair: bool = False


class Prune(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Your push taught me nothing: send me digests instead."""


class LogPull(msgspec.Struct, frozen=True, array_like=True, tag=18):
    start: Uint


class RingBuckets(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Hash per 1/64 of the range, sent when ring hashes differ. The answer is a repair push of the differing buckets
    and, if ``reply`` was set, the answerer's own RingBuckets."""

    range_index: Uint
    hashes: Annotated[tuple[Bytes8, ...], msgspec.Meta(min_length=64, max_length=64)]
    reply: bool


class RecordBuckets(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Hash per bucket of origins (first byte of the PeerId modulo 64), sent when roots differ."""

    hashes: Annotated[tuple[Bytes8, ...], msgspec.Meta(min_length=64, max_length=64)]


class Mark(msgspec.Struct, frozen=True, array_like=True):
    origin: WirePeerId
    incarnation: Uint
    top: Uint


class RecordMarks(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """All marks of the named buckets. The receiver pushes where it is ahead and pulls where it is behind; with
    ``reply`` set it also answers with its own marks of those buckets."""

    buckets: tuple[Uint, ...]
    marks: tuple[Mark, ...]


class RecordPull(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Send me what you have beyond these marks (incarnation 0, top 0: everything)."""

    marks: tuple[Mark, ...]
