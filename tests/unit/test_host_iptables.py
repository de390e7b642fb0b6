"""iptables' older interface: left alone where nobody uses it, followed where somebody does."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from weavenet.host import erasure, firewall, iptables
from weavenet.host.exposure_rules import Exposed
from weavenet.host.firewall import Firewall
from weavenet.host.nft import Command, Nft

PROGRAM = """#!/bin/bash
shift 2
printf '%s\\n' "$*" >>{folder}/calls
[ "$1" != -S ] || cat {folder}/listing
"""


class NoNft(Nft):
    """Nothing is in the kernel's newer tables."""

    def run_now(self, commands: list[Command]) -> list[Command]:  # type: ignore[override]
        return []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``calls`` of the program, the ``listing`` that it prints, and the ``names`` of the tables in the kernel."""
    program = tmp_path / "iptables-legacy"
    program.write_text(PROGRAM.format(folder=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(iptables, "TABLES", {"ip": tmp_path / "names", "ip6": tmp_path / "none"})
    (tmp_path / "listing").write_text("-P FORWARD ACCEPT\n")
    return tmp_path


async def opened() -> Firewall:
    made = Firewall(nft=NoNft(use_library=False))
    await made.open()
    await made.set_exposed((Exposed("10.32.0.0/12"),))
    return made


def test_it_is_not_run_where_nobody_uses_it(folder: Path) -> None:
    async def scenario() -> None:
        made = await opened()
        await made.close()
        assert not (folder / "calls").exists()
        (folder / "names").write_text("nat\nfilter\n")
        made = await opened()
        await made.close()
        assert (folder / "calls").read_text().split("\n")[0] == "-S"

    asyncio.run(scenario())


def test_what_it_is_used_for_later_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "LOOK_S", 0.05)

    async def scenario() -> None:
        made = await opened()
        (folder / "listing").write_text("-P FORWARD DROP\n")
        (folder / "names").write_text("filter\n")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if (folder / "calls").exists() and "-I FORWARD" in (folder / "calls").read_text():
                break
        else:
            raise AssertionError((folder / "calls").read_text())
        await made.close()

    asyncio.run(scenario())


def test_a_program_that_does_not_work_is_no_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "listing").write_bytes(b'-A FORWARD -m comment --comment "\xff" -j ACCEPT\n')
    assert "ACCEPT" in iptables.listing("ip").stdout
    monkeypatch.setattr(iptables, "TIMEOUT_S", 0.1)
    (folder / "iptables-legacy").write_text("#!/bin/bash\nexec sleep 5\n")
    assert iptables.run("ip", "-S").returncode != 0


BUSY = {
    "held": "echo 'Another app is currently holding the xtables lock' >&2; exit 4",
    "slow": "exec sleep 60",
}


@pytest.fixture(params=sorted(BUSY))
def busy(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program is busy as long as this file is there."""
    flag = folder / "busy"
    flag.touch()
    program = folder / "iptables-legacy"
    shebang, _, rest = program.read_text().partition("\n")
    program.write_text(f"{shebang}\n[ -e {flag} ] && {{ {BUSY[request.param]}; }}\n{rest}")
    (folder / "listing").write_text("-P FORWARD DROP\n")
    (folder / "names").write_text("filter\n")
    monkeypatch.setattr(iptables, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(firewall, "RETRY_S", 0.02)
    return flag


def test_rules_come_when_a_busy_program_has_time(busy: Path) -> None:
    async def scenario() -> None:
        made = await opened()
        try:
            assert "iptables-legacy" in " ".join(made.warnings())
            busy.unlink()
            calls = busy.parent / "calls"
            async with asyncio.timeout(20):
                while not calls.exists() or calls.read_text().count("-I FORWARD") < 2:
                    await asyncio.sleep(0.01)
        finally:
            await made.close()

    asyncio.run(scenario())


def test_a_reset_tells_of_rules_that_it_could_not_see(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "Nft", lambda namespace: NoNft(namespace, use_library=False))
    assert "iptables-legacy" in " ".join(asyncio.run(erasure._erase_rules(None)))
    busy.unlink()
    assert asyncio.run(erasure._erase_rules(None)) == []
