"""What a container is called: its own hostname, or the name of its namespace.

``netns:NAME`` is called NAME. A process is called what it calls itself, if it has a hostname of its own (its UTS
namespace is not ours). A path has no name. Whether a name fits into the domain is :mod:`weavenet.core.names`' to say.
"""

from __future__ import annotations

import os
from pathlib import Path

from weavenet.host import netns

CLONE_NEWUTS = 0x04000000


def container_name(container: netns.Container) -> str:
    """A host name as the container has it, or empty."""
    kind, value = netns.parse_reference(container.reference)
    if kind == "name":
        return value
    return _hostname_of(int(value)) if kind == "pid" else ""


def _hostname_of(pid: int) -> str:
    """Empty when it shares ours, or has gone."""
    try:
        theirs = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        ours = Path("/proc/self/ns/uts").stat()
        if netns.identity(theirs) == (ours.st_dev, ours.st_ino):
            return ""
        return _inside(theirs)
    finally:
        os.close(theirs)


def _inside(namespace: int) -> str:
    """Hostname in a UTS namespace; empty when it cannot be entered."""
    return netns.apart(lambda: os.uname().nodename if netns.enter(namespace, CLONE_NEWUTS) else "", "uts")
