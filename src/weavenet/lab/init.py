"""PID 1 of a lab host, and the keeper of a lab's underlay. Run as a script by path, with the standard library only.

    python -I -S init.py weave-lab <lab> <host> < specification.json

The started process makes the namespaces, forks the one that stays, waits until that one is ready, prints its process id
and ends. What stays is a reaper: it collects orphans, ends on SIGTERM, and its end is the end of the whole host.

Invariants: no mount reaches the namespace it came from; nothing is written outside the host's disk directory.
It does not configure addresses (the lab does, from outside) and forwards no signal.
"""

# pathlib would double the start time of this script.
# ruff: noqa: PTH101, PTH103, PTH104, PTH108, PTH112, PTH211
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any, NoReturn

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
# include/uapi/linux/mount.h
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000

UNIT = "/etc/systemd/system/weave.service"
UNIT_LINK = "/etc/systemd/system/multi-user.target.wants/weave.service"
VARIABLES = "/etc/default/weave"
HIDDEN = ("/run", "/tmp", "/dev/shm", "/var/log")  # what a host sees something of its own at

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(result, f"mount {kind or source} on {target}")


def _make_private() -> None:
    """Nothing mounted from here on may reach the namespace that was copied."""
    try:
        _mount("none", "/", None, MS_REC | MS_PRIVATE)
    except OSError:  # in a chroot, where / is no mount point
        with open("/proc/self/mountinfo") as table:
            points = [line.split()[4].encode().decode("unicode_escape") for line in table]
        for point in points:
            _mount("none", point, None, MS_PRIVATE)


def _bind(source: str, target: str) -> None:
    _mount(source, target, None, MS_BIND | MS_REC)


def _tmpfs(target: str, mode: str) -> None:
    _mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")


def _own_etc(disk: str) -> None:
    """The machine's /etc underneath, this host's files on top, kept on the host's disk."""
    layer, work = f"{disk}/etc", f"{disk}/etc-work"
    is_new = not os.path.isdir(work)
    os.makedirs(work, exist_ok=True)
    try:
        _mount("overlay", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={layer},workdir={work}")
    except OSError:  # the disk lies on a file system that cannot be an upper layer, as an overlay itself
        copy = f"{disk}/etc-copy"
        if not os.path.isdir(copy):
            subprocess.run(["cp", "-a", "/etc/.", f"{copy}.new"], check=True)
            subprocess.run(["cp", "-a", f"{layer}/.", f"{copy}.new"], check=True)
            os.rename(f"{copy}.new", copy)
        _bind(copy, "/etc")
    if is_new:  # nothing of the machine's own weave: a fresh host starts nothing, and its containers have their files
        for path in (UNIT, UNIT_LINK, VARIABLES):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        shutil.rmtree("/etc/netns", ignore_errors=True)


def _own_var_lib(disk: str) -> None:
    """/var/lib/weave is the host's disk; the mount point is made in memory, never on the machine."""
    upper, work = "/run/lab/var-lib", "/run/lab/var-lib-work"
    os.makedirs(upper)
    os.makedirs(work)
    data = os.open(f"{disk}/data", os.O_PATH)  # the disk lies below /var/lib, which is about to change
    _mount("overlay", "/var/lib", "overlay", 0, f"lowerdir=/var/lib,upperdir={upper},workdir={work}")
    os.makedirs("/var/lib/weave", mode=0o700, exist_ok=True)
    _bind(f"/proc/self/fd/{data}", "/var/lib/weave")
    os.close(data)
    if os.path.isdir("/var/lib/weave-lab"):
        _tmpfs("/var/lib/weave-lab", "0700")  # a host does not see the disks of the others


def _build_host(spec: dict[str, Any]) -> None:
    """Gives this mount namespace the view of a host of its own."""
    disk = spec["disk"]
    _make_private()
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    hidden = [folder for folder in HIDDEN if os.path.isdir(folder)]
    # A checkout or an interpreter below a hidden folder (/tmp/clone) stays visible at its path.
    kept = [
        (path, os.open(path, os.O_PATH))
        for path in spec["visible"]
        if any(path.startswith(f"{folder}/") for folder in hidden)
    ]
    with open(f"{disk}/boot-id", "w") as boot_id:
        boot_id.write(spec["boot_id"] + "\n")
    _bind(f"{disk}/boot-id", "/proc/sys/kernel/random/boot_id")
    _bind(f"{disk}/log", "/var/log")
    _tmpfs("/run", "0755")
    _tmpfs("/tmp", "1777")
    if "/dev/shm" in hidden:
        _tmpfs("/dev/shm", "1777")
    os.makedirs("/run/lock")
    os.makedirs("/run/lab/bin")
    if spec["launcher"]:
        os.symlink(spec["launcher"], "/run/lab/bin/weave")
    else:  # installed as a package: no checkout, the interpreter has the code
        with open("/run/lab/bin/weave", "w") as script:
            script.write(f'#!/bin/sh\nexec {spec["python"]} -c "from weavenet.cli.main import main; main()" "$@"\n')
        os.chmod("/run/lab/bin/weave", 0o755)
    _own_etc(disk)
    _own_var_lib(disk)
    for path, descriptor in kept:
        os.makedirs(path, exist_ok=True)
        _bind(f"/proc/self/fd/{descriptor}", path)
        os.close(descriptor)
    name = spec["host"].encode()
    _checked(_libc.sethostname(name, len(name)), "sethostname")
    os.chdir("/")


def _reap_until_terminated() -> NoReturn:
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
    while True:
        if signal.sigwait(watched) != signal.SIGCHLD:
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _stay(spec: dict[str, Any], ready: int) -> NoReturn:
    """The process that remains. Never returns; an error while building goes to the one who waits."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
        if spec["kind"] == "host":
            _build_host(spec)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.write(ready, b"ready")
        os.closerange(3, 1024)
    except BaseException as problem:
        os.write(ready, f"{type(problem).__name__}: {problem}".encode())
        os._exit(1)
    _reap_until_terminated()


def main() -> int:
    spec = json.load(sys.stdin)
    if shutil.which("cp") is None:
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    namespaces = CLONE_NEWNET
    if spec["kind"] == "host":
        namespaces |= CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    waiting, ready = os.pipe()
    _checked(_libc.unshare(namespaces), "unshare")
    child = os.fork()
    if child == 0:
        os.close(waiting)
        _stay(spec, ready)
    os.close(ready)
    word = os.read(waiting, 4096).decode()
    if word != "ready":
        print(word or "ended without a word", file=sys.stderr)
        os.waitpid(child, 0)
        return 1
    print(child, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
