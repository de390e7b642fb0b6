"""Disks that are copied or set back, on real hosts: they come back as somebody else and say why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab.clusters import attach_new, wait_for_links
from lab.fresh import MakeLab
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

NEW_KEY_DEADLINE_S = 60.0


def identity(host: Host) -> str:
    """Empty while the daemon is between two identities."""
    report = host.weave("report")
    return str(json.loads(report.stdout)["Router"]["UID"]) if report.returncode == 0 else ""


def copy(source: Path, target: Path) -> None:
    """What is in ``target`` is replaced; the folder itself stays, as it may be a mount point."""
    for old in target.iterdir():
        old.unlink()
    for each in source.iterdir():
        shutil.copy2(each, target / each.name)


def test_a_disk_with_another_machine_id_joins_as_a_new_peer_and_says_so(lab: Lab) -> None:
    host = lab.hosts[2]
    before = identity(host)
    assert before
    host.weave("stop", check=True)
    host.path("/etc/machine-id").write_text("f" * 32 + "\n")
    host.weave("launch", check=True)
    assert identity(host) not in {"", before}
    assert "other machine-id" in host.weave("status").stdout
    wait_for_links(lab.hosts)


def test_a_copy_of_a_disk_that_runs_twice_is_said_on_both_and_hands_nothing_out_twice(make_lab: MakeLab) -> None:
    """With the machine's fingerprint copied along (or --assume-identity) both would be the same peer."""
    lab = make_lab(3)
    h1, original, clone = lab.hosts
    for host in (h1, original):
        host.weave("launch", "h1", "h2", check=True)
    wait_for_links([h1, original])
    containers = [attach_new(host, f"{host.name}-c") for host in (h1, original)]
    before = identity(original)
    copy(original.disk / "data", clone.disk / "data")
    clone.weave("launch", "--assume-identity", "h1", check=True)
    wait_until(lambda: identity(original) not in {"", before}, NEW_KEY_DEADLINE_S, "one of them to give way")
    assert identity(clone) == before  # the later start keeps the key
    wait_for_links(lab.hosts)
    assert "a copy of it runs on another host" in original.weave("status").stdout
    for host in lab.hosts:
        wait_until(
            lambda host=host: "the disk of one was copied" in host.weave("status").stdout,
            NEW_KEY_DEADLINE_S,
            f"words on {host.name}",
        )
    assert "blocked" in original.weave("status").stdout  # its container's address is the clone's to give back
    fresh = [attach_new(host, f"{host.name}-new")[1] for host in lab.hosts]
    assert len({*fresh, *(address for _, address in containers)}) == 5
    lab.down()


def test_a_disk_set_back_ends_its_identity_and_hands_nothing_out_twice(lab: Lab, tmp_path: Path) -> None:
    host, other = lab.hosts[2], lab.hosts[0]
    before = identity(host)
    assert before
    host.weave("stop", check=True)
    copy(host.disk / "data", tmp_path)
    host.weave("launch", check=True)
    wait_for_links(lab.hosts)
    _, address = attach_new(host, "late")
    host.weave("stop", check=True)
    copy(tmp_path, host.disk / "data")
    host.weave("launch", check=True)
    wait_until(lambda: identity(host) not in {"", before}, NEW_KEY_DEADLINE_S, "a new identity")
    wait_for_links(lab.hosts)
    addresses = {attach_new(each, f"{each.name}-new")[1] for each in (host, other)}
    assert len(addresses) == 2 and address not in addresses


def test_lab_clone_with_and_without_a_machine_id_of_its_own(make_lab: MakeLab) -> None:
    """The copy that can be told apart joins at once as a new peer; the other one takes the key along."""
    lab = make_lab(4)
    h1, original, marked, same = lab.hosts
    for host in (h1, original):
        host.weave("launch", "h1", "h2", check=True)
    wait_for_links([h1, original])
    attach_new(original, "c")
    before = identity(original)
    lab.clone("h2", "h3", new_machine_id=True)
    lab.clone("h2", "h4")
    assert identity(original) == before, "the original goes on"
    marked.weave("launch", "h1", check=True)
    assert identity(marked) not in {"", before}
    assert "other machine-id" in marked.weave("status").stdout
    same.weave("launch", "h1", check=True)
    wait_until(lambda: identity(original) not in {"", before}, NEW_KEY_DEADLINE_S, "one of the two to give way")
    assert identity(same) == before
    wait_for_links(lab.hosts)
    assert len({identity(host) for host in lab.hosts}) == 4
    lab.down()
