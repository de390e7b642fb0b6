"""Asks this host's DNS server from inside a container, as the container would: the only way to know that no firewall
stands between them, whoever made it.
"""

from __future__ import annotations

import asyncio
import socket

from weavenet.core.errors import WeaveError
from weavenet.host import netns

QUERY = b"\x5a\x5a\1\0\0\1\0\0\0\0\0\0\x09localhost\0\0\1\0\1"
"""A of ``localhost.``: every server of ours has it."""
PORT = 53
TRIES, WAIT_S = 2, 1.0


async def is_answered(container: str, address: str) -> bool | None:
    """Whether ``container`` (a reference as in `weave attach`) gets an answer at ``address``; None when it is gone.
    Takes TRIES times WAIT_S at most, in another thread."""
    try:
        with netns.resolve(container) as found:
            return await asyncio.to_thread(netns.call, found.namespace, lambda: _ask(address))
    except (WeaveError, OSError):
        return None


def _ask(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        for _ in range(TRIES):
            try:
                sock.sendto(QUERY, (address, PORT))
                if sock.recv(512)[:2] == QUERY[:2]:
                    return True
            except OSError:  # refused, filtered, timed out
                continue
    return False
