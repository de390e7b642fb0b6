"""The share of the seed that this peer may be (spec "IPAM: ring, electors, decrees", Genesis: ``seed=names``).

Until somebody takes it, a share belongs to an id that is derived from the seed's name. The peer launched with that name
takes it by stamping its segments with its own PeerId, version 2, once, and only after :meth:`SeedShare.allow`.

What this does not do: find out when the share may be taken (``core/seeding.py``), push what changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.core.effects import Change, Outbox
from weavenet.core.ring.estate import META_TABLE, Estate
from weavenet.core.ring.genesis import seed_owner
from weavenet.core.ring.log import Log
from weavenet.core.types import GENESIS_POSITION, PeerId, Segment, Stamp

_BOUND = b"bound"
_BINDER = b"binder"
"""There when the share of our seed name was still to be had; an impostor with a second store gets none."""
_TAKEN_VERSION = 2
"""Of the stamp of a share that its seed took; a grant of it raises that."""


class SeedShare:
    """``disk``: whether an earlier start took the share. Of a peer that is no seed there is none."""

    def __init__(
        self, config: NodeConfig, log: Log, estate: Estate, disk: Mapping[tuple[str, bytes], bytes], outbox: Outbox
    ) -> None:
        self._config = config
        self._log = log
        self._estate = estate
        self._outbox = outbox
        seed = msgspec.msgpack.encode(seed_owner(config.name, config.seed_salt))
        # Of this name: a copied disk may be launched with another.
        self._is_bound = disk.get((META_TABLE, _BOUND)) == seed
        self._is_binder = self._is_bound and (META_TABLE, _BINDER) in disk
        self._is_allowed = False

    def _owner(self) -> PeerId | None:
        """The id that owns the share of our seed name; None when there is no such share."""
        config, genesis = self._config, self._log.genesis
        if config.mode is not GenesisMode.SEED or config.name not in config.seeds or genesis is None:
            return None
        owner = seed_owner(config.name, config.seed_salt)
        return owner if owner in genesis.owners and owner not in self._log.removed else None

    @property
    def bound_as(self) -> PeerId | None:
        """The id of a seed that this peer stands for: it took that share, and votes as it. Whoever removes that id
        removes this peer."""
        config = self._config
        return seed_owner(config.name, config.seed_salt) if self._is_binder else None

    @property
    def seed_id(self) -> PeerId | None:
        """The id of the seed that this peer stands for, or will once it may take its share; None: of no seed."""
        return None if self._is_bound and not self._is_binder else self._owner()

    @property
    def is_awaited(self) -> bool:
        """The share is neither taken yet nor known to be another's."""
        return not self._is_bound and self._owner() is not None

    @property
    def is_taken(self) -> bool:
        """Nothing of the share is the seed's any more, as our ring says."""
        owner = self._owner()
        return owner is not None and owner not in self._estate.ring.shares

    def takers(self) -> frozenset[PeerId]:
        """The ids of the seeds that vote and whose shares were taken, as our log and ring say. Of those that left, or
        were removed, there is nobody to ask."""
        genesis, shares = self._log.genesis, self._estate.ring.shares
        if genesis is None:
            return frozenset()
        return frozenset(each for each in genesis.owners if each in self._log.electors and each not in shares)

    def allow(self) -> None:
        """The share may be taken: enough seeds' rings are merged, or this is the first start of all."""
        self._is_allowed = True

    def take(self) -> tuple[Segment, ...] | None:
        """Take the share, durably. What of the ring changed, nothing if it is another's already; None: not now."""
        owner, estate = self._owner(), self._estate
        if self._is_bound or not self._is_allowed or owner is None or not estate.has_ring or estate.leaving:
            return None
        stamp = Stamp(GENESIS_POSITION, _TAKEN_VERSION, estate.me)
        share = [Segment(piece.start, piece.end, stamp) for piece in estate.ring.segments if piece.stamp.owner == owner]
        changed, rows = estate.merge(tuple(share))
        self._is_bound = True
        self._is_binder = bool(changed)
        if changed:
            rows.append(Change(META_TABLE, _BINDER, b"1"))
        self._outbox.persist(*rows, Change(META_TABLE, _BOUND, msgspec.msgpack.encode(owner)))
        if not changed:
            text = f"the share of seed {self._config.name} is another peer's already: addresses come by grant"
            self._outbox.note("warning", "ipam", text)
        return tuple(changed)

    def forget(self) -> list[Change]:
        """The ring is dropped, and what was taken of it."""
        if not self._is_bound:
            return []
        self._is_bound = self._is_binder = False
        return [Change(META_TABLE, _BOUND, None), Change(META_TABLE, _BINDER, None)]
