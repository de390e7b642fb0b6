"""The life of links: hellos, refusals, which of two stays, signs of life, and their end.

One timer beats for all links. A link is silent when nothing was heard for three intervals of the sender, at most 10 s;
after a pause of our own (stopped process, suspended host) each link first gets one interval to be heard (history
*suspend*). Heartbeats pass ahead of unfinished persists and therefore start only once a link is established: before,
one could overtake our own hello.

Invariant: at most one established link per peer. Does not look into gossip.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from weavenet.core.config import NodeConfig
from weavenet.core.effects import CloseLink, Outbox, Send
from weavenet.core.errors import RefusalCode
from weavenet.core.events import LinkClosed, LinkOpened
from weavenet.core.limits import (
    HANDSHAKE_TIMEOUT_S,
    HEARTBEAT_BUSY_LINKS,
    HEARTBEAT_BUSY_S,
    HEARTBEAT_IDLE_S,
    LINK_LIVED_S,
)
from weavenet.core.mesh.dialing import Dialer
from weavenet.core.mesh.failures import InboundFailure, InboundFailures
from weavenet.core.mesh.greeting import judge, own_hello
from weavenet.core.mesh.links import Gossip, Link, Links, LinkState, LinkStep
from weavenet.core.mesh.records import Records
from weavenet.core.mesh.room import Room
from weavenet.core.mesh.shared import Shared
from weavenet.core.messages.link import Heartbeat, Hello, Refusal
from weavenet.core.types import PeerId, peer_text

_PAUSE_NOTICED_S = 2 * HEARTBEAT_BUSY_S
"""Time between two events beyond which we were stopped, not idle: with links up there is a beat every second."""
_BUSY_S = 5.0
"""A link that carried something within this time beats fast."""
_RTT_WEIGHT = 0.2
_RTT_MAX_S = 60.0
_HARMLESS = frozenset({RefusalCode.DUPLICATE, RefusalCode.SILENT, RefusalCode.STOPPING, RefusalCode.SLOW})
"""Ends of a link that are no verdict on the peer: it is dialled again as after any loss."""


class Sessions:
    """``on_greeted(link)``: its hello was accepted; ``on_rejected(link)``: they refused ours then. ``on_up(now, link,
    replaced)`` and ``on_down(now, link)`` follow the established link of a peer; ``replaced`` is the link that the new
    one takes the place of."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        incarnation: int,
        outbox: Outbox,
        rng: random.Random,
        shared: Shared,
        links: Links,
        records: Records,
        dialer: Dialer,
        room: Room,
        on_greeted: Callable[[Link], None],
        on_rejected: Callable[[Link], None],
        on_up: Callable[[float, Link, Link | None], None],
        on_down: Callable[[float, Link], None],
    ) -> None:
        self._config = config
        self._incarnation = incarnation
        self._outbox = outbox
        self._rng = rng
        self._shared = shared
        self._links = links
        self._records = records
        self._dialer = dialer
        self._room = room
        self._on_greeted = on_greeted
        self._on_rejected = on_rejected
        self._on_up = on_up
        self._on_down = on_down
        self.failures = InboundFailures()
        self._beat_at = 0.0
        self._seen_at: float | None = None
        self.removed_us = ""
        """The words of a peer that says we were removed, and whose log's epoch is not below ours."""
        self.terminations = 0
        """Established links that ended, apart from duplicates."""

    # --- opening ---

    def opened(self, now: float, event: LinkOpened) -> None:
        """TLS is done: greet the peer, unless it is ourselves."""
        if not self._links.by_id:
            self._beat_at = now + self._rng.random() * HEARTBEAT_BUSY_S
        link = Link(
            id=event.link,
            peer=event.peer,
            name=event.name,
            host=event.host,
            port=event.port,
            dial=event.dial,
            nonce=self._rng.getrandbits(63),
            opened_at=now,
            heard_at=now,
            gossip=Gossip(),
            password_line=event.password_line,
        )
        self._links.by_id[link.id] = link
        dialled = self._dialer.opened(link)
        if dialled is not None:
            link.host, link.port = dialled
        if link.peer == self._config.peer:
            self._dialer.found_self(now, link)
            self.close(now, link, RefusalCode.SELF, "this is ourselves; nothing to do")
            return
        known = self._records.mark(link.peer)
        hello = own_hello(self._config, self._shared, self._incarnation, link, known)
        self._outbox.append(Send(link.id, hello))

    def greeted(self, now: float, link: Link, hello: Hello) -> None:
        if link.state is not LinkState.GREETING:
            self.refuse(now, link, RefusalCode.MALFORMED, "expected one hello per link, found a second; report this")
            return
        refusal = judge(self._config, self._links, self._room, link, hello)
        link.hello = hello
        if hello.peer == link.peer:
            self._records.told_of_us(*hello.known)
        if refusal is None:
            refusal = self._shared.admit(now, link.peer, hello)
        if refusal is not None:
            self.refuse(now, link, refusal.code, refusal.sentence)
            return
        link.step(LinkStep.ACCEPT)
        self._on_greeted(link)
        self._beat(now, link, is_stateless=False)

    def heard(self, now: float, link: Link) -> bool:
        """Something else than a hello or refusal came: they accepted ours. False when they must not send yet."""
        link.heard_at = now
        match link.state:
            case LinkState.GREETING:
                self.refuse(now, link, RefusalCode.MALFORMED, "expected a hello first, found another message")
                return False
            case LinkState.AGREED:
                self._establish(now, link)
                return link.is_established
            case LinkState.ESTABLISHED:
                return True
            case LinkState.CLOSING:
                return False

    def _establish(self, now: float, link: Link) -> None:
        link.step(LinkStep.CONFIRM)
        link.established_at = now
        held = self._links.by_peer.get(link.peer)
        if held is not None:
            later = max(held, link, key=lambda one: (one.incarnation, -one.rank))
            if later is held:
                self.close(now, link, RefusalCode.DUPLICATE, "another link to this peer is kept")
                return
            is_restarted = held.incarnation < link.incarnation
            sentence = "the peer was started anew" if is_restarted else "another link to this peer is kept"
            self._links.by_peer[link.peer] = link
            self.close(now, held, RefusalCode.DUPLICATE, sentence)
        elif not self._room.is_left and not self._make_room(now, link):
            text = f"expected at most {self._config.conn_limit} links, found all in use; next: raise --conn-limit"
            self.refuse(now, link, RefusalCode.TOO_MANY, text)
            return
        self._links.by_peer[link.peer] = link
        self.failures.forget(link.host)
        self._dialer.established(link)
        if held is None:
            self._outbox.note("info", "links", f"{link.title} connected")
        elif held.incarnation != link.incarnation:
            self._outbox.note("info", "links", f"{link.title} was started anew, and connected")
        self._on_up(now, link, held)

    def _make_room(self, now: float, link: Link) -> bool:
        spare = self._room.spare(link.peer)
        if spare is None:
            return False
        ours = self._config.nickname or self._config.name
        sentence = (
            f"expected at most {self._config.conn_limit} links, found all in use on {ours}, and {link.title} without "
            "any; nothing to do, you are reached over others"
        )
        self._outbox.note("info", "links", f"{spare.title} makes room for {link.title}, and is reached over others")
        self.close(now, spare, RefusalCode.TOO_MANY, sentence)
        return True

    # --- ending ---

    def refuse(self, now: float, link: Link, code: RefusalCode, sentence: str) -> None:
        """Close ``link`` and tell the peer why."""
        self._note(f"{link.title} refused: {sentence}")
        self._record_refusal(now, link, code, sentence)
        self.close(now, link, code, sentence)

    def refused(self, now: float, link: Link, refusal: Refusal) -> None:
        """The peer closes ``link`` and says why."""
        if link.state is LinkState.CLOSING:
            return
        if refusal.code is RefusalCode.DUPLICATE and link.is_established:
            # It keeps another link, so it accepted that one: no need to wait for its first sign of life there.
            for other in self._links.of_peer(link.peer, LinkState.AGREED):
                self._establish(now, other)
                if not link.is_established:
                    return
        elif refusal.code is RefusalCode.REMOVED:
            hello = link.hello
            if hello is not None and (hello.epoch, hello.epoch_id) >= self._shared.hello().epoch:
                self.removed_us = refusal.sentence
        elif refusal.code not in _HARMLESS:
            self._note(f"{link.title} refused us: {refusal.sentence}")
        if link.state is LinkState.AGREED and refusal.code not in _HARMLESS:
            self._on_rejected(link)
        self._record_refusal(now, link, refusal.code, refusal.sentence)
        self._end(now, link, refusal.code, refusal.sentence)
        self._outbox.append(CloseLink(link.id, refusal.code, refusal.sentence))

    def _record_refusal(self, now: float, link: Link, code: RefusalCode, sentence: str) -> None:
        if code in _HARMLESS:
            return
        if code is RefusalCode.SELF:
            self._dialer.found_self(now, link)
        elif link.outbound:
            self._dialer.refused(now, link, sentence)
        else:
            hello = link.hello
            nickname = "" if hello is None else hello.nickname
            peer = peer_text(link.peer)
            self.failures.add(InboundFailure(now, link.host, link.port, code, sentence, peer, link.name, nickname))

    def close(self, now: float, link: Link, code: RefusalCode, sentence: str) -> None:
        """Tell the peer and the driver; what still comes in on ``link`` is not looked at."""
        if link.state is LinkState.CLOSING:
            return
        self._outbox.append(Send(link.id, Refusal(code, sentence[:500])))
        self._outbox.append(CloseLink(link.id, code, sentence))
        self._end(now, link, code, sentence)

    def closed(self, now: float, event: LinkClosed) -> None:
        link = self._links.by_id.pop(event.link, None)
        if link is None:
            return
        if link.state is not LinkState.CLOSING:
            if event.code is not None:
                self._record_refusal(now, link, event.code, event.sentence)
            self._end(now, link, event.code, event.sentence or "the connection was closed")

    def _end(self, now: float, link: Link, code: RefusalCode | None, info: str) -> None:
        link.step(LinkStep.CLOSE)
        link.code, link.info = code, info
        was_held = self._links.by_peer.get(link.peer) is link
        if was_held:
            del self._links.by_peer[link.peer]
        has_lived = link.established_at is not None and now - link.established_at >= LINK_LIVED_S
        self._dialer.closed(now, link, has_lived=has_lived or code is RefusalCode.DUPLICATE, info=info)
        if was_held:
            if code is None or (code in _HARMLESS and code is not RefusalCode.DUPLICATE):  # of others it was told
                self._outbox.note("info", "links", f"{link.title} disconnected: {info}")
            self.terminations += code is not RefusalCode.DUPLICATE
            self._on_down(now, link)

    def _note(self, text: str) -> None:
        self._outbox.note("warning", "links", text)

    # --- signs of life ---

    def deadline(self) -> float | None:
        return self._beat_at if self._links.by_id else None

    def is_due(self, now: float) -> bool:
        return bool(self._links.by_id) and now >= self._beat_at

    def notice_pause(self, now: float) -> None:
        """To be called with every event, before it. We may have been stopped for minutes with all the heartbeats of
        that time still to be read."""
        if self._seen_at is not None and now - self._seen_at > _PAUSE_NOTICED_S:
            for link in self._links.by_id.values():
                link.grace_until = max(link.grace_until, now + link.interval_s + HEARTBEAT_BUSY_S)
        self._seen_at = now

    def tick(self, now: float, before_beat: Callable[[Link], None]) -> None:
        """Send the heartbeats that are due, ``before_beat`` first, and close what is silent."""
        if not self.is_due(now):
            return
        missed = int((now - self._beat_at) / HEARTBEAT_BUSY_S)
        self._beat_at += (missed + 1) * HEARTBEAT_BUSY_S
        for link in list(self._links.by_id.values()):
            if link.state is LinkState.CLOSING:
                continue
            if link.established_at is None:
                if now >= max(link.opened_at + HANDSHAKE_TIMEOUT_S, link.grace_until):
                    self.refuse(now, link, RefusalCode.SLOW, f"expected a hello within {HANDSHAKE_TIMEOUT_S:.0f} s")
            elif now >= link.silent_at():
                silence_s = now - link.heard_at
                self.close(now, link, RefusalCode.SILENT, f"nothing was heard for {silence_s:.1f} s")
            elif now >= link.beat_at - HEARTBEAT_BUSY_S / 4:
                before_beat(link)
                self._beat(now, link, is_stateless=True)

    def _beat(self, now: float, link: Link, *, is_stateless: bool) -> None:
        is_busy = len(self._links.by_peer) <= HEARTBEAT_BUSY_LINKS or now - link.used_at < _BUSY_S
        interval_s = HEARTBEAT_BUSY_S if is_busy else HEARTBEAT_IDLE_S
        link.beat_at = now + interval_s
        echo_us = 0
        if link.echo is not None:
            sent_us, received_at = link.echo
            echo_us = sent_us + int((now - received_at) * 1e6)
        heartbeat = Heartbeat(int(now * 1e6), echo_us, int(interval_s * 1000))
        self._outbox.append(Send(link.id, heartbeat, is_stateless))

    def beaten(self, now: float, link: Link, heartbeat: Heartbeat) -> None:
        link.echo = (heartbeat.sent_us, now)
        link.interval_s = min(max(heartbeat.interval_ms / 1000, HEARTBEAT_BUSY_S), HEARTBEAT_IDLE_S)
        rtt_s = now - heartbeat.echo_us / 1e6
        if heartbeat.echo_us and 0 <= rtt_s < _RTT_MAX_S:
            link.rtt_s = rtt_s if link.rtt_s is None else link.rtt_s + _RTT_WEIGHT * (rtt_s - link.rtt_s)

    def banish(self, now: float, peers: frozenset[PeerId], *, have_left: bool) -> None:
        """Refuse every link of ``peers``, greeting ones too; those of peers that left as they wanted just end."""
        sentence = "this peer was removed from the cluster; next: nothing, it comes back under a new identity by itself"
        for link in list(self._links.by_id.values()):
            if link.peer not in peers or link.state is LinkState.CLOSING:
                continue
            if have_left:
                self.close(now, link, RefusalCode.STOPPING, "this peer has left the cluster")
            else:
                self.refuse(now, link, RefusalCode.REMOVED, sentence)

    def refuse_links(self, now: float, code: RefusalCode, sentence: str, ids: set[int]) -> None:
        """Refuse those of the links ``ids`` that are established."""
        for link in self._links.established():
            if link.id in ids:
                self.refuse(now, link, code, sentence)
