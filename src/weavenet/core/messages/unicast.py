"""Messages from one peer to one other, possibly over links of peers in between.

``Routed`` is the envelope on a link; relays forward it without looking at the body. Undeliverable messages are dropped:
every exchange below is retried by its initiator.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.types import Ballot, Bytes16, Genesis, Segment, Sentence, Uint, WirePeerId


class Routed(msgspec.Struct, frozen=True, array_like=True, tag=32):
    source: WirePeerId
    destination: WirePeerId
    hops_left: Uint
    body: Annotated[bytes, msgspec.Meta(max_length=200_000)]


# --- genesis election: single-decree Paxos (Lamport, "Paxos Made Simple", 2001), electors met -----------


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``n``: how many electors the proposer believes there are; acceptors that know more answer Nack."""

    ballot: Ballot
    n: Uint


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=2):
    ballot: Ballot
    n: Uint
    accepted_ballot: Ballot | None
    accepted: Genesis | None


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=3):
    ballot: Ballot
    n: Uint
    value: Genesis


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    ballot: Ballot
    n: Uint


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """``promised`` is the highest ballot seen here, ``n`` the highest count of electors known here."""

    ballot: Ballot
    promised: Ballot
    n: Uint


# --- space ---


class SpaceRequest(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Give me free space within offsets [low, high) of the range; ``exact`` asks for just these (a claim). ``request``
    grows with every request of a peer (incarnation in the high bits), so a donor can repeat its answer."""

    request: Uint
    range_index: Uint
    low: Uint
    high: Uint
    exact: bool


class SpaceGrant(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The stamped segments that now belong to the requester. Final: repeated for the same request, never given
    twice."""

    request: Uint
    range_index: Uint
    log_length: Uint
    segments: tuple[Segment, ...]


class SpaceDenied(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """``taken_by`` says who uses an exactly requested address, or is empty when there is just nothing free."""

    request: Uint
    taken_by: Sentence


# --- handover: before a data path to a peer opens (spec 04b) ---


class HandoverOffer(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """Open a path to me once you durably merged this state of mine. ``session`` names it in the answer. ``seeking``: I
    have not seen an offer of yours yet, so repeat it."""

    session: Uint
    ring_hash: Bytes16
    log_length: Uint
    log_hash: Bytes16
    seeking: bool


class HandoverPull(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """Our states differ: send me your log from ``log_start`` and your ring."""

    session: Uint
    log_start: Uint


class HandoverPage(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """Part ``page`` of ``pages``. ``body`` is a msgpack ``Push`` (log and ring only)."""

    session: Uint
    page: Uint
    pages: Uint
    body: Annotated[bytes, msgspec.Meta(max_length=100_000)]


class HandoverDone(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """I hold your state of ``session`` durably and have blocked what I lost by it."""

    session: Uint


Body = (
    Prepare
    | Promise
    | Accept
    | Accepted
    | Nack
    | SpaceRequest
    | SpaceGrant
    | SpaceDenied
    | HandoverOffer
    | HandoverPull
    | HandoverPage
    | HandoverDone
)
