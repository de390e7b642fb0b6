"""From the network to the TAP device: batches of datagrams are opened, put together again and written.

Everything is checked before it is used: sizes, the keys that a datagram names, that its counter is new, the tag. Only
then its counter is noted, its source believed, its content looked at, and the frame checked for what the kernel may
be given. What fails is dropped and counted.

A batch does not end where a unit does, so what is incomplete at its end is kept while more waits in the socket. When
nothing waits, segments that have arrived are written as they are: waiting for more would only add delay. Fragments
of a sealed frame are of no use alone and are kept until the frame is complete or newer ones push it out.

Bounds: PARTIALS_MAX incomplete frames per peer, of PARTIAL_BYTES_MAX each, kept until the second :meth:`Inbound.sweep`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from weavenet.sleeve.counts import Counts
from weavenet.sleeve.delivery import Delivery
from weavenet.sleeve.partial import Partial
from weavenet.sleeve.segments import Segments
from weavenet.sleeve.session import Opening, Session, Sessions
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.udp import SEND_DATAGRAMS_MAX, UdpSocket
from weavenet.sleeve.wire import (
    COUNTER_AT,
    HEADER_BYTES,
    HOPS_AT,
    HOPS_START,
    INDEX_AT,
    LAST_AT,
    NONCE_START,
    PREFIX_BYTES,
    SHORT_ID_BYTES,
    TAG_BYTES,
    Kind,
)

BATCHES_PER_WAKE = 32
PARTIALS_MAX = 4
_H = HEADER_BYTES
_DESTINATION_AT = PREFIX_BYTES - SHORT_ID_BYTES
_SEGMENT, _WHOLE, _CONTROL = int(Kind.SEGMENT), int(Kind.WHOLE), int(Kind.CONTROL)


class Inbound:
    """``on_control(session, plaintext, source, direct)``: an authenticated control message; ``source``: raw
    address."""

    def __init__(
        self,
        tap: int,
        udp: UdpSocket,
        sessions: Sessions,
        on_control: Callable[[Session, bytes, bytes, bool], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._udp = udp
        self._sessions = sessions
        self._on_control = on_control
        self._now = now
        self._arrival = udp.arrival
        self._headers = udp.arrival.headers
        self._news: list[Session] = []
        self._source = b""
        self.counts = Counts()
        self.delivery = Delivery(tap, self.counts)
        self._segments = Segments(udp.arrival, self.delivery, self.counts)
        self.failure: Exception | None = None
        """The newest exception that dropped a datagram: a fault of this program; the owner notes and clears it."""

    def drain(self) -> bool:
        """Take what waits in the socket, up to a bound; True when there may be more."""
        more = True
        for _ in range(BATCHES_PER_WAKE):
            if not self._udp.receive():
                more = False
                break
            self._batch()
        run = self._segments.run
        if run is not None:
            try:
                self._segments.write()
            except Exception as error:
                self._failed(run.session, error)
        return more

    def take_news(self, now: float, interval_s: float) -> list[Session]:
        """Peers that are to hear of losses now; each at most once in ``interval_s``."""
        if not self._news:
            return []
        due = [session for session in self._news if now >= session.report_at]
        if due:
            self._news = [session for session in self._news if now < session.report_at]
        for session in due:
            session.has_news = False
            session.report_at = now + interval_s
        return due

    def sweep(self) -> None:
        """Forget incomplete frames that were here at the last call: nothing more of them comes."""
        for session in self._sessions.by_peer.values():
            for partial in [*session.partials.values()]:
                if partial.is_old:
                    del session.partials[partial.base]
                    self.counts.incomplete += 1
                partial.is_old = True

    # --- datagrams ---

    def _batch(self) -> None:
        """What one receive brought."""
        arrival, headers = self._arrival, self._headers
        self._source = self._udp.source
        openings = self._sessions.openings
        count = arrival.count
        if arrival.stride <= _H:
            self.counts.malformed += count
            return
        if arrival.last_bytes <= _H:
            self.counts.malformed += 1
            count -= 1
        prefix, opening = b"", None
        number = 0
        while number < count:
            at = number * _H
            found = headers[at : at + PREFIX_BYTES].tobytes()
            if found != prefix:
                prefix, opening = found, openings.get(found)
            try:
                if opening is None:
                    number += self._relay(prefix[_DESTINATION_AT:], number)
                elif opening.kind == _SEGMENT:
                    number += self._open_segments(opening, number)
                elif opening.kind == _WHOLE:
                    number += self._fragments(opening, number)
                else:
                    self._single(opening, number)
                    number += 1
            except Exception as error:  # one datagram must not end what carries everybody's
                number += 1
                self._failed(opening.session if opening else None, error)

    def _failed(self, session: Session | None, error: Exception) -> None:
        self.counts.malformed += 1
        self.failure = error
        if session is not None:
            self._segments.forget(session)

    def _open_segments(self, opening: Opening, number: int) -> int:
        """Segments of one unit, as many as follow each other in the batch; returns how many datagrams that were."""
        session = opening.session
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return 1
        at = number * _H
        place = self._headers[at + COUNTER_AT : at + HOPS_AT].tobytes()
        base, index, last = int.from_bytes(place[:6], "big"), place[6], place[7]
        if index > last or len(self._arrival.body(number)) < TAG_BYTES + VNET_BYTES:
            self.counts.malformed += 1
            return 1
        window, segments = key.window, self._segments
        if base + index > window.top:
            taken = segments.open(session, key, base, index, last, number, self._arrival.following(number))
            if taken:
                lost = window.accept_next(base + index, taken)
                self._authenticated(opening, taken, lost, number + taken - 1)
                return taken
        elif not window.is_fresh(base + index):
            self._replayed(session)
            return 1
        if not segments.open(session, key, base, index, last, number, 1):
            self._forged(session)
            return 1
        self._authenticated(opening, 1, window.accept(base + index), number)
        return 1

    def _fragments(self, opening: Opening, number: int) -> int:
        """Fragments of one sealed frame that follow each other in the batch; returns how many datagrams that were."""
        session, arrival = opening.session, self._arrival
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return 1
        at = number * _H
        header = self._headers[at : at + _H].tobytes()
        base = int.from_bytes(header[COUNTER_AT:INDEX_AT], "big")
        index, last = header[INDEX_AT], header[LAST_AT]
        if not key.window.is_fresh(base):
            self._replayed(session)
            return 1
        if index > last:
            self.counts.malformed += 1
            return 1
        count = arrival.following(number) if last else 1
        if count > last:  # all of it, the usual case
            if self._open_frame(opening, base, last, arrival.together(number, count), number + last):
                session.partials.pop(base, None)
            return count
        partial = session.partials.get(base)
        if partial is None:
            if len(session.partials) >= PARTIALS_MAX:
                del session.partials[next(iter(session.partials))]
                self.counts.incomplete += 1
            partial = session.partials[base] = Partial(base, last)
        if not partial.take(index, last, count, arrival, number):
            self.counts.malformed += 1
            return 1
        if partial.is_too_large:
            del session.partials[base]
            self.counts.malformed += 1
        elif partial.next > partial.last:
            del session.partials[base]
            sealed = memoryview(bytearray().join(partial.pieces))
            self._open_frame(opening, base, last, sealed, number + count - 1)
        return count

    def _open_frame(self, opening: Opening, base: int, last: int, sealed: memoryview, number: int) -> bool:
        """Where it lies. ``number``: of its last datagram."""
        session, key = opening.session, opening.key
        assert key is not None
        if len(sealed) < TAG_BYTES:
            self.counts.malformed += 1
            return False
        plain = sealed[: len(sealed) - TAG_BYTES]
        try:
            nonce = NONCE_START[Kind.WHOLE] + base.to_bytes(6, "big") + bytes((0, last))
            key.aead.decrypt_into(nonce, sealed, None, plain)
        except InvalidTag:
            self._forged(session)
            return False
        self._authenticated(opening, last + 1, key.window.accept(base, last + 1), number)
        self._write_run(session)
        self.delivery.frame(session, plain)
        return True

    def _single(self, opening: Opening, number: int) -> None:
        session = opening.session
        key = opening.key or self._sessions.key_of(opening)
        sealed = self._arrival.body(number)
        if key is None or len(sealed) < TAG_BYTES:
            self.counts.malformed += 1
            return
        at = number * _H
        place = self._headers[at + COUNTER_AT : at + HOPS_AT].tobytes()
        counter = int.from_bytes(place[:6], "big")
        if not key.window.is_fresh(counter):
            self._replayed(session)
            return
        plain = sealed[: len(sealed) - TAG_BYTES]
        try:
            key.aead.decrypt_into(NONCE_START[opening.kind] + place, sealed, None, plain)
        except InvalidTag:
            self._forged(session)
            return
        self._authenticated(opening, 1, key.window.accept(counter), number)
        if opening.kind == _CONTROL:
            self._on_control(session, plain.tobytes(), self._source, self._headers[at + HOPS_AT] == HOPS_START)
            return
        self._write_run(session)
        self.delivery.batch(session, plain)

    def _write_run(self, session: Session) -> None:
        """So that frames of one peer stay in order."""
        run = self._segments.run
        if run is not None and run.session is session:
            self._segments.write()

    def _replayed(self, session: Session) -> None:
        self.counts.replayed += 1
        session.refused += 1

    def _forged(self, session: Session) -> None:
        self.counts.forged += 1
        session.refused += 1

    def _authenticated(self, opening: Opening, count: int, lost: int, number: int) -> None:
        """``count`` datagrams of a peer were genuine and new, ``lost`` before them were missing, negative: came late.
        ``number``: of the last of them."""
        session = opening.session
        session.received += count
        if lost:
            session.lost = max(0, session.lost + lost)
            if lost > 0 and not session.has_news:
                session.has_news = True
                self._news.append(session)
        if opening.own != session.confirmed:
            self._sessions.confirm(session, opening.own)
        if session.path.learned != self._source and self._headers[number * _H + HOPS_AT] == HOPS_START:
            session.path.learned = self._source
            session.path.changed = True
            self._sessions.route()

    # --- datagrams for others ---

    def _relay(self, destination: bytes, number: int) -> int:
        """Forward what follows for one other peer in the batch, unopened; only for peers, so that nobody is hit with
        what a stranger sends, and over no more hops than anything honest has left, since that byte is not sealed.
        Returns how many datagrams that were."""
        session = self._sessions.by_short.get(destination)
        headers, arrival = self._headers, self._arrival
        hops = headers[number * _H + HOPS_AT]
        if session is None or self._source not in self._sessions.names or not 0 < hops <= HOPS_START:
            self.counts.unknown += 1
            return 1
        stop = number
        while stop < min(arrival.count, number + SEND_DATAGRAMS_MAX):
            at = stop * _H
            if headers[at + _DESTINATION_AT : at + PREFIX_BYTES].tobytes() != destination:
                break
            if not 0 < headers[at + HOPS_AT] <= HOPS_START:
                break
            if stop == arrival.count - 1 and arrival.last_bytes <= _H:
                break
            headers[at + HOPS_AT] -= 1
            stop += 1
        name = session.name
        if name is not None and name != self._source:
            self.counts.relayed += 1
            if headers[number * _H] & 15 != _CONTROL:
                (session.path.via or session.path).relayed(self._now())
            body = arrival.last_bytes if stop == arrival.count else arrival.stride
            self._udp.send_scattered(arrival.relayable(), number, stop - number, body - _H, name)
        return stop - number
