"""A DNS worker as the daemon starts it, on a loopback address, and an upstream that does as it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from weavenet.dns.feed import (
    AskStatus,
    Configure,
    Frames,
    Listen,
    Listening,
    Name,
    Names,
    Status,
    Stop,
    ToDaemon,
    encode,
)

DEADLINE_S = 20.0


class WorkerProcess:
    """Listens on ``host`` at a port of the system's choice; ``upstreams``: lines of its resolv.conf."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", upstreams: str = "") -> None:
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text(upstreams)
        self.host, self.port = host, free_port(host)
        self.socket = folder / "dns.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self.socket))
            descriptor = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "weavenet.dns", str(descriptor)], pass_fds=[descriptor]
            )
        wait_for(self.connects, "the worker listens")
        listen = (Listen(self.host, self.port),)
        self.configuration = Configure("weave.local.", 1, ("10.32.0.0/12",), listen, str(self.resolv_conf))
        self.configure()

    def connects(self) -> bool:
        """To a worker that listens."""
        feed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        feed.settimeout(DEADLINE_S)
        try:
            feed.connect(str(self.socket))
        except OSError:
            feed.close()
            return False
        self.feed, self._frames = feed, Frames()
        return True

    def configure(self) -> None:
        """What a daemon says first."""
        self.send(self.configuration)
        listening = self.hear()
        assert isinstance(listening, Listening)
        assert listening.open == self.configuration.listen, listening

    def send(self, message: Configure | Names | AskStatus | Stop) -> None:
        self.feed.sendall(encode(message))

    def hear(self) -> ToDaemon:
        while (body := self._frames.next()) is None:
            data = self.feed.recv(65_536)
            assert data, "the worker ended"
            self._frames.add(data)
        return msgspec.msgpack.decode(body, type=ToDaemon)

    def status(self) -> Status:
        """Everything sent before is in force when this returns."""
        self.send(AskStatus())
        while not isinstance(message := self.hear(), Status):
            pass
        return message

    def set_names(self, names: dict[str, list[bytes]], *, whole: bool = True) -> None:
        self.send(Names(whole, whole, tuple(Name(name, tuple(found)) for name, found in names.items())))
        self.status()

    def resident_kb(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError("no such process")

    def close(self) -> None:
        """The worker ends when it is told to, by itself and without complaint."""
        self.send(Stop())
        assert self.process.wait(DEADLINE_S) == 0
        self.feed.close()


@contextlib.contextmanager
def worker(folder: Path, host: str = "127.0.0.1", upstreams: str = "") -> Iterator[WorkerProcess]:
    started = WorkerProcess(folder, host, upstreams)
    try:
        yield started
        started.close()
    finally:
        started.process.kill()
        started.process.wait()


def free_port(host: str) -> int:
    """Free on UDP and TCP when we looked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family, socket.SOCK_STREAM) as tcp:
            udp.bind((host, 0))
            port: int = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind((host, port))
                return port


def has_address(host: str) -> bool:
    try:
        free_port(host)
    except OSError:
        return False
    return True


class FakeUpstream:
    """Answers over UDP and TCP, port 53 of an address of 127.0.0.0/8, with what ``answer`` makes of a query: messages
    to send, none for silence."""

    def __init__(self, host: str, answer: Callable[[bytes, bool], list[bytes]]) -> None:
        self.host = host
        self.answer = answer
        self.ports: list[int] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((host, 53))
        self._tcp = socket.create_server((host, 53))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, client = self._udp.recvfrom(4096)
                if not query:
                    return
                self.ports.append(client[1])
                for message in self.answer(query, False):
                    self._udp.sendto(message, client)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection:
                    query = connection.recv(4096)
                    for message in self.answer(query[2:], True) if query else []:
                        connection.sendall(len(message).to_bytes(2, "big") + message)

    def close(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", (self.host, 53))
        with contextlib.suppress(OSError):
            socket.create_connection((self.host, 53), 1).close()
        self._udp.close()
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()
        for thread in self._threads:
            thread.join(5)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.02)


def is_root() -> bool:
    return os.geteuid() == 0
