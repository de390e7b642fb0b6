"""Names: what is registered, published, answered and remembered, with the mesh and the attachments as plain fakes."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable

import msgspec
import pytest

from weavenet.core.commands import AddName, Addresses, Attachment, Destroyed, Done, PutAttachment, RemoveName
from weavenet.core.config import NodeConfig
from weavenet.core.effects import NameRecord, Outbox, Persist, SetNames
from weavenet.core.errors import Failure
from weavenet.core.events import Requested
from weavenet.core.limits import NAME_ABSENCE_S, NAME_ADDRESSES_MAX
from weavenet.core.messages.gossip import KIND_NAME, EntryRecord
from weavenet.core.names import EXPOSE, EXTERNAL, Names, absolute_name
from weavenet.core.node import Node
from weavenet.core.overlay.endpoints import Endpoints
from weavenet.core.types import PeerId

ME, OTHER = PeerId(bytes([1] * 16)), PeerId(bytes([2] * 16))
DOMAIN = "weave.local."


class FakeMesh:
    """Holds records by origin; everybody in ``up`` is reachable."""

    def __init__(self) -> None:
        self.held: dict[PeerId, dict[tuple[int, bytes], bytes]] = {ME: {}, OTHER: {}}
        self.up = frozenset({ME, OTHER})

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None:
        self.held[ME][kind, key] = body

    def withdraw(self, now: float, kind: int, key: bytes) -> None:
        self.held[ME].pop((kind, key), None)

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]:
        return [body for (each, _), body in self.held.get(origin, {}).items() if each == kind]

    def reachable(self) -> frozenset[PeerId]:
        return self.up


class Host:
    """One peer's attachments and names; :meth:`settle` is the end of an event."""

    def __init__(self, disk: dict[tuple[str, bytes], bytes] | None = None, domain: str = DOMAIN) -> None:
        self.disk = {} if disk is None else disk
        self.outbox = Outbox()
        self.mesh = FakeMesh()
        self.endpoints = Endpoints(self._rows("attachments"), self.outbox, self.mesh)
        self.names = Names(ME, domain, self._rows("names"), self.outbox, self.endpoints, self.mesh)
        self.answers: dict[str, tuple[str, ...]] = {}
        self.told: list[SetNames] = []
        self.settle()

    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        return [(key, value) for (name, key), value in sorted(self.disk.items()) if name == table]

    def settle(self, now: float = 0.0) -> None:
        self.names.advance(now)
        for effect in self.outbox.drain():
            match effect:
                case Persist():
                    for change in effect.changes:
                        if change.value is None:
                            self.disk.pop((change.table, change.key), None)
                        else:
                            self.disk[change.table, change.key] = change.value
                case SetNames():
                    self.told.append(effect)
                    if effect.whole:
                        self.answers.clear()
                    for record in effect.names:
                        self.answers[record.name] = tuple(str(ipaddress.ip_address(each)) for each in record.addresses)
                        if not record.addresses:
                            del self.answers[record.name]

    def attach(self, ident: str, *addresses: str, name: str = "", live: bool = True) -> None:
        if name:
            assert self.names.register(ident, name) is None
        self.endpoints.put(0.0, Attachment(ident, ident, b"\2mac00", (), addresses, True, live))
        self.settle()

    def add(self, name: str, ident: str, *addresses: str) -> object:
        result = self.names.command(AddName(name, ident, addresses))
        self.settle()
        return result

    def remove(self, name: str, ident: str, *addresses: str) -> object:
        result = self.names.command(RemoveName(name, ident, addresses))
        self.settle()
        return result

    def hear(self, *entries: tuple[str, str]) -> None:
        """What OTHER publishes from now on."""
        bodies = (EntryRecord(name, ipaddress.ip_address(text).packed, "c") for name, text in entries)
        self.mesh.held[OTHER] = {
            (KIND_NAME, bytes([number])): msgspec.msgpack.encode(body) for number, body in enumerate(bodies)
        }
        self.names.met({OTHER})
        self.settle()


def test_a_container_is_named_for_as_long_as_it_is_there() -> None:
    host = Host()
    host.attach("netns:web", "10.32.0.1/12", name="web")
    assert host.answers == {"web.weave.local.": ("10.32.0.1",)}
    host.attach("netns:web", "10.32.0.1/12", "10.40.0.1/24")
    assert host.answers == {"web.weave.local.": ("10.32.0.1", "10.40.0.1")}
    host.attach("netns:web", "10.40.0.1/24")
    assert host.answers == {"web.weave.local.": ("10.40.0.1",)}
    host.attach("netns:web", live=False)
    assert host.answers == {}
    assert host.mesh.records_of(ME, KIND_NAME) == []
    host.attach("netns:web", "10.32.0.9/12")
    assert host.answers == {"web.weave.local.": ("10.32.0.9",)}
    host.endpoints.remove(0.0, "netns:web")
    host.settle()
    assert host.answers == {}
    assert not [key for key in host.disk if key[0] == "names"]


def test_a_destroyed_container_that_may_come_back_keeps_its_registrations() -> None:
    """As one command of the node: nothing of it may be lost between forgetting and remembering."""
    config = NodeConfig(peer=ME, name="00:00:00:00:00:01", nickname="h1")
    node = Node(config, {}, random.Random(1))
    node.start(0.0)
    attachment = Attachment("web", "netns:web", b"\2mac00", (), ("10.32.0.1/12",), True, True)
    node.handle(1.0, Requested(1, PutAttachment(attachment, "web")))
    assert node.names.lookup("web") == Addresses(("10.32.0.1",))
    gone = msgspec.structs.replace(attachment, addresses=(), live=False)
    node.handle(2.0, Requested(2, Destroyed("web", gone)))
    assert node.names.lookup("web") == Addresses(())
    back = msgspec.structs.replace(attachment, addresses=("10.32.0.9/12",))
    node.handle(3.0, Requested(3, PutAttachment(back)))
    assert node.names.lookup("web") == Addresses(("10.32.0.9",))
    node.handle(4.0, Requested(4, Destroyed("web")))
    node.handle(5.0, Requested(5, PutAttachment(attachment)))
    assert node.names.lookup("web") == Addresses(())
    node.check()


def test_a_dead_process_is_not_named_until_it_revives() -> None:
    host = Host()
    host.attach("pid:7", "10.32.0.1/12", name="job")
    host.endpoints.died(0.0, "pid:7")
    host.settle()
    assert host.answers == {}
    host.endpoints.revived("pid:7")
    host.settle()
    assert host.answers == {"job.weave.local.": ("10.32.0.1",)}


def test_a_blocked_address_is_not_named() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", "10.32.0.2/12", name="a")
    host.add("b", "a", "10.32.0.1")
    host.endpoints.set_blocked(0.0, [("a", "10.32.0.1")])
    host.settle()
    assert host.answers == {"a.weave.local.": ("10.32.0.2",)}
    host.endpoints.set_blocked(0.0, [])
    host.settle()
    assert host.answers["b.weave.local."] == ("10.32.0.1",)


def test_names_by_hand_follow_the_addresses_they_were_given_for() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", "10.32.0.2/12")
    assert host.add("one", "a", "10.32.0.1", "192.168.7.7") == Done()
    assert host.add("all", "a") == Done()
    assert host.answers == {
        "one.weave.local.": ("10.32.0.1", "192.168.7.7"),
        "all.weave.local.": ("10.32.0.1", "10.32.0.2"),
    }
    host.attach("a", "10.32.0.2/12")
    assert host.answers == {"one.weave.local.": ("192.168.7.7",), "all.weave.local.": ("10.32.0.2",)}
    host.attach("a", "10.32.0.2/12", "10.32.0.1/12")
    assert host.answers["one.weave.local."] == ("192.168.7.7",)  # it could be somebody else's by now


def test_removing_by_hand() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", "10.32.0.2/12", name="a")
    host.add("b", "a")
    assert host.remove("", "a", "10.32.0.1") == Done()
    assert host.answers == {"a.weave.local.": ("10.32.0.2",), "b.weave.local.": ("10.32.0.2",)}
    assert host.remove("A", "a") == Done()
    assert host.answers == {"b.weave.local.": ("10.32.0.2",)}
    assert isinstance(host.remove("a", "a"), Failure)
    assert host.remove("", "a") == Done()
    assert host.answers == {}
    assert host.names.lookup("b") == Addresses(())


def test_everything_is_remembered() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", name="a")
    host.add("db.weave.local", EXTERNAL, "10.9.9.9", "fd00::1")
    host.add("alias", "a", "10.32.0.1")
    again = Host(host.disk)
    assert (
        again.answers
        == host.answers
        == {
            "a.weave.local.": ("10.32.0.1",),
            "alias.weave.local.": ("10.32.0.1",),
            "db.weave.local.": ("10.9.9.9", "fd00::1"),
        }
    )
    assert again.told[0].whole


def test_names_are_below_the_domain_of_this_start() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", name="A.weave.local")
    long = ".".join(["x" * 60] * 3)
    host.add(f"{long}.weave.local", EXTERNAL, "10.9.9.8")
    host.add("db", EXTERNAL, "10.9.9.9")
    again = Host(host.disk, "lab.example.")
    expected = {"A": ("10.32.0.1",), "db": ("10.9.9.9",), long: ("10.9.9.8",)}
    assert again.answers == {f"{name}.lab.example.": addresses for name, addresses in expected.items()}
    assert again.remove("db", EXTERNAL) == Done()
    del expected["db"]
    far = "far." * 25
    assert Host(again.disk, far).answers == {f"A.{far}": ("10.32.0.1",)}, "one is too long there"
    assert Host(again.disk).answers == {f"{name}.weave.local.": addresses for name, addresses in expected.items()}


def test_who_has_another_domain_is_known_while_reachable() -> None:
    host = Host()
    host.hear(("web.example.com.", "10.0.0.2"), ("db.example.com.", "10.0.0.3"), ("web.weave.local.", "10.0.0.4"))
    assert host.names.elsewhere == {OTHER: "db.example.com."}
    assert host.answers == {"web.weave.local.": ("10.0.0.4",)}
    host.mesh.up = frozenset({ME})
    host.settle(10.0)
    host.settle(10.0 + NAME_ABSENCE_S)
    assert host.names.elsewhere == {}
    host.mesh.up = frozenset({ME, OTHER})
    host.settle(20.0)
    assert host.names.elsewhere == {OTHER: "db.example.com."}
    host.hear(("web.weave.local.", "10.0.0.4"))
    assert host.names.elsewhere == {}


def test_an_owner_that_is_gone_after_a_crash_leaves_no_name() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", name="a")
    del host.disk["attachments", b"a"]
    again = Host(host.disk)
    assert again.answers == {}
    assert not again.disk


def test_a_daemon_that_is_back_at_once_was_never_missed() -> None:
    host = Host()
    host.hear(("other.weave.local.", "10.0.0.3"))
    before = len(host.told)
    for now, up in ((1.0, {ME}), (2.0, {ME, OTHER}), (9.0, {ME, OTHER})):
        host.mesh.up = frozenset(up)
        host.settle(now)
    assert len(host.told) == before
    host.mesh.up = frozenset({ME})
    host.settle(10.0)
    host.hear()  # it was removed, or tells others so
    assert host.answers == {}


def test_a_crash_between_two_rows_names_no_address_that_was_given_up() -> None:
    host = Host()
    host.attach("a", "10.32.0.1/12", "10.32.0.2/12")
    host.add("one", "a", "10.32.0.1", "192.168.7.7")
    before = dict(host.disk)
    host.attach("a", "10.32.0.2/12")
    torn = {**before, ("attachments", b"a"): host.disk["attachments", b"a"]}
    assert Host(torn).answers == {"one.weave.local.": ("192.168.7.7",)}


def test_what_others_publish_counts_while_they_are_reachable() -> None:
    host = Host()
    host.add("web", EXTERNAL, "10.0.0.1")
    host.hear(("Web.weave.local.", "10.0.0.2"), ("other.weave.local.", "10.0.0.3"))
    assert host.answers["Web.weave.local."] == ("10.0.0.1", "10.0.0.2")
    assert host.names.lookup("WEB") == Addresses(("10.0.0.1", "10.0.0.2"))
    host.mesh.up = frozenset({ME})
    host.settle(10.0)
    assert host.names.deadline() == 10.0 + NAME_ABSENCE_S
    assert host.names.lookup("other") == Addresses(("10.0.0.3",))
    host.settle(10.0 + NAME_ABSENCE_S)
    assert host.names.deadline() is None
    assert host.names.lookup("WEB") == Addresses(("10.0.0.1",))
    assert host.told[-1].names == (
        NameRecord("other.weave.local.", ()),
        NameRecord("web.weave.local.", (ipaddress.ip_address("10.0.0.1").packed,)),
    )
    host.mesh.up = frozenset({ME, OTHER})
    host.settle()
    assert host.names.lookup("other") == Addresses(("10.0.0.3",))
    host.mesh.held.pop(OTHER)
    host.names.met({OTHER})
    host.settle()
    assert host.names.lookup("other") == Addresses(())


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("web.weave.local", b"1234"),
        ("web.weave.local.", b"12345"),
        ("web.example.com.", b"1234"),
        ("we b.weave.local.", b"1234"),
        ("w\u00e9b.weave.local.", b"1234"),
        (".weave.local.", b"1234"),
        ("x" * 64 + ".weave.local.", b"1234"),
    ],
)
def test_entries_that_make_no_sense_are_not_used(name: str, address: bytes) -> None:
    host = Host()
    host.mesh.held[OTHER] = {
        (KIND_NAME, b"bad"): msgspec.msgpack.encode(EntryRecord(name, address, "c")),
        (KIND_NAME, b"worse"): b"\xc1",
    }
    host.names.met({OTHER})
    host.settle()
    assert host.answers == {}


def test_a_name_of_too_many_addresses_is_cut() -> None:
    host = Host()
    entries = (EntryRecord("big.weave.local.", n.to_bytes(4, "big"), "c") for n in range(NAME_ADDRESSES_MAX + 5))
    host.mesh.held[OTHER] = {(KIND_NAME, each.address): msgspec.msgpack.encode(each) for each in entries}
    host.names.met({OTHER})
    host.settle()
    assert len(host.answers["big.weave.local."]) == NAME_ADDRESSES_MAX


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda host: host.add("web", "nobody", "10.0.0.1"), "attached"),
        (lambda host: host.add("web", EXTERNAL), "addresses"),
        (lambda host: host.add("web", EXTERNAL, "10.0.0.300"), "10.0.0.300"),
        (lambda host: host.add("web", EXTERNAL, "fe80::1%eth0"), "one link"),
        (lambda host: host.add("web", EXTERNAL, "fe80::1"), "one link"),
        (lambda host: host.add("web", EXTERNAL, "0.0.0.0"), "nobody"),
        (lambda host: host.add("web", EXTERNAL, "224.0.0.1"), "nobody"),
        (lambda host: host.add("web", EXPOSE), "weave expose"),
        (lambda host: host.add("web.example.com", EXTERNAL, "10.0.0.1"), "--dns-domain"),
        (lambda host: host.add("", EXTERNAL, "10.0.0.1"), "expected a name"),
        (lambda host: host.add("weave.local", EXTERNAL, "10.0.0.1"), "below the domain"),
        (lambda host: host.remove("web", EXTERNAL), "registered"),
    ],
)
def test_refusals_say_what_was_expected(act: Callable[[Host], object], word: str) -> None:
    result = act(Host())
    assert isinstance(result, Failure)
    assert word in result.sentence()


def test_names_are_completed() -> None:
    assert absolute_name("web", DOMAIN) == "web.weave.local."
    assert absolute_name("Web.Weave.Local", DOMAIN) == "Web.Weave.Local."
    assert absolute_name("a.b.weave.local.", DOMAIN) == "a.b.weave.local."


def test_names_are_found_as_status_prints_them() -> None:
    host = Host()
    host.add("a.b.weave.local", EXTERNAL, "10.0.0.1")
    for text in ("a.b", "A.b", "a.b.weave.local", "a.b.weave.local."):
        assert host.names.lookup(text) == Addresses(("10.0.0.1",))
    assert host.names.lookup("10.0.0.1") == Addresses(())
    assert isinstance(host.names.lookup("a.b."), Failure)
    assert isinstance(host.names.lookup(""), Failure)
    assert isinstance(host.remove("a.b", EXTERNAL), Done)


@pytest.mark.parametrize(
    ("text", "step"),
    [("a.b", "name it a.b.weave.local. or"), ("weave.local", "put a label before it, as in web.weave.local.")],
)
def test_the_name_that_is_suggested_can_be_one(text: str, step: str) -> None:
    refused = absolute_name(text, DOMAIN)
    assert isinstance(refused, Failure) and refused.next_step.startswith(step)
