"""Whether containers reach the DNS server is found out by asking from inside one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from weavenet.host import dnsaddress, dnsprobe, reversepath
from weavenet.host.dnsaddress import MISSES_TOLD, PROBE_AGAIN, DnsAddress


class Stage:
    """``answers``: what each container gets; None: it is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, bool | None] = {}
        self.asked: list[str] = []
        nothing: Any = None
        self.address = DnsAddress(nothing, nothing, nothing, lambda _: None, self._containers)
        monkeypatch.setattr(dnsprobe, "is_answered", self._is_answered)

    async def _containers(self) -> Sequence[str]:
        return list(self.answers)

    async def _is_answered(self, container: str, address: str) -> bool | None:
        assert address == dnsaddress.ADDRESS
        self.asked.append(container)
        return self.answers[container]

    def probe(self) -> None:
        asyncio.run(self.address._probe())


def test_it_is_told_only_when_a_container_got_no_answer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.probe()
    assert stage.address.warnings() == (), "nobody to ask from"
    stage.answers = {"netns:gone": None, "netns:web": False, "netns:db": False}
    for _ in range(MISSES_TOLD - 1):
        stage.probe()
    assert stage.address.warnings() == ()
    stage.probe()
    (warning,) = stage.address.warnings()
    assert "ufw allow in on weave" in warning
    assert stage.asked.count("netns:gone") == stage.asked.count("netns:web") == MISSES_TOLD
    assert "netns:db" not in stage.asked
    stage.answers["netns:web"] = True
    stage.probe()
    assert stage.address.warnings() == ()
    assert stage.address._probe_in == PROBE_AGAIN


class FakeKernel:
    """Of the kernel and of the bridge, what putting the address there asks for. ``rules``: how often one was put."""

    namespace = None
    index = 7

    def __init__(self) -> None:
        self.rules = 0
        self.netlink = self

    async def ensure(self) -> FakeKernel:
        return self

    async def add_address(self, index: int, address: str) -> None:
        assert (index, address) == (self.index, f"{dnsaddress.ADDRESS}/32")

    async def answer_through(self, index: int, address: str, table: int) -> None:
        self.rules += 1


@pytest.mark.parametrize(
    ("is_let_in", "misses", "rules"), [(True, 0, 0), (True, MISSES_TOLD - 1, 0), (True, MISSES_TOLD, 1), (False, 0, 1)]
)
def test_a_rule_only_where_queries_are_refused(
    monkeypatch: pytest.MonkeyPatch, is_let_in: bool, misses: int, rules: int
) -> None:
    """By the kernel, or by the evidence: one answer missed while the server starts is none."""
    monkeypatch.setattr(reversepath, "is_let_in", lambda *_: is_let_in)
    stage, kernel = Stage(monkeypatch), FakeKernel()
    anything: Any = kernel
    stage.address = DnsAddress(anything, anything, anything, lambda _: None, stage._containers)
    stage.answers = {"netns:web": False}
    for _ in range(misses):
        stage.probe()
    asyncio.run(stage.address._ensure())
    assert kernel.rules == rules
