"""From the network to the TAP device: batches of datagrams are opened, put together again and written.

Everything is checked before it is used: sizes, the keys that a datagram names, that its counter is new, the tag. Only
then its counter is noted, its source believed, its content looked at, and the frame checked for what the kernel may
be given. What fails is dropped and counted.

A batch does not end where a unit does, so what is incomplete at its end is kept while more waits in the socket. When
nothing waits, segments that have arrived are written as they are: waiting for more would only add delay. Fragments
of a sealed frame are of no use alone and are kept until the frame is complete or newer ones push it out.

Bounds: PARTIALS_MAX incomplete frames per peer, of FRAGMENTS_MAX fragments each.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from weavenet.sleeve.session import Opening, Partial, Run, Session, Sessions
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.udp import Buffer, UdpSocket
from weavenet.sleeve.units import header_end, part, valid_vnet
from weavenet.sleeve.wire import (
    AAD_BYTES,
    HEADER_BYTES,
    HOPS_AT,
    HOPS_START,
    OVERHEAD_BYTES,
    PREFIX_BYTES,
    SHORT_ID_BYTES,
    TAG_BYTES,
    Kind,
)

BATCHES_PER_WAKE = 32
PARTIALS_MAX = 4
RUN_BYTES_MAX = 65_000
LAYOUTS_MAX = 16
"""Sizes of datagrams for which views are kept."""
AREA_BYTES = 1 << 21
"""Opened segments lie here until they are written; when it is full, all runs are written first."""
_H = HEADER_BYTES
_DESTINATION_AT = PREFIX_BYTES - SHORT_ID_BYTES
_INDEX_AT, _LAST_AT = 21, 22
_INDICES = bytes(range(256))


class Inbound:
    """``on_control(session, plaintext, source, direct)``: an authenticated control message; ``source``: raw
    address."""

    def __init__(
        self, tap: int, udp: UdpSocket, sessions: Sessions, on_control: Callable[[Session, bytes, bytes, bool], None]
    ) -> None:
        self._tap = tap
        self._udp = udp
        self._sessions = sessions
        self._on_control = on_control
        self._view = udp.received.view
        self._area = Buffer(AREA_BYTES).view
        self._area_used = 0
        self._running: list[Session] = []
        self._news: list[Session] = []
        self._source = b""
        self._plain = Buffer(1 << 17).view
        self._bodies: dict[int, list[memoryview]] = {}
        self.malformed = 0
        self.unknown = 0
        self.replayed = 0
        self.forged = 0
        self.refused = 0
        self.not_open = 0
        self.incomplete = 0
        self.relayed = 0
        self.unwritten = 0

    def drain(self) -> bool:
        """Take what waits in the socket, up to a bound; True when there may be more."""
        for _ in range(BATCHES_PER_WAKE):
            length = self._udp.receive()
            if length < 0:
                self._write_runs()
                return False
            self._batch(length, self._udp.stride)
        self._write_runs()
        return True

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

    # --- datagrams ---

    def _batch(self, length: int, stride: int) -> None:
        """``length`` bytes of datagrams of ``stride`` bytes each, the last may be shorter."""
        view = self._view
        self._source = self._udp.source
        openings = self._sessions.openings
        prefix, opening = b"", None
        at = 0
        while at < length:
            end = min(at + stride, length)
            if end - at <= HEADER_BYTES:
                self.malformed += 1
                at = end
                continue
            found = view[at : at + PREFIX_BYTES].tobytes()
            if found != prefix:
                prefix, opening = found, openings.get(found)
            if opening is None:
                at = self._relay(prefix[_DESTINATION_AT:], at, length, stride)
                continue
            if opening.kind == Kind.SEGMENT:
                at = self._segments(opening, at, length, stride)
                continue
            elif opening.kind == Kind.WHOLE:
                at = self._fragments(opening, prefix, at, length, stride)
                continue
            else:
                self._single(opening, at, end)
            at = end

    def _segments(self, opening: Opening, at: int, length: int, stride: int) -> int:
        """Open segments of one unit, as many as follow each other in the batch; returns where that ends."""
        session, view, area = opening.session, self._view, self._area
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return min(at + stride, length)
        window, decrypt = key.window, key.aead.decrypt_into
        start = view[at : at + PREFIX_BYTES + 6].tobytes()
        base = int.from_bytes(start[PREFIX_BYTES:], "big")
        last = view[at + _LAST_AT]
        if self._area_used + length > AREA_BYTES:
            self._write_runs()
        used = self._area_used
        run = session.run
        good = lost = 0
        while at < length:
            end = at + stride
            end = min(end, length)
            if view[at : at + PREFIX_BYTES + 6] != start:
                break
            size = end - at - OVERHEAD_BYTES
            index = view[at + PREFIX_BYTES + 6]
            counter = base + index
            if size < VNET_BYTES or index > last or view[at + _LAST_AT] != last:
                self.malformed += 1
                at = end
                continue
            if not window.is_fresh(counter):
                self.replayed += 1
                session.refused += 1
                at = end
                continue
            plain = area[used : used + size]
            try:
                decrypt(counter.to_bytes(12, "big"), view[at + _H : end], view[at : at + AAD_BYTES], plain)
            except InvalidTag:
                self.forged += 1
                session.refused += 1
                at = end
                continue
            lost += window.accept(counter)
            good += 1
            used += size
            if run is None or run.base != base or run.next != index or run.size + size > RUN_BYTES_MAX:
                if run is not None:
                    self._write_run(session, run)
                end_of_headers = header_end(plain, size)
                if not end_of_headers:
                    self.refused += 1
                    run = None
                    at = end
                    continue
                run = session.run = Run(base, index, last, plain[:end_of_headers].tobytes(), end_of_headers)
                self._running.append(session)
            payload = plain[run.end :]
            run.payload.append(payload)
            run.size += len(payload)
            run.next = index + 1
            at = end
        self._area_used = used
        session.run = run
        if run is not None and run.next > run.last:
            self._write_run(session, run)
        if good:
            self._authenticated(opening, good, lost, at - 1)
        return at

    def _fragments(self, opening: Opening, prefix: bytes, at: int, length: int, stride: int) -> int:
        """Fragments of one sealed frame that follow each other in the batch; returns where that ends."""
        session, view = opening.session, self._view
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return min(at + stride, length)
        counter_bytes = view[at + PREFIX_BYTES : at + PREFIX_BYTES + 6].tobytes()
        base = int.from_bytes(counter_bytes, "big")
        last = view[at + _LAST_AT]
        if not key.window.is_fresh(base):
            self.replayed += 1
            session.refused += 1
            return min(at + stride, length)
        if last == 0:
            end = min(at + stride, length)
            if end - at < OVERHEAD_BYTES:
                self.malformed += 1
                return end
            self._open_frame(opening, base, 1, view[at : at + AAD_BYTES], view[at + _H : end], at=at)
            return end
        partial = session.partials.get(base)
        if partial is None:
            if len(session.partials) >= PARTIALS_MAX:
                del session.partials[next(iter(session.partials))]
                self.incomplete += 1
            header = prefix + counter_bytes + bytes((0, last))
            partial = session.partials[base] = Partial(base, last, header)
        taken = self._take_in_order(partial, at, length, stride)
        at = taken or self._take_each(partial, prefix + counter_bytes, at, length, stride)
        if partial.next > partial.last:
            del session.partials[base]
            sealed = b"".join(partial.pieces)
            if TAG_BYTES <= len(sealed) <= len(self._plain):
                self._open_frame(opening, base, last + 1, partial.header, sealed, at=at - 1)
            else:
                self.malformed += 1
        return at

    def _take_in_order(self, partial: Partial, at: int, length: int, stride: int) -> int:
        """The usual case, without a loop: from here on come the next fragments of the frame. Their headers are compared
        in the two bytes that tell fragments apart; the seal proves the rest. Returns where they end, 0 for "look at
        each"."""
        view = self._view
        index = view[at + _INDEX_AT]
        count = min(-(-(length - at) // stride), partial.last + 1 - index)
        end = min(at + count * stride, length)
        if at or index != partial.next or partial.rest or end - (count - 1) * stride <= _H:
            return 0
        is_in_order = view[_INDEX_AT:end:stride].tobytes() == _INDICES[index : index + count]
        if (
            not is_in_order
            or view[_INDEX_AT - 1 : end : stride].tobytes() != partial.header[_INDEX_AT - 1 : _INDEX_AT] * count
        ):
            return 0
        bodies = self._bodies.get(stride)
        if bodies is None:
            if len(self._bodies) >= LAYOUTS_MAX:
                self._bodies.clear()
            starts = range(0, len(view) - stride + 1, stride)
            bodies = self._bodies[stride] = [view[start + _H : start + stride] for start in starts]
        partial.pieces += bodies[: count - 1]
        partial.pieces.append(view[(count - 1) * stride + _H : end])
        partial.next += count
        if partial.next <= partial.last:
            partial.pieces = [b"".join(partial.pieces)]  # what is received next overwrites the views
        return end

    def _take_each(self, partial: Partial, start: bytes, at: int, length: int, stride: int) -> int:
        """Fragments in any order; returns where those of this frame end."""
        view, first_at = self._view, at
        while at < length:
            end = min(at + stride, length)
            if view[at : at + _INDEX_AT] != start or view[at + _LAST_AT] != partial.last:
                if at == first_at:  # contradicts what came before
                    self.malformed += 1
                    return end
                break
            index = view[at + _INDEX_AT]
            if partial.next <= index <= partial.last:
                partial.rest[index] = view[at + _H : end].tobytes()
            at = end
        while partial.next in partial.rest:
            partial.pieces.append(partial.rest.pop(partial.next))
            partial.next += 1
        return at

    def _open_frame(
        self, opening: Opening, base: int, count: int, aad: bytes | memoryview, sealed: bytes | memoryview, *, at: int
    ) -> None:
        session, key = opening.session, opening.key
        assert key is not None
        plain = self._plain[: len(sealed) - TAG_BYTES]
        try:
            key.aead.decrypt_into(base.to_bytes(12, "big"), memoryview(sealed), aad, plain)
        except InvalidTag:
            self.forged += 1
            session.refused += 1
            return
        self._authenticated(opening, count, key.window.accept(base, count), at)
        if session.run is not None:
            self._write_run(session, session.run)
        self._deliver(session, plain)

    def _single(self, opening: Opening, at: int, end: int) -> None:
        session, view = opening.session, self._view
        key = opening.key or self._sessions.key_of(opening)
        if key is None or end - at < OVERHEAD_BYTES:
            self.malformed += 1
            return
        counter = int.from_bytes(view[at + PREFIX_BYTES : at + PREFIX_BYTES + 6], "big")
        if not key.window.is_fresh(counter):
            self.replayed += 1
            session.refused += 1
            return
        plain = self._plain[: end - at - OVERHEAD_BYTES]
        try:
            key.aead.decrypt_into(counter.to_bytes(12, "big"), view[at + _H : end], view[at : at + AAD_BYTES], plain)
        except InvalidTag:
            self.forged += 1
            session.refused += 1
            return
        self._authenticated(opening, 1, key.window.accept(counter), at)
        if opening.kind == Kind.CONTROL:
            self._on_control(session, plain.tobytes(), self._source, view[at + HOPS_AT] == HOPS_START)
            return
        if session.run is not None:
            self._write_run(session, session.run)
        self._frames(session, plain)

    def _frames(self, session: Session, plain: memoryview) -> None:
        """The frames of a batch."""
        at, length = 0, len(plain)
        while at + 2 + VNET_BYTES <= length:
            size = (plain[at] << 8 | plain[at + 1]) + VNET_BYTES
            if at + 2 + size > length:
                break
            self._deliver(session, plain[at + 2 : at + 2 + size])
            at += 2 + size
        if at != length:
            self.refused += 1

    def _authenticated(self, opening: Opening, count: int, lost: int, at: int) -> None:
        """``count`` datagrams of a peer were genuine and new, ``lost`` before them were missing, negative: came late.
        ``at``: somewhere in the last of them."""
        session = opening.session
        session.received += count
        if lost:
            session.lost = max(0, session.lost + lost)
            if lost > 0 and not session.has_news:
                session.has_news = True
                self._news.append(session)
        if opening.own != session.confirmed:
            self._sessions.confirm(session, opening.own)
        if session.path.learned != self._source:
            datagram = at - at % self._udp.stride if self._udp.stride else at
            if self._view[datagram + HOPS_AT] == HOPS_START:
                session.path.learned = self._source
                session.path.changed = True
                self._sessions.route()

    # --- frames ---

    def _deliver(self, session: Session, frame: memoryview) -> None:
        """Give a frame to the kernel, if its peer may send it."""
        length = len(frame)
        if not session.is_open:
            self.not_open += 1
            return
        if not valid_vnet(frame, length):
            self.refused += 1
            return
        session.received_bytes += length - VNET_BYTES
        try:
            os.write(self._tap, frame)
        except OSError:  # the device is down, or the kernel refuses the frame
            self.unwritten += 1

    def _write_runs(self) -> None:
        """All runs, complete or not: nothing more waits in the socket, or the area is full."""
        for session in self._running:
            if session.run is not None:
                self._write_run(session, session.run)
        self._running.clear()
        self._area_used = 0

    def _write_run(self, session: Session, run: Run) -> None:
        session.run = None
        if not session.is_open or run.headers[VNET_BYTES] & 1:
            self.not_open += 1
            return
        headers = run.headers
        if run.first or run.next <= run.last:
            headers = part(headers, skipped=run.first, payload_bytes=run.size, is_end=run.next > run.last)
        session.received_bytes += run.size
        try:
            os.writev(self._tap, [headers, *run.payload])
        except OSError:
            self.unwritten += 1

    # --- datagrams for others ---

    def _relay(self, destination: bytes, at: int, length: int, stride: int) -> int:
        """Forward what follows for one other peer in the batch, unopened; only for peers, so that nobody is hit with
        what a stranger sends. Returns where that ends."""
        session = self._sessions.by_short.get(destination)
        if session is None or self._source not in self._sessions.names or self._view[at + HOPS_AT] == 0:
            self.unknown += 1
            return min(at + stride, length)
        view = self._view
        stop = at
        while stop < length and view[stop + _DESTINATION_AT : stop + PREFIX_BYTES] == destination:
            if length - stop <= HEADER_BYTES or view[stop + HOPS_AT] == 0:
                break
            view[stop + HOPS_AT] -= 1
            stop = min(stop + stride, length)
        name = session.name
        if name is not None and name != self._source:
            self.relayed += 1
            self._udp.send(self._udp.received.address + at, stop - at, stride, name)
        return stop
