"""Who this host is: hostname, machine id, boot id, local addresses. One adapter, so that nothing else reads them.

Everything is text; what is missing is empty. A lab host answers with its own files, mounted over these paths.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
DBUS_MACHINE_ID = Path("/var/lib/dbus/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_libc = ctypes.CDLL(None, use_errno=True)


def hostname() -> str:
    return socket.gethostname()


def machine_id() -> str:
    """32 hex digits (machine-id(5)), or empty when the host has none."""
    for path in (MACHINE_ID, DBUS_MACHINE_ID):
        text = _read(path).lower()
        if len(text) == 32 and all(c in "0123456789abcdef" for c in text):
            return text
    return ""


def boot_id() -> str:
    return _read(BOOT_ID)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("data", ctypes.c_uint8 * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
)


def local_hosts() -> tuple[str, ...]:
    """Every address of this host, loopback included, link-local left out, sorted (getifaddrs(3), 0.1 ms)."""
    head = ctypes.POINTER(_IfAddrs)()
    if _libc.getifaddrs(ctypes.byref(head)) != 0:
        return ()
    found: set[str] = set()
    try:
        item = head
        while item:
            address = item.contents.address
            if address:
                text = _text(address.contents)
                if text:
                    found.add(text)
            item = item.contents.next
    finally:
        _libc.freeifaddrs(head)
    return tuple(sorted(found))


def _text(address: _SockAddr) -> str:
    data = bytes(address.data)
    if address.family == socket.AF_INET:
        parsed: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(data[2:6])
    elif address.family == socket.AF_INET6:
        parsed = ipaddress.IPv6Address(data[6:22])
    else:
        return ""
    return "" if parsed.is_link_local else str(parsed)
