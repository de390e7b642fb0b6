"""Hosts of a lab that run weave, as the scenarios need them."""

from __future__ import annotations

from collections.abc import Sequence

from weavenet.core.errors import WeaveError
from weavenet.lab import observe
from weavenet.lab.host import Container, Host, Result
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

LINK_DEADLINE_S = 60.0
HEAL_DEADLINE_S = 45.0  # the product promises 15 on a machine that has time for it
NOTICE_DEADLINE_S = 60.0
REACH_DEADLINE_S = 10.0  # hosts that have just met may still be trying out which data path works

Attached = tuple[Container, str]


def launch_together(hosts: Sequence[Host], *flags: str) -> list[Result]:
    """``weave launch`` with the same list of all peers, on all hosts at the same moment."""
    results = observe.on_each(hosts, "launch", *flags, *(host.name for host in hosts))
    for result in results:
        assert result.returncode == 0, result.stderr
    return results


def wait_for_links(hosts: Sequence[Host], deadline_s: float = LINK_DEADLINE_S) -> None:
    """Until every one of these hosts has a link and a data path to every other."""
    missing: list[str] = []

    def none_missing() -> bool:
        missing[:] = observe.missing_links(hosts)
        return not missing

    try:
        wait_until(none_missing, deadline_s, "links between all hosts")
    except WeaveError:
        said = "\n".join(host.weave("status", "connections").stdout for host in hosts)
        raise AssertionError(f"missing after {deadline_s:g} s: {', '.join(missing)}\n{said}") from None


def wait_for_pings(lab: Lab, containers: Sequence[Attached], deadline_s: float = REACH_DEADLINE_S) -> None:
    """Until each of these containers gets an answer from every other."""
    silent: list[str] = []

    def none_silent() -> bool:
        silent[:] = lab.unreachable(containers)
        return not silent

    try:
        wait_until(none_silent, deadline_s, "all containers to reach each other")
    except WeaveError:
        hosts = {container.host.name: container.host for container, _ in containers}
        said = "\n".join(host.weave("status", "connections").stdout for host in hosts.values())
        raise AssertionError(f"{'; '.join(silent)}\n{said}") from None


def form(lab: Lab) -> None:
    """All hosts of the lab as one cluster that agreed on shares."""
    launch_together(lab.hosts)
    wait_for_links(lab.hosts)
    for result in observe.on_each(lab.hosts, "consense", "--timeout", "50s"):
        assert result.returncode == 0, result.stderr


def attach_new(host: Host, name: str) -> Attached:
    container = host.start_container(name)
    addresses = container.attach()
    assert len(addresses) == 1, addresses
    return container, addresses[0]


def attached_on(host: Host) -> set[str]:
    """Addresses that ``weave ps`` shows, without prefix length."""
    words = host.weave("ps", check=True).stdout.split()
    return {word.partition("/")[0] for word in words if "." in word and "/" in word}
