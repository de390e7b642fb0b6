"""Telling the service manager how we are: the protocol of sd_notify(3), one datagram of ``KEY=value`` lines.

Without NOTIFY_SOCKET in the environment everything here does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        pid, interval = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
        is_for_us = not pid or pid == str(os.getpid())
        self.watchdog_s: float | None = None
        """Ping at least this often: half of what the manager waits for; None without a watchdog."""
        if self._address and is_for_us and interval.isdigit() and int(interval) > 0:
            self.watchdog_s = int(interval) / 2e6

    def tell(self, **fields: str) -> None:
        """For example ``tell(READY="1", STATUS="ready")``. A manager that does not listen is not an error."""
        if not self._address:
            return
        text = "\n".join(f"{key}={' '.join(value.split())}" for key, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(text.encode(), self._address)
            except OSError:
                return
