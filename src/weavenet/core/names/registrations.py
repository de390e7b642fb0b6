"""Names registered at this peer: by attach and expose, and by hand; remembered, and never written by anybody else.

A registration says that a name stands for all addresses of its owner, whatever these are from time to time, for given
ones, or both. The owner is an attachment (a container, or ``weave:expose`` for the bridge) or ``weave:external``.

Invariants:
- What is not there is not named: entries of an attachment exist only while its interface is live, for addresses that
  are not blocked. They come back with it.
- A given address that its attachment gives up leaves the registration for good; it may be somebody else's tomorrow.
- The registrations of an attachment go when it is forgotten. Those of ``weave:external`` go by hand only.
- They are remembered without the domain: where it has another name from the next start on, they are below that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, NamedTuple, Protocol

import msgspec

from weavenet.core.commands import Attachment
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import ADDRESSES_PER_IDENT_MAX, NAME_REGISTRATIONS_MAX
from weavenet.core.names.spelling import folded, name_problem
from weavenet.core.types import Label, without_prefix

TABLE = "names"
EXTERNAL = "weave:external"
"""Owner of names of addresses that are no container's."""
EXPOSE = "weave:expose"
"""The attachment of the host itself."""

PackedAddress = Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]


class Entry(NamedTuple):
    """One name of one address. ``address`` is packed, 4 or 16 bytes."""

    name: str
    address: bytes
    owner: str


class Registration(msgspec.Struct, frozen=True, array_like=True):
    """``is_all``: for whatever addresses the owner has; ``bound``: for these of them, as long as it has them;
    ``addresses``: for these, which are not its own. ``name``: absolute, but without the domain in the store."""

    name: Label
    owner: Label
    is_all: bool
    addresses: tuple[PackedAddress, ...]
    bound: tuple[PackedAddress, ...] = ()


class Owners(Protocol):
    """The attachments of this host."""

    def get(self, ident: str) -> Attachment | None: ...

    def shown(self, ident: str) -> tuple[str, ...]:
        """Addresses (CIDR text) under which ``ident`` can be met now."""
        ...


def packed(text: str) -> bytes:
    """``text`` with or without prefix. Raises ValueError, also for an address with the device that it belongs to
    (``fe80::1%eth0``): elsewhere it means another one, or none."""
    address = ipaddress.ip_address(without_prefix(text))
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r} holds on one link only")
    return address.packed


def refuse_unusable(address: bytes) -> None:
    """Raises ValueError for an address at which nobody is met, or somebody else on each host."""
    found = ipaddress.ip_address(address)
    is_local = isinstance(found, ipaddress.IPv6Address) and found.is_link_local
    if found.is_unspecified or found.is_multicast or is_local:
        raise ValueError(f"{found} is nobody's, or holds on one link only")


class Registrations:
    """``domain``: absolute; every name is below it."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox, owners: Owners, domain: str) -> None:
        self._outbox = outbox
        self._domain = domain
        self._owners = owners
        self._by_owner: dict[str, dict[str, Registration]] = {}
        self._count = 0
        for _, value in rows:
            stored = msgspec.msgpack.decode(value, type=Registration)
            registration = msgspec.structs.replace(stored, name=f"{stored.name}.{domain}")
            problem = name_problem(registration.name)
            if problem:
                outbox.note("warning", "names", f"{stored.name} is not told below {domain}: {problem}")
                continue
            self._by_owner.setdefault(registration.owner, {})[folded(registration.name)] = registration
            self._count += 1
        for owner in tuple(self._by_owner):
            self.attachment_changed(owner)

    def owners(self) -> tuple[str, ...]:
        return tuple(self._by_owner)

    def add(self, name: str, owner: str, addresses: tuple[bytes, ...]) -> Failure | None:
        """``name`` is sound and absolute. ``addresses`` empty: all that the owner has. Adds to what was."""
        old = self._by_owner.get(owner, {}).get(folded(name))
        if old is None and self._count >= NAME_REGISTRATIONS_MAX:
            return Failure(
                Code.NO_SPACE,
                f"expected at most {NAME_REGISTRATIONS_MAX} names on one host",
                f"{self._count} are registered",
                "remove some with `weave dns-remove`",
            )
        given = frozenset(addresses)
        if old is not None:
            given = given.union(old.addresses, self._all_of(owner).intersection(old.bound))
        if len(given) > ADDRESSES_PER_IDENT_MAX:
            return Failure(
                Code.NO_SPACE,
                f"expected at most {ADDRESSES_PER_IDENT_MAX} addresses of one owner under one name",
                str(len(given)),
                "use another name, or register the rest on another host",
            )
        is_all = not addresses or (old is not None and old.is_all)
        self._put(self._sorted_out(name, owner, is_all, given))
        return None

    def remove(self, owner: str, name: str, addresses: tuple[bytes, ...]) -> bool:
        """Take ``addresses`` (empty: all) out of the registrations of ``owner`` for ``name`` (empty: every name).
        Whether there was any."""
        found = False
        gone = frozenset(addresses)
        for registration in tuple(self._by_owner.get(owner, {}).values()):
            if name and folded(registration.name) != folded(name):
                continue
            own = self._all_of(owner) if registration.is_all else frozenset[bytes]()
            held = own.union(registration.addresses, registration.bound)
            if addresses and held.isdisjoint(gone):
                continue
            found = True
            is_all = bool(addresses) and registration.is_all and own.isdisjoint(gone)
            left = frozenset(registration.addresses).union(registration.bound) if is_all else held
            left = left - gone if addresses else frozenset()
            self._put(self._sorted_out(registration.name, owner, is_all, left))
        return found

    def attachment_changed(self, owner: str) -> None:
        """Follow what became of the attachment ``owner``."""
        if owner == EXTERNAL:
            return
        is_there = self._owners.get(owner) is not None
        own = self._all_of(owner)
        for registration in tuple(self._by_owner.get(owner, {}).values()):
            if not is_there:
                self._put(Registration(registration.name, owner, False, ()))
                continue
            given = own.intersection(registration.bound).union(registration.addresses)
            self._put(self._sorted_out(registration.name, owner, registration.is_all, given))

    def entries(self, owner: str) -> frozenset[Entry]:
        """What the others are told of ``owner`` now."""
        registrations = self._by_owner.get(owner, {}).values()
        if owner == EXTERNAL:
            return frozenset(Entry(r.name, address, owner) for r in registrations for address in r.addresses)
        shown = frozenset(map(packed, self._owners.shown(owner)))
        if not shown:
            return frozenset()
        return frozenset(
            Entry(registration.name, address, owner)
            for registration in registrations
            for address in (shown if registration.is_all else shown.intersection(registration.bound)).union(
                registration.addresses
            )
        )

    def _all_of(self, owner: str) -> frozenset[bytes]:
        attachment = self._owners.get(owner)
        return frozenset(map(packed, attachment.addresses)) if attachment is not None else frozenset()

    def _sorted_out(self, name: str, owner: str, is_all: bool, given: frozenset[bytes]) -> Registration:
        """``given`` divided into those that ``owner`` has now and others."""
        own = self._all_of(owner)
        return Registration(name, owner, is_all, tuple(sorted(given - own)), tuple(sorted(given & own)))

    def _put(self, registration: Registration) -> None:
        """Remember it, or forget it when it names nothing."""
        owned = self._by_owner.setdefault(registration.owner, {})
        key = folded(registration.name)
        name = registration.name[: -len(self._domain) - 1]
        row = f"{registration.owner}\0{folded(name)}".encode()
        if not (registration.is_all or registration.addresses or registration.bound):
            if owned.pop(key, None) is not None:
                self._count -= 1
                self._outbox.persist(Change(TABLE, row, None))
        elif owned.get(key) != registration:
            self._count += key not in owned
            owned[key] = registration
            stored = msgspec.structs.replace(registration, name=name)
            self._outbox.persist(Change(TABLE, row, msgspec.msgpack.encode(stored)))
        if not owned:
            del self._by_owner[registration.owner]
