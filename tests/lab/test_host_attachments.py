"""Attaching real namespaces and processes: addresses, deaths, coming back, restarts, failures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from host_pair import DEADLINE_S, FakeNode, Host, Pair, eventually, run, run_async, until

from weavenet.core.commands import (
    Addresses,
    Allocate,
    Command,
    Destroyed,
    Died,
    PutAttachment,
    Release,
    RemoveAttachment,
    Result,
)
from weavenet.core.errors import Code, Failure
from weavenet.host.attachments import Attachments
from weavenet.host.bridge import port_name
from weavenet.host.requests import Wishes

pytestmark = pytest.mark.lab
_numbers = itertools.count()


def drive(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 120))  # type: ignore[arg-type]


@pytest.fixture
def names() -> Iterator[Callable[[], str]]:
    """Unique namespace names; whatever was made of them is removed at the end."""
    given: list[str] = []

    def name() -> str:
        given.append(f"weavetest-{os.getpid()}-{next(_numbers)}")
        return given[-1]

    yield name
    for one in given:
        subprocess.run(["ip", "netns", "delete", one], capture_output=True, check=False)


def make(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)


def inside(name: str, *command: str) -> str:
    return subprocess.run(["ip", "netns", "exec", name, *command], capture_output=True, text=True, check=False).stdout


async def opened(host: Host, node: FakeNode) -> Attachments:
    attachments = Attachments(host.kernel, host.attacher, node.request, host.namespace)
    await attachments.open()
    return attachments


def destroyed(node: FakeNode) -> list[str]:
    return [command.ident for command in node.log if isinstance(command, Destroyed)]


def addresses(result: Addresses | Failure) -> tuple[str, ...]:
    assert isinstance(result, Addresses), result
    return result.addresses


def refused(result: Addresses | Failure) -> Failure:
    assert isinstance(result, Failure), result
    return result


def test_attach_more_detach_some_detach_all(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            reference = f"netns:{name}"
            assert addresses(await attachments.attach(reference)) == ("10.32.0.1/12",)
            assert addresses(await attachments.attach(reference)) == ("10.32.0.1/12",)
            more = await attachments.attach(reference, ["net:10.40.1.0/24", "ip:10.41.0.7/16", "10.41.0.8/16"])
            assert addresses(more) == ("10.40.1.2/24", "10.41.0.7/16", "10.41.0.8/16")
            (listed,) = (await attachments.ps()).attachments
            assert len(listed.addresses) == 4 and listed.live and listed.requested[0] == "net:default"
            assert "10.41.0.8/16" in inside(name, "ip", "address")
            assert addresses(await attachments.detach(reference, ["net:default"])) == ("10.32.0.1/12",)
            assert addresses(await attachments.detach(reference, ["net:10.41.0.0/16"])) == (
                "10.41.0.7/16",
                "10.41.0.8/16",
            )
            assert refused(await attachments.detach(reference, ["10.99.0.1/16"])).code is Code.NOT_FOUND
            unnamed = refused(await attachments.detach(reference))
            assert unnamed.code is Code.NOT_FOUND and unnamed.found == "it has 10.40.1.2/24"
            assert addresses(await attachments.attach(reference)) == ("10.32.0.3/12",)
            assert addresses(await attachments.detach(reference)) == ("10.32.0.3/12",)
            assert addresses(await attachments.detach(reference, ["10.40.1.2/24"])) == ("10.40.1.2/24",)
            assert "ethwe" not in inside(name, "ip", "link")
            assert node.held[name] == [] and node.attachments == {}
            assert refused(await attachments.detach(reference)).code is Code.NOT_FOUND
            await attachments.close()

    drive(scenario)


def test_concurrent_attaches_of_one_container_end_in_one_interface(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        node.delay_s = 0.05
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            calls = [attachments.attach(f"netns:{name}", [f"net:10.{40 + i}.0.0/24"]) for i in range(4)]
            results = await asyncio.gather(*calls)
            got = sorted(addresses(result)[0] for result in results)
            (listed,) = (await attachments.ps()).attachments
            assert sorted(listed.addresses) == got and len(got) == 4
            await attachments.close()

    drive(scenario)


def test_failures_leave_nothing(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            reference = f"netns:{name}"
            node.refuse = Allocate
            both = await attachments.attach(reference, ["10.41.0.7/16", "net:default"])
            assert refused(both).code is Code.NO_SPACE
            node.refuse = PutAttachment
            assert refused(await attachments.attach(reference)).code is Code.NO_SPACE
            node.refuse, node.delay_s = None, 30.0
            waiting = asyncio.create_task(attachments.attach(reference))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            node.delay_s = 0.0
            assert not node.held.get(name) and node.attachments == {}
            assert host.kernel.links.get(port_name(name)) is None and "ethwe" not in inside(name, "ip", "link")
            for bad in ("web", "netns:", "pid:0", "pid:x", "netns:../x", "netns:/etc/passwd", "pid:999999999"):
                assert refused(await attachments.attach(bad)).code in (Code.INVALID, Code.NOT_FOUND), bad
            assert refused(await attachments.attach(reference, ["10.1.2.3"])).code is Code.INVALID
            await attachments.close()
            own = Attachments(host.kernel, host.attacher, node.request)
            assert refused(await own.attach(f"pid:{os.getpid()}")).code is Code.INVALID
            assert "this host" in refused(await own.attach("netns:/proc/self/ns/net")).found

    drive(scenario)


def test_deleted_name_is_destroyed_and_applied_again_when_it_comes_back(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            assert addresses(await attachments.attach(f"netns:{name}", ["net:10.40.1.0/24", "10.41.0.7/16"]))
            holder = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])  # keeps the namespace alive
            try:
                await run_async(host.namespace, "ip", "netns", "delete", name)
                await until(lambda: name in destroyed(node), "destroyed")
                await until(lambda: host.kernel.links.get(port_name(name)) is None, "interface removed")
            finally:
                holder.kill()
                holder.wait()
            assert name not in node.held and (await attachments.ps()).attachments == ()
            await asyncio.to_thread(make, name)
            await until(lambda: node.attachments[name].live, "applied again")
            await eventually(
                lambda: asyncio.to_thread(lambda: "10.41.0.7/16" in inside(name, "ip", "address")), "there"
            )
            await attachments.close()

    drive(scenario)


def test_deleted_interface_is_destroyed(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            addresses(await attachments.attach(f"netns:{name}"))
            run(host.namespace, "ip", "link", "delete", port_name(name))
            await until(lambda: name in destroyed(node), "destroyed")
            assert addresses(await attachments.attach(f"netns:{name}"))  # and can be attached again
            assert "ethwe" in inside(name, "ip", "link")
            await attachments.close()

    drive(scenario)


def test_ended_process_has_died_and_its_interface_goes() -> None:
    async def scenario() -> None:
        node = FakeNode()
        process = subprocess.Popen(["unshare", "--net", "sleep", "60"])
        try:
            async with Pair(firewalled=False) as (host, _):
                attachments = await opened(host, node)

                async def own_namespace() -> bool:
                    mine, its = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", process.pid))
                    return mine != its

                await eventually(own_namespace, "unshared")
                assert addresses(await attachments.attach(f"pid:{process.pid}"))
                (listed,) = (await attachments.ps()).attachments
                process.kill()
                await until(lambda: Died(listed.ident) in node.log, "died")
                assert host.kernel.links.get(port_name(listed.ident)) is None
                assert not node.attachments[listed.ident].live and listed.ident not in destroyed(node)
                await attachments.close()
        finally:
            process.kill()
            process.wait()

    drive(scenario)


def test_restart_adopts_replugs_and_misses(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        kept, lost, gone, node = names(), names(), names(), FakeNode()
        for name in (kept, lost, gone):
            make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            for name in (kept, lost, gone):
                addresses(await attachments.attach(f"netns:{name}"))
            before = {name: node.attachments[name] for name in (kept, lost, gone)}
            await attachments.close()
            index = host.kernel.links.get(port_name(kept)).index  # type: ignore[union-attr]
            run(host.namespace, "ip", "link", "delete", port_name(lost))
            run(host.namespace, "ip", "netns", "delete", gone)
            run(host.namespace, "ip", "link", "add", port_name("never put"), "type", "veth")
            await host.stop()
            await host.start()
            attachments = await opened(host, node)
            assert host.kernel.links.get(port_name(kept)).index == index  # type: ignore[union-attr]
            assert node.attachments[kept] == before[kept] and node.attachments[lost] == before[lost]
            assert before[lost].addresses[0] in inside(lost, "ip", "address")
            assert Died(gone) in node.log and not node.attachments[gone].live
            assert host.kernel.links.get(port_name("never put")) is None
            await attachments.close()

    drive(scenario)


def test_what_a_container_that_does_not_come_back_held_is_given_back(names: Callable[[], str]) -> None:
    """Of one that was there when the machine went down: by a detach, or by the node once it was told in each start."""

    async def scenario() -> None:
        gone, other, node = names(), names(), FakeNode()
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            for name in (gone, other):
                make(name)
                taken = addresses(await attachments.attach(f"netns:{name}", ["net:default", "10.41.0.7/16"]))
            await attachments.close()
            for name in (gone, other):
                run(host.namespace, "ip", "netns", "delete", name)
            for _ in range(2):
                node.log.clear()
                attachments = await opened(host, node)
                assert Died(gone) in node.log and Died(other) in node.log
                await attachments.close()
            attachments = await opened(host, node)
            wrong = refused(await attachments.detach(f"netns:{gone}", ["10.41.0.8/16"]))
            assert wrong.code is Code.NOT_FOUND and "10.41.0.7/16" in wrong.found
            assert addresses(await attachments.detach(f"netns:{gone}", ["10.41.0.7/16"])) == ("10.41.0.7/16",)
            assert node.attachments[gone].requested == ("net:default",)
            assert addresses(await attachments.detach(f"netns:{gone}")) == ("10.32.0.1/12",)
            assert set(addresses(await attachments.detach(f"netns:{other}"))) == set(taken)
            assert not any(node.held.values()) and node.attachments == {}
            await attachments.close()

    drive(scenario)


def test_waiting_call_ends_when_its_container_goes(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        node.delay_s = 30.0
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            call = asyncio.create_task(attachments.attach(f"netns:{name}"))
            await asyncio.sleep(0.1)
            await run_async(host.namespace, "ip", "netns", "delete", name)
            failure = refused(await asyncio.wait_for(call, DEADLINE_S))
            assert "went away" in failure.found and not node.held.get(name)
            await attachments.close()

    drive(scenario)


def test_a_detach_ends_the_attaches_that_wait_before_it(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        name, node = names(), FakeNode()
        make(name)
        async with Pair(firewalled=False) as (host, _):
            attachments = await opened(host, node)
            reference = f"netns:{name}"
            for kept in ((), ("10.41.0.7/16",)):
                node.delay_s = 3600.0
                calls = [asyncio.create_task(attachments.attach(reference)) for _ in range(2)]
                await asyncio.sleep(0)
                assert addresses(await asyncio.wait_for(attachments.detach(reference), DEADLINE_S)) == ()
                for call in calls:
                    failure = refused(await asyncio.wait_for(call, DEADLINE_S))
                    assert failure.code is Code.CANCELLED and "detached" in failure.found
                assert node.held.get(name, []) == list(kept)
                node.delay_s = 0.0
                if not kept:
                    assert addresses(await attachments.attach(reference, ["10.41.0.7/16"])) == ("10.41.0.7/16",)
            assert addresses(await attachments.attach(reference)) == ("10.32.0.1/12",)
            await attachments.close()

    drive(scenario)


@pytest.fixture
def hosts_file() -> Iterator[None]:
    """What is mounted over must be there; an installer makes it, debootstrap does not."""
    path = Path("/etc/hosts")
    is_missing = not path.exists()
    if is_missing:
        path.touch()
    yield
    if is_missing:
        path.unlink()


@pytest.mark.usefixtures("hosts_file")
def test_hosts_files_are_rewritten_where_asked_for(names: Callable[[], str], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Pair() as (a, _):
            node = FakeNode()
            attachments = await opened(a, node)
            name = names()
            make(name)
            file = Path(f"/etc/netns/{name}/hosts")
            wishes = Wishes(rewrite_hosts=True, hosts=("db:192.0.2.7",), name="web")
            assert addresses(await attachments.attach(f"netns:{name}", (), wishes)) == ("10.32.0.1/12",)
            text = inside(name, "cat", "/etc/hosts")
            assert "10.32.0.1 web.weave.local web" in text and "192.0.2.7 db" in text
            addresses(await attachments.attach(f"netns:{name}", ["10.41.0.7/16"]))
            assert "10.41.0.7 web.weave.local web" in file.read_text()
            addresses(await attachments.detach(f"netns:{name}", ["10.41.0.7/16"]))
            assert "10.41.0.7" not in file.read_text()
            addresses(await attachments.detach(f"netns:{name}"))
            assert not file.parent.exists()

            own = tmp_path / "hosts"
            own.write_text("192.0.2.1 gate\n")
            script = f"mount --bind {own} /etc/hosts && echo ready && exec sleep 60"
            process = await asyncio.create_subprocess_exec(
                "unshare", "--net", "--mount", "sh", "-c", script, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            reference = f"pid:{process.pid}"
            addresses(await attachments.attach(reference, (), wishes))
            assert "web.weave.local" in own.read_text() and "192.0.2.1 gate" in own.read_text()
            assert "web.weave.local" not in Path("/etc/hosts").read_text()
            addresses(await attachments.detach(reference))
            assert own.read_text() == "192.0.2.1 gate\n"
            process.kill()
            await process.wait()
            await attachments.close()

    drive(scenario)


@pytest.mark.parametrize("held_before", [False, True])
def test_what_an_attach_took_that_a_killed_daemon_did_not_end_is_free_again(
    names: Callable[[], str], held_before: bool
) -> None:
    """What the same ident holds otherwise, as a network plugin's may, stays."""

    async def scenario() -> None:
        async with Pair() as (a, _):
            node, name = FakeNode(), names()
            make(name)
            kept = ["10.99.0.1/16"] if held_before else []
            node.held[name] = list(kept)
            dying = Attachments(a.kernel, a.attacher, node.dying_after(Allocate), a.namespace)
            await dying.open()
            with contextlib.suppress(asyncio.CancelledError):
                await dying.attach(f"netns:{name}")
            await dying.close()
            assert len(node.held[name]) == len(kept) + 1
            attachments = await opened(a, node)
            assert node.held[name] == kept
            assert not node.attachments
            assert (await attachments.ps()).attachments == ()
            await attachments.close()

    drive(scenario)


class Interrupted:
    """The node, slow at one kind of command from some moment on; ``reached`` is set when it did one."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.slow: type | None = None
        self.reached = asyncio.Event()

    async def request(self, command: Command) -> Result:
        result = await self._node.request(command)
        if self.slow is not None and isinstance(command, self.slow):
            self.reached.set()
            self.slow = None
            await asyncio.sleep(0.05)
        return result

    async def interrupt(self, call: Coroutine[object, object, object], kind: type) -> None:
        """Whoever makes ``call`` goes away when the first ``kind`` was done, and before that is known."""
        self.slow = kind
        task = asyncio.create_task(call)
        await self.reached.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_an_interrupted_call_leaves_what_is_remembered_as_it_was(names: Callable[[], str]) -> None:
    async def scenario() -> None:
        async with Pair(firewalled=False) as (a, _):
            node, name = FakeNode(), names()
            make(name)
            slow = Interrupted(node)
            attachments = Attachments(a.kernel, a.attacher, slow.request, a.namespace)
            await attachments.open()
            (first,) = addresses(await attachments.attach(f"netns:{name}"))
            remembered = node.attachments[name]
            await slow.interrupt(attachments.attach(f"netns:{name}", ["net:10.40.1.0/24"]), PutAttachment)
            assert node.held[name] == [first]
            assert node.attachments[name] == remembered
            assert "10.40.1." not in inside(name, "ip", "address")
            await attachments.close()

    drive(scenario)


@pytest.mark.parametrize("last", [PutAttachment, Release])
def test_a_detach_that_has_begun_is_done_to_its_end(names: Callable[[], str], last: type) -> None:
    async def scenario() -> None:
        async with Pair(firewalled=False) as (a, _):
            node, name = FakeNode(), names()
            make(name)
            slow = Interrupted(node)
            attachments = Attachments(a.kernel, a.attacher, slow.request, a.namespace)
            await attachments.open()
            await attachments.attach(f"netns:{name}")
            await slow.interrupt(attachments.detach(f"netns:{name}"), last)
            assert node.held[name] == []
            assert node.attachments == {}
            await attachments.close()

    drive(scenario)


@pytest.mark.parametrize("last", [PutAttachment, Release, RemoveAttachment])
def test_a_detach_that_a_killed_daemon_did_not_end_is_ended_by_the_next(names: Callable[[], str], last: type) -> None:
    async def scenario() -> None:
        async with Pair(firewalled=False) as (a, _):
            node, name = FakeNode(), names()
            make(name)
            node.held[name] = ["10.99.0.1/16"]  # of a network plugin
            dying = await opened(a, node)
            await dying.attach(f"netns:{name}", ["net:10.40.1.0/24"])
            dying._request = node.dying_after(last)
            with contextlib.suppress(asyncio.CancelledError):
                await dying.detach(f"netns:{name}", ["net:10.40.1.0/24"])
            await dying.close()
            attachments = await opened(a, node)
            assert node.held[name] == ["10.99.0.1/16"]
            assert node.attachments == {}
            await attachments.close()

    drive(scenario)


@pytest.mark.parametrize("last", [Allocate, PutAttachment, Release])
@pytest.mark.parametrize("is_detach", [False, True])
def test_a_change_that_a_killed_daemon_did_not_end_is_settled_by_the_next(
    names: Callable[[], str], last: type, is_detach: bool
) -> None:
    """Of a container that keeps other addresses meanwhile."""

    async def scenario() -> None:
        async with Pair(firewalled=False) as (a, _):
            node, name = FakeNode(), names()
            make(name)
            node.held[name] = ["10.99.0.1/16"]  # of a network plugin
            dying = await opened(a, node)
            (first,) = addresses(await dying.attach(f"netns:{name}"))
            if is_detach:
                await dying.attach(f"netns:{name}", ["net:10.40.1.0/24"])
            dying._request = node.dying_after(last)
            call = dying.detach if is_detach else dying.attach
            with contextlib.suppress(asyncio.CancelledError):
                await call(f"netns:{name}", ["net:10.40.1.0/24"])
            await dying.close()
            attachments = await opened(a, node)
            (listed,) = (await attachments.ps()).attachments
            assert node.attachments[name] == listed and not listed.kept
            assert sorted(node.held[name]) == sorted(["10.99.0.1/16", *listed.addresses])
            shown = inside(name, "ip", "address")
            assert [each for each in (first, "10.40.1.2/24") if each in shown] == [*listed.addresses]
            await attachments.close()

    drive(scenario)
