"""Explicit addresses outside of the range: nobody owns them, so equal ones are told instead of refused."""

from __future__ import annotations

from weavenet.core.commands import Attachment, Claim, GetReport, PutAttachment, RemoveAttachment
from weavenet.core.names import EXPOSE
from weavenet.core.report import NodeReport
from weavenet.sim.host import Host
from weavenet.sim.stage import Stage

SHARED = "192.0.2.7/24"


def attach(stage: Stage, host: Host, ident: str, *addresses: str) -> None:
    for address in addresses:
        stage.answer(stage.ask(host, Claim(ident, address)))
    mac = bytes((2, 0, 0, 0, len(ident), host.index))
    container = EXPOSE if ident == EXPOSE else f"netns:{ident}"
    stage.answer(stage.ask(host, PutAttachment(Attachment(ident, container, mac, (), addresses, False, True))))
    stage.advance(1.0)


def told(stage: Stage, host: Host) -> NodeReport:
    report = stage.answer(stage.ask(host, GetReport()))
    assert isinstance(report, NodeReport)
    assert set(report.ipam.conflicts[:3]) <= set(report.warnings)
    return report


def test_equal_addresses_outside_of_the_range_are_told_on_both_hosts() -> None:
    stage = Stage(1, 3)
    stage.form()
    one, other, third = stage.hosts
    attach(stage, one, "web", SHARED, "192.0.2.8/24")
    attach(stage, third, "own", "192.0.2.9/24")
    assert told(stage, one).ipam.conflicts == ()
    attach(stage, other, "mail", SHARED)
    (conflict,) = told(stage, one).ipam.conflicts
    assert conflict.startswith("192.0.2.7 is used by netns:web on this host and by mail on ")
    assert f"({other.label})" in conflict
    assert f"weave detach {SHARED} netns:web" in conflict
    (conflict,) = told(stage, other).ipam.conflicts
    assert f"by netns:mail on this host and by web on {one.name}({one.label})" in conflict
    assert told(stage, third).ipam.conflicts == ()
    stage.answer(stage.ask(other, RemoveAttachment("mail")))
    stage.advance(1.0)
    assert told(stage, one).ipam.conflicts == ()


def test_two_containers_of_one_host_with_one_address_are_told() -> None:
    stage = Stage(2, 1)
    stage.form()
    (host,) = stage.hosts
    attach(stage, host, "web", SHARED)
    attach(stage, host, EXPOSE, SHARED)
    (conflict,) = told(stage, host).ipam.conflicts
    assert "weave:expose on this host and by netns:web on this host" in conflict
    assert f"weave hide {SHARED}" in conflict


def test_an_address_that_moved_from_a_dead_host_is_no_conflict() -> None:
    stage = Stage(3, 2)
    stage.form()
    dead, living = stage.hosts
    attach(stage, dead, "web", SHARED)
    dead.kill(kernel_lost=True)
    stage.advance(15.0)
    attach(stage, living, "web", SHARED)
    assert told(stage, living).ipam.conflicts == ()
