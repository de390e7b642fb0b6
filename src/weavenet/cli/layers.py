"""The layers that `launch` reads its options from: flags, then ``WEAVE_…`` variables, then /etc/weave.conf.

Each value remembers where it was written, so that a refusal can point there. Checks types and names only; what a value
may be is decided in ``values.py``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from weavenet.cli.values import LOG_FORMATS, LOG_LEVELS, Given, refuse

CONF_PATH = "/etc/weave.conf"
PEERS_KEY = "peers"
PEERS_VARIABLE = "WEAVE_PEERS"
CONF_BYTES_MAX = 1 << 20


class Kind(Enum):
    TEXT = "a string"
    NUMBER = "a whole number"
    SWITCH = "true or false"


class Option(NamedTuple):
    """``name`` is the flag without dashes and the key in the file; the variable follows from it."""

    name: str
    kind: Kind
    metavar: str
    help: str
    words: tuple[str, ...] = ()
    """All that its value may be, where that is known."""

    @property
    def variable(self) -> str:
        return "WEAVE_" + self.name.upper().replace("-", "_")


OPTIONS = (
    Option("name", Kind.TEXT, "MAC", "Peer name: a MAC address, or short ::N. Default: derived, then remembered."),
    Option(
        "name-from",
        Kind.TEXT,
        "SOURCE",
        "Derive the name from machine-id (default), hostname or random.",
        ("machine-id", "hostname", "random"),
    ),
    Option("assume-identity", Kind.SWITCH, "", "Keep the identity although the disk seems to be another machine's."),
    Option("nickname", Kind.TEXT, "TEXT", "Name for people. Default: the host name."),
    Option("host", Kind.TEXT, "ADDRESS", "Listen and connect from this address only."),
    Option("port", Kind.NUMBER, "N", "TCP port between peers. Default 6783."),
    Option("password", Kind.TEXT, "TEXT", "Only peers with the same password join. Shown by ps: prefer a file."),
    Option("password-file", Kind.TEXT, "PATH", "File with passwords: the first line is used, all are accepted."),
    Option("no-discovery", Kind.SWITCH, "", "Connect only to the listed peers."),
    Option("conn-limit", Kind.NUMBER, "N", "Most connections, both directions; 0: no limit. Default 200."),
    Option("resume", Kind.SWITCH, "", "Use the remembered peers (as a launch without peers does)."),
    Option("no-restart", Kind.SWITCH, "", "Accepted for compatibility; has no effect."),
    Option(
        "ipalloc-range",
        Kind.TEXT,
        "CIDR[,CIDR]",
        "Addresses to divide: IPv4, IPv6, or IPV4,IPV6. Default 10.32.0.0/12; '': none.",
    ),
    Option(
        "ipalloc-default-subnet",
        Kind.TEXT,
        "CIDR[,CIDR]",
        "Subnet of containers that ask for none. Default: the range.",
    ),
    Option("ipalloc-init", Kind.TEXT, "MODE", "First division: consensus[=N], seed=NAME,…, lock=URL or observer."),
    Option("first-start", Kind.SWITCH, "", "With seed=: this is the very first start of this seed, take the share."),
    Option("not-elector", Kind.SWITCH, "", "The same as --ipalloc-init observer: never vote."),
    Option("not-electorate", Kind.SWITCH, "", "The same as --not-elector."),
    Option("observer", Kind.SWITCH, "", "The same as --not-elector."),
    Option("ephemeral", Kind.TEXT, "TTL", "Removed by itself when gone for TTL (10m; at least 1m); never votes."),
    Option("init-peer-count", Kind.NUMBER, "N", "The same as --ipalloc-init consensus=N."),
    Option("no-fastdp", Kind.SWITCH, "", "Do not use the kernel data path (VXLAN), only the userspace one."),
    Option(
        "wireguard",
        Kind.TEXT,
        "USE",
        "With a password: kernel (default), any (wireguard-go too) or off.",
        ("kernel", "any", "off"),
    ),
    Option("trusted-subnets", Kind.TEXT, "CIDR,…", "With a password: no encryption between hosts in each other's."),
    Option("mtu", Kind.NUMBER, "BYTES", "MTU of the network. Default 1376."),
    Option("no-dns", Kind.SWITCH, "", "Run no DNS server on this host."),
    Option("dns-domain", Kind.TEXT, "NAME", "Domain of our names, the same on every host. Default weave.local."),
    Option("dns-ttl", Kind.NUMBER, "SECONDS", "How long answers may be kept. Default 1."),
    Option("dns-listen-address", Kind.TEXT, "IP[:PORT]", "Answer here; several with commas. Default 169.254.53.53."),
    Option("http-addr", Kind.TEXT, "PATH", "Serve the control API on this unix socket too."),
    Option("status-addr", Kind.TEXT, "IP:PORT", "Read-only status. Default 127.0.0.1:6782; '': off."),
    Option("log-level", Kind.TEXT, "LEVEL", "debug, info (default), warning or error.", LOG_LEVELS),
    Option("log-format", Kind.TEXT, "FORMAT", "logfmt (default) or json.", LOG_FORMATS),
    Option("data-dir", Kind.TEXT, "PATH", "What must survive. Default /var/lib/weave."),
    Option("foreground", Kind.SWITCH, "", "Stay in the foreground and log to stderr."),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_BY_VARIABLE = {option.variable: option for option in OPTIONS}
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}

Layer = dict[str, Given]
"""Option name -> what was given at one level."""


class Layers(NamedTuple):
    """``levels`` from the strongest to the weakest. ``conf_peers``: of the environment, or else of the file."""

    levels: tuple[Layer, ...]
    conf_peers: tuple[Given, ...]

    def get(self, name: str) -> Given | None:
        """The strongest value of one option."""
        return next((level[name] for level in self.levels if name in level), None)

    def one_of(self, *names: str) -> tuple[str, Given] | None:
        """The strongest of options that exclude each other; two at the same level are refused."""
        for level in self.levels:
            found = [name for name in names if name in level and level[name].text != ""]
            if len(found) > 1:
                sources = " and ".join(level[name].source for name in found)
                refuse("expected only one of these", sources, "leave one out")
            if found:
                return found[0], level[found[0]]
        return None


def read_layers(flags: Mapping[str, Any], environment: Mapping[str, str], conf_path: str) -> Layers:
    """All layers. ``flags`` maps option names to what click parsed (None or False: not given). Raises Ended when a
    variable or the file cannot be right."""
    conf, peers = _conf_layer(conf_path)
    if named := environment.get(PEERS_VARIABLE, "").replace(",", " ").split():
        peers = tuple(Given(peer, PEERS_VARIABLE) for peer in named)
    return Layers((_flag_layer(flags), _environment_layer(environment), conf), peers)


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    return {
        name: Given("true" if value is True else str(value), f"--{name}")
        for name, value in flags.items()
        if value is not None and value is not False
    }


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for variable, value in environment.items():
        option = _BY_VARIABLE.get(variable)
        if option is None or (value == "" and option.kind is Kind.NUMBER):
            continue
        if option.kind is Kind.SWITCH:
            _put_switch(layer, option.name, value.strip().lower(), variable)
        else:
            layer[option.name] = Given(value, variable)
    return layer


def misspelt(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings about variables that are nearly ours: unlike a wrong key of the file they may be somebody else's, but a
    lost letter in WEAVE_PASSWORD would start an open network without a word."""
    warnings = []
    known = {PEERS_VARIABLE, *_BY_VARIABLE}
    for variable in sorted(environment):
        if variable.startswith("WEAVE_") and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            warnings += [f"{variable} has no effect; next: did you mean {name}?" for name in near]
    return tuple(warnings)


def _put_switch(layer: Layer, name: str, value: str, source: str) -> None:
    if value not in _TRUE | _FALSE:
        refuse(f"{source}: expected {Kind.SWITCH.value}", repr(value), "correct or unset it")
    if value in _TRUE:
        layer[name] = Given("true", source)


def _conf_layer(path: str) -> tuple[Layer, tuple[Given, ...]]:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return {}, ()
    except OSError as error:
        # Closed to others as it should be when it holds a password: then it is the user who is wrong, not the mode.
        step = "correct the file's mode" if os.geteuid() == 0 else "run it as root: sudo weave …"
        refuse(f"expected to read {path}", error.strerror or str(error), step)
    import tomllib  # few hosts have the file

    if len(data) > CONF_BYTES_MAX:
        refuse(f"{path}: expected at most {CONF_BYTES_MAX} bytes", str(len(data)))
    try:
        text = data.decode("utf-8-sig")  # some editors begin every file with a byte order mark
        content = tomllib.loads(text)
    except ValueError as error:  # bad TOML (its message has line and column) or not UTF-8
        refuse(f"{path}: expected TOML", str(error), "correct the file")
    except RecursionError:
        refuse(f"{path}: expected TOML", "brackets in brackets without end", "correct the file")
    layer: Layer = {}
    peers: tuple[Given, ...] = ()
    for key, value in content.items():
        source = f"{path}, line {_line_of(key, text)}, {key}"
        if key == PEERS_KEY:
            peers = _conf_peers(value, source)
        else:
            _put_conf(layer, key, value, source)
    return layer, peers


def _put_conf(layer: Layer, key: str, value: Any, source: str) -> None:
    option = _BY_NAME.get(key)
    if option is None:
        near = difflib.get_close_matches(key, [*_BY_NAME, PEERS_KEY], n=1)
        step = f"did you mean {near[0]}?" if near else "`weave launch --help` lists the keys: its flags without dashes"
        refuse(f"{source}: expected a key that launch knows", repr(key), step)
    wanted = {Kind.TEXT: str, Kind.NUMBER: int, Kind.SWITCH: bool}[option.kind]
    if type(value) is not wanted:
        refuse(f"{source}: expected {option.kind.value}", f"{value!r}", "correct the file")
    if option.kind is Kind.SWITCH:
        _put_switch(layer, key, str(value).lower(), source)
    else:
        layer[key] = Given(str(value), source)


def _conf_peers(value: Any, source: str) -> tuple[Given, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        refuse(
            f'{source}: expected a list of strings, such as ["host1", "host2:7000"]', repr(value), "correct the file"
        )
    return tuple(Given(item, source) for item in value)


def _line_of(key: str, text: str) -> int:
    """1-based line of a top-level key or table; tomllib does not tell."""
    pattern = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def conf_path() -> str:
    """``WEAVE_CONF`` or /etc/weave.conf."""
    return os.environ.get("WEAVE_CONF") or CONF_PATH
