"""What the control API needs of a daemon, and the shapes it speaks in.

Handlers see only this Protocol, so that tests put a daemon of a few lines behind a real socket. Waiting is expressed by
awaiting: when a client goes away its task is cancelled, and the daemon must then cancel the command in the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from weavenet.core.commands import Addresses, Attachments, Command, Done, Result
from weavenet.core.errors import Failure


class AttachSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``container``: ``netns:NAME``, ``netns:/path`` or ``pid:N``. ``addresses``: the addr arguments as given
    (``[ip:]CIDR``, ``net:CIDR``, ``net:default``; empty means ``net:default``). ``dns``: register its name, ``name`` or
    what it calls itself. ``rewrite_hosts``: put its name and ``hosts`` (``NAME:ADDRESS`` each) into its /etc/hosts."""

    container: str
    addresses: tuple[str, ...] = ()
    multicast_route: bool = True
    dns: bool = True
    name: str = ""
    rewrite_hosts: bool = False
    hosts: tuple[str, ...] = ()


class DetachSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``addresses`` empty: all addresses in the default subnet."""

    container: str
    addresses: tuple[str, ...] = ()


class ExposeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``addresses`` as for attach. ``name``: registered for them, unless empty. ``masquerade``: traffic between the
    network and elsewhere gets this host's addresses."""

    addresses: tuple[str, ...] = ()
    name: str = ""
    masquerade: bool = True


class HideSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``addresses`` empty: all."""

    addresses: tuple[str, ...] = ()


class NameSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``container``: as for attach, or ``weave:external`` for addresses that are no container's. ``addresses`` (no
    prefix) empty: all that the container has. ``name`` empty: what the container calls itself; to remove, all."""

    container: str
    addresses: tuple[str, ...] = ()
    name: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same while the daemon runs."""

    version: str
    pid: int
    started_at: float
    """Unix time in seconds."""
    name: str
    nickname: str
    port: int
    log_path: str = ""
    """Empty: the log goes to stderr of a foreground daemon."""


class Daemon(Protocol):
    """The running daemon as the control API sees it."""

    @property
    def identity(self) -> Identity: ...

    async def request(self, command: Command) -> Result:
        """Run one command in the node; cancelling this coroutine cancels the command."""

    def submit(self, command: Command, done: Callable[[Result], None]) -> Callable[[], None]:
        """The same by callback: ``done`` is called once with the result, perhaps before this returns, unless the
        returned function is called first, which cancels the command. ``done`` must not raise."""

    async def attach(self, spec: AttachSpec) -> Addresses | Failure:
        """Give a container its interface and addresses (CIDR text); waits for addresses without limit."""

    async def detach(self, spec: DetachSpec) -> Addresses | Failure:
        """Take addresses away; answers with those that were removed."""

    async def expose(self, spec: ExposeSpec) -> Addresses | Failure:
        """Give this host addresses on the network; waits for them without limit."""

    async def hide(self, spec: HideSpec) -> Addresses | Failure:
        """Take them away; answers with those that were removed."""

    async def add_name(self, spec: NameSpec) -> Done | Failure:
        """Register a name of a container or of external addresses."""

    async def remove_name(self, spec: NameSpec) -> Done | Failure:
        """The reverse; names that others registered are theirs."""

    async def ps(self, containers: tuple[str, ...]) -> Attachments | Failure:
        """Attachments of the given containers (as named to ``attach``), or all when empty."""

    async def reset(self, force: bool) -> Done | Failure:
        """Leave the cluster and remove everything from this host; answered when that is done, the daemon ends then.
        Cancelling gives it up where that is still possible."""

    def request_stop(self) -> None:
        """Begin a clean stop; returns at once."""
