"""Dialling: targets to addresses, addresses to connections, with patience that grows and is forgotten on success.

A target is resolved before every attempt and yields addresses; discovery adds addresses of peers that others report.
Each address has its own backoff: 0.5 s × 1.5 up to 8 s ± 25 %, up to 60 s after a refusal. An address is left alone
while a connection from it is under way, or while the peer known to be behind it has an established link.

Invariants: at most one dial or link per address; targets are served before discovered addresses. Does not judge peers
and does not close links.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Dial, Outbox, Resolve
from weavenet.core.errors import InvariantBroken
from weavenet.core.events import DialFailed, DialOutcome, Resolved
from weavenet.core.limits import (
    DISCOVERY_SHARE,
    REDIAL_JITTER_S,
    RERESOLVE_S,
    RESOLVED_ADDRESSES_MAX,
    RETRY_CAP_S,
    RETRY_FACTOR,
    RETRY_FIRST_S,
    RETRY_JITTER,
    RETRY_REFUSED_CAP_S,
)
from weavenet.core.mesh.links import Link, Links
from weavenet.core.types import PeerId

Endpoint = tuple[str, int]

_KICK_PAUSE_S = 2.0
_ROOM_PAUSE_S = 5.0
_SAME_ATTEMPT_S = 0.05
"""Addresses of one target that are due this close together share one resolution."""
_DISCOVERED_PATIENCE = 40
"""Failures in a row (some five minutes) after which a discovered address is tried once a minute only, until somebody
reaches its peer."""


class AddressOutcome(StrEnum):
    """How the last attempt ended. UNKNOWN: none did yet."""

    UNKNOWN = "unknown"
    CONNECTED = "connected"
    FAILED = "failed"
    REFUSED = "refused"
    SELF = "self"


_UNDECIDED = frozenset({AddressOutcome.UNKNOWN, AddressOutcome.FAILED})


class Address(msgspec.Struct):
    """Somewhere to connect to. ``peer``: who was found there last. ``discovered``: whom others report there."""

    host: str
    port: int
    targets: set[str] = msgspec.field(default_factory=set)
    discovered: PeerId | None = None
    peer: PeerId | None = None
    dial: int | None = None
    dialled_at: float = 0.0
    link: int | None = None
    delay_s: float = RETRY_FIRST_S
    failures: int = 0
    next_at: float = 0.0
    outcome: AddressOutcome = AddressOutcome.UNKNOWN
    info: str = ""
    tried: bool = False

    @property
    def is_busy(self) -> bool:
        return self.dial is not None or self.link is not None


class Aim(msgspec.Struct):
    """One active target and how far its resolution is."""

    text: str
    origin: str
    resolving: bool = False
    resolved_at: float | None = None
    addresses: tuple[Endpoint, ...] = ()
    retry_at: float = 0.0
    delay_s: float = RETRY_FIRST_S
    error: str = ""


class Dialer:
    """``is_suppressed(host, port, peer)``: the operator forgot it, so discovery leaves it alone.
    ``is_reachable(peer)``: over anybody's links."""

    def __init__(
        self,
        config: NodeConfig,
        outbox: Outbox,
        rng: random.Random,
        links: Links,
        *,
        is_suppressed: Callable[[str, int, PeerId], bool],
        is_reachable: Callable[[PeerId], bool],
    ) -> None:
        self._config = config
        self._outbox = outbox
        self._rng = rng
        self._links = links
        self._is_suppressed = is_suppressed
        self._is_reachable = is_reachable
        self.aims: dict[str, Aim] = {}
        self.addresses: dict[Endpoint, Address] = {}
        self._dials: dict[int, Endpoint] = {}
        self._last_dial = 0
        self._kicked_at = float("-inf")
        self._due: float | None = None
        self._is_due_known = False
        self.has_changed = True

    # --- what to dial ---

    def set_targets(self, active: Mapping[str, str]) -> None:
        for text in [text for text in self.aims if text not in active]:
            self._point(self.aims.pop(text), ())
        for text, origin in active.items():
            aim = self.aims.setdefault(text, Aim(text, origin))
            aim.origin = origin
        self._touch()

    def discover(self, now: float, found: Mapping[PeerId, Iterable[Endpoint]]) -> None:
        """``found``: peers without a link and where others reach them; replaces what was found before."""
        listed: set[Endpoint] = set()
        for peer, endpoints in found.items():
            for host, port in endpoints:
                if self._is_suppressed(host, port, peer):
                    continue
                listed.add((host, port))
                address = self.addresses.get((host, port))
                if address is None:
                    # Both sides discover each other; the lower id goes first, so that one link comes up, not two.
                    head_start_s = 0.0 if self._config.peer < peer else 1.0
                    next_at = now + head_start_s + self._rng.random() * REDIAL_JITTER_S / 2
                    address = Address(host, port, peer=peer, next_at=next_at)
                    self.addresses[host, port] = address
                address.discovered = peer
        for endpoint, address in list(self.addresses.items()):
            if address.discovered is not None and endpoint not in listed:
                address.discovered = None
                self._drop_if_unused(address)
        self._touch()

    def _point(self, aim: Aim, endpoints: tuple[Endpoint, ...]) -> None:
        """``aim`` now stands for ``endpoints``."""
        for endpoint in endpoints:
            address = self.addresses.get(endpoint)
            if address is None:
                address = Address(*endpoint, peer=self._peer_at(endpoint))
                self.addresses[endpoint] = address
            address.targets.add(aim.text)
        for endpoint in aim.addresses:
            if endpoint not in endpoints and endpoint in self.addresses:
                address = self.addresses[endpoint]
                address.targets.discard(aim.text)
                self._drop_if_unused(address)
        aim.addresses = endpoints

    def _drop_if_unused(self, address: Address) -> None:
        if not address.targets and address.discovered is None and not address.is_busy:
            del self.addresses[address.host, address.port]

    def _peer_at(self, endpoint: Endpoint) -> PeerId | None:
        for link in self._links.by_peer.values():
            if link.listening == endpoint:
                return link.peer
        return None

    def is_self(self, address: Address) -> bool:
        is_local = address.host in self._config.local_hosts and address.port == self._config.port
        return is_local or address.outcome is AddressOutcome.SELF or address.peer == self._config.peer

    def is_connected(self, address: Address) -> bool:
        return address.peer is not None and address.peer in self._links.by_peer

    # --- time ---

    def _touch(self) -> None:
        self._is_due_known = False
        self.has_changed = True

    def deadline(self) -> float | None:
        if not self._is_due_known:
            times = [self._aim_due(aim) for aim in self.aims.values() if not aim.resolving]
            times += [
                address.next_at
                for address in self.addresses.values()
                if address.discovered is not None and not address.targets and self._is_wanted(address)
            ]
            self._due = min(times, default=None)
            self._is_due_known = True
        return self._due

    def _aim_due(self, aim: Aim) -> float:
        if aim.resolved_at is None or aim.error:
            return aim.retry_at
        waiting = [
            address.next_at for address in map(self.addresses.__getitem__, aim.addresses) if self._is_wanted(address)
        ]
        return min([aim.resolved_at + RERESOLVE_S, *waiting])

    def _is_wanted(self, address: Address) -> bool:
        if address.is_busy or self.is_connected(address):
            return False
        return not (address.host in self._config.local_hosts and address.port == self._config.port)

    def tick(self, now: float) -> None:
        due = self.deadline()
        if due is None or now < due:
            return
        for aim in self.aims.values():
            if not aim.resolving and self._aim_due(aim) <= now:
                aim.resolving = True
                self._outbox.append(Resolve(aim.text))
        room = int(self._config.conn_limit * DISCOVERY_SHARE) - len(self._links.by_peer) - len(self._dials)
        for address in self.addresses.values():
            if address.discovered is None or address.targets or address.next_at > now or not self._is_wanted(address):
                continue
            if room > 0:
                room -= 1
                self._dial(now, address)
            else:
                address.next_at = now + _ROOM_PAUSE_S
        self._touch()

    def kick(self, now: float) -> None:
        """The network just got better: try what failed again soon, instead of when its backoff is over."""
        if now - self._kicked_at < _KICK_PAUSE_S:
            return
        self._kicked_at = now
        for address in self.addresses.values():
            if (
                address.outcome is AddressOutcome.FAILED
                and address.next_at > now + REDIAL_JITTER_S
                and not self._is_given_up(address)
            ):
                address.next_at = now + self._rng.random() * REDIAL_JITTER_S
        for aim in self.aims.values():
            if aim.error:
                aim.retry_at = min(aim.retry_at, now + self._rng.random() * REDIAL_JITTER_S)
        self._touch()

    # --- outcomes ---

    def resolved(self, now: float, event: Resolved) -> None:
        aim = self.aims.get(event.target)
        if aim is None:
            return
        aim.resolving = False
        aim.resolved_at = now
        endpoints = tuple(dict.fromkeys(event.addresses))[:RESOLVED_ADDRESSES_MAX]
        if endpoints:
            aim.error = ""
            aim.delay_s = RETRY_FIRST_S
            self._point(aim, endpoints)
        else:
            aim.error = event.error or "the name has no address"
            delay_s, aim.delay_s = min(aim.delay_s, RETRY_CAP_S), min(aim.delay_s * RETRY_FACTOR, RETRY_CAP_S)
            aim.retry_at = now + self._jittered(delay_s)
        for endpoint in aim.addresses:
            address = self.addresses[endpoint]
            if self._is_wanted(address) and address.next_at <= now + _SAME_ATTEMPT_S:
                if self._has_room(address):
                    self._dial(now, address)
                else:
                    address.next_at = now + _ROOM_PAUSE_S
        self._touch()

    def _has_room(self, address: Address) -> bool:
        """A target that is not reached otherwise is tried in any case: a link may be spared for it."""
        is_needed = address.peer is None or not self._is_reachable(address.peer)
        return is_needed or len(self._links.by_peer) < self._config.conn_limit

    def _dial(self, now: float, address: Address) -> None:
        self._last_dial += 1
        address.dial = self._last_dial
        address.dialled_at = now
        self._dials[self._last_dial] = (address.host, address.port)
        self._outbox.append(Dial(self._last_dial, address.host, address.port))

    def failed(self, now: float, event: DialFailed) -> None:
        address = self.addresses.get(self._dials.pop(event.dial, ("", 0)))
        if address is None or address.dial != event.dial:
            return
        address.dial = None
        match event.outcome:
            case DialOutcome.SELF:
                self._found_self(now, address)
            case DialOutcome.PASSWORD:
                self._back_off(now, address, AddressOutcome.REFUSED, event.sentence)
            case DialOutcome.UNREACHABLE | DialOutcome.TIMEOUT | DialOutcome.TLS:
                self._back_off(now, address, AddressOutcome.FAILED, event.sentence)
        self._drop_if_unused(address)

    def opened(self, link: Link) -> Endpoint | None:
        """The dial of ``link`` came through; returns what was dialled."""
        endpoint = None if link.dial is None else self._dials.pop(link.dial, None)
        address = None if endpoint is None else self.addresses.get(endpoint)
        if address is not None:
            address.dial, address.link, address.peer = None, link.id, link.peer
            self._touch()
        return endpoint

    def established(self, link: Link) -> None:
        host, port = link.listening
        for address in self.addresses.values():
            if (address.host, address.port) == (host, port):
                address.peer = link.peer
            if address.peer == link.peer:
                address.outcome, address.info, address.tried = AddressOutcome.CONNECTED, "", True
        self._touch()

    def closed(self, now: float, link: Link, *, has_lived: bool, info: str) -> None:
        """``link`` is gone; a refusal was reported by :meth:`refused` before. ``has_lived``: no sign of trouble."""
        is_linked = link.peer in self._links.by_peer
        for address in list(self.addresses.values()):
            is_own = address.link == link.id
            if is_own:
                address.link = None
            elif address.peer != link.peer:
                continue
            was_connected = address.outcome is AddressOutcome.CONNECTED
            if not is_linked:
                if has_lived and (is_own or was_connected):
                    self._redial(now, address)
                elif was_connected or (is_own and address.outcome in _UNDECIDED):
                    self._back_off(now, address, AddressOutcome.FAILED, info)
            self._drop_if_unused(address)
        self._touch()

    def _redial(self, now: float, address: Address) -> None:
        if address.outcome is AddressOutcome.CONNECTED:
            address.delay_s, address.failures = RETRY_FIRST_S, 0
        address.outcome, address.info = AddressOutcome.FAILED, "the connection was lost"
        address.next_at = now + self._rng.random() * REDIAL_JITTER_S

    def refused(self, now: float, link: Link, info: str) -> None:
        """One side refused ``link``, for a reason that will not pass soon."""
        for address in self.addresses.values():
            if address.link == link.id:
                self._back_off(now, address, AddressOutcome.REFUSED, info)

    def found_self(self, now: float, link: Link) -> None:
        for address in self.addresses.values():
            if address.link == link.id:
                self._found_self(now, address)

    def _found_self(self, now: float, address: Address) -> None:
        address.outcome, address.info, address.tried = AddressOutcome.SELF, "this is ourselves", True
        address.next_at = now + RERESOLVE_S
        self._touch()

    def _back_off(self, now: float, address: Address, outcome: AddressOutcome, info: str) -> None:
        address.outcome, address.info, address.tried = outcome, info, True
        address.failures += 1
        self._touch()
        is_given_up = self._is_given_up(address)
        cap_s = RETRY_REFUSED_CAP_S if outcome is AddressOutcome.REFUSED or is_given_up else RETRY_CAP_S
        if outcome is AddressOutcome.FAILED and address.dialled_at < self._kicked_at and not is_given_up:
            # This attempt began before the network got better and says nothing about it now.
            address.next_at = now + self._rng.random() * REDIAL_JITTER_S
            return
        # The time an attempt took counts: a dial into a partition may have hung for seconds.
        address.next_at = max(now, address.dialled_at + self._jittered(min(address.delay_s, cap_s)))
        address.delay_s = min(address.delay_s * RETRY_FACTOR, RETRY_REFUSED_CAP_S)

    def _is_given_up(self, address: Address) -> bool:
        """Of no target, failed for minutes, and nobody reaches who was there: most likely that host is no more."""
        if address.targets or address.failures <= _DISCOVERED_PATIENCE:
            return False
        return address.peer is None or not self._is_reachable(address.peer)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * (1 + RETRY_JITTER * (2 * self._rng.random() - 1))

    # --- views ---

    def target_peers(self) -> set[PeerId]:
        """Who was found behind the targets."""
        return {address.peer for address in self.addresses.values() if address.targets and address.peer is not None}

    def is_tried(self, aim: Aim) -> bool:
        if aim.error:
            return True
        if aim.resolved_at is None:
            return False
        addresses = map(self.addresses.__getitem__, aim.addresses)
        return all(address.tried or self.is_self(address) or self.is_connected(address) for address in addresses)

    def electors(self, is_observer: Callable[[PeerId], bool]) -> int:
        """Distinct electors that the targets stand for (spec of genesis by consensus), ourselves not included: per
        name the address family with more addresses, an unresolved name as one, ourselves and observers as none, a
        peer that was met once."""
        peers: set[PeerId] = set()
        unmet: set[Endpoint] = set()
        unresolved = 0
        for aim in self.aims.values():
            if not aim.addresses:
                unresolved += 1
                continue
            six = [endpoint for endpoint in aim.addresses if ":" in endpoint[0]]
            four = [endpoint for endpoint in aim.addresses if ":" not in endpoint[0]]
            for endpoint in six if len(six) > len(four) else four:
                address = self.addresses[endpoint]
                if self.is_self(address):
                    continue
                if address.peer is None:
                    unmet.add(endpoint)
                elif not is_observer(address.peer):
                    peers.add(address.peer)
        return len(peers) + len(unmet) + unresolved

    def check(self) -> None:
        """Raises InvariantBroken."""
        for endpoint, address in self.addresses.items():
            if endpoint != (address.host, address.port) or (address.dial is not None and address.link is not None):
                raise InvariantBroken(f"address {endpoint} is filed wrongly or connected twice")
            if address.dial is not None and self._dials.get(address.dial) != endpoint:
                raise InvariantBroken(f"dial {address.dial} of {endpoint} is not remembered")
            if not address.targets and address.discovered is None and not address.is_busy:
                raise InvariantBroken(f"address {endpoint} is of no use and still kept")
        for text, aim in self.aims.items():
            for endpoint in aim.addresses:
                if endpoint not in self.addresses or text not in self.addresses[endpoint].targets:
                    raise InvariantBroken(f"target {text} lost its address {endpoint}")
