"""What the worker holds per peer, and the tables by which frames and datagrams find it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from weavenet.core.overlay.sleeve import SleeveDesired, SleeveKey, SleevePeer
from weavenet.core.types import PeerId
from weavenet.sleeve.keys import PAIR_OVERLAP_S, OwnPairs, ReceivingKey, SendingKey
from weavenet.sleeve.partial import Partial
from weavenet.sleeve.path import Path
from weavenet.sleeve.udp import room_to, sockaddr
from weavenet.sleeve.wire import SHORT_ID_BYTES, Kind, prefix, short_id


class Session:
    """One peer. ``name``: the raw address to which its datagrams go now, None when there is none."""

    def __init__(self, peer: PeerId, now: float, rng: random.Random) -> None:
        self.peer = peer
        self.short = short_id(peer)
        self.path = Path(now, rng, room_to)
        self.wanted = SleevePeer(peer, (), (), None, False, False, False, ())
        self.name: bytes | None = None
        self.sending: SendingKey | None = None
        self.prefixes: dict[Kind, bytes] = {}
        self.confirmed = -1
        """Number of our key that the peer used last: it knows that one."""
        self.is_open = False
        self.takes_groups = False
        self.partials: dict[int, Partial] = {}
        self.batch: list[bytes] = []
        self.batch_size = 0
        self.received = self.lost = self.refused = 0
        self.sent_bytes = self.received_bytes = 0
        self.report_at = 0.0
        self.has_news = False
        self.sampled = (0, 0)
        self.heard_at = float("-inf")
        """When the last sample showed that something had come."""


class Opening:
    """What a datagram's first 15 bytes lead to. The key is derived when the first such datagram comes."""

    __slots__ = ("key", "kind", "own", "session", "theirs")

    def __init__(self, session: Session, kind: Kind, own: int, theirs: SleeveKey) -> None:
        self.session = session
        self.kind = kind
        self.own = own
        self.theirs = theirs
        self.key: ReceivingKey | None = None


class Sessions:
    """All peers, kept in line with the desired state. ``by_mac``: where unicast frames go; ``groups``: who gets group
    frames; ``openings``: by datagram prefix; ``by_short``: for relaying."""

    def __init__(self, pairs: OwnPairs, family: int, rng: random.Random) -> None:
        self.pairs = pairs
        self._family = family
        self._rng = rng
        self.me = PeerId(b"")
        self.by_peer: dict[PeerId, Session] = {}
        self.by_mac: dict[bytes, Session] = {}
        self.by_short: dict[bytes, Session] = {}
        self.groups: tuple[Session, ...] = ()
        self.openings: dict[bytes, Opening] = {}
        self.names: set[bytes] = set()
        """Raw addresses of peers: a relay forwards only what comes from one of them."""
        self.warnings: tuple[str, ...] = ()

    def apply(self, now: float, desired: SleeveDesired) -> None:
        """Make the tables those of ``desired``; sessions and windows of peers that stay are kept."""
        self.me = desired.me
        wanted = {peer.peer: peer for peer in desired.peers if peer.peer != desired.me}
        for gone in self.by_peer.keys() - wanted.keys():
            del self.by_peer[gone]
        for peer, want in wanted.items():
            session = self.by_peer.get(peer)
            if session is None:
                session = self.by_peer[peer] = Session(peer, now, self._rng)
            self._follow(now, session, want)
        self._tabulate()

    def rekeyed(self) -> None:
        """Our own pairs changed."""
        for session in self.by_peer.values():
            self.choose_key(session)
            session.path.next_at = 0.0  # so that the peer sees the new key in use
        self._tabulate()

    def sample(self, now: float, session: Session) -> None:
        """What came and what was lost since the last sample."""
        received, lost = session.sampled
        session.sampled = session.received, session.lost
        session.path.sample_loss(session.received - received, max(0, session.lost - lost))
        if session.received != received:
            session.heard_at = now

    def uses_pair(self, now: float, number: int) -> bool:
        """Whether a peer that was heard lately seals for our pair ``number``."""
        return any(
            session.confirmed == number and now - session.heard_at < PAIR_OVERLAP_S for session in self.by_peer.values()
        )

    def _follow(self, now: float, session: Session, want: SleevePeer) -> None:
        old, session.wanted, path = session.wanted, want, session.path
        session.is_open = want.is_open
        session.takes_groups = want.carries and want.takes_groups and want.is_open
        if want.endpoints != old.endpoints:
            path.candidates = tuple(_names(self._family, want))
        path.carries, path.has_relay = want.carries, want.relay is not None
        if want.keys != old.keys:
            self.choose_key(session)
        if (want.endpoints, want.keys, want.relay, want.carries) != (old.endpoints, old.keys, old.relay, old.carries):
            path.kick(now)

    def choose_key(self, session: Session) -> None:
        """The newest of ours that the peer has shown to know (or the only one), towards its newest. None when that
        has sealed what one key may: until the peer shows that it has heard of our next."""
        session.sending = None
        if not session.wanted.keys:
            return
        confirmed = self.pairs.by_number(session.confirmed)
        pair = confirmed if confirmed is not None else self.pairs.pairs[0]
        theirs = session.wanted.keys[-1]
        try:
            key = pair.sending(self.me, session.peer, theirs)
        except ValueError:
            return  # a public key of low order is no key; the path shows as not working
        if key.is_exhausted:
            return
        session.sending = key
        session.prefixes = {kind: prefix(kind, pair.key.number, theirs.number, self.me, session.peer) for kind in Kind}

    def confirm(self, session: Session, number: int) -> None:
        """The peer sealed for our key ``number``."""
        session.confirmed = number
        self.choose_key(session)

    def _tabulate(self) -> None:
        openings = {}
        for session in self.by_peer.values():
            for theirs in session.wanted.keys:
                for pair in self.pairs.pairs:
                    for kind in Kind:
                        opening = Opening(session, kind, pair.key.number, theirs)
                        openings[prefix(kind, theirs.number, pair.key.number, session.peer, self.me)] = opening
        self.openings = openings
        self.by_mac = {
            mac: session for session in self.by_peer.values() if session.is_open for mac in session.wanted.macs
        }
        self.groups = tuple(session for session in self.by_peer.values() if session.takes_groups)
        self.by_short = {}
        clashes = []
        for session in self.by_peer.values():
            other = self.by_short.setdefault(session.short, session)
            if other is not session or session.short == short_id(self.me):
                clashes.append(session.peer.hex())
        self.warnings = tuple(
            f"peer {text} shares the first {SHORT_ID_BYTES} bytes of its id with another: it cannot be relayed to; "
            "give it a new key with `weave reset` there"
            for text in clashes[:4]
        )
        self.route()

    def key_of(self, opening: Opening) -> ReceivingKey | None:
        """Derive what ``opening`` needs. None when it cannot be."""
        pair = self.pairs.by_number(opening.own)
        if pair is None:
            return None
        try:
            opening.key = pair.receiving(self.me, opening.session.peer, opening.theirs)
        except ValueError:
            return None
        return opening.key

    def route(self) -> None:
        """Choose for each peer where its datagrams go: directly when that works, else over its relay."""
        names = set()
        for session in self.by_peer.values():
            session.name = session.path.direct_name
            relay = self.by_peer.get(session.wanted.relay) if session.wanted.relay else None
            session.path.via = None
            if relay is not None and not session.path.is_direct:
                session.path.via = relay.path
                session.name = relay.path.direct_name
            if session.path.learned is not None:
                names.add(session.path.learned)
        self.names = names

    def relay_name(self, session: Session) -> bytes | None:
        relay = self.by_peer.get(session.wanted.relay) if session.wanted.relay else None
        return relay.path.direct_name if relay is not None else None


def _names(family: int, peer: SleevePeer) -> Iterable[bytes]:
    for endpoint in peer.endpoints:
        try:
            name = sockaddr(family, endpoint)
        except ValueError:
            continue
        if name is not None:
            yield name
