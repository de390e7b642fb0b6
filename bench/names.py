"""How long a name is answered after its container is gone: on every host, through the DNS server there.

A container on each of three hosts asks its DNS server every few milliseconds for a name; the container that has it is
detached, or its namespace is deleted. Counted from the start of that command to the first answer without the address,
the slowest host counts.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from bench.gate import Gate
from bench.hosts import PYTHON, Failed, Host, lab, launch, open_paths, wait_for
from bench.options import Options
from bench.table import Result, percentile, verdict

HOSTS = 3
BAR_MS = 1000.0
PATIENCE_S = 10.0
ASKER = """
import socket, struct, sys, time
name, address, patience = sys.argv[1], socket.inet_aton(sys.argv[2]), float(sys.argv[3])
labels = b"".join(bytes([len(label)]) + label.encode() for label in f"{name}.weave.local".split("."))
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(0.2)
asker.connect(("169.254.53.53", 53))
end, number, was_there = time.time() + patience, 0, False
while time.time() < end:
    number = number + 1 & 0xFFFF
    asker.send(struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + labels + bytes([0, 0, 1, 0, 1]))
    answer = b""
    try:
        while answer[:2] != number.to_bytes(2, "big"):  # else a late answer would make every next one late
            answer = asker.recv(4096)
    except OSError:
        continue
    if (address in answer) != was_there:
        print(time.time(), flush=True)
        if was_there:
            break
        was_there = True
    time.sleep(0.002)
"""


def detach(host: Host, name: str) -> None:
    host.run("weave", "detach", f"netns:{name}")


def delete(host: Host, name: str) -> None:
    host.run("ip", "netns", "delete", name)


def gone_after_ms(hosts: list[Host], name: str, end: Callable[[Host, str], None]) -> float:
    """Until the slowest host has stopped answering for a new container of the first one."""
    address = hosts[0].add_container(name)
    argv = (PYTHON, "-I", "-S", "-c", ASKER, name, address, str(PATIENCE_S))
    askers = [subprocess.Popen(host.in_container("probe", *argv), stdout=subprocess.PIPE, text=True) for host in hosts]
    for asker in askers:
        assert asker.stdout is not None
        if not asker.stdout.readline():
            raise Failed(f"{name} was not answered within {PATIENCE_S:.0f} s")
    began = time.time()
    end(hosts[0], name)
    last = [asker.communicate(timeout=2 * PATIENCE_S)[0].strip() for asker in askers]
    if not all(last):
        raise Failed(f"{name} was answered {PATIENCE_S:.0f} s after its end")
    return (max(map(float, last)) - began) * 1000


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(10, quick=2)
    rows = []
    with lab(HOSTS, gate) as hosts:
        launch(hosts)
        hosts[0].run("weave", "consense")
        for host in hosts:
            host.add_container("probe")
        wait_for(lambda: all(open_paths(host.report()) == HOSTS - 1 for host in hosts), "the data paths are in use")
        for what, end in (("`weave detach`", detach), ("`ip netns delete`", delete)):
            options.progress(f"names: {what}")
            found = [gone_after_ms(hosts, f"{end.__name__}{number}", end) for number in range(count)]
            worst = max(found)
            median = f"{percentile(found, 50):.0f}"
            rows.append((what, median, f"{worst:.0f}", verdict(worst, BAR_MS, at_least=False)))
    notes = [f"{count} containers each, {HOSTS} hosts, the slowest host counts; the command's own time is included"]
    return Result(("", "median ms", "worst ms", "bar"), rows, notes)
