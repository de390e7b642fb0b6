"""Runs a command again and again and prints the wall time of each run as JSON (milliseconds).

Run inside a lab host, so that entering the host is not part of the measurement:
``python -m bench.repeat COUNT COMMAND…``. Fails when the command does.
"""

from __future__ import annotations

import json
import os
import sys
import time


def once(argv: list[str]) -> float:
    """posix_spawn: this process's size does not count."""
    null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=null)
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter() - started
    if status != 0:
        sys.exit(f"{' '.join(argv)}: exit {os.waitstatus_to_exitcode(status)}")
    return elapsed * 1000


if __name__ == "__main__":
    print(json.dumps([once(sys.argv[2:]) for _ in range(int(sys.argv[1]))]))
