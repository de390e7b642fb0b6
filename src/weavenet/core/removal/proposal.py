"""Asking for the removal of peers, from the command to the decree and the end of the hold (``rmpeer``).

The operator asserts that a peer is dead. Before that is decreed a quorum of the voters must say "I do not see it", and
their word counts for SEEN_VALID_S only: a proposal that waited out a partition asks again, and one whose peer is back
is dropped (history *pending-kills-the-living*). Such an answer is durable before it leaves (``Attests``), and so is a
proposal, so that one which waits for a quorum outlives the command and the daemon.

``force`` skips the question. Without a quorum, and only when every voter that is out of reach is among the removed, or
has left by itself, it opens a new epoch, whose log replaces the old one's after the fork wherever both meet. It also
ends a hold that did not end by itself within FORCED_HOLD_S.

Invariants: a request is answered exactly once or cancelled; nothing is proposed for a peer that we can reach. What this
does not do: decide (``DecreeElection``), collect (``Collect``), close links.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from weavenet.core.commands import Done, RemovePeers, Result
from weavenet.core.effects import Change, Outbox, Reply
from weavenet.core.election import Turnout, quorum, turnout
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import HOLD_RETRY_S, PENDING_REQUESTS_MAX, REMOVALS_MAX, SEEN_RETRY_S, SEEN_VALID_S
from weavenet.core.messages.unicast import HoldAnswer, HoldQuery, SeenAnswer, SeenQuery
from weavenet.core.removal.attests import Attests
from weavenet.core.removal.collect import Collect
from weavenet.core.removal.naming import Named, resolve
from weavenet.core.ring.log import Log
from weavenet.core.types import LogEntry, PeerId, Position, Remove, peer_text

TABLE = "removals"
FORCED_HOLD_S = 3.0
"""A forced removal still gives its hold this long to end by itself; mostly everybody needed is there."""

RemovalMessage = SeenQuery | SeenAnswer | HoldAnswer


class Surroundings(Protocol):
    """What a removal needs to know of the rest of the node."""

    def is_reachable(self, peer: PeerId) -> bool: ...

    def unreachable_for(self, now: float, peer: PeerId) -> float | None:
        """Seconds since ``peer`` was last seen; None while it is reachable."""
        ...

    def last_seen(self, now: float, peer: PeerId) -> str:
        """In words; empty while it is reachable, and for a seed that never was."""
        ...

    def directory(self) -> list[Named]:
        """Everybody one may name, ourselves included."""
        ...

    def named(self, peer: PeerId) -> Named:
        """As it calls itself, a seed like whoever stands for it; without names when nobody here ever heard them."""
        ...

    @property
    def own_ids(self) -> frozenset[PeerId]:
        """Ourselves, and the seed that we stand for."""
        ...

    def ids_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        """``peer`` and the seed that it stands for."""
        ...

    def heir(self, without: frozenset[PeerId]) -> PeerId | None:
        """Who inherits: ourselves, or the lowest reachable elector."""
        ...

    def votes_as(self) -> PeerId | None:
        """The voter whose vote this peer casts now."""
        ...

    def voter_address(self, voter: PeerId) -> PeerId | None:
        """The reachable peer that casts this vote."""
        ...


class Proposal(msgspec.Struct):
    """Peers to be removed together. ``session``, ``asked_at``: the last question to the voters; ``unseen``: those who
    answered that they see none of them."""

    ids: frozenset[PeerId]
    force: bool
    session: int = 0
    asked_at: float | None = None
    unseen: set[PeerId] = msgspec.field(default_factory=set)
    ask_at: float = 0.0


class Waiter(msgspec.Struct):
    """A command that is answered when ``ids`` are removed and what they owned is usable."""

    ids: frozenset[PeerId]
    force: bool
    session: int
    heirs_done: set[PeerId] = msgspec.field(default_factory=set)
    last_seen: dict[PeerId, str] = msgspec.field(default_factory=dict)
    waiting_for: tuple[PeerId, ...] = ()
    ask_at: float = 0.0
    removed_at: float | None = None


class Removals:
    """``rows`` are those of table ``removals``. ``append(now, entry)``: make a decided entry part of the log, and
    spread it."""

    def __init__(
        self,
        *,
        me: PeerId,
        log: Log,
        collect: Collect,
        around: Surroundings,
        append: Callable[[float, LogEntry], None],
        attests: Attests,
        rows: Iterable[tuple[bytes, bytes]],
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._log = log
        self._collect = collect
        self._around = around
        self._append = append
        self._attests = attests
        self._outbox = outbox
        self._rng = rng
        self._proposals: dict[frozenset[PeerId], Proposal] = {}
        self._waiters: dict[int, Waiter] = {}
        for key, value in rows:
            ids = frozenset(msgspec.msgpack.decode(key, type=list[PeerId]))
            self._proposals[ids] = Proposal(ids, msgspec.msgpack.decode(value, type=bool))

    @property
    def is_undecided(self) -> bool:
        return bool(self._proposals)

    # --- the command ---

    def command(self, now: float, request: int, command: RemovePeers) -> None:
        """Answer at once, or when it is done."""
        if self._log.genesis is None:
            text = "no cluster record yet, so nobody owns anything"
            self._reply(request, Failure(Code.NOT_FOUND, "expected a cluster to remove peers from", text))
            return
        ids = self._named(now, command)
        if not isinstance(ids, frozenset):
            self._reply(request, ids)
            return
        remaining = frozenset(peer for peer in ids if not self._is_over(peer))
        if len(self._proposals) >= REMOVALS_MAX or len(self._waiters) >= PENDING_REQUESTS_MAX:
            self._reply(
                request, Failure(Code.BUSY, f"at most {REMOVALS_MAX} removals at once", "", "wait for those to finish")
            )
            return
        if remaining and command.force:
            refusal = self._refuse_force(remaining)
            if refusal is not None:
                self._reply(request, refusal)
                return
        if remaining:
            self._propose(remaining, command.force)
        if command.wait:
            waiter = self._waiters[request] = Waiter(ids, command.force, self._rng.getrandbits(62))
            waiter.last_seen = {peer: self._around.last_seen(now, peer) for peer in remaining}
        elif remaining:
            text = f"pending: {self._pending_text(now, self._proposals[remaining])}; "
            self._reply(request, Done(text + "checked again and decided as soon as a quorum of the voters is there"))
        else:
            self._reply(request, Done(self._done_text(Waiter(ids, command.force, 0))))

    def cancel(self, request: int) -> None:
        """Its client went away; what it proposed stays."""
        self._waiters.pop(request, None)

    def _named(self, now: float, command: RemovePeers) -> frozenset[PeerId] | Done | Failure:
        directory = self._around.directory()
        found: set[PeerId] = set()
        for name in command.names:
            peer = resolve(name, directory, self._is_over)
            if isinstance(peer, Failure):
                return peer
            found.add(peer)
        if command.all_unreachable:
            for known in directory:
                absent_s = self._around.unreachable_for(now, known.peer)
                is_gone = absent_s is not None and absent_s >= command.older_than_s
                if is_gone and known.peer not in self._around.own_ids and not self._is_over(known.peer):
                    found.add(known.peer)
            if not found:
                return Done("nobody is unreachable")
        if not found:
            return Failure(Code.INVALID, "expected the name of a peer", "none", "weave rmpeer NAME")
        if found & self._around.own_ids:
            text = "expected the name of another peer"
            return Failure(Code.INVALID, text, "this peer itself", "run `weave reset` here to leave the cluster")
        reachable = [peer for peer in found if not self._log.is_gone(peer) and self._around.is_reachable(peer)]
        if reachable:
            return Failure(
                Code.CONFLICT,
                "expected a peer that is gone for good",
                f"{self._titles(reachable)} is reachable",
                "run `weave reset` there instead",
            )
        return frozenset(each for peer in found for each in self._around.ids_of(peer))

    def _refuse_force(self, ids: frozenset[PeerId]) -> Failure | None:
        spared = self._spared(ids)
        if not spared or not self._turnout().lacking:
            return None
        return Failure(
            Code.CONFLICT,
            "expected every voter that is out of reach to be named, since --force goes on without a quorum",
            f"not named: {self._titles(spared)}",
            f"if those are dead too: {self._force_line((*ids, *spared))}",
        )

    def _propose(self, ids: frozenset[PeerId], force: bool) -> None:
        present = self._proposals.get(ids)
        if present is not None and (present.force or not force):
            return
        self._proposals[ids] = Proposal(ids, force)
        self._outbox.persist(Change(TABLE, _key(ids), msgspec.msgpack.encode(force)))

    # --- what the decree election asks ---

    def wanted(self, now: float) -> Remove | None:
        """A removal that may be decreed now: its evidence is fresh, or an operator takes the responsibility."""
        for proposal in self._proposals.values():
            remaining = self._remaining(proposal)
            if not remaining or not (proposal.force or self._is_attested(now, proposal)):
                continue
            if any(self._around.is_reachable(peer) for peer in remaining):
                continue
            heir = self._around.heir(remaining)
            if heir is not None:
                return Remove(tuple(sorted(remaining)), heir)
        return None

    def _is_attested(self, now: float, proposal: Proposal) -> bool:
        if proposal.asked_at is None or now >= proposal.asked_at + SEEN_VALID_S:
            return False
        counted = [voter for voter in self._log.voters if voter in proposal.unseen]
        return len(counted) >= quorum(len(self._log.voters))

    def _remaining(self, proposal: Proposal) -> frozenset[PeerId]:
        return frozenset(peer for peer in proposal.ids if not self._is_over(peer))

    def _is_over(self, peer: PeerId) -> bool:
        """Nothing is left to decide about it: it was removed, or has left and is no elector. One that left and is, may
        be the only voter (history *founded-with-one-that-left*)."""
        return peer in self._log.removed or (peer in self._log.departed and peer not in self._log.electors)

    # --- time ---

    def deadline(self) -> float | None:
        if not self._proposals and not self._waiters:
            return None
        times = [proposal.ask_at for proposal in self._proposals.values()]
        times += [waiter.ask_at for waiter in self._waiters.values()]
        return min(times, default=None)

    def advance(self, now: float) -> None:
        for proposal in list(self._proposals.values()):
            self._advance_proposal(now, proposal)
        for request, waiter in list(self._waiters.items()):
            self._advance_waiter(now, request, waiter)

    def _advance_proposal(self, now: float, proposal: Proposal) -> None:
        remaining = self._remaining(proposal)
        if not remaining:
            self._drop(proposal)
            return
        back = [peer for peer in remaining if self._around.is_reachable(peer)]
        if back:
            self._is_back(proposal, f"{self._titles(back)} is back")
            return
        if now < proposal.ask_at:
            return
        proposal.ask_at = now + SEEN_RETRY_S
        if self._turnout().lacking:
            proposal.asked_at = None
            if proposal.force and not self._spared(remaining):
                self._open_epoch(now, remaining)
        elif not proposal.force and not self._is_attested(now, proposal):
            self._ask(now, proposal, remaining)

    def _open_epoch(self, now: float, remaining: frozenset[PeerId]) -> None:
        """Decide without a quorum, in a new epoch that everybody who meets it follows. Electors that left go with the
        removed: they would be voters that nobody can ask or name."""
        heir = self._around.heir(remaining)
        if heir is None:
            return
        removed = remaining.union(elector for elector in self._log.electors if elector in self._log.departed)
        epoch = self._log.chain.epoch[0] + 1
        position = Position(epoch, self._rng.randbytes(8), len(self._log))
        names = self._titles(remaining)
        self._outbox.note("warning", "removal", f"forced: epoch {epoch} begins without a quorum by removing {names}")
        self._append(now, LogEntry(position, self._log.hash, Remove(tuple(sorted(removed)), heir)))

    def _ask(self, now: float, proposal: Proposal, remaining: frozenset[PeerId]) -> None:
        """Do you see one of them? Each session is one question; what it yielded is evidence from when it was asked."""
        if proposal.asked_at is None or now >= proposal.asked_at + SEEN_VALID_S:
            proposal.session, proposal.asked_at = self._rng.getrandbits(62), now
            proposal.unseen = set()
        own = self._around.votes_as()
        if own is not None:
            self._attests.add(now, sorted(remaining))
            proposal.unseen.add(own)
        for voter in self._log.voters:
            peer = self._around.voter_address(voter)
            if voter not in proposal.unseen and peer is not None and peer != self._me:
                self._outbox.unicast(peer, SeenQuery(proposal.session, tuple(sorted(remaining))))

    def _advance_waiter(self, now: float, request: int, waiter: Waiter) -> None:
        if any(not self._is_over(peer) for peer in waiter.ids):
            waiter.ask_at = now + HOLD_RETRY_S
            asked = frozenset(peer for ids in self._proposals for peer in ids)
            rest = frozenset(peer for peer in waiter.ids if not self._is_over(peer)) - asked
            if rest:  # a log of a greater epoch took back what was decided
                self._propose(rest, waiter.force)
            return
        if waiter.removed_at is None:
            waiter.removed_at = now
            waiter.ask_at = now
        removed = [peer for peer in waiter.ids if peer in self._log.removed]
        heirs = {self._log.heir(peer) for peer in removed}
        is_forced = waiter.force and now >= waiter.removed_at + FORCED_HOLD_S
        if self._me in heirs:
            if is_forced:
                self._collect.force(now)
            if not self._collect.is_needed:
                waiter.heirs_done.add(self._me)
            else:
                waiter.heirs_done.discard(self._me)
                waiter.waiting_for = self._collect.waiting_for
        if heirs <= waiter.heirs_done:
            del self._waiters[request]
            self._reply(request, Done(self._done_text(waiter)))
        elif now >= waiter.ask_at:
            waiter.ask_at = now + HOLD_RETRY_S
            number = max(self._log.removed[peer][1].number for peer in removed)
            query = HoldQuery(waiter.session, number, self._log.chain.hashes[number], is_forced)
            for heir in sorted(heirs - {self._me} - waiter.heirs_done):
                self._outbox.unicast(heir, query)

    # --- messages ---

    def handle(self, now: float, source: PeerId, message: RemovalMessage) -> None:
        match message:
            case SeenQuery():
                voter = self._around.votes_as()
                if voter is not None:
                    seen = tuple(peer for peer in message.peers if self._has_seen(now, peer, message.absent_s))
                    if not message.absent_s:
                        self._attests.add(now, (peer for peer in message.peers if peer not in seen))
                    self._outbox.unicast(source, SeenAnswer(message.session, voter, seen))
            case SeenAnswer():
                self._on_seen(message)
            case HoldAnswer():
                for waiter in self._waiters.values():
                    if waiter.session == message.session:
                        waiter.waiting_for = message.waiting_for
                        if message.over:
                            waiter.heirs_done.add(source)

    def _has_seen(self, now: float, peer: PeerId, within_s: int) -> bool:
        if self._around.is_reachable(peer):
            return True
        absent_s = self._around.unreachable_for(now, peer)
        return within_s > 0 and (absent_s is None or absent_s < within_s)

    def _on_seen(self, answer: SeenAnswer) -> None:
        for proposal in list(self._proposals.values()):
            if proposal.session != answer.session or answer.voter not in self._log.voters:
                continue
            if answer.seen:
                who = self._titles([answer.voter])
                self._is_back(proposal, f"{self._titles(answer.seen)} is back: {who} sees it")
            else:
                proposal.unseen.add(answer.voter)

    # --- outcomes ---

    def _is_back(self, proposal: Proposal, text: str) -> None:
        self._outbox.note("warning", "removal", f"not removed: {text}")
        self._drop(proposal)
        failure = Failure(
            Code.CONFLICT, "expected a peer that is gone for good", text, "run `weave reset` there instead"
        )
        for request, waiter in list(self._waiters.items()):
            if waiter.ids & proposal.ids:
                del self._waiters[request]
                self._reply(request, failure)

    def _drop(self, proposal: Proposal) -> None:
        del self._proposals[proposal.ids]
        self._outbox.persist(Change(TABLE, _key(proposal.ids), None))

    def forget(self) -> None:
        """This peer gave up its cluster for another."""
        for proposal in list(self._proposals.values()):
            self._drop(proposal)

    def _reply(self, request: int, result: Result) -> None:
        self._outbox.append(Reply(request, result))

    # --- words ---

    def _turnout(self) -> Turnout:
        return turnout(self._log.voters, self._around.voter_address)

    def _spared(self, ids: frozenset[PeerId]) -> list[PeerId]:
        """Voters out of reach that are not said to be dead: not among ``ids``, and did not leave by themselves."""
        return [voter for voter in self._turnout().missing if voter not in ids and not self._log.is_gone(voter)]

    def _title(self, peer: PeerId) -> str:
        return self._around.named(peer).short_title

    def _titles(self, peers: Iterable[PeerId]) -> str:
        return ", ".join(self._title(peer) for peer in self._people(peers))

    def _people(self, ids: Iterable[PeerId]) -> list[PeerId]:
        """Without the seeds that one of them stands for: who removes that peer removes its seed."""
        found = set(ids)
        return sorted(found - {seed for peer in found for seed in self._around.ids_of(peer)[1:]})

    def _force_line(self, ids: Iterable[PeerId]) -> str:
        return "weave rmpeer --force " + " ".join(peer_text(peer) for peer in self._people(ids))

    def _done_text(self, waiter: Waiter) -> str:
        lines = []
        for peer in self._people(waiter.ids):
            heir = self._log.heir(peer)
            who = "this peer" if heir == self._me else self._title(heir)
            seen = waiter.last_seen.get(peer)
            how = "was removed before" if seen is None else f"is removed, {seen}" if seen else "is removed"
            if peer not in self._log.removed:
                how = "has left by itself"
            lines.append(f"{self._title(peer)} {how}; what it owned is {who}'s")
        if waiter.force and waiter.last_seen:
            lines.append("by force: addresses may be used twice if one of them was alive; see `weave status ipam`")
        return "\n".join(lines)

    def _pending_text(self, now: float, proposal: Proposal) -> str:
        """What a removal waits for and what one may do."""
        missing, lacking = self._turnout()
        names = ", ".join(self._seen_title(now, peer) for peer in self._people(proposal.ids))
        if not lacking:
            waits_for = "being decided" if proposal.force else "asking the voters whether they see it"
            return f"removal of {names}: {waits_for}"
        text = f"removal of {names} is pending: it needs {lacking} more of the voters {self._titles(missing)}"
        if not self._spared(proposal.ids):
            text += f"; if they are dead: {self._force_line(proposal.ids)}"
        return text

    def _seen_title(self, now: float, peer: PeerId) -> str:
        seen = self._around.last_seen(now, peer)
        return f"{self._title(peer)} ({seen})" if seen else self._title(peer)

    def reports(self, now: float) -> tuple[str, ...]:
        """A line per removal that is not finished."""
        lines = [self._pending_text(now, proposal) for proposal in self._proposals.values()]
        for waiter in self._waiters.values():
            if waiter.removed_at is not None:
                held = self._titles(waiter.waiting_for) or self._titles({self._log.heir(peer) for peer in waiter.ids})
                lines.append(f"{self._titles(waiter.ids)} is removed; its addresses are held until {held} confirms")
        return tuple(lines)


def _key(ids: frozenset[PeerId]) -> bytes:
    return msgspec.msgpack.encode(sorted(ids))
