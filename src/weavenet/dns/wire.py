"""DNS messages on the wire (RFC 1035, EDNS0: RFC 6891): questions in, answers out, answers of others walked over.

Invariants: nothing outside the given bytes is read, every loop ends after at most as many steps as there are bytes, and
what does not parse raises :class:`Malformed`. Names stay bytes as on the wire, spelling preserved; folding to lower
case never touches a label's length, since lengths end at 63 and letters begin at 65.

Does not interpret record data, except where offsets of TTLs are collected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

A, NS, SOA, PTR, MX, TXT, AAAA, OPT, DS, DNSKEY, ANY = 1, 2, 6, 12, 15, 16, 28, 41, 43, 48, 255
META_FIRST, META_LAST = 128, 254
"""Types that are no data (RFC 6895, section 3.1): zone transfers, TSIG, TKEY, MAILA. ANY comes after them."""
IN = 1
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE, RCODE = 0x7800, 0x000F
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
BADVERS = 16

HEADER_BYTES = 12
UDP_BYTES_MIN = 512
"""What a client without EDNS takes (RFC 1035, section 4.2.1); smaller EDNS sizes count as this (RFC 6891, 6.2.3)."""
UDP_BYTES_MAX = 4096
"""More is not sent in one datagram, whatever the client says it takes."""
QUERY_BYTES_MAX = 1232
"""Largest query over UDP, announced in our OPT record: fits every path unfragmented (dnsflagday.net/2020)."""
MESSAGE_BYTES_MAX = 65_535
NAME_BYTES_MAX, LABEL_BYTES_MAX = 255, 63
ADDITIONAL_MAX = 8
"""Records after the question of a query: OPT, TSIG and little else exist."""
RECORDS_MAX = 4096
"""Records of an upstream's answer; of the smallest kind 64 kB would hold 5957."""

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QUESTION = struct.Struct("!HH")


class Malformed(Exception):
    """Not a message that can be answered. ``answer``: what to send back, empty for silence."""

    def __init__(self, why: str, answer: bytes = b"") -> None:
        super().__init__(why)
        self.answer = answer


class Edns(NamedTuple):
    """``has_options``: some are there; we know none and answer none."""

    size_bytes: int
    dnssec_ok: bool
    has_options: bool


class Query(NamedTuple):
    """``name``: as asked, on the wire, with the root; ``folded``: in lower case."""

    number: int
    flags: int
    name: bytes
    folded: bytes
    kind: int
    klass: int
    edns: Edns | None

    @property
    def limit_bytes(self) -> int:
        """How long an answer over UDP may be."""
        if self.edns is None:
            return UDP_BYTES_MIN
        return min(max(self.edns.size_bytes, UDP_BYTES_MIN), UDP_BYTES_MAX)

    @property
    def question(self) -> bytes:
        return self.name + _QUESTION.pack(self.kind, self.klass)


class Record(NamedTuple):
    """``owner``: on the wire, or a pointer to a name in the question."""

    owner: bytes
    kind: int
    ttl_s: int
    data: bytes

    def encode(self) -> bytes:
        return self.owner + _RECORD.pack(self.kind, IN, self.ttl_s, len(self.data)) + self.data


def pointer(offset: int) -> bytes:
    """Compressed name: the one that starts at ``offset`` of the message."""
    return (0xC000 | offset).to_bytes(2, "big")


QUESTION_NAME = pointer(HEADER_BYTES)


def encode_name(text: str) -> bytes:
    """``web.weave.local.`` on the wire; a missing last dot is added. UTF-8 outside ASCII. Raises ValueError."""
    stripped = text.removesuffix(".")
    labels = [label.encode() for label in stripped.split(".")] if stripped else []
    if any(not 0 < len(label) <= LABEL_BYTES_MAX for label in labels):
        raise ValueError(f"expected labels of 1 to {LABEL_BYTES_MAX} bytes; found: {text!r}")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(wire) > NAME_BYTES_MAX:
        raise ValueError(f"expected a name of at most {NAME_BYTES_MAX} bytes; found: {len(wire)}")
    return wire


def labels_of(wire: bytes) -> Iterator[int]:
    """Where the labels of an uncompressed, checked name begin; not the root."""
    at = 0
    while wire[at]:
        yield at
        at += wire[at] + 1


def _end_of_question_name(message: bytes, at: int) -> int:
    """Just after an uncompressed name. Raises Malformed."""
    last = at + NAME_BYTES_MAX - 1
    while at < len(message) and at <= last:
        length = message[at]
        if length == 0:
            return at + 1
        if length > LABEL_BYTES_MAX:
            raise Malformed("a compressed or unknown label in a question")
        at += length + 1
    raise Malformed("a name without end")


def _end_of_name(message: bytes, at: int) -> int:
    """Just after a name that may be compressed; where the pointer leads is not looked at."""
    while at < len(message):
        length = message[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > LABEL_BYTES_MAX:
            raise Malformed("a label of unknown kind")
        at += length + 1
    raise Malformed("a name without end")


def parse_query(packet: bytes) -> Query:
    """The one question of ``packet``. Raises Malformed, with the answer to give when there is one: FORMERR, NOTIMP or
    BADVERS. A response is never answered, whatever is in it: two servers could keep each other busy for ever."""
    if len(packet) < HEADER_BYTES:
        raise Malformed("shorter than a header")
    number, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(packet)
    if flags & QR:
        raise Malformed("a response")
    if flags & OPCODE:
        raise Malformed("not a query", _bare(number, flags, NOTIMP))
    try:
        if questions != 1 or answers or authorities or additionals > ADDITIONAL_MAX:
            raise Malformed("expected one question and little else")
        end = _end_of_question_name(packet, HEADER_BYTES)
        if end + 4 > len(packet):
            raise Malformed("a question without end")
        kind, klass = _QUESTION.unpack_from(packet, end)
        name = packet[HEADER_BYTES:end]
        edns, version = _edns(packet, end + 4, additionals)
    except Malformed as error:
        raise Malformed(str(error), _bare(number, flags, FORMERR)) from None
    query = Query(number, flags, name, name.lower(), kind, klass, edns)
    if version:
        raise Malformed("an EDNS version to come", respond(query, BADVERS, flags=0))
    return query


def _edns(packet: bytes, at: int, additionals: int) -> tuple[Edns | None, int]:
    """EDNS and its version, from the records after the question. Raises Malformed."""
    found: tuple[Edns | None, int] = (None, 0)
    for _ in range(additionals):
        end = _end_of_name(packet, at)
        if end + 10 > len(packet):
            raise Malformed("a record without end")
        kind, klass, ttl, length = _RECORD.unpack_from(packet, end)
        if kind == OPT:
            if packet[at] != 0 or found[0] is not None:
                raise Malformed("OPT not at the root, or twice")
            found = Edns(klass, bool(ttl & 0x8000), length > 0), ttl >> 16 & 0xFF
        at = end + 10 + length
    if at != len(packet):
        raise Malformed("something after the last record, or a record without end")
    return found


def _bare(number: int, flags: int, rcode: int) -> bytes:
    return _HEADER.pack(number, QR | flags & (OPCODE | RD) | rcode, 0, 0, 0, 0)


def respond(
    query: Query,
    rcode: int,
    *,
    flags: int,
    answers: Sequence[bytes] = (),
    authority: bytes = b"",
    limit_bytes: int = MESSAGE_BYTES_MAX,
) -> bytes:
    """The answer to ``query``. ``flags``: AA, RA and the like beside QR and what is copied. ``answers``: encoded
    records; those at the end that do not fit are left out and TC is set. ``authority``: one encoded record or none;
    left out silently when it does not fit."""
    question = query.question
    opt = b""
    if query.edns is not None:
        opt = b"\0" + _RECORD.pack(OPT, QUERY_BYTES_MAX, rcode >> 4 << 24 | (0x8000 * query.edns.dnssec_ok), 0)
    room = limit_bytes - HEADER_BYTES - len(question) - len(opt)
    kept = 0
    for answer in answers:
        room -= len(answer)
        if room < 0:
            flags |= TC
            break
        kept += 1
    if len(authority) > max(room, 0):
        authority = b""
    return b"".join(
        (
            _HEADER.pack(
                query.number,
                QR | flags | query.flags & (RD | CD) | rcode & RCODE,
                1,
                kept,
                1 if authority else 0,
                1 if opt else 0,
            ),
            question,
            *answers[:kept],
            authority,
            opt,
        )
    )


def build_query(number: int, flags: int, question: bytes, edns: Edns | None) -> bytes:
    """A query with one question; with ``edns`` an OPT record of our size that carries its DO bit."""
    opt = b""
    if edns is not None:
        opt = b"\0" + _RECORD.pack(OPT, QUERY_BYTES_MAX, 0x8000 * edns.dnssec_ok, 0)
    return _HEADER.pack(number, flags, 1, 0, 0, 1 if opt else 0) + question + opt


class Response(NamedTuple):
    """Of an upstream. ``ttls``: where the TTLs of its records stand in the message; ``ttl_s``: the least of them, None
    without records. ``negative_ttl_s``: how long "there is none" holds (RFC 2308, section 5), None without an SOA."""

    flags: int
    answers: int
    ttls: tuple[int, ...]
    ttl_s: int | None
    negative_ttl_s: int | None

    @property
    def rcode(self) -> int:
        return self.flags & RCODE


def parse_response(message: bytes, number: int, question: bytes) -> Response:
    """Check that ``message`` answers ``question`` under ``number`` and walk over its records. Raises Malformed."""
    if len(message) < HEADER_BYTES:
        raise Malformed("shorter than a header")
    found, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if found != number or not flags & QR or flags & OPCODE:
        raise Malformed("not the answer to this query")
    if questions == 0 and flags & RCODE and len(message) == HEADER_BYTES:  # how some say FORMERR
        return Response(flags, 0, (), None, None)
    if len(message) < HEADER_BYTES + len(question):
        raise Malformed("shorter than its question")
    at = HEADER_BYTES + len(question)
    if questions != 1 or message[HEADER_BYTES : at - 4].lower() != question[:-4].lower():
        raise Malformed("another question")
    if message[at - 4 : at] != question[-4:]:
        raise Malformed("another type or class")
    if flags & TC:
        return Response(flags, answers, (), None, None)
    total = answers + authorities + additionals
    if total > RECORDS_MAX:
        raise Malformed("more records than any answer has")
    ttls: list[int] = []
    least: int | None = None
    negative: int | None = None
    for index in range(total):
        end = _end_of_name(message, at)
        if end + 10 > len(message):
            raise Malformed("a record without end")
        kind, _, ttl, length = _RECORD.unpack_from(message, end)
        at = end + 10 + length
        if at > len(message):
            raise Malformed("a record without end")
        if kind == OPT:
            continue
        ttl = 0 if ttl >> 31 else ttl  # RFC 2181, section 8
        ttls.append(end + 4)
        least = ttl if least is None else min(least, ttl)
        if kind == SOA and answers <= index < answers + authorities and length >= 22:
            negative = min(ttl, int.from_bytes(message[at - 4 : at], "big"))
    return Response(flags, answers, tuple(ttls), least, negative)
