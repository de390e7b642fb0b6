"""One configuration for all hosts, no special first one: a file in a shared folder decides who divides the range."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.clusters import attach_new, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

CLUSTER_NAME = "cluster.example"
ADDRESS_DEADLINE_S = 60.0


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all hosts of a lab see (those below /tmp are their own)."""
    folder = Path(tempfile.mkdtemp(prefix="weave-shared-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


def configure(lab: Lab, shared: Path) -> None:
    """Identical on every host: one DNS name as target, the lock, nothing else."""
    known = "".join(f"{host.address} {CLUSTER_NAME}\n" for host in lab.hosts)
    for host in lab.hosts:
        with host.path("/etc/hosts").open("a") as hosts:
            hosts.write(known)
        host.path("/etc/weave.conf").write_text(
            f'peers = ["{CLUSTER_NAME}"]\nipalloc-init = "lock=file:{shared}/weave.lock"\n'
        )


def clusters(hosts: list[Host]) -> set[str]:
    return {observe.report(host).router.cluster for host in hosts}


@pytest.mark.parametrize("moment", ["before the record", "with the record"])
def test_three_started_at_once_and_one_killed_during_bootstrap_make_one_cluster(
    make_lab: MakeLab, shared: Path, moment: str
) -> None:
    lab = make_lab(3)
    configure(lab, shared)
    record = shared / "weave.lock"
    with ThreadPoolExecutor(6) as threads:
        launches = [threads.submit(host.weave, "launch") for host in lab.hosts]
        for launch in launches:
            assert launch.result().returncode == 0, launch.result().stderr
        if moment == "before the record":
            lab.kill("h1")
            left = lab.hosts[1:]
            asked = [threads.submit(attach_new, host, f"{host.name}-c") for host in left]
        else:
            left = lab.hosts[1:]
            asked = [threads.submit(attach_new, host, f"{host.name}-c") for host in left]
            wait_until(record.exists, ADDRESS_DEADLINE_S, "the cluster's record")
            lab.kill("h1")
        containers = [one.result() for one in asked]
    assert record.exists()
    assert len({address for _, address in containers}) == 2
    assert len(clusters(left)) == 1
    wait_for_links(left)
    wait_for_pings(lab, containers)

    lab.reboot("h1")
    lab.host("h1").weave("launch", check=True)
    containers.append(attach_new(lab.host("h1"), "h1-c"))
    wait_for_links(lab.hosts)
    assert len({address for _, address in containers}) == 3
    assert len(clusters(lab.hosts)) == 1
    wait_for_pings(lab, containers)


def test_a_lock_that_cannot_be_used_is_named_with_the_way_out_and_used_once_it_can(
    make_lab: MakeLab, shared: Path
) -> None:
    lab = make_lab(1)
    configure(lab, shared / "unmounted")
    host = lab.hosts[0]
    host.weave("launch", check=True)
    asked = host.popen(["weave", "consense", "--timeout", "90s"])

    def says(words: str) -> None:
        wait_until(lambda: words in host.weave("status").stdout, ADDRESS_DEADLINE_S, words)

    says("mount it on this host")
    (shared / "unmounted").mkdir()
    (shared / "unmounted" / "weave.lock").write_text("somebody else's\n")
    says("expected a cluster record of weave")
    (shared / "unmounted" / "weave.lock").unlink()
    assert asked.process.wait(90) == 0
    assert len(clusters([host])) == 1
    lab.down()


def test_type_4_from_zero_up_back_to_zero_and_up_again_with_one_configuration(make_lab: MakeLab, shared: Path) -> None:
    lab = make_lab(3)
    configure(lab, shared)
    record = shared / "weave.lock"
    h1, h2, h3 = lab.hosts
    # The first one is killed while the second is being launched.
    h1.weave("launch", check=True)
    with ThreadPoolExecutor(2) as threads:
        launching = threads.submit(h2.weave, "launch")
        lab.kill("h1")
        assert launching.result().returncode == 0, launching.result().stderr
    second = attach_new(h2, "h2-c")
    h3.weave("launch", check=True)
    third = attach_new(h3, "h3-c")
    wait_for_links([h2, h3])
    assert len(clusters([h2, h3])) == 1
    wait_for_pings(lab, [second, third])
    lab.reboot("h1")
    h1.weave("launch", check=True)
    wait_for_links(lab.hosts)
    (before,) = clusters(lab.hosts)

    # To zero: all leave at the same time, and nothing of the cluster is left.
    with ThreadPoolExecutor(3) as threads:
        for done in threads.map(lambda host: host.weave("reset", "--timeout", "90s", timeout_s=120), lab.hosts):
            assert done.returncode == 0, done.stderr
    assert not record.exists()

    # And up again, with the same configuration and one more container each.
    for host in lab.hosts:
        host.weave("launch", check=True)
    containers = [attach_new(host, f"{host.name}-again") for host in lab.hosts]
    wait_for_links(lab.hosts)
    (after,) = clusters(lab.hosts)
    assert after != before
    assert len({address for _, address in containers}) == 3
    wait_for_pings(lab, containers)
    lab.down()
