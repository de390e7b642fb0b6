"""Kernel settings of one namespace under /proc/sys/net.

Which namespace a write reaches is decided by the writing thread, hence the detour through :mod:`netns`. A setting that
this kernel does not have (IPv6 switched off, for one) is skipped; one that it refuses is handed back, not raised:
whether that matters is the caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weavenet.host import netns

ROOT = Path("/proc/sys/net")


def write(namespace: int | None, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Write each (path below /proc/sys/net, value) that differs; the sentences of those that were refused."""

    def inside() -> tuple[str, ...]:
        refused = []
        for name, value in settings.items():
            path = ROOT / name
            try:
                if path.read_text().strip() != value:
                    path.write_text(value)
            except FileNotFoundError:
                continue
            except OSError as error:
                refused.append(f"net/{name} could not be set to {value}: {error.strerror}")
        return tuple(refused)

    return netns.call(namespace, inside)


def read(namespace: int | None, name: str) -> str | None:
    """Value of one setting; None when there is none or it cannot be read."""

    def inside() -> str | None:
        try:
            return (ROOT / name).read_text().strip()
        except OSError:
            return None

    return netns.call(namespace, inside)


def quiet_port(device: str) -> dict[str, str]:
    """Settings for devices that only carry other people's frames: no address made up, no router listened to."""
    return {
        f"ipv6/conf/{device}/addr_gen_mode": "1",
        f"ipv6/conf/{device}/accept_ra": "0",
        f"ipv6/conf/{device}/router_solicitations": "0",
    }
