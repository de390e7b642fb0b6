"""The UDP side: a dictionary from queries as they arrive to answers ready to leave, and the resolver for the rest.

Most clients send the same few hundred questions again and again, byte for byte but for the id. What is answered at once
is kept with the datagram, without its id, as the key: parsing, looking up and building then cost nothing. Answers of
our own are kept until something about that name changes, those from the cache for a second. (Only the serial of the SOA
in negative answers may be out of date; nobody transfers this zone.) The dictionary is bounded in bytes; a datagram with
EDNS options (cookies differ each time) is not kept.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

from weavenet.dns.batch import Batch, Prepared, prepare
from weavenet.dns.loop import READ, Loop
from weavenet.dns.resolver import Resolver
from weavenet.dns.wire import QUERY_BYTES_MAX

BATCH = 64
"""Datagrams per system call: what 4 busy clients have in flight."""
ROUNDS = 4
"""Batches before others get a turn."""
PREPARED_BYTES_MAX = 4 << 20
KEY_BYTES_MAX = 300
"""255 of a name and what surrounds it."""
PASSING_S = 1.0
"""TTLs count whole seconds."""
ENTRY_BYTES, ANSWER_BYTES = 270, 150
"""What Python adds to an entry and to each answer in it, measured with tracemalloc."""


class PreparedAnswers:
    """Shared by all sockets. ``answered``: how many queries it answered, which nobody else saw. What is kept as passing
    goes with the next :meth:`tick`, PASSING_S after the first of it at the latest."""

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[Prepared, ...]] = {}
        self._of_name: dict[bytes, list[bytes]] = {}
        self._passing: list[bytes] = []
        self._passing_until: float | None = None
        self.size_bytes = 0
        self.answered = 0

    def keep(self, query: bytes, name: bytes, answers: tuple[Prepared, ...], *, is_passing: bool = False) -> None:
        """``query``: without its id, and not kept yet; ``name``: what it asks about, folded. Full: start anew, since
        what is asked for most comes back soonest."""
        if len(query) > KEY_BYTES_MAX:
            return
        size = _size(query, answers)
        if self.size_bytes + size > PREPARED_BYTES_MAX:
            self.clear()
        if size <= PREPARED_BYTES_MAX:
            self.known[query] = answers
            self._of_name.setdefault(name, []).append(query)
            self.size_bytes += size
            if is_passing:
                self._passing.append(name)
                if self._passing_until is None:
                    self._passing_until = time.monotonic() + PASSING_S

    def drop(self, names: Iterable[bytes]) -> None:
        """What was kept about these (folded)."""
        for name in names:
            for query in self._of_name.pop(name, ()):
                self.size_bytes -= _size(query, self.known.pop(query))

    def clear(self) -> None:
        self.known.clear()
        self._of_name.clear()
        self._passing.clear()
        self.size_bytes = 0

    def deadline(self) -> float | None:
        return self._passing_until

    def tick(self, now: float) -> None:
        passing, self._passing, self._passing_until = self._passing, [], None
        self.drop(passing)


def _size(query: bytes, answers: tuple[Prepared, ...]) -> int:
    return ENTRY_BYTES + len(query) + sum(ANSWER_BYTES + answer.size_bytes for answer in answers)


class UdpServer:
    """``sock``: bound to one address, not blocking; it stays its owner's to close, after :meth:`close`."""

    def __init__(self, loop: Loop, sock: socket.socket, resolver: Resolver, prepared: PreparedAnswers) -> None:
        self._loop, self._sock, self._resolver, self._prepared = loop, sock, resolver, prepared
        self._batch = Batch(sock, count=BATCH, size_bytes=QUERY_BYTES_MAX)
        self._host_bytes = slice(4, 8) if sock.family == socket.AF_INET else slice(8, 24)
        loop.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        self._loop.remove(self._sock.fileno())
        self._batch.close()

    def _ready(self, events: int) -> None:
        batch, prepared = self._batch, self._prepared
        for _ in range(ROUNDS):
            received = batch.receive()
            if not received:
                return
            unknown = batch.answer_known(received, prepared.known)
            prepared.answered += received - len(unknown)
            for index in unknown:
                self._answer(index)
            batch.flush()
            if received < BATCH:
                return

    def _answer(self, index: int) -> None:
        batch = self._batch
        packet, client = batch.packet(index), batch.client(index)
        found = self._resolver.handle(
            packet, client[self._host_bytes], lambda answer: batch.send(client, answer), stream=False
        )
        if found is None:
            return
        answers = tuple(prepare(answer) for answer in found.answers)
        if found.name and packet[2:] not in self._prepared.known:  # the same may be in one batch twice
            self._prepared.keep(packet[2:], found.name, answers, is_passing=found.is_passing)
        batch.put(index, answers[0])
