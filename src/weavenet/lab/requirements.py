"""What the lab needs of the machine, checked before anything is made; the refusal holds the line that provides it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError

PACKAGES = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "cp": "coreutils"}
PING_PACKAGES = {"ping": "iputils-ping"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def tool(name: str) -> str:
    """Absolute path of a tool, also when the caller's PATH lacks the sbin folders."""
    found = shutil.which(name, path=SEARCH_PATH) or shutil.which(name)
    if found is None:
        package = (PACKAGES | PING_PACKAGES).get(name, name)
        raise WeaveError(
            Failure(Code.HOST, f"the lab needs the tool {name}", "not installed", f"apt-get install -y {package}")
        )
    return found


def check(needs_ping: bool = False) -> None:
    """Raises ``WeaveError`` when this machine cannot hold a lab."""
    if os.geteuid() != 0:
        raise WeaveError(
            Failure(
                Code.HOST,
                "the lab makes network namespaces, which needs root",
                f"user id {os.geteuid()}",
                "sudo weave lab …",
            )
        )
    needed = PACKAGES | (PING_PACKAGES if needs_ping else {})
    missing = [name for name in needed if not (shutil.which(name, path=SEARCH_PATH) or shutil.which(name))]
    if missing:
        packages = " ".join(sorted({needed[name] for name in missing}))
        raise WeaveError(
            Failure(
                Code.HOST,
                f"the lab needs the tools {', '.join(sorted(needed))}",
                f"missing: {', '.join(sorted(missing))}",
                f"apt-get install -y {packages}",
            )
        )
    for kind in ("net", "mnt", "uts", "ipc", "pid"):
        if not Path(f"/proc/self/ns/{kind}").exists():
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"the kernel has {kind} namespaces",
                    f"no /proc/self/ns/{kind}",
                    "use a kernel with namespaces, as every Debian kernel is",
                )
            )
