"""nftables transactions as plain data: libnftables through ctypes, the ``nft`` command where only that is there.

A transaction is a list of JSON commands (libnftables-json(5)) and happens as a whole or not at all. :class:`TableWatch`
tells when somebody deletes something in a table, so that it can be put back; it reads the nfnetlink multicast group and
never polls. What the rules say is :mod:`weavenet.host.firewall`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from weavenet.host import netns
from weavenet.host.links import attributes, messages

Command = dict[str, Any]
"""One command of libnftables' JSON schema: the adapter's own format, hence untyped."""

OUTPUT_JSON = 1 << 4
COMMAND_TIMEOUT_S = 10.0
NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NFNLGRP_NFTABLES = 7
SUBSYSTEM_NFTABLES = 10
DELETIONS = frozenset((2, 5, 8, 11, 14))
"""NFT_MSG_DELTABLE, -CHAIN, -RULE, -SET, -SETELEM; in each of them attribute 1 is the name of the table."""
ADDITIONS = frozenset((0, 3, 6))
"""NFT_MSG_NEWTABLE, -CHAIN, -RULE."""
NEW_GENERATION = 15
"""NFT_MSG_NEWGEN: closes the events of one transaction and names the thread that made it (attribute 3)."""
PR_SET_NAME = 15
THREAD_NAME = f"weavenft-{os.getpid() % 1_000_000}"
"""By this the kernel's events of our own transactions are told from those of others."""


class NftError(OSError):
    """The kernel or libnftables refused a transaction, or there is neither library nor command."""


class _Library:
    """libnftables(3). A context belongs to the thread and namespace that made it, so each call makes its own."""

    def __init__(self) -> None:
        library = ctypes.CDLL("libnftables.so.1", use_errno=True)
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library

    def run(self, text: bytes) -> str:
        library = self._library
        context = library.nft_ctx_new(0)
        if not context:
            raise NftError(12, "libnftables could not be started")
        try:
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_output_set_flags(context, OUTPUT_JSON)
            code = library.nft_run_cmd_from_buffer(context, text)
            if code != 0:
                raise NftError(
                    5, _first_line((library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace"))
                )
            return (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")
        finally:
            library.nft_ctx_free(context)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "nftables gave no reason"


def _run_command(program: str, text: bytes) -> str:
    try:
        done = subprocess.run(
            [program, "-j", "-f", "-"], input=text, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NftError(110, f"{program} did not answer within {COMMAND_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise NftError(5, _first_line(done.stderr.decode(errors="replace")))
    return done.stdout.decode(errors="replace")


class Nft:
    """Transactions in one namespace. ``use_library=False`` forces the command."""

    def __init__(self, namespace: int | None = None, *, use_library: bool = True) -> None:
        self._namespace = namespace
        self._library: _Library | None = None
        if use_library:
            try:
                self._library = _Library()
            except (OSError, AttributeError):
                self._library = None
        self._program = shutil.which("nft")

    @property
    def backend(self) -> str:
        """``libnftables``, ``nft`` or empty."""
        return "libnftables" if self._library is not None else ("nft" if self._program else "")

    async def run(self, commands: Sequence[Command]) -> list[Command]:
        """Execute one transaction in a worker thread; the answer's objects (of ``list`` commands). Raises NftError."""
        return await asyncio.to_thread(self.run_now, commands)

    def run_now(self, commands: Sequence[Command]) -> list[Command]:
        text = json.dumps({"nftables": list(commands)}).encode()
        library, program = self._library, self._program

        def inside() -> str:
            if library is not None:
                ctypes.CDLL(None).prctl(PR_SET_NAME, THREAD_NAME.encode(), 0, 0, 0)
                return library.run(text)
            if program is not None:
                return _run_command(program, text)
            raise NftError(2, "neither libnftables.so.1 nor the nft command is installed")

        output = netns.call(self._namespace, inside)
        if not output.strip():
            return []
        answer = msgspec.json.decode(output.encode(), type=dict[str, list[dict[str, Any]]])
        return answer.get("nftables", [])


class TableWatch:
    """Calls ``on_deletion(table)`` and ``on_addition(table)`` for changes that others make, once per transaction and
    table. Transactions that :class:`Nft` makes through the library are recognised by the name of the thread; after one
    through the command call :meth:`skip`."""

    def __init__(
        self, namespace: int | None, on_deletion: Callable[[str], None], on_addition: Callable[[str], None]
    ) -> None:
        self._namespace = namespace
        self._on_deletion = on_deletion
        self._on_addition = on_addition
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: set[tuple[bool, str]] = set()

    def open(self) -> None:
        """Raises OSError when this kernel has no nfnetlink."""
        self._socket = netns.call(self._namespace, self._make_socket)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._drain)

    @staticmethod
    def _make_socket() -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        return sock

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = None

    def skip(self) -> None:
        """Forget the events that have arrived so far: they are our own."""
        self._read()

    def _drain(self) -> None:
        for is_deletion, table in self._read():
            (self._on_deletion if is_deletion else self._on_addition)(table)

    def _read(self) -> set[tuple[bool, str]]:
        found: set[tuple[bool, str]] = set()
        while self._socket is not None:
            try:
                data = self._socket.recv(256 * 1024)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: events were lost, so anything may be gone
                self._pending.clear()
                found |= {(True, "weave"), (True, "filter")}
                continue
            for kind, _, payload in messages(data):
                if kind >> 8 == SUBSYSTEM_NFTABLES and len(payload) >= 4:
                    found |= self._take(kind & 0xFF, payload)
        return found

    def _take(self, kind: int, payload: memoryview) -> set[tuple[bool, str]]:
        """Collect the changes of a transaction until its last message tells who made it; hand them over then unless it
        was us. The kernel commits, and so reports, one transaction after the other. ``payload`` starts with struct
        nfgenmsg, 4 bytes."""
        if kind in DELETIONS or kind in ADDITIONS:
            table = dict(attributes(payload[4:])).get(1, memoryview(b""))
            name = bytes(table).rstrip(b"\0").decode(errors="replace")
            self._pending.add((kind in DELETIONS, name))
        elif kind == NEW_GENERATION:
            changes, self._pending = self._pending, set()
            maker = dict(attributes(payload[4:])).get(3, memoryview(b""))
            if bytes(maker).rstrip(b"\0").decode(errors="replace") != THREAD_NAME:
                return changes
        return set()
