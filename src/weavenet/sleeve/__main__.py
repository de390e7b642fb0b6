"""Runs a worker: ``python -m weavenet.sleeve --tap NAME --port N --socket PATH [--host ADDRESS]``.

In the network namespace in which it is started. It prints why it could not start and, once a minute at most, which
datagram it could not handle. It gets no secrets.
"""

from __future__ import annotations

import argparse
import sys

from weavenet.sleeve.feed import Listener
from weavenet.sleeve.tap import open_tap
from weavenet.sleeve.udp import UdpSocket
from weavenet.sleeve.worker import Worker


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="weave-sleeve", description="The encrypted data path; started by the daemon.")
    parser.add_argument("--tap", required=True, help="name of the TAP device")
    parser.add_argument("--port", required=True, type=int, help="UDP port")
    parser.add_argument("--socket", required=True, help="path of the unix socket on which the daemon is awaited")
    parser.add_argument("--host", default="", help="address to bind; default: all")
    given = parser.parse_args(arguments)
    try:
        tap = open_tap(given.tap)
    except OSError as error:
        print(f"sleeve: device {given.tap}: {error}; see `ip -d link show {given.tap}`", file=sys.stderr)
        return 1
    try:
        worker = Worker(tap, UdpSocket(given.port, given.host), Listener(given.socket))
    except OSError as error:
        print(f"sleeve: UDP port {given.port}: {error}; see `ss -Hulnp sport = {given.port}`", file=sys.stderr)
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
