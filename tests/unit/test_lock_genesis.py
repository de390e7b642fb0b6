"""``lock=``: when a record is offered, which records are taken, which URLs mean a lock."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.core.effects import OfferRecord, Outbox, Persist
from weavenet.core.election.locking import LockedGenesis, RecordRefused, decode_record, encode_record
from weavenet.core.errors import Failure
from weavenet.core.events import RecordOffered
from weavenet.core.limits import LOCK_GRACE_S, LOCK_RECORD_BYTES_MAX
from weavenet.core.lockurl import LockKind, LockUrl, parse_lock_url
from weavenet.core.types import Genesis, PeerId

A, B, C = (PeerId(bytes([number]) * 16) for number in (1, 2, 3))
RANGES = ("10.32.0.0/12",)
AUTHORITY = b"authority"
GENESIS = Genesis(b"c" * 16, RANGES, (A, B), (A, B))
OTHER = encode_record(GENESIS, AUTHORITY)


class Bench:
    def __init__(self, *, row: bytes | None = None, expected_ranges: tuple[str, ...] = ()) -> None:
        self.outbox = Outbox()
        self.effects: list[object] = []
        self.locked = LockedGenesis(
            url="file:/shared/lock",
            authority=AUTHORITY,
            expected_ranges=expected_ranges,
            draft_row=row,
            outbox=self.outbox,
            draft=lambda electors: Genesis(b"d" * 16, RANGES, electors, electors),
        )

    def advance(self, now: float, *electors: PeerId, n: int = 3, settled: bool = True) -> list[bytes]:
        """Records offered by this step, b'' for a look."""
        self.locked.advance(now, wanted=True, electors=electors or (A,), n=n, settled=settled)
        effects = self.outbox.drain()
        self.effects = list(effects)
        return [effect.record for effect in effects if isinstance(effect, OfferRecord)]

    def answer(self, now: float, record: bytes = b"", error: str = "") -> None:
        self.locked.handle(now, RecordOffered(record, error))


def test_it_looks_first_and_takes_what_is_there() -> None:
    bench = Bench()
    assert bench.advance(0.0) == [b""]
    assert bench.advance(0.1) == []  # one at a time
    bench.answer(0.2, OTHER)
    assert bench.locked.decided == GENESIS


def test_it_waits_for_the_electors_among_the_targets_and_no_longer_than_the_grace() -> None:
    bench = Bench()
    bench.advance(0.0)
    bench.answer(0.0)
    assert bench.advance(0.1, A, settled=False) == []
    assert bench.advance(1.0, A, B) == []
    assert bench.locked.deadline() == pytest.approx(1.0 + LOCK_GRACE_S)
    (offered,) = bench.advance(1.0 + LOCK_GRACE_S, A, B)
    assert decode_record(offered, AUTHORITY).electors == (A, B)


def test_with_all_electors_there_it_does_not_wait() -> None:
    bench = Bench()
    bench.advance(0.0)
    bench.answer(0.0)
    (offered,) = bench.advance(0.1, A, B, C)
    assert [type(effect) for effect in bench.effects] == [Persist, OfferRecord]
    bench.answer(0.2, OTHER)  # somebody else was first: what the lock shows counts
    assert bench.locked.decided == GENESIS
    assert decode_record(offered, AUTHORITY).cluster != GENESIS.cluster


def test_the_same_draft_is_offered_again_after_a_restart_and_after_errors() -> None:
    row = encode_record(Genesis(b"e" * 16, RANGES, (A,), (A,)), AUTHORITY)
    bench = Bench(row=row)
    assert bench.advance(0.0) == [row]
    bench.answer(0.5, error="no answer")
    assert "no answer" in bench.locked.words()
    assert bench.advance(0.6) == []
    retry_at = bench.locked.deadline()
    assert retry_at is not None
    assert bench.advance(retry_at) == [row]
    bench.answer(retry_at, row)
    assert bench.locked.decided is not None
    bench.locked.settle()
    assert [effect for effect in bench.outbox.drain() if isinstance(effect, Persist)]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"not json", "something else"),
        (b"x" * (LOCK_RECORD_BYTES_MAX + 1), "at most"),
        (OTHER.replace(b'"weave": 1', b'"weave": 2'), "format 1"),
        (encode_record(GENESIS, b"another"), "with our password; found one of another"),
        (encode_record(msgspec.structs.replace(GENESIS, owners=()), AUTHORITY), "sound"),
        (encode_record(msgspec.structs.replace(GENESIS, electors=()), AUTHORITY), "electors"),
        (encode_record(msgspec.structs.replace(GENESIS, ranges=("10.0.0.1/8",)), AUTHORITY), "range"),
        (OTHER.replace(A.hex().encode(), b"zz"), "something else"),
        (OTHER.replace(A.hex().encode(), A.hex().upper().encode() + b"0"), "something else"),
    ],
)
def test_a_record_that_is_not_ours_to_take_is_refused_in_words_and_looked_at_again(record: bytes, words: str) -> None:
    bench = Bench()
    bench.advance(0.0)
    bench.answer(0.0, record)
    assert bench.locked.decided is None
    assert words in bench.locked.failure
    assert "next:" in bench.locked.failure
    retry_at = bench.locked.deadline()
    assert retry_at is not None
    assert bench.advance(retry_at) == [b""]
    bench.answer(retry_at, OTHER)
    assert bench.locked.decided == GENESIS


def test_a_range_the_operator_insists_on_must_be_the_clusters() -> None:
    bench = Bench(expected_ranges=("10.99.0.0/16",))
    bench.advance(0.0)
    bench.answer(0.0, OTHER)
    assert bench.locked.decided is None
    assert "10.99.0.0/16" in bench.locked.failure
    assert "10.32.0.0/12" in bench.locked.failure


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    with pytest.raises(RecordRefused):
        decode_record(data, AUTHORITY)


def test_a_record_that_nests_without_end_is_refused() -> None:
    with pytest.raises(RecordRefused):
        decode_record(b'{"more":' + b"[" * (LOCK_RECORD_BYTES_MAX - 8), AUTHORITY)


ids = st.binary(min_size=16, max_size=16).map(PeerId)


@given(st.binary(min_size=16, max_size=16), st.lists(ids, min_size=1, max_size=9, unique=True))
def test_what_was_encoded_is_read_back(cluster: bytes, peers: list[PeerId]) -> None:
    genesis = Genesis(cluster, RANGES, tuple(peers), tuple(peers))
    assert decode_record(encode_record(genesis, AUTHORITY), AUTHORITY) == genesis


@pytest.mark.parametrize(
    ("text", "kind", "places", "path"),
    [
        ("file:/shared/lock", LockKind.FILE, (), "/shared/lock"),
        ("file:///shared/lock", LockKind.FILE, (), "/shared/lock"),
        ("http://host/a/b?c=d", LockKind.HTTP, (("host", 80),), "/a/b?c=d"),
        ("https://host:8443/lock", LockKind.HTTPS, (("host", 8443),), "/lock"),
        ("etcd://a,b:2380,[::1]:9/weave", LockKind.ETCD, (("a", 2379), ("b", 2380), ("::1", 9)), "weave"),
    ],
)
def test_urls(text: str, kind: LockKind, places: tuple[tuple[str, int], ...], path: str) -> None:
    assert parse_lock_url(text) == LockUrl(kind, places, path, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/shared/lock",
        "file:relative",
        "file:/folder/",
        "ftp://host/x",
        "http://host",
        "http://host/",
        "http:/host/x",
        "http://user:secret@host/x",
        "http://host:0/x",
        "http://host:99999/x",
        "etcd://a,,b/x",
        "etcd://a",
        "http://a,b:x/y",
        "http://h/x#y",
        "http://h/ü",
        "file:/a b",
        "http://h/" + "x" * 2000,
    ],
)
def test_what_is_no_lock_url_is_refused(text: str) -> None:
    failure = parse_lock_url(text)
    assert isinstance(failure, Failure)
    assert failure.next_step
    assert "secret" not in failure.expected
