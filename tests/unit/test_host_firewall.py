"""What the firewall does where programs of others are slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from weavenet.host import erasure, firewall
from weavenet.host.exposure_rules import Exposed
from weavenet.host.firewall import Firewall
from weavenet.host.nft import Command, Nft

SUBNET = Exposed("10.32.0.0/12")
BUSY = {
    "held": "echo 'Another app is currently holding the xtables lock' >&2; exit 4",
    "slow": "exec sleep 60",
}


class QuietNft(Nft):
    """Where no rules are."""

    def __init__(self, namespace: int | None = None) -> None:
        super().__init__(namespace, use_library=False)

    async def run(self, commands: Sequence[Command]) -> list[Command]:
        return []


@pytest.fixture(params=sorted(BUSY))
def busy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """iptables-legacy, busy as long as this file is there; what it was asked for then is in ``calls`` beside it."""
    flag = tmp_path / "busy"
    flag.touch()
    program = tmp_path / "iptables-legacy"
    listing = "printf -- '-P FORWARD DROP\\n'"
    body = f'[ -e {flag} ] && {{ {BUSY[request.param]}; }}; echo "$*" >> {tmp_path}/calls; [ "$3" != -S ] || {listing}'
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(firewall, "LEGACY", {"iptables-legacy": "ip"})
    monkeypatch.setattr(erasure, "LEGACY", {"iptables-legacy": "ip"})
    monkeypatch.setattr(firewall, "LEGACY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(firewall, "RETRY_S", 0.02)
    return flag


def test_rules_come_when_a_busy_iptables_has_time(busy: Path) -> None:
    async def story() -> None:
        watched = Firewall(None, QuietNft())
        await watched.open()
        try:
            await watched.set_exposed((SUBNET,))
            assert "iptables-legacy" in " ".join(watched.warnings())
            busy.unlink()
            calls = busy.parent / "calls"
            async with asyncio.timeout(20):
                while not calls.exists() or calls.read_text().count("-I FORWARD") < 2:
                    await asyncio.sleep(0.01)
        finally:
            await watched.close()

    asyncio.run(story())


def test_a_reset_tells_of_rules_that_it_could_not_see(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "Nft", QuietNft)
    assert "iptables-legacy" in " ".join(asyncio.run(erasure._erase_rules(None)))
    busy.unlink()
    assert asyncio.run(erasure._erase_rules(None)) == []


def test_an_unforeseen_failure_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbling(Firewall):
        attempts = 0

        async def _apply(self) -> None:
            self.attempts += 1
            if self.attempts == 1:
                raise RuntimeError("unforeseen")

    async def story() -> None:
        watched = Stumbling(None, QuietNft())
        await watched.open()
        try:
            watched._deleted("filter")
            async with asyncio.timeout(20):
                while watched.attempts < 2:
                    await asyncio.sleep(0.01)
        finally:
            await watched.close()

    monkeypatch.setattr(firewall, "RETRY_S", 0.02)
    asyncio.run(story())
