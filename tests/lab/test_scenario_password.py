"""Two hosts share a password; one has none, one a wrong one: both are refused and both sides say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.clusters import NOTICE_DEADLINE_S, wait_for_links
from lab.fresh import MakeLab
from weavenet.lab import observe
from weavenet.lab.host import Host
from weavenet.lab.lab import Lab
from weavenet.lab.waiting import wait_until

PASSWORD = "correct horse battery staple 7391"


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(4)
    passwords = {"h1": PASSWORD, "h2": PASSWORD, "h4": "another horse entirely 1846"}
    for host in lab.hosts:
        others = [other.name for other in lab.hosts if other.name != host.name]
        environment = {"WEAVE_PASSWORD": passwords[host.name]} if host.name in passwords else {}
        done = host.weave("launch", *others, environment=environment)
        assert done.returncode == 0, done.stderr
    return lab


def connection_lines(host: Host, other: Host) -> list[str]:
    return [line for line in host.weave("status", "connections").stdout.splitlines() if other.address in line]


def test_equal_passwords_connect_and_say_so(lab: Lab) -> None:
    pair = [lab.host("h1"), lab.host("h2")]
    wait_for_links(pair)
    for host, other in (pair, reversed(pair)):
        assert any("established sleeve" in line and "password" in line for line in connection_lines(host, other))


@pytest.mark.parametrize("stranger", ["h3", "h4"])
def test_no_password_and_a_wrong_one_are_refused_and_both_sides_say_why(lab: Lab, stranger: str) -> None:
    outside, inside = lab.host(stranger), lab.host("h1")
    for host, other in ((inside, outside), (outside, inside)):
        wait_until(
            lambda here=host, there=other: any("password" in line for line in connection_lines(here, there)),
            NOTICE_DEADLINE_S,
            f"{host.name} to say that the password is why {other.name} is refused",
        )
        assert not any("established" in line for line in connection_lines(host, other))
    assert observe.linked(outside) == set()
    assert stranger not in observe.linked(inside)


def test_the_password_is_neither_in_arguments_nor_environment_nor_state(lab: Lab) -> None:
    host = lab.host("h1")
    for pid in host.daemon_pids():
        for file in ("cmdline", "environ"):
            assert PASSWORD.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    found = host.run(["grep", "-rl", PASSWORD, "/var/lib/weave", "/var/log", "/run/weave", "/etc/weave.conf"])
    assert found.stdout == ""


@pytest.mark.parametrize(("trusts", "plane"), [(("h1", "h2"), "fastdp"), (("h1",), "sleeve")])
def test_only_hosts_that_trust_each_other_speak_in_clear(
    make_lab: MakeLab, trusts: tuple[str, ...], plane: str
) -> None:
    lab = make_lab(2)
    for host in lab.hosts:
        flags = ["--trusted-subnets", "192.168.77.0/24"] if host.name in trusts else []
        host.weave("launch", *flags, "h1", "h2", environment={"WEAVE_PASSWORD": PASSWORD}, check=True)
    wait_for_links(lab.hosts)
    for host, other in (lab.hosts, reversed(lab.hosts)):
        wait_until(
            lambda here=host, there=other: any(
                f"established {plane}" in line for line in connection_lines(here, there)
            ),
            NOTICE_DEADLINE_S,
            f"{host.name} to use {plane} to {other.name}",
        )
    lab.down()
