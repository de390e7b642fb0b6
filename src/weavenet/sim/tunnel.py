"""A host's WireGuard device in virtual time: which key it has, and whether a packet gets through to another one.

A packet is taken when the receiver was told of the sender's key in use, and the sender aims at a key that the receiver
has or had a moment ago: sessions of the key before go on for a while. The device outlives the daemon and dies with the
machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from weavenet.core.events import WireguardReported
from weavenet.core.limits import PORT_DEFAULT, WIREGUARD_PORT_OFFSET
from weavenet.sim.scheduler import Scheduler

PORT = PORT_DEFAULT + WIREGUARD_PORT_OFFSET
LEAD_S = 5.0
"""The next key is published this long before it is used."""
SESSION_S = 120.0
"""What was agreed on with a key goes on for so long."""
SETTLE_S = 0.05
"""Making the device takes this long."""


class Device:
    """``report``: takes what the daemon would be told of it."""

    def __init__(
        self, *, scheduler: Scheduler, rng: random.Random, report: Callable[[WireguardReported], None]
    ) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self._report = report
        self._life = 0
        self._retired: dict[bytes, float] = {}
        self.keys: tuple[bytes, ...] = ()
        """The one in use, then the next one."""

    def start(self) -> None:
        """The daemon starts: the device is made or adopted, and its key changed soon."""
        if not self.keys:
            self.keys = (self._rng.randbytes(32),)
        self._life += 1
        self._scheduler.after(SETTLE_S, self._say, self._life)
        self._scheduler.after(SETTLE_S + 1.0, self.replace_key, self._life)

    def stop(self) -> None:
        """The machine died."""
        self._life += 1
        self.keys = ()
        self._retired.clear()

    def _say(self, life: int) -> None:
        if life == self._life:
            self._report(WireguardReported(self.keys, PORT if self.keys else 0))

    def replace_key(self, life: int | None = None) -> None:
        """Announce the next key now, use it after ``LEAD_S``."""
        if self.keys and life in (None, self._life):
            self.keys = (self.keys[0], self._rng.randbytes(32))
            self._say(self._life)
            self._scheduler.after(LEAD_S, self._change_over, self._life)

    def _change_over(self, life: int) -> None:
        if life == self._life and len(self.keys) > 1:
            self._retired[self.keys[0]] = self._scheduler.now + SESSION_S
            self.keys = self.keys[1:]
            self._say(life)

    def has(self, key: bytes) -> bool:
        """Whether packets to the address of ``key`` are taken."""
        return key in self.keys[:1] or self._retired.get(key, 0.0) > self._scheduler.now
