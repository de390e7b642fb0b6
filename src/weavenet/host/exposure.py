"""The host itself on the network: addresses on the bridge, with masquerading and a name, remembered and taken back.

It is an attachment like a container's, of the ident ``weave:expose``: what was asked for and given is in the node's
store before the kernel has it, so that the next daemon finishes or undoes what this one leaves half done; others learn
the bridge's MAC with the addresses, and names of it follow. The kernel is kept as wanted: an address that somebody
takes off the bridge comes back, one lost to another peer leaves.

Invariants: calls happen one after the other, a hide ends those before it that wait for an address, and whoever waits
for an address keeps nobody from taking a lost one off (the node answers nothing before that is done). A call that fails
or is cancelled gives back what it took. Hiding the last address leaves nothing behind. Forwarding between devices is
switched on with the first address where it was off, and off again with the last; whether the host takes ICMP redirects
is then as it was, too. It stays on where somebody else may need it by then: a host that has other bridges, or that
forwarded already when we came back after a boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from weavenet.core.commands import (
    AddName,
    Addresses,
    Attachment,
    Attachments,
    Command,
    ListAttachments,
    Lookup,
    PutAttachment,
    Release,
    RemoveAttachment,
    Result,
)
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import BRIDGE
from weavenet.core.names import EXPOSE, absolute_name
from weavenet.core.types import without_prefix
from weavenet.host import announce, ipv6, requests, sysctl
from weavenet.host.bridge import Bridge, is_port_name
from weavenet.host.exposure_rules import Exposed
from weavenet.host.finishing import finished
from weavenet.host.firewall import Firewall
from weavenet.host.kernel import Kernel

WATCH_S = 1.0
"""Addresses on the bridge are compared with what they should be this often, while there are any."""
FORWARDING = "ipv4/ip_forward"
REDIRECTS = "ipv4/conf/all/accept_redirects"
"""Whenever the one is switched, the kernel sets the other to the opposite (Linux, ip-sysctl: ``ip_forward``)."""
NOTHING = Attachment(EXPOSE, EXPOSE, b"", (), (), False, False)

log = logging.getLogger(__name__)


class Exposure:
    """``request`` runs a command in the node; ``domain``: names are below it."""

    def __init__(
        self,
        kernel: Kernel,
        bridge: Bridge,
        firewall: Firewall,
        request: Callable[[Command], Awaitable[Result]],
        domain: str,
    ) -> None:
        self._kernel, self._bridge, self._firewall = kernel, bridge, firewall
        self._request = request
        self._domain = domain
        self._known = NOTHING  # what the node remembers
        self._wanted = NOTHING  # what the kernel is kept like; changes under the kernel's lock only
        self._blocked: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self._kernel_lock = asyncio.Lock()
        self._is_switched = False
        self._redirects_accepted = False
        self._leaving = asyncio.Event()
        self._exposing: list[asyncio.Event] = []  # of each expose, running or queued: whether a hide came after it
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Bring the kernel in line with what is remembered. Call when the bridge is there. Raises OSError."""
        result = await self._request(ListAttachments())
        remembered = result.attachments if isinstance(result, Attachments) else ()
        async with self._lock:
            self._known = next((each for each in remembered if each.ident == EXPOSE), NOTHING)
            stale = sorted(await self._held() - set(self._known.addresses))
            if self._known.addresses:
                self._known = await self._completed(await self._since_boot(self._known))
                await self._must(PutAttachment(self._known))
                await self._apply(self._known, stale)
            else:
                await self._take_off(stale)
                await self._firewall.set_exposed(())
            if stale:  # a call that never got as far as being remembered
                await self._must(Release(EXPOSE, tuple(map(without_prefix, stale))))
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching; what is exposed stays so."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def set_blocked(self, blocked: Sequence[tuple[str, str]]) -> None:
        """(ident, address without prefix) lost to other peers: ours among them leave the bridge."""
        found = frozenset(address for ident, address in blocked if ident == EXPOSE)
        if found != self._blocked:
            self._blocked = found
            await self._apply_again()

    @property
    def attachment(self) -> Attachment:
        return self._known

    # --- verbs ---

    async def expose(self, requested: Sequence[str], name: str, *, masquerade: bool = True) -> Addresses | Failure:
        """Addresses that this call asked for, new or already held. Waits for IPAM without limit."""
        try:
            wanted = requests.parse_all(requested)
            absolute = absolute_name(name, self._domain) if name else ""
            if isinstance(absolute, Failure):
                return absolute
            hidden = asyncio.Event()
            self._exposing.append(hidden)
            try:
                async with self._lock:
                    taken = await self._expose(wanted, hidden, masquerade=masquerade)
                    if absolute:
                        await self._must(AddName(absolute, EXPOSE, tuple(map(without_prefix, taken))))
            finally:
                self._exposing.remove(hidden)
            return Addresses(taken)
        except WeaveError as error:
            return error.failure

    async def _expose(
        self, wanted: Sequence[requests.Wanted], hidden: asyncio.Event, *, masquerade: bool
    ) -> tuple[str, ...]:
        old, before = self._known, await self._held()
        await self._refuse_own(wanted)
        answers: list[tuple[str, ...]] = []
        try:
            for item in wanted:
                answers.append(await self._obtain(item, hidden))
            taken = tuple(dict.fromkeys(address for answer in answers for address in answer))
            asked, held = requests.merge(old, wanted, answers)
            subnets = set(map(_subnet, taken))
            plain = _unmasqueraded(old) - subnets if masquerade else _unmasqueraded(old) | subnets
            new = msgspec.structs.replace(old, requested=tuple(asked), addresses=tuple(held))
            new = msgspec.structs.replace(new, masquerade=True, unmasqueraded=tuple(sorted(plain)))
            new = await self._completed(new)
            await self._must(PutAttachment(new))
            await self._apply(new)
        except BaseException:
            await finished(self._give_back(old, before))
            raise
        self._known = new
        with contextlib.suppress(OSError):  # a courtesy to neighbours
            announce.send(self._kernel.namespace, BRIDGE, [(new.mac, without_prefix(address)) for address in taken])
        return taken

    async def _refuse_own(self, wanted: Sequence[requests.Wanted]) -> None:
        """Raises WeaveError for an address that another device of this host has: it would be in two networks."""
        if not any(item.address for item in wanted):
            return
        for link in self._kernel.links.all():
            if link.name == BRIDGE or is_port_name(link.name):
                continue
            held = set(map(without_prefix, await self._kernel.netlink.addresses(link.index)))
            for item in wanted:
                if item.address and without_prefix(item.address) in held:
                    expected = f"expected an address that no other device of this host has: {item.address}"
                    step = "choose one of the network, or let `weave expose` choose"
                    raise WeaveError(Failure(Code.CONFLICT, expected, f"{link.name} has it", step))

    async def _obtain(self, item: requests.Wanted, hidden: asyncio.Event) -> tuple[str, ...]:
        """What IPAM gives, unless this host is hidden or leaves the network while we wait."""
        asking = asyncio.ensure_future(self._must(item.command(EXPOSE)))
        ends = [asyncio.ensure_future(event.wait()) for event in (self._leaving, hidden)]
        try:
            await asyncio.wait((asking, *ends), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                found = "it is leaving" if self._leaving.is_set() else "it was hidden meanwhile"
                raise WeaveError(Failure(Code.CANCELLED, "this host must be on the network", found))
            answer = asking.result()
        finally:
            for task in (asking, *ends):
                task.cancel()
        if isinstance(answer, Addresses) and answer.addresses:
            return answer.addresses
        return (item.address,)  # a claim is answered by Done

    async def _give_back(self, old: Attachment, before: frozenset[str]) -> None:
        taken = sorted(await self._held() - before)
        try:
            await self._apply(old, taken)
        except OSError as error:
            log.warning("the host's exposure could not be taken back: %s", error)
        await self._request(PutAttachment(old) if old.addresses else RemoveAttachment(EXPOSE))
        if taken:
            await self._request(Release(EXPOSE, tuple(map(without_prefix, taken))))

    async def hide(self, requested: Sequence[str]) -> Addresses | Failure:
        """Take the given addresses away, or all; those that were."""
        try:
            for hidden in self._exposing:
                hidden.set()
            async with self._lock:
                return await finished(self._hide(requests.chosen(self._known, requested)))
        except WeaveError as error:
            return error.failure

    async def _hide(self, gone: tuple[str, ...]) -> Addresses:
        if not gone:
            return Addresses(())
        asked, left = requests.without(self._known, gone)
        new = msgspec.structs.replace(self._known, requested=asked, addresses=left) if left else NOTHING
        await self._apply(new if left else msgspec.structs.replace(self._known, addresses=()), gone)
        self._known = new
        await self._must(PutAttachment(new) if left else RemoveAttachment(EXPOSE))
        await self._must(Release(EXPOSE, tuple(map(without_prefix, gone))))
        return Addresses(gone)

    async def _must(self, command: Command) -> Result:
        result = await self._request(command)
        if isinstance(result, Failure):
            raise WeaveError(result)
        return result

    async def _held(self) -> frozenset[str]:
        result = await self._request(Lookup(EXPOSE))
        return frozenset(result.addresses) if isinstance(result, Addresses) else frozenset()

    async def vacate(self) -> None:
        """Take this host off the network for good. The node is not told. Raises OSError."""
        self._leaving.set()
        async with self._lock:
            known, self._known = self._known, NOTHING
            await self._apply(msgspec.structs.replace(known, addresses=()), known.addresses)

    # --- the kernel ---

    async def _since_boot(self, attachment: Attachment) -> Attachment:
        """``attachment``, of an earlier life. Where none of its addresses is on the bridge the machine has started
        again, and if it forwards, somebody else wants it to."""
        bridge = await self._bridge.ensure()
        held = await self._kernel.netlink.addresses(bridge.index)
        if set(held).isdisjoint(attachment.addresses):
            return msgspec.structs.replace(attachment, forwarding_switched=False)
        return attachment

    async def _completed(self, attachment: Attachment) -> Attachment:
        """``attachment`` with what the kernel adds to it."""
        bridge = await self._bridge.ensure()
        is_off = sysctl.read(self._kernel.namespace, FORWARDING) == "0"
        if is_off:  # so it was before, or the machine has started again since
            accepted = sysctl.read(self._kernel.namespace, REDIRECTS) == "1"
            attachment = msgspec.structs.replace(attachment, forwarding_switched=True, redirects_accepted=accepted)
        self._redirects_accepted = attachment.redirects_accepted
        return msgspec.structs.replace(attachment, mac=bridge.mac, live=True)

    async def _apply(self, wanted: Attachment, gone: Sequence[str] = ()) -> None:
        """Make the kernel like ``wanted``, without the addresses ``gone``. Idempotent. Raises OSError."""
        async with self._kernel_lock:
            self._wanted = wanted if wanted.addresses else NOTHING  # forwarding is switched off once
            await self._take_off(gone)
            await self._set(wanted)

    async def _apply_again(self) -> None:
        """What is wanted by the time that nobody else changes the kernel any more. Raises OSError."""
        async with self._kernel_lock:
            await self._set(self._wanted)

    async def _set(self, wanted: Attachment) -> None:
        shown = [address for address in wanted.addresses if without_prefix(address) not in self._blocked]
        if wanted.addresses:
            bridge = await self._bridge.ensure()
            held = await self._kernel.netlink.addresses(bridge.index)
            await self._take_off([each for each in wanted.addresses if each not in shown and each in held])
            if set(shown) - set(held):
                ipv6.allow(self._kernel.namespace, BRIDGE, shown, "this host")
            for address in shown:
                if address not in held:
                    await self._kernel.netlink.add_address(bridge.index, address)
        plain = _unmasqueraded(wanted)
        exposed = tuple(Exposed(subnet, subnet not in plain) for subnet in sorted(set(map(_subnet, shown))))
        await self._firewall.set_exposed(exposed)
        if wanted.forwarding_switched or self._is_switched:
            self._is_switched = bool(wanted.addresses)
            if self._is_switched:
                sysctl.write(self._kernel.namespace, {FORWARDING: "1"})
            else:
                forward_no_more(self._kernel, redirects_accepted=self._redirects_accepted)

    async def _take_off(self, addresses: Sequence[str]) -> None:
        link = self._kernel.links.get(BRIDGE)
        for address in addresses if link is not None else ():
            if link is not None:
                await self._kernel.netlink.delete_address(link.index, address)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if not self._wanted.addresses:
                continue
            try:
                await self._apply_again()
            except (OSError, WeaveError) as error:
                log.warning("addresses of this host on the network could not be put back: %s", error)


def forward_no_more(kernel: Kernel, *, redirects_accepted: bool) -> None:
    """As it was on a host that forwarded nothing before it was exposed. One that has a bridge of others goes on: Docker
    and its like switch forwarding on when they start, and never notice that it is off again."""
    others = [link.name for link in kernel.links.all() if link.kind == "bridge" and link.name != BRIDGE]
    if others:
        log.info("this host goes on forwarding, which it did not before it was exposed: %s may need it", others[0])
        return
    settings = {FORWARDING: "0", REDIRECTS: "1" if redirects_accepted else "0"}
    sysctl.write(kernel.namespace, settings)


def _unmasqueraded(attachment: Attachment) -> frozenset[str]:
    subnets = frozenset(map(_subnet, attachment.addresses))
    return subnets.intersection(attachment.unmasqueraded) if attachment.masquerade else subnets


def _subnet(address: str) -> str:
    return str(ipaddress.ip_interface(address).network)
