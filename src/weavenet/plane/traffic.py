"""Frame counters of devices, read through a file that stays open in the right namespace.

``/proc/net/dev`` is bound to the namespace in which it was opened, unlike ``/sys/class/net``, which shows that of the
mount; reading it again from the start renders fresh values.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from weavenet.host import netns


def parse(text: str, devices: Iterable[str]) -> int:
    """Frames received and sent by ``devices`` together."""
    wanted = frozenset(devices)
    frames = 0
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() in wanted:
            fields = rest.split()
            frames += int(fields[1]) + int(fields[9])
    return frames


class Counters:
    def __init__(self, namespace: int | None) -> None:
        self._file = netns.call(namespace, lambda: os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC))

    def frames(self, devices: Iterable[str]) -> int:
        chunks = []
        offset = 0
        while chunk := os.pread(self._file, 65536, offset):
            chunks.append(chunk)
            offset += len(chunk)
        return parse(b"".join(chunks).decode(errors="replace"), devices)

    def close(self) -> None:
        os.close(self._file)
