"""``weave explain``: what a node says about two ends, while all is well and while something is in the way."""

from __future__ import annotations

from msgspec.structs import replace

from weavenet.core.commands import Attachment, Explain, PutAttachment, RemoveAttachment, Reset
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import VXLAN_PORT
from weavenet.core.names import EXPOSE
from weavenet.core.report import Explanation
from weavenet.sim.host import Host
from weavenet.sim.stage import Stage


def attach(stage: Stage, host: Host, ident: str, *addresses: str, name: str = "") -> None:
    mac = bytes((2, 0, 0, 0, len(ident), host.index))
    container = EXPOSE if ident == EXPOSE else f"netns:{ident}"
    attachment = Attachment(ident, container, mac, (), addresses, False, True)
    stage.answer(stage.ask(host, PutAttachment(attachment, name)))


def formed(seed: int) -> Stage:
    """Each host has a container that is called like its host, ``web0`` and so on; the last one is exposed too."""
    stage = Stage(seed, 3, sleeve=True)
    stage.form()
    for host in stage.hosts:
        address = stage.allocate(host, f"web{host.index}")
        attach(stage, host, f"web{host.index}", f"{address}/24", name=f"web{host.index}.weave.local.")
    last = stage.hosts[-1]
    attach(stage, last, EXPOSE, f"{stage.allocate(last, EXPOSE)}/24")
    stage.advance(5.0)
    return stage


def explained(stage: Stage, host: Host, source: str, target: str) -> Explanation:
    found = stage.answer(stage.ask(host, Explain(source, target)))
    assert isinstance(found, Explanation), found
    return found


def test_two_that_reach_each_other() -> None:
    stage = formed(1)
    one, other, last = stage.hosts
    found = explained(stage, one, "netns:web0", "web1")
    assert (found.source.container, found.source.is_here, found.source.names) == (
        "netns:web0", True, ("web0.weave.local.",),
    )  # fmt: skip
    assert (found.target.container, found.target.is_here, found.target.peer) == ("netns:web1", False, other.peer.hex())
    assert found.verdict == "yes" and found.way is not None
    assert (found.way.plane, found.way.encryption) == ("fastdp", "not encrypted")
    assert found.way.rtt_ms is not None and found.way.loss_percent == 0.0
    (address,) = found.target.addresses
    for text in (address.partition("/")[0], "web1.weave.local", "netns:web1"):
        assert explained(stage, one, "web0", text).target == replace(found.target, asked=text)
    backwards = explained(stage, one, "web1", "web0")
    assert (backwards.verdict, backwards.way) == ("yes", found.way)
    assert explained(stage, one, "web0", last.label).target.container == EXPOSE
    assert explained(stage, one, "web0", "web0").because == "it is the same"


def test_hosts_without_addresses_are_asked_about_their_path_only() -> None:
    stage = formed(2)
    one, other, _ = stage.hosts
    found = explained(stage, one, one.label, other.label)
    assert found.verdict == "yes" and found.way is not None
    found = explained(stage, one, "web0", other.label)
    assert (found.verdict, found.next_step) == ("no", f"weave expose on {other.label}")


def test_what_is_in_the_way_is_named() -> None:
    stage = formed(3)
    one, other, last = stage.hosts
    attach(stage, one, "apart", "192.0.2.1/24")
    found = explained(stage, one, "netns:apart", "web1")
    assert (found.verdict, found.because) == ("no", "they have no subnet in common")
    assert found.next_step == f"weave attach net:192.0.2.0/24 netns:web1, on {other.label}"
    found = explained(stage, one, "web1", "netns:apart")
    assert found.next_step.startswith("weave attach net:10.32.0.0/24 netns:apart")

    found = explained(stage, one, "web1", "web2")
    assert (found.verdict, found.way) == ("unknown", None)
    assert found.next_step == f"run on {other.label}: weave explain web1 web2"

    stage.answer(stage.ask(one, PutAttachment(Attachment("web0", "netns:web0", b"", (), (), False, False))))
    found = explained(stage, one, "web0", "web1")
    assert (found.verdict, found.next_step) == ("no", "weave attach netns:web0")

    stage.partition((one, other), (last,))
    stage.advance(60.0)
    found = explained(stage, one, "netns:apart", "web2")
    assert found.verdict == "no" and found.because.startswith(f"{last.label} has been out of reach for ")


def test_the_way_is_the_one_in_use() -> None:
    stage = formed(4)
    one = stage.hosts[0]
    assert stage.dataplane is not None
    stage.dataplane.underlay.cut(VXLAN_PORT, [(0, 1), (1, 0)])
    stage.advance(120.0)
    found = explained(stage, one, "web0", "web1")
    assert found.verdict == "yes" and found.way is not None
    assert (found.way.plane, found.way.encryption) == ("sleeve", "encrypted from end to end")
    assert "UDP 6784" in found.way.reason


def test_a_host_that_left_and_came_back_is_the_one_that_is_there() -> None:
    stage = formed(6)
    one, other, _ = stage.hosts
    before = other.peer
    stage.ask(other, Reset())
    stage.until(lambda: bool(other.departed), 60, "the departure")
    assert explained(stage, one, "web0", other.label).target.peer == before.hex()
    other.start()
    stage.until(lambda: stage.links_between(one, other), 60, "a link")
    assert other.peer != before
    assert explained(stage, one, "web0", other.label).target.peer == other.peer.hex()


def test_what_nobody_knows_is_not_found() -> None:
    stage = formed(5)
    one, other, _ = stage.hosts
    stage.answer(stage.ask(other, RemoveAttachment("web1")))
    stage.advance(2.0)
    for text in ("web1", "netns:web1", "192.0.2.77", "nobody", "", "a b"):
        found = stage.answer(stage.ask(one, Explain("web0", text)))
        assert isinstance(found, Failure) and found.code is Code.NOT_FOUND, (text, found)
