"""Messages from one peer to one other, possibly over links of peers in between.

``Routed`` is the envelope on a link; relays forward it without looking at the body. Undeliverable messages are dropped:
every exchange below is retried by its initiator.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.lease import LeaseBody
from weavenet.core.messages.leaving import LeavingBody
from weavenet.core.types import (
    Ballot,
    Bytes16,
    Electors,
    Genesis,
    Position,
    Remove,
    Segment,
    Sentence,
    Uint,
    WirePeerId,
)


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


# --- decrees after genesis: one Paxos instance per position, among exactly the voters before it ---

Proposal = Electors | Remove
"""What may be decreed after genesis."""


class DecreePrepare(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """``predecessor``: hash of the log before ``position``; a voter with another log says so instead of voting."""

    position: Position
    predecessor: Bytes16
    ballot: Ballot


class DecreePromise(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """``voter``: as whom the sender votes (a bound seed votes as the id that its name stands for)."""

    position: Position
    ballot: Ballot
    voter: WirePeerId
    accepted_ballot: Ballot | None
    accepted: Proposal | None


class DecreeAccept(msgspec.Struct, frozen=True, array_like=True, tag=8):
    position: Position
    predecessor: Bytes16
    ballot: Ballot
    value: Proposal


class DecreeAccepted(msgspec.Struct, frozen=True, array_like=True, tag=9):
    position: Position
    ballot: Ballot
    voter: WirePeerId


class DecreeNack(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """``promised``: highest ballot promised here for ``position``. ``log_length``: how long the log is here; a proposer
    that is behind waits for it."""

    position: Position
    ballot: Ballot
    promised: Ballot
    log_length: Uint


# --- space ---


class SpaceRequest(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Give me free space within offsets [low, high) of range number ``range_index``; ``exact`` asks for just these (a
    claim). ``request`` grows with every request of a peer (incarnation in the high bits), so a donor can repeat its
    answer."""

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


# --- removal of peers (spec 04b, "on Remove"): the seen check, and the heir's two rounds ---

Peers = Annotated[tuple[WirePeerId, ...], msgspec.Meta(max_length=4096)]


class SeenQuery(msgspec.Struct, frozen=True, array_like=True, tag=48):
    """Somebody asserts that ``peers`` are dead: do you see one of them, or have you within the last ``absent_s``
    seconds?"""

    session: Uint
    peers: Peers
    absent_s: Uint = 0


class SeenAnswer(msgspec.Struct, frozen=True, array_like=True, tag=49):
    """``seen``: those of the peers asked about that are reachable here, or were until lately. ``voter``: as whom the
    sender votes."""

    session: Uint
    voter: WirePeerId
    seen: Peers


class AppliedQuery(msgspec.Struct, frozen=True, array_like=True, tag=50):
    """Have you applied the log up to the entry ``number`` with hash ``entry``? Nobody answers before he has."""

    session: Uint
    number: Uint
    entry: Bytes16


class AppliedAnswer(msgspec.Struct, frozen=True, array_like=True, tag=51):
    """I have, durably: links and data paths to everybody removed are closed. My ring has this hash."""

    session: Uint
    ring_hash: Bytes16


class RingPull(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """Our rings differ: send me yours."""

    session: Uint


class RingPage(msgspec.Struct, frozen=True, array_like=True, tag=53):
    """Part ``page`` of ``pages`` of the ring with hash ``ring_hash``. ``body`` is a msgpack ``Push`` (ring only)."""

    session: Uint
    ring_hash: Bytes16
    page: Uint
    pages: Uint
    body: Annotated[bytes, msgspec.Meta(max_length=100_000)]


class StampPage(msgspec.Struct, frozen=True, array_like=True, tag=54):
    """Part ``page`` of the ranges that the heir stamped: merge them durably, block what you lose, and say so."""

    session: Uint
    page: Uint
    delta: RingDelta


class StampAnswer(msgspec.Struct, frozen=True, array_like=True, tag=55):
    session: Uint
    page: Uint


class HoldQuery(msgspec.Struct, frozen=True, array_like=True, tag=56):
    """Is what you inherited by the log up to the entry ``number`` with hash ``entry`` usable? ``force``: an operator
    takes the responsibility to end the hold now."""

    session: Uint
    number: Uint
    entry: Bytes16
    force: bool


class HoldAnswer(msgspec.Struct, frozen=True, array_like=True, tag=57):
    session: Uint
    over: bool
    waiting_for: Peers


MembershipBody = (
    DecreePrepare
    | DecreePromise
    | DecreeAccept
    | DecreeAccepted
    | DecreeNack
    | SeenQuery
    | SeenAnswer
    | AppliedQuery
    | AppliedAnswer
    | RingPull
    | RingPage
    | StampPage
    | StampAnswer
    | HoldQuery
    | HoldAnswer
    | LeavingBody
    | LeaseBody
)
"""About who belongs to the cluster: decrees, removals, leaving, leases."""

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
    | MembershipBody
)


def highest_round(body: Body) -> int:
    """Of the ballots in a message of an election; 0 when there is none."""
    ballots = (getattr(body, field, None) for field in ("ballot", "promised", "accepted_ballot"))
    return max((ballot.round for ballot in ballots if ballot is not None), default=0)
