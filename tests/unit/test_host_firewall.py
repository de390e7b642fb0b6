"""The firewall on kernels that lack a family of nftables, and after what nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from weavenet.host import firewall
from weavenet.host.exposure_rules import Exposed
from weavenet.host.firewall import Firewall
from weavenet.host.nft import Command, Nft, NftError
from weavenet.host.rules import by_family


class FakeNft(Nft):
    """Knows all families but ``lacks``; remembers whose tables it made. ``is_broken``: it fails in its own way."""

    backend = "libnftables"  # type: ignore[assignment]

    def __init__(self, lacks: str = "") -> None:
        super().__init__(use_library=False)
        self.lacks = lacks
        self.made: set[str] = set()
        self.is_broken = False

    def run_now(self, commands: Sequence[Command]) -> list[Command]:
        if self.is_broken:
            raise ValueError("an answer that is no JSON")
        if "list" in commands[0]:
            return []
        families = by_family(list(commands))
        if self.lacks in families:
            raise NftError(5, "Operation not supported")
        self.made |= {family for family, own in families.items() if len(own) > 2}
        return []


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("bridge", "lost addresses are not blocked"),
        ("ip6", ""),
        ("inet", "VXLAN is accepted from anybody, containers may reach services of this host"),
    ],
)
def test_a_family_that_the_kernel_lacks_takes_no_other_with_it(lacks: str, told: str) -> None:
    async def scenario() -> None:
        nft = FakeNft(lacks)
        made = Firewall(nft=nft)
        await made.set_hosts(frozenset(("192.0.2.1",)))
        await made.set_blocked(())
        await made.set_exposed((Exposed("10.32.0.0/12"),))
        assert nft.made == {"inet", "ip"} - {lacks}
        assert bool(made.warnings()) == (lacks == "inet")
        await made.set_blocked((("web", "10.32.0.1"),))
        assert nft.made == {"inet", "ip", "bridge"} - {lacks}
        assert [text for text in made.warnings() if f"; {told}; " in text] == list(made.warnings())
        assert bool(made.warnings()) == bool(told)

    asyncio.run(scenario())


def test_what_nobody_foresaw_does_not_end_the_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE_S", "RETRY_S"):
        monkeypatch.setattr(firewall, name, 0.01)

    async def scenario() -> None:
        nft = FakeNft()
        made = Firewall(nft=nft)
        await made.open()
        await made.set_hosts(frozenset(("192.0.2.1",)))
        nft.made.clear()
        nft.is_broken = True
        made._deleted("weave")
        await asyncio.sleep(0.1)
        nft.is_broken = False
        await asyncio.sleep(0.2)
        await made.close()
        assert nft.made == {"inet"}

    asyncio.run(scenario())


def test_a_look_that_fails_does_not_end_the_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE_S", "RETRY_S", "LOOK_S"):
        monkeypatch.setattr(firewall, name, 0.01)

    async def scenario() -> None:
        nft = FakeNft()
        made = Firewall(nft=nft)
        failed = asyncio.Event()

        def stumble() -> tuple[str | None, ...]:
            loop.call_soon_threadsafe(failed.set)
            raise OSError("the namespace is gone")

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(made, "_unwatched", stumble)
        await made.open()
        await made.set_hosts(frozenset(("192.0.2.1",)))
        async with asyncio.timeout(20):
            await failed.wait()
            nft.made.clear()
            while not nft.made:
                made._deleted("weave")
                await asyncio.sleep(0.02)
        await made.close()

    asyncio.run(scenario())
