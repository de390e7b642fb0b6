"""IPv6 is switched on for our own device, and its absence told in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from weavenet.core.errors import WeaveError
from weavenet.host import ipv6, probe, sysctl


class Settings:
    """Sysctls of one namespace: those that exist, and those that may be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], *, is_writable: bool = True) -> None:
        self.values = values
        self._is_writable = is_writable
        monkeypatch.setattr(sysctl, "write", self._write)
        monkeypatch.setattr(sysctl, "read", lambda namespace, name: self.values.get(name))

    def _write(self, namespace: int | None, settings: Mapping[str, str]) -> tuple[str, ...]:
        if not self._is_writable:
            return tuple(
                f"net/{name} could not be set to {value}: Read-only file system" for name, value in settings.items()
            )
        self.values.update({name: value for name, value in settings.items() if name in self.values})
        return ()


NAME = "ipv6/conf/ethwe/disable_ipv6"


def test_it_is_switched_on_for_the_device_and_only_for_ipv6_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(monkeypatch, {NAME: "1", "ipv6/conf/all/disable_ipv6": "1"})
    ipv6.allow(None, "ethwe", ("10.32.0.1/12",), "netns:web")
    assert settings.values[NAME] == "1"
    ipv6.allow(None, "ethwe", ("10.32.0.1/12", "fd00:77::1/64"), "netns:web")
    assert settings.values == {NAME: "0", "ipv6/conf/all/disable_ipv6": "1"}


def test_a_kernel_without_ipv6_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Settings(monkeypatch, {})
    ipv6.allow(None, "ethwe", ("10.32.0.1/12",), "netns:web")
    with pytest.raises(WeaveError) as refused:
        ipv6.allow(None, "ethwe", ("10.32.0.1/12", "fd00:77::1/64"), "netns:web")
    sentence = refused.value.failure.sentence()
    assert "expected IPv6 for fd00:77::1/64; found: netns:web has no IPv6" in sentence
    assert "ipv6.disable=1" in sentence and "net:10.32.0.0/12" in sentence


def test_setup_says_whether_there_is_ipv6_for_an_ipv6_range(tmp_path: Path) -> None:
    assert probe.ipv6(("10.32.0.0/12",), tmp_path) == ()
    (missing,) = probe.ipv6(("10.32.0.0/12", "fd00:77::/64"), tmp_path)
    assert not missing.ok and missing.required and "fd00:77::/64" in missing.found and missing.next_step
    (tmp_path / "if_inet6").touch()
    (there,) = probe.ipv6(("fd00:77::/64",), tmp_path)
    assert there.ok


def test_a_setting_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Settings(monkeypatch, {NAME: "1"}, is_writable=False)
    with pytest.raises(WeaveError) as refused:
        ipv6.allow(None, "ethwe", ("fd00:77::1/64",), "netns:web")
    assert "Read-only file system" in refused.value.failure.found
