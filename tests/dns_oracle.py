"""Queries and answers as dnspython sees them: the second opinion on our codec."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from weavenet.dns.zone import Zone


def ask(
    name: str, kind: str = "A", *, klass: str = "IN", edns: int | None = None, dnssec: bool = False
) -> dns.message.QueryMessage:
    """``edns``: the size it announces; None: no EDNS."""
    query = dns.message.make_query(name, kind, klass, use_edns=False)
    if edns is not None:
        query.use_edns(0, dns.flags.DO if dnssec else 0, edns)
    return query


def read(wire: bytes) -> dns.message.Message:
    """Strictly: raises for anything that is no message, and for anything behind it."""
    return dns.message.from_wire(wire)


def check(query: dns.message.QueryMessage, wire: bytes) -> dns.message.Message:
    """``wire`` as an answer to ``query``: its id, flags and question are right. Returns it parsed."""
    answer = read(wire)
    assert answer.id == query.id
    assert answer.flags & dns.flags.QR
    assert answer.flags & dns.flags.RA
    assert answer.flags & dns.flags.RD == query.flags & dns.flags.RD
    assert not answer.flags & (dns.flags.AD | dns.flags.Z if hasattr(dns.flags, "Z") else dns.flags.AD)
    assert answer.opcode() == query.opcode()
    assert query.is_response(answer)
    assert answer.question[0].name.labels == query.question[0].name.labels, "spelled as asked"
    assert (answer.edns == 0) == (query.edns == 0), "EDNS exactly to those who use it"
    if query.edns == 0:
        assert answer.ednsflags & dns.flags.DO == query.ednsflags & dns.flags.DO
    return answer


def values(answer: dns.message.Message, kind: str) -> list[str]:
    """Record data of the answer section of this type, in their order."""
    wanted = dns.rdatatype.from_text(kind)
    return [item.to_text() for rrset in answer.answer if rrset.rdtype == wanted for item in rrset]


def rcode(answer: dns.message.Message) -> str:
    return dns.rcode.to_text(answer.rcode())


def sample_zone() -> Zone:
    """Some names of every sort, in the domain ``weave.local.``; the range 10.32.0.0/12 is ours."""
    zone = Zone("weave.local.", ["10.32.0.0/12", "fd00:10::/64"])
    zone.set("Web.weave.local.", [bytes([10, 32, 0, 1])])
    zone.set("db.weave.local.", [bytes([10, 32, 0, 2]), bytes([10, 32, 0, 3]), V6])
    zone.set("alias.weave.local.", [bytes([10, 32, 0, 1])])
    zone.set("a.deep.weave.local.", [bytes([10, 32, 0, 9])])
    zone.set("many.weave.local.", [bytes([10, 33, 0, i]) for i in range(50)])
    return zone


V6 = bytes.fromhex("fd000010000000000000000000000002")
