"""``python -m weavenet.dns FD``: the worker, started by the daemon. FD: a bound unix socket, on which to listen for
the daemon and those that come after it."""

from __future__ import annotations

import gc
import resource
import socket
import sys

from weavenet.dns.worker import Worker

OPEN_FILES = 8192
"""Upstream exchanges (9 for each of 300 flights), TCP connections, and room."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("expected a descriptor; `weave launch` starts this process", file=sys.stderr)
        return 1
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    worker = Worker(socket.socket(fileno=int(arguments[0])))
    gc.freeze()
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
