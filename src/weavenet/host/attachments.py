"""Containers on the network: asks IPAM for addresses, plugs, remembers, and follows what becomes of containers.

Invariants:
- What was asked for and given is in the node's store (``PutAttachment``) before the caller hears of it; a call that
  fails or is cancelled gives back the addresses and devices of that call, and so does the next daemon for a call that
  ended with this one.
- Calls for one ident happen one after the other; a detach ends attaches before it that wait for an address. A detach
  that has begun is done to its end, by the next daemon if need be.
- Process ended: ``Died`` (addresses kept for 30 s). Name or host veth gone: ``Destroyed`` (free at once). What was
  asked for under a name is remembered then, and applied again when the name comes back; ``pid:`` and paths never are.
- After a restart of the daemon, interfaces that exist are adopted untouched.

It holds no address itself and decides nothing about them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from weakref import WeakValueDictionary

import msgspec

from weavenet.core.commands import (
    Addresses,
    Attachment,
    Command,
    Destroyed,
    Died,
    ListAttachments,
    Lookup,
    PutAttachment,
    Release,
    RemoveAttachment,
    Result,
)
from weavenet.core.commands import Attachments as AttachmentList
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import DNS_DOMAIN_DEFAULT
from weavenet.core.names import EXPOSE, absolute_name, is_below
from weavenet.core.overlay.endpoints import is_named
from weavenet.core.types import without_prefix
from weavenet.host import hostsfile, naming, netns, requests
from weavenet.host.attach import Attacher
from weavenet.host.bridge import is_port_name, port_name
from weavenet.host.deaths import DeathWatch
from weavenet.host.finishing import finished
from weavenet.host.kernel import Kernel
from weavenet.host.requests import NO_WISHES, Wanted, Wishes

REMEMBERED_MAX = 256
"""Names that are gone and may come back; the longest gone is forgotten first."""
NAME_READY_TRIES, NAME_READY_PAUSE_S = 40, 0.05
"""A name appears in /run/netns just before its namespace is mounted there."""

Stop = asyncio.Future[Failure]
"""Why an attach need not wait for an address any longer."""

log = logging.getLogger(__name__)


class Attachments:
    """``request`` runs a command in the node. ``host``: this host's own namespace (None: ours)."""

    def __init__(
        self,
        kernel: Kernel,
        attacher: Attacher,
        request: Callable[[Command], Awaitable[Result]],
        host: int | None = None,
        domain: str = DNS_DOMAIN_DEFAULT,
    ) -> None:
        self._domain = domain
        self._kernel = kernel
        self._attacher = attacher
        self._request = request
        self._host = host
        self._known: dict[str, Attachment] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._deaths = DeathWatch(kernel.links, self._gone, self._name_appeared)
        self._attaching: dict[str, list[Stop]] = {}  # running or queued
        self._waiting: dict[str, Stop] = {}  # of these, who waits for an address
        self._is_vacated = False
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ---

    async def open(self) -> None:
        """Start watching, then bring what is remembered in line with what exists. Call after the plane is open: the
        bridge is there then. Raises OSError."""
        self._deaths.open()
        result = await self._request(ListAttachments())
        remembered = result.attachments if isinstance(result, AttachmentList) else ()
        remembered = tuple(attachment for attachment in remembered if attachment.ident != EXPOSE)
        self._known = {attachment.ident: attachment for attachment in remembered}
        ours = {port_name(ident) for ident in self._known}
        for link in self._kernel.links.all():
            if is_port_name(link.name) and link.name not in ours:  # a call that never got as far as being remembered
                log.info("removing %s: it belongs to no attachment", link.name)
                with contextlib.suppress(OSError):
                    await self._kernel.netlink.delete_link(link.index)
        for attachment in remembered:
            async with self._locked(attachment.ident):
                await self._reconcile(attachment)

    async def close(self) -> None:
        """Stop watching; interfaces stay."""
        self._deaths.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _locked(self, ident: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(ident, asyncio.Lock())
        async with lock:
            yield

    @contextlib.asynccontextmanager
    async def _stoppable(self, ident: str) -> AsyncIterator[Stop]:
        """Like ``_locked``, for an attach that a later detach stops."""
        stop: Stop = asyncio.get_running_loop().create_future()
        attaching = self._attaching.setdefault(ident, [])
        attaching.append(stop)
        try:
            async with self._locked(ident):
                yield stop
        finally:
            attaching.remove(stop)
            if not attaching:
                del self._attaching[ident]

    def _spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except (WeaveError, OSError) as error:
                log.warning("%s", error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- verbs ---

    async def attach(
        self, container: str, requested: Sequence[str] = (), wishes: Wishes = NO_WISHES
    ) -> Addresses | Failure:
        """The addresses that this call asked for, new or already held. Waits for IPAM without limit."""
        try:
            wanted = requests.parse_all(requested)
            with netns.resolve(container, self._host) as found:
                wishes, note = self._completed(found, wishes)
                async with self._stoppable(found.ident) as stop:
                    result = await self._attach(found, wanted, wishes, stop)
                return msgspec.structs.replace(result, note=note)
        except WeaveError as error:
            return error.failure

    def _completed(self, container: netns.Container, wishes: Wishes) -> tuple[Wishes, str]:
        """``wishes`` with the absolute name, or none, and why it is none where one was expected. Raises WeaveError for
        a name that was asked for and cannot be."""
        old = self._known.get(container.ident)
        kept = old.hosts_name if old is not None and is_below(old.hosts_name, self._domain) else ""
        name = wishes.name or kept or naming.container_name(container)
        absolute, note = absolute_name(name, self._domain) if name else "", ""
        if isinstance(absolute, Failure):
            if wishes.name:
                raise WeaveError(absolute)
            if wishes.is_named:
                found = f"{absolute.expected}, found {absolute.found}"
                note = f"{container.reference} gets no DNS name: {found}; next: give it one with -h NAME"
            absolute = ""
        hosts = hostsfile.parse_entries(wishes.hosts)
        is_rewriting = wishes.rewrite_hosts or bool(hosts)
        return msgspec.structs.replace(wishes, name=absolute, rewrite_hosts=is_rewriting, hosts=hosts), note

    def owner(self, container: str) -> tuple[str, str] | Failure:
        """(ident, what it calls itself or an empty string) of a container that is or was attached."""
        try:
            with netns.resolve(container, self._host) as found:
                return found.ident, naming.container_name(found)
        except WeaveError as error:
            for attachment in self._known.values():
                if attachment.container == container:
                    return attachment.ident, ""
            return error.failure

    async def _attach(
        self, container: netns.Container, wanted: Sequence[Wanted], wishes: Wishes, stop: Stop
    ) -> Addresses:
        if self._is_vacated:
            raise WeaveError(LEAVING)
        ident = container.ident
        old = self._known.get(ident)
        before = await self._held(ident)
        self._deaths.watch(ident, is_name=is_named(container.reference), pidfd=container.pidfd)
        answers: list[tuple[str, ...]] = []
        try:
            if old is None:
                await self._must(PutAttachment(_begun(ident, container.reference, before)))
            elif old.live:
                await self._must(PutAttachment(msgspec.structs.replace(old, kept=tuple(sorted(before)))))
            for item in wanted:
                answers.append(await self._obtain(ident, item, stop))
            taken = tuple(dict.fromkeys(address for answer in answers for address in answer))
            mac = await self._attacher.plug(container, taken, multicast_route=wishes.multicast_route)
            merged, held = requests.merge(old, wanted, answers)
            attachment = Attachment(
                ident,
                container.reference,
                mac,
                tuple(merged),
                tuple(held),
                wishes.multicast_route,
                live=True,
                rewrite_hosts=wishes.rewrite_hosts or (old is not None and old.rewrite_hosts),
                hosts=tuple(dict.fromkeys((*(old.hosts if old is not None else ()), *wishes.hosts))),
                hosts_name=wishes.name,
            )
            if attachment.rewrite_hosts:
                await asyncio.to_thread(hostsfile.write, container, attachment)
            await self._must(PutAttachment(attachment, wishes.name if wishes.is_named else ""))
        except BaseException:
            await finished(self._give_back(container, old, before))
            raise
        self._known[ident] = attachment
        return Addresses(taken)

    async def _obtain(self, ident: str, item: Wanted, stop: Stop) -> tuple[str, ...]:
        """What IPAM gives, unless we are told to ``stop`` while we wait."""
        self._waiting[ident] = stop
        asking = asyncio.ensure_future(self._request(item.command(ident)))
        try:
            await asyncio.wait((asking, stop), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise WeaveError(stop.result())
            result = asking.result()
        finally:
            asking.cancel()
            self._waiting.pop(ident, None)
        if isinstance(result, Failure):
            raise WeaveError(result)
        if isinstance(result, Addresses) and result.addresses:
            return result.addresses
        return (item.address,)  # a claim is answered by Done

    async def _give_back(self, container: netns.Container, old: Attachment | None, before: frozenset[str]) -> None:
        """Undo a call: whatever the ident holds now and did not before. Asked of IPAM, because an answer may have been
        on its way when the call was cancelled."""
        taken = sorted(await self._held(container.ident) - before)
        with contextlib.suppress(WeaveError):
            if old is not None and old.live and old.rewrite_hosts:
                await asyncio.to_thread(hostsfile.write, container, old)
            else:
                await asyncio.to_thread(hostsfile.clear, container.reference)
        try:
            if old is None or not old.live:
                self._deaths.forget(container.ident)
                await self._attacher.remove(container.ident)
            elif taken:
                await self._attacher.unplug(container, taken)
        except (WeaveError, OSError) as error:
            log.warning("%s could not be cleaned up: %s", container.reference, error)
        # Ahead of the release: it may have been remembered already, and what is remembered is plugged in again.
        await self._request(
            PutAttachment(old if old is not None else _begun(container.ident, container.reference, before))
        )
        if taken:
            await self._request(_release(container.ident, taken))
        if old is None:
            await self._request(RemoveAttachment(container.ident))

    async def detach(self, container: str, addresses: Sequence[str] = ()) -> Addresses | Failure:
        """Take the given addresses away, or those of the default subnet; those that were freed."""
        try:
            ident = self._ident_of(container)
            detached = Failure(Code.CANCELLED, f"expected an address for {container}", "it was detached meanwhile")
            stopped = tuple(self._attaching.get(ident, ()))
            for stop in stopped:
                _stop(stop, detached)
            async with self._locked(ident):
                if stopped and not addresses and not self._has_default(ident):
                    return Addresses(())  # to end the attach was all there was to do
                return await finished(self._detach(ident, container, addresses))
        except WeaveError as error:
            return error.failure

    def _has_default(self, ident: str) -> bool:
        known = self._known.get(ident)
        return known is not None and bool(not known.addresses or requests.chosen(known, (requests.DEFAULT,)))

    def _ident_of(self, container: str) -> str:
        """Of a live container, or of one that is gone but remembered."""
        try:
            with netns.resolve(container, self._host) as found:
                return found.ident
        except WeaveError:
            for attachment in self._known.values():
                if attachment.container == container:
                    return attachment.ident
            raise

    async def _detach(self, ident: str, container: str, addresses: Sequence[str]) -> Addresses:
        old = self._known.get(ident)
        if old is None:
            raise WeaveError(Failure(Code.NOT_FOUND, f"{container} must be attached", "it is not", "see `weave ps`"))
        if not old.live and not old.addresses:
            return await self._detach_absent(old, addresses)
        wanted = addresses or (requests.DEFAULT,)  # the reverse of an attach that names none
        gone = requests.chosen(old, wanted)
        if not gone:
            raise _lacks(container, wanted, old.addresses)
        requested, left = requests.without(old, gone)
        new = msgspec.structs.replace(old, requested=requested, addresses=left, live=True)
        if not left:
            await self._clear_hosts(old)
            self._deaths.forget(ident)
            await self._attacher.remove(ident)
            self._known.pop(ident, None)
            if gone:
                await self._must(PutAttachment(_begun(ident, old.container, await self._held(ident) - set(gone))))
        else:
            with netns.resolve(container, self._host) as found:
                await self._attacher.unplug(found, gone)
                if old.rewrite_hosts:
                    await asyncio.to_thread(hostsfile.write, found, new)
            kept = tuple(sorted(await self._held(ident) - set(gone)))
            await self._must(PutAttachment(msgspec.structs.replace(new, kept=kept)))
            self._known[ident] = new
        if gone:
            await self._must(_release(ident, gone))
        await self._must(RemoveAttachment(ident) if not left else PutAttachment(new))
        return Addresses(gone)

    async def _detach_absent(self, old: Attachment, addresses: Sequence[str]) -> Addresses:
        """The reverse of an attach whose container is not there by now; without ``addresses`` it is forgotten."""
        held = tuple(sorted(await self._held(old.ident)))
        requested, gone = requests.of_absent(old, held, addresses)
        if not gone and requested == old.requested:
            raise _lacks(old.container, addresses, held)
        if gone:
            await self._must(Release(old.ident, tuple(address.partition("/")[0] for address in gone)))
        if requested:
            self._known[old.ident] = new = msgspec.structs.replace(old, requested=requested)
            await self._must(PutAttachment(new))
            return Addresses(gone)
        await self._clear_hosts(old)
        self._deaths.forget(old.ident)
        await self._attacher.remove(old.ident)
        self._known.pop(old.ident, None)
        await self._must(RemoveAttachment(old.ident))
        return Addresses(gone)

    async def _clear_hosts(self, old: Attachment) -> None:
        if not old.rewrite_hosts:
            return
        try:
            await asyncio.to_thread(hostsfile.clear, old.container)
        except WeaveError as error:
            log.info("nothing to take out of its /etc/hosts: %s", error)

    async def ps(self) -> AttachmentList:
        """What is plugged in now, by ident."""
        return AttachmentList(tuple(a for _, a in sorted(self._known.items()) if a.live))

    async def vacate(self) -> None:
        """Unplug everything, and plug nothing any more: this host leaves the network. The node is not told. Raises
        OSError."""
        self._is_vacated = True
        self._deaths.close()
        for stop in self._waiting.values():
            _stop(stop, LEAVING)
        for ident in sorted({*self._known, *self._locks}):
            async with self._locked(ident):
                await self._attacher.remove(ident)
                known = self._known.pop(ident, None)
                if known is not None:
                    await self._clear_hosts(known)

    # --- the node ---

    async def _must(self, command: Command) -> Result:
        result = await self._request(command)
        if isinstance(result, Failure):
            raise WeaveError(result)
        return result

    async def _held(self, ident: str) -> frozenset[str]:
        result = await self._request(Lookup(ident))
        return frozenset(result.addresses) if isinstance(result, Addresses) else frozenset()

    async def _put(
        self, old: Attachment, requested: tuple[str, ...], addresses: tuple[str, ...], *, live: bool
    ) -> None:
        attachment = msgspec.structs.replace(old, requested=requested, addresses=addresses, live=live)
        await self._must(PutAttachment(attachment))
        self._known[old.ident] = attachment

    # --- what becomes of containers ---

    def _gone(self, ident: str, process: bool) -> None:
        stop = self._waiting.get(ident)
        if stop is not None:
            _stop(stop, Failure(Code.NOT_FOUND, f"{ident} must exist", "it went away while waiting for an address"))
        self._spawn(self._bury(ident, process))

    async def _bury(self, ident: str, process: bool) -> None:
        async with self._locked(ident):
            old = self._known.get(ident)
            if old is None or not old.live:
                return
            if await self._is_there(old):
                return
            if is_named(old.container):
                await self._clear_hosts(old)
            await self._attacher.remove(ident)  # what still uses the namespace must not keep a freed address
            if process:
                await self._put(old, old.requested, old.addresses, live=False)
                await self._must(Died(ident))
                self._known.pop(ident, None)
            else:
                await self._miss(old, Destroyed(ident))

    async def _is_there(self, old: Attachment) -> bool:
        """Whether it is, after all (the pair was made anew while we were told that it is gone); then watch on."""
        try:
            found = netns.resolve(old.container, self._host)
        except WeaveError:
            return False
        with found:
            if found.ident != old.ident or not await self._attacher.is_plugged(found):
                return False
            self._deaths.watch(old.ident, is_name=is_named(old.container), pidfd=found.pidfd)
            return True

    async def _miss(self, old: Attachment, word: Destroyed | Died) -> None:
        """The container is not there: say so, and keep what was asked for, if it can come back."""
        self._deaths.forget(old.ident)
        gone = msgspec.structs.replace(old, addresses=(), live=False, kept=())
        remembered = gone if is_named(old.container) else None
        await self._must(Destroyed(old.ident, remembered) if isinstance(word, Destroyed) else word)
        self._known.pop(old.ident, None)
        if remembered is None:
            return
        missed = [a for a in self._known.values() if not a.live]
        for oldest in missed[: len(missed) + 1 - REMEMBERED_MAX] if len(missed) >= REMEMBERED_MAX else ():
            self._known.pop(oldest.ident, None)
            await self._must(RemoveAttachment(oldest.ident))
        await self._must(PutAttachment(remembered))  # changes nothing after Destroyed
        self._known[old.ident] = remembered

    def _name_appeared(self, name: str) -> None:
        known = self._known.get(name)
        if known is not None and is_named(known.container):
            self._spawn(self._come_back(known.container, name))

    async def _come_back(self, reference: str, ident: str) -> None:
        for _ in range(NAME_READY_TRIES):
            try:
                found = netns.resolve(reference, self._host)
                break
            except WeaveError:
                await asyncio.sleep(NAME_READY_PAUSE_S)
        else:
            return
        with found:
            async with self._stoppable(ident) as stop:
                old = self._known.get(ident)
                if old is None or old.live:
                    return
                wanted = requests.parse_all(old.requested)
                wishes = Wishes(old.multicast_route, is_named=False, name=old.hosts_name)
                await self._attach(found, wanted, wishes, stop)

    async def _reconcile(self, old: Attachment) -> None:
        """After a start: adopt, plug again, or destroy."""
        if not old.requested:
            await self._undo(old)
            return
        try:
            found = netns.resolve(old.container, self._host)
        except WeaveError:
            found = None
        if found is None or found.ident != old.ident:
            if found is not None:
                found.close()
            if old.live or not is_named(old.container):
                with contextlib.suppress(OSError):
                    await self._attacher.remove(old.ident)
                # After a reboot names come back one by one: who is back soon finds its address again.
                is_expected = old.live and is_named(old.container)
                await self._miss(old, Died(old.ident) if is_expected else Destroyed(old.ident))
            else:
                await self._must(Died(old.ident))  # what it holds was to be freed by the daemon before this one
            return
        with found:
            try:
                await self._restore(found, await self._settled(found, old) if old.kept else old)
            except WeaveError as error:
                log.warning("%s", error)

    async def _undo(self, begun: Attachment) -> None:
        """What a call took, or had not given back yet, that ended with its daemon."""
        log.info("giving back what %s got: its attach or detach did not end", begun.container)
        with contextlib.suppress(OSError):
            await self._attacher.remove(begun.ident)
        self._known.pop(begun.ident, None)
        taken = sorted(await self._held(begun.ident) - set(begun.addresses))
        if taken:
            await self._must(_release(begun.ident, taken))
        await self._must(RemoveAttachment(begun.ident))

    async def _settled(self, container: netns.Container, old: Attachment) -> Attachment:
        """``old`` without what a call gave or was about to take that ended with its daemon."""
        log.info("giving back what %s got: its attach or detach did not end", old.container)
        taken = sorted(await self._held(old.ident) - set(old.kept))
        if taken:
            await self._attacher.unplug(container, taken)
            await self._must(_release(old.ident, taken))
        settled = msgspec.structs.replace(old, kept=())
        await self._must(PutAttachment(settled))
        self._known[old.ident] = settled
        return settled

    async def _restore(self, container: netns.Container, old: Attachment) -> None:
        if not old.live:
            if is_named(old.container):
                self._spawn(self._come_back(old.container, old.ident))  # may wait for IPAM
            return
        if not await self._attacher.is_plugged(container):
            await self._attacher.plug(container, old.addresses, multicast_route=old.multicast_route)
        self._deaths.watch(old.ident, is_name=is_named(old.container), pidfd=container.pidfd)
        await self._put(old, old.requested, old.addresses, live=True)


def _lacks(container: str, wanted: Sequence[str], has: Sequence[str]) -> WeaveError:
    expected, found = f"{container} must have {' '.join(wanted)}", f"it has {' '.join(has) or 'none'}"
    step = f"weave detach ADDR… {container}, with those to take away"
    return WeaveError(Failure(Code.NOT_FOUND, expected, found, step))


def _begun(ident: str, reference: str, held: frozenset[str]) -> Attachment:
    """Remembered while a call runs that attaches a container for the first time, or detaches it altogether: nothing is
    ``requested`` of it, as of no other, and ``addresses`` are those that it held before and keeps."""
    return Attachment(ident, reference, b"", (), tuple(sorted(held)), False, live=False)


def _release(ident: str, addresses: Iterable[str]) -> Release:
    return Release(ident, tuple(map(without_prefix, addresses)))


def _stop(stop: Stop, why: Failure) -> None:
    if not stop.done():
        stop.set_result(why)


LEAVING = Failure(
    Code.CONFLICT,
    "expected a host that stays",
    "it is leaving (`weave reset`)",
    "attach the container on another host",
)
