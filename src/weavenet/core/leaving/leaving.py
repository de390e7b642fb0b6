"""Leaving for good (``weave reset``): what a peer does between the command and its end (spec 04, "reset").

Step 1 (SEEKING) may be given up: no allocations any more, somebody to take the addresses, somebody else to remember
what we know, and, for an elector, a decree without us. Step 2 may not: containers leave the network (VACATING); then
(SURRENDERING) all space is given away, every heir and one witness confirm our whole ring and log, take the custody,
and we say that we have left (GONE).

Invariants:
- A leaver never inherits and is never given space that it keeps: what strays to it is given on, or taken by its heir.
- Once custody was offered, the leaver gives nothing on, and whoever was named first is named first for good: it may
  count the leaver as gone from then on, and take what strays to it (history *two-stand-ins*).
- It is left out of everybody's waiting only after its custodians durably hold all it knew, while it has no containers;
  after the last confirmation it forwards nothing.
- Step 2 is durable before the first container leaves the network, and goes on after a restart; step 1 does not.
- Being refused as removed or departed ends step 2 like its last confirmation.

What this does not do: hold and merge (``Estate``), remember those who left (``Departed``), touch disk or host.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import msgspec

from weavenet.core.commands import Done, Reset
from weavenet.core.effects import Change, Depart, Outbox, Reply, Vacate
from weavenet.core.election import turnout
from weavenet.core.errors import Code, Failure, InvariantBroken
from weavenet.core.leaving.departed import Departed
from weavenet.core.leaving.phases import Duties, Phase, State, Surroundings, may_follow
from weavenet.core.leaving.prospects import Prospects
from weavenet.core.leaving.transfer import Transfer
from weavenet.core.limits import (
    CUSTODIANS_MAX,
    CUSTODIANS_MIN,
    HEIRS_MAX,
    LEAVE_RETRY_S,
    LEFT_FLUSH_S,
    LEFT_PRESUMED_S,
    PENDING_REQUESTS_MAX,
    VACATE_RETRY_S,
)
from weavenet.core.messages.leaving import (
    CustodyAccepted,
    CustodyOffer,
    LeaveAnswer,
    LeaveQuery,
    LeavingBody,
    LeftNotice,
    LeftRecord,
)
from weavenet.core.messages.unicast import StampAnswer
from weavenet.core.removal.naming import Named
from weavenet.core.ring import Ipam, Log
from weavenet.core.types import Electors, PeerId, peer_text

TABLE = "leaving"
_STATE = b"state"


class Leaving:
    """``row`` is what an earlier start persisted under :meth:`disk_key`."""

    def __init__(
        self,
        *,
        me: Named,
        log: Log,
        ipam: Ipam,
        departed: Departed,
        around: Surroundings,
        duties: Duties,
        is_ephemeral: bool,
        row: bytes | None,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._log = log
        self._ipam = ipam
        self._departed = departed
        self._around = around
        self._duties = duties
        self._is_ephemeral = is_ephemeral
        self._outbox = outbox
        self._rng = rng
        self._requests: list[int] = []
        self._session = rng.getrandbits(62)
        self._prospects = Prospects(around)
        self._transfers: dict[PeerId, Transfer] = {}
        self._offered: LeftRecord | None = None
        self._offer_session = 0
        self._earlier: tuple[LeftRecord, ...] = ()
        self._ask_at = 0.0
        self._offer_at = 0.0
        self._vacate_at = 0.0
        self._depart_at: float | None = None
        self._reason = ""
        self._takers: dict[PeerId, None] | None = None
        """Who was given space, if all of this is known: not after a restart in between. For words only."""
        self.needs: tuple[str, ...] = ()
        """What it waits for, in words."""
        state = State(Phase.STAYING, ()) if row is None else msgspec.msgpack.decode(row, type=State)
        self._heirs = state.heirs
        self._phase = state.phase
        self._stand_in = PeerId(state.stand_in) if state.stand_in else None
        self._row = row

    @staticmethod
    def disk_key() -> tuple[str, bytes]:
        return TABLE, _STATE

    @classmethod
    def phase_on(cls, disk: Mapping[tuple[str, bytes], bytes]) -> Phase:
        """What an earlier start persisted."""
        row = disk.get(cls.disk_key())
        return Phase.STAYING if row is None else msgspec.msgpack.decode(row, type=State).phase

    # --- views ---

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_leaving(self) -> bool:
        return self._phase is not Phase.STAYING

    @property
    def is_surrendering(self) -> bool:
        """There is no way back."""
        return self._phase in {Phase.VACATING, Phase.SURRENDERING, Phase.GONE}

    @property
    def is_gone(self) -> bool:
        return self._phase is Phase.GONE

    @property
    def heirs(self) -> tuple[PeerId, ...]:
        """Whoever was given its space."""
        return self._heirs

    def waits_for(self, now: float) -> frozenset[PeerId]:
        """Whose confirmation it waits for in step 2; while nobody can give it, whom it would have to reach."""
        return frozenset(self._transfers) or self._prospects.missing(now)

    @property
    def has_offered(self) -> bool:
        """Somebody may stand for us already: what is still ours by the ring is not ours to give."""
        return self._stand_in is not None

    @property
    def end_at(self) -> float | None:
        """When the driver is to be told that the life is over; None: it is told, or it is not over."""
        return self._depart_at

    def deadline(self) -> float | None:
        match self._phase:
            case Phase.STAYING:
                return None
            case Phase.GONE:
                return self._depart_at
            case Phase.VACATING:
                return self._vacate_at
            case _:
                return self._ask_at

    # --- life ---

    def start(self, now: float) -> None:
        """What was only sought is given up with the daemon that was asked; the rest goes on."""
        match self._phase:
            case Phase.SEEKING:
                self._phase = Phase.STAYING
                self._persist()
            case Phase.VACATING | Phase.SURRENDERING:
                self._phase = Phase.VACATING
                self._ipam.set_leaving(now, True)
                self._vacate_at = now
            case Phase.GONE:
                self._depart_at = now
            case Phase.STAYING:
                return

    def last_effects(self, now: float) -> bool:
        """Append what is left to do once we are gone; True when the life is over."""
        if self._depart_at is None or now < self._depart_at:
            return False
        self._outbox.append(Depart(self._reason or "this peer left the cluster (`weave reset`)"))
        self._depart_at = None
        return True

    def command(self, now: float, request: int, command: Reset) -> None:
        if len(self._requests) >= PENDING_REQUESTS_MAX:
            text = f"at most {PENDING_REQUESTS_MAX} waiting requests"
            self._outbox.append(Reply(request, Failure(Code.BUSY, text, "", "wait for those to finish")))
            return
        self._requests.append(request)
        if command.force:
            self._force(now)
        elif self._phase is Phase.STAYING:
            self._step(Phase.SEEKING)
            self._ipam.set_leaving(now, True)
            self._prospects.clear()
            self._ask_at = now

    def cancel(self, now: float, request: int) -> None:
        """Its client gave up: so do we, while we can and nobody else asks for it."""
        if request not in self._requests:
            return
        self._requests.remove(request)
        if self._phase is Phase.SEEKING and not self._requests:
            self._step(Phase.STAYING)
            self.needs = ()
            self._ipam.set_leaving(now, False)

    def vacated(self, now: float, request: int) -> None:
        """No container of ours is on the network any more."""
        self._outbox.append(Reply(request, Done()))
        if self._phase is Phase.VACATING:
            self._ipam.vacate(now)
            self._step(Phase.SURRENDERING)
            self._ask_at = now

    def cut_off(self, now: float, reason: str) -> None:
        """Others count us as removed or departed already, so nobody needs anything more from us."""
        if self._phase is not Phase.GONE:
            self._end(now, f"done: {reason}")

    # --- time ---

    def advance(self, now: float) -> None:
        match self._phase:
            case Phase.STAYING | Phase.GONE:
                return
            case Phase.VACATING:
                self.needs = ("containers of this host are being taken off the network",)
                if now >= self._vacate_at:
                    self._vacate_at = now + VACATE_RETRY_S
                    self._outbox.append(Vacate())
                return
            case _:
                if now >= self._ask_at:
                    self._ask(now)
                if self._phase is Phase.SEEKING:
                    self._seek(now)
                else:
                    self._surrender(now)

    def _ask(self, now: float) -> None:
        self._ask_at = now + LEAVE_RETRY_S
        for peer in sorted(self._around.acquaintances & self._around.reachable()):
            self._outbox.unicast(peer, LeaveQuery(self._session))

    # --- step 1 ---

    def _seek(self, now: float) -> None:
        others = self._around.acquaintances
        if self._log.genesis is None:
            if others and self._duties.has_promised():
                self.needs = ("the first division of addresses, in which this peer voted, is not decided yet",)
                return
            self._say_left(now, self._left(tuple(sorted(self._around.neighbours() & others))[:HEIRS_MAX]))
            return
        if not others:
            self._leave_last(now, "done: no other peer was known, so there was nothing to hand over")
            return
        self.needs = tuple(self._lacks(now))
        if not self.needs:
            self._commit(now)

    def _lacks(self, now: float) -> Iterable[str]:
        prospects = self._prospects
        missing = self._titles(prospects.missing(now)) or "peers that stay and have addresses to give"
        if self._duties.holds:
            yield "addresses inherited from removed peers are still on hold; `weave status ipam` says who is missing"
        if not prospects.heirs(now):
            yield f"nobody who could take over the addresses is reachable; missing: {missing}"
        elif prospects.lacks_witness(now):
            yield f"a second peer has to remember what was handed over; missing: {missing}"
        elif self._is_elector:
            text = "the voters have not decided yet to go on without this peer"
            absent, lacking = turnout(self._log.voters, self._around.voter_address)
            if lacking:
                text += f"; {lacking} more of {self._titles(absent)} needed for a quorum"
            yield text

    @property
    def _is_elector(self) -> bool:
        return not self._around.own_ids.isdisjoint(self._log.electors)

    def wanted(self, now: float) -> Electors | None:
        """The decree without us, once there are peers to leave everything to. Those left must be able to decide
        something: of few electors some may be out of reach, and of two only one votes."""
        if self._phase not in {Phase.SEEKING, Phase.SURRENDERING} or not self._is_elector:
            return None
        heirs = self._prospects.heirs(now)
        if not heirs or self._prospects.lacks_witness(now):
            return None
        remaining = [peer for peer in self._log.electors if peer not in self._around.own_ids]
        while remaining:
            decree = Electors(tuple(sorted(remaining)))
            voters = self._log.chain.with_decree(self._log.chain.next_position, decree).voters
            absent, lacking = turnout(voters, self._around.voter_address)
            if not lacking:
                return decree
            remaining.remove(absent[0])
        return Electors((next(iter(heirs)),))

    # --- step 2 ---

    def _commit(self, now: float) -> None:
        self._duties.give_up_removals()
        self._outbox.note("info", "leaving", "from here on there is no way back: containers leave the network")
        self._takers = {}
        self._step(Phase.VACATING)
        self._vacate_at = now

    def _surrender(self, now: float) -> None:
        if not self._around.acquaintances:
            self._leave_last(now, "done: no other peer was known any more, so there was nothing to hand over")
            return
        needs: list[str] = list(self._lacks(now)) if self._is_elector else []
        if self._duties.holds and self._ipam.holds:
            needs.append("addresses inherited from removed peers are still on hold")
        elif self._has_to_give:
            self._give(now)
        if self._has_to_give:
            needs.append("nobody who could take over the addresses is reachable")
        else:
            needs += self._hand_over(now)
        self.needs = tuple(needs)
        if not needs and self._offered is not None:
            self._say_left(now, self._offered)

    @property
    def _has_to_give(self) -> bool:
        return not self._heirs or (not self.has_offered and self._ipam.owns_space(self._me.peer))

    def _give(self, now: float) -> None:
        heirs = {peer: (answer.free, *answer.further) for peer, answer in self._prospects.heirs(now).items()}
        chosen = dict(list(heirs.items())[:HEIRS_MAX])
        if not chosen:
            return
        taken = self._ipam.surrender(chosen)
        if self._takers is not None:
            self._takers |= dict.fromkeys(peer for peer in chosen if peer in taken)
        shares = self._ipam.ring.shares
        given = [peer for peer in chosen if shares.get(peer)] or list(chosen)[:1]
        self._heirs = tuple(dict.fromkeys((*self._heirs, *given)))
        self._persist()

    def _hand_over(self, now: float) -> list[str]:
        """Get everything confirmed by the heirs and a witness, then their custody; what is missing.

        An heir that leaves too is not waited for: what it has not heard of is its own heir's. One that has been out of
        reach for long may be dead, and others can remember what is its."""
        needs = []
        staying = self._prospects.staying(now)
        custodians = []
        for heir in dict.fromkeys(self._log.heir(heir) for heir in self._heirs):
            absent_s = self._around.unreachable_for(now, heir)
            if heir in staying:
                custodians.append(heir)
            elif heir in self._prospects.missing(now) and (absent_s is None or absent_s < LEFT_PRESUMED_S):
                needs.append(f"waiting for {self._titles((heir,))}, who was given addresses")
        kept = [peer for peer in self._transfers if peer in staying]
        wanted = min(CUSTODIANS_MIN, len(self._prospects.expected(now)))
        for witness in (*kept, *staying):
            if len(custodians) < max(1, wanted) and witness not in custodians:
                custodians.append(witness)
        if len(custodians) < max(1, wanted):
            missing = self._titles(self._prospects.missing(now))
            needs.append(
                f"{wanted} peers have to remember what was handed over; missing: {missing or 'peers that stay'}"
            )
        self._transfers = {peer: self._transfers.get(peer) or Transfer(peer, self._rng) for peer in custodians}
        ring, length = self._ipam.ring, len(self._log)
        unconfirmed = [peer for peer, each in self._transfers.items() if not each.is_complete(ring, length)]
        for peer in unconfirmed:
            self._transfers[peer].send(now, ring, length, self._outbox)
        if unconfirmed:
            needs.append(f"not confirmed yet what was handed over: {self._titles(unconfirmed)}")
        if not needs:
            needs += self._offer(now, custodians)
        return needs

    def _named_first(self, custodians: list[PeerId]) -> PeerId:
        """Durable before it is offered. Only one that left in our favour is replaced: it told us all it took."""
        first = self._stand_in
        if first is None or (first in self._log.departed and self._log.heir(first) == self._me.peer):
            first = self._stand_in = custodians[0]
            self._persist()
        return first

    def _offer(self, now: float, custodians: list[PeerId]) -> list[str]:
        first = self._named_first(custodians)
        named = (first, *(peer for peer in custodians if peer != first))[:CUSTODIANS_MAX]
        record, earlier = self._left(named), self._departed.earlier
        if (record, earlier) != (self._offered, self._earlier):
            self._earlier = earlier
            self._offered, self._offer_session = record, self._rng.getrandbits(62)
            self._offer_at = now
            for transfer in self._transfers.values():
                transfer.has_accepted = False
        waiting = [peer for peer, transfer in self._transfers.items() if not transfer.has_accepted]
        if waiting and now >= self._offer_at:
            self._offer_at = now + LEAVE_RETRY_S
            for peer in waiting:
                self._outbox.unicast(peer, CustodyOffer(self._offer_session, record, earlier))
        return [f"not confirmed yet that this peer leaves: {self._titles(waiting)}"] if waiting else []

    # --- the end ---

    def _left(self, custodians: tuple[PeerId, ...]) -> LeftRecord:
        return LeftRecord(self._me.peer, self._me.name, self._me.nickname, custodians)

    def _say_left(self, now: float, record: LeftRecord) -> None:
        for peer in sorted({*record.custodians, *self._around.neighbours()} & self._around.reachable()):
            if peer != self._me.peer:
                self._outbox.unicast(peer, LeftNotice(record))
        takers = self._heirs if self._takers is None else self._takers
        heirs = self._titles(dict.fromkeys(self._log.heir(heir) for heir in takers))
        self._end(now, f"done: what this peer owned is {heirs}'s now" if heirs else "done: nothing was owned here")

    def _leave_last(self, now: float, reason: str) -> None:
        missing = self._duties.last_one_out(now)
        self.needs = (missing,) if missing else ()
        if not missing:
            self._end(now, reason)

    def _force(self, now: float) -> None:
        others = self._around.acquaintances
        if self._phase is Phase.GONE:
            self._answer(Done(self._reason))
            return
        text = "done by force: no other peer was known"
        if others:
            line = f"weave rmpeer {peer_text(self._me.peer)}"
            text = (
                "done by force, nothing was handed over: the others wait for this peer and what it owns is lost to "
                f"them until you run on one of them: {line}"
            )
        self._end(now, text)

    def _end(self, now: float, reason: str) -> None:
        if self._phase is Phase.VACATING or self._phase is Phase.SEEKING or self._phase is Phase.STAYING:
            self._ipam.estate.leaving = True
        self._step(Phase.GONE)
        self.needs = ()
        self._reason = reason
        self._depart_at = now + LEFT_FLUSH_S
        self._outbox.note("info", "leaving", reason)
        self._answer(Done(reason))

    def _answer(self, result: Done) -> None:
        for request in self._requests:
            self._outbox.append(Reply(request, result))
        self._requests.clear()

    def _step(self, phase: Phase) -> None:
        if not may_follow(self._phase, phase):
            raise InvariantBroken(f"leaving cannot go from {self._phase} to {phase}")
        self._phase = phase
        self._persist()

    def _persist(self) -> None:
        row = None
        if self._phase is not Phase.STAYING:
            row = msgspec.msgpack.encode(State(self._phase, self._heirs, self._stand_in or b""))
        if row != self._row:
            self._row = row
            self._outbox.persist(Change(TABLE, _STATE, row))

    # --- messages ---

    def handle(self, now: float, source: PeerId, body: LeavingBody) -> None:
        match body:
            case LeaveQuery():
                stays = self._log.genesis is not None and (not self.is_leaving or source < self._me.peer)
                elector = not self._around.own_ids.isdisjoint(self._log.electors)
                free, *further = self._ipam.free_addresses or (0,)
                owns = stays and self._ipam.could_own
                leaves = self.is_leaving or self._is_ephemeral
                answer = LeaveAnswer(body.session, stays, owns, leaves, elector, free, tuple(further))
                self._outbox.unicast(source, answer)
            case LeaveAnswer():
                if self.is_leaving and body.session == self._session:
                    self._prospects.heard(now, source, body)
            case CustodyOffer():
                if not self.is_leaving or source < self._me.peer:
                    self._departed.offered(now, source, body)
            case CustodyAccepted():
                transfer = self._transfers.get(source)
                if transfer is not None and body.session == self._offer_session:
                    transfer.has_accepted = True
            case LeftNotice():
                if body.left.peer == source:
                    self._departed.learn(now, body.left)

    def stamped(self, source: PeerId, answer: StampAnswer) -> bool:
        """A custodian confirmed a page; False when the answer is not to us."""
        transfer = self._transfers.get(source)
        if transfer is None or transfer.session != answer.session:
            return False
        transfer.confirmed(answer.page, self._ipam.ring)
        return True

    def _titles(self, peers: Iterable[PeerId]) -> str:
        return ", ".join(sorted(self._around.named(peer).short_title for peer in peers))
