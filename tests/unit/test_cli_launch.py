"""Launch: layers of options, values, what is refused before anything starts, and the start of the process."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weavenet.cli import hostcheck, spawn
from weavenet.cli.compose import Composed, compose
from weavenet.cli.hostcheck import check_host, default_overlap
from weavenet.cli.layers import OPTIONS, Kind, misspelt, read_layers
from weavenet.cli.main import run
from weavenet.cli.outcome import Ended
from weavenet.core.config import GenesisMode
from weavenet.runtime.settings import LogFormat, NameFrom, Settings, WireguardUse

Compose = Callable[..., Composed]


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    """``composed({flag: value}, env={...}, conf="…", peers=(…))``."""

    def make(
        flags: dict[str, Any] | None = None, *, env: dict[str, str] | None = None, conf: str = "", peers: Any = ()
    ) -> Composed:
        path = tmp_path / "weave.conf"
        path.write_text(conf)
        path.chmod(0o600)
        return compose(read_layers(flags or {}, env or {}, str(path)), tuple(peers))

    return make


def refusal(make: Compose, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(Ended) as caught:
        make(*arguments, **keywords)
    assert caught.value.status == 1
    return caught.value.sentence


def test_defaults(composed: Compose) -> None:
    result = composed()
    assert result.settings == Settings(log_file="/var/log/weave.log")
    assert not result.foreground


def test_every_flag_reaches_the_settings(composed: Compose, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("first-long-password\n\nsecond-long-password\n")
    secret.chmod(0o600)
    flags = {
        "name": "::7",
        "name-from": "random",
        "assume-identity": True,
        "nickname": "h7",
        "host": "192.0.2.1",
        "port": "7000",
        "password-file": str(secret),
        "no-discovery": True,
        "conn-limit": "0",
        "no-restart": True,
        "ipalloc-range": "10.2.0.0/16",
        "ipalloc-default-subnet": "10.2.3.0/24",
        "ipalloc-init": "seed=::2,::1",
        "first-start": True,
        "no-fastdp": True,
        "wireguard": "any",
        "trusted-subnets": "192.0.2.7/24, 2001:db8::/32",
        "mtu": "1300",
        "no-dns": True,
        "dns-domain": "Lab.Example",
        "dns-ttl": "30",
        "dns-listen-address": "192.0.2.1, [fd00::1]:5353,fd00::2,[::1],[fe80::1%lo]:53",
        "http-addr": "/run/x.sock",
        "status-addr": "[::1]:6000",
        "log-level": "debug",
        "log-format": "json",
        "data-dir": "/srv/weave",
        "foreground": True,
    }
    result = composed(flags, peers=("H1", "[fd00::1]:7001"))
    assert result.warnings == ()
    assert result.foreground
    assert result.settings == Settings(
        name="00:00:00:00:00:07",
        name_from=NameFrom.RANDOM,
        assume_identity=True,
        nickname="h7",
        host="192.0.2.1",
        port=7000,
        passwords=("first-long-password", "second-long-password"),
        targets=("h1", "[fd00::1]:7001"),
        discovery=False,
        conn_limit=10_000,
        ranges=("10.2.0.0/16",),
        range_explicit=True,
        default_subnets=("10.2.3.0/24",),
        mode=GenesisMode.SEED,
        seeds=("00:00:00:00:00:01", "00:00:00:00:00:02"),
        first_start=True,
        planes=("sleeve",),
        wireguard=WireguardUse.ANY,
        trusted_subnets=("192.0.2.0/24", "2001:db8::/32"),
        mtu=1300,
        mtu_explicit=True,
        dns=False,
        dns_domain="lab.example.",
        dns_ttl_s=30,
        dns_listen=("192.0.2.1:53", "[fd00::1]:5353", "[fd00::2]:53", "[::1]:53", "[fe80::1%lo]:53"),
        http_address="/run/x.sock",
        status_address="[::1]:6000",
        log_level="debug",
        log_format=LogFormat.JSON,
        data_dir="/srv/weave",
        log_file="",
    )
    assert {option.name for option in OPTIONS} - set(flags) == {
        "password", "resume", "not-elector", "not-electorate", "observer", "init-peer-count", "ephemeral",
    }  # fmt: skip


@pytest.mark.parametrize("switch", ["not-elector", "not-electorate", "observer"])
def test_spellings_of_observer(composed: Compose, switch: str) -> None:
    assert composed({switch: True}).settings.mode is GenesisMode.OBSERVER


def test_spellings_of_consensus(composed: Compose) -> None:
    assert composed({"ipalloc-init": "consensus=3"}).settings.count == 3
    assert composed({"init-peer-count": "3"}).settings.count == 3
    assert composed({"ipalloc-init": "consensus"}).settings.count == 0


def test_flag_beats_variable_beats_file(composed: Compose) -> None:
    conf = 'mtu = 1000\nport = 1000\nnickname = "file"\nlog-level = "debug"\n'
    env = {"WEAVE_MTU": "1100", "WEAVE_PORT": "1100", "WEAVE_NICKNAME": "variable"}
    settings = composed({"mtu": "1200"}, env=env, conf=conf).settings
    assert (settings.mtu, settings.port, settings.nickname, settings.log_level) == (1200, 1100, "variable", "debug")


def test_a_stronger_layer_overrides_an_excluding_option_of_a_weaker_one(composed: Compose) -> None:
    settings = composed({"ipalloc-init": "consensus=3"}, env={"WEAVE_OBSERVER": "1"}).settings
    assert (settings.mode, settings.count) == (GenesisMode.CONSENSUS, 3)


def test_peers_of_file_and_command_line(composed: Compose) -> None:
    settings = composed(conf='peers = ["h1", "h2:7000"]', peers=("h3",)).settings
    assert (settings.conf_targets, settings.targets) == (("h1", "h2:7000"), ("h3",))
    assert composed(conf='peers = ["h1"]').settings.targets is None
    settings = composed(conf='peers = ["h1"]', env={"WEAVE_PEERS": "h2 h3,h4:7000"}).settings
    assert (settings.conf_targets, settings.targets) == (("h2", "h3", "h4:7000"), None)
    assert composed(conf='peers = ["h1"]', env={"WEAVE_PEERS": " "}).settings.conf_targets == ("h1",)
    assert "WEAVE_PEERS" in refusal(composed, env={"WEAVE_PEERS": "h1:x"})


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("90s", 90), ("10m", 600), ("1h", 3600), ("2d", 172_800)])
def test_an_ephemeral_peer_never_votes(composed: Compose, text: str, seconds: int) -> None:
    settings = composed({"ephemeral": text}).settings
    assert (settings.ephemeral_ttl_s, settings.mode) == (seconds, GenesisMode.OBSERVER)
    assert composed({"ephemeral": text, "observer": True}).settings.mode is GenesisMode.OBSERVER


def test_lock(composed: Compose) -> None:
    settings = composed({"ipalloc-init": "lock=etcd://a,b/weave?x=1"}).settings
    assert (settings.mode, settings.lock) == (GenesisMode.LOCK, "etcd://a,b/weave?x=1")


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("10.32.0.0/12,fd00:77::/64", ("10.32.0.0/12", "fd00:77::/64")),
        ("FD00:77:0::/64, 10.32.0.0/12", ("10.32.0.0/12", "fd00:77::/64")),
        ("fd00:77::/112", ("fd00:77::/112",)),
    ],
)
def test_ranges_of_both_families_in_any_order(composed: Compose, text: str, ranges: tuple[str, ...]) -> None:
    settings = composed({"ipalloc-range": text}).settings
    assert (settings.ranges, settings.range_explicit) == (ranges, True)


def test_ranges_from_the_environment_and_the_file(composed: Compose) -> None:
    ranges = ("10.32.0.0/12", "fd00:77::/64")
    text = ",".join(ranges)
    assert composed(env={"WEAVE_IPALLOC_RANGE": text}).settings.ranges == ranges
    assert composed(conf=f'ipalloc-range = "{text}"').settings.ranges == ranges


def test_default_subnets_of_both_families(composed: Compose) -> None:
    flags = {"ipalloc-range": "10.32.0.0/12,fd00:77::/64", "ipalloc-default-subnet": "fd00:77:0:0:1::/80,10.32.1.0/24"}
    assert composed(flags).settings.default_subnets == ("10.32.1.0/24", "fd00:77:0:0:1::/80")


def test_no_allocation(composed: Compose) -> None:
    settings = composed({"ipalloc-range": ""}).settings
    assert (settings.ranges, settings.range_explicit) == ((), True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"name": "0a:0b"}, ["--name", "MAC address", "'0a:0b'"]),
        ({"name-from": "dns"}, ["machine-id, hostname, random"]),
        ({"nickname": ""}, ["printable"]),
        ({"host": "h1"}, ["--host", "IP address"]),
        ({"port": "0"}, ["from 1 to 65535", "'0'"]),
        ({"port": "65536"}, ["65535"]),
        ({"port": "x"}, ["'x'"]),
        ({"port": "٣"}, ["from 1"]),
        ({"conn-limit": "-1"}, ["from 0"]),
        ({"mtu": "575"}, ["576"]),
        ({"mtu": "65536"}, ["65535"]),
        ({"password": "a", "password-file": "b"}, ["only one", "--password and --password-file"]),
        ({"password": "  "}, ["password"]),
        ({"password-file": "/nonexistent"}, ["--password-file", "No such file"]),
        ({"ipalloc-range": "10.32.0.0"}, ["CIDR"]),
        ({"ipalloc-range": "10.32.0.1/12"}, ["network address", "10.32.0.0/12"]),
        ({"ipalloc-range": "10.32.0.0/31"}, ["at least 4"]),
        ({"ipalloc-range": "0.0.0.0/0"}, ["0.0.0.0/8", "10.0.0.0/8"]),
        ({"ipalloc-range": "127.1.0.0/16"}, ["127.0.0.0/8"]),
        ({"ipalloc-range": "169.254.0.0/20"}, ["169.254.0.0/16"]),
        ({"ipalloc-range": "232.0.0.0/8"}, ["224.0.0.0/4"]),
        ({"ipalloc-range": "10.32.0.0/12,10.99.0.0/16"}, ["at most one IPv4 range and one IPv6", "leave one out"]),
        ({"ipalloc-range": "10.0.0.0/8,10.32.0.0/12"}, ["at most one IPv4 range and one IPv6", "includes both"]),
        ({"ipalloc-range": "fd00:1::/64,fd00:2::/64"}, ["at most one IPv4 range and one IPv6"]),
        ({"ipalloc-range": "10.32.0.0/12,fd00::/48"}, ["at most 2^64 addresses", "'fd00::/48'", "fd00::/64"]),
        ({"ipalloc-range": "fd00::1/64"}, ["network address", "fd00::/64"]),
        ({"ipalloc-range": "fd00::"}, ["network address", "fd00::/64"]),
        ({"ipalloc-range": "fd00::/127"}, ["at least 4", "/126"]),
        ({"ipalloc-range": "fe80::/64"}, ["fe80::/10", "fd00:77::/64"]),
        ({"ipalloc-range": "10.32.0.0/12,"}, ["CIDR", "''"]),
        (
            {"ipalloc-range": "10.0.0.0/16,fd00::/64", "ipalloc-default-subnet": "fd01::/80"},
            ["within each range 10.0.0.0/16,fd00::/64"],
        ),
        (
            {"ipalloc-range": "10.0.0.0/16,fd00::/64", "ipalloc-default-subnet": "10.0.1.0/24,10.0.2.0/24"},
            ["one subnet within each range"],
        ),
        ({"ipalloc-range": "rubbish"}, ["CIDR", "'rubbish'"]),
        ({"ipalloc-range": "10.0.0.0/16", "ipalloc-default-subnet": "10.1.0.0/24"}, ["within each range 10.0.0.0/16"]),
        ({"ipalloc-range": "", "ipalloc-default-subnet": "10.1.0.0/24"}, ["switches allocation off"]),
        ({"ephemeral": "59s"}, ["--ephemeral", "from 1m to 30d", "'59s'"]),
        ({"ephemeral": "soon"}, ["from 1m"]),
        ({"ephemeral": "10m", "ipalloc-init": "consensus=3"}, ["--ephemeral", "never votes"]),
        ({"ephemeral": "10m", "ipalloc-init": "seed=::1"}, ["never votes"]),
        ({"ipalloc-init": "consensus=0"}, ["from 1"]),
        ({"ipalloc-init": "consensus="}, ["from 1"]),
        ({"ipalloc-init": "seed="}, ["MAC address"]),
        ({"ipalloc-init": "seed=::1,::1"}, ["each seed once"]),
        ({"ipalloc-init": "lock=file:x"}, ["--ipalloc-init", "absolute path", "https://"]),
        ({"ipalloc-init": "lock="}, ["file:, http:, https: or etcd:"]),
        ({"ipalloc-init": "votes"}, ["consensus=N"]),
        ({"ipalloc-init": "seed=::1", "observer": True}, ["only one", "--observer"]),
        ({"init-peer-count": "0"}, ["from 1"]),
        ({"first-start": True}, ["seed="]),
        ({"dns-domain": "weave..local"}, ["--dns-domain", "weave.local"]),
        ({"dns-domain": "a b"}, ["domain"]),
        ({"dns-domain": "arpa"}, ["can be ours"]),
        ({"dns-domain": "10.in-addr.arpa."}, ["can be ours"]),
        ({"dns-domain": "LocalHost"}, ["can be ours"]),
        ({"dns-domain": "192.0.2.1"}, ["can be ours"]),
        ({"dns-domain": "x." * 100 + "y"}, ["198"]),
        ({"dns-ttl": "-1"}, ["from 0 to 86400"]),
        ({"dns-listen-address": "0.0.0.0"}, ["--dns-listen-address", "name each address"]),
        ({"dns-listen-address": "10.0.0.1,[::]:53"}, ["name each address"]),
        ({"dns-listen-address": "localhost:53"}, ["10.0.0.5"]),
        ({"dns-listen-address": "10.0.0.1:0"}, ["10.0.0.5"]),
        ({"dns-listen-address": "10.0.0.1,fe80::5"}, ["[fe80::5%eth0]:53"]),
        ({"http-addr": "127.0.0.1:6784"}, ["unix socket"]),
        ({"status-addr": "6782"}, ["IP:PORT"]),
        ({"status-addr": "host:6782"}, ["IP:PORT"]),
        ({"log-level": "loud"}, ["debug, info"]),
        ({"log-format": "xml"}, ["logfmt"]),
        ({"data-dir": "var"}, ["absolute path"]),
    ],
)
def test_wrong_values_are_refused(composed: Compose, flags: dict[str, Any], words: list[str]) -> None:
    sentence = refusal(composed, flags)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("peer", ["a b", "h:0", "h:99999", "[fd00::1", "-h", "1.2.3", "h" * 300, ""])
def test_malformed_peers_are_refused(composed: Compose, peer: str) -> None:
    assert "found" in refusal(composed, peers=(peer,))
    assert "weave.conf, line 1, peers" in refusal(composed, conf=f"peers = [{json.dumps(peer)}]")


def test_resume_excludes_peers(composed: Compose) -> None:
    assert "--resume" in refusal(composed, {"resume": True}, peers=("h1",))
    assert composed({"resume": True}).settings.targets is None


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ("port = 1\nmtuu = 5\n", ["line 2, mtuu", "did you mean mtu?"]),
        ('\n\nmtu = "big"\n', ["line 3, mtu", "a whole number", "'big'"]),
        ("mtu = true", ["line 1, mtu", "a whole number"]),
        ('no-fastdp = "yes"', ["line 1, no-fastdp", "true or false"]),
        ("nickname = 5", ["a string"]),
        ("mtu = 5", ["line 1, mtu", "576"]),
        ("mtu = \nport = 3", ["TOML", "line 1"]),
        ('peers = "h1"', ["a list of strings"]),
        ('[[expose]]\naddress = "x"', ["line 1, expose"]),
        ("peers = " + "[" * 10_000, ["TOML", "brackets"]),
    ],
)
def test_wrong_files_are_refused_with_the_line(composed: Compose, conf: str, words: list[str]) -> None:
    sentence = refusal(composed, conf=conf)
    assert "weave.conf" in sentence
    assert all(word in sentence for word in words), sentence


def test_a_file_may_begin_with_a_byte_order_mark(composed: Compose) -> None:
    assert composed(conf="\ufeffmtu = 1400\n").settings.mtu == 1400


def test_wrong_variables_are_refused_by_name(composed: Compose) -> None:
    assert "WEAVE_MTU" in refusal(composed, env={"WEAVE_MTU": "x"})
    assert "WEAVE_NO_FASTDP" in refusal(composed, env={"WEAVE_NO_FASTDP": "maybe"})
    assert "kernel, any, off" in refusal(composed, env={"WEAVE_WIREGUARD": "yes"})


def test_a_variable_with_a_lost_letter_is_warned_about() -> None:
    (warning,) = misspelt({"WEAVE_PASWORD": "secret", "WEAVE_PORT": "1", "WEAVE_CONF": "x", "WEAVE_LAB": "a", "A": ""})
    assert "WEAVE_PASWORD" in warning and "WEAVE_PASSWORD?" in warning and "secret" not in warning


def test_an_empty_password_flag_starts_no_open_network(composed: Compose) -> None:
    for flag in ("password", "password-file"):
        assert f"--{flag}" in refusal(composed, {flag: ""})
    assert composed(env={"WEAVE_PASSWORD": ""}).settings.passwords == ()


def test_switches_of_the_environment(composed: Compose) -> None:
    assert composed(env={"WEAVE_NO_FASTDP": "true"}).settings.planes == ("sleeve",)
    assert composed(env={"WEAVE_NO_FASTDP": "0"}).settings.planes == ("fastdp", "sleeve")
    assert composed(env={"WEAVE_NO_FASTDP": "", "WEAVE_MTU": ""}).settings == composed().settings


def test_secrets_that_others_can_read_are_warned_about(composed: Compose, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("a-very-long-password")
    secret.chmod(0o644)
    (warning,) = composed({"password-file": str(secret)}).warnings
    assert "chmod 600" in warning
    (warning,) = composed({"password": "short"}).warnings
    assert "short" not in warning.replace("shorter", "")


ROUTES = textwrap.dedent("""\
    Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
    eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0
    eth0 0000200A 00000000 0001 0 0 0 0000FFFF 0 0 0
    weave 0000200A 00000000 0001 0 0 0 0000F0FF 0 0 0
    """)


ROUTES6 = textwrap.dedent("""\
    fd000077000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0
    fd000077000000000000000000000005 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001 eth0
    fd000077000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 weave
    fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0
    00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0
    """)  # noqa: E501 - as the kernel writes it


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "route").write_text(ROUTES)
    (tmp_path / "ipv6_route").write_text(ROUTES6)
    return tmp_path


def test_an_ipv6_range_over_a_route_is_warned_about(proc: Path) -> None:
    chosen = Settings(ranges=("10.99.0.0/16", "fd00:77::/80"), range_explicit=True)
    (warning,) = check_host(chosen, proc)
    assert "fd00:77::/80 overlaps a route of this host (fd00:77::/64 on eth0)" in warning
    assert check_host(Settings(ranges=("10.99.0.0/16", "fd00:78::/64"), range_explicit=True), proc) == ()


def test_an_ipv6_range_on_a_host_without_ipv6_is_refused_in_words(proc: Path) -> None:
    (proc / "ipv6_route").unlink()
    with pytest.raises(Ended) as caught:
        check_host(Settings(ranges=("10.99.0.0/16", "fd00:78::/64"), range_explicit=True), proc)
    assert "expected a kernel with IPv6 for the range fd00:78::/64" in caught.value.sentence
    assert "ipv6.disable=1" in caught.value.sentence
    assert check_host(Settings(ranges=("10.99.0.0/16",)), proc) == ()


def test_a_chosen_range_over_a_route_is_warned_about_and_the_default_is_for_the_daemon_to_judge(proc: Path) -> None:
    assert default_overlap(Settings(), proc) == "10.32.0.0/16 on eth0"
    assert check_host(Settings(), proc) == ()
    (warning,) = check_host(Settings(range_explicit=True), proc)
    assert "10.32.0.0/16 on eth0" in warning
    assert default_overlap(Settings(range_explicit=True), proc) == ""
    assert check_host(Settings(ranges=("10.99.0.0/16",), range_explicit=True), proc) == ()
    assert default_overlap(Settings(ranges=("10.99.0.0/16",)), proc) == ""
    assert check_host(Settings(ranges=(), range_explicit=True), proc) == ()


def test_what_the_daemon_warns_of_is_shown_by_the_launch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[Settings] = []

    def start(settings: Settings) -> spawn.Word:
        started.append(settings)
        return spawn.Word(ready=True, name="::1", warnings=("the range overlaps",))

    monkeypatch.setattr(spawn, "start_in_background", start)
    monkeypatch.setattr(hostcheck, "default_overlap", lambda settings: "10.32.0.0/16 on eth0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("WEAVE_CONF", str(tmp_path / "none"))
    monkeypatch.setenv("WEAVE_HTTP_ADDR", str(tmp_path / "absent.sock"))
    assert run(["launch"]) == 0
    captured = capfd.readouterr()
    assert captured.out == "::1\n"
    assert "warning: the range overlaps" in captured.err
    assert started[0].range_overlap == "10.32.0.0/16 on eth0"


def test_options_have_one_variable_each() -> None:
    assert len({option.variable for option in OPTIONS}) == len(OPTIONS)
    assert all(option.metavar or option.kind is Kind.SWITCH for option in OPTIONS)


def test_launch_needs_root(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("WEAVE_CONF", str(tmp_path / "none"))
    assert run(["launch"]) == 1
    assert "sudo weave launch" in capfd.readouterr().err


def test_nothing_starts_with_a_wrong_value(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(spawn, "start_in_background", started)
    monkeypatch.setenv("WEAVE_CONF", str(tmp_path / "none"))
    assert run(["launch", "--mtu", "1", "--ipalloc-init", "observer"]) == 1
    assert "from 576 to 65535" in capfd.readouterr().err


def test_a_device_whose_name_is_no_text_disturbs_nobody(proc: Path) -> None:
    """The kernel takes any bytes but white space, a slash and a colon."""
    for name in ("route", "ipv6_route"):
        (proc / name).write_bytes((proc / name).read_bytes().replace(b"eth0", b"\xff\xfe"))
    (warning,) = check_host(Settings(ranges=("10.32.0.0/16", "fd00:78::/64"), range_explicit=True), proc)
    assert "10.32.0.0/16" in warning
