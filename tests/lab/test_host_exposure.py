"""The host itself on the network: addresses, masquerading, others' FORWARD chains, and nothing left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from host_pair import FakeNode, Host, Pair, eventually, run_async

from weavenet.core.commands import AddName, Addresses, Allocate, PutAttachment
from weavenet.core.effects import Endpoint
from weavenet.core.errors import Code, Failure
from weavenet.core.types import bridge_mac
from weavenet.host.exposure import Exposure

pytestmark = pytest.mark.lab


def drive(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 120))  # type: ignore[arg-type]


async def opened(host: Host, node: FakeNode) -> Exposure:
    assert host.firewall is not None
    exposure = Exposure(host.kernel, host.bridge, host.firewall, node.request, "weave.local.")
    await exposure.open()
    return exposure


SWITCHES = ("net/ipv4/ip_forward", "net/ipv4/conf/all/accept_redirects")


async def look(host: Host) -> tuple[str, str, str, str]:
    """Everything that must be as before: rules, addresses, routes, settings."""
    rules = await run_async(host.namespace, "nft", "list", "ruleset")
    lines = await run_async(host.namespace, "ip", "-o", "address", "show", "scope", "global")
    addresses = "\n".join(line.partition(": ")[2] for line in lines.splitlines())  # without the number of the device
    lines = (await run_async(host.namespace, "ip", "-4", "route", "show", "table", "all")).splitlines()
    routes = "\n".join(sorted(lines))
    return rules, addresses, routes, await run_async(host.namespace, "cat", *(f"/proc/sys/{name}" for name in SWITCHES))


async def reaches(host: Host, address: str) -> bool:
    return "1 received" in await run_async(host.namespace, "ping", "-c", "1", "-W", "1", address, check=False)


def given(result: Addresses | Failure) -> tuple[str, ...]:
    assert isinstance(result, Addresses), result
    return result.addresses


def test_an_exposed_host_reaches_containers_everywhere_and_hides_without_a_trace() -> None:
    async def scenario() -> None:
        async with Pair() as (a, b):
            node = FakeNode()
            _, local = await a.container("local", "10.32.0.101/12")
            _, remote = await b.container("remote", "10.32.0.102/12")
            host_end = Endpoint(bridge_mac(a.peer), ("10.32.0.1/12",))
            await a.apply(b.as_peer(remote))
            await b.apply(a.as_peer(local, host_end))
            exposure = await opened(a, node)
            before = await look(a)
            assert given(await exposure.expose((), "gw")) == ("10.32.0.1/12",)
            assert given(await exposure.expose((), "")) == ("10.32.0.1/12",)
            assert AddName("gw.weave.local.", "weave:expose", ("10.32.0.1",)) in node.log, "not of later ones"
            await eventually(lambda: reaches(a, "10.32.0.101"), "its own container")
            await eventually(lambda: reaches(a, "10.32.0.102"), "a container of the other host")
            assert (await look(a))[3].split()[0] == "1"
            assert "masquerade" in (await look(a))[0]
            assert given(await exposure.hide(())) == ("10.32.0.1/12",)
            assert await look(a) == before
            assert given(await exposure.hide(())) == ()
            assert not node.held["weave:expose"] and not node.attachments
            await exposure.close()

    drive(scenario)


@pytest.mark.parametrize("redirects", ["0", "1"])
def test_forwarding_is_switched_back_without_a_trace(redirects: str) -> None:
    """Also by the next daemon; the kernel changes another setting with it."""

    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            await run_async(a.namespace, "sysctl", "-qw", f"net.ipv4.conf.all.accept_redirects={redirects}")
            before = await look(a)
            assert before[3].split() == ["0", redirects]
            exposure = await opened(a, node)
            given(await exposure.expose((), ""))
            assert (await look(a))[3].split()[0] == "1"
            await exposure.close()
            exposure = await opened(a, node)
            given(await exposure.expose(("10.32.5.1/12",), ""))
            given(await exposure.hide(()))
            assert await look(a) == before
            node.refuse = PutAttachment
            assert isinstance(await exposure.expose((), ""), Failure)
            assert await look(a) == before
            await exposure.close()

    drive(scenario)


@pytest.mark.parametrize("why", ["another bridge", "switched on at boot"])
def test_forwarding_that_somebody_else_needs_by_now_stays_on(why: str) -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            given(await exposure.expose((), ""))
            if why == "another bridge":
                await run_async(a.namespace, "ip", "link", "add", "docker0", "type", "bridge")
            else:
                await exposure.close()
                await a.stop()
                await run_async(a.namespace, "ip", "link", "delete", "weave")
                await a.start()
                exposure = await opened(a, node)
            given(await exposure.hide(()))
            assert (await look(a))[3].split()[0] == "1"
            await exposure.close()

    drive(scenario)


def test_what_a_killed_daemon_began_is_undone_or_finished_by_the_next() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            before = await look(a)
            for last, wanted in ((Allocate, ()), (PutAttachment, ("10.32.0.2/12",))):
                assert a.firewall is not None
                dying = Exposure(a.kernel, a.bridge, a.firewall, node.dying_after(last), "weave.local.")
                await dying.open()
                with contextlib.suppress(asyncio.CancelledError):
                    await dying.expose((), "")
                await dying.close()
                exposure = await opened(a, node)
                assert exposure.attachment.addresses == wanted
                assert tuple(node.held["weave:expose"]) == wanted
                shown = (await look(a))[1]
                assert all(address in shown for address in wanted)
                assert given(await exposure.hide(())) == wanted
                assert await look(a) == before
                await exposure.close()

    drive(scenario)


def test_an_address_that_another_device_has_is_refused() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            own = (await run_async(a.namespace, "ip", "-4", "-o", "address", "show", "scope", "global")).split()[3]
            before = await look(a)
            refused = await exposure.expose((own,), "")
            assert isinstance(refused, Failure) and "has it" in refused.found
            assert await look(a) == before
            await exposure.close()

    drive(scenario)


def test_what_masquerading_tracks_is_not_taken_for_somebody_elses() -> None:
    """Queries are kept out of the table of connections while we masquerade, or others track; ``hide`` ends the one."""

    async def scenario() -> None:
        async with Pair() as (a, b):
            assert a.firewall is not None
            await a.apply(b.as_peer())
            node = FakeNode()
            exposure = await opened(a, node)
            before = await look(a)
            await a.firewall.look_at_conntrack()
            given(await exposure.expose((), ""))
            assert "notrack" in (await look(a))[0]
            assert await reaches(a, "10.32.0.1")
            await a.firewall.look_at_conntrack()
            await exposure.close()
            await a.stop()
            await a.start()
            await a.apply(b.as_peer())
            exposure = await opened(a, node)
            await a.firewall.look_at_conntrack()
            given(await exposure.hide(()))
            for _ in range(3):
                await a.firewall.look_at_conntrack()
                assert await look(a) == before
            chain = "add chain ip theirs input { type filter hook input priority 0; }"
            rule = "add rule ip theirs input ct state new counter"
            await run_async(a.namespace, "nft", f"add table ip theirs; {chain}; {rule}")
            assert await reaches(a, "127.0.0.1")
            await a.firewall.look_at_conntrack()
            assert "notrack" in (await look(a))[0]
            await exposure.close()

    drive(scenario)


def test_what_is_exposed_is_put_back() -> None:
    """After a flush, after the address was taken, and by the next daemon on a blank kernel."""

    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            given(await exposure.expose(("10.32.5.1/12", "10.40.0.1/16"), "", masquerade=False))
            given(await exposure.expose(("10.32.5.1/12",), ""))
            full = await look(a)

            async def is_full() -> bool:
                return await look(a) == full

            await run_async(a.namespace, "nft", "flush", "ruleset")
            await eventually(is_full, "rules after a flush")
            await run_async(a.namespace, "ip", "address", "del", "10.40.0.1/16", "dev", "weave")
            await eventually(is_full, "the address")
            await exposure.close()
            await a.stop()
            await run_async(a.namespace, "ip", "link", "delete", "weave")
            await run_async(a.namespace, "nft", "flush", "ruleset")
            await a.start()
            exposure = await opened(a, node)
            await eventually(is_full, "everything after a reboot")
            assert given(await exposure.hide(("10.32.5.1/12",))) == ("10.32.5.1/12",)
            assert "10.32.5.1" not in (await look(a))[1] and "10.40.0.1" in (await look(a))[1]
            await exposure.close()

    drive(scenario)


@pytest.mark.parametrize(
    ("family", "name", "policy", "last"),
    [("ip", "FORWARD", "drop", ""), ("inet", "forward", "drop", ""), ("ip", "FORWARD", "accept", "counter reject")],
)
def test_a_forward_chain_that_drops_is_opened_for_exposed_subnets_only_while_they_are(
    family: str, name: str, policy: str, last: str
) -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            chain = f"{family} filter {name}"
            hook = f"add chain {chain} {{ type filter hook forward priority 0; policy {policy}; }}"
            end = f"add rule {chain} {last}" if last else ""
            await run_async(a.namespace, "nft", f"add table {family} filter; {hook}; {end}")
            given(await exposure.expose((), ""))

            async def rules() -> str:
                return await run_async(a.namespace, "nft", "list", "table", family, "filter")

            async def is_open() -> bool:
                text = await rules()
                return "weave expose to 10.32.0.0/12" in text and "weave expose from 10.32.0.0/12" in text

            await eventually(is_open, "tagged rules")
            await run_async(a.namespace, "nft", f"flush chain {chain}; {end}")
            await eventually(is_open, "tagged rules again")
            given(await exposure.hide(()))
            assert "weave expose" not in await rules()
            await exposure.close()

    drive(scenario)


def test_a_table_of_others_that_drops_what_is_forwarded_is_told_until_it_knows_the_bridge() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            exposure = await opened(a, FakeNode())
            given(await exposure.expose((), ""))
            chain = "inet firewalld filter_FORWARD"
            hook = f"add chain {chain} {{ type filter hook forward priority 10; }}"
            await run_async(a.namespace, "nft", f"add table inet firewalld; {hook}; add rule {chain} reject")

            async def is_told() -> bool:
                return any(f"dropped by {chain}" in text for text in a.firewall.warnings())

            async def is_fine() -> bool:
                return not await is_told()

            await eventually(is_told, "a warning")
            await run_async(a.namespace, "nft", "insert", "rule", *chain.split(), "iifname", "weave", "accept")
            await eventually(is_fine, "no warning")
            await exposure.close()

    drive(scenario)


def test_what_fails_leaves_nothing() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            before = await look(a)
            node.refuse = PutAttachment
            result = await exposure.expose((), "")
            assert isinstance(result, Failure) and result.code is Code.NO_SPACE
            assert await look(a) == before and not node.held["weave:expose"]
            node.refuse = None
            assert isinstance(await exposure.expose((), "elsewhere.example.com"), Failure)
            assert isinstance(await exposure.expose(("10.1.2.3",), ""), Failure)
            assert await look(a) == before
            await exposure.close()

    drive(scenario)


def test_an_address_lost_to_another_peer_leaves_the_bridge_until_it_is_ours_again() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            given(await exposure.expose((), ""))
            await exposure.set_blocked([("weave:expose", "10.32.0.1")])
            assert "10.32.0.1" not in (await look(a))[1]
            await exposure.set_blocked([])
            assert "10.32.0.1" in (await look(a))[1]
            await exposure.close()

    drive(scenario)


def test_what_watches_the_addresses_does_not_bring_back_what_is_hidden_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weavenet.host.exposure.WATCH_S", 0.0)

    async def scenario() -> None:
        async with Pair() as (a, _):
            exposure = await opened(a, FakeNode())
            before = await look(a)
            for _attempt in range(10):
                given(await exposure.expose((), ""))
                await asyncio.sleep(0.01)
                given(await exposure.hide(()))
                assert await look(a) == before
            given(await exposure.expose((), ""))
            await asyncio.sleep(0.01)
            await exposure.vacate()
            assert await look(a) == before
            await exposure.close()

    drive(scenario)


def test_leaving_does_not_wait_for_who_waits_for_an_address() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            before = await look(a)
            node.delay_s = 3600.0
            call = asyncio.create_task(exposure.expose((), ""))
            await asyncio.sleep(0)
            await exposure.vacate()
            result = await call
            assert isinstance(result, Failure) and result.code is Code.CANCELLED
            assert await look(a) == before
            await exposure.close()

    drive(scenario)


def test_a_hide_ends_the_exposes_that_wait_before_it() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)
            before = await look(a)
            node.delay_s = 3600.0
            calls = [asyncio.create_task(exposure.expose((), "")) for _ in range(2)]
            await asyncio.sleep(0)
            assert given(await asyncio.wait_for(exposure.hide(()), 30)) == ()
            for call in calls:
                result = await asyncio.wait_for(call, 30)
                assert isinstance(result, Failure) and "hidden" in result.found
            assert await look(a) == before
            node.delay_s = 0.0
            given(await exposure.expose((), ""))
            await exposure.close()

    drive(scenario)


def test_each_exposed_subnet_has_its_own_masquerading() -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            exposure = await opened(a, node)

            async def masqueraded() -> list[str]:
                rules = (await look(a))[0]
                subnets = ("10.32.0.0/12", "192.0.2.0/24", "198.51.100.0/24")
                return [s for s in subnets if f"daddr {s} ip saddr != {s} masquerade" in rules]

            given(await exposure.expose((), ""))
            given(await exposure.expose(("192.0.2.77/24",), "", masquerade=False))
            assert await masqueraded() == ["10.32.0.0/12"]
            given(await exposure.expose(("198.51.100.1/24",), ""))
            assert await masqueraded() == ["10.32.0.0/12", "198.51.100.0/24"]
            await exposure.close()
            exposure = await opened(a, node)
            assert await masqueraded() == ["10.32.0.0/12", "198.51.100.0/24"], "remembered"
            given(await exposure.expose(("192.0.2.78/24",), ""))
            assert await masqueraded() == ["10.32.0.0/12", "192.0.2.0/24", "198.51.100.0/24"], "the last one decides"
            await exposure.close()

    drive(scenario)
