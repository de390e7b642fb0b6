"""Which numbers of ours a disk allows for, and what others may therefore know of us."""

from __future__ import annotations

import random

from weavenet.core.effects import Change
from weavenet.core.incarnation import (
    incarnation_row,
    last_incarnation,
    last_published,
    next_incarnation,
    published_row,
    start_number,
)
from weavenet.core.limits import RECORDS_RESERVED
from weavenet.core.mesh.records import Records
from weavenet.core.types import PeerId

Disk = dict[tuple[str, bytes], bytes]
ME = PeerId(b"m" * 16)


class Start:
    """One start of a peer from ``disk``, which it writes to."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.last, self.bound = last_incarnation(disk), last_published(disk)
        self.incarnation = next_incarnation(disk, random.Random(len(disk)))
        self.write(incarnation_row(self.incarnation))
        self.records = Records(
            ME,
            self.incarnation,
            lambda peer: False,
            last=self.last,
            last_top=self.bound,
            reserve=lambda bound: self.write(published_row(self.incarnation, bound)),
        )

    def write(self, change: Change) -> None:
        assert change.value is not None
        self.disk[change.table, change.key] = change.value

    def publish(self, count: int) -> int:
        for number in range(count):
            self.records.put(1, b"", b"%d %d" % (self.incarnation, number))
        return self.records.mark(ME).top

    def is_outlived(self, incarnation: int, top: int) -> bool:
        self.records.told_of_us(incarnation, top)
        return any(self.records.outlived)


def test_a_restart_never_told_more_than_its_disk_allows_for() -> None:
    disk: Disk = {}
    first = Start(disk)
    top = first.publish(3 * RECORDS_RESERVED)
    again = Start(disk)
    assert start_number(again.incarnation) == 2
    assert not again.is_outlived(first.incarnation, top)


def test_a_disk_set_back_behind_a_promise_is_told_so_by_whoever_heard_of_the_promise() -> None:
    disk: Disk = {}
    first = Start(disk)
    before = first.publish(5)
    early = dict(disk)
    assert first.records.promised(1, b"") is not None
    promised = first.records.mark(ME).top
    assert promised > before + RECORDS_RESERVED / 2
    assert not Start(dict(disk)).is_outlived(first.incarnation, promised)
    assert not Start(dict(early)).is_outlived(first.incarnation, before)
    assert Start(dict(early)).is_outlived(first.incarnation, promised)


def test_a_disk_set_back_behind_the_beginning_of_a_start_is_told_so_by_anybody() -> None:
    disk: Disk = {}
    first = Start(disk)
    top = first.publish(1)
    blank = {key: value for key, value in disk.items() if key[1] == b"incarnation"}
    older = Start(disk)
    row_of_before = {**disk, ("meta", b"published"): published_row(first.incarnation, top).value or b""}
    told = older.publish(2)
    assert Start(row_of_before).is_outlived(older.incarnation, told), "it published before any bound of its own"
    assert not Start(blank).is_outlived(first.incarnation, top), "a disk of a release that kept no bound"


def test_a_promise_without_a_record_is_told_with_the_next() -> None:
    disk: Disk = {}
    start = Start(disk)
    start.publish(1)
    start.records.drop(1, b"")
    early = dict(disk)
    assert start.records.promised(1, b"") is None
    top = start.publish(1)
    assert not Start(dict(disk)).is_outlived(start.incarnation, top)
    assert Start(early).is_outlived(start.incarnation, top)
