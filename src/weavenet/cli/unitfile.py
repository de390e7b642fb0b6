"""The systemd unit that starts the daemon at boot, and the skeleton of /etc/weave.conf. Texts only: writes nothing.

Sources: systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.syntax(7).
"""

from __future__ import annotations

import textwrap

from weavenet.cli.layers import OPTIONS

UNIT_NAME = "weave.service"
VARIABLES_PATH = "/etc/default/weave"
FIRST_LINE = "# Written by `weave install-unit`, which overwrites it; for changes of your own: systemctl edit weave"
"""By which a unit is known as ours."""
_EXAMPLES = {
    "name": '"::1"',
    "name-from": '"hostname"',
    "nickname": '"blue"',
    "host": '"192.0.2.1"',
    "port": "6783",
    "password": '"a long random text, as weave password prints"',
    "password-file": '"/etc/weave.password"',
    "no-discovery": "true",
    "conn-limit": "200",
    "ipalloc-range": '"10.32.0.0/12"',
    "ipalloc-default-subnet": '"10.32.0.0/16"',
    "ipalloc-init": '"observer"',
    "ephemeral": '"10m"',
    "no-fastdp": "true",
    "wireguard": '"any"',
    "trusted-subnets": '"192.0.2.0/24"',
    "mtu": "1376",
    "no-dns": "true",
    "dns-domain": '"weave.local"',
    "dns-ttl": "1",
    "dns-listen-address": '"169.254.53.53"',
    "http-addr": '"/run/weave-api.sock"',
    "status-addr": '"127.0.0.1:6782"',
    "log-level": '"info"',
    "log-format": '"logfmt"',
    "data-dir": '"/var/lib/weave"',
}
"""A value for each setting of the skeleton, in its order. Left out is what a file that counts at every start has no use
for, and second names."""
_TEMPLATE = """\
{first_line}
[Unit]
Description=Weave: one network for containers on many hosts
Documentation=file://{readme}
# Both of these load a ruleset of their own and flush ours, which we would have to put back.
After=network-online.target nftables.service firewalld.service
Wants=network-online.target
Before=docker.service
StartLimitIntervalSec=0

[Service]
Type=notify
EnvironmentFile=-{variables}
{environment}ExecStart={launcher} launch --foreground
# The first start after an update of the checkout fetches what the update needs.
TimeoutStartSec=300
# 3: a daemon that somebody launched by hand serves already.
RestartPreventExitStatus=3
Restart=on-failure
RestartSec=1
WatchdogSec=30
# The workers outlive the daemon: they go on to forward and to answer names while it is replaced.
KillMode=process
TimeoutStopSec=30
LimitNOFILE=65536
OOMScoreAdjust=-500

# Network devices, namespaces of containers and their /etc/hosts: what this needs, and no more.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectSystem=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
RestrictNamespaces=net mnt
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""
_CAPABILITIES = (
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_ADMIN",  # setns(2)
    "CAP_SYS_CHROOT",  # setns(2) into a mount namespace
    "CAP_SYS_PTRACE",  # /proc/PID/ns of containers
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
)


def quoted(word: str) -> str:
    """One word of ExecStart= or Environment=, taken literally: no specifiers, no variables, no escapes."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(character in text for character in " \t'\"\\;") else text


def unit(launcher: str, readme: str, conf: str | None = None) -> str:
    """``launcher``: absolute path of the command. ``conf``: a file other than /etc/weave.conf."""
    environment = "" if conf is None else f"Environment={quoted(f'WEAVE_CONF={conf}').replace('$$', '$')}\n"
    return _TEMPLATE.format(
        first_line=FIRST_LINE,
        readme=readme.replace("%", "%%").replace(" ", "%%20"),
        variables=VARIABLES_PATH,
        environment=environment,
        launcher=quoted(launcher),
        capabilities=" ".join(_CAPABILITIES),
    )


def skeleton() -> str:
    """All settings with their help, commented out: valid TOML that changes nothing."""
    lines = [
        "# Settings of weave on this host. Every flag of `weave launch` may stand here, without its dashes.",
        "# A flag beats a WEAVE_… variable beats this file. What has no value here keeps its default.",
        "# Read when the daemon starts: systemctl restart weave",
        "",
        "# Hosts to connect to. Listing this host itself is harmless, so one list serves all hosts.",
        '#peers = ["host1", "host2"]',
    ]
    help_of = {option.name: option.help for option in OPTIONS}
    for name, example in _EXAMPLES.items():
        lines += ["", *textwrap.wrap(help_of[name], 118, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"#{name} = {example}")
    return "\n".join(lines) + "\n"
