"""Network namespaces: entering them and finding the one that a container reference means.

Invariants: the calling thread never changes namespace; whatever must run inside runs in a thread of its own that dies
afterwards, so no pooled thread is ever left in a foreign namespace (setns(2) acts per thread). A resolved container
holds the namespace by file descriptor: it cannot be swapped under us when a name is deleted and made again.

Python 3.11 has neither ``os.setns`` nor ``os.unshare``, hence ctypes. This module creates no named namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import IDENT_BYTES_MAX

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl_ns(2): answers the CLONE_NEW* flag of a namespace file."""
NAMED = Path("/run/netns")

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def enter(namespace: int, kind: int) -> bool:
    """Move the calling thread, which must end there, into ``namespace`` of the CLONE_NEW* flag ``kind``."""
    return bool(_libc.setns(namespace, kind) == 0)


def apart(work: Callable[[], T], name: str) -> T:
    """What ``work`` returns or raises, in a thread of that name which ends with it, so that nobody else is left in the
    namespace it enters. Blocks the caller: for work that takes microseconds, or from a worker thread."""
    outcome: list[T] = []
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
    return outcome[0]


def call(namespace: int | None, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises inside the network ``namespace`` (a file descriptor; None: where we are).
    Blocks like :func:`apart`."""
    if namespace is None:
        return function()

    def inside() -> T:
        _check(_libc.setns(namespace, CLONE_NEWNET), "setns")
        return function()

    return apart(inside, "netns")


def create() -> int:
    """A fresh namespace without a name, as a file descriptor; it lives as long as the descriptor or what is in it."""

    def inside() -> int:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return apart(inside, "netns-create")


@contextmanager
def scratch() -> Iterator[int]:
    """A namespace that is gone after the block."""
    descriptor = create()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def identity(descriptor: int) -> tuple[int, int]:
    """(device, inode): equal exactly for the same namespace."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def own() -> int:
    """File descriptor of the namespace that we are in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def is_network_namespace(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


class Container:
    """A container reference resolved to a live namespace. Close it; ``pidfd`` is None unless it was ``pid:N``."""

    def __init__(self, reference: str, ident: str, namespace: int, pidfd: int | None = None) -> None:
        self.reference = reference
        self.ident = ident
        self.namespace = namespace
        self.pidfd = pidfd

    def close(self) -> None:
        for descriptor in (self.namespace, self.pidfd):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self.namespace, self.pidfd = -1, None

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_reference(reference: str) -> tuple[str, str]:
    """(kind, value) with kind ``name``, ``path`` or ``pid``. Raises WeaveError for anything else."""
    kind, _, value = reference.partition(":")
    if kind == "netns" and value.startswith("/"):
        return "path", value
    if kind == "netns" and value and "/" not in value and value not in (".", "..") and ":" not in value:
        if len(value.encode()) > IDENT_BYTES_MAX:
            raise WeaveError(
                Failure(Code.INVALID, f"expected a name of at most {IDENT_BYTES_MAX} bytes", reference[:200])
            )
        return "name", value
    if kind == "pid" and value.isascii() and value.isdigit() and len(value) < 20 and 0 < int(value) < 2**31:
        return "pid", str(int(value))
    raise WeaveError(
        Failure(
            Code.INVALID,
            "expected a container as netns:NAME, netns:/path or pid:N",
            repr(reference[:200]),
            "see `ip netns list` for names",
        )
    )


def resolve(reference: str, host: int | None = None) -> Container:
    """Open what ``reference`` means. ``host`` is this host's own namespace (None: ours), which is refused.

    Raises WeaveError: invalid, not found, no network namespace, the host's own.
    """
    kind, value = parse_reference(reference)
    if kind == "pid":
        container = _resolve_pid(reference, value)
    else:
        container = _resolve_file(reference, kind, Path(value) if kind == "path" else NAMED / value)
    try:
        _refuse_host(container, host)
    except WeaveError:
        container.close()
        raise
    return container


def _missing(reference: str, found: str, next_step: str) -> WeaveError:
    return WeaveError(Failure(Code.NOT_FOUND, f"{reference} must exist", found, next_step))


def _resolve_file(reference: str, kind: str, path: Path) -> Container:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _missing(reference, f"{path}: {error.strerror}", "see `ip netns list`") from error
    if not is_network_namespace(descriptor):
        os.close(descriptor)
        expected, step = f"{reference} must be a network namespace", "see `ip netns list`, or use pid:N"
        raise WeaveError(Failure(Code.INVALID, expected, f"{path} is something else", step))
    ident = path.name if kind == "name" else f"netns-{identity(descriptor)[1]}"
    return Container(reference, ident, descriptor)


def _resolve_pid(reference: str, value: str) -> Container:
    pid = int(value)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _missing(reference, f"no process {pid} ({error.strerror})", "see `ps`") from error
    descriptor = -1
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        started = start_time(pid)
        if has_ended(pidfd):  # else what we opened could belong to a process that took over the number
            raise ProcessLookupError
    except OSError as error:
        os.close(pidfd)
        if descriptor >= 0:
            os.close(descriptor)
        raise _missing(reference, f"process {pid} has ended or is not ours to see", "see `ps`") from error
    return Container(reference, f"pid-{identity(descriptor)[1]}-{started}", descriptor, pidfd)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (clock ticks since boot); the command name before it may contain anything."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(text[text.rindex(")") + 2 :].split()[19])


def has_ended(pidfd: int) -> bool:
    """Whether the process behind ``pidfd`` has terminated (a zombie has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _refuse_host(container: Container, host: int | None) -> None:
    ours = own() if host is None else host
    try:
        same = identity(container.namespace) == identity(ours)
    finally:
        if host is None:
            os.close(ours)
    if same:
        raise WeaveError(
            Failure(
                Code.INVALID,
                "expected a container with a network namespace of its own",
                f"{container.reference} uses this host's",
                "start it with its own network namespace",
            )
        )
