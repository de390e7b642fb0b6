"""Commands about addresses: allocate, claim, release, look up, and containers that die and come back.

A command that can be answered from what we own is answered at once: one Persist, one Reply. Otherwise it waits, first
come first served, without limit of time: for the ring, for space, or for the owner of a claimed address; at most
PENDING_REQUESTS_MAX wait, a further one fails as busy.

Invariants: a waiting request is answered exactly once, or cancelled; the same container and subnet get the same
address. Who asks for no subnet gets an address of each range; one that is there is held while the other is waited for,
so that two who lack different ones do not pass them to and fro.

It does not obtain space; :meth:`Allocation.serve` says what is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from weavenet.core.commands import (
    Addresses,
    Allocate,
    Claim,
    Command,
    Destroyed,
    Died,
    Done,
    Holdings,
    Lookup,
    Release,
    Result,
    Revived,
)
from weavenet.core.effects import Reply
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import ADDRESSES_PER_IDENT_MAX, DEAD_KEEP_S, IDENT_BYTES_MAX, PENDING_REQUESTS_MAX
from weavenet.core.ring.estate import Estate
from weavenet.core.ring.holdings import Holding
from weavenet.core.ring.seeking import Need
from weavenet.core.ring.subnets import Place, Window, claimed_place, default_windows, subnet_window

WINDOWS_CACHED_MAX = 1024


class Wait(msgspec.Struct, frozen=True):
    """Not now. ``need`` is what would help; None: the ring."""

    need: Need | None


_FOR_RING = Wait(None)


class Waiting(msgspec.Struct):
    """A command that waits since ``since`` (seconds)."""

    command: Allocate | Claim
    since: float
    need: Need | None


class Allocation:
    """``stirred`` is set when something came to wait or became free, and cleared by :meth:`serve`."""

    def __init__(self, estate: Estate, default_subnets: Sequence[str]) -> None:
        self._estate = estate
        self._default_subnets = default_subnets
        self._windows: dict[str, tuple[Window, ...] | Failure] = {}
        self._windows_of = estate.area
        self._dead: OrderedDict[str, float] = OrderedDict()
        self.waiting: dict[int, Waiting] = {}
        self.stirred = False

    # --- commands ---

    def command(self, now: float, request: int, command: Command) -> bool:
        """Answer the command or let it wait; False when it is not about addresses."""
        result: Result
        match command:
            case Allocate() | Claim():
                self._begin(now, request, command)
                return True
            case Release():
                result = self._release(now, command)
            case Lookup():
                result = self._lookup(command)
            case Died():
                self._abandon(command.ident)
                self._dead.pop(command.ident, None)  # the order of dues is the order of entry
                if self._estate.holdings.of(command.ident):
                    self._dead[command.ident] = now + DEAD_KEEP_S
                result = Done()
            case Revived():
                self._dead.pop(command.ident, None)
                result = Done()
            case Destroyed():
                self._abandon(command.ident)
                self._free(now, self._estate.holdings.of(command.ident))
                result = Done()
            case _:
                return False
        self._reply(request, result)
        return True

    def cancel(self, request: int) -> None:
        """The client went away: nobody waits for this any more."""
        if self.waiting.pop(request, None) is not None:
            self.stirred = True

    def deadline(self) -> float | None:
        return next(iter(self._dead.values()), None)

    def tick(self, now: float) -> None:
        """Free what belongs to containers that stayed dead."""
        while self._dead:
            ident, due = next(iter(self._dead.items()))
            if now < due:
                return
            holdings = self._estate.holdings.of(ident)
            self._estate.outbox.note("info", "ipam", f"{ident} stayed dead: freeing {len(holdings)} address(es)")
            self._free(now, holdings)
            self._dead.pop(ident, None)

    # --- waiting ---

    def serve(self, now: float) -> list[Need]:
        """Answer whom we can now; what the others need, in the order they came."""
        self.stirred = False
        needs: dict[Need, None] = {}
        for request, waiting in list(self.waiting.items()):
            if isinstance(waiting.command, Allocate) and waiting.need in needs:
                continue  # somebody before found nothing in the same window
            outcome = self._attempt(now, waiting.command)
            if isinstance(outcome, Wait):
                waiting.need = outcome.need
                if outcome.need is not None:
                    needs[outcome.need] = None
            else:
                del self.waiting[request]
                self._reply(request, outcome)
        return list(needs)

    def refuse(self, need: Need, failure: Failure) -> None:
        """The owner will not give up the exactly needed address: whoever waits for it gets ``failure``."""
        for request, waiting in list(self.waiting.items()):
            if waiting.need == need:
                del self.waiting[request]
                self._reply(request, failure)

    def close(self, now: float) -> None:
        """Free everything and refuse who waits: this peer leaves."""
        for request in list(self.waiting):
            self.cancel(request)
            self._reply(request, _LEAVING)
        for ident in list(self._estate.holdings.by_ident):
            self._free(now, self._estate.holdings.of(ident))

    def _begin(self, now: float, request: int, command: Allocate | Claim) -> None:
        if self._estate.leaving:
            self._reply(request, _LEAVING)
            return
        outcome = self._attempt(now, command)
        if not isinstance(outcome, Wait):
            self._reply(request, outcome)
        elif len(self.waiting) >= PENDING_REQUESTS_MAX:
            text = f"at most {PENDING_REQUESTS_MAX} requests that wait for addresses"
            self._reply(request, Failure(Code.BUSY, text, f"{len(self.waiting)} wait already", "try again later"))
        else:
            self.waiting[request] = Waiting(command, now, outcome.need)
            self.stirred = True

    def _abandon(self, ident: str) -> None:
        """The container is gone, and with it what it waited for."""
        for request, waiting in list(self.waiting.items()):
            if waiting.command.ident == ident:
                self.cancel(request)
                self._reply(request, Failure(Code.CANCELLED, f"expected {ident} to live", "the container is gone"))

    # --- attempts ---

    def _attempt(self, now: float, command: Allocate | Claim) -> Result | Wait:
        ident = command.ident
        if not 0 < len(ident.encode()) <= IDENT_BYTES_MAX or "\0" in ident:
            return Failure(Code.INVALID, f"expected a container name of 1 to {IDENT_BYTES_MAX} bytes", repr(ident[:40]))
        if isinstance(command, Allocate):
            outcome = self._allocate(now, ident, command.subnet)
        else:
            outcome = self._claim(ident, command.address)
        if self._dead and isinstance(outcome, Addresses):
            self._dead.pop(ident, None)  # whoever asks for an address lives
        return outcome

    def _allocate(self, now: float, ident: str, subnet: str) -> Result | Wait:
        windows = self._windows_for(subnet)
        if isinstance(windows, Failure):
            return windows
        held = [self._estate.holdings.find(ident, window.cidr) for window in windows]
        missing = held.count(None)
        if missing and self._has_too_many(ident, missing):
            return _too_many(ident)
        if missing and not self._estate.has_ring:
            return _FOR_RING
        texts = []
        for window, present in zip(windows, held, strict=True):
            holding = present or self._take(now, ident, window)
            if holding is None:
                # Only what we could use: else two who wait would pass the subnet's end addresses to and fro.
                return Wait(Need(window.first, window.stop, exact=False))
            texts.append(holding.text)
        return Addresses(tuple(texts))

    def _take(self, now: float, ident: str, window: Window) -> Holding | None:
        """The lowest free address of ours in the window, held from now on."""
        estate = self._estate
        offset = estate.space.take(now, window.first, window.stop) if estate.may_use else None
        if offset is None:
            return None
        holding = Holding(ident, window.area.address(offset), window.cidr, window.prefix_length, claimed=False)
        estate.hold(holding, offset)
        return holding

    def _claim(self, ident: str, text: str) -> Result | Wait:
        estate = self._estate
        place = claimed_place(estate.area if estate.is_on else None, text)
        if isinstance(place, Failure):
            return place
        holding = Holding(ident, place.address, place.cidr, place.prefix_length, claimed=True)
        offset = place.offset
        present = estate.holdings.by_ident.get(ident, {}).get(place.address)
        if present is not None:
            return Addresses((place.text,)) if present.text == place.text else _has_already(present)
        if self._has_too_many(ident):
            return _too_many(ident)
        if offset is None:
            estate.hold(holding, None)
            return Addresses((place.text,))
        return self._claim_in_range(holding, place, offset)

    def _claim_in_range(self, holding: Holding, place: Place, offset: int) -> Result | Wait:
        estate = self._estate
        other = estate.holdings.by_offset.get(offset)
        if other is not None:
            return taken(place.address, f"{other.ident} on this host")
        if not estate.has_ring:
            return _FOR_RING
        if not estate.usable(offset):
            return Wait(Need(offset, offset + 1, exact=True))
        estate.space.take_exactly(offset)
        estate.hold(holding, offset)
        return Addresses((place.text,))

    def _has_too_many(self, ident: str, more: int = 1) -> bool:
        held = self._estate.holdings.by_ident.get(ident)
        return held is not None and len(held) + more > ADDRESSES_PER_IDENT_MAX

    def _windows_for(self, subnet: str) -> tuple[Window, ...] | Failure:
        """That of ``subnet``, or one per range when it is empty."""
        area = self._estate.area
        if area is None or not self._estate.is_on:
            expected = "expected an allocation range to take an address from"
            found = 'IPAM is off (--ipalloc-range "")'
            return Failure(Code.IPAM_OFF, expected, found, "give the address as IP/PREFIX, or launch with a range")
        if area is not self._windows_of or len(self._windows) > WINDOWS_CACHED_MAX:
            self._windows, self._windows_of = {}, area
        windows = self._windows.get(subnet)
        if windows is None:
            window = subnet_window(area, subnet) if subnet else None
            if window is None:
                windows = default_windows(area, self._default_subnets)
            else:
                windows = window if isinstance(window, Failure) else (window,)
            self._windows[subnet] = windows
        return windows

    # --- release, look-up ---

    def _release(self, now: float, command: Release) -> Result:
        held = self._estate.holdings.by_ident.get(command.ident, {})
        if command.addresses:
            wanted = [held[address] for address in dict.fromkeys(command.addresses) if address in held]
        else:
            wanted = list(held.values())
        self._free(now, wanted)
        return Addresses(tuple(holding.text for holding in wanted))

    def _lookup(self, command: Lookup) -> Result:
        cidr = ""
        if command.subnet:
            windows = self._windows_for(command.subnet)
            if isinstance(windows, Failure):
                return windows
            cidr = windows[0].cidr
        holdings = self._estate.holdings
        if command.ident:
            return Addresses(_texts(holdings.of(command.ident), cidr))
        listed = [(ident, _texts(holdings.of(ident), cidr)) for ident in sorted(holdings.by_ident)]
        return Holdings(tuple(entry for entry in listed if entry[1]))

    def _free(self, now: float, holdings: Iterable[Holding]) -> None:
        holdings = list(holdings)
        if not holdings:
            return
        self._estate.free(now, holdings)
        self.stirred = True
        if not self._estate.holdings.of(holdings[0].ident):
            self._dead.pop(holdings[0].ident, None)

    def _reply(self, request: int, result: Result) -> None:
        self._estate.outbox.append(Reply(request, result))


_LEAVING = Failure(
    Code.CONFLICT, "expected a peer that stays", "it is leaving (`weave reset`)", "attach the container on another host"
)


def taken(address: str, holder: str) -> Failure:
    """The claim of an address that somebody else uses."""
    return Failure(
        Code.ALREADY_TAKEN,
        f"expected {address} to be free",
        f"it is used by {holder}",
        "free it there first (`weave detach`, or `weave hide` if the host has it), or claim another address",
    )


def _has_already(present: Holding) -> Failure:
    """The claim of an address that the container has with another prefix: it would have it twice, which nobody needs,
    and giving one back would free both."""
    return Failure(
        Code.CONFLICT,
        f"expected {present.address} once in a container",
        f"{present.ident} has {present.text}",
        "detach that first, to have it with another prefix",
    )


def _too_many(ident: str) -> Failure:
    return Failure(
        Code.INVALID, f"expected at most {ADDRESSES_PER_IDENT_MAX} addresses per container", f"{ident} has them all"
    )


def _texts(holdings: Iterable[Holding], cidr: str) -> tuple[str, ...]:
    return tuple(holding.text for holding in holdings if cidr in {"", holding.cidr})
