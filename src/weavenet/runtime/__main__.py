"""``python -m weavenet.runtime [--ready-fd N]``: settings as JSON on standard input, one line of JSON back.

The line is ``{"ready": true, "name": …, "pid": …, "warnings": […]}`` or ``{"failure": {…}}`` on descriptor N, which
is closed afterwards. Exit status: 0 after a clean stop, 1 after a failure, 3 when another daemon is running. Meant for
``weave launch``.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from typing import NoReturn

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError

OPEN_FILES = 65_536
EXIT_FAILED, EXIT_RUNNING = 1, 3


class Announcement:
    """The one line to whoever launched us."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, line: object) -> None:
        """First call only; a launcher that went away is no reason to fail."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
            os.close(descriptor)
        except OSError:
            return


def _ready_descriptor(arguments: list[str]) -> int | None:
    if not arguments:
        return None
    if len(arguments) == 2 and arguments[0] == "--ready-fd" and arguments[1].isdigit():
        os.set_inheritable(int(arguments[1]), False)
        return int(arguments[1])
    raise WeaveError(
        Failure(Code.INVALID, "expected no argument or --ready-fd N", " ".join(arguments), "use `weave launch`")
    )


START_SWITCH_S = 0.0005
"""How long another thread may keep the event loop from running until we are ready: at the default of 5 ms each step of
a handshake would wait that long for the imports of the host part. Afterwards the default serves better: commits in the
store's thread and the event loop take turns by themselves; a short interval cost 14 % of the allocations per second."""


UMASK = 0o022
"""Whoever launches us may have another: then a container's /etc/hosts could be read by root alone, or what a worker
says be written by anybody. What is secret has a mode of its own."""


def _run(announcement: Announcement) -> None:
    os.umask(UMASK)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored ones, as some parents leave them, cannot be waited for
    gc.disable()  # nothing of what imports make is garbage; enabled when the daemon is ready
    from weavenet.runtime.foundation import Foundation
    from weavenet.runtime.settings import decode_settings

    settings = decode_settings(sys.stdin.buffer.read())
    foundation = Foundation.lay(settings)

    import asyncio

    from weavenet.runtime import logs
    from weavenet.runtime.daemon import Daemon

    try:
        logs.configure(settings)
    except WeaveError:
        foundation.close()
        raise

    switch_s = sys.getswitchinterval()

    def ready(name: str) -> None:
        sys.setswitchinterval(switch_s)
        announcement.say({"ready": True, "name": name, "pid": os.getpid(), "warnings": foundation.warnings})

    async def live() -> None:
        await Daemon(foundation, ready).run()

    sys.setswitchinterval(START_SWITCH_S)
    asyncio.run(live())


def _status(arguments: list[str]) -> int:
    announcement = Announcement(None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, OPEN_FILES), hard), hard))
    try:
        announcement = Announcement(_ready_descriptor(arguments))
        _run(announcement)
    except WeaveError as error:
        from weavenet.runtime.lock import AlreadyRunning

        announcement.say({"failure": error.failure})
        print(error, file=sys.stderr)
        return EXIT_RUNNING if isinstance(error, AlreadyRunning) else EXIT_FAILED
    return 0


def main(arguments: list[str]) -> NoReturn:
    """The whole process."""
    status = _status(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a resolver thread may hang in getaddrinfo for a minute; nothing is left to be cleaned up


if __name__ == "__main__":
    main(sys.argv[1:])
