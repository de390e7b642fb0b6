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

import errno
import os
import sys
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from weavenet.sleeve.flows import HEADERS_BYTES, PACKETS_MAX, flow_of, headers_of
from weavenet.sleeve.keys import ReceivingKey, ReplayWindow
from weavenet.sleeve.partial import Partial
from weavenet.sleeve.session import Opening, Run, Session, Sessions
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.udp import Buffer, UdpSocket
from weavenet.sleeve.units import header_end, part, valid_vnet
from weavenet.sleeve.wire import (
    COUNTER_AT,
    HEADER_BYTES,
    HOPS_AT,
    HOPS_START,
    INDEX_AT,
    LAST_AT,
    NONCE_START,
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
AREA_BYTES = 1 << 19
"""Opened segments lie here until they are written; when it is full, all runs are written first."""
_H = HEADER_BYTES
_DESTINATION_AT = PREFIX_BYTES - SHORT_ID_BYTES
_INDICES = bytes(range(256))
_IS_LITTLE = sys.byteorder == "little"
_INDEX_STEP = 1 << 8 * (INDEX_AT - 16)
"""One index more in the third word of a header."""
_INDEX = [bytes((number,)) for number in range(256)]


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
        self._words = udp.received.view.cast("Q")
        self._area = Buffer(AREA_BYTES).view
        self._area_used = 0
        self._running: list[Session] = []
        self._news: list[Session] = []
        self._source = b""
        self._plain = Buffer(1 << 17).view
        self._takes_flows = True
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
        self.failure: Exception | None = None
        """The newest exception that dropped a datagram: a fault of this program; the owner notes and clears it."""

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

    def sweep(self) -> None:
        """Forget incomplete frames that were here at the last call: nothing more of them comes."""
        for session in self._sessions.by_peer.values():
            for partial in [*session.partials.values()]:
                if partial.is_old:
                    del session.partials[partial.base]
                    self.incomplete += 1
                partial.is_old = True

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
            try:
                if opening is None:
                    at = self._relay(prefix[_DESTINATION_AT:], at, length, stride)
                elif opening.kind == Kind.SEGMENT:
                    at = self._segments(opening, at, length, stride)
                elif opening.kind == Kind.WHOLE:
                    at = self._fragments(opening, prefix, at, length, stride)
                else:
                    self._single(opening, at, end)
                    at = end
            except Exception as error:  # one datagram must not end what carries everybody's
                at = end
                self._failed(opening.session if opening else None, error)

    def _failed(self, session: Session | None, error: Exception) -> None:
        self.malformed += 1
        self.failure = error
        if session is not None:
            session.run = None

    def _segments(self, opening: Opening, at: int, length: int, stride: int) -> int:
        """Open segments of one unit, as many as follow each other in the batch; returns where that ends."""
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return min(at + stride, length)
        if self._area_used + length > AREA_BYTES:
            self._write_runs()
        count = self._count_in_order(key.window, at, length, stride)
        taken = self._open_in_order(opening, key, at, count, min(count * stride, length - at)) if count else 0
        return at + taken if taken else self._open_each(opening, key, at, min(at + stride, length))

    def _count_in_order(self, window: ReplayWindow, at: int, length: int, stride: int) -> int:
        """The usual case: how many segments of one unit stand here one after the other, newer than all before."""
        view = self._view
        first, last = view[at + INDEX_AT], view[at + LAST_AT]
        if int.from_bytes(view[at + COUNTER_AT : at + INDEX_AT], "big") + first <= window.top or last < first:
            return 0
        count = min(-(-(length - at) // stride), last + 1 - first)
        end = min(at + count * stride, length)
        if end - at - (count - 1) * stride < OVERHEAD_BYTES + VNET_BYTES:
            count -= 1
        return self._following(at, count, stride)

    def _following(self, at: int, count: int, stride: int) -> int:
        """How many of ``count`` headers from ``at`` on are the same but for index, which counts up. Three comparisons
        of whole columns of words where sizes allow it."""
        if count <= 1:
            return count
        if _IS_LITTLE and not (at | stride) & 7:
            words, step, start = self._words, stride >> 3, at >> 3
            stop = start + (count - 1) * step + 1
            column = words[start:stop:step].tolist()
            middle = words[start + 1 : stop + 1 : step].tolist()
            final = words[start + 2 : stop + 2 : step].tolist()
            expected = range(final[0], final[0] + count * _INDEX_STEP, _INDEX_STEP)
            if column.count(column[0]) == count and middle.count(middle[0]) == count and final == list(expected):
                return count
            same = zip(column, middle, final, expected, strict=True)
            return next(
                number
                for number, (one, two, three, due) in enumerate(same)
                if one != column[0] or two != middle[0] or three != due
            )
        view, first = self._view, self._view[at + INDEX_AT]
        head, tail = view[at : at + INDEX_AT].tobytes(), view[at + LAST_AT : at + HEADER_BYTES].tobytes()
        for number in range(1, count):
            place = at + number * stride
            header = view[place : place + HEADER_BYTES].tobytes()
            if header[:INDEX_AT] != head or header[INDEX_AT] != first + number or header[LAST_AT:] != tail:
                return number
        return count

    def _open_in_order(self, opening: Opening, key: ReceivingKey, at: int, count: int, taken: int) -> int:
        """``count`` segments in ``taken`` bytes; returns ``taken``, or 0 when one of them was not genuine, which is
        then found by looking at each."""
        session, view, area, used = opening.session, self._view, self._area, self._area_used
        stride = self._udp.stride
        place = view[at + COUNTER_AT : at + HOPS_AT].tobytes()
        base, first, last = int.from_bytes(place[:6], "big"), place[6], place[7]
        size = stride - OVERHEAD_BYTES
        size_last = taken - (count - 1) * stride - OVERHEAD_BYTES
        end = used + (count - 1) * size + size_last
        plains = [area[start : start + size] for start in range(used, end - size_last, size)]
        plains.append(area[end - size_last : end])
        start = NONCE_START[Kind.SEGMENT] + place[:6]
        decrypt, tail = key.aead.decrypt_into, place[7:]
        where = at + _H
        try:
            for index, plain in zip(_INDEX[first : first + count], plains, strict=True):
                decrypt(start + index + tail, view[where : where + len(plain) + TAG_BYTES], None, plain)
                where += stride
        except InvalidTag:
            return 0
        run = session.run
        if run is None or run.base != base or run.next != first or run.size + count * size > RUN_BYTES_MAX:
            run = self._begin_run(session, base, first, last, plains[0])
        lost = key.window.accept_next(base + first, count)
        if run is not None and min(len(plains[0]), size_last) < run.end:
            self.refused += count  # the headers of its unit do not even fit
            self._write_run(session, run)
        elif run is not None:
            self._area_used = end
            headers = run.end
            run.payload += [plain[headers:] for plain in plains]
            run.size += end - used - count * headers
            run.next = first + count
            if run.next > run.last:
                self._write_run(session, run)
        self._authenticated(opening, count, lost, at)
        return taken

    def _open_each(self, opening: Opening, key: ReceivingKey, at: int, end: int) -> int:
        """One segment by itself, in whatever order; returns where it ends."""
        session, view = opening.session, self._view
        size = end - at - OVERHEAD_BYTES
        place = view[at + COUNTER_AT : at + HOPS_AT].tobytes()
        base, index, last = int.from_bytes(place[:6], "big"), place[6], place[7]
        if size < VNET_BYTES or index > last:
            self.malformed += 1
            return end
        if not key.window.is_fresh(base + index):
            self.replayed += 1
            session.refused += 1
            return end
        plain = self._area[self._area_used : self._area_used + size]
        try:
            key.aead.decrypt_into(NONCE_START[Kind.SEGMENT] + place, view[at + _H : end], None, plain)
        except InvalidTag:
            self.forged += 1
            session.refused += 1
            return end
        run = session.run
        if run is None or run.base != base or run.next != index or run.size + size > RUN_BYTES_MAX:
            run = self._begin_run(session, base, index, last, plain)
        if run is not None and size < run.end:
            self.refused += 1
            self._write_run(session, run)
        elif run is not None:
            self._area_used += size
            run.payload.append(plain[run.end :])
            run.size += size - run.end
            run.next = index + 1
            if run.next > run.last:
                self._write_run(session, run)
        self._authenticated(opening, 1, key.window.accept(base + index), at)
        return end

    def _begin_run(self, session: Session, base: int, first: int, last: int, plain: memoryview) -> Run | None:
        """After writing the one before. None when what was sealed is no segment of a unit."""
        if session.run is not None:
            self._write_run(session, session.run)
        end = header_end(plain, len(plain))
        if not end:
            self.refused += 1
            return None
        session.run = Run(base, first, last, plain[:end].tobytes(), end)
        self._running.append(session)
        return session.run

    def _fragments(self, opening: Opening, prefix: bytes, at: int, length: int, stride: int) -> int:
        """Fragments of one sealed frame that follow each other in the batch; returns where that ends."""
        session, view = opening.session, self._view
        key = opening.key or self._sessions.key_of(opening)
        if key is None:
            return min(at + stride, length)
        counter_bytes = view[at + PREFIX_BYTES : at + PREFIX_BYTES + 6].tobytes()
        base = int.from_bytes(counter_bytes, "big")
        last = view[at + LAST_AT]
        if not key.window.is_fresh(base):
            self.replayed += 1
            session.refused += 1
            return min(at + stride, length)
        if last == 0:
            end = min(at + stride, length)
            if end - at < OVERHEAD_BYTES:
                self.malformed += 1
                return end
            self._open_frame(opening, base, 0, view[at + _H : end], at)
            return end
        partial = session.partials.get(base)
        if partial is None:
            if len(session.partials) >= PARTIALS_MAX:
                del session.partials[next(iter(session.partials))]
                self.incomplete += 1
            partial = session.partials[base] = Partial(base, last)
        taken = self._take_in_order(partial, at, length, stride)
        taken = taken or partial.take_each(view, prefix + counter_bytes, at, length, stride)
        if taken == at:
            self.malformed += 1
            return min(at + stride, length)
        at = taken
        if partial.is_too_large:
            del session.partials[base]
            self.malformed += 1
        elif partial.next > partial.last:
            del session.partials[base]
            sealed = b"".join(partial.pieces)
            if len(sealed) >= TAG_BYTES:
                self._open_frame(opening, base, last, sealed, at - 1)
            else:
                self.malformed += 1
        return at

    def _take_in_order(self, partial: Partial, at: int, length: int, stride: int) -> int:
        """The usual case, without a loop: from here on come the next fragments of the frame. Returns where they end,
        0 for "look at each"."""
        view = self._view
        index = view[at + INDEX_AT]
        count = min(-(-(length - at) // stride), partial.last + 1 - index)
        end = min(at + count * stride, length)
        is_next = index == partial.next and not partial.rest and view[at + LAST_AT] == partial.last
        if at or not is_next or end - (count - 1) * stride <= _H or self._following(0, count, stride) < count:
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
        partial.size += end - count * _H
        if partial.next <= partial.last:
            partial.pieces = [b"".join(partial.pieces)]  # what is received next overwrites the views
        return end

    def _open_frame(self, opening: Opening, base: int, last: int, sealed: bytes | memoryview, at: int) -> None:
        session, key = opening.session, opening.key
        assert key is not None
        plain = self._plain[: len(sealed) - TAG_BYTES]
        try:
            nonce = NONCE_START[Kind.WHOLE] + base.to_bytes(6, "big") + bytes((0, last))
            key.aead.decrypt_into(nonce, memoryview(sealed), None, plain)
        except InvalidTag:
            self.forged += 1
            session.refused += 1
            return
        self._authenticated(opening, last + 1, key.window.accept(base, last + 1), at)
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
            place = view[at + COUNTER_AT : at + HOPS_AT].tobytes()
            key.aead.decrypt_into(NONCE_START[opening.kind] + place, view[at + _H : end], None, plain)
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
        """The frames of a batch, in order; packets of one UDP flow that follow each other together."""
        at, length = 0, len(plain)
        flow, gathered = b"", []  # type: bytes, list[memoryview]
        while at + 2 + VNET_BYTES <= length:
            size = (plain[at] << 8 | plain[at + 1]) + VNET_BYTES
            if at + 2 + size > length:
                break
            frame = plain[at + 2 : at + 2 + size]
            at += 2 + size
            found = flow_of(frame) if self._takes_flows else b""
            if gathered and (not found or found != flow or len(gathered) == PACKETS_MAX):
                self._deliver_flow(session, gathered)
                gathered = []
            if found:
                flow = found
                gathered.append(frame)
            else:
                self._deliver(session, frame)
        if gathered:
            self._deliver_flow(session, gathered)
        if at != length:
            self.refused += 1

    def _deliver_flow(self, session: Session, frames: list[memoryview]) -> None:
        if len(frames) == 1 or not session.is_open:
            for frame in frames:
                self._deliver(session, frame)
            return
        payload = [frame[HEADERS_BYTES:] for frame in frames]
        each = len(payload[0])
        total = each * len(payload)
        try:
            os.writev(self._tap, [headers_of(frames[0], total, each), *payload])
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._takes_flows = False  # an older kernel
            for frame in frames:
                self._deliver(session, frame)
            return
        session.received_bytes += total + len(frames) * (HEADERS_BYTES - VNET_BYTES)

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
            try:
                if session.run is not None:
                    self._write_run(session, session.run)
            except Exception as error:
                self._failed(session, error)
        self._running.clear()
        self._area_used = 0

    def _write_run(self, session: Session, run: Run) -> None:
        session.run = None
        if not run.size:
            return  # nothing of it was put in yet
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
