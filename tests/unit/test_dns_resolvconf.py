"""resolv.conf as it is found on hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.dns.forward import Upstream
from weavenet.dns.resolvconf import ResolvConf, parse


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("nameserver 192.0.2.1\nsearch example.com\noptions edns0 trust-ad\n", ["192.0.2.1"]),
        ("# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", []),
        ("nameserver\t192.0.2.1   # the router\r\nnameserver 2001:DB8::1\n", ["192.0.2.1", "2001:db8::1"]),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("nameserver fe80::1%eth0\nnameserver\nnameserver router\nnameservers 192.0.2.1\n", ["fe80::1%eth0"]),
    ],
)
def test_lines(text: str, hosts: list[str]) -> None:
    assert parse(text) == tuple(Upstream(host, 53) for host in hosts)


@given(st.text(max_size=300))
def test_rubbish(text: str) -> None:
    parse(text)
    parse("nameserver " + text)


def test_it_is_read_again_when_it_changed_and_kept_while_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(str(path), frozenset({"192.0.2.9"}))
    assert not conf.changed(0.0)
    path.write_text("nameserver 192.0.2.9\nnameserver 192.0.2.1\n")
    assert not conf.changed(0.5), "not looked at more than once a second"
    assert conf.changed(1.5)
    assert conf.upstreams == (Upstream("192.0.2.1", 53),)
    assert not conf.changed(3.0)
    path.unlink()
    assert not conf.changed(4.5)
    replacement = tmp_path / "new"
    replacement.write_bytes(b"nameserver 192.0.2.9\n\xff\n")
    replacement.replace(path)
    assert not conf.changed(6.0), "nobody but us: the last ones stay"
    assert conf.upstreams == (Upstream("192.0.2.1", 53),)
    conf.set_own(frozenset())
    assert conf.changed(6.1)
    assert conf.upstreams == (Upstream("192.0.2.9", 53),)
