"""The decree log: what the electors decided, in order, and what follows from it.

Invariants: entry 0 is the only Genesis; entry i has number i; epochs never decrease; each entry names the hash of its
predecessor (zeros for the genesis). Only entries are stored: removed peers, heirs and electors are computed from them.
A :class:`Chain` is an immutable value; the :class:`Log` is the peer's durable one.

Merge (spec: "IPAM state and merge"): of two logs where one continues the other, the longer; after a fork the one of the
greater epoch; within one epoch, which cannot happen without amnesia, the one with the smaller hash at the fork, and the
fork is reported. A different genesis is another cluster's and never merged.

A decree that is invalid in context (an heir who was removed earlier or is removed by it) is a no-op but stays in the
chain. Nothing here decides anything or acts on decrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import VOTERS_MAX
from weavenet.core.ranges import genesis_problem
from weavenet.core.ring.segments import unreadable_row
from weavenet.core.types import (
    GENESIS_POSITION,
    ZERO8,
    ZERO16,
    Decree,
    Electors,
    Genesis,
    LogEntry,
    PeerId,
    Position,
    Remove,
    Segment,
    entry_hash,
)

LOG_TABLE = "log"

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[LogEntry] = msgspec.msgpack.Decoder(LogEntry)


class LogInvalid(Exception):
    """Entries that do not form a chain; the text says which."""


class Chain:
    """An immutable chain of decided decrees; empty before genesis."""

    __slots__ = ("admitted", "electors", "entries", "genesis", "hash", "hashes", "removed", "voters")

    entries: tuple[LogEntry, ...]
    hashes: tuple[bytes, ...]
    hash: bytes
    """Of the last entry, which covers the whole chain; zeros when empty."""
    removed: Mapping[PeerId, tuple[PeerId, Position]]
    """Removed peer → (heir named by the decree, position of the decree)."""
    genesis: Genesis | None
    electors: tuple[PeerId, ...]
    """In force after the last entry."""
    admitted: Mapping[PeerId, Position]
    """Elector → position of the decree since which it is one."""
    voters: tuple[PeerId, ...]
    """Those of the electors that decide the next entry: the oldest, odd in number, at most VOTERS_MAX."""

    def __init__(self, entries: Sequence[LogEntry] = (), *, onto: Chain | None = None) -> None:
        """``onto`` and ``entries``, of which only these are looked at: the log of a fleet has thousands. Raises
        LogInvalid unless both together are a whole chain from the genesis."""
        before = (onto.entries, onto.hashes, onto.removed, onto.admitted) if onto is not None else ((), (), {}, {})
        self.entries = (*before[0], *entries)
        self.hashes = (*before[1], *_chain(before[0], before[1], entries))
        self.hash = self.hashes[-1] if self.hashes else ZERO16
        self.removed, self.admitted = _derive(entries, removed=before[2], admitted=before[3])
        self.electors = tuple(sorted(self.admitted))
        self.voters = _voters(self.admitted)
        decree = self.entries[0].decree if self.entries else None
        self.genesis = decree if isinstance(decree, Genesis) else None

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.hashes == other.hashes

    def __hash__(self) -> int:
        return hash(self.hashes)

    def __repr__(self) -> str:
        return f"Chain({list(self.entries)!r})"

    @property
    def position(self) -> Position | None:
        """Position of the last entry: no stamp in our ring may be beyond it."""
        return self.entries[-1].position if self.entries else None

    def heir(self, peer: PeerId) -> PeerId:
        """heir*: who stands for ``peer`` now; itself unless removed. Ends, since an heir was not removed earlier."""
        while peer in self.removed:
            peer = self.removed[peer][0]
        return peer

    @property
    def next_position(self) -> Position:
        """Of the entry that would continue this chain in its epoch. Only from genesis on."""
        last = self.entries[-1].position
        return Position(last.epoch, last.epoch_id, last.number + 1)

    @property
    def epoch(self) -> tuple[int, bytes]:
        return _epoch(self) if self.entries else (0, ZERO8)

    def holds(self, number: int, digest: bytes) -> bool:
        """Whether entry ``number`` is here and has this hash, hence everything before it too."""
        return number < len(self.hashes) and self.hashes[number] == digest

    def gap(self, start: int, entries: Sequence[LogEntry]) -> int | None:
        """From where on a log must be asked for so that ``entries``, from index ``start`` on, connect to this chain;
        None when they do, or belong to a lower epoch and are of no use."""
        last = entries[-1].position
        if start == 0 or (last.epoch, last.epoch_id) < self.epoch:
            return None
        if start > len(self):
            return len(self)
        return None if entries[0].predecessor == self.hashes[start - 1] else 0

    def ring_gap(self, length: int, segments: Iterable[Segment]) -> int | None:
        """From where on a log must be asked for before segments of a peer whose log has ``length`` entries may be
        stored: no stamp may be beyond the last entry here (I3), also when that is one of a greater epoch."""
        limit = self.position
        highest = max((segment.stamp.position for segment in segments), default=GENESIS_POSITION)
        if limit is None or (highest.epoch, highest.epoch_id) > self.epoch:
            return 0
        return len(self) if length > len(self) or highest > limit else None

    def with_decree(self, position: Position, decree: Decree) -> Chain:
        """This chain and one more entry. Raises LogInvalid."""
        return Chain((LogEntry(position, self.hash, decree),), onto=self)

    def merge(self, start: int, entries: Sequence[LogEntry]) -> Merged:
        """Merge what another peer holds from index ``start`` on."""
        if not entries:
            return Merged(self)
        if start > len(self) or (start > 0 and entries[0].predecessor != self.hashes[start - 1]):
            return Merged(self)  # does not connect; whoever wants it asks for an earlier part
        held = self.entries[start : start + len(entries)]
        if held == tuple(entries[: len(held)]):  # mostly: told before, or the next ones
            start, entries = start + len(held), entries[len(held) :]
            if not entries:
                return Merged(self)
        try:
            theirs = Chain(entries, onto=self) if start == len(self) else Chain((*self.entries[:start], *entries))
        except LogInvalid as error:
            return Merged(self, problem=f"refused a decree log: {error}")
        return self._choose(theirs)

    def _choose(self, theirs: Chain) -> Merged:
        fork = next(
            (i for i, pair in enumerate(zip(self.hashes, theirs.hashes, strict=False)) if pair[0] != pair[1]), None
        )
        if fork is None:
            return Merged(theirs if len(theirs) > len(self) else self)
        if fork == 0:
            return Merged(self, problem="refused a decree log that begins with another genesis")
        mine_epoch, their_epoch = _epoch(self), _epoch(theirs)
        if mine_epoch != their_epoch:
            return Merged(theirs if their_epoch > mine_epoch else self)
        problem = (
            f"the decree log forks at entry {fork} within one epoch ({self.hashes[fork].hex()} here, "
            f"{theirs.hashes[fork].hex()} there): an elector has lost or restored its disk"
        )
        return Merged(theirs if theirs.hashes[fork] < self.hashes[fork] else self, problem=problem)


class Merged(msgspec.Struct, frozen=True):
    """``chain`` is what to hold from now on. ``problem``: a sentence to report, or empty."""

    chain: Chain
    problem: str = ""


class Log:
    """The durable log of this peer: a chain, and its rows."""

    __slots__ = ("_chain", "_outbox", "departed", "departures")

    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        """``rows`` are those of table ``log``. Raises WeaveError for rows that no log can have."""
        self._chain = _load(sorted(rows))
        self._outbox = outbox
        self.departed: dict[PeerId, PeerId | None] = {}
        """Peers that left by themselves → who stands for them; kept by :class:`weavenet.core.leaving.Departed`."""
        self.departures = 0
        """Grows whenever the above changes."""

    def __len__(self) -> int:
        return len(self._chain)

    @property
    def chain(self) -> Chain:
        return self._chain

    @property
    def entries(self) -> tuple[LogEntry, ...]:
        return self._chain.entries

    @property
    def hash(self) -> bytes:
        return self._chain.hash

    @property
    def position(self) -> Position | None:
        return self._chain.position

    @property
    def genesis(self) -> Genesis | None:
        return self._chain.genesis

    @property
    def electors(self) -> tuple[PeerId, ...]:
        return self._chain.electors

    @property
    def voters(self) -> tuple[PeerId, ...]:
        return self._chain.voters

    @property
    def removed(self) -> Mapping[PeerId, tuple[PeerId, Position]]:
        return self._chain.removed

    def depart(self, peer: PeerId, heir: PeerId | None) -> None:
        """``peer`` left by itself; ``heir`` stands for it."""
        self.departed[peer] = heir
        self.departures += 1

    def forget_departure(self, peer: PeerId) -> None:
        self.departed.pop(peer, None)
        self.departures += 1

    def is_gone(self, peer: PeerId) -> bool:
        """Removed by a decree, or left by itself: nothing it says counts any more."""
        return peer in self._chain.removed or peer in self.departed

    def heir(self, peer: PeerId) -> PeerId:
        """Who stands for ``peer`` now, through removals and departures; itself unless it is gone."""
        return self.succession(peer)[0]

    def succession(self, peer: PeerId) -> tuple[PeerId, Position | None]:
        """The heir of ``peer``, and the last removal on the way to it; None when there is none. An heir that left in
        favour of somebody who was then removed in favour of it (decided elsewhere before that was known) would be a
        circle: whoever closes it stands."""
        position: Position | None = None
        passed = {peer}
        while True:
            removal = self._chain.removed.get(peer)
            heir = removal[0] if removal is not None else self.departed.get(peer)
            if heir is None or heir in passed:
                return peer, position
            if removal is not None:
                position = removal[1] if position is None else max(position, removal[1])
            peer = heir
            passed.add(peer)

    def merge(self, start: int, entries: Sequence[LogEntry]) -> bool:
        """Merge what another peer holds from index ``start`` on; True when something new was learnt and persisted."""
        merged = self._chain.merge(start, entries)
        if merged.problem:
            self._outbox.note("error", "log", merged.problem)
        if merged.chain == self._chain:
            return False
        self._outbox.persist(*log_rows(self._chain, merged.chain))
        self._chain = merged.chain
        return True

    def forget(self) -> None:
        """Drop everything: this peer gave up its own cluster for another."""
        self._outbox.persist(*log_rows(self._chain, Chain()))
        self._chain = Chain()


def genesis_entry(genesis: Genesis) -> LogEntry:
    """The first entry of a log."""
    return LogEntry(GENESIS_POSITION, ZERO16, genesis)


def _epoch(log: Chain) -> tuple[int, bytes]:
    position = log.entries[-1].position
    return position.epoch, position.epoch_id


def _chain(before: tuple[LogEntry, ...], known: tuple[bytes, ...], entries: Iterable[LogEntry]) -> list[bytes]:
    """Hashes of ``entries``, which follow those ``before`` with the hashes ``known``. Raises LogInvalid."""
    hashes: list[bytes] = []
    last, predecessor = (before[-1].position, known[-1]) if before else (None, ZERO16)
    for index, entry in enumerate(entries, len(before)):
        if entry.predecessor != predecessor:
            raise LogInvalid(f"entry {index} does not follow the entry before it")
        if entry.position.number != index:
            raise LogInvalid(f"entry {index} has number {entry.position.number}")
        if isinstance(entry.decree, Genesis) != (index == 0):
            raise LogInvalid(f"entry {index} is {'a second' if index else 'no'} genesis")
        if index == 0 and entry.position != GENESIS_POSITION:
            raise LogInvalid("the genesis is not at its position")
        if isinstance(entry.decree, Genesis) and (problem := genesis_problem(entry.decree)):
            raise LogInvalid(problem)
        if last is not None and entry.position <= last:
            raise LogInvalid(f"entry {index} has a lower epoch than the entry before it")
        last, predecessor = entry.position, entry_hash(entry)
        hashes.append(predecessor)
    return hashes


def _derive(
    entries: Iterable[LogEntry],
    *,
    removed: Mapping[PeerId, tuple[PeerId, Position]],
    admitted: Mapping[PeerId, Position],
) -> tuple[dict[PeerId, tuple[PeerId, Position]], dict[PeerId, Position]]:
    """(removed, electors with the position that admitted them) after ``entries``. A removal that leaves no elector
    makes its heir one: without any, nothing could ever be decided again."""
    removed, admitted = dict(removed), dict(admitted)
    for entry in entries:
        match entry.decree:
            case Genesis(electors=chosen) | Electors(electors=chosen):
                eligible = [peer for peer in chosen if peer not in removed]
                if eligible or entry.position == GENESIS_POSITION:
                    admitted = {peer: admitted.get(peer, entry.position) for peer in eligible}
            case Remove(removed=names, heir=heir):
                if heir in removed or heir in names:
                    continue
                for name in names:
                    removed.setdefault(name, (heir, entry.position))
                admitted = {peer: position for peer, position in admitted.items() if peer not in removed}
                admitted = admitted or {heir: entry.position}
    return removed, admitted


def _voters(admitted: Mapping[PeerId, Position]) -> tuple[PeerId, ...]:
    """The oldest electors, ties by PeerId: an even number more would only raise the quorum."""
    oldest = sorted(admitted, key=lambda peer: (admitted[peer], peer))
    count = min(VOTERS_MAX, len(oldest))
    return tuple(oldest[: count - 1 + count % 2])


# --- rows ---


def log_rows(old: Chain, new: Chain) -> list[Change]:
    """Row changes that turn the stored ``old`` into ``new``."""
    same = next(
        (i for i, pair in enumerate(zip(old.hashes, new.hashes, strict=False)) if pair[0] != pair[1]),
        min(len(old), len(new)),
    )
    rows = [Change(LOG_TABLE, _key(index), _encode(new.entries[index])) for index in range(same, len(new))]
    rows += [Change(LOG_TABLE, _key(index), None) for index in range(max(same, len(new)), len(old))]
    return rows


def _load(rows: Sequence[tuple[bytes, bytes]]) -> Chain:
    entries: list[LogEntry] = []
    for index, (key, value) in enumerate(rows):
        if key != _key(index):
            raise unreadable_row(LOG_TABLE, key, f"entry {index} is missing")
        try:
            entries.append(_decoder.decode(value))
        except msgspec.DecodeError as error:
            raise unreadable_row(LOG_TABLE, key, str(error)) from error
    try:
        return Chain(entries)
    except LogInvalid as error:
        raise unreadable_row(LOG_TABLE, b"", str(error)) from error


def _key(index: int) -> bytes:
    return index.to_bytes(4, "big")
