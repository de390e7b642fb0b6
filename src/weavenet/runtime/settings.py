"""What one daemon was told, complete and already validated: the one value that crosses from ``weave launch`` to it.

The CLI builds it from flags > environment > ``/etc/weave.conf`` and passes it as JSON on the daemon's standard input,
so that passwords appear in no argument list, environment or file. Persisted state (name, targets) has the lowest
precedence and is applied by the daemon itself: an empty ``name`` means "as persisted, else derived", ``targets`` None
means "resume".

Does not read flags, files or the environment. Imports nothing heavy: the CLI imports this module.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from weavenet.core.config import GenesisMode
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import CONN_LIMIT_DEFAULT, DNS_DOMAIN_DEFAULT, DNS_TTL_DEFAULT_S, MTU_DEFAULT, PORT_DEFAULT

DATA_DIR_DEFAULT = "/var/lib/weave"
RUN_DIR_DEFAULT = "/run/weave"
STATUS_ADDRESS_DEFAULT = "127.0.0.1:6782"
LOG_FILE_DEFAULT = "/var/log/weave.log"
PASSWORD_CHARACTERS_MIN = 12
"""Below it a guess is cheap even at scrypt's price: warned about, not refused."""
PASSWORD_LINES_MAX = 8
"""Each costs 200 ms of scrypt at start; rotation needs two."""


class NameFrom(StrEnum):
    """Where a peer name comes from when none was given and none is persisted."""

    MACHINE_ID = "machine-id"
    HOSTNAME = "hostname"
    RANDOM = "random"


class WireguardUse(StrEnum):
    """With a password: through which WireGuard VXLAN may go. ANY: through ``wireguard-go`` too, where the kernel has
    none; it is slower than sleeve."""

    KERNEL = "kernel"
    ANY = "any"
    OFF = "off"


class LogFormat(StrEnum):
    LOGFMT = "logfmt"
    JSON = "json"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``passwords``: lines of the password file as :func:`password_lines` gives them; the first seals, all are
    accepted. ``log_file`` empty: standard error. ``status_address`` / ``http_address`` empty: off. ``planes``: of
    the data path, without ``fastdp`` after ``--no-fastdp``. ``dns``: run the DNS server; ``dns_listen``: at these
    ``IP:PORT`` (empty: at the address that containers have a route to, and at Docker's bridge). ``assume_identity``:
    the key is used on whatever machine it is found."""

    name: str = ""
    name_from: NameFrom = NameFrom.MACHINE_ID
    assume_identity: bool = False
    nickname: str = ""
    host: str = ""
    port: int = PORT_DEFAULT
    passwords: tuple[str, ...] = ()
    targets: tuple[str, ...] | None = None
    conf_targets: tuple[str, ...] = ()
    discovery: bool = True
    conn_limit: int = CONN_LIMIT_DEFAULT
    ranges: tuple[str, ...] = ("10.32.0.0/12",)
    range_explicit: bool = False
    range_overlap: str = ""
    """The routes of this host that the default range overlaps, in words."""
    default_subnets: tuple[str, ...] = ()
    mode: GenesisMode = GenesisMode.CONSENSUS
    count: int = 0
    seeds: tuple[str, ...] = ()
    lock: str = ""
    first_start: bool = False
    ephemeral_ttl_s: int = 0
    planes: tuple[str, ...] = ("fastdp", "sleeve")
    wireguard: WireguardUse = WireguardUse.KERNEL
    trusted_subnets: tuple[str, ...] = ()
    mtu: int = MTU_DEFAULT
    mtu_explicit: bool = False
    dns: bool = True
    dns_domain: str = DNS_DOMAIN_DEFAULT
    dns_ttl_s: int = DNS_TTL_DEFAULT_S
    dns_listen: tuple[str, ...] = ()
    status_address: str = STATUS_ADDRESS_DEFAULT
    http_address: str = ""
    data_dir: str = DATA_DIR_DEFAULT
    run_dir: str = RUN_DIR_DEFAULT
    log_level: str = "info"
    log_format: LogFormat = LogFormat.LOGFMT
    log_file: str = ""

    @property
    def control_socket(self) -> str:
        return f"{self.run_dir}/control.sock"

    @property
    def pid_file(self) -> str:
        """Locked by the daemon, with its pid inside: one per host."""
        return f"{self.run_dir}/weave.pid"

    @property
    def lock_file(self) -> str:
        """The same beside the store: one per store."""
        return f"{self.data_dir}/weave.lock"

    def public(self) -> Settings:
        """The same without secrets: what reports and logs may show."""
        return msgspec.structs.replace(self, passwords=())


def encode_settings(settings: Settings) -> bytes:
    return msgspec.json.encode(settings)


def decode_settings(data: bytes) -> Settings:
    """Raises WeaveError when the bytes are no settings of this version."""
    try:
        return msgspec.json.decode(data, type=Settings)
    except msgspec.DecodeError as error:
        raise WeaveError(
            Failure(
                Code.INVALID,
                "expected the settings as one JSON object on standard input",
                str(error),
                "start the daemon with `weave launch`",
            )
        ) from error


_FULL_NAME = re.compile(r"[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}")
_SHORT_NAME = re.compile(r"(?P<head>([0-9a-f]{1,2}(:[0-9a-f]{1,2})*)?)::(?P<tail>([0-9a-f]{1,2}(:[0-9a-f]{1,2})*)?)")


def peer_name(text: str) -> str:
    """Canonical peer name: 48 bits in MAC syntax, with ``::`` standing for the missing zeros (``::1``,
    ``0a:00::01``). Raises WeaveError for anything else."""
    lowered = text.strip().lower()
    octets: list[str] | None = None
    if _FULL_NAME.fullmatch(lowered):
        octets = lowered.split(":")
    elif match := _SHORT_NAME.fullmatch(lowered):
        head = match["head"].split(":") if match["head"] else []
        tail = match["tail"].split(":") if match["tail"] else []
        if len(head) + len(tail) < 6:
            octets = [*head, *["0"] * (6 - len(head) - len(tail)), *tail]
    if octets is None:
        raise WeaveError(
            Failure(
                Code.INVALID,
                "a peer name is a MAC address such as 0a:1b:2c:3d:4e:5f, or short ::1",
                repr(text),
                "give such a name with --name, or none at all",
            )
        )
    return ":".join(f"{int(octet, 16):02x}" for octet in octets)


def password_lines(text: str) -> tuple[str, ...]:
    """Passwords of a file: one a line, blank lines are never passwords, surrounding white space does not count.

    Raises WeaveError when there is none at all (an empty password would silently mean "unauthenticated") or too many.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines or len(lines) > PASSWORD_LINES_MAX:
        raise WeaveError(
            Failure(
                Code.INVALID,
                f"a password file holds 1 to {PASSWORD_LINES_MAX} non-blank lines",
                f"{len(lines)}",
                "make a password with `weave password`",
            )
        )
    return lines


def password_warnings(lines: tuple[str, ...]) -> tuple[str, ...]:
    """One sentence per weak password; the sentence never shows it."""
    return tuple(
        f"password line {number} has fewer than {PASSWORD_CHARACTERS_MIN} characters, so it can be guessed offline; "
        "make a strong one with `weave password`"
        for number, line in enumerate(lines, start=1)
        if len(line) < PASSWORD_CHARACTERS_MIN
    )
