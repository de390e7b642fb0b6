"""Names in a history: clients that register them, and what must be answered when all has come to rest.

Two sources are kept apart from the directory that is checked: the rows on the disks, put together by a function of a
few lines, and the containers as the clients know them. After the heal every member answers exactly what the rows of all
members say, and no address of a container that is dead or gone.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable

import msgspec

from weavenet.core.commands import AddName, Attachment, Command, RemoveName
from weavenet.core.limits import DNS_DOMAIN_DEFAULT
from weavenet.core.names import EXTERNAL
from weavenet.core.names.registrations import Registration, packed
from weavenet.core.ranges import Ranges
from weavenet.sim.host import Host

NAMES = 6
EXTERNAL_ADDRESSES = 20

Answers = dict[str, set[bytes]]


def name_command(rng: random.Random, held: dict[str, list[str]]) -> Command:
    """Something that an operator may ask about names of containers (``held``: their addresses) or of others."""
    known = sorted(held)
    name = f"{rng.choice(('n', 'N'))}{rng.randrange(NAMES)}"
    owner = rng.choice(known) if known and rng.random() < 0.7 else EXTERNAL
    addresses: tuple[str, ...] = ()
    if owner == EXTERNAL or rng.random() < 0.2:
        addresses = (f"192.0.2.{rng.randrange(EXTERNAL_ADDRESSES)}",)
    elif held[owner] and rng.random() < 0.5:
        addresses = (rng.choice(held[owner]),)
    if rng.random() < 0.3:
        return RemoveName(rng.choice((name, "")), owner, rng.choice(((), addresses)))
    return AddName(name, owner, addresses)


def expected_answers(hosts: Iterable[Host]) -> Answers:
    """What the rows of ``hosts`` come to, without anything of the core's but the shapes of the rows."""
    found: Answers = {}
    for host in hosts:
        rows = host.disk.durable
        for (table, _), value in rows.items():
            if table == "names":
                registration = msgspec.msgpack.decode(value, type=Registration)
                name = f"{registration.name.lower()}.{DNS_DOMAIN_DEFAULT}"
                found.setdefault(name, set()).update(_addresses(host, registration))
    return {name: addresses for name, addresses in found.items() if addresses}


def _addresses(host: Host, registration: Registration) -> set[bytes]:
    if registration.owner == EXTERNAL:
        return set(registration.addresses)
    row = host.disk.durable.get(("attachments", registration.owner.encode()))
    attachment = msgspec.msgpack.decode(row, type=Attachment) if row is not None else None
    if attachment is None or not attachment.live:
        return set()
    own = {packed(text) for text in attachment.addresses}
    blocked = {packed(address) for ident, address in host.blocked if ident == registration.owner}
    if not own - blocked:
        return set()
    mine = own if registration.is_all else own & set(registration.bound)
    return (mine - blocked) | set(registration.addresses)


def names_unrest(members: list[Host], area: Ranges, is_held: Callable[[str], bool]) -> str:
    """What is wrong with the answers of ``members``, or an empty string. ``is_held``: whether a living container of
    theirs has the address."""
    expected = expected_answers(members)
    for host in members:
        answers = {name.lower(): set(addresses) for name, addresses in host.names.items()}
        if answers != expected:
            wrong = sorted(name for name in answers.keys() | expected if answers.get(name) != expected.get(name))
            return f"{host.label} answers something else for {' '.join(wrong[:3])}"
        for name, addresses in answers.items():
            for address in sorted(addresses):
                text = str(ipaddress.ip_address(address))
                if area.offset(text) is not None and not is_held(text):
                    return f"{host.label} answers {text} for {name}, which no living container has"
    return ""
