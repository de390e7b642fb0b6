"""The kernel tells what its reverse-path filter lets in."""

from __future__ import annotations

import pytest
from host_pair import run

from weavenet.host.netns import scratch
from weavenet.host.reversepath import UNROUTED, is_let_in

ADDRESS = "169.254.53.53"
OFF, STRICT, LOOSE = 0, 1, 2


@pytest.mark.parametrize(
    ("setting", "routes", "expected"),
    [
        (OFF, (), True),
        (STRICT, (), False),
        (LOOSE, (), False),
        (STRICT, ("default dev other",), False),
        (LOOSE, ("default dev other",), True),
        (LOOSE, ("default dev other", f"blackhole {UNROUTED}/32"), False),
        (STRICT, ("default dev bridge",), True),
    ],
)
def test_what_the_filter_lets_in(setting: int, routes: tuple[str, ...], expected: bool) -> None:
    with scratch() as namespace:
        for name in ("bridge", "other"):
            run(namespace, "ip", "link", "add", name, "type", "bridge")
            run(namespace, "ip", "link", "set", name, "up")
        run(namespace, "ip", "address", "add", f"{ADDRESS}/32", "dev", "bridge")
        run(namespace, "ip", "address", "add", "198.51.100.1/24", "dev", "other")
        for place in ("all", "bridge"):
            run(namespace, "sysctl", "-q", "-w", f"net.ipv4.conf.{place}.rp_filter={setting}")
        for route in routes:
            run(namespace, "ip", "route", "add", *route.split())
        index = int(run(namespace, "ip", "-o", "link", "show", "bridge").partition(":")[0])
        assert is_let_in(namespace, index, UNROUTED, ADDRESS) is expected
