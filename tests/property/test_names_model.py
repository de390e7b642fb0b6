"""Registrations against a naive model, the directory against plain sets, and records of strangers."""

from __future__ import annotations

import ipaddress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from weavenet.core.commands import Attachment
from weavenet.core.effects import Outbox
from weavenet.core.messages.gossip import KIND_NAME, EntryRecord
from weavenet.core.names.directory import Directory
from weavenet.core.names.names import Names
from weavenet.core.names.registrations import EXTERNAL, Entry, Registrations
from weavenet.core.types import PeerId

ORIGINS = [PeerId(bytes([number]) * 16) for number in range(3)]
ADDRESSES = [ipaddress.ip_address(f"10.32.0.{number}").packed for number in range(4)]
NAMES = ["a.weave.local.", "A.weave.local.", "b.weave.local."]

entries = st.builds(Entry, st.sampled_from(NAMES), st.sampled_from(ADDRESSES), st.sampled_from(["c", "d"]))


@given(st.lists(st.tuples(st.sampled_from(ORIGINS), st.frozensets(entries, max_size=6), st.booleans()), max_size=12))
def test_differences_add_up_to_the_whole(steps: list[tuple[PeerId, frozenset[Entry], bool]]) -> None:
    directory = Directory()
    held: dict[PeerId, frozenset[Entry]] = {}
    told: dict[str, tuple[bytes, ...]] = {}
    for origin, new, is_taken in steps:
        directory.set(origin, new)
        held[origin] = new
        for record in directory.take_changes() if is_taken else ():
            told[record.name.lower()] = record.addresses
    for record in directory.take_changes():
        told[record.name.lower()] = record.addresses
    directory.check()
    union = [entry for some in held.values() for entry in some]
    expected = {
        entry.name.lower(): tuple(sorted({e.address for e in union if e.name.lower() == entry.name.lower()}))
        for entry in union
    }
    assert {name: addresses for name, addresses in told.items() if addresses} == expected


class Owners:
    """One attachment, ``c``, with ``addresses`` of which ``hidden`` cannot be met."""

    def __init__(self) -> None:
        self.addresses: frozenset[bytes] | None = None
        self.hidden: frozenset[bytes] = frozenset()

    def get(self, ident: str) -> Attachment | None:
        if self.addresses is None or ident != "c":
            return None
        return Attachment("c", "c", b"", (), tuple(map(_text, sorted(self.addresses))), True, True)

    def shown(self, ident: str) -> tuple[str, ...]:
        return tuple(map(_text, sorted((self.addresses or frozenset()) - self.hidden))) if ident == "c" else ()


def _text(address: bytes) -> str:
    return f"{ipaddress.ip_address(address)}/12"


some = st.frozensets(st.sampled_from(ADDRESSES), max_size=3)
acts = st.one_of(
    st.tuples(st.just("attach"), st.none() | some, some),
    st.tuples(st.just("add"), st.sampled_from(NAMES), some),
    st.tuples(st.just("remove"), st.sampled_from(["", *NAMES]), some),
)


@given(st.lists(acts, max_size=20))
def test_registrations_do_what_a_list_of_wishes_says(steps: list[tuple[str, object, frozenset[bytes]]]) -> None:
    """The model: per name whether all are meant, and which are meant beside; after each step, and after a restart."""
    owners, outbox = Owners(), Outbox()
    registrations = Registrations((), outbox, owners, "weave.local.")
    model: dict[str, tuple[bool, frozenset[bytes]]] = {}
    for act, what, given_addresses in steps:
        own = owners.addresses or frozenset()
        if act == "attach":
            assert what is None or isinstance(what, frozenset)
            owners.addresses, owners.hidden = what, given_addresses
            registrations.attachment_changed("c")
            lost = own - (what or frozenset())
            model = {} if what is None else {name: (is_all, more - lost) for name, (is_all, more) in model.items()}
        elif owners.addresses is not None and act == "add":
            name = str(what).lower()
            is_all, more = model.get(name, (False, frozenset()))
            assert registrations.add(str(what), "c", tuple(given_addresses)) is None
            model[name] = (is_all or not given_addresses, more | given_addresses)
        elif act == "remove":
            registrations.remove("c", str(what), tuple(given_addresses))
            for name in [name for name in model if what in {"", name} or str(what).lower() == name]:
                is_all, more = model[name]
                if not given_addresses:
                    model[name] = (False, frozenset())
                elif is_all and own & given_addresses:
                    model[name] = (False, (own | more) - given_addresses)
                else:
                    model[name] = (is_all, more - given_addresses)
        model = {name: wish for name, wish in model.items() if wish != (False, frozenset())}
        assert _shown(registrations) == _modelled(model, owners)
    rows = {}
    for effect in outbox.drain():
        for change in getattr(effect, "changes", ()):
            rows[change.key] = change.value
    kept = [(key, value) for key, value in rows.items() if value is not None]
    assert _shown(Registrations(kept, Outbox(), owners, "weave.local.")) == _modelled(model, owners)


def _shown(registrations: Registrations) -> set[tuple[str, bytes]]:
    return {(entry.name.lower(), entry.address) for entry in registrations.entries("c")}


def _modelled(model: dict[str, tuple[bool, frozenset[bytes]]], owners: Owners) -> set[tuple[str, bytes]]:
    own = owners.addresses or frozenset()
    visible = own - owners.hidden
    if not visible:
        return set()
    hidden = own & owners.hidden
    return {
        (n, a) for n, (is_all, more) in model.items() for a in ((visible if is_all else frozenset()) | more) - hidden
    }


class Strangers:
    """A mesh with one other origin, which publishes ``bodies``."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...

    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]:
        return self.bodies if kind == KIND_NAME and origin == ORIGINS[1] else []

    def reachable(self) -> frozenset[PeerId]:
        return frozenset(ORIGINS[:2])


class Nobody(Owners):
    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()


strange = st.builds(
    lambda name, address, owner: msgspec.msgpack.encode(EntryRecord(name, address, owner)),
    st.text(max_size=20) | st.sampled_from(NAMES),
    st.binary(max_size=17),
    st.text(max_size=5) | st.just(EXTERNAL),
)


@given(st.lists(st.binary(max_size=60) | strange, max_size=8))
def test_records_of_strangers_never_do_harm(bodies: list[bytes]) -> None:
    outbox = Outbox()
    names = Names(ORIGINS[0], "weave.local.", (), outbox, Nobody(), Strangers(bodies))
    names.advance(0.0)
    names.check()
    for entry, _ in names.directory.entries():
        assert entry.name.lower() in {"a.weave.local.", "b.weave.local."} or entry.name.isascii()
        assert len(entry.address) in {4, 16}
