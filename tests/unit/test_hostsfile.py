"""The block of ours in a container's /etc/hosts."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weavenet.core.commands import Attachment
from weavenet.core.errors import WeaveError
from weavenet.host import hostsfile, netns
from weavenet.host.hostsfile import BEGIN, END, parse_entries, with_block, without_block

ATTACHMENT = Attachment(
    "web", "netns:web", b"", (), ("10.32.0.1/12", "10.40.0.1/24"), True, True,
    rewrite_hosts=True, hosts=("db:192.0.2.7",), hosts_name="web.weave.local.",
)  # fmt: skip
LINES = ["10.32.0.1 web.weave.local web", "10.40.0.1 web.weave.local web", "192.0.2.7 db"]


def test_the_rest_of_the_file_stays() -> None:
    rest = "127.0.0.1 localhost\n# mine\n192.0.2.1 gate"
    first = with_block(rest, LINES)
    assert first == "\n".join([BEGIN, *LINES, END, rest])
    assert with_block(first, ["1.2.3.4 x"]) == "\n".join([BEGIN, "1.2.3.4 x", END, rest])
    assert without_block(first) == rest
    assert "127.0.0.1 localhost" in with_block("", LINES)


@pytest.mark.parametrize("text", ["db", "db:", "d b:192.0.2.7", ":192.0.2.7", "db:192.0.2.777"])
def test_wrong_entries_are_refused(text: str) -> None:
    with pytest.raises(WeaveError, match="NAME:ADDRESS"):
        parse_entries([text])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(hostsfile, "NAMED", tmp_path)
    yield tmp_path


def test_a_named_namespace_has_a_file_while_there_is_something_in_it(folder: Path) -> None:
    container = netns.Container("netns:web", "web", -1)
    hostsfile.write(container, ATTACHMENT)
    file = folder / "web" / "hosts"
    assert file.read_text().splitlines()[1:4] == LINES
    hostsfile.clear("netns:web")
    assert not file.parent.exists()
    hostsfile.clear("netns:web")
    file.parent.mkdir()
    (folder / "web" / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    file.write_text("192.0.2.1 gate\n")
    hostsfile.write(container, ATTACHMENT)
    hostsfile.clear("netns:web")
    assert file.read_text() == "192.0.2.1 gate\n"


def test_what_has_no_file_of_its_own_is_refused() -> None:
    with pytest.raises(WeaveError, match="a path"):
        hostsfile.clear("netns:/proc/1/ns/net")
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(WeaveError, match="files of this host"):
                hostsfile.clear(f"pid:{process.pid}")
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")
def test_mounts_of_its_own_are_not_yet_a_file_of_its_own() -> None:
    script = "echo ready; read go; mount -t tmpfs none /etc; echo ready; read end"
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        container = netns.Container(f"pid:{process.pid}", "web", -1)
        assert process.stdout.readline()
        with pytest.raises(WeaveError, match="files of this host"):
            hostsfile.write(container, ATTACHMENT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline()
        hostsfile.write(container, ATTACHMENT)
        assert BEGIN in Path(f"/proc/{process.pid}/root/etc/hosts").read_text()
        process.stdin.close()


@contextmanager
def seen_by(command: list[str], script: str) -> Iterator[netns.Container]:
    """A process that has run ``script``."""
    command = [*command, "sh", "-c", f"set -e; {script}; echo ready; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield netns.Container(f"pid:{process.pid}", "web", -1)
        finally:
            process.stdin.close()


OWN_ETC = "mount -t tmpfs -o mode=755 none /etc"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")
@pytest.mark.parametrize("target", ["hosts", "none"])
def test_a_link_to_files_of_this_host_is_not_followed(tmp_path: Path, target: str) -> None:
    """A process that sees this host's processes reaches its files by way of /proc; it could not change them itself."""
    (tmp_path / "hosts").write_text("of this host\n")
    script = f"{OWN_ETC}; ln -s /proc/{os.getpid()}/root{tmp_path}/{target} /etc/hosts"
    with seen_by(["unshare", "--mount"], script) as container:
        with pytest.raises(WeaveError, match="a symbolic link"):
            hostsfile.write(container, ATTACHMENT)
        with contextlib.suppress(WeaveError):
            hostsfile.clear(container.reference)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("hosts", "of this host\n")]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_an_unprivileged_user_mounts_there_is_not_changed(tmp_path: Path) -> None:
    """In a user namespace of his own he may mount at /etc/hosts, or at /etc, whatever he can read."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--map-root-user", "--mount"]
    for parent in (tmp_path, *tmp_path.parents[:-1]):
        if not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)
    (tmp_path / "hosts").write_text("of root\n")
    refused = pytest.raises(WeaveError, match="does not belong")
    mounted = f"{OWN_ETC}; : > /etc/hosts; mount --bind {tmp_path}/hosts /etc/hosts"
    with seen_by(command, mounted) as container, refused:
        hostsfile.write(container, ATTACHMENT)
    assert (tmp_path / "hosts").read_text() == "of root\n"
    (tmp_path / "hosts").unlink()
    refused = pytest.raises(WeaveError, match="does not belong")
    with seen_by(command, f"mount --bind {tmp_path} /etc") as container, refused:
        hostsfile.write(container, ATTACHMENT)
    assert not any(tmp_path.iterdir())
    with seen_by(command, f"{OWN_ETC}; : > /etc/hosts") as container:
        path = Path(f"/proc/{container.reference.partition(':')[2]}/root/etc/hosts")
        hostsfile.write(container, ATTACHMENT)
        assert BEGIN in path.read_text()
        hostsfile.clear(container.reference)
        assert BEGIN not in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")
def test_the_number_of_a_process_that_has_ended_means_nobody() -> None:
    with subprocess.Popen(["true"]) as ended:
        pidfd = os.pidfd_open(ended.pid)
        ended.wait()
    with seen_by(["unshare", "--mount"], OWN_ETC) as container:
        other = netns.Container(container.reference, "web", -1, pidfd)
        try:
            with pytest.raises(WeaveError, match="No such process"):
                hostsfile.write(other, ATTACHMENT)
        finally:
            os.close(pidfd)
        assert not Path(f"/proc/{container.reference.partition(':')[2]}/root/etc/hosts").exists()


def test_a_file_that_is_too_large_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostsfile, "HOSTS_FILE_BYTES_MAX", 10)
    (folder / "web").mkdir()
    (folder / "web" / "hosts").write_text("192.0.2.1 gate\n")
    with pytest.raises(WeaveError, match="more than 10 bytes"):
        hostsfile.write(netns.Container("netns:web", "web", -1), ATTACHMENT)


def test_a_full_disk_takes_nothing_from_the_file(folder: Path) -> None:
    (folder / "web").mkdir()
    file = folder / "web" / "hosts"
    file.write_text("192.0.2.1 gate\n" * 10)
    before = file.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
    try:
        with pytest.raises(WeaveError):
            hostsfile.write(netns.Container("netns:web", "web", -1), ATTACHMENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before
    hostsfile.write(netns.Container("netns:web", "web", -1), ATTACHMENT)
    hostsfile.clear("netns:web")
    assert file.read_bytes() == before
