"""Settings, names, locks, sd_notify and log lines: the small parts around the daemon."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from weavenet import program
from weavenet.core.effects import Change
from weavenet.core.errors import Code, WeaveError
from weavenet.core.leaving import Leaving, Phase, State
from weavenet.core.removal import fenced_disk
from weavenet.core.ring.log import genesis_entry
from weavenet.core.types import Genesis, PeerId
from weavenet.runtime import identity, logs
from weavenet.runtime.fingerprint import read_fingerprint
from weavenet.runtime.foundation import Foundation
from weavenet.runtime.lock import AlreadyRunning, Lock
from weavenet.runtime.notify import Notifier
from weavenet.runtime.resolver import local_hosts
from weavenet.runtime.settings import (
    LogFormat,
    NameFrom,
    Settings,
    decode_settings,
    encode_settings,
    password_lines,
    password_warnings,
    peer_name,
)


def test_settings_survive_the_pipe() -> None:
    settings = Settings(name="::1", passwords=("a b", "c"), targets=("h1",), mtu=1400)
    assert decode_settings(encode_settings(settings)) == settings
    assert settings.public().passwords == ()
    assert decode_settings(b"{}") == Settings()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"unknown": 1}', b'{"port": "x"}', b"\xff"])
def test_wrong_settings_are_refused(data: bytes) -> None:
    with pytest.raises(WeaveError, match="standard input"):
        decode_settings(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0A:1b:2c:3d:4e:5f", "0a:1b:2c:3d:4e:5f"),
        ("::1", "00:00:00:00:00:01"),
        ("::", "00:00:00:00:00:00"),
        ("1::", "01:00:00:00:00:00"),
        ("a:b::c", "0a:0b:00:00:00:0c"),
        ("1:2:3:4:5:6", "01:02:03:04:05:06"),
    ],
)
def test_peer_names(text: str, expected: str) -> None:
    assert peer_name(text) == expected


WRONG_NAMES = ["", "h1", "1:2:3:4:5", "1:2:3:4:5:6:7", "1::2::3", "123::", ":::", "1:2:3:4:5:6::", "g::"]


@pytest.mark.parametrize("text", WRONG_NAMES)
def test_wrong_peer_names(text: str) -> None:
    with pytest.raises(WeaveError, match="--name"):
        peer_name(text)


def test_password_lines() -> None:
    assert password_lines("\n new password \n\n\t\nold\n") == ("new password", "old")
    for text in ("", "\n \n", "\n".join("abcdefghi")):
        with pytest.raises(WeaveError, match="weave password"):
            password_lines(text)
    warnings = password_warnings(("short", "long enough, surely"))
    assert len(warnings) == 1
    assert "line 1" in warnings[0]
    assert "short" not in warnings[0]


def host(root: Path, machine_id: str, uuid: str | None = None) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").write_text(machine_id + "\n")
    if uuid is not None:
        (root / "sys/class/dmi/id").mkdir(parents=True)
        (root / "sys/class/dmi/id/product_uuid").write_text(uuid + "\n")
    return root


def test_name_is_given_or_persisted_or_derived(tmp_path: Path) -> None:
    one = host(tmp_path / "1", "0" * 32)
    other = host(tmp_path / "2", "1" * 32)
    derived = identity.choose_name(Settings(), {}, one)
    assert derived == identity.choose_name(Settings(), {}, one)
    assert derived != identity.choose_name(Settings(), {}, other)
    assert int(derived[:2], 16) & 3 == 2, "locally administered, unicast"
    rows = {(identity.TABLE, b"peer-name"): b"00:00:00:00:00:07"}
    assert identity.choose_name(Settings(), rows, one) == "00:00:00:00:00:07"
    assert identity.choose_name(Settings(name="::9"), rows, one) == "00:00:00:00:00:09"


def test_firmware_that_shows_no_uuid_does_not_count(tmp_path: Path) -> None:
    plain = identity.choose_name(Settings(), {}, host(tmp_path / "1", "a" * 32))
    zeros = host(tmp_path / "2", "a" * 32, "00000000-0000-0000-0000-000000000000")
    real = host(tmp_path / "3", "a" * 32, "12345678-0000-0000-0000-000000000000")
    assert identity.choose_name(Settings(), {}, zeros) == plain
    assert identity.choose_name(Settings(), {}, real) != plain


def test_names_without_a_machine_id_are_random(tmp_path: Path) -> None:
    assert identity.choose_name(Settings(), {}, tmp_path) != identity.choose_name(Settings(), {}, tmp_path)
    random_names = Settings(name_from=NameFrom.RANDOM)
    assert identity.choose_name(random_names, {}) != identity.choose_name(random_names, {})
    by_host = Settings(name_from=NameFrom.HOSTNAME)
    assert identity.choose_name(by_host, {}) == identity.choose_name(by_host, {})


def test_the_node_never_sees_the_key() -> None:
    rows = {(identity.TABLE, b"identity-seed"): b"secret", ("ring", b"k"): b"v"}
    assert identity.node_rows(rows) == {("ring", b"k"): b"v"}


def test_a_lock_is_held_by_one_process_and_dropped_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "weave.pid"
    lock = Lock.acquire(path)
    assert path.stat().st_mode & 0o077 == 0, "whoever may read the file could hold the lock"
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        Lock.acquire(path)
    lock.release()
    code = (
        "from pathlib import Path; from weavenet.runtime.lock import Lock; "
        f"lock = Lock.acquire(Path({str(path)!r})); print('held', flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=str(child.pid)):
            Lock.acquire(path)
    finally:
        child.kill()
        child.communicate(timeout=10)
    Lock.acquire(path).release()


def test_a_lock_in_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeaveError, match="expected to write"):
        Lock.acquire(tmp_path / "file" / "weave.pid")


def test_sd_notify(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"})
        assert notifier.watchdog_s == 1.5
        notifier.tell(READY="1", STATUS="two\nlines")
        assert manager.recv(100) == b"READY=1\nSTATUS=two lines"
    notifier.tell(STOPPING="1")


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_s is None
    notifier.tell(READY="1")


def test_abstract_socket_of_the_manager() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"weave-test-{os.getpid()}"
        manager.bind("\0" + name)
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).tell(READY="1")
        assert manager.recv(100) == b"READY=1"


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("weave.mesh", logging.WARNING, "", 0, message, None, None)


def test_log_lines() -> None:
    line = logs.LogfmtFormatter().format(record('peer said "hi"\n\x1b[31mfake=1'))
    assert "\n" not in line
    assert "\x1b" not in line
    assert 'level=warning topic=mesh msg="peer said' in line
    fields = json.loads(logs.JsonFormatter().format(record("two\nlines")))
    assert (fields["level"], fields["topic"], fields["msg"]) == ("warning", "mesh", "two\nlines")
    assert len(logs.LogfmtFormatter().format(record("x" * 100_000))) < 5000


def test_log_file_is_reopened_after_rotation(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        for handler in handlers:
            root.removeHandler(handler)
        path = tmp_path / "weave.log"
        logs.configure(Settings(log_file=str(path), log_format=LogFormat.JSON))
        logging.getLogger("weave.x").info("one")
        path.rename(tmp_path / "weave.log.1")
        logging.getLogger("weave.x").info("two")
        assert "two" in path.read_text()
        with pytest.raises(WeaveError, match="--foreground"):
            logs.configure(Settings(log_file=str(tmp_path / "no" / "such")))
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)
        logging.raiseExceptions = True


def test_local_hosts() -> None:
    assert "127.0.0.1" in local_hosts()
    assert local_hosts("/nonexistent") == ()


def hardware(root: Path, *macs: str) -> None:
    for number, mac in enumerate(macs):
        (root / f"sys/class/net/eth{number}/device").mkdir(parents=True, exist_ok=True)
        (root / f"sys/class/net/eth{number}/address").write_text(mac + "\n")


def laid(place: Path, root: Path, **fields: bool) -> tuple[bytes, tuple[str, ...]]:
    """(public key, notices) of a start with the disk in ``place`` on the machine ``root``."""
    settings = Settings(data_dir=str(place / "data"), run_dir=str(place / "run"), **fields)
    foundation = Foundation.lay(settings, root)
    try:
        return foundation.settle().issued.public_key, foundation.notices
    finally:
        foundation.close()


def test_a_disk_copied_to_another_machine_starts_with_a_new_key(tmp_path: Path) -> None:
    one, other = host(tmp_path / "1", "0" * 32), host(tmp_path / "2", "1" * 32)
    key, notices = laid(tmp_path, one)
    assert not notices
    assert laid(tmp_path, one) == (key, ())
    kept, notices = laid(tmp_path, other, assume_identity=True)
    assert (kept, notices) == (key, ()), "and from now on it is this machine's"
    assert laid(tmp_path, other) == (key, ())
    fresh, notices = laid(tmp_path, one)
    assert fresh != key
    assert "other machine-id" in notices[0] and "--assume-identity" in notices[0]
    assert laid(tmp_path, one) == (fresh, ())


def test_a_foreign_disk_keeps_its_name_and_forgets_its_part_in_the_cluster(tmp_path: Path) -> None:
    one, other = host(tmp_path / "1", "0" * 32), host(tmp_path / "2", "1" * 32)
    laid(tmp_path, one)
    settings = Settings(data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run"))
    foundation = Foundation.lay(settings, one)
    name = foundation.settle().name
    rows = (Change("acceptor", b"1", b"promise"), Change("planes", b"x", b"y"), Change("targets", b"t", b"v"))
    foundation.store.write_now(rows)
    foundation.close()
    foundation = Foundation.lay(settings, other)
    assert foundation.settle().name == name
    assert {table for table, _ in foundation.rows} & {"acceptor", "planes", "targets"} == {"targets"}
    foundation.close()


def test_another_range_than_the_cluster_divided_is_refused_with_the_way_out(tmp_path: Path) -> None:
    root = host(tmp_path, "0" * 32)
    laid(tmp_path, root)
    places = {"data_dir": str(tmp_path / "data"), "run_dir": str(tmp_path / "run")}
    foundation = Foundation.lay(Settings(**places), root)
    foundation.settle()
    record = Genesis(b"c" * 16, ("10.40.0.0/24",), (PeerId(b"a" * 16),), (PeerId(b"a" * 16),))
    foundation.store.write_now((Change("log", bytes(4), msgspec.msgpack.encode(genesis_entry(record))),))
    foundation.close()
    other = Settings(ranges=("10.50.0.0/24",), range_explicit=True, **places)
    for _ in range(2):  # the second time as a peer that was fenced, and waits for its cluster
        with pytest.raises(WeaveError) as refused:
            Foundation.lay(other, root)
        assert refused.value.failure.code is Code.INVALID
        assert "10.40.0.0/24" in refused.value.failure.expected
        assert refused.value.failure.found == "10.50.0.0/24"
        assert "weave reset" in refused.value.failure.next_step
        for fine in (
            Settings(**places),
            Settings(ranges=(), range_explicit=True, **places),
            Settings(ranges=record.ranges, range_explicit=True, **places),
        ):
            Foundation.lay(fine, root).close()
        foundation = Foundation.lay(Settings(**places), root)
        foundation.store.write_now(fenced_disk(foundation.rows))
        foundation.close()


def test_the_default_range_over_a_route_is_refused_until_it_is_divided(tmp_path: Path) -> None:
    root = host(tmp_path, "0" * 32)
    settings = Settings(
        data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run"), range_overlap="10.33.0.0/16 on eth0"
    )
    with pytest.raises(WeaveError) as refused:
        Foundation.lay(settings, root)
    assert refused.value.failure.found == "10.33.0.0/16 on eth0"
    assert "--ipalloc-range" in refused.value.failure.next_step
    for divided, words in ((settings.ranges, "10.33.0.0/16 on eth0"), (("10.40.0.0/24",), "")):
        foundation = Foundation.lay(msgspec.structs.replace(settings, range_overlap=""), root)
        record = Genesis(b"c" * 16, divided, (PeerId(b"a" * 16),), (PeerId(b"a" * 16),))
        foundation.store.write_now((Change("log", bytes(4), msgspec.msgpack.encode(genesis_entry(record))),))
        foundation.close()
        foundation = Foundation.lay(settings, root)
        assert words in "".join(foundation.warnings)
        assert bool(foundation.warnings) == bool(words)
        foundation.close()


@pytest.mark.parametrize(
    ("phase", "is_told"),
    [(Phase.SEEKING, False), (Phase.VACATING, True), (Phase.SURRENDERING, True), (Phase.GONE, True)],
)
def test_an_unfinished_reset_that_goes_on_is_told(phase: Phase, is_told: bool, tmp_path: Path) -> None:
    root = host(tmp_path, "0" * 32)
    settings = Settings(data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run"))
    foundation = Foundation.lay(settings, root)
    foundation.settle()
    assert not foundation.warnings
    row = msgspec.msgpack.encode(State(phase, ()))
    foundation.store.write_now((Change(*Leaving.disk_key(), row),))
    foundation.close()
    foundation = Foundation.lay(settings, root)
    assert ("`weave reset` of this host was not finished" in "".join(foundation.warnings)) == is_told
    foundation.close()


def test_one_exchanged_network_card_is_the_same_machine_and_two_are_not(tmp_path: Path) -> None:
    root = host(tmp_path, "0" * 32, "12345678-0000-0000-0000-000000000000")
    hardware(root, "02:00:00:00:00:01", "02:00:00:00:00:02")
    (root / "sys/class/net/weave").mkdir()
    (root / "sys/class/net/weave/address").write_text("02:00:00:00:00:99\n")
    before = read_fingerprint(root)
    assert len(before.macs) == 2, "a bridge is no hardware"
    hardware(root, "02:00:00:00:00:03")
    assert before.differences(read_fingerprint(root)) == ()
    hardware(root, "02:00:00:00:00:03", "02:00:00:00:00:04")
    assert before.differences(read_fingerprint(root)) == ("2 MAC addresses",)
    (root / "sys/class/dmi/id/product_uuid").unlink()
    assert before.differences(read_fingerprint(root)) == ("DMI uuid", "2 MAC addresses")
    assert "0" * 32 not in str(before), "machine-id(5): never shown itself"


def test_network_devices_that_are_away_or_come_are_no_other_machine(tmp_path: Path) -> None:
    """A container may have them for itself."""
    root = host(tmp_path, "0" * 32)
    hardware(root, *(f"02:00:00:00:00:0{number}" for number in range(5)))
    all_here = read_fingerprint(root)
    for number in range(1, 4):
        shutil.rmtree(root / f"sys/class/net/eth{number}")
    some_away = read_fingerprint(root)
    assert len(some_away.macs) == 2
    assert all_here.differences(some_away) == some_away.differences(all_here) == ()
    hardware(root, "02:00:00:00:00:09")
    assert all_here.differences(read_fingerprint(root)) == (), "and one was exchanged"
    hardware(root, "02:00:00:00:01:00")
    shutil.rmtree(root / "sys/class/net/eth4")
    assert all_here.differences(read_fingerprint(root)) == ("5 MAC addresses",)


def test_macs_that_say_nothing_about_the_machine(tmp_path: Path) -> None:
    root = host(tmp_path, "0" * 32)
    macs = [f"02:00:00:00:00:0{number}" for number in range(4)]
    hardware(root, *macs)
    before = read_fingerprint(root)
    hardware(root, *macs, *(f"02:00:00:00:01:0{number}" for number in range(4)))
    for number in range(4, 8):  # virtual functions, with other MACs after each start
        (root / f"sys/class/net/eth{number}/addr_assign_type").write_text("1\n")
    for number, mac in enumerate(macs):  # now ports of two bonds
        device = root / f"sys/class/net/eth{number}"
        (device / "bonding_slave").mkdir()
        (device / "bonding_slave/perm_hwaddr").write_text(mac + "\n")
        (device / "address").write_text(macs[number // 2 * 2] + "\n")
    assert read_fingerprint(root) == before


def test_lines_that_differ_in_numbers_only_are_few_a_minute_and_the_rest_is_counted() -> None:
    now = [0.0]
    alike = logs.FewAlike(lambda: now[0])

    def passed(text: str) -> str | None:
        record = logging.LogRecord("weave.links", logging.WARNING, "", 0, text, (), None)
        return record.getMessage() if alike.filter(record) else None

    lines = [passed(f"192.0.2.1:{40_000 + number} refused: another cluster") for number in range(50)]
    assert [line is not None for line in lines] == [True] * logs.ALIKE_MAX + [False] * (50 - logs.ALIKE_MAX)
    assert passed("something else") == "something else"
    now[0] += logs.ALIKE_PAUSE_S
    again = passed("192.0.2.1:50000 refused: another cluster")
    assert again is not None and again.endswith("(30 lines like this were left out)")
    assert passed("192.0.2.1:50001 refused: another cluster") == "192.0.2.1:50001 refused: another cluster"


def test_the_log_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 1000)
    path = tmp_path / "weave.log"
    handler = logs.BoundedFile(path)
    for number in range(200):
        handler.emit(logging.LogRecord("weave", logging.INFO, "", 0, f"line {number}", (), None))
    handler.close()
    assert {each.name for each in tmp_path.iterdir()} == {"weave.log", "weave.log.1"}
    assert all(each.stat().st_size < 1100 for each in tmp_path.iterdir())
    kept = [line for each in (tmp_path / "weave.log.1", path) for line in each.read_text().splitlines()]
    assert kept[-1] == "line 199"
    assert kept == [f"line {number}" for number in range(200 - len(kept), 200)], "none is lost in between"
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_a_log_that_cannot_be_opened_again_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as configure does
    folder = tmp_path / "log"
    folder.mkdir()
    handler = logs.BoundedFile(folder / "weave.log")
    folder.rename(tmp_path / "elsewhere")
    for text in ("lost", "lost, too"):
        handler.emit(logging.LogRecord("weave", logging.INFO, "", 0, text, (), None))
    folder.mkdir()
    handler.emit(logging.LogRecord("weave", logging.INFO, "", 0, "kept", (), None))
    handler.close()
    assert (folder / "weave.log").read_text() == "kept\n"


@pytest.mark.parametrize("umask", [0, 0o077])
def test_what_a_daemon_makes_is_as_open_whoever_launched_it(tmp_path: Path, umask: int) -> None:
    run_dir, data_dir = tmp_path / "run", tmp_path / "data"
    settings = Settings(data_dir=str(data_dir), run_dir=str(run_dir), log_file=str(tmp_path / "no" / "log"), port=0)
    # No log there, so it ends before it touches the network.
    done = subprocess.run(
        program.command("weavenet.runtime"),
        input=encode_settings(settings),
        umask=umask,
        capture_output=True,
        check=False,
    )
    assert b"expected to write the log" in done.stderr
    assert run_dir.stat().st_mode & 0o777 == 0o755
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in data_dir.iterdir()} == {0o600}
