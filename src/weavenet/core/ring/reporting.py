"""IPAM in words: the part of ``weave status`` and ``weave report`` about addresses.

Everything is derived at the moment of asking; nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from weavenet.core.commands import Allocate
from weavenet.core.ranges import RANGE_BITS, Ranges
from weavenet.core.report import IpamReport, OwnerReport, RangeReport
from weavenet.core.ring.allocation import Waiting
from weavenet.core.ring.estate import Estate
from weavenet.core.ring.seeking import Need, Seeker
from weavenet.core.ring.subnets import default_cidrs
from weavenet.core.types import PeerId, peer_text
from weavenet.core.words import titled

PENDING_SHOWN_MAX = 50
"""Waiting requests spelt out; more are counted."""

Label = Callable[[PeerId], tuple[str, str]]
"""PeerId → (name, nickname), empty when unknown."""


def ipam_report(
    now: float,
    *,
    estate: Estate,
    waiting: Iterable[Waiting],
    seeker: Seeker,
    reachable: frozenset[PeerId],
    default_subnets: Sequence[str],
    label: Label,
    unreachable_since: Callable[[PeerId], float | None],
    container: Callable[[str], str],
) -> IpamReport:
    """The report, except for what only the election knows. ``unreachable_since``: seconds on the clock of ``now``.
    ``container``: of an ident, as a person writes it."""
    words = _Words(estate, seeker, reachable, label, container)
    listed = list(waiting)
    pending = [words.pending(now, each) for each in listed[:PENDING_SHOWN_MAX]]
    if len(listed) > len(pending):
        pending.append(f"and {len(listed) - len(pending)} more")
    state, detail = words.state(listed)
    genesis = estate.log.genesis
    return IpamReport(
        state=state,
        detail=detail,
        ranges=tuple(
            msgspec.structs.replace(
                empty,
                active=_active(estate, number),
                owners=tuple(_owners(now, estate, number, reachable, label, unreachable_since)),
            )
            for number, empty in enumerate(range_reports(estate.area, default_subnets) if estate.area else ())
        ),
        electors=tuple(words.name(peer) for peer in estate.log.electors) if genesis else (),
        is_elector=estate.me in estate.log.electors,
        quorum=0,
        electors_known=0,
        electors_missing=(),
        pending=tuple(pending),
        blocked=tuple(words.blocked(offset) for offset in sorted(estate.blocked.offsets())),
        segments=len(estate.ring.segments),
    )


def range_reports(area: Ranges, default_subnets: Sequence[str]) -> tuple[RangeReport, ...]:
    """The ranges themselves, without what became of them."""
    subnets = default_cidrs(area, default_subnets)
    return tuple(RangeReport(part.cidr, part.size, subnet) for part, subnet in zip(area.areas, subnets, strict=True))


def _active(estate: Estate, number: int) -> int:
    held = estate.holdings.by_offset  # of which there may be a hundred thousand
    return len(held) if len(estate.ring.sizes) < 2 else sum(1 for offset in held if offset >> RANGE_BITS == number)


def _owners(  # noqa: PLR0917
    now: float,
    estate: Estate,
    number: int,
    reachable: frozenset[PeerId],
    label: Label,
    unreachable_since: Callable[[PeerId], float | None],
) -> Iterable[OwnerReport]:
    shares: dict[PeerId, int] = {}
    for peer, addresses in estate.ring.shares_of(number).items():
        heir = estate.log.heir(peer)
        shares[heir] = shares.get(heir, 0) + addresses
    for peer, addresses in sorted(shares.items()):
        name, nickname = label(peer)
        since = None if peer == estate.me or peer in reachable else unreachable_since(peer)
        yield OwnerReport(
            peer=peer_text(peer),
            name=name,
            nickname=nickname,
            addresses=addresses,
            percent=100.0 * addresses / estate.ring.sizes[number],
            is_self=peer == estate.me,
            unreachable_s=None if since is None else max(0.0, now - since),
        )


class _Words:
    """Sentences about one estate at one moment."""

    def __init__(
        self,
        estate: Estate,
        seeker: Seeker,
        reachable: frozenset[PeerId],
        label: Label,
        container: Callable[[str], str],
    ) -> None:
        self._estate = estate
        self._seeker = seeker
        self._reachable = reachable
        self._label = label
        self._container = container

    def name(self, peer: PeerId) -> str:
        name, nickname = self._label(peer)
        return titled(name, nickname) or peer_text(peer)[:12]

    def state(self, waiting: list[Waiting]) -> tuple[str, str]:
        if not self._estate.is_on:
            return "off", ""
        if not self._estate.has_ring:
            return ("awaiting consensus" if waiting else "idle"), ""
        if not waiting:
            return "ready", ""
        needs = {each.need for each in waiting if each.need is not None}
        if needs and not any(owner in self._reachable for need in needs for owner in self._owners(need)):
            return "all owners unreachable", f"{len(waiting)} request(s) wait for an owner of addresses to come back"
        return "waiting for space", f"{len(waiting)} request(s) wait for addresses"

    def pending(self, now: float, waiting: Waiting) -> str:
        command = waiting.command
        if isinstance(command, Allocate):
            what = f"{command.ident}: an address in {command.subnet or 'the default subnet'}"
        else:
            what = f"{command.ident}: the address {command.address}"
        return f"{what}, since {now - waiting.since:.0f} s: {self._reason(waiting.need)}"

    def blocked(self, offset: int) -> str:
        holders = self._estate.holdings.holders(offset)
        containers = [self._container(holding.ident) for holding in holders]
        stamp = self._estate.ring.stamp_at(offset)
        owner = self.name(self._estate.log.heir(stamp.owner)) if stamp else "nobody"
        refusal = self._estate.blocked.refusal(offset)
        why = f"which says it is used by {refusal}" if refusal else "which was asked to give it back"
        return (
            f"{holders[0].address} of {', '.join(containers)} belongs to {owner}, {why}; "
            f"next: weave detach {holders[0].text} {containers[0]}, and weave attach {containers[0]} for a new one"
        )

    def _reason(self, need: Need | None) -> str:
        if need is None:
            return "the addresses are not divided yet"
        ask = self._seeker.asks.get(need)
        if ask is not None:
            return f"asking {self.name(ask.donor)}"
        owners = self._owners(need)
        if not owners:
            return "all addresses there are in use on this host"
        if not any(owner in self._reachable for owner in owners):
            return f"no owner is reachable ({', '.join(self.name(owner) for owner in owners[:3])})"
        return "no reachable owner has a free one; they are asked again and again"

    def _owners(self, need: Need) -> list[PeerId]:
        pieces = self._estate.ring.within(need.low, need.high)
        owners = {self._estate.log.heir(piece.stamp.owner) for piece in pieces}
        return sorted(owners - {self._estate.me})
