"""What remains on the disk of a peer that left: its name, and nothing else (spec 08, "What is remembered").

A pure function of the disk, so that the runtime and the simulator cannot differ in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from weavenet.core.effects import Change

KEPT = frozenset({("runtime", b"peer-name")})


def departed_disk(disk: Mapping[tuple[str, bytes], bytes]) -> tuple[Change, ...]:
    """The changes that make ``disk`` that of a machine where this peer never was. Doing it twice changes nothing
    more."""
    return tuple(Change(table, key, None) for table, key in sorted(disk) if (table, key) not in KEPT)
