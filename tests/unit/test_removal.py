"""Fencing a disk, and naming peers."""

from __future__ import annotations

import msgspec

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import NAMES_KEPT
from weavenet.core.removal import fenced_disk, rejoin_of
from weavenet.core.removal.directory import Directory
from weavenet.core.removal.naming import Named, resolve
from weavenet.core.ring.log import genesis_entry
from weavenet.core.types import Genesis, PeerId

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)


def fenced(disk: dict[tuple[str, bytes], bytes]) -> dict[tuple[str, bytes], bytes]:
    after = dict(disk)
    for change in fenced_disk(disk):
        assert isinstance(change, Change)
        if change.value is None:
            after.pop((change.table, change.key), None)
        else:
            after[change.table, change.key] = change.value
    return after


def a_disk() -> dict[tuple[str, bytes], bytes]:
    entry = genesis_entry(Genesis(b"c" * 16, ("10.40.0.0/24",), (A,), (A,)))
    return {
        ("log", bytes(4)): msgspec.msgpack.encode(entry),
        ("ring", b"r"): b"",
        ("acceptor", b"p"): b"",
        ("planes", B): b"",
        ("known", B): b"1",
        ("grants", B): b"",
        ("targets", b"10.0.0.2"): b"cli",
        ("attachments", b"web"): b"",
        ("alloc", b"web\x0010.40.0.7"): b"",
        ("alloc", b"web\x00172.16.0.1"): b"",
        ("meta", b"incarnation"): b"\x05",
        ("meta", b"used"): b"1",
        ("meta", b"bound"): b"1",
        ("meta", b"binder"): b"1",
    }


def test_a_fenced_disk_keeps_what_people_asked_for_and_blocks_its_addresses() -> None:
    after = fenced(a_disk())
    assert {table for table, _ in after} == {"targets", "attachments", "alloc", "meta", "blocked", "rejoin"}
    assert ("blocked", (7).to_bytes(8, "big")) in after
    assert ("meta", b"bound") in after
    assert ("meta", b"binder") not in after
    assert ("meta", b"incarnation") in after
    rejoin = rejoin_of(after)
    assert rejoin is not None
    assert (rejoin.cluster, rejoin.ranges) == (b"c" * 16, ("10.40.0.0/24",))


def test_fencing_twice_changes_nothing_more() -> None:
    once = fenced(a_disk())
    assert fenced(once) == once


def nobody(peer: PeerId) -> bool:
    return False


def test_names() -> None:
    directory = [Named(A, "00:00:00:00:00:01", "web"), Named(B, "00:00:00:00:00:02", "web")]
    assert resolve("00:00:00:00:00:01", directory, nobody) == A
    assert resolve(B.hex().upper(), directory, nobody) == B
    ambiguous = resolve("web", directory, nobody)
    assert isinstance(ambiguous, Failure)
    assert A.hex() in ambiguous.found
    assert B.hex() in ambiguous.found
    unknown = resolve("mail", directory, nobody)
    assert isinstance(unknown, Failure)
    assert unknown.code is Code.NOT_FOUND


def test_a_host_that_was_removed_and_came_back_is_called_as_before() -> None:
    directory = [Named(A, "00:00:00:00:00:01", "web"), Named(B, "00:00:00:00:00:01", "web")]
    for text in ("web", "00:00:00:00:00:01"):
        assert resolve(text, directory, {A}.__contains__) == B
    assert resolve(A.hex(), directory, {A}.__contains__) == A
    both_gone = resolve("web", directory, {A, B}.__contains__)
    assert isinstance(both_gone, Failure)
    assert A.hex() in both_gone.found


def test_names_of_hosts_that_come_and_go_are_not_kept_for_ever() -> None:
    directory = Directory(Named(A, "a", "host-a"), {})
    directory.learn({B: Named(B, "b", "host-b")})
    visitors = [PeerId(number.to_bytes(16, "big")) for number in range(3 * NAMES_KEPT)]
    for peer in visitors:
        directory.learn({peer: Named(peer, "visitor", "")})
        if directory.is_crowded:
            directory.keep({B, peer})
    assert directory.named(A).nickname == "host-a"
    assert directory.named(B).nickname == "host-b"
    assert directory.named(visitors[-1]).name == "visitor"
    assert sum(bool(directory.named(peer).name) for peer in visitors) <= NAMES_KEPT + 1
