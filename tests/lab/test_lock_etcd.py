"""The lock in a real etcd: Debian's, unpacked beside the checkout and not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weavenet.lab.waiting import wait_until
from weavenet.runtime.recordlock import ask, forget

CACHE = Path(__file__).parents[2] / ".cache" / "etcd"
MANY = 16
START_DEADLINE_S = 120.0


def answered(url: str) -> bool:
    try:
        ask(url, b"")
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def program() -> Path:
    found = shutil.which("etcd")
    if found:
        return Path(found)
    CACHE.mkdir(parents=True, exist_ok=True)
    unpacked = CACHE / "usr" / "bin" / "etcd"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            got = subprocess.run(["apt-get", "download", "etcd-server"], cwd=CACHE, capture_output=True, check=False)
            packages = sorted(CACHE.glob("etcd-server_*.deb"))
            if got.returncode != 0 or not packages:
                pytest.skip("apt cannot fetch etcd-server")
            subprocess.run(["dpkg", "-x", str(packages[-1]), str(CACHE)], check=True)
    return unpacked


@pytest.fixture(scope="module")
def etcd(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host of a running one."""
    pid = os.getpid()
    host = f"127.23.{pid >> 8 & 255}.{pid & 255}"  # an address of this test run alone, so its ports are free
    client, peer = f"http://{host}:2379", f"http://{host}:2380"
    folder = tmp_path_factory.mktemp("etcd")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(program),
                f"--data-dir={folder / 'data'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answered(f"etcd://{host}/ready"), START_DEADLINE_S, "etcd to answer")
        yield host
    finally:
        process.terminate()
        process.wait(60)


def test_of_many_transactions_at_once_one_wins_and_all_see_it(etcd: str) -> None:
    url = f"etcd://{etcd}/weave/cluster"
    assert ask(url, b"") == b""
    with ThreadPoolExecutor(MANY) as threads:
        (winner,) = set(threads.map(lambda number: ask(url, f"record {number}".encode()), range(MANY)))
    assert ask(url, b"") == winner
    assert ask(f"etcd://{etcd}/weave/other", b"") == b""


def test_a_server_that_is_away_is_passed_over_and_none_at_all_is_said(etcd: str) -> None:
    url = f"etcd://127.0.0.1:1,{etcd}/weave/passed-over"
    assert ask(url, b"mine") == b"mine"
    with pytest.raises(ConnectionRefusedError):
        ask("etcd://127.0.0.1:1/weave/x", b"mine")


def test_a_record_is_forgotten_if_it_is_the_one_meant(etcd: str) -> None:
    url = f"etcd://{etcd}/weave/forgotten"
    assert ask(url, b"mine") == b"mine"
    assert forget(url, b"another") == b"mine"
    assert forget(url, b"mine") == b""
    assert ask(url, b"next") == b"next"
