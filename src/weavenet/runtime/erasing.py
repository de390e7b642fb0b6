"""``program.py weavenet.runtime.erasing [--force]``: `weave reset` where no daemon runs. Settings as JSON on standard
input, one line of JSON back: ``{"text": …}`` or ``{"failure": {…}}``.

A peer that is still a member is left alone without ``--force``: only a running daemon can hand its addresses over. What
an earlier reset left behind is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import msgspec

from weavenet.core.commands import Attachment
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.leaving import Leaving, Phase, departed_disk
from weavenet.core.limits import BRIDGE, SLEEVE_DEVICE, WIREGUARD_DEVICE
from weavenet.core.names import EXPOSE
from weavenet.core.overlay import endpoints
from weavenet.core.types import PeerId, peer_text
from weavenet.runtime import identity, nameserver, sleeveworker
from weavenet.runtime.issuing import peer_id
from weavenet.runtime.lock import AlreadyRunning, Lock
from weavenet.runtime.settings import Settings, decode_settings
from weavenet.runtime.store import FILE_NAME, Rows, open_store

_MEMBER_TABLES = frozenset({"log", "ring", "alloc", "acceptor", "known"})


async def erase_host(run_dir: str) -> None:
    """End the workers that outlive a daemon, and remove what the product made in this kernel. Raises WeaveError or
    OSError."""
    from weavenet.host import wireguardprocess
    from weavenet.host.erasure import erase
    from weavenet.plane.vxlan import DEVICES

    await sleeveworker.stop_workers(run_dir)
    await nameserver.stop_workers(run_dir)
    for prefix in (sleeveworker.PREFIX, nameserver.PREFIX):
        for path in Path(run_dir).glob(f"{prefix}*"):
            path.unlink(missing_ok=True)
    await erase((*DEVICES.values(), SLEEVE_DEVICE, WIREGUARD_DEVICE))
    wireguardprocess.erase(WIREGUARD_DEVICE)


def erase_files(settings: Settings, root: Path = Path("/")) -> None:
    """Everything a daemon writes but its log. A peer name that would not be found again stays in the store. The locks
    must be held, and nobody use the store. Blocks; raises WeaveError or OSError."""
    folder = Path(settings.data_dir)
    store = open_store(folder)
    try:
        rows = store.load()
        store.write_now(departed_disk(rows))
        name = rows.get((identity.TABLE, identity.NAME), b"").decode(errors="replace")
    finally:
        store.close()
    is_derived = identity.choose_name(msgspec.structs.replace(settings, name=""), {}, root) == name
    gone = [Path(settings.lock_file), *(folder / f"{FILE_NAME}{suffix}" for suffix in ("-wal", "-shm"))]
    if is_derived or not name:
        gone.append(folder / FILE_NAME)
    gone.append(Path(settings.pid_file))
    for path in gone:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others keep something there
        folder.rmdir()


def erase(settings: Settings, *, force: bool) -> str:
    """What was done, in words. Raises WeaveError or OSError."""
    text = "nothing was left to reset"
    locks = [_lock(settings.pid_file, force=force)]
    try:
        if Path(settings.lock_file).exists():
            locks.append(_lock(settings.lock_file, force=force))
        if (Path(settings.data_dir) / FILE_NAME).exists():
            peer = _member(settings)
            if peer is not None and not force:
                raise WeaveError(
                    Failure(
                        Code.CONFLICT,
                        "expected a running daemon, which alone can hand over the addresses of this peer",
                        "weave is not running",
                        "`weave launch`, then `weave reset`; or `weave reset --force` if the others are gone",
                    )
                )
            if peer is not None:
                text = (
                    "done by force, nothing was handed over: if others know this peer, run on one of them: "
                    f"weave rmpeer {peer_text(peer)}"
                )
            asyncio.run(_forward_as_before(settings))
            erase_files(settings)
        asyncio.run(erase_host(settings.run_dir))
        Path(settings.log_file or "/nonexistent").unlink(missing_ok=True)
    finally:
        Path(settings.pid_file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(settings.run_dir).rmdir()
        for lock in locks:
            lock.release()
    return text


def _lock(path: str, *, force: bool) -> Lock:
    """Nothing is taken from under a daemon that only cannot be reached, such as one whose run directory was removed."""
    try:
        return Lock.acquire(Path(path))
    except AlreadyRunning as error:
        step = "`weave stop`, then `weave reset --force`" if force else "`weave stop`, `weave launch`, `weave reset`"
        failure = msgspec.structs.replace(
            error.failure,
            expected="expected a daemon that answers at its control socket, or none at all",
            next_step=step,
        )
        raise WeaveError(failure) from error


def _rows(settings: Settings) -> Rows:
    store = open_store(Path(settings.data_dir))
    try:
        return store.load()
    finally:
        store.close()


async def _forward_as_before(settings: Settings) -> None:
    """What an exposed host switched, as :meth:`Exposure.hide` would. After a reboot the bridge is not there, and if the
    host forwards, somebody else wants it to."""
    row = _rows(settings).get((endpoints.TABLE, EXPOSE.encode()))
    exposed = msgspec.msgpack.decode(row, type=Attachment) if row is not None else None
    if exposed is None or not exposed.forwarding_switched or BRIDGE not in (name for _, name in socket.if_nameindex()):
        return
    from weavenet.host.exposure import forward_no_more
    from weavenet.host.kernel import Kernel

    async with await Kernel.open() as kernel:
        forward_no_more(kernel, redirects_accepted=exposed.redirects_accepted)


def _member(settings: Settings) -> PeerId | None:
    """Who this host is in a cluster; None when it is in none."""
    rows = _rows(settings)
    seed, has_left = rows.get((identity.TABLE, identity.SEED)), Leaving.phase_on(rows) is Phase.GONE
    if seed is None or has_left or not any(table in _MEMBER_TABLES for table, _ in rows):
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PeerId(peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()))


def main(arguments: list[str]) -> int:
    try:
        answer: dict[str, object] = {
            "text": erase(decode_settings(sys.stdin.buffer.read()), force="--force" in arguments)
        }
    except WeaveError as error:
        answer = {"failure": error.failure}
    except OSError as error:
        answer = {"failure": Failure(Code.HOST, "expected to remove what weave made on this host", str(error))}
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return 0
