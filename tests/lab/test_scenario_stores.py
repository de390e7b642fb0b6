"""Stores that are damaged, gone, closed, full or copied: clear words, and no address twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.clusters import Attached, attach_new, form, wait_for_links, wait_for_pings
from lab.fresh import MakeLab
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

STORE = "weave.db"
IDENTITY_DEADLINE_S = 60.0
DISK_DEADLINE_S = 60.0
ATTACHES_MAX = 400


def uid(host: Host) -> str:
    """Empty while the daemon is between two identities, or does not run."""
    report = host.weave("report")
    return str(json.loads(report.stdout)["Router"]["UID"]) if report.returncode == 0 else ""


def attached_everywhere(lab: Lab) -> list[Attached]:
    return [attach_new(host, f"{host.name}-old") for host in lab.hosts]


def damage_pages(store: Path) -> None:
    with store.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xde\xad\xbe\xef" * 2048)


def truncate(store: Path) -> None:
    with store.open("r+b") as file:
        file.truncate(store.stat().st_size // 2 + 100)


@pytest.mark.parametrize("harm", [damage_pages, truncate])
def test_a_damaged_store_is_refused_with_the_way_out_which_works(lab: Lab, harm: Callable[[Path], None]) -> None:
    old = attached_everywhere(lab)
    host = lab.hosts[2]
    before = uid(host)
    host.weave("stop", check=True)
    harm(host.disk / "data" / STORE)
    refused = host.weave("launch")
    assert refused.returncode == 1
    assert f"/var/lib/weave/{STORE}" in refused.stderr
    assert "damaged" in refused.stderr
    assert f"move /var/lib/weave/{STORE} away and launch again" in refused.stderr
    lost_disk_gives_no_address_twice(lab, old, before)


def test_a_missing_store_is_a_new_peer_and_gives_no_address_twice(lab: Lab) -> None:
    old = attached_everywhere(lab)
    before = uid(lab.hosts[2])
    lab.hosts[2].weave("stop", check=True)
    lost_disk_gives_no_address_twice(lab, old, before)


def lost_disk_gives_no_address_twice(lab: Lab, old: list[Attached], before: str) -> None:
    """The last host starts without its store: as somebody else. Its old share is recovered, and even then nobody can
    reach two containers by one address."""
    host = lab.hosts[2]
    for part in (host.disk / "data").glob(f"{STORE}*"):
        part.unlink()
    host.weave("launch", *(each.name for each in lab.hosts), check=True)
    wait_until(lambda: uid(host) not in {"", before}, IDENTITY_DEADLINE_S, "a new identity")
    wait_for_links(lab.hosts)
    done = lab.hosts[0].weave("rmpeer", before, "--timeout", "60s", timeout_s=90)
    assert done.returncode == 0, done.stderr
    lost, lost_address = old[2]
    claimed = lab.hosts[1].start_container("claims")
    (address,) = claimed.attach(f"ip:{lost_address}/12")
    assert address == lost_address
    wait_for_pings(lab, [old[0], (claimed, address)])
    assert lost.addresses() == [] or not lost.ping(old[0][1]), "the container of the lost disk still speaks"
    fresh = [attach_new(each, f"{each.name}-new") for each in lab.hosts]
    living = [*old[:2], (claimed, address), *fresh]
    assert len({each for _, each in living}) == len(living)
    wait_for_pings(lab, living)


def test_a_read_only_store_is_said_and_works_again_once_it_can_be_written(lab: Lab) -> None:
    old = attached_everywhere(lab)
    host = lab.hosts[2]
    host.weave("stop", check=True)
    host.run(["mount", "-o", "remount,ro,bind", "/var/lib/weave"], check=True)
    refused = host.weave("launch")
    assert refused.returncode == 1
    assert "writable" in refused.stderr or "read-only" in refused.stderr.lower()
    assert "/var/lib/weave" in refused.stderr
    host.run(["mount", "-o", "remount,rw,bind", "/var/lib/weave"], check=True)
    host.weave("launch", check=True)
    wait_for_links(lab.hosts)
    wait_for_pings(lab, old)
    assert attach_new(host, "late")[1] not in {address for _, address in old}


FILL = "cat /dev/zero >/full/filler 2>/dev/null"


def test_a_disk_that_is_full_at_launch_is_said_to_be_full(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    (host,) = lab.hosts
    launch = "weave launch --data-dir /full"
    for before in (f"{launch}; {FILL}; weave stop", f"{launch}; weave stop; {FILL}", FILL):
        host.run(["sh", "-c", "mkdir -p /full; mount -t tmpfs -o size=400k,mode=0700 tmpfs /full"], check=True)
        host.run(["sh", "-c", before])
        refused = host.run(launch.split())
        assert refused.returncode == 1
        assert "full" in refused.stderr or "No space left" in refused.stderr, refused.stderr
        assert "next: free some space in /full" in refused.stderr, refused.stderr
        assert "run this again" in refused.stderr
        host.run(["rm", "/full/filler"], check=True)
        host.run(launch.split(), check=True)
        host.run(["sh", "-c", "weave stop; umount /full"], check=True)
    lab.down()


def test_a_full_disk_stops_allocation_in_words_and_goes_on_by_itself(make_lab: MakeLab) -> None:
    lab = make_lab(3)
    host = lab.hosts[2]
    host.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", "/var/lib/weave"], check=True)
    form(lab)
    old = attached_everywhere(lab)
    host.run(["sh", "-c", "cat /dev/zero >/var/lib/weave/filler 2>/dev/null; true"], check=True)
    container = host.start_container("greedy")
    for _ in range(ATTACHES_MAX):
        tried = host.weave("attach", container.id)
        if tried.returncode == 0:
            tried = host.weave("detach", container.id)
        if tried.returncode != 0:
            break
    else:
        pytest.fail("the disk never ran full")
    assert "full" in tried.stderr, tried.stderr
    assert "free some space" in tried.stderr
    wait_for_pings(lab, old)  # the kernel goes on
    (host.path("/var/lib/weave/filler")).unlink()
    wait_until(lambda: host.weave("status").returncode == 0, DISK_DEADLINE_S, "the daemon to serve again")
    wait_for_links(lab.hosts)
    fresh = [attach_new(each, f"{each.name}-new") for each in lab.hosts]
    living = [*old, *fresh]
    assert len({address for _, address in living}) == len(living)
    wait_for_pings(lab, living)
    lab.down()
