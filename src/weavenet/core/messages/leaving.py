"""Messages of a peer that leaves for good (spec 04, "reset"), and what its custodians remember of it.

``LeaveQuery`` is asked again and again of everybody known while somebody prepares to leave; an answer is good for a few
seconds. Ring and log go to the custodians as ``StampPage`` / ``StampAnswer``. Then each custodian takes the
``CustodyOffer`` durably; once all have, the leaver says ``LeftNotice``, and custodians publish it as a record of kind
KIND_LEFT. Every message may be lost: the leaver repeats its own, and a custodian whose leaver has become unreachable
takes that for the notice.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.limits import CUSTODIANS_MAX, CUSTODY_ROWS_MAX
from weavenet.core.types import Label, Uint, WirePeerId


class LeftRecord(msgspec.Struct, frozen=True, array_like=True, order=True):
    """``peer`` has left for good. ``custodians`` held durably all that it knew of ring and log; the first of them
    stands for it. Empty: it knew nothing."""

    peer: WirePeerId
    name: Label
    nickname: Label
    custodians: Annotated[tuple[WirePeerId, ...], msgspec.Meta(max_length=CUSTODIANS_MAX)]


class LeaveQuery(msgspec.Struct, frozen=True, array_like=True, tag=72):
    """I want to leave: could you take my addresses, or remember what I know?"""

    session: Uint


class LeaveAnswer(msgspec.Struct, frozen=True, array_like=True, tag=73):
    """``stays``: I can remember it: I am a member and not leaving, or leaving after you, since my id is greater.
    ``leaves``: that, or I am ephemeral, so take others first. ``owns``: I may also be given space; ``free``: how many
    free addresses I have in the first range, ``further`` in each of the others."""

    session: Uint
    stays: bool
    owns: bool
    leaves: bool
    elector: bool
    free: Uint
    further: tuple[Uint, ...] = ()


class CustodyOffer(msgspec.Struct, frozen=True, array_like=True, tag=74):
    """All custodians hold my ring and log durably. Remember me as about to leave, and ``earlier`` those that I was a
    custodian of."""

    session: Uint
    left: LeftRecord
    earlier: Annotated[tuple[LeftRecord, ...], msgspec.Meta(max_length=CUSTODY_ROWS_MAX)]


class CustodyAccepted(msgspec.Struct, frozen=True, array_like=True, tag=75):
    """I do, durably."""

    session: Uint


class LeftNotice(msgspec.Struct, frozen=True, array_like=True, tag=76):
    """I am gone: wait for me no more."""

    left: LeftRecord


LeavingBody = LeaveQuery | LeaveAnswer | CustodyOffer | CustodyAccepted | LeftNotice
