"""Whether containers reach the DNS server is found out by asking from inside one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from weavenet.host import dnsaddress, dnsprobe
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
