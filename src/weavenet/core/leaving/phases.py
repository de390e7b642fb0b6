"""The phases of leaving, what of them is durable, and what a leaver needs to know of the rest of its node."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from weavenet.core.removal.naming import Named
from weavenet.core.types import PeerId


class Phase(StrEnum):
    STAYING = "staying"
    SEEKING = "seeking"
    VACATING = "vacating"
    SURRENDERING = "surrendering"
    GONE = "gone"


_NEXT: dict[Phase, frozenset[Phase]] = {
    Phase.STAYING: frozenset({Phase.SEEKING, Phase.GONE}),
    Phase.SEEKING: frozenset({Phase.STAYING, Phase.VACATING, Phase.GONE}),
    Phase.VACATING: frozenset({Phase.SURRENDERING, Phase.GONE}),
    Phase.SURRENDERING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}


def may_follow(phase: Phase, following: Phase) -> bool:
    return following in _NEXT[phase]


class State(msgspec.Struct, frozen=True, array_like=True):
    """The durable part. ``heirs``: whoever was given space; ``stand_in``: the first custodian of the first offer, or
    empty."""

    phase: Phase
    heirs: tuple[PeerId, ...]
    stand_in: bytes = b""


class Surroundings(Protocol):
    """What a leaver needs to know of its peers."""

    @property
    def acquaintances(self) -> frozenset[PeerId]:
        """Everybody who may wait for our word: known and not gone, without us."""
        ...

    @property
    def own_ids(self) -> frozenset[PeerId]:
        """Ours, and that of the seed we stand for."""
        ...

    def reachable(self) -> frozenset[PeerId]: ...
    def neighbours(self) -> frozenset[PeerId]:
        """Peers with a link to us."""
        ...

    def unreachable_for(self, now: float, peer: PeerId) -> float | None:
        """Seconds since ``peer`` was last seen; None while it is reachable."""
        ...

    def voter_address(self, voter: PeerId) -> PeerId | None: ...
    def named(self, peer: PeerId) -> Named: ...


class Duties(Protocol):
    """What else a leaver has begun and must see to."""

    @property
    def holds(self) -> bool:
        """We stand for somebody removed whose addresses are not usable yet."""
        ...

    def has_promised(self) -> bool:
        """We voted on a first division of addresses whose outcome we do not know."""
        ...

    def give_up_removals(self) -> None:
        """Nobody will be left here to decide them."""
        ...

    def last_one_out(self, now: float) -> str:
        """Nobody else is known: what is still missing before the cluster may be forgotten, or an empty text."""
        ...
