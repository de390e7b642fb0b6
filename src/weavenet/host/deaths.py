"""Notices that containers are gone: process ended, name deleted, host veth deleted; and that a name came back.

Only notices, within milliseconds, and tells; what follows is :mod:`weavenet.host.attachments`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from weavenet.host import netns
from weavenet.host.bridge import is_port_name, port_name
from weavenet.host.inotify import DirectoryWatch
from weavenet.host.links import Link, LinkCache


class DeathWatch:
    """``on_gone(ident, process)``: the container is gone; ``process`` says that its process ended, which may be
    followed by a restart. ``on_name(name)``: a namespace name appeared. An ident is reported once per :meth:`watch`."""

    def __init__(self, links: LinkCache, on_gone: Callable[[str, bool], None], on_name: Callable[[str], None]) -> None:
        self._links = links
        self._on_gone = on_gone
        self._on_name = on_name
        self._names = DirectoryWatch(netns.NAMED, self._name_changed)
        self._pidfds: dict[str, int] = {}
        self._ports: dict[str, str] = {}
        self._named: set[str] = set()

    def open(self) -> None:
        """Raises OSError."""
        self._names.open()
        self._links.on_link.append(self._link_changed)

    def close(self) -> None:
        self._names.close()
        if self._link_changed in self._links.on_link:
            self._links.on_link.remove(self._link_changed)
        for ident in tuple(self._ports):
            self.forget(ident)

    def watch(self, ident: str, *, is_name: bool, pidfd: int | None) -> None:
        """``pidfd`` is duplicated. Watching again replaces the earlier watch."""
        self.forget(ident)
        self._ports[port_name(ident)] = ident
        if is_name:
            self._named.add(ident)
        if pidfd is not None:
            own = os.dup(pidfd)
            self._pidfds[ident] = own
            asyncio.get_running_loop().add_reader(own, self._gone, ident, True)

    def forget(self, ident: str) -> None:
        self._ports.pop(port_name(ident), None)
        self._named.discard(ident)
        pidfd = self._pidfds.pop(ident, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _gone(self, ident: str, process: bool) -> None:
        self.forget(ident)
        self._on_gone(ident, process)

    def _link_changed(self, link: Link, gone: bool) -> None:
        ident = self._ports.get(link.name) if gone and is_port_name(link.name) else None
        if ident is not None:
            pidfd = self._pidfds.get(ident)
            self._gone(ident, pidfd is not None and netns.has_ended(pidfd))

    def _name_changed(self, name: str, exists: bool) -> None:
        if not name:  # events were lost
            for known in tuple(self._named):
                if not (netns.NAMED / known).exists():
                    self._gone(known, False)
            for path in netns.NAMED.iterdir():
                self._on_name(path.name)
        elif exists:
            self._on_name(name)
        elif name in self._named:
            self._gone(name, False)
