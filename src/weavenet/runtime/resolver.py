"""Target texts to addresses: parsing, and the system's resolver in a few threads.

``getaddrinfo`` blocks for as long as the resolver configuration says, so it runs in RESOLVER_THREADS threads and each
answer is waited for RESOLVE_TIMEOUT_S at most; numeric targets need neither. Further targets queue; their number is
bounded by TARGETS_MAX. Does not retry: the node does, on every attempt to connect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from weavenet.core.events import Resolved
from weavenet.core.limits import RESOLVED_ADDRESSES_MAX

RESOLVER_THREADS = 4
RESOLVE_TIMEOUT_S = 10.0


def split_target(target: str, default_port: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``v6``, ``[v6]`` or ``[v6]:port``. Raises ValueError."""
    text, port_text = target.strip(), ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"expected [address]:port, found {target!r}")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    else:
        host = text
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else 0 if port_text else default_port
    if not host or not 0 < port < 65_536:
        raise ValueError(f"expected host or host:port with a port from 1 to 65535, found {target!r}")
    return host, port


class Resolver:
    def __init__(self, default_port: int) -> None:
        self._default_port = default_port
        self._threads: ThreadPoolExecutor | None = None

    async def resolve(self, target: str) -> Resolved:
        """Never raises; the sentence is in ``error``."""
        try:
            host, port = split_target(target, self._default_port)
        except ValueError as error:
            return Resolved(target, (), str(error))
        try:
            return Resolved(target, ((str(ipaddress.ip_address(host)), port),))
        except ValueError:
            return await self._look_up(target, host, port)

    async def _look_up(self, target: str, host: str, port: int) -> Resolved:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await loop.run_in_executor(self._threads, _getaddrinfo, host)
        except TimeoutError:
            return Resolved(target, (), f"no answer about {host} within {RESOLVE_TIMEOUT_S:.0f} s")
        except OSError as error:
            return Resolved(target, (), f"{host}: {error.strerror or error}")
        except UnicodeError:
            return Resolved(target, (), f"{host!r} is no host name")
        return Resolved(target, tuple((address, port) for address in found[:RESOLVED_ADDRESSES_MAX]))

    def close(self) -> None:
        """Does not wait for threads that the system's resolver holds up."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str) -> list[str]:
    """Addresses in the order of preference of the system, each once."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


def local_hosts(root: str = "/proc/net") -> tuple[str, ...]:
    """Addresses of this host, so that the node recognises itself among its targets without dialling."""
    found: set[str] = set()
    try:
        with open(f"{root}/fib_trie", encoding="ascii") as lines:
            address = ""
            for line in lines:
                words = line.split()
                if words[:1] == ["|--"]:
                    address = words[1]
                elif words[:3] == ["/32", "host", "LOCAL"]:
                    found.add(address)
        with open(f"{root}/if_inet6", encoding="ascii") as lines:
            found.update(str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines)
    except (OSError, ValueError, IndexError):
        return tuple(sorted(found))
    return tuple(sorted(found))
