"""Target syntax, and the sets of targets that survive a restart."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Done
from weavenet.core.effects import Outbox, Persist
from weavenet.core.errors import Failure
from weavenet.core.limits import TARGETS_MAX
from weavenet.core.mesh.target import Target, parse_target
from weavenet.core.mesh.targets import Suppressed, TargetSet


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("host", "host"),
        ("Host.Example.ORG", "host.example.org"),
        ("host:7000", "host:7000"),
        ("a_b.c-d", "a_b.c-d"),
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:6783", "10.0.0.1:6783"),
        ("fd00::1", "fd00::1"),
        ("FD00:0::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("[fd00::1]:7000", "[fd00::1]:7000"),
    ],
)
def test_targets_have_one_canonical_form(text: str, canonical: str) -> None:
    target = parse_target(text)
    assert isinstance(target, Target)
    assert target.text == canonical
    assert parse_target(canonical) == target


@pytest.mark.parametrize(
    "text",
    ["", "a b", "host:", "host:0", "host:65536", "host:1x", "host:²", "300.1.1.1", "1.2.3", "[fd00::1", "[fd00::1]7",
     "[10.0.0.1]:1", "fd00::1::2", "-a", "a-", "a..b", "http://host", "a" * 64, "a." * 131, "host:99999999999", "ü"],
)  # fmt: skip
def test_malformed_targets_are_refused_in_words(text: str) -> None:
    failure = parse_target(text)
    assert isinstance(failure, Failure)
    assert "expected" in failure.sentence() and "next:" in failure.sentence()


class Store:
    def __init__(self) -> None:
        self.disk: dict[tuple[str, bytes], bytes] = {}

    def start(self, conf: tuple[str, ...] = (), launch: tuple[str, ...] | None = None) -> TargetSet:
        self.outbox = Outbox()
        targets = TargetSet(self.disk, self.outbox, 6783)
        targets.start(conf, launch)
        self.sync()
        return targets

    def sync(self) -> None:
        for effect in self.outbox.drain():
            if isinstance(effect, Persist):
                for change in effect.changes:
                    if change.value is None:
                        self.disk.pop((change.table, change.key), None)
                    else:
                        self.disk[change.table, change.key] = change.value


def test_a_list_at_launch_replaces_the_persisted_one_and_none_resumes_it() -> None:
    store = Store()
    store.start(launch=("one", "two"))
    assert store.start().active() == {"one": "cli", "two": "cli"}
    store.start(launch=("three",))
    assert store.start(conf=("file",)).active() == {"file": "conf", "three": "cli"}
    store.start(launch=())
    assert store.start().active() == {}


def test_connect_adds_or_replaces_all_or_nothing() -> None:
    store = Store()
    targets = store.start(launch=("one",))
    assert targets.connect(("two",), replace=False) is None
    assert isinstance(targets.connect(("three", "b ad"), replace=True), Failure)
    assert set(targets.active()) == {"one", "two"}
    assert targets.connect(("four",), replace=True) is None
    store.sync()
    assert set(store.start().active()) == {"four"}


def test_a_forgotten_target_of_the_file_stays_forgotten_and_names_the_file() -> None:
    store = Store()
    targets = store.start(conf=("file:7000", "other"))
    result = targets.forget(("FILE:7000",), {"file:7000": Suppressed((("10.0.0.1", 7000),), ())})
    assert isinstance(result, Done)
    assert "configuration file" in result.text and "weave connect file:7000" in result.text
    store.sync()
    targets = store.start(conf=("file:7000", "other"))
    assert set(targets.active()) == {"other"}
    assert targets.suppressed["file:7000"].addresses == (("10.0.0.1", 7000),)
    assert targets.connect(("file:7000",), replace=False) is None
    store.sync()
    assert set(store.start(conf=("file:7000",)).active()) == {"file:7000"}


def test_forgetting_finds_a_target_with_and_without_the_usual_port() -> None:
    targets = Store().start(launch=("one", "two:6783", "three:7000"))
    targets.forget(("one:6783", "two"), {})
    assert targets.active() == {"three:7000": "cli"}
    targets.forget(("three",), {})
    assert targets.active() == {"three:7000": "cli"}


def test_forgetting_twice_is_harmless_and_malformed_is_refused() -> None:
    targets = Store().start(launch=("one",))
    assert targets.forget(("one",), {}) == Done("")
    assert targets.forget(("one",), {}) == Done("")
    assert isinstance(targets.forget(("[",), {}), Failure)
    assert targets.active() == {}


def test_targets_are_bounded() -> None:
    targets = Store().start()
    failure = targets.connect(tuple(f"host{number}" for number in range(TARGETS_MAX + 1)), replace=False)
    assert isinstance(failure, Failure)
    assert targets.active() == {}


def test_a_malformed_line_of_the_file_is_reported_and_ignored() -> None:
    outbox = Outbox()
    targets = TargetSet({}, outbox, 6783)
    targets.start(("good", "b ad"), None)
    assert set(targets.active()) == {"good"}
    assert any("b ad" in getattr(effect, "text", "") for effect in outbox.effects)
