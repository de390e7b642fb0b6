"""What a data path to other hosts looks like to the daemon.

A plane is given the whole wanted state, never verbs: it diffs that with the kernel, applies the difference, and puts
back what others delete. :meth:`Plane.apply` with the state that is already there changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from weavenet.core.effects import PlanePeer


class Plane(Protocol):
    """``on_probe(mac, nonce, is_answer)``: a heartbeat frame came from the plane device ``mac``. ``on_traffic()``:
    frames other than our own heartbeats flowed within the last second."""

    on_probe: Callable[[bytes, int, bool], None]
    on_traffic: Callable[[], None]

    async def open(self) -> None:
        """Make or adopt the devices, idempotent, without disturbing running traffic. Raises OSError or WeaveError."""

    async def apply(self, peers: tuple[PlanePeer, ...]) -> None:
        """The whole desired state. Never raises for a single entry that the kernel refuses; see ``warnings``."""

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        """Send a heartbeat frame to the plane device ``mac``. Losing it is normal; nothing is raised."""

    def warnings(self) -> tuple[str, ...]:
        """What does not work or is not as wanted now, a sentence with a next step each."""

    async def close(self) -> None:
        """Stop watching; leave devices and entries so that containers keep talking (hitless restart)."""
