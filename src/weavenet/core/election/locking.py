"""Genesis decided by something that exists already and can create-if-absent: ``--ipalloc-init lock=URL``.

Whoever waits for addresses first looks whether the record is there. If not, it waits for the electors that its targets
promise (at most LOCK_GRACE_S, since nobody knows whether they will come), drafts a record that names those within
reach, and offers it; the lock keeps the first offer for ever and shows it to everybody. So there is exactly one
genesis whoever is alive, in any order, with one configuration; the lock is needed only until the record is there.

Invariants: a draft is durable before it is offered, and the same draft is offered again after a restart; what the lock
shows counts, never the draft itself; at most one offer is under way. A record that is not ours to take (another
password, another range, no record at all) is refused in words and looked at again later: a person may put it right.

The last member that leaves for good withdraws the record (:meth:`LockedGenesis.withdraw`), so that the next host begins
a new cluster instead of joining one that nobody is in. Whoever read the record just before that, and has met nobody of
it, looks again now and then (:meth:`LockedGenesis.watch`) and begins anew too. Hosts that died without leaving withdraw
nothing: people remove the record, or those peers.

Safety rests on the lock alone: lost answers, repeated and late offers and crashes change nothing, since all of them
end in reading what won. Trust: who may write at the URL may name the owners of all addresses, but gets no link without
the password.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weavenet.core.effects import Change, OfferRecord, Outbox, WithdrawRecord
from weavenet.core.errors import UNDECODABLE
from weavenet.core.events import RecordOffered
from weavenet.core.limits import (
    ELECTORS_MAX,
    LOCK_GRACE_S,
    LOCK_RECORD_BYTES_MAX,
    LOCK_RETRY_CAP_S,
    LOCK_RETRY_FACTOR,
    LOCK_RETRY_FIRST_S,
)
from weavenet.core.ranges import genesis_problem
from weavenet.core.types import Genesis, PeerId

TABLE = "election"
_DRAFT = b"draft"
FORMAT = 1


class LockRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record as JSON, for people too; ids in hex. ``authority``: fingerprint of the password's certificate
    authority, so that a cluster with another password says so instead of never connecting."""

    weave: int
    cluster: str
    ranges: tuple[str, ...]
    electors: tuple[str, ...]
    owners: tuple[str, ...]
    authority: str


class RecordRefused(Exception):
    """What the lock shows is not the record of our cluster; the text says why and what to do."""


def encode_record(genesis: Genesis, authority: bytes) -> bytes:
    record = LockRecord(
        weave=FORMAT,
        cluster=genesis.cluster.hex(),
        ranges=genesis.ranges,
        electors=tuple(peer.hex() for peer in genesis.electors),
        owners=tuple(peer.hex() for peer in genesis.owners),
        authority=authority.hex(),
    )
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode_record(data: bytes, authority: bytes) -> Genesis:
    """Raises RecordRefused for anything but a cluster record made under the same password."""
    if len(data) > LOCK_RECORD_BYTES_MAX:
        raise RecordRefused(f"expected at most {LOCK_RECORD_BYTES_MAX} bytes; found {len(data)}; {_NEXT}")
    try:
        record = msgspec.json.decode(data, type=LockRecord)
        if record.weave != FORMAT:
            raise RecordRefused(f"expected a record of format {FORMAT}; found {record.weave}; next: upgrade this host")
        ids = [[PeerId(_id(text)) for text in texts] for texts in (record.electors, record.owners)]
        genesis = Genesis(_id(record.cluster), record.ranges, tuple(ids[0]), tuple(ids[1]))
    except (*UNDECODABLE, ValueError) as error:
        raise RecordRefused(f"expected a cluster record of weave; found something else ({error}); {_NEXT}") from error
    problem = genesis_problem(genesis)
    if not problem and not 0 < len(genesis.electors) <= ELECTORS_MAX:
        problem = f"{len(genesis.electors)} electors"
    if problem:
        raise RecordRefused(f"expected a sound cluster record; found: {problem}; {_NEXT}")
    if record.authority != authority.hex():
        raise RecordRefused(
            "expected the record of a cluster with our password; found one of another (or from before it was changed: "
            "then any member that can be reached tells us); next: give all hosts one password, or this cluster another "
            "lock URL"
        )
    return genesis


_NEXT = "next: choose another lock URL, or remove what is there if nobody uses it"


def _id(text: str) -> bytes:
    """16 bytes from lower-case hex. Raises ValueError."""
    found = bytes.fromhex(text)
    if len(found) != 16 or found.hex() != text:
        raise ValueError(f"expected 32 hex digits, found {text[:40]!r}")
    return found


class LockedGenesis:
    """``draft(electors)`` makes the record we would offer. ``decided`` holds what the lock showed."""

    def __init__(
        self,
        *,
        url: str,
        authority: bytes,
        expected_ranges: tuple[str, ...],
        draft_row: bytes | None,
        outbox: Outbox,
        draft: Callable[[tuple[PeerId, ...]], Genesis],
    ) -> None:
        """``expected_ranges``: those the operator insists on, or empty."""
        self._url = url
        self._authority = authority
        self._expected_ranges = expected_ranges
        self._outbox = outbox
        self._draft = draft
        self._row = draft_row
        self._has_looked = False
        self._is_asking = False
        self._wait_until: float | None = None
        self._retry_at: float | None = None
        self._pause_s = 0.0
        self._leaving: bytes | None = None
        self._is_withdrawn = False
        self._watched: bytes | None = None
        self.is_superseded = False
        """The lock no longer shows the record that is watched."""
        self._found = b""
        self.decided: Genesis | None = None
        self.failure = ""
        """Why the lock could not be used so far; empty when it could."""

    @property
    def has_drafted(self) -> bool:
        """A record of ours may be offered, or kept by the lock, already."""
        return self._row is not None

    @staticmethod
    def disk_key() -> tuple[str, bytes]:
        return TABLE, _DRAFT

    def deadline(self) -> float | None:
        if self._is_asking or (self.decided is not None and self._watched is None):
            return None
        return self._retry_at if self._retry_at is not None else self._wait_until

    def advance(self, now: float, *, wanted: bool, electors: tuple[PeerId, ...], n: int, settled: bool) -> None:
        """``electors``: within reach, ourselves included; ``n``: how many our targets promise, and ``settled`` whether
        all of them were tried once. Looks, waits or offers as due."""
        if not wanted or self._is_asking or self.decided is not None:
            if not wanted:
                self._wait_until = self._retry_at = None
            return
        if self._retry_at is not None and now < self._retry_at:
            return
        self._retry_at = None
        if self._row is None and self._has_looked:
            if not settled:
                return
            if len(electors) < n and self._wait_until is None:
                self._wait_until = now + LOCK_GRACE_S
            if len(electors) < n and self._wait_until is not None and now < self._wait_until:
                return
            self._row = encode_record(self._draft(electors[:ELECTORS_MAX]), self._authority)
            self._outbox.persist(Change(TABLE, _DRAFT, self._row))
        self._is_asking = True
        self._outbox.append(OfferRecord(self._url, self._row or b""))

    def handle(self, now: float, event: RecordOffered) -> None:
        """The driver's answer to the offer under way."""
        if not self._is_asking:
            return
        self._is_asking = False
        if event.error:
            self._fail(now, event.error)
        elif self._watched is not None:
            self.is_superseded = not self._is_of(event.record, self._watched)
            self._retry_at = now + LOCK_RETRY_CAP_S
        elif self._leaving is not None:
            self._is_withdrawn = not self._is_of(event.record, self._leaving)
            self._found = event.record
        elif not event.record:
            self._has_looked = True
            self._pause_s = 0.0
            self.failure = ""
            if self._row is not None:
                self._fail(now, "the lock took our record but does not show it")
        else:
            try:
                genesis = decode_record(event.record, self._authority)
                self._check_ranges(genesis)
            except RecordRefused as refused:
                self._fail(now, str(refused))
                return
            self.failure = ""
            self.decided = genesis

    def _check_ranges(self, genesis: Genesis) -> None:
        if self._expected_ranges and self._expected_ranges != genesis.ranges:
            raise RecordRefused(
                f"expected --ipalloc-range {','.join(self._expected_ranges)}; found a cluster with "
                f"{','.join(genesis.ranges)}; next: launch with the cluster's range, or without --ipalloc-range"
            )

    def _fail(self, now: float, text: str) -> None:
        if text != self.failure:
            self._outbox.note("warning", "lock", f"{self._url}: {text}")
        self.failure = text
        self._pause_s = min(max(LOCK_RETRY_FIRST_S, self._pause_s * LOCK_RETRY_FACTOR), LOCK_RETRY_CAP_S)
        self._retry_at = now + self._pause_s

    def withdraw(self, now: float, cluster: bytes) -> str:
        """Have the record of ``cluster``, which nobody is in any more, forgotten. To be called again until it returns
        an empty text; else that says what is missing."""
        if self._is_withdrawn:
            return ""
        self._leaving = cluster
        if not self._is_asking and (self._retry_at is None or now >= self._retry_at):
            self._retry_at = None
            self._is_asking = True
            effect = WithdrawRecord(self._url, self._found) if self._found else OfferRecord(self._url, b"")
            self._outbox.append(effect)
        return f"the lock {self._url} has to forget the record of this cluster" + (
            f": {self.failure}" if self.failure else ""
        )

    def watch(self, now: float, cluster: bytes | None) -> None:
        """Look now and then whether the lock still shows the record of ``cluster``; None: no need any more."""
        if self._leaving is not None or self._watched != cluster:
            self._retry_at = now + LOCK_RETRY_CAP_S if cluster is not None else None
        self._watched = cluster if self._leaving is None else None
        if self._watched is not None and not self._is_asking and self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._is_asking = True
            self._outbox.append(OfferRecord(self._url, b""))

    def _is_of(self, record: bytes, cluster: bytes) -> bool:
        try:
            return bool(record) and decode_record(record, self._authority).cluster == cluster
        except RecordRefused:
            return False

    def settle(self) -> None:
        """A cluster record is there: the draft has no use any more."""
        if self._row is not None:
            self._row = None
            self._outbox.persist(Change(TABLE, _DRAFT, None))

    def forget(self) -> None:
        """Start anew (our cluster was given up): what the lock showed is another's to decide now."""
        self.settle()
        self.decided = self._watched = self._retry_at = None
        self._has_looked = self.is_superseded = False

    def words(self) -> str:
        """What it waits for, as the detail of ``status ipam``."""
        if self.failure:
            return f"the lock {self._url} is of no use yet: {self.failure}"
        if self._is_asking:
            return f"asking the lock {self._url}"
        return (
            f"the lock {self._url} has no record yet; waiting {LOCK_GRACE_S:.0f} s for the electors among the targets"
        )
