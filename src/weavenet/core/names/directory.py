"""What every name means here: the entries of all origins that can be reached, put together.

Invariant: names differing only in case are one; of several spellings the first in byte order is shown. An entry counts
as long as its origin publishes it and is reachable; nothing here remembers what is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from weavenet.core.effects import NameRecord
from weavenet.core.errors import InvariantBroken
from weavenet.core.limits import NAME_ADDRESSES_MAX
from weavenet.core.names.registrations import Entry
from weavenet.core.names.spelling import folded
from weavenet.core.types import PeerId


class Directory:
    def __init__(self) -> None:
        self._by_origin: dict[PeerId, set[Entry]] = {}
        self._by_name: dict[str, set[tuple[PeerId, Entry]]] = {}
        self._told: dict[str, NameRecord] = {}
        self._stale: set[str] = set()

    def set(self, origin: PeerId, entries: frozenset[Entry]) -> None:
        """``entries``: all that ``origin`` is known to publish and that count."""
        before = self._by_origin.get(origin, set())
        self.change(origin, before - entries, entries - before)

    def change(self, origin: PeerId, gone: Iterable[Entry], new: Iterable[Entry]) -> None:
        """``gone`` are all held of ``origin``, ``new`` are none of them."""
        entries = self._by_origin.setdefault(origin, set())
        for entry in gone:
            key = folded(entry.name)
            entries.discard(entry)
            held = self._by_name[key]
            held.discard((origin, entry))
            if not held:
                del self._by_name[key]
            self._stale.add(key)
        for entry in new:
            key = folded(entry.name)
            entries.add(entry)
            self._by_name.setdefault(key, set()).add((origin, entry))
            self._stale.add(key)
        if not entries:
            del self._by_origin[origin]

    def of(self, origin: PeerId) -> frozenset[Entry]:
        return frozenset(self._by_origin.get(origin, ()))

    def entries(self) -> list[tuple[Entry, PeerId]]:
        """All that count, by name, address, owner and origin."""
        found = [(entry, origin) for origin, entries in self._by_origin.items() for entry in entries]
        return sorted(found, key=lambda item: (folded(item[0].name), item[0].address, item[0].owner, item[1]))

    def __len__(self) -> int:
        return sum(map(len, self._by_origin.values()))

    def addresses(self, name: str) -> tuple[bytes, ...]:
        return _addresses(self._by_name.get(folded(name), ()))

    def take_changes(self) -> tuple[NameRecord, ...]:
        """Names that mean something else than when they were last taken, in order."""
        if not self._stale:
            return ()
        changed = []
        for key in sorted(self._stale):
            held = self._by_name.get(key)
            told = self._told.get(key)
            if held:
                record = NameRecord(min(entry.name for _, entry in held), _addresses(held))
                if record != told:
                    self._told[key] = record
                    changed.append(record)
            elif told is not None:
                del self._told[key]
                changed.append(NameRecord(told.name, ()))
        self._stale.clear()
        return tuple(changed)

    def check(self) -> None:
        """Raises InvariantBroken. To be asked when changes have been taken."""
        by_name: dict[str, set[tuple[PeerId, Entry]]] = {}
        for origin, entries in self._by_origin.items():
            for entry in entries:
                by_name.setdefault(folded(entry.name), set()).add((origin, entry))
        if by_name != self._by_name:
            raise InvariantBroken("names differ from what their origins publish")
        if not self._stale and self._told.keys() != by_name.keys():
            raise InvariantBroken("names were taken that nobody publishes, or the reverse")


def _addresses(held: Iterable[tuple[PeerId, Entry]]) -> tuple[bytes, ...]:
    found = sorted({entry.address for _, entry in held}, key=lambda address: (len(address), address))
    return tuple(found[:NAME_ADDRESSES_MAX])
