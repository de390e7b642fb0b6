"""Messages between the two ends of one link.

A link is up once both hellos are accepted. ``Heartbeat`` is the only message that may overtake unfinished persists: it
shows no state. ``Digest`` shows state and therefore waits (history *leak-before-fsync*).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.errors import RefusalCode
from weavenet.core.types import ZERO8, Bytes6, Bytes8, Bytes16, Label, Port, Sentence, Uint, WirePeerId


class PlaneOffer(msgspec.Struct, frozen=True, array_like=True):
    """A data path this peer can receive on: kind (``fastdp``, ``wireguard``, ``sleeve``), UDP port, inner MAC."""

    kind: Label
    port: Uint
    mac: Bytes6


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First message in each direction. ``cluster`` is empty before genesis. ``range_explicit``: an operator chose
    ``ranges``. ``settled_n`` is the sender's count of electors for genesis, 0 while unsettled. ``known`` is the highest
    (incarnation, sequence) the sender holds of the receiver. ``singleton``: this cluster is one unused peer, which
    yields. ``seeds``: digest of the seed set, or empty. The connection whose ``link_nonce`` XOR is lowest survives.
    ``epoch``, ``epoch_id``: of the sender's log; of two peers that removed each other the greater epoch's stays.
    ``peers``, ``electors``, ``addresses`` in use: how large the sender's cluster is, to be said when it is refused."""

    protocol_min: Uint
    protocol_max: Uint
    features: Annotated[tuple[Label, ...], msgspec.Meta(max_length=64)]
    software: Label
    peer: WirePeerId
    name: Label
    nickname: Label
    incarnation: Uint
    cluster: Annotated[bytes, msgspec.Meta(max_length=16)]
    ranges: Annotated[tuple[Label, ...], msgspec.Meta(max_length=4)]
    range_explicit: bool
    singleton: bool
    seeds: Annotated[bytes, msgspec.Meta(max_length=16)]
    elector: bool
    settled_n: Uint
    port: Port
    link_nonce: Uint
    planes: Annotated[tuple[PlaneOffer, ...], msgspec.Meta(max_length=8)]
    known: tuple[Uint, Uint]
    observed_host: Label
    epoch: Uint = 0
    epoch_id: Bytes8 = ZERO8
    peers: Uint = 0
    electors: Uint = 0
    addresses: Uint = 0


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The last message before a deliberate close."""

    code: RefusalCode
    sentence: Sentence


Microseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""146,000 years: a receiver adds to it, and the sum must still be an integer of msgpack."""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Stateless sign of life. ``echo_us`` is the ``sent_us`` of the last heartbeat received plus the time it lay here
    (0: none yet), so the receiver's clock minus it is the round trip. ``interval_ms``: how often the sender beats;
    it is silent after three of them, at most 10 s."""

    sent_us: Microseconds
    echo_us: Microseconds
    interval_ms: Uint = 1000


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """What the sender durably holds: root of all records, hash of the ring, length, last hash and epoch of the log. The
    log of a greater epoch replaces a longer one of a lower."""

    records_root: Bytes8
    ring_hash: Bytes16
    log_length: Uint
    log_hash: Bytes16
    epoch: Uint = 0
    epoch_id: Bytes8 = ZERO8
