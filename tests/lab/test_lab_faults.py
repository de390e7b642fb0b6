"""Faults of the underlay and of hosts: they do what they say, and heal ends them."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.fresh import MakeLab
from weavenet.core.errors import Code, WeaveError
from weavenet.lab import lab as labs
from weavenet.lab import processes, underlay
from weavenet.lab.lab import Lab
from weavenet.lab.pings import Pings
from weavenet.lab.waiting import wait_until


@pytest.fixture(scope="module")
def whole_lab(make_lab: MakeLab) -> Lab:
    return make_lab(4)


@pytest.fixture
def lab(whole_lab: Lab) -> Lab:
    whole_lab.heal()
    return whole_lab


def reachable(lab: Lab) -> set[str]:
    """Pairs that answer, as ``h1h2``; both directions have to agree."""

    def answers(pair: tuple[str, str]) -> bool:
        return lab.host(pair[0]).run(["ping", "-c1", "-W1", "-q", pair[1]]).returncode == 0

    names = list(lab.state.hosts)
    pairs = list(itertools.permutations(names, 2))
    with ThreadPoolExecutor(6) as pool:
        found = {a + b for (a, b), works in zip(pairs, pool.map(answers, pairs), strict=True) if works}
    assert all(pair[2:] + pair[:2] in found for pair in found), found
    return {pair for pair in found if pair[:2] < pair[2:]}


ALL = {"h1h2", "h1h3", "h1h4", "h2h3", "h2h4", "h3h4"}


def test_partition_cut_and_heal(lab: Lab) -> None:
    assert reachable(lab) == ALL
    lab.partition([["h1", "h2"], ["h3"]])  # h4 is not named: a side of its own
    assert reachable(lab) == {"h1h2"}
    lab.partition([["h1"]])  # against the rest; replaces the earlier one
    assert reachable(lab) == {"h2h3", "h2h4", "h3h4"}
    lab.cut("h4", "h2")
    assert reachable(lab) == {"h2h3", "h3h4"}
    lab.heal()
    assert reachable(lab) == ALL


def test_broadcasts_do_not_pass_a_cut(lab: Lab) -> None:
    lab.cut("h1", "h2")
    lab.host("h1").run(["ip", "neigh", "flush", "all"], check=True)
    lab.host("h2").run(["ip", "neigh", "flush", "all"], check=True)
    assert lab.host("h1").run(["ping", "-c1", "-W1", "-q", "h2"]).returncode != 0
    assert "192.168.77.1 " not in lab.host("h2").run(["ip", "neigh"]).stdout


def test_loss_between_two_hosts_only_and_in_both_directions(lab: Lab) -> None:
    lab.loss("h1", "h2", 30_000)

    def lost(a: str, b: str) -> int:
        done = lab.host(a).run(["ping", "-q", "-i", "0.002", "-c", "500", "-W", "1", b], timeout_s=60)
        sent, received = (
            int(words.split()[0]) for words in done.stdout.split("--- ")[-1].splitlines()[1].split(",")[:2]
        )
        return sent - received

    # 30 % each way: 255 of 500 on average, ±11 at one sigma.
    assert 180 <= lost("h1", "h2") <= 330
    assert lost("h1", "h3") == 0
    lab.loss("h2", "h1", 0)
    assert lost("h2", "h1") == 0


def test_small_mtu_ends_with_the_last_path_that_has_it(lab: Lab) -> None:
    def units() -> dict[str, str]:
        found = {}
        for host in lab.hosts:
            words = host.run(["ip", "-d", "link", "show", "eth0"], check=True).stdout.split()
            found[host.name] = words[words.index("gso_max_segs") + 1]
        return found

    before = units()
    lab.mtu("h1", "h2", 1280)
    lab.mtu("h2", "h3", 1280)
    assert units() == {**before, "h1": "1", "h2": "1", "h3": "1"}
    lab.mtu("h2", "h1", 0)
    assert units() == {**before, "h2": "1", "h3": "1"}
    lab.heal()
    assert units() == before


def test_faults_need_hosts_that_exist(lab: Lab) -> None:
    for fault, code in (
        (lambda: lab.partition([["h1"], ["h9"]]), Code.NOT_FOUND),
        (lambda: lab.partition([["h1", "h2", "h3", "h4"]]), Code.INVALID),
        (lambda: lab.partition([["h1"], ["h1", "h2"]]), Code.INVALID),
        (lambda: lab.cut("h1", "h1"), Code.INVALID),
        (lambda: lab.loss("h1", "h0", 1), Code.NOT_FOUND),
        (lambda: lab.host("nope"), Code.NOT_FOUND),
        (lambda: lab.host("h1").kill_daemon(), Code.NOT_FOUND),
    ):
        with pytest.raises(WeaveError) as caught:
            fault()
        assert caught.value.failure.code is code
        assert caught.value.failure.next_step
    assert reachable(lab) == ALL


def test_reboot_keeps_disk_machine_id_and_mac_but_not_boot_id_run_and_processes(lab: Lab) -> None:
    host = lab.host("h3")
    lab.cut("h3", "h4")
    look = ["cat", "/etc/machine-id", "/sys/class/net/eth0/address", "/etc/mark", "/var/lib/weave/mark"]
    boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
    host.run(["sh", "-c", "for folder in /etc /var/lib/weave /run /tmp; do echo kept > $folder/mark; done"], check=True)
    host.start_container("gone")
    before, before_boot_id = host.run(look, check=True).stdout, host.run(boot_id, check=True).stdout
    lab.reboot("h3")
    assert host.run(look, check=True).stdout == before
    assert host.run(boot_id, check=True).stdout != before_boot_id
    assert host.run(["ls", "/run/mark", "/tmp/mark"]).stdout == ""
    assert host.container_names() == []
    assert reachable(lab) == ALL - {"h3h4"}  # the fault outlives the port it was at


def test_a_reboot_that_is_interrupted_leaves_the_host_down(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(underlay, "connect", interrupt)
        lab.reboot("h2")
    assert processes.inits(lab.name, "h2") == []
    assert not lab.state.hosts["h2"].is_running
    lab.reboot("h2")
    assert reachable(lab) == ALL


def test_a_disk_has_one_host_also_after_a_reboot_was_killed(lab: Lab) -> None:
    lab.kill("h3")
    labs._start_hosts(lab.state, [lab.state.hosts["h3"]])  # and its process id was never written down
    assert len(processes.inits(lab.name, "h3")) == 1
    lab.reboot("h3")
    assert processes.inits(lab.name, "h3") == [lab.host("h3").pid]
    lab.kill("h3")
    assert processes.inits(lab.name, "h3") == []
    lab.reboot("h3")
    assert reachable(lab) == ALL


def test_a_host_without_power_says_so_and_comes_back(lab: Lab) -> None:
    lab.kill("h4")
    with pytest.raises(WeaveError) as caught:
        lab.host("h4").run(["true"])
    assert "weave lab reboot h4" in caught.value.failure.next_step
    lab.loss("h4", "h1", 1)  # faults around a host that is down are remembered
    assert lab.host("h1").run(["ping", "-c1", "-W1", "-q", "h4"]).returncode != 0
    lab.reboot("h4")
    assert reachable(lab) == ALL


def test_a_paused_host_stands_still_and_goes_on(lab: Lab) -> None:
    host = lab.host("h2")
    host.start_container("clock", ["sh", "-c", "while sleep 0.02; do echo; done"])
    ticks = host.disk / "log/container-clock.log"
    wait_until(lambda: ticks.exists() and ticks.stat().st_size > 2, 20, "the clock to tick")
    host.pause()
    wait_until(lambda: stopped(host.pid), 20, "the host to stand still")
    size = ticks.stat().st_size
    assert not wait_quietly(lambda: ticks.stat().st_size > size, 0.3)
    host.resume()
    wait_until(lambda: ticks.stat().st_size > size, 20, "the clock to tick again")
    host.container("clock").remove()


def test_a_paused_host_with_a_command_entered_can_be_killed(lab: Lab) -> None:
    host = lab.host("h2")
    entered = host.popen(["sleep", "999"])
    wait_until(entered.pids, 20, "the command to run")
    host.pause()
    lab.kill("h2")
    assert entered.process.wait(20) != 0
    entered.process.communicate()
    lab.reboot("h2")
    assert reachable(lab) == ALL


def test_counted_pings_see_every_loss(lab: Lab) -> None:
    for name in ("h1", "h2"):
        lab.host(name).start_container("pinger")
        host = lab.host(name)
        host.run(["ip", "link", "add", "cable", "type", "veth", "peer", "name", "end", "netns", "pinger"], check=True)
        host.run(["ip", "address", "add", "172.31.0.1/24", "dev", "cable"], check=True)
        host.run(["ip", "link", "set", "cable", "up"], check=True)
        inside = host.container("pinger")
        inside.run(["ip", "address", "add", "172.31.0.2/24", "dev", "end"], check=True)
        inside.run(["ip", "link", "set", "end", "up"], check=True)
    host = lab.host("h1")
    with Pings(host.container("pinger"), "172.31.0.1") as pings:
        wait_until(lambda: pings.answered() >= 50, 20, "50 answers")
        host.run(["ip", "address", "del", "172.31.0.1/24", "dev", "cable"], check=True)
        assert not wait_quietly(bool, 0.2)  # some pings go into the gap
        host.run(["ip", "address", "add", "172.31.0.1/24", "dev", "cable"], check=True)
        answered = pings.answered()
        wait_until(lambda: pings.answered() >= answered + 50, 20, "50 more answers")
        broken = pings.stop()
    assert broken.lost >= broken.longest_gap > 5
    with Pings(lab.host("h2").container("pinger"), "172.31.0.1") as pings:
        wait_until(lambda: pings.answered() >= 100, 20, "100 answers")
        whole = pings.stop()
    assert whole.sent >= 100
    assert whole.lost == 0


def stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def wait_quietly(condition: object, deadline_s: float) -> bool:
    """True when the condition came true within the deadline; for what must not happen."""
    assert callable(condition)
    try:
        return bool(wait_until(condition, deadline_s, "what should not happen"))
    except WeaveError:
        return False


def test_marks_find_the_processes_of_one_lab_only(lab: Lab, make_lab: MakeLab) -> None:
    other = make_lab(1)
    assert set(processes.marked(lab.name)).isdisjoint(processes.marked(other.name))
    assert set(processes.marked(other.name).values()) == {f"{other.name}/h1", f"{other.name}/underlay"}
