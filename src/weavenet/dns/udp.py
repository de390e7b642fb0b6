"""The UDP side: a dictionary from queries as they arrive to answers ready to leave, and the resolver for the rest.

Most clients send the same few hundred questions again and again, byte for byte but for the id. Those that we answer
ourselves are kept with the datagram, without its id, as the key: parsing, looking up and building then cost nothing.
The dictionary is emptied whenever the zone changes, and bounded in bytes; a datagram with EDNS options (cookies differ
each time) is not kept.
"""

from __future__ import annotations

import socket

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
ENTRY_BYTES = 400
"""What Python adds to key and answers of an entry, measured with tracemalloc."""


class PreparedAnswers:
    """Shared by all sockets. ``answered``: how many queries it answered, which nobody else saw."""

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[Prepared, ...]] = {}
        self.size_bytes = 0
        self.answered = 0

    def keep(self, query: bytes, answers: tuple[Prepared, ...]) -> None:
        """``query``: without its id. Full: start anew, since what is asked for most comes back soonest."""
        if len(query) > KEY_BYTES_MAX:
            return
        size = ENTRY_BYTES + len(query) + sum(answer.size_bytes for answer in answers)
        if self.size_bytes + size > PREPARED_BYTES_MAX:
            self.clear()
        if size <= PREPARED_BYTES_MAX:
            self.known[query] = answers
            self.size_bytes += size

    def clear(self) -> None:
        self.known.clear()
        self.size_bytes = 0


class UdpServer:
    """``sock``: bound to one address, not blocking; it stays its owner's to close, after :meth:`close`."""

    def __init__(self, loop: Loop, sock: socket.socket, resolver: Resolver, prepared: PreparedAnswers) -> None:
        self._loop, self._sock, self._resolver, self._prepared = loop, sock, resolver, prepared
        self._batch = Batch(sock, count=BATCH, size_bytes=QUERY_BYTES_MAX)
        self._host_bytes = slice(4, 8) if sock.family == socket.AF_INET else slice(8, 24)
        loop.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        self._loop.remove(self._sock.fileno())

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
        if found.is_lasting:
            self._prepared.keep(packet[2:], answers)
        batch.put(index, answers[0])
