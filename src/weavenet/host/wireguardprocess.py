"""WireGuard in user space: the process ``wireguard-go``, which makes a TUN device and listens on a unix socket.

The protocol is that of wireguard.com/xplatform: lines ``key=value``, keys in hex, an empty line at the end; it is
spoken on the socket only, so no key is ever an argument of a command. The process outlives the daemon and ends by
itself when its device is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
from pathlib import Path

from weavenet.host.wireguard import KEEPALIVE_S, KEY_BYTES, Change, DeviceState, TunnelPeer

PROGRAM = "wireguard-go"
SOCKETS = Path("/var/run/wireguard")
"""Fixed by the program."""
TIMEOUT_S = 5.0
START_S, START_EVERY_S = 5.0, 0.02
ANSWER_BYTES_MAX = 16 * 1024 * 1024


def program() -> str:
    """Path of the program; empty where it is not installed."""
    return shutil.which(PROGRAM) or ""


def request(change: Change) -> str:
    lines = ["set=1"]
    if change.private is not None:
        lines.append(f"private_key={change.private.hex()}")
    if change.port is not None:
        lines.append(f"listen_port={change.port}")
    for peer in change.peers:
        lines.append(f"public_key={peer.public.hex()}")
        if peer.is_removed:
            lines.append("remove=true")
            continue
        if peer.endpoint is not None:
            host, port = peer.endpoint
            lines.append(f"endpoint=[{host}]:{port}" if ":" in host else f"endpoint={host}:{port}")
        lines.append(f"persistent_keepalive_interval={KEEPALIVE_S}")
        if peer.address:
            lines += ["replace_allowed_ips=true", f"allowed_ip={peer.address}/{128 if ':' in peer.address else 32}"]
    return "\n".join([*lines, "", ""])


def parse(text: str) -> DeviceState:
    """The answer to ``get=1``. Raises OSError with the errno that it tells, ValueError when it is no such answer."""
    private, port = bytes(KEY_BYTES), 0
    peers: list[TunnelPeer] = []
    public: bytes | None = None
    endpoint: tuple[str, int] | None = None
    addresses: list[str] = []
    handshake_at = 0

    def finish() -> None:
        if public is not None:
            peers.append(TunnelPeer(public, endpoint, tuple(addresses), handshake_at))

    for line in text.splitlines():
        name, _, value = line.partition("=")
        match name:
            case "errno":
                check(value)
            case "private_key":
                private = bytes.fromhex(value)
            case "listen_port":
                port = int(value)
            case "public_key":
                finish()
                public, endpoint, addresses, handshake_at = bytes.fromhex(value), None, [], 0
            case "endpoint":
                host, _, number = value.rpartition(":")
                endpoint = host.strip("[]"), int(number)
            case "allowed_ip":
                addresses.append(value)
            case "last_handshake_time_sec":
                handshake_at = int(value)
    finish()
    return DeviceState(private, port, tuple(peers))


def check(number: str) -> None:
    code = abs(int(number))
    if code:
        raise OSError(code, f"{PROGRAM}: {os.strerror(code)}")


class ProcessDevice:
    """Implements :class:`weavenet.host.wireguard.Device` for the process that made the link ``name``."""

    def __init__(self, name: str) -> None:
        self._path = SOCKETS / f"{name}.sock"

    def is_there(self) -> bool:
        try:
            with self._connect():
                return True
        except OSError:
            return False

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def _ask(self, text: str) -> str:
        with self._connect() as sock:
            sock.sendall(text.encode())
            answer = b""
            while not answer.endswith(b"\n\n"):
                part = sock.recv(1 << 16)
                if not part or len(answer) > ANSWER_BYTES_MAX:
                    raise OSError(5, f"{PROGRAM} did not answer whole")
                answer += part
        return answer.decode()

    def read(self) -> DeviceState:
        return parse(self._ask("get=1\n\n"))

    def write(self, change: Change) -> None:
        for line in self._ask(request(change)).splitlines():
            name, _, value = line.partition("=")
            if name == "errno":
                check(value)


async def start(name: str) -> None:
    """Start the process, in a session of its own, and wait until it listens. Raises OSError when it does not."""
    process = await asyncio.create_subprocess_exec(
        program() or PROGRAM,
        *("-f", name),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,  # it says at length that the kernel does this better
        start_new_session=True,
        env={**os.environ, "LOG_LEVEL": "silent"},
    )
    device = ProcessDevice(name)
    give_up_at = time.monotonic() + START_S
    while not device.is_there():
        if process.returncode is not None:
            raise OSError(5, f"{PROGRAM} ended with status {process.returncode}: is there /dev/net/tun?")
        if time.monotonic() > give_up_at:
            process.kill()
            raise OSError(110, f"{PROGRAM} did not listen within {START_S:.0f} s")
        await asyncio.sleep(START_EVERY_S)


def erase(name: str) -> None:
    """Remove what a process that was killed left. Its device must be gone."""
    with contextlib.suppress(OSError):
        (SOCKETS / f"{name}.sock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others have devices, too
        SOCKETS.rmdir()
