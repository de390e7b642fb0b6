"""What a lab's host is: a machine of its own, as far as weave can tell."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.fresh import MakeLab
from weavenet.core.errors import Code, WeaveError
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.topology import HostEntry, LinkEntry, Topology, of_count
from weavenet.lab.waiting import wait_until


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(3)


def read(lab: Lab, host: str, path: str) -> str:
    return lab.host(host).run(["cat", path], check=True).stdout.strip()


def states(host: Host) -> set[str]:
    """Of all its processes (proc(5), third field of stat), read without ps, which is in a package of its own."""
    lines = host.run(["sh", "-c", "cat /proc/[0-9]*/stat"]).stdout.splitlines()
    found = {line.rpartition(")")[2].split()[0] for line in lines}
    assert "S" in found  # PID 1 at least sleeps: an empty answer proves nothing
    return found


def commands(host: Host) -> str:
    lines = host.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout
    assert lines
    return lines


def test_each_host_has_an_identity_of_its_own(lab: Lab) -> None:
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname"):
        # A machine made by debootstrap has no machine-id of its own.
        ours = Path(path).read_text().strip() if Path(path).exists() else "none"
        assert len({read(lab, host.name, path) for host in lab.hosts} | {ours}) == 4, path


def test_hosts_reach_each_other_by_name(lab: Lab) -> None:
    pairs = [(a, b) for a in lab.hosts for b in lab.hosts if a.name != b.name]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda ab: ab[0].run(["ping", "-c1", "-W2", "-q", ab[1].name]).returncode, pairs)
    assert list(answers) == [0] * 6


def test_a_host_sees_only_its_own_processes_and_devices(lab: Lab) -> None:
    pids = lab.host("h1").run(["sh", "-c", "ls -d /proc/[0-9]*"], check=True).stdout.split()
    assert "/proc/1" in pids
    assert len(pids) < 10
    assert sorted(entry.name for entry in lab.host("h1").path("/sys/class/net").iterdir()) == ["eth0", "lo"]


@pytest.mark.parametrize("folder", ["/etc", "/run", "/tmp", "/var/lib/weave", "/var/log"])
def test_what_a_host_writes_stays_on_it(lab: Lab, folder: str) -> None:
    name = f"written-by-{lab.name}"
    lab.host("h1").run(["sh", "-c", f"echo yes > {folder}/{name}"], check=True)
    assert read(lab, "h1", f"{folder}/{name}") == "yes"
    assert lab.host("h2").run(["test", "-e", f"{folder}/{name}"]).returncode == 1
    assert not (Path(folder) / name).exists()


def test_a_host_has_this_weave_and_an_empty_configuration_of_its_own(lab: Lab) -> None:
    assert lab.host("h1").run(["sh", "-c", "command -v weave"]).stdout.strip() == "/run/lab/bin/weave"
    assert "weave" in lab.host("h1").weave("--help", check=True).stdout
    assert not [line for line in read(lab, "h1", "/etc/weave.conf").splitlines() if not line.startswith("#")]


def test_a_host_does_not_see_the_disks_of_the_others(lab: Lab) -> None:
    assert lab.host("h1").run(["ls", "-A", "/var/lib/weave-lab"]).stdout == ""


def test_orphans_are_collected(lab: Lab) -> None:
    host = lab.host("h1")
    host.run(["sh", "-c", "for n in 1 2 3; do setsid true & done"], check=True)
    wait_until(lambda: "Z" not in states(host), 20, "orphans to be collected")


def test_a_command_that_does_not_end_is_killed_inside_too(lab: Lab) -> None:
    host = lab.host("h1")
    with pytest.raises(WeaveError) as caught:
        host.run(["sleep", "4242"], timeout_s=0.3)
    assert caught.value.failure.code is Code.TIMEOUT
    wait_until(lambda: "4242" not in commands(host), 20, "the command to be gone")


def test_a_container_is_a_namespace_with_a_command_that_stays(lab: Lab) -> None:
    host = lab.host("h2")
    container = host.start_container("stays", ["sh", "-c", "echo hello; exec sleep 777"])
    assert host.container_names() == ["stays"]
    assert container.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]
    wait_until(lambda: (host.disk / "log/container-stays.log").read_text() == "hello\n", 20, "its output in the log")
    pid = host.run(["ip", "netns", "pids", "stays"], check=True).stdout.split()
    assert len(pid) == 1
    container.remove()
    assert host.container_names() == []
    wait_until(lambda: host.run(["test", "-d", f"/proc/{pid[0]}"]).returncode == 1, 20, "its process to end")


def test_a_container_needs_a_free_name_and_a_command_that_exists(lab: Lab) -> None:
    host = lab.host("h3")
    host.start_container("web")
    for name, command, code in (
        ("web", ["true"], Code.ALREADY_TAKEN),
        ("Not/Good", ["true"], Code.INVALID),
        ("db", ["no-such-command"], Code.NOT_FOUND),
    ):
        with pytest.raises(WeaveError) as caught:
            host.start_container(name, command)
        assert caught.value.failure.code is code
    assert host.container_names() == ["web"]


def test_two_labs_with_equal_host_names_do_not_touch_each_other(lab: Lab, make_lab: MakeLab) -> None:
    other = make_lab(2)
    other.partition([["h1"], ["h2"]])
    assert other.host("h1").run(["ping", "-c1", "-W1", "-q", "h2"]).returncode != 0
    assert lab.host("h1").run(["ping", "-c1", "-W2", "-q", "h2"]).returncode == 0
    other.down()
    assert lab.host("h1").run(["ping", "-c1", "-W2", "-q", "h2"]).returncode == 0


def test_a_second_lab_of_the_same_name_is_refused_and_harmless(lab: Lab) -> None:
    with pytest.raises(WeaveError) as caught:
        Lab.up(lab.name, of_count(1))
    assert caught.value.failure.code is Code.ALREADY_TAKEN
    assert "weave lab down" in caught.value.failure.next_step
    assert lab.host("h1").run(["ping", "-c1", "-W2", "-q", "h2"]).returncode == 0


def test_a_host_may_be_called_like_a_word_of_the_tools(make_lab: MakeLab) -> None:
    odd = make_lab(Topology(hosts=[HostEntry(name) for name in ("a", "up", "eth0", "master")]))
    odd.cut("a", "up")
    odd.loss("up", "eth0", 1)
    odd.mtu("up", "master", 1280)
    odd.reboot("up")
    reached = {name: odd.host("up").run(["ping", "-c1", "-W1", "-q", name]).returncode for name in odd.state.hosts}
    assert reached == {"a": 1, "up": 0, "eth0": 0, "master": 0}


def test_a_topology_gives_addresses_and_links(make_lab: MakeLab) -> None:
    shape = Topology(
        hosts=[HostEntry("left", "172.30.0.10"), HostEntry("middle"), HostEntry("right")],
        links=[LinkEntry(("left", "middle")), LinkEntry(("middle", "right"), "100%")],
        address="172.30.0.0/24",
    )
    line = make_lab(shape)
    assert [host.address for host in line.hosts] == ["172.30.0.10", "172.30.0.1", "172.30.0.2"]
    reach = {
        (a, b): line.host(a).run(["ping", "-c1", "-W1", "-q", b]).returncode == 0
        for a, b in (("left", "middle"), ("left", "right"), ("middle", "right"))
    }
    assert reach == {("left", "middle"): True, ("left", "right"): False, ("middle", "right"): False}
    line.heal()  # what the topology says is no fault
    assert line.host("left").run(["ping", "-c1", "-W1", "-q", "right"]).returncode != 0


def test_a_host_takes_nothing_from_the_weave_of_the_machine(lab_name: str, tmp_path: Path) -> None:
    """Nor from that of a machine whose own unit starts one: variables, and files of containers of the same name."""
    script = """
        mount -t tmpfs none "$0" && mkdir "$0/upper" "$0/work"
        mount -t overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" overlay /etc
        mkdir -p /etc/default /etc/netns/web
        echo WEAVE_PEERS=elsewhere >/etc/default/weave
        echo 192.0.2.1 machine >/etc/netns/web/hosts
        exec "$1" lab up 1 --name "$2"
    """
    launcher = Path(__file__).parents[2] / "weave"
    subprocess.run(
        ["unshare", "--mount", "sh", "-e", "-c", script, tmp_path, launcher, lab_name], capture_output=True, check=True
    )
    host = Lab.open(lab_name).host("h1")
    assert host.run(["ls", "/etc/default/weave", "/etc/netns"]).stdout == ""
    assert "machine" not in host.start_container("web").run(["cat", "/etc/hosts"], check=True).stdout
    host.run(["sh", "-c", "echo WEAVE_LOG_LEVEL=debug >/etc/default/weave"], check=True)
    Lab.open(lab_name).reboot("h1")
    assert "debug" in host.run(["cat", "/etc/default/weave"], check=True).stdout
