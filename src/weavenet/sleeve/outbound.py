"""From the TAP device to the network: frames are sealed and leave in batches.

Three ways, chosen per frame. A unit goes as a whole under one seal while its path shows no loss, in fragments; else
each of its segments is sealed by itself with the unit's headers in front: these are written over the end of the
segment before, which is sealed already, so nothing is copied. Small frames to one peer that wait together share
datagrams. While frames come one at a time, the first of a wake-up leaves before the device is asked for more: nothing
waits for company that does not come.

Bounds: one wake-up takes FRAMES_PER_WAKE frames; what cannot be sent within a few milliseconds is dropped and
counted, never queued here. The queue is the TAP device's, whose length the daemon sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from weavenet.sleeve.keys import REKEY_AFTER_BYTES
from weavenet.sleeve.memory import Buffer, Pairs
from weavenet.sleeve.session import Session, Sessions
from weavenet.sleeve.tap import GSO_NONE, VNET_BYTES, read_frame
from weavenet.sleeve.udp import SEND_BYTES_MAX, SEND_DATAGRAMS_MAX, UdpSocket
from weavenet.sleeve.units import header_end
from weavenet.sleeve.wire import (
    FRAGMENTS_MAX,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    HOPS_START,
    NONCE_START,
    OVERHEAD_BYTES,
    TAG_BYTES,
    Kind,
)

FRAMES_PER_WAKE = 64
SMALL_FRAME_BYTES = 600
"""Frames up to this share datagrams."""
_H = HEADER_BYTES
_HOPS = bytes((HOPS_START,))
_INDICES = bytes(range(FRAGMENTS_MAX))


class _Slots:
    """Views for segments of one size: plaintext in the frame, datagram in the send area, cut once and kept."""

    def __init__(self, frame: memoryview, out: memoryview, end: int, segment: int) -> None:
        stride = _H + end + segment + TAG_BYTES
        count = min(SEND_DATAGRAMS_MAX, SEND_BYTES_MAX // stride)
        self.stride = stride
        self.count = count
        self.headers = [frame[n * segment : n * segment + end] for n in range(FRAGMENTS_MAX)]
        self.plain = [frame[n * segment : n * segment + end + segment] for n in range(FRAGMENTS_MAX)]
        self.heads = [out[n * stride : n * stride + _H] for n in range(count)]
        self.sealed = [out[n * stride + _H : (n + 1) * stride] for n in range(count)]


class Outbound:
    """``kinds_dropped``: why frames did not leave."""

    def __init__(self, tap: int, udp: UdpSocket, sessions: Sessions, now: Callable[[], float] = time.monotonic) -> None:
        self._tap = tap
        self._udp = udp
        self._sessions = sessions
        self._now = now
        self._frame = Buffer(FRAME_BYTES_MAX + TAG_BYTES)
        self._view = self._frame.view
        self._out = Buffer(SEND_BYTES_MAX + 16_384)
        self._headers = Buffer(FRAGMENTS_MAX * _H)
        self._pairs: dict[int, Pairs] = {}
        """By the size of a body, of which there are as many as sizes that paths probe."""
        self._slots: dict[tuple[int, int], _Slots] = {}
        self._places: dict[int, tuple[list[bytes], list[bytes]]] = {}
        self._pending: Session | None = None
        self._fill = 0
        self._stride = 0
        self._pending_count = 0
        self._batched: list[Session] = []
        self._is_sparse = True
        self.frames = 0
        self.no_peer = 0
        self.no_key = 0
        self.too_large = 0

    # --- frames ---

    def drain(self) -> bool:
        """Take what waits in the device, up to a bound; True when there may be more."""
        view, tap, address = self._view, self._tap, self._frame.address
        by_mac = self._sessions.by_mac
        now = self._now()
        taken = 0
        while taken < FRAMES_PER_WAKE:
            length = read_frame(tap, address, FRAME_BYTES_MAX)
            if length < 0:
                break
            taken += 1
            if view[VNET_BYTES] & 1:
                frame = view[:length].tobytes()
                for session in self._sessions.groups:
                    view[:length] = frame  # sealing may have overwritten it
                    self._frame_to(session, length, now)
                continue
            session_or_none = by_mac.get(view[VNET_BYTES : VNET_BYTES + 6].tobytes())
            if session_or_none is None:
                self.no_peer += 1
            elif taken > 1 or not self._is_sparse or not self._at_once(session_or_none, length, now):
                self._frame_to(session_or_none, length, now)
        self.frames += taken
        self._is_sparse = taken <= 1
        for session in self._batched:
            if session.batch:
                self._seal_batch(session)
        self._batched.clear()
        self.flush()
        return taken == FRAMES_PER_WAKE

    def _at_once(self, session: Session, length: int, now: float) -> bool:
        """Send a frame by itself before looking for others. False, and nothing done, for one that cannot be."""
        key, name = session.sending, session.name
        size = length + OVERHEAD_BYTES
        if key is None or name is None or size > session.path.size:
            return False
        session.path.traffic(now)
        session.sent_bytes += length - VNET_BYTES
        self._seal(session, Kind.WHOLE, self._view[:length], 0)
        if not self._udp.send(self._out.address, size, size, name):
            self._check_size(session)
        return True

    def _frame_to(self, session: Session, length: int, now: float) -> None:
        session.path.traffic(now)
        session.sent_bytes += length - VNET_BYTES
        if session.sending is None or session.name is None:
            self.no_key += 1
            return
        room = session.path.size - OVERHEAD_BYTES
        if length <= SMALL_FRAME_BYTES and length + 2 <= room:
            if not session.batch:
                self._batched.append(session)
            elif session.batch_size + length + 2 > room:
                self._seal_batch(session)
            session.batch.append((length - VNET_BYTES).to_bytes(2, "big"))
            session.batch.append(self._view[:length].tobytes())
            session.batch_size += length + 2
            return
        if session.batch:
            self._seal_batch(session)  # frames of one flow stay in order
        if length <= room:
            self._single(session, Kind.WHOLE, self._view[:length])
            return
        self.flush()
        if self._view[1] != GSO_NONE and not session.path.units_allowed(now):
            end = header_end(self._view, length)
            segment = self._view[4] | self._view[5] << 8
            if end and end + segment <= room and (length - end + segment - 1) // segment <= FRAGMENTS_MAX:
                self._segments(session, length, end, segment)
                return
        self._fragments(session, length)

    # --- one datagram at a time, gathered while their sizes agree ---

    def _seal_batch(self, session: Session) -> None:
        plaintext = b"".join(session.batch)
        session.batch.clear()
        session.batch_size = 0
        self._single(session, Kind.BATCH, plaintext)

    def control(self, session: Session, plaintext: bytes, size: int, name: bytes) -> None:
        """Seal a control message, padded to a datagram of ``size`` bytes, and send it to ``name`` now."""
        if session.sending is None:
            return
        padded = plaintext + bytes(max(0, size - OVERHEAD_BYTES - len(plaintext)))
        self.flush()
        self._udp.refused_size = False
        sealed = self._seal(session, Kind.CONTROL, padded, 0)
        self._udp.send(self._out.address, sealed, sealed, name)

    def _single(self, session: Session, kind: Kind, plaintext: bytes | memoryview) -> None:
        size = len(plaintext) + OVERHEAD_BYTES
        fill, pending = self._fill, self._pending
        if pending is not None and (
            pending is not session
            or size > self._stride
            or fill != self._pending_count * self._stride  # a shorter one must be the last
            or fill + size > SEND_BYTES_MAX
            or self._pending_count == SEND_DATAGRAMS_MAX
        ):
            self.flush()
            fill = 0
        if fill == 0:
            self._pending, self._stride, self._pending_count = session, size, 0
        self._seal(session, kind, plaintext, fill)
        self._fill = fill + size
        self._pending_count += 1

    def _seal(self, session: Session, kind: Kind, plaintext: bytes | memoryview, at: int) -> int:
        """Seal into the send area; returns the size of the datagram."""
        key = session.sending
        assert key is not None
        counter = key.take(1)
        out = self._out.view
        place = counter.to_bytes(6, "big") + b"\0\0"
        out[at : at + _H] = session.prefixes[kind] + place + _HOPS
        size = len(plaintext) + OVERHEAD_BYTES
        key.aead.encrypt_into(NONCE_START[kind] + place, memoryview(plaintext), None, out[at + _H : at + size])
        self._count(session, size)
        return size

    def flush(self) -> None:
        """Send the datagrams that were gathered."""
        session, length = self._pending, self._fill
        if session is None:
            return
        self._pending, self._fill = None, 0
        if session.name is not None and not self._udp.send(self._out.address, length, self._stride, session.name):
            self._check_size(session)

    # --- units ---

    def _segments(self, session: Session, length: int, end: int, segment: int) -> None:
        key = session.sending
        assert key is not None and session.name is not None
        slots = self._slots.get((end, segment))
        if slots is None:
            if len(self._slots) >= 64:
                self._slots.clear()
            slots = self._slots[end, segment] = _Slots(self._view, self._out.view, end, segment)
        view, out = self._view, self._out.view
        view[2:4] = (end - VNET_BYTES).to_bytes(2, "little")  # the kernel only hints at it
        headers = view[:end].tobytes()
        count = -(-(length - end) // segment)
        counter = key.take(count).to_bytes(6, "big")
        start, nonce = session.prefixes[Kind.SEGMENT] + counter, NONCE_START[Kind.SEGMENT] + counter
        places = self._places.get(count)
        if places is None:
            indices = [bytes((number, count - 1)) for number in range(count)]
            places = self._places[count] = indices, [place + _HOPS for place in indices]
        encrypt, stride = key.aead.encrypt_into, slots.stride
        for first in range(0, count, slots.count):
            last = min(first + slots.count, count)
            full = last - (last == count)  # the final segment may be shorter
            for place, tail, above, plain, head, sealed in zip(
                places[0][first:full],
                places[1][first:full],
                slots.headers[first:full],
                slots.plain[first:full],
                slots.heads,
                slots.sealed,
                strict=False,
            ):
                above[:] = headers
                head[:] = start + tail
                encrypt(nonce + place, plain, None, sealed)
            fill = (full - first) * stride
            if full < last:
                slots.headers[full][:] = headers
                out[fill : fill + _H] = start + places[1][full]
                begin, fill = fill + _H, fill + length - full * segment + OVERHEAD_BYTES
                encrypt(nonce + places[0][full], view[full * segment : length], None, out[begin:fill])
            if not self._udp.send(self._out.address, fill, stride, session.name) and self._check_size(session):
                break  # the rest is as large
        self._count(session, length + count * (end + OVERHEAD_BYTES))

    def _fragments(self, session: Session, length: int) -> None:
        """One seal, where the frame lies, and as many datagrams as it takes."""
        key = session.sending
        assert key is not None and session.name is not None
        body_bytes = session.path.size - _H
        total = length + TAG_BYTES
        count = -(-total // body_bytes)
        if count > FRAGMENTS_MAX:
            self.too_large += 1
            return
        place = key.take(count).to_bytes(6, "big") + bytes((0, count - 1))
        header = session.prefixes[Kind.WHOLE] + place + _HOPS
        headers = self._headers.view
        headers[: count * _H] = header * count
        headers[_H - 3 : count * _H : _H] = _INDICES[:count]
        key.aead.encrypt_into(NONCE_START[Kind.WHOLE] + place, self._view[:length], None, self._view[:total])
        self._count(session, total)
        pairs = self._pairs.get(body_bytes)
        if pairs is None:
            pairs = self._pairs[body_bytes] = Pairs(self._headers, _H, self._frame, body_bytes, FRAGMENTS_MAX)
        per_send = min(SEND_DATAGRAMS_MAX, SEND_BYTES_MAX // session.path.size)
        for first in range(0, count, per_send):
            sent = min(per_send, count - first)
            last_bytes = body_bytes if first + sent < count else total - (count - 1) * body_bytes
            if not self._udp.send_scattered(pairs, first, sent, last_bytes, session.name):
                self._check_size(session)
                return

    def _count(self, session: Session, size: int) -> None:
        key = session.sending
        assert key is not None
        key.sealed_bytes += size
        if key.sealed_bytes > REKEY_AFTER_BYTES:
            self._sessions.pairs.sealed_much(key)

    def _check_size(self, session: Session) -> bool:
        """After a send that failed: whether it was too large, so that what follows will be smaller."""
        is_too_large = self._udp.refused_size
        if is_too_large:
            self._udp.refused_size = False
            session.path.too_large()
        return is_too_large
