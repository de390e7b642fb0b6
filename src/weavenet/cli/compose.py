"""Layers of options -> the one ``Settings`` value that a daemon gets. Every value is checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from weavenet.cli import values
from weavenet.cli.layers import Layers
from weavenet.cli.values import Given, refuse, wrong
from weavenet.core.config import GenesisMode
from weavenet.core.errors import Failure, WeaveError
from weavenet.core.limits import DNS_TTL_MAX_S, ELECTORS_MAX, MTU_MAX, MTU_MIN, TARGETS_MAX
from weavenet.core.lockurl import parse_lock_url
from weavenet.core.mesh.target import parse_target
from weavenet.core.overlay.planes import SLEEVE
from weavenet.runtime.settings import (
    LOG_FILE_DEFAULT,
    NameFrom,
    Settings,
    WireguardUse,
    password_lines,
    password_warnings,
    peer_name,
)

OBSERVER_SWITCHES = ("not-elector", "not-electorate", "observer")
CONN_LIMIT_MAX = 10_000


class Composed(NamedTuple):
    settings: Settings
    foreground: bool
    warnings: tuple[str, ...]


def compose(layers: Layers, peers: tuple[str, ...]) -> Composed:
    """Raises Ended with expected/found/next step for the first value that cannot be right."""
    passwords, warnings = _passwords(layers)
    foreground = layers.get("foreground") is not None
    fields: dict[str, Any] = {
        **_identity(layers),
        **_addresses(layers),
        **_genesis(layers),
        **_plane(layers),
        **_dns(layers),
        **_serving(layers),
        "passwords": passwords,
        "targets": _targets(layers, peers),
        "conf_targets": _checked_targets(layers.conf_peers),
        "discovery": layers.get("no-discovery") is None,
        "assume_identity": layers.get("assume-identity") is not None,
        "log_file": "" if foreground else LOG_FILE_DEFAULT,
    }
    return Composed(Settings(**fields), foreground, (*warnings, *password_warnings(passwords)))


def _each(layers: Layers, parsers: dict[str, tuple[str, Callable[[Given], Any]]]) -> dict[str, Any]:
    """``{option: (field, parser)}`` -> the fields of the options that were given."""
    fields = {}
    for name, (field, parse) in parsers.items():
        given = layers.get(name)
        if given is not None:
            fields[field] = parse(given)
    return fields


def _identity(layers: Layers) -> dict[str, Any]:
    sources = tuple(source.value for source in NameFrom)
    return _each(
        layers,
        {
            "name": ("name", _name),
            "name-from": ("name_from", lambda given: NameFrom(values.choice(given, sources))),
            "nickname": ("nickname", values.nickname),
            "host": ("host", values.ip_address),
            "port": ("port", lambda given: values.number(given, 1, 65_535, "a port")),
            "conn-limit": (
                "conn_limit",
                lambda given: values.number(given, 0, CONN_LIMIT_MAX, "a number of connections") or CONN_LIMIT_MAX,
            ),
        },
    )


def _name(given: Given) -> str:
    try:
        return peer_name(given.text)
    except WeaveError as error:
        wrong(given, error.failure.expected.removeprefix("a peer name is "), error.failure.next_step)


def _seed(given: Given) -> str:
    try:
        return peer_name(given.text)
    except WeaveError:
        step = "launch each seed with --name, and list these names"
        wrong(given, "a peer name, which is a MAC address such as 0a:1b:2c:3d:4e:5f, or short ::1", step)


def _passwords(layers: Layers) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = layers.one_of("password", "password-file")
    for given in (layers.levels[0].get(name) for name in ("password", "password-file")):
        # An empty variable means "not given"; an empty flag is a `$(cat FILE)` that failed, and must not start a
        # network that anybody may join.
        if given is not None and not given.text:
            wrong(given, "a password or its file", "make one with `weave password`, or leave the flag out for none")
    if found is None:
        return (), ()
    name, given = found
    if name == "password-file":
        return values.passwords(given)
    try:
        lines = password_lines(given.text)
    except WeaveError as error:
        refuse(f"{given.source}: expected a password", "only white space", error.failure.next_step)
    conf, comma, _ = given.source.partition(", line ")
    return lines, values.open_to_others(conf, Path(conf).stat().st_mode) if comma else ()


def _addresses(layers: Layers) -> dict[str, Any]:
    given, default = layers.get("ipalloc-range"), layers.get("ipalloc-default-subnet")
    if given is not None and given.text == "":
        if default is not None and default.text:
            wrong(default, "no default subnet, since --ipalloc-range '' switches allocation off", "leave one out")
        return {"ranges": (), "range_explicit": True}
    fields: dict[str, Any] = {}
    if given is not None:
        fields = {"ranges": tuple(map(str, values.ranges(given))), "range_explicit": True}
    if default is not None and default.text:
        wholes = values.ranges(given or Given(",".join(Settings().ranges), "the default range"))
        fields["default_subnets"] = tuple(map(str, values.default_subnets(default, wholes)))
    return fields


def _genesis(layers: Layers) -> dict[str, Any]:
    found = layers.one_of("ipalloc-init", "init-peer-count", *OBSERVER_SWITCHES)
    fields: dict[str, Any] = {}
    if found is not None:
        name, given = found
        if name == "ipalloc-init":
            fields = _init_mode(given)
        elif name == "init-peer-count":
            fields = {"mode": GenesisMode.CONSENSUS, "count": _count(given)}
        else:
            fields = {"mode": GenesisMode.OBSERVER}
    first = layers.get("first-start")
    if first is not None:
        if fields.get("mode") is not GenesisMode.SEED:
            refuse(f"{first.source}: expected together with --ipalloc-init seed=NAMES", "no seeds", "leave it out")
        fields["first_start"] = True
    ephemeral = layers.get("ephemeral")
    if ephemeral is not None:
        fields["ephemeral_ttl_s"] = values.ttl(ephemeral)
        if fields.get("mode", GenesisMode.OBSERVER) is not GenesisMode.OBSERVER or fields.get("count"):
            step = "leave --ipalloc-init out: an ephemeral peer never votes"
            wrong(ephemeral, "no --ephemeral on a peer that takes part in the first division", step)
        fields["mode"] = GenesisMode.OBSERVER
    return fields


def _init_mode(given: Given) -> dict[str, Any]:
    mode, equals, argument = given.text.partition("=")
    match mode:
        case "observer" if not equals:
            return {"mode": GenesisMode.OBSERVER}
        case "consensus" if not equals:
            return {"mode": GenesisMode.CONSENSUS}
        case "consensus":
            return {"mode": GenesisMode.CONSENSUS, "count": _count(Given(argument, given.source))}
        case "seed":
            names = [_seed(Given(name.strip(), given.source)) for name in argument.split(",")]
            if len(set(names)) != len(names):
                wrong(given, "each seed once", "remove the repeated name")
            return {"mode": GenesisMode.SEED, "seeds": tuple(sorted(names))}
        case "lock":
            url = parse_lock_url(argument)
            if isinstance(url, Failure):
                refuse(f"{given.source}: {url.expected}", url.found, url.next_step)
            return {"mode": GenesisMode.LOCK, "lock": url.text}
        case _:
            wrong(given, "consensus, consensus=N, seed=NAME,NAME,…, lock=URL or observer")


def _count(given: Given) -> int:
    return values.number(given, 1, ELECTORS_MAX, "a number of electors")


def _dns(layers: Layers) -> dict[str, Any]:
    fields = _each(
        layers,
        {
            "dns-domain": ("dns_domain", values.dns_domain),
            "dns-ttl": ("dns_ttl_s", lambda given: values.number(given, 0, DNS_TTL_MAX_S, "a number of seconds")),
            "dns-listen-address": ("dns_listen", values.listen_addresses),
        },
    )
    if layers.get("no-dns") is not None:
        fields["dns"] = False
    return fields


def _plane(layers: Layers) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if layers.get("no-fastdp") is not None:
        fields["planes"] = (SLEEVE,)
    wireguard = layers.get("wireguard")
    if wireguard is not None:
        fields["wireguard"] = WireguardUse(values.choice(wireguard, tuple(WireguardUse)))
    trusted = layers.get("trusted-subnets")
    if trusted is not None:
        fields["trusted_subnets"] = values.subnets(trusted)
    mtu = layers.get("mtu")
    if mtu is not None:
        fields["mtu"] = values.number(mtu, MTU_MIN, MTU_MAX, "an MTU in bytes")
        fields["mtu_explicit"] = True
    return fields


def _serving(layers: Layers) -> dict[str, Any]:
    def socket_path(given: Given) -> str:
        return values.absolute_path(given, "the path of a unix socket (the control API is not served on TCP)")

    fields = _each(
        layers,
        {
            "status-addr": ("status_address", values.ip_and_port),
            "log-level": ("log_level", lambda given: values.choice(given, values.LOG_LEVELS)),
            "log-format": ("log_format", lambda given: values.choice(given, values.LOG_FORMATS)),
            "data-dir": ("data_dir", lambda given: values.absolute_path(given, "a folder")),
        },
    )
    http = layers.get("http-addr")
    if http is not None and http.text:
        fields["http_address"] = socket_path(http)
    return fields


def _targets(layers: Layers, peers: tuple[str, ...]) -> tuple[str, ...] | None:
    """None: none were given, the remembered ones count."""
    resume = layers.get("resume")
    if not peers:
        return None
    if resume is not None and resume.source.startswith("--"):
        refuse("expected either --resume or peers", f"--resume and {' '.join(peers)}", "leave one out")
    return _checked_targets(tuple(Given(peer, "peer") for peer in peers))


def _checked_targets(given: tuple[Given, ...]) -> tuple[str, ...]:
    if len(given) > TARGETS_MAX:
        refuse(f"expected at most {TARGETS_MAX} peers", str(len(given)), "list some; discovery finds the others")
    texts = []
    for one in given:
        target = parse_target(one.text)
        if isinstance(target, Failure):
            refuse(f"{one.source}: {target.expected}", target.found, target.next_step)
        texts.append(target.text)
    return tuple(texts)
