"""Connections that somebody tried to us and that failed, kept for ``status connections``: the last one per host, for
five minutes, a bounded number."""

from __future__ import annotations

import msgspec

from weavenet.core.errors import RefusalCode
from weavenet.core.limits import FAILURE_KEPT_S, FAILURES_KEPT


class InboundFailure(msgspec.Struct, frozen=True):
    at: float
    host: str
    port: int
    code: RefusalCode | None
    sentence: str
    peer: str = ""
    name: str = ""
    nickname: str = ""


class InboundFailures:
    def __init__(self) -> None:
        self._by_host: dict[str, InboundFailure] = {}

    def add(self, failure: InboundFailure) -> None:
        self._by_host.pop(failure.host, None)
        self._by_host[failure.host] = failure
        while len(self._by_host) > FAILURES_KEPT:
            del self._by_host[next(iter(self._by_host))]

    def forget(self, host: str) -> None:
        """Somebody from there is connected now."""
        self._by_host.pop(host, None)

    def recent(self, now: float) -> list[InboundFailure]:
        for host in [host for host, failure in self._by_host.items() if failure.at + FAILURE_KEPT_S <= now]:
            del self._by_host[host]
        return list(self._by_host.values())
