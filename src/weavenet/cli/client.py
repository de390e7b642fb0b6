"""Talks HTTP to the daemon's control socket. One connection per call, closed after it.

Written on ``socket`` alone: importing ``http.client`` (with ``email``) takes longer than everything else that ``weave
status`` does. It speaks to our own server only, which always sends Content-Length.
"""

import os
import socket
import sys
import time

from weavenet.cli.outcome import ERROR, LIMIT, Ended

CONTROL_SOCKET = "/run/weave/control.sock"
LOG_PATH = "/var/log/weave.log"
UNIT_PATH = "/etc/systemd/system/weave.service"
"""There after `weave install-unit`."""
ANSWER_TIMEOUT_S = 15.0
"""For requests that the daemon answers at once; a longer silence means it hangs."""


def socket_path() -> str:
    """Where the control API is: ``WEAVE_HTTP_ADDR`` when it is a path, as with the original."""
    address = os.environ.get("WEAVE_HTTP_ADDR", "")
    return address if address.startswith("/") else CONTROL_SOCKET


class NotRunning(Ended):
    """Nobody answers at the control socket."""

    def __init__(self) -> None:
        super().__init__(ERROR, "weave is not running; next: start it with `weave launch`")

    def told(self) -> str:
        from pathlib import Path

        from weavenet.cli.unheard import running_pid

        pid = running_pid()
        if pid is None:
            if Path(UNIT_PATH).exists():
                return "weave is not running; next: `systemctl status weave` says why; systemctl start weave"
            return self.sentence
        return (
            f"a daemon is running (pid {pid}), but nobody answers at {socket_path()}: it has just begun or is about to "
            "end, or the socket was removed; next: try again, and if that does not help, `weave stop`, `weave launch` "
            "(containers keep their network)"
        )


class Unanswered(Ended):
    """A daemon is there and says nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__(LIMIT, f"no answer from the daemon within {seconds:.0f} s; next: see its log, {LOG_PATH}")

    def told(self) -> str:
        from weavenet.cli.unheard import running_pid

        pid = running_pid()
        if pid is None:
            return self.sentence
        return (
            f"{self.sentence}, and try again; if that does not help: kill -9 {pid}; weave launch "
            "(containers keep their network)"
        )


class Reply:
    """``body`` as sent; ``json()`` when it is needed."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    def json(self) -> dict[str, object]:
        import json

        value = json.loads(self.body)
        return value if isinstance(value, dict) else {}


class Call:
    """One request in flight. Closing it before the reply cancels the command in the daemon."""

    def __init__(self, method: str, path: str, body: object = None) -> None:
        content = b""
        if body is not None:
            import json

            content = json.dumps(body).encode()
        self._received = b""
        self._socket = _connect()
        head = f"{method} {path} HTTP/1.1\r\nHost: weave\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        try:  # noqa: SIM105 - contextlib is not worth its import here
            self._socket.sendall(head.encode() + content)
        except OSError:
            pass  # refused before it read the request: the answer says why

    def wait(self, seconds: float | None) -> Reply | None:
        """The reply, or None when it has not come within ``seconds`` (None: no limit). May be called again."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                return self._reply()
            self._received += data
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def _reply(self) -> Reply:
        head, _, body = self._received.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise Ended(
                ERROR,
                "the daemon ended before it answered: it was stopped, or failed; next: `weave status`, and its log, "
                f"{LOG_PATH}",
            )
        return Reply(int(words[1]), body)

    def close(self) -> None:
        self._socket.close()


def _connect() -> socket.socket:
    path = socket_path()
    sock = socket.socket(socket.AF_UNIX)
    patience = (number.to_bytes(8, sys.byteorder) for number in divmod(int(ANSWER_TIMEOUT_S * 1e6), 1_000_000))
    # unix(7): while the backlog of a daemon that hangs is full, connect waits. (With a timeout of Python's it would not
    # wait at all, and fail while many ask at once.)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, b"".join(patience))
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NotRunning from None
    except BlockingIOError:
        sock.close()
        raise Unanswered(ANSWER_TIMEOUT_S) from None
    except PermissionError:
        sock.close()
        raise Ended(ERROR, f"only root may use {path}; next: sudo weave …") from None
    except OSError as error:
        sock.close()
        raise Ended(ERROR, f"cannot use the control socket {path}: {error.strerror or error}") from None
    return sock


def ask(method: str, path: str, body: object = None, *, timeout_s: float | None = ANSWER_TIMEOUT_S) -> Reply:
    """One request, one successful reply. Raises Ended: not running, refused by the daemon, or no answer in time."""
    call = Call(method, path, body)
    try:
        reply = call.wait(timeout_s)
    finally:
        call.close()
    if reply is None:
        raise Unanswered(timeout_s or 0.0)
    return checked(reply)


def checked(reply: Reply) -> Reply:
    """The reply when it is a success; raises Ended with the daemon's sentence otherwise."""
    if reply.status == 200:
        return reply
    from weavenet.cli.outcome import sentence_of, status_of

    try:
        failure = reply.json()
    except ValueError:
        failure = {
            "expected": f"the daemon answered {reply.status}",
            "found": reply.body[:200].decode("utf-8", "replace"),
        }
    raise Ended(status_of(str(failure.get("code", ""))), sentence_of(failure))
