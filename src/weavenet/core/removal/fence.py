"""What a removed peer that turns out to live keeps of its disk (spec "Fenced").

Everything it believed about the cluster goes: ring, log, votes, open data paths, and (the drivers' part) its key, so
that it comes back under a PeerId nobody has removed. What people asked for stays: name, targets, attachments and the
addresses of its containers, all of which are blocked at the bridge until their owner grants them one by one.

A seed that had taken its share does not take it again (``Ipam`` remembers that): it voted as that seed, and has
forgotten how. Those who have not heard of the removal would let it, and count a second vote (history
*seed-votes-twice*).

It comes back as a member of the same cluster, never as a founder of another: without the cluster record it waits for
somebody who has it (``Rejoin``).

A pure function of the disk, so that the runtime and the simulator cannot differ in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weavenet.core.effects import Change
from weavenet.core.ranges import Ranges, offset_key
from weavenet.core.types import Bytes16, Genesis, Label, LogEntry

REJOIN_TABLE = "rejoin"
_REJOIN = b"cluster"
DROPPED_TABLES = frozenset(
    {"ring", "log", "acceptor", "planes", "election", "cluster", "grants", "held", "removals", "collect", "known"}
    | {"unseen", "left", "leaving", "leases"}
)
_DROPPED_META = frozenset({b"binder"})


class Rejoin(msgspec.Struct, frozen=True, array_like=True):
    """The cluster that a fenced peer waits to be let into again, and the ranges its containers' addresses are of."""

    cluster: Bytes16
    ranges: tuple[Label, ...]


def rejoin_of(disk: Mapping[tuple[str, bytes], bytes]) -> Rejoin | None:
    row = disk.get((REJOIN_TABLE, _REJOIN))
    return None if row is None else msgspec.msgpack.decode(row, type=Rejoin)


def rejoined() -> Change:
    """The row change that ends the waiting: the cluster record is here."""
    return Change(REJOIN_TABLE, _REJOIN, None)


def fenced_disk(disk: Mapping[tuple[str, bytes], bytes]) -> tuple[Change, ...]:
    """The changes that fence ``disk``, to be made in one commit together with dropping the key. Fencing twice changes
    nothing more."""
    changes = [Change(table, key, None) for table, key in sorted(disk) if table in DROPPED_TABLES]
    changes += [Change("meta", key, None) for key in sorted(_DROPPED_META) if ("meta", key) in disk]
    genesis = _genesis(disk)
    if genesis is None:
        return tuple(changes)
    rejoin = Rejoin(genesis.cluster, genesis.ranges)
    changes.append(Change(REJOIN_TABLE, _REJOIN, msgspec.msgpack.encode(rejoin)))
    area = Ranges.parse(genesis.ranges)
    for table, key in sorted(disk):
        if table == "alloc":
            offset = area.offset(key.decode().partition("\0")[2])
            if offset is not None:
                changes.append(Change("blocked", offset_key(offset), msgspec.msgpack.encode("")))
    return tuple(changes)


def cluster_ranges(disk: Mapping[tuple[str, bytes], bytes]) -> tuple[str, ...]:
    """The ranges of the cluster that ``disk`` belongs to, or waits to be let into again; empty when there is none."""
    member, waiting = _genesis(disk), rejoin_of(disk)
    return member.ranges if member is not None else waiting.ranges if waiting is not None else ()


def _genesis(disk: Mapping[tuple[str, bytes], bytes]) -> Genesis | None:
    row = disk.get(("log", bytes(4)))
    decree = None if row is None else msgspec.msgpack.decode(row, type=LogEntry).decree
    return decree if isinstance(decree, Genesis) else None
