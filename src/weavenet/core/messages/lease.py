"""Messages about the leases of ephemeral peers (``weavenet.core.lease``). Every one may be lost: each is repeated."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.limits import LAPSED_PER_QUERY_MAX
from weavenet.core.types import Uint, WirePeerId

_Lapsed = Annotated[tuple[WirePeerId, ...], msgspec.Meta(max_length=LAPSED_PER_QUERY_MAX)]


class LeaseRenew(msgspec.Struct, frozen=True, array_like=True, tag=96):
    """To each voter: I am alive. ``number`` grows, and says in the answer when it was asked for."""

    number: Uint


class LeaseAnswer(msgspec.Struct, frozen=True, array_like=True, tag=97):
    """Your lease is renewed. Not sent by who has attested that it lapsed."""

    number: Uint
    voter: WirePeerId


class LapseQuery(msgspec.Struct, frozen=True, array_like=True, tag=98):
    """Have the leases of these peers lapsed in your eyes?"""

    session: Uint
    peers: _Lapsed


class LapseAnswer(msgspec.Struct, frozen=True, array_like=True, tag=99):
    """Those of ``lapsed`` have, and I renew none of them until that is settled: durable before it is sent."""

    session: Uint
    voter: WirePeerId
    lapsed: _Lapsed


class LapseSettled(msgspec.Struct, frozen=True, array_like=True, tag=100):
    """A quorum of the voters renews these; nobody removes them."""

    peers: _Lapsed


LeaseBody = LeaseRenew | LeaseAnswer | LapseQuery | LapseAnswer | LapseSettled
