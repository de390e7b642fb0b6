"""The cache of links stays true when events come faster than they are read."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_pair import run, until

from weavenet.host import links
from weavenet.host.links import LinkCache
from weavenet.host.netns import scratch

DEVICES = 60
"""More than one datagram of a dump takes."""


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """With DEVICES, and buffers that overflow early."""
    monkeypatch.setattr(links, "RECEIVE_BUFFER_BYTES", 64 * 1024)
    with scratch() as found:
        batch(found, *(f"link add d{number} type bridge" for number in range(DEVICES)))
        yield found


def batch(namespace: int, *commands: str) -> None:
    enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}"]
    subprocess.run([*enter, "ip", "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True, timeout=60)


def flood(namespace: int) -> None:
    """More events than the buffer takes."""
    batch(namespace, *(f"link set d{number} mtu {mtu}" for mtu in (1280, 1300, 1320) for number in range(DEVICES)))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def names(namespace: int) -> set[str]:
    return {line.split()[1].rstrip(":") for line in run(namespace, "ip", "-o", "link").splitlines()}


def test_a_link_deleted_while_lost_events_are_made_up_for(namespace: int) -> None:
    """The kernel drops events until the buffer is empty, so nothing that was read before that is the last word."""

    class Interrupted(LinkCache):
        deleted = False

        def _take(self, kind: int, sequence: int, payload: memoryview) -> None:
            super()._take(kind, sequence, payload)
            if sequence > 1 and not self.deleted:
                self.deleted = True
                batch(namespace, "link del d0")

    async def story() -> None:
        cache = Interrupted(namespace)
        await cache.open()
        try:
            overflows: list[bool] = []
            cache.on_overflow.append(lambda: overflows.append(True))
            flood(namespace)
            await until(lambda: cache.deleted, "a second dump")
            assert overflows
            await until(lambda: {link.name for link in cache.all()} == names(namespace), "what there is")
        finally:
            cache.close()

    asyncio.run(story())


def test_events_that_overtake_the_first_dump(namespace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flooded(LinkCache):
        def _request_dump(self) -> None:
            super()._request_dump()
            if self._dump_sequence == 1:
                flood(namespace)

    async def story() -> None:
        cache = Flooded(namespace)
        await cache.open()
        try:
            assert {link.name for link in cache.all()} == names(namespace)
            assert cache._dump_sequence > 1
        finally:
            cache.close()

    monkeypatch.setattr(links, "DUMP_TIMEOUT_S", 1.0)
    asyncio.run(story())


def test_a_cache_that_was_not_opened_keeps_nothing(namespace: int) -> None:
    async def story() -> None:
        cache = LinkCache(namespace)
        opening = asyncio.create_task(cache.open())
        await asyncio.sleep(0)
        before = descriptors()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert descriptors() == before - 1

    asyncio.run(story())
