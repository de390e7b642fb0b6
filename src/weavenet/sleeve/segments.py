"""Segments of TCP units, opened and put together again: what arrived in order becomes one write.

Each segment carries the unit's headers. It is opened where its payload belongs, so that its headers lie over the end
of the payload before it: the last is opened first, and each one then overwrites the headers of the next. What stands
in memory in the end is the frame. What a failed attempt may overwrite of earlier payload is put back.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from weavenet.sleeve.arrival import Arrival
from weavenet.sleeve.counts import Counts
from weavenet.sleeve.delivery import Delivery
from weavenet.sleeve.keys import ReceivingKey
from weavenet.sleeve.memory import Buffer
from weavenet.sleeve.session import Session
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.units import header_end, part
from weavenet.sleeve.wire import FRAGMENTS_MAX, NONCE_START, TAG_BYTES, Kind

RUN_BYTES_MAX = 65_000
LAYOUTS_MAX = 16
"""Sizes of segments for which views are kept."""
_AREA_BYTES = 1 << 18
"""A run and one more datagram, however large."""
_NONCE = NONCE_START[Kind.SEGMENT]


class Run:
    """Segments of one unit that arrived in order: from ``first`` up to ``next``, not included. ``end``: bytes of its
    vnet header and headers; ``size``: bytes of payload so far."""

    __slots__ = ("base", "end", "first", "headers", "last", "next", "segment", "session", "size")

    def __init__(self, session: Session, base: int, first: int, last: int, headers: bytes) -> None:
        self.session = session
        self.base = base
        self.first = first
        self.next = first
        self.last = last
        self.headers = headers
        self.end = len(headers)
        self.segment = headers[4] | headers[5] << 8
        self.size = 0


class Segments:
    """One run at a time; whoever delivers anything else of its peer, and whoever stops receiving, writes it first."""

    def __init__(self, arrival: Arrival, delivery: Delivery, counts: Counts) -> None:
        self._arrival = arrival
        self._delivery = delivery
        self._counts = counts
        self._area = Buffer(_AREA_BYTES).view
        self._plains: dict[tuple[int, int], list[memoryview]] = {}
        self._places: dict[int, list[bytes]] = {}
        self.run: Run | None = None

    def open(  # noqa: PLR0917
        self, session: Session, key: ReceivingKey, base: int, index: int, last: int, number: int, count: int
    ) -> int:
        """Open up to ``count`` datagrams of one unit from ``number`` on, the first of which has ``index``. Returns
        how many were genuine and are in the run now; 0 when nothing happened, because one of them was not."""
        run = self.run
        place = _NONCE + base.to_bytes(6, "big")
        places = self._places.get(last)
        if places is None:
            places = self._places[last] = [bytes((one, last)) for one in range(last + 1)]
        first_bytes = len(self._arrival.body(number)) - TAG_BYTES
        if run is None or run.session is not session or run.base != base or not self._fits(run, index, first_bytes):
            if run is not None:
                self.write()
            body = self._arrival.body(number)
            plain = self._area[:first_bytes]
            try:
                key.aead.decrypt_into(place + places[index], body, None, plain)
            except InvalidTag:
                return 0
            end = header_end(plain, first_bytes)
            if not end:
                self._counts.refused += 1
                return 1
            run = self.run = Run(session, base, index, last, plain[:end].tobytes())
            run.size = first_bytes - end
            run.next = index + 1
            done = 1
        else:
            done = 0
        rest = self._room(run, number + done, count - done)
        if rest and not self._extend(run, key, place, places, number + done, rest):
            return done
        if run.next > last:
            self.write()
        return done + rest

    def _fits(self, run: Run, index: int, size: int) -> bool:
        """Whether a segment of ``size`` bytes of plaintext comes next in the run."""
        is_next = run.next == index and run.size == (index - run.first) * run.segment
        return is_next and run.size + size <= RUN_BYTES_MAX and self._is_segment(run, index, size)

    def _is_segment(self, run: Run, index: int, size: int) -> bool:
        return size == run.end + run.segment or (index == run.last and run.end < size < run.end + run.segment)

    def _room(self, run: Run, number: int, count: int) -> int:
        """How many of ``count`` datagrams from ``number`` on have the right size for the run and fit into it."""
        if run.size != (run.next - run.first) * run.segment:
            return 0
        fitting, left = divmod(RUN_BYTES_MAX - run.size, run.segment)
        count = min(count, fitting + 1)  # one more when it is a short last one
        if count <= 0:
            return 0
        if count > 1 and len(self._arrival.bodies[number]) != run.end + run.segment + TAG_BYTES:
            count = 1
        final = len(self._arrival.body(number + count - 1)) - TAG_BYTES
        is_last = self._is_segment(run, run.next + count - 1, final) and (count <= fitting or final - run.end <= left)
        return count if is_last else count - 1

    def _extend(self, run: Run, key: ReceivingKey, place: bytes, places: list[bytes], number: int, count: int) -> bool:  # noqa: PLR0917
        """Open ``count`` datagrams to the end of the run. False when one was not genuine: the run is as before."""
        end, segment, index = run.end, run.segment, run.next
        arrival, area = self._arrival, self._area
        plains = self._plains.get((end, segment))
        if plains is None:
            if len(self._plains) >= LAYOUTS_MAX:
                self._plains.clear()
            plains = [
                area[n * segment : (n + 1) * segment + end]
                for n in range(min(FRAGMENTS_MAX, RUN_BYTES_MAX // segment + 1))
            ]
            self._plains[end, segment] = plains
        at = index - run.first
        last_body = arrival.body(number + count - 1)
        last_bytes = len(last_body) - TAG_BYTES
        over = area[at * segment : at * segment + end]
        saved = over.tobytes()
        decrypt = key.aead.decrypt_into
        try:
            final = count - 1
            decrypt(place + places[index + final], last_body, None, plains[at + final][:last_bytes])
            for where, body, plain in zip(
                places[index : index + final][::-1],
                arrival.bodies[number : number + final][::-1],
                plains[at : at + final][::-1],
                strict=True,
            ):
                decrypt(place + where, body, None, plain)
        except InvalidTag:
            return False
        finally:
            over[:] = saved
        run.size += final * segment + last_bytes - end
        run.next += count
        return True

    def write(self) -> None:
        """Deliver the run, complete or not."""
        run, self.run = self.run, None
        if run is None or not run.size:
            return
        session, end = run.session, run.end
        if not session.is_open or run.headers[VNET_BYTES] & 1:
            self._counts.not_open += 1
            return
        if run.first or run.next <= run.last:
            self._area[:end] = part(run.headers, skipped=run.first, payload_bytes=run.size, is_end=run.next > run.last)
        session.received_bytes += run.size
        self._delivery.write(self._area[: end + run.size])

    def forget(self, session: Session) -> None:
        """Its run is lost: something went wrong with it."""
        if self.run is not None and self.run.session is session:
            self.run = None
