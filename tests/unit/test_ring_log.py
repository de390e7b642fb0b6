"""The decree log: chains, what follows from them, and merging."""

from __future__ import annotations

import pytest

from ring_world import genesis_of, peer_id
from weavenet.core.effects import Note, Outbox, Persist
from weavenet.core.errors import WeaveError
from weavenet.core.ring import Chain, Log, LogInvalid
from weavenet.core.ring import log as log_module
from weavenet.core.ring.log import genesis_entry
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
    Stamp,
    entry_hash,
)

A, B, C, D = (peer_id(name) for name in "abcd")
START = Chain([genesis_entry(genesis_of("a", "b", "c"))])


def chain(*decrees: Decree, base: Chain = START, epoch: tuple[int, bytes] = (0, ZERO8)) -> Chain:
    for decree in decrees:
        base = base.with_decree(Position(*epoch, len(base)), decree)
    return base


def remove(heir: PeerId, *names: PeerId) -> Remove:
    return Remove(names, heir)


def test_electors_and_removals_follow_from_the_entries() -> None:
    decided = chain(Electors((A, B, C, D)), remove(B, A), remove(D, B))
    assert decided.electors == (C, D)
    assert decided.heir(A) == D
    assert decided.heir(C) == C
    assert decided.removed[A] == (B, Position(0, ZERO8, 2))


@pytest.mark.parametrize("noop", [remove(B, B, C), remove(A, C)], ids=["heir removed with it", "heir removed before"])
def test_a_decree_that_is_invalid_in_context_changes_nothing_but_stays(noop: Remove) -> None:
    before = chain(remove(B, A))
    after = chain(noop, base=before)
    assert len(after) == 3
    assert (after.removed, after.electors) == (before.removed, before.electors)


def test_a_decree_costs_the_same_however_long_the_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is tried out, appended, and heard of more than once; a fleet whose hosts vanish has thousands."""
    before = chain(*(remove(A, PeerId(number.to_bytes(16, "big"))) for number in range(1, 301)))
    hashed: list[LogEntry] = []

    def counted(entry: LogEntry) -> bytes:
        hashed.append(entry)
        return entry_hash(entry)

    monkeypatch.setattr(log_module, "entry_hash", counted)
    after = chain(remove(A, B), base=before)
    assert before.merge(len(before), after.entries[-1:]).chain == after
    for start in (0, 200, len(before)):
        assert after.merge(start, after.entries[start:]).chain is after
    assert before.merge(0, after.entries).chain == after
    assert len(hashed) == 3
    assert Chain(after.entries).removed == after.removed
    assert len(hashed) == 3 + len(after)


def test_electors_named_again_after_removal_stay_out() -> None:
    assert chain(remove(B, A), Electors((A, B))).electors == (B,)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([LogEntry(GENESIS_POSITION, ZERO16, Electors((A,)))], "no genesis"),
        ([*START.entries, LogEntry(Position(0, ZERO8, 1), ZERO16, Electors((A,)))], "does not follow"),
        ([*START.entries, LogEntry(Position(0, ZERO8, 2), START.hash, Electors((A,)))], "number 2"),
        ([*START.entries, LogEntry(Position(0, ZERO8, 1), START.hash, genesis_of("d"))], "second genesis"),
        ([LogEntry(Position(1, ZERO8, 0), ZERO16, genesis_of("a"))], "position"),
        ([genesis_entry(Genesis(ZERO16, ("10.0.0.1/8",), (A,), (A,)))], "range"),
        ([genesis_entry(Genesis(ZERO16, ("10.0.0.0/8",), (A,), ()))], "nobody"),
    ],
)
def test_what_is_no_chain_is_refused(entries: list[LogEntry], words: str) -> None:
    with pytest.raises(LogInvalid, match=words):
        Chain(entries)


def test_an_epoch_cannot_sink() -> None:
    forced = chain(Electors((A,)), epoch=(1, b"12345678"))
    with pytest.raises(LogInvalid, match="lower epoch"):
        chain(Electors((B,)), base=forced)


def test_the_longer_of_two_logs_is_held_and_gaps_change_nothing() -> None:
    longer = chain(Electors((A,)), remove(B, C))
    assert START.merge(1, longer.entries[1:]).chain == longer
    assert longer.merge(0, START.entries).chain == longer
    assert START.merge(2, longer.entries[2:]).chain == START
    assert Chain().merge(0, longer.entries).chain == longer
    assert START.merge(0, ()).chain == START


def test_the_greater_epoch_replaces_the_log_after_the_fork() -> None:
    old = chain(Electors((A,)), Electors((A, B)))
    forced = chain(remove(B, A), epoch=(1, b"12345678"))
    assert old.merge(1, forced.entries[1:]).chain == forced
    assert forced.merge(1, old.entries[1:]).chain == forced


def test_a_fork_within_an_epoch_is_reported_and_everybody_keeps_the_same_side() -> None:
    one, other = chain(Electors((A,))), chain(Electors((B,)))
    merged = [one.merge(0, other.entries), other.merge(0, one.entries)]
    assert merged[0].chain == merged[1].chain
    assert merged[0].chain.hashes[1] == min(one.hash, other.hash)
    assert all("forks at entry 1" in each.problem for each in merged)


def test_another_genesis_is_never_merged() -> None:
    merged = START.merge(0, [genesis_entry(genesis_of("d"))])
    assert merged.chain == START
    assert "another genesis" in merged.problem


def rows_of(outbox: Outbox, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    for effect in outbox.drain():
        if isinstance(effect, Persist):
            for change in effect.changes:
                assert change.table == "log"
                if change.value is None:
                    del rows[change.key]
                else:
                    rows[change.key] = change.value
    return rows


def test_the_durable_log_is_what_was_merged_last() -> None:
    outbox = Outbox()
    log = Log([], outbox)
    rows: dict[bytes, bytes] = {}
    old = chain(Electors((A,)), Electors((A, B)))
    forced = chain(remove(B, A), epoch=(1, b"12345678"))
    for entries in (old.entries[:1], old.entries, forced.entries):
        assert log.merge(0, entries)
        assert not log.merge(0, entries)
        rows = rows_of(outbox, rows)
        assert Log(rows.items(), outbox).entries == log.entries == entries
    log.forget()
    assert rows_of(outbox, rows) == {}
    assert len(log) == 0


def test_a_refused_log_is_noted() -> None:
    outbox = Outbox()
    log = Log([], outbox)
    assert not log.merge(0, [LogEntry(GENESIS_POSITION, ZERO16, Electors((A,)))])
    assert [effect.level for effect in outbox.drain() if isinstance(effect, Note)] == ["error"]


@pytest.mark.parametrize("damage", ["garbage", "missing", "swapped"])
def test_unreadable_rows_are_an_error_in_words(damage: str) -> None:
    outbox = Outbox()
    Log([], outbox).merge(0, chain(Electors((A,)), Electors((B,))).entries)
    rows = rows_of(outbox, {})
    keys = sorted(rows)
    match damage:
        case "garbage":
            rows[keys[1]] = b"\xc1"
        case "missing":
            del rows[keys[1]]
        case _:
            rows[keys[1]], rows[keys[2]] = rows[keys[2]], rows[keys[1]]
    with pytest.raises(WeaveError, match="table log"):
        Log(rows.items(), outbox)


def test_entries_that_do_not_connect_say_from_where_to_ask() -> None:
    mine = chain(Electors((A, B)), Electors((A, B, C)))
    forked = chain(remove(A, B), epoch=(1, b"x" * 8))
    assert mine.gap(0, forked.entries) is None
    assert mine.gap(1, forked.entries[1:]) is None, "it connects, and replaces what comes after"
    assert mine.gap(5, (chain(*[Electors((A,))] * 5).entries[-1],)) == 3, "the log here is too short"
    longer = chain(remove(C, A), base=forked, epoch=(1, b"x" * 8))
    assert mine.gap(2, longer.entries[2:]) == 0, "it forked before"
    assert longer.gap(2, mine.entries[2:]) is None, "of a lower epoch: of no use"


def test_no_stamp_is_stored_beyond_the_log_also_of_a_greater_epoch() -> None:
    mine = chain(Electors((A, B)), Electors((A, B, C)))

    def stamped(*position: object) -> list[Segment]:
        return [Segment(0, 4, Stamp(GENESIS_POSITION, 1, A)), Segment(4, 8, Stamp(Position(*position), 1, A))]  # type: ignore[arg-type]

    assert mine.ring_gap(3, stamped(0, ZERO8, 2)) is None
    assert mine.ring_gap(4, stamped(0, ZERO8, 2)) == 3
    assert mine.ring_gap(3, stamped(0, ZERO8, 3)) == 3
    assert mine.ring_gap(2, stamped(1, b"x" * 8, 1)) == 0, "a shorter log of a greater epoch replaces ours first"
    assert Chain().ring_gap(1, stamped(0, ZERO8, 0)) == 0
