"""Traffic between containers that shows more than a ping: checksummed transfers, multicast, filtered UDP."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from weavenet.lab.host import Container, Host
from weavenet.lab.waiting import wait_until

PYTHON = sys.base_prefix + "/bin/python3"
PORT = 7777
GROUP = "239.7.7.7"

_ECHO = """
import select, socket, threading
t = socket.create_server(("", {port}), backlog=64)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
u.bind(("", {port}))
def serve(c):
    with c:
        while data := c.recv(65536):
            c.sendall(data)
print("ready", flush=True)
while True:
    for s in select.select([t, u], [], [])[0]:
        if s is u:
            data, who = u.recvfrom(65535)
            u.sendto(data, who)
        else:
            threading.Thread(target=serve, args=(t.accept()[0],), daemon=True).start()
"""

_ASK = """
import hashlib, os, socket, sys
host, kind, size, port = sys.argv[1], sys.argv[2], int(sys.argv[3]), {port}
for attempt in range(5):
    data = os.urandom(size)
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((host, port))
    back = b""
    try:
        if kind == "udp":
            s.send(data)
            back = s.recv(65535)
        else:
            import threading
            threading.Thread(target=s.sendall, args=(data,), daemon=True).start()
            while len(back) < size and (part := s.recv(65536)):
                back += part
    except TimeoutError:
        continue  # a datagram may be lost; what comes back has to be right
    if hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
        sys.exit("damaged: %d of %d bytes came back" % (len(back), size))
    print("intact")
    sys.exit(0)
sys.exit("nothing came back")
"""

_LISTEN = """
import json, socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("{group}", {port}))
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("{group}") + socket.inet_aton(sys.argv[1]))
print("ready", flush=True)
found = {{}}
s.settimeout(60)
try:
    while True:
        number = s.recv(100).decode()
        if number == "end":
            break
        found[number] = found.get(number, 0) + 1
except TimeoutError:
    pass
print(json.dumps(found), flush=True)
"""

_SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 4)
for number in range(int(sys.argv[2])):
    s.sendto(str(number).encode(), ("{group}", {port}))
    time.sleep(0.01)
time.sleep(1)
for _ in range(5):
    s.sendto(b"end", ("{group}", {port}))
    time.sleep(0.05)
"""


@contextmanager
def echo(container: Container) -> Any:
    """A server in ``container`` that sends back what it gets, over TCP and UDP."""
    running = container.popen([PYTHON, "-u", "-c", _ECHO.format(port=PORT)])
    try:
        assert running.process.stdout is not None
        assert running.process.stdout.readline().strip() in ("ready", b"ready")
        yield
    finally:
        running.stop()


def assert_intact(source: Container, address: str, kind: str, size: int) -> None:
    """``size`` random bytes to the echo at ``address`` and back are the same."""
    done = source.run([PYTHON, "-c", _ASK.format(port=PORT), address, kind, str(size)], timeout_s=120)
    assert done.returncode == 0, f"{kind} {size} from {source.name} to {address}: {done.stdout}{done.stderr}"


def multicast(sender: tuple[Container, str], receivers: Sequence[tuple[Container, str]], count: int) -> dict[str, Any]:
    """Container name → how often it got which of ``count`` numbered datagrams."""
    listening = [
        (container, container.popen([PYTHON, "-u", "-c", _LISTEN.format(group=GROUP, port=PORT), address]))
        for container, address in receivers
    ]
    try:
        for _, running in listening:
            assert running.process.stdout is not None
            assert running.process.stdout.readline().strip() in ("ready", b"ready")
        done = sender[0].run([PYTHON, "-c", _SEND.format(group=GROUP, port=PORT), sender[1], str(count)], timeout_s=120)
        assert done.returncode == 0, done.stderr
        return {
            container.name: json.loads(running.process.stdout.readline())
            for container, running in listening
            if running.process.stdout is not None
        }
    finally:
        for _, running in listening:
            running.stop()


def block_udp(host: Host, port: int, *others: Host) -> None:
    """What ``host`` sends to UDP ``port`` of ``others``, and they to it, is dropped at ``host``."""
    rules = ["add table inet filtered"]
    rules += [
        f"add chain inet filtered {hook} {{ type filter hook {hook} priority -20; }}" for hook in ("input", "output")
    ]
    for other in others:
        rules.append(f"add rule inet filtered input ip saddr {other.address} udp dport {port} drop")
        rules.append(f"add rule inet filtered output ip daddr {other.address} udp dport {port} drop")
    script = "\n".join(rules).replace("'", "")
    host.run(["sh", "-c", f"echo '{script}' | nft -f -"], check=True)


def unblock_udp(host: Host) -> None:
    host.run(["nft", "delete", "table", "inet", "filtered"], check=True)


def wait_for_plane(host: Host, other: Host, text: str, deadline_s: float = 60.0) -> None:
    """Until `weave status connections` of ``host`` shows ``text`` in the line of ``other``."""

    def shown() -> bool:
        lines = host.weave("status", "connections").stdout.splitlines()
        return any(text in line and f"({other.name})" in line for line in lines)

    wait_until(shown, deadline_s, f"{text} to {other.name} in the connections of {host.name}")
