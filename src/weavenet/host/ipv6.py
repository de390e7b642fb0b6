"""IPv6 on the devices that get addresses of an IPv6 range.

It may be switched off for new devices of a namespace (``disable_ipv6``, as Docker does for containers without IPv6).
Whoever gives a container an address of the network wants it to work there: it is switched on for our own device and no
other. Where the kernel has none at all, that is said in words.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.host import sysctl


def is_on(namespace: int | None, device: str) -> bool:
    """Whether there is IPv6 on ``device``, after it was switched on if that could be done."""
    name = f"ipv6/conf/{device}/disable_ipv6"
    sysctl.write(namespace, {name: "0"})
    return sysctl.read(namespace, name) == "0"


def allow(namespace: int | None, device: str, addresses: Iterable[str], whose: str) -> None:
    """Have IPv6 on ``device`` if one of ``addresses`` (``ip/prefix``) needs it. Raises WeaveError; ``whose`` says for
    whom."""
    wanted = [text for text in addresses if ipaddress.ip_interface(text).version == 6]
    if not wanted:
        return
    name = f"ipv6/conf/{device}/disable_ipv6"
    refusals = sysctl.write(namespace, {name: "0"})
    state = sysctl.read(namespace, name)
    if state == "0":
        return
    found = f"{whose} has no IPv6: this kernel was started without it" if state is None else "; ".join(refusals)
    raise WeaveError(
        Failure(
            Code.HOST,
            f"expected IPv6 for {' '.join(wanted)}",
            found or f"net/{name} is {state}",
            "boot without ipv6.disable=1, or ask for an IPv4 address only, as in net:10.32.0.0/12",
        )
    )
