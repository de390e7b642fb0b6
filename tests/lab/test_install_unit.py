"""``weave install-unit`` on hosts without a running systemd; under a running one: tests/under-systemd."""

from __future__ import annotations

import json

from lab.clusters import wait_for_links
from lab.fresh import MakeLab
from weavenet.lab import observe

UNIT = "/etc/systemd/system/weave.service"
LINK = "/etc/systemd/system/multi-user.target.wants/weave.service"


def test_a_host_starts_by_itself_until_the_unit_is_taken_away(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    h1, h2 = lab.hosts
    h1.path("/etc/weave.conf").unlink()
    unit = h1.weave("install-unit", "--dry-run", check=True).stdout
    assert not h1.path(UNIT).exists()

    done = h1.weave("install-unit", check=True)
    assert done.stdout == f"{UNIT}\n" and "/etc/weave.conf: all settings" in done.stderr
    assert h1.path(UNIT).read_text() == unit
    assert h1.path("/etc/weave.conf").stat().st_mode & 0o777 == 0o600
    again = json.loads(h1.weave("install-unit", "-o", "json", check=True).stdout)
    assert again == {"path": UNIT, "installed": True, "changed": False, "conf": "/etc/weave.conf"}
    assert "systemctl start weave" in h1.weave("status").stderr

    h2.path("/etc/default/weave").write_text('# peers of all hosts\nWEAVE_PEERS="h1 h2"\n')
    h2.weave("install-unit", check=True)
    for host in lab.hosts:
        lab.reboot(host.name)
    wait_for_links(lab.hosts)
    name = observe.report(h1).router.name
    targets = json.loads(h2.weave("report", check=True).stdout)["Router"]["TargetDetails"]
    assert {(target["Target"], target["Origin"]) for target in targets} == {("h1", "conf"), ("h2", "conf")}
    lab.reboot("h1")
    assert observe.report(h1).router.name == name

    assert "install-unit --uninstall" in h2.weave("reset", check=True).stderr
    gone = h1.weave("install-unit", "--uninstall", check=True)
    assert "does not start at boot any more" in gone.stderr
    assert not h1.path(UNIT).exists() and not h1.path(LINK).is_symlink()
    assert observe.report(h1).router.name == name  # it goes on until it is stopped
    h1.weave("install-unit", "--uninstall", check=True)
    lab.reboot("h1")
    assert not h1.daemon_pids()
    lab.down()


def test_what_somebody_else_wrote_stays(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    (host,) = lab.hosts
    theirs = "[Service]\nExecStart=/usr/local/bin/weave launch --no-restart $PEERS\n"
    host.path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)
    host.path(UNIT).write_text(theirs)
    for arguments in ((), ("--uninstall",)):
        done = host.weave("install-unit", *arguments)
        assert done.returncode == 1 and "[Service]" in done.stderr and "next: move it away" in done.stderr
    assert host.path(UNIT).read_text() == theirs
    lab.down()
