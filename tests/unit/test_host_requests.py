"""Address arguments and container references: text to meaning."""

from __future__ import annotations

import pytest

from weavenet.core.commands import Allocate, Attachment, Claim
from weavenet.core.errors import Code, WeaveError
from weavenet.host import netns, requests


@pytest.mark.parametrize(
    ("text", "canonical", "command"),
    [
        ("net:default", "net:default", Allocate("web", "")),
        ("net:10.32.2.0/24", "net:10.32.2.0/24", Allocate("web", "10.32.2.0/24")),
        ("10.32.2.7/24", "ip:10.32.2.7/24", Claim("web", "10.32.2.7/24")),
        ("ip:10.32.2.7/24", "ip:10.32.2.7/24", Claim("web", "10.32.2.7/24")),
        ("fd00:0::7/64", "ip:fd00::7/64", Claim("web", "fd00::7/64")),
        ("ip:fd00::7/64", "ip:fd00::7/64", Claim("web", "fd00::7/64")),
        ("net:fd00::/64", "net:fd00::/64", Allocate("web", "fd00::/64")),
    ],
)
def test_address_arguments(text: str, canonical: str, command: Allocate | Claim) -> None:
    wanted = requests.parse(text)
    assert wanted.text == canonical
    assert wanted.command("web") == command
    assert requests.parse(wanted.text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "10.32.2.7", "ip:10.32.2.7", "net:10.32.2.7/24", "net:", "net:foo", "10.32.2.7/33", "ip:net:default", "web",
     "224.0.0.1/4", "0.0.0.0/0", "127.0.0.1/8", "169.254.53.53/32", "::ffff:10.32.0.9/112", "fe80::1%eth0/64",
     "net:0.0.0.0/0", "net:::/0", "10.1.0.1/0"],
)  # fmt: skip
def test_bad_address_arguments_are_refused(text: str) -> None:
    with pytest.raises(WeaveError) as refusal:
        requests.parse(text)
    assert refusal.value.failure.code is Code.INVALID


def test_nothing_asked_for_is_the_default_subnet_and_duplicates_count_once() -> None:
    assert [wanted.text for wanted in requests.parse_all(())] == ["net:default"]
    assert len(requests.parse_all(("10.1.0.1/16", "ip:10.1.0.1/16"))) == 1
    with pytest.raises(WeaveError):
        requests.parse_all([f"10.1.{i // 256}.{i % 256}/16" for i in range(1, 400)])


def attachment(**pairs: str) -> Attachment:
    del pairs
    return Attachment(
        "web", "netns:web", b"\2" * 6, ("net:default", "net:10.40.0.0/24", "ip:fd00::7/64"),
        ("10.32.0.1/12", "10.40.0.9/24", "fd00::7/64"), True, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), ("10.32.0.1/12", "10.40.0.9/24", "fd00::7/64")),
        (("net:default",), ("10.32.0.1/12",)),
        (("net:10.40.0.0/16",), ("10.40.0.9/24",)),
        (("ip:10.40.0.9/24",), ("10.40.0.9/24",)),
        (("fd00::7/64", "10.32.0.1/12"), ("fd00::7/64", "10.32.0.1/12")),
        (("10.99.0.1/16",), ()),
    ],
)
def test_choosing_addresses_to_detach(texts: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert requests.chosen(attachment(), texts) == expected


def test_an_address_with_another_prefix_is_not_the_one_it_has() -> None:
    with pytest.raises(WeaveError) as refusal:
        requests.chosen(attachment(), ("10.32.0.1/12", "10.40.0.9/16"))
    assert refusal.value.failure.code is Code.NOT_FOUND
    assert "10.40.0.9/16; it has 10.40.0.9/24" in refusal.value.failure.sentence()


def test_requests_and_addresses_stay_parallel() -> None:
    old = attachment()
    wanted = requests.parse_all(("net:default", "net:10.50.0.0/24"))
    requested, held = requests.merge(old, wanted, (("10.32.0.1/12",), ("10.50.0.1/24",)))
    assert list(zip(requested, held, strict=True))[-1] == ("net:10.50.0.0/24", "10.50.0.1/24")
    assert len(held) == 4
    assert requests.without(old, ("10.40.0.9/24",)) == (
        ("net:default", "ip:fd00::7/64"),
        ("10.32.0.1/12", "fd00::7/64"),
    )


def test_the_default_subnet_may_be_one_of_each_range() -> None:
    wanted = requests.parse_all(())
    requested, held = requests.merge(None, wanted, (("10.32.0.1/12", "fd00:77::1/64"),))
    assert (requested, held) == (["net:default", "net:default"], ["10.32.0.1/12", "fd00:77::1/64"])
    both = Attachment("web", "netns:web", b"\2" * 6, tuple(requested), tuple(held), True, False)
    assert requests.chosen(both, ("net:default",)) == tuple(held)
    assert requests.chosen(both, ("net:fd00:77::/64",)) == ("fd00:77::1/64",)
    assert requests.parse_all(both.requested) == wanted, "asked for once when it comes back"


def test_remembered_request_without_addresses_starts_afresh() -> None:
    gone = Attachment("web", "netns:web", b"\2" * 6, ("net:default",), (), True, False)
    assert requests.merge(gone, requests.parse_all(gone.requested), (("10.32.0.5/12",),)) == (
        ["net:default"],
        ["10.32.0.5/12"],
    )


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("netns:web", ("name", "web")),
        ("netns:/run/netns/web", ("path", "/run/netns/web")),
        ("pid:12", ("pid", "12")),
        ("pid:012", ("pid", "12")),
    ],
)
def test_container_references(reference: str, expected: tuple[str, str]) -> None:
    assert netns.parse_reference(reference) == expected


@pytest.mark.parametrize(
    "reference", ["", "web", "netns:", "netns:a/b", "netns:..", "netns:.", "pid:", "pid:-1", "pid:0", "pid:x",
                  "pid:99999999999", "pid:１２", "netns:" + "x" * 200, "docker:web"],
)  # fmt: skip
def test_bad_container_references_are_refused(reference: str) -> None:
    with pytest.raises(WeaveError) as refusal:
        netns.parse_reference(reference)
    assert refusal.value.failure.code is Code.INVALID
