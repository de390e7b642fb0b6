"""/etc/hosts of a container, where that was asked for: a marked block of ours, the rest as it is.

For ``netns:NAME`` it is /etc/netns/NAME/hosts, which ``ip netns exec`` shows in place of /etc/hosts (ip-netns(8)); it
is made if it does not exist, and removed when nothing but ours was in it. For ``pid:N`` it is the file that the process
sees, if that is not this host's. Files are rewritten in place: others may have them mounted.

We are root, and what a process sees at /etc/hosts is its container's to choose. So there is refused: what is no plain
file, which could make us wait; a symbolic link in the place of either name, which may lead out by way of /proc; and in
a user namespace, whose root may mount there whatever it can read, what does not belong to that root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from weavenet.core.commands import Attachment
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import HOSTS_FILE_BYTES_MAX
from weavenet.core.names.spelling import name_problem
from weavenet.host import netns

BEGIN, END = "# created by Weave - BEGIN", "# created by Weave - END"
NAMED = Path("/etc/netns")
HOSTS = Path("/etc/hosts")
LOCALHOST = ("127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback")
CLONE_NEWNS, CLONE_FS = 0x0002_0000, 0x0000_0200
_libc = ctypes.CDLL(None, use_errno=True)


def parse_entries(texts: Iterable[str]) -> tuple[str, ...]:
    """``NAME:ADDRESS`` each, checked. Raises WeaveError."""
    found = []
    for text in texts:
        name, _, address = text.partition(":")
        try:
            ipaddress.ip_address(address)
            problem = name_problem(name)
        except ValueError as error:
            problem = str(error)
        if problem:
            expected, step = "expected NAME:ADDRESS for /etc/hosts", "write it like db:192.0.2.7"
            raise WeaveError(Failure(Code.INVALID, expected, f"{text[:100]!r}: {problem}", step))
        found.append(text)
    return tuple(dict.fromkeys(found))


def lines_of(attachment: Attachment) -> list[str]:
    """What our block says of ``attachment``."""
    name = attachment.hosts_name.removesuffix(".")
    names = f"{name} {name.partition('.')[0]}"
    own = [f"{address.partition('/')[0]} {names}" for address in attachment.addresses] if name else []
    extra = [text.partition(":") for text in attachment.hosts]
    return own + [f"{address} {name}" for name, _, address in extra]


def with_block(text: str, lines: Iterable[str]) -> str:
    """``text`` with our block at the top, in place of one that it had."""
    rest = without_block(text)
    has_localhost = any("localhost" in line.partition("#")[0].split() for line in rest.splitlines())
    block = [BEGIN, *lines, *(() if has_localhost else LOCALHOST), END]
    return "".join(f"{line}\n" for line in block) + rest


def without_block(text: str) -> str:
    kept: list[str] = []
    is_ours = False
    for line in text.splitlines(keepends=True):
        if line.strip() == BEGIN:
            is_ours = True
        elif line.strip() == END and is_ours:
            is_ours = False
        elif not is_ours:
            kept.append(line)
    return "".join(kept)


def write(container: netns.Container, attachment: Attachment) -> None:
    """Bring the file in line with ``attachment``. Raises WeaveError."""
    lines = lines_of(attachment)
    _change(container.reference, lambda text: with_block(text, lines), container.pidfd)


def clear(reference: str) -> None:
    """Take our block out, if there is any. Raises WeaveError."""
    _change(reference, without_block)


def _change(reference: str, change: Callable[[str], str], pidfd: int | None = None) -> None:
    kind, value = netns.parse_reference(reference)
    try:
        if kind == "name":
            _rewrite(NAMED / value / "hosts", change)
            return
        if kind == "pid":
            _inside(int(value), pidfd, lambda root: _rewrite(HOSTS, change, root))
            return
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(reference, str(error)) from error
    raise _refused(reference, "a path says nothing about files; use netns:NAME or pid:N")


def _refused(reference: str, found: str) -> WeaveError:
    return WeaveError(
        Failure(
            Code.HOST, f"expected {reference} to have an /etc/hosts of its own", found, "attach without --rewrite-hosts"
        )
    )


def _rewrite(path: Path, change: Callable[[str], str], root: int | None = None) -> None:
    """``root``: as for :func:`_open`."""
    data = _read(path, root)
    if len(data) > HOSTS_FILE_BYTES_MAX:
        raise OSError(f"{path} has more than {HOSTS_FILE_BYTES_MAX} bytes")
    before = data.decode()
    after = change(before)
    if after == before:
        return
    if not after and path != HOSTS:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
        return
    if path != HOSTS:
        path.parent.mkdir(parents=True, exist_ok=True)
    data = after.encode()
    try:
        descriptor = _open(path, os.O_RDWR, root)
    except FileNotFoundError:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, root)
    with open(descriptor, "wb") as file:
        _make_room(descriptor, len(data))
        file.write(data)
        file.truncate()


def _make_room(descriptor: int, size_bytes: int) -> None:
    """So that on a full disk nothing is lost of what was there. Raises OSError."""
    try:
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # not every file system can
            raise


def _read(path: Path, root: int | None) -> bytes:
    """At most a byte more than is allowed. Raises OSError."""
    try:
        descriptor = _open(path, os.O_RDONLY, root)
    except FileNotFoundError:
        return b""
    with open(descriptor, "rb") as file:
        return file.read(HOSTS_FILE_BYTES_MAX + 1)


def _open(path: Path, flags: int, root: int | None) -> int:
    """``root`` None: the path is this host's own. Else it is a container's to choose, whose root is this user of the
    host. Raises OSError."""
    stay = 0 if root is None else os.O_NOFOLLOW
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | stay)
        try:
            if root and flags & os.O_CREAT and os.fstat(folder).st_uid != root:
                raise OSError(f"{path.parent} does not belong to the container's root")
            descriptor = os.open(path.name, flags | os.O_NONBLOCK | os.O_CLOEXEC | stay, 0o644, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if stay and error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(f"{path} is reached by a symbolic link") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        problem = "is no plain file"
    elif root and not flags & os.O_CREAT and status.st_uid != root:
        problem = "does not belong to the container's root"
    else:
        return descriptor
    os.close(descriptor)
    raise OSError(f"{path} {problem}")


def _inside(pid: int, pidfd: int | None, action: Callable[[int], None]) -> None:
    """Run ``action`` among the files that process ``pid`` sees, in a thread that ends there; it is told who the root of
    the process is outside. ``pidfd``: of the process that is meant, if that is known. Raises OSError."""
    process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        theirs = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            root = _root_of(process)
            if pidfd is not None and netns.has_ended(pidfd):  # the number may be somebody else's by now
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            _among(theirs, lambda: action(root))
        finally:
            os.close(theirs)
    finally:
        os.close(process)


def _root_of(process: int) -> int:
    """As which user of this host the process's user namespace sees its root (user_namespaces(7))."""
    with open(os.open("uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)) as file:
        for line in file:
            inside, outside, _ = map(int, line.split())
            if inside == 0:
                return outside
    raise OSError("its user namespace has no root")


def _among(theirs: int, action: Callable[[], None]) -> None:
    """Run ``action`` in the mount namespace ``theirs``. Raises OSError."""
    ours = _files_of_this_host()

    def run() -> None:
        # setns(2): a thread that shares its root directory with others cannot change its mount namespace
        if _libc.unshare(CLONE_FS) != 0 or not netns.enter(theirs, CLONE_NEWNS):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        if ours & _which(Path("/")):
            raise OSError("it sees the files of this host")
        action()

    netns.apart(run, "hosts")


def _files_of_this_host() -> set[tuple[int, int]]:
    """As we see them and as PID 1 does: a service manager may have given us mounts of our own. Mount namespaces say
    nothing about it, since a process with one of its own sees the same files until something is mounted over them."""
    return _which(Path("/")) | _which(Path("/proc/1/root"))


def _which(root: Path) -> set[tuple[int, int]]:
    """The hosts file, or the folder where it would be made, as (device, inode)."""
    for path in (root / "etc/hosts", root / "etc"):
        with contextlib.suppress(OSError):
            status = path.stat()
            return {(status.st_dev, status.st_ino)}
    return set()
