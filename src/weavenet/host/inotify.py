"""Names that appear in and vanish from one directory, through inotify(7). Does not say what the names are."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO = 0x100, 0x200, 0x40, 0x80
IN_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


def parse(data: bytes) -> list[tuple[int, str]]:
    """(mask, name) of each event in one read."""
    found = []
    offset = 0
    while offset + _EVENT.size <= len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        found.append((mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))))
        offset += length
    return found


class DirectoryWatch:
    """Calls ``on_change(name, exists)``; ``("", True)`` when events were lost and everything must be looked at."""

    def __init__(self, directory: Path, on_change: Callable[[str, bool], None]) -> None:
        self._directory = directory
        self._on_change = on_change
        self._file = -1

    def open(self) -> None:
        """Makes the directory when it is missing. Raises OSError."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._file = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify: {os.strerror(code)}")
        mask = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
        if _libc.inotify_add_watch(self._file, os.fsencode(self._directory), mask) < 0:
            code = ctypes.get_errno()
            os.close(self._file)
            self._file = -1
            raise OSError(code, f"inotify on {self._directory}: {os.strerror(code)}")
        asyncio.get_running_loop().add_reader(self._file, self._drain)

    def close(self) -> None:
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _drain(self) -> None:
        try:
            data = os.read(self._file, 65536)
        except OSError:
            return
        for mask, name in parse(data):
            if mask & IN_Q_OVERFLOW:
                self._on_change("", True)
            elif name:
                self._on_change(name, bool(mask & (IN_CREATE | IN_MOVED_TO)))
