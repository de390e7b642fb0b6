"""The TAP device: whole TCP units in and out, each with a virtio-net header in front.

``IFF_VNET_HDR`` with ``TUNSETOFFLOAD`` lets the kernel hand over units of up to 64 kB with partial checksums, and
take them (Linux, Documentation/networking/tuntap.rst; the header: virtio 1.2, section 5.1.6). The device is
persistent: when the worker dies it stays a port of the bridge, and the next worker attaches to it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

VNET_BYTES = 10
VNET = struct.Struct("<BBHHHH")
"""flags, gso type, header bytes, segment bytes, checksum start, checksum offset."""
FLAG_PARTIAL_CHECKSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP = 0, 1, 4, 5
GSO_ECN = 0x80

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_read = ctypes.CDLL(None, use_errno=True).read
_read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_read.restype = ctypes.c_ssize_t
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8


def open_tap(name: str) -> int:
    """A non-blocking file descriptor of the persistent TAP device ``name``, made when missing, in the network
    namespace of the calling thread. Raises OSError: EBUSY when another process has it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_BYTES))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_frame(fd: int, address: int, size: int) -> int:
    """The next frame into ``size`` bytes at ``address``; its length, or -1 when none waits, without the exception that
    :func:`os.readv` makes of that: it would cost as much as all else that is done for a frame. Raises OSError for
    anything else."""
    length: int = _read(fd, address, size)
    if length < 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return length
