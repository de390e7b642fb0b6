"""Names of one peer: follows attachments and records, tells the others, and says what is answered.

Each entry travels as one record of its origin (``EntryRecord``), so the mark of the origin is its version and a
withdrawn record is gone everywhere: no clock, no tombstones. Records of others that make no sense are passed on and not
used. A peer that cannot be reached keeps its records; its entries leave the answers after a moment in which a restarted
daemon would be back, and return with it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol

import msgspec

from weavenet.core.commands import AddName, Addresses, Done, RemoveName, Result
from weavenet.core.effects import Outbox, SetNames
from weavenet.core.errors import Code, Failure, InvariantBroken
from weavenet.core.limits import NAME_ABSENCE_S, NAME_ENTRIES_MAX
from weavenet.core.messages.gossip import KIND_NAME, EntryRecord, record_body
from weavenet.core.names.directory import Directory
from weavenet.core.names.registrations import EXPOSE, EXTERNAL, Entry, Owners, Registrations, packed, refuse_unusable
from weavenet.core.names.spelling import absolute_name, folded, is_below, known_name, name_problem
from weavenet.core.types import PeerId

_decoder = msgspec.msgpack.Decoder(EntryRecord)
_encoder = msgspec.msgpack.Encoder()


class Attached(Owners, Protocol):
    changed: set[str]
    """Idents whose attachment differs since somebody emptied it."""


class Published(Protocol):
    """The part of the mesh that is needed here."""

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...
    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...
    def records_of(self, origin: PeerId, kind: int) -> list[bytes]: ...
    def reachable(self) -> frozenset[PeerId]: ...


class Names:
    """``domain``: absolute, lower case."""

    def __init__(  # noqa: PLR0917
        self,
        own: PeerId,
        domain: str,
        rows: Iterable[tuple[bytes, bytes]],
        outbox: Outbox,
        attached: Attached,
        published: Published,
    ) -> None:
        self._own = own
        self.domain = domain
        self._outbox = outbox
        self._attached = attached
        self._published = published
        self._registrations = Registrations(rows, outbox, attached, domain)
        self.directory = Directory()
        self._entries: dict[str, frozenset[Entry]] = {}
        """Ours, by owner, as published."""
        self._count = 0
        self._read: dict[PeerId, dict[bytes, Entry | None]] = {}
        self.elsewhere: dict[PeerId, str] = {}
        """Reachable origins of names that are not below our domain, which are not answered here; one of them each."""
        self._stale_owners = set(self._registrations.owners())
        self._stale_origins: set[PeerId] = set()
        self._reachable: frozenset[PeerId] = frozenset()
        self._missed: dict[PeerId, float] = {}
        """Not reachable any more, answered for until then."""
        self._is_told = False
        self._is_full = False

    # --- commands ---

    def register(self, ident: str, name: str) -> Failure | None:
        """``ident`` is being attached under ``name``."""
        absolute = absolute_name(name, self.domain)
        if isinstance(absolute, Failure):
            return absolute
        self._stale_owners.add(ident)
        return self._registrations.add(absolute, ident, ())

    def command(self, command: AddName | RemoveName) -> Result:
        """``Done``, or what keeps it from being done."""
        completed = absolute_name if isinstance(command, AddName) else known_name
        name = completed(command.name, self.domain) if command.name or isinstance(command, AddName) else ""
        if isinstance(name, Failure):
            return name
        try:
            given = tuple(sorted(set(map(packed, command.addresses))))
            if isinstance(command, AddName):
                for address in given:
                    refuse_unusable(address)
        except ValueError as error:
            return Failure(Code.INVALID, "expected IP addresses without prefix", str(error))
        self._stale_owners.add(command.ident)
        if isinstance(command, AddName):
            return self._add(name, command.ident, given)
        found = self._registrations.remove(command.ident, name, given)
        return Done() if found else self._unknown(command.ident, name)

    def _add(self, name: str, ident: str, given: tuple[bytes, ...]) -> Result:
        if ident == EXTERNAL and not given:
            return Failure(Code.INVALID, f"expected the addresses that {name} stands for", "none")
        if ident != EXTERNAL and self._attached.get(ident) is None:
            return Failure(
                Code.NOT_FOUND,
                f"{ident} must be attached",
                "it is not",
                "run `weave expose` first"
                if ident == EXPOSE
                else "run `weave attach` first, or give addresses without a container",
            )
        return self._registrations.add(name, ident, given) or Done()

    def _unknown(self, owner: str, name: str) -> Failure:
        what = f"{name} of {owner}" if name else f"a name of {owner}"
        return Failure(Code.NOT_FOUND, f"{what} must be registered on this host", "it is not", "see `weave status dns`")

    def lookup(self, text: str) -> Result:
        """Addresses of a name, of any reachable origin; empty when there are none."""
        name = known_name(text, self.domain)
        if isinstance(name, Failure):
            return name
        found = self.directory.addresses(name)
        return Addresses(tuple(str(ipaddress.ip_address(address)) for address in found))

    # --- following the rest of the node ---

    def met(self, origins: Iterable[PeerId]) -> None:
        """Records of ``origins`` changed."""
        self._stale_origins.update(origins)

    def advance(self, now: float) -> None:
        """Publish what changed here, and emit what is to be answered from now on."""
        self._follow_owners(now)
        self._follow_reachable(now)
        self._follow_origins()
        changes = self.directory.take_changes()
        if changes or not self._is_told:
            self._outbox.append(SetNames(not self._is_told, changes))
            self._is_told = True

    def _follow_owners(self, now: float) -> None:
        if self._attached.changed:
            for ident in sorted(self._attached.changed):
                self._registrations.attachment_changed(ident)
            self._stale_owners |= self._attached.changed
            self._attached.changed.clear()
        if not self._stale_owners:
            return
        stale, self._stale_owners = sorted(self._stale_owners), set()
        for owner in stale:
            before, entries = self._entries.pop(owner, frozenset()), self._registrations.entries(owner)
            self._count -= len(before)
            if len(entries) > NAME_ENTRIES_MAX - self._count:
                entries = frozenset(sorted(entries)[: NAME_ENTRIES_MAX - self._count])
                self._complain()
            gone, new = sorted(before - entries), sorted(entries - before)
            for entry in gone:
                self._published.withdraw(now, KIND_NAME, _key(entry))
            for entry in new:
                body = _encoder.encode(EntryRecord(entry.name, entry.address, entry.owner))
                self._published.publish(now, KIND_NAME, _key(entry), body)
            self.directory.change(self._own, gone, new)
            self._count += len(entries)
            if entries:
                self._entries[owner] = entries

    def _complain(self) -> None:
        if not self._is_full:
            self._is_full = True
            self._outbox.note("error", "names", f"more than {NAME_ENTRIES_MAX} entries: the rest is not told")

    def deadline(self) -> float | None:
        return min(self._missed.values()) if self._missed else None

    def _follow_reachable(self, now: float) -> None:
        reachable = self._published.reachable()
        if reachable is not self._reachable and reachable != self._reachable:
            for origin in self._reachable - reachable:
                self._missed[origin] = now + NAME_ABSENCE_S
            for origin in reachable - self._reachable:
                self._missed.pop(origin, None)
                self._stale_origins.add(origin)
            self._reachable = reachable
        for origin in [origin for origin, until in self._missed.items() if now >= until] if self._missed else ():
            del self._missed[origin]
            self._stale_origins.add(origin)

    def _follow_origins(self) -> None:
        if not self._stale_origins:
            return
        stale, self._stale_origins = self._stale_origins, set()
        for origin in sorted(stale - {self._own}):
            if origin not in self._reachable and origin not in self._missed:
                self._read.pop(origin, None)
                self.elsewhere.pop(origin, None)
                self.directory.set(origin, frozenset())
                continue
            before = self._read.get(origin, {})
            bodies = self._published.records_of(origin, KIND_NAME)
            read = {body: before[body] if body in before else _decoded(body) for body in bodies}
            if read:
                self._read[origin] = read
            else:
                self._read.pop(origin, None)
            entries = frozenset(entry for entry in read.values() if entry is not None)
            ours = frozenset(entry for entry in entries if is_below(entry.name, self.domain))
            if len(ours) < len(entries):
                self.elsewhere[origin] = min(entries - ours).name
            else:
                self.elsewhere.pop(origin, None)
            self.directory.set(origin, ours)

    def check(self) -> None:
        """Raises InvariantBroken."""
        own = frozenset().union(*self._entries.values())
        if self.directory.of(self._own) != own or not len(own) == self._count <= NAME_ENTRIES_MAX:
            raise InvariantBroken("own names differ from what is answered, or are too many")
        if not self._stale_owners and not self._is_full:
            wanted = (self._registrations.entries(owner) for owner in self._registrations.owners())
            if frozenset().union(*wanted) != own:
                raise InvariantBroken("published names are not those registered")
        self.directory.check()


def _decoded(body: bytes) -> Entry | None:
    """None for what cannot be an entry of any domain."""
    record = record_body(_decoder, body)
    if record is None:
        return None
    if len(record.address) not in {4, 16} or name_problem(record.name) or not record.name.endswith("."):
        return None
    return Entry(record.name, record.address, record.owner)


def _key(entry: Entry) -> bytes:
    return b"\0".join((folded(entry.name).encode(), entry.address.hex().encode(), entry.owner.encode()))
