"""A client of the control API that costs next to nothing: a socket, prebuilt requests, no HTTP library.

It understands exactly what the daemon sends: a status line, headers with Content-Length, a body. One request in flight,
keep-alive. Its own cost is part of what a bench measures, so benches also report the cost of a null request.
"""

from __future__ import annotations

import json
import socket
from typing import Any


class Refused(Exception):
    """The API answered with another status than 200."""


class Client:
    """``path``: of the control socket. Raises OSError while nobody listens there."""

    def __init__(self, path: str, *, timeout_s: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._buffer = b""
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """One prebuilt request, its status and body."""
        self.send(request)
        return self.receive()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> tuple[int, bytes]:
        """Status and body of the answer to the request in flight."""
        buffer = self._buffer
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            buffer += self._receive()
        head = buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        stop = head.find(b"\r\n", at)
        length = int(head[at : stop if stop >= 0 else end])
        while len(buffer) < end + 4 + length:
            buffer += self._receive()
        self._buffer = buffer[end + 4 + length :]
        return int(head[9:12]), buffer[end + 4 : end + 4 + length]

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the daemon closed the connection")
        return data

    def get(self, path: str) -> Any:
        return self._checked(get(path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._checked(post(path, body))

    def _checked(self, request: bytes) -> Any:
        status, body = self.exchange(request)
        if status != 200:
            raise Refused(f"{status}: {body.decode(errors='replace')}")
        return json.loads(body)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: weave\r\n\r\n".encode()


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: weave\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data
