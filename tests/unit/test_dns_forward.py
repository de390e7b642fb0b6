"""Upstreams that answer, lie, stay silent or lead back to us: the forwarder over a fake transport, in made-up time."""

from __future__ import annotations

import random
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

import dns_oracle as oracle
from weavenet.dns import forward, wire
from weavenet.dns.forward import Forwarder, Upstream

ONE, TWO = Upstream("192.0.2.1", 53), Upstream("192.0.2.2", 53)
CLIENT = b"\x0a\x20\0\1"


class FakeTransport:
    def __init__(self) -> None:
        self.open_now: dict[int, tuple[Upstream, bytes, bool]] = {}
        self.sent: list[tuple[int, Upstream, bytes, bool]] = []

    def open(self, exchange: int, upstream: Upstream, message: bytes, *, tcp: bool) -> None:
        self.open_now[exchange] = (upstream, message, tcp)
        self.sent.append((exchange, upstream, message, tcp))

    def close(self, exchange: int) -> None:
        del self.open_now[exchange]


class Stage:
    def __init__(self, *upstreams: Upstream) -> None:
        self.transport = FakeTransport()
        self.forwarder = Forwarder(self.transport, random.Random(1))
        self.now = 100.0
        self.forwarder.set_upstreams(self.now, upstreams)
        self.probes = [message for _, _, message, _ in self.transport.sent]
        for exchange in list(self.transport.open_now):
            self.forwarder.failed(self.now, exchange)
        self.transport.sent.clear()

    def ask(
        self,
        name: str = "example.com.",
        *,
        edns: int | None = None,
        tcp: bool = False,
        client: bytes = CLIENT,
        query: dns.message.QueryMessage | None = None,
    ) -> Question:
        query = query or oracle.ask(name, edns=edns)
        question = Question(query)
        parsed = wire.parse_query(query.to_wire())
        limit = wire.MESSAGE_BYTES_MAX if tcp else parsed.limit_bytes
        known = self.forwarder.known(self.now, parsed, limit)
        if known is not None:
            question.answers.append(known)
        else:
            self.forwarder.ask(self.now, parsed, limit, client, question.answers.append)
        return question

    def asked(self, upstream: Upstream | None = None) -> list[tuple[int, dns.message.Message, bool]]:
        """What is open towards ``upstream``, the oldest first."""
        return [
            (exchange, oracle.read(message), tcp)
            for exchange, (to, message, tcp) in sorted(self.transport.open_now.items())
            if upstream is None or to == upstream
        ]

    def answer(self, upstream: Upstream, change: Callable[[dns.message.Message], None] = lambda _: None) -> None:
        exchange, query, _ = self.asked(upstream)[-1]
        answer = good_answer(query)
        change(answer)
        self.receive(exchange, answer)

    def receive(self, exchange: int, answer: dns.message.Message) -> None:
        self.forwarder.received(self.now, exchange, answer.to_wire(max_size=65_535))

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (deadline := self.forwarder.deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.forwarder.tick(self.now)
        self.now = until

    def is_quiet(self) -> bool:
        return not (self.forwarder.flights or self.forwarder.exchanges or self.transport.open_now)


class Question:
    def __init__(self, query: dns.message.QueryMessage) -> None:
        self.query = query
        self.answers: list[bytes] = []

    @property
    def answer(self) -> dns.message.Message:
        """Exactly one has come."""
        (data,) = self.answers
        return oracle.check(self.query, data)

    @property
    def rcode(self) -> str:
        return oracle.rcode(self.answer)

    @property
    def addresses(self) -> list[str]:
        return oracle.values(self.answer, "A")


def good_answer(query: dns.message.Message, ttl_s: int = 60, address: str = "203.0.113.9") -> dns.message.Message:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.answer.append(dns.rrset.from_text(query.question[0].name, ttl_s, "IN", "A", address))
    return answer


def negative_answer(query: dns.message.Message, rcode: int, ttl_s: int) -> dns.message.Message:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.set_rcode(rcode)
    soa = f"a. b. 1 2 3 4 {ttl_s}"
    answer.authority.append(dns.rrset.from_text("com.", 900, "IN", "SOA", soa))
    return answer


def test_the_first_answer_wins_and_ends_it() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask("eXample.com.")
    assert len(stage.asked(ONE)) == len(stage.asked(TWO)) == 1
    numbers = {query.id for _, query, _ in stage.asked()}
    assert numbers != {question.query.id}
    stage.answer(TWO)
    assert question.addresses == ["203.0.113.9"]
    assert stage.is_quiet()


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
def test_one_that_fails_does_not_spoil_it(rcode: str) -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask()
    stage.answer(ONE, lambda answer: answer.set_rcode(dns.rcode.from_text(rcode)))
    assert not question.answers
    stage.answer(TWO)
    assert question.addresses == ["203.0.113.9"]


def test_when_all_fail_servfail_comes_at_once() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask()
    stage.answer(ONE, lambda answer: answer.set_rcode(dns.rcode.SERVFAIL))
    stage.forwarder.failed(stage.now, stage.asked(TWO)[0][0])
    assert question.rcode == "SERVFAIL"
    assert stage.is_quiet()


def test_silence_is_met_with_repetitions_under_new_ids_then_servfail() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask()
    stage.wait(forward.ANSWER_S - 0.2)
    assert not question.answers
    assert len(stage.transport.sent) == 2 * forward.ATTEMPTS_MAX
    assert len({oracle.read(message).id for _, _, message, _ in stage.transport.sent}) == 2 * forward.ATTEMPTS_MAX
    stage.wait(0.4)
    assert question.rcode == "SERVFAIL"
    assert stage.is_quiet()
    assert stage.forwarder.deadline() is None


def test_a_late_answer_to_the_first_attempt_counts() -> None:
    stage = Stage(ONE)
    question = stage.ask()
    stage.wait(2.5)
    exchange, query, _ = stage.asked(ONE)[0]
    stage.receive(exchange, good_answer(query))
    assert question.addresses == ["203.0.113.9"]


def lie_number(answer: dns.message.Message) -> None:
    answer.id ^= 1


def lie_question(answer: dns.message.Message) -> None:
    other = dns.message.make_query("evil.example.", "A")
    answer.question = other.question


def lie_type(answer: dns.message.Message) -> None:
    answer.question = dns.message.make_query(answer.question[0].name, "AAAA").question


def lie_query(answer: dns.message.Message) -> None:
    answer.flags &= ~dns.flags.QR


@pytest.mark.parametrize("lie", [lie_number, lie_question, lie_type, lie_query])
def test_false_answers_are_not_believed_and_do_not_stop_the_true_one(
    lie: Callable[[dns.message.Message], None],
) -> None:
    stage = Stage(ONE)
    question = stage.ask()
    for _ in range(forward.FALSE_ANSWERS_MAX - 1):
        stage.answer(ONE, lie)
    assert not question.answers
    stage.answer(ONE)
    assert question.addresses == ["203.0.113.9"]
    assert stage.forwarder.counters.false_answers == forward.FALSE_ANSWERS_MAX - 1


def test_somebody_who_guesses_ids_is_cut_off() -> None:
    stage = Stage(ONE)
    question = stage.ask()
    for _ in range(forward.FALSE_ANSWERS_MAX):
        stage.answer(ONE, lie_number)
    assert question.rcode == "SERVFAIL"
    assert stage.is_quiet()


def test_rubbish_in_records_is_not_passed_on() -> None:
    stage = Stage(ONE)
    question = stage.ask()
    exchange, query, _ = stage.asked()[0]
    whole = good_answer(query).to_wire()
    for cut in range(len(whole)):
        if cut % 5 == 0:
            stage.forwarder._exchanges[exchange].false_answers = 0
        stage.forwarder.received(stage.now, exchange, whole[:cut])
    assert not question.answers
    stage.forwarder.received(stage.now, exchange, whole)
    assert question.addresses == ["203.0.113.9"]


def truncate(answer: dns.message.Message) -> None:
    answer.flags |= dns.flags.TC
    answer.answer.clear()


def test_a_truncated_answer_is_fetched_again_over_tcp() -> None:
    stage = Stage(ONE)
    question = stage.ask(tcp=True)
    stage.answer(ONE, truncate)
    ((exchange, query, tcp),) = stage.asked(ONE)
    assert tcp
    answer = good_answer(query)
    for number in range(200):
        answer.answer[0].add(dns.rrset.from_text("x.", 60, "IN", "A", f"203.0.113.{number}")[0])
    stage.receive(exchange, answer)
    assert len(question.addresses) == 200
    again = stage.ask()
    assert again.answer.flags & dns.flags.TC, "over UDP it is too long: the client asks over TCP"


def test_truncated_and_no_tcp_leaves_it_to_the_client() -> None:
    stage = Stage(ONE)
    question = stage.ask()
    stage.answer(ONE, truncate)
    stage.forwarder.failed(stage.now, stage.asked(ONE)[0][0])
    assert question.answer.flags & dns.flags.TC
    assert stage.is_quiet()


def test_who_wants_to_know_whether_an_answer_is_authentic_is_told_what_the_upstream_says() -> None:
    """``options trust-ad`` of resolv.conf(5), and dig."""

    def authentic(answer: dns.message.Message) -> None:
        answer.flags |= dns.flags.AD

    stage = Stage(ONE)
    query = oracle.ask("example.com.")
    query.flags |= dns.flags.AD
    stage.ask(query=query)
    stage.ask()
    assert [bool(asked.flags & dns.flags.AD) for _, asked, _ in stage.asked()] == [True, False]
    stage.answer(ONE)
    stage.answer(ONE, authentic)
    assert not stage.ask().answer.flags & dns.flags.AD
    (told,) = stage.ask(query=query).answers
    assert oracle.read(told).flags & dns.flags.AD


def test_one_question_of_many_is_asked_once() -> None:
    stage = Stage(ONE)
    questions = [stage.ask("example.com."), stage.ask("EXAMPLE.com."), stage.ask("example.COM.")]
    assert len(stage.transport.sent) == 1
    stage.answer(ONE)
    for question in questions:
        assert question.addresses == ["203.0.113.9"]


def test_the_cache_answers_with_what_is_left_of_the_ttl() -> None:
    stage = Stage(ONE)
    stage.ask()
    stage.answer(ONE)
    stage.wait(20.0)
    question = stage.ask("EXAMPLE.com.")
    assert question.answer.answer[0].ttl == 40
    assert len(stage.transport.sent) == 1
    stage.wait(41.0)
    assert not stage.ask().answers
    assert len(stage.transport.sent) == 2


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_that_there_is_none_is_kept_too(rcode: int) -> None:
    stage = Stage(ONE)
    stage.ask()
    exchange, query, _ = stage.asked()[0]
    stage.receive(exchange, negative_answer(query, rcode, 30))
    stage.wait(29.0)
    assert stage.ask().rcode == dns.rcode.to_text(dns.rcode.Rcode(rcode))
    stage.wait(2.0)
    assert not stage.ask().answers


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
@pytest.mark.parametrize(("alias_s", "none_s"), [(5, 300), (300, 5)])
def test_an_alias_of_what_is_not_there_is_kept_for_the_shorter_of_both(rcode: int, alias_s: int, none_s: int) -> None:
    """Somebody turns it to a name that exists."""
    stage = Stage(ONE)
    stage.ask()
    exchange, query, _ = stage.asked()[0]
    answer = negative_answer(query, rcode, none_s)
    answer.authority[0].ttl = 3600
    answer.answer.append(dns.rrset.from_text(query.question[0].name, alias_s, "IN", "CNAME", "old.example."))
    stage.receive(exchange, answer)
    stage.wait(4.0)
    assert stage.ask().answers
    stage.wait(2.0)
    assert not stage.ask().answers


def test_an_old_answer_serves_while_upstreams_are_silent() -> None:
    stage = Stage(ONE)
    stage.ask()
    stage.answer(ONE)
    stage.wait(3600.0)
    question = stage.ask()
    stage.wait(forward.STALE_AFTER_S + 0.2)
    assert question.addresses == ["203.0.113.9"]
    assert question.answer.answer[0].ttl == 30
    stage.answer(ONE)
    assert stage.is_quiet()
    assert stage.ask().answer.answer[0].ttl == 60


def test_an_old_answer_serves_at_once_when_upstreams_refuse() -> None:
    stage = Stage(ONE)
    stage.ask()
    stage.answer(ONE)
    stage.wait(3600.0)
    question = stage.ask()
    stage.forwarder.failed(stage.now, stage.asked()[0][0])
    assert question.addresses == ["203.0.113.9"]


def test_flights_are_bounded_and_one_client_leaves_room_for_others() -> None:
    stage = Stage(ONE)
    mine = [stage.ask(f"n{number}.example.") for number in range(forward.FLIGHTS_PER_CLIENT_MAX + 5)]
    assert [question.rcode for question in mine if question.answers] == ["SERVFAIL"] * 5
    others = [stage.ask(f"m{number}.example.", client=bytes([number & 1])) for number in range(forward.FLIGHTS_MAX)]
    assert stage.forwarder.flights == forward.FLIGHTS_MAX
    assert sum(bool(question.answers) for question in others) == forward.FLIGHTS_PER_CLIENT_MAX
    stage.wait(6.0)
    assert all(len(question.answers) == 1 for question in (*mine, *others))
    assert stage.is_quiet()
    assert not stage.forwarder._per_client


def no_such_name(answer: dns.message.Message) -> None:
    answer.answer.clear()
    answer.set_rcode(dns.rcode.NXDOMAIN)


def test_there_is_no_such_name_waits_for_who_comes_first_in_resolv_conf() -> None:
    """A company's own server, and a public one for when that is down: the latter knows nothing of the company."""
    stage = Stage(ONE, TWO)
    question = stage.ask("git.corp.example.")
    stage.answer(TWO, no_such_name)
    assert not question.answers
    stage.wait(0.5)
    stage.answer(ONE)
    assert question.addresses == ["203.0.113.9"]
    assert stage.is_quiet()
    assert stage.ask("git.corp.example.").addresses == ["203.0.113.9"]


def test_who_comes_first_in_resolv_conf_need_not_wait_to_say_that_there_is_none() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask()
    stage.answer(ONE, no_such_name)
    assert question.rcode == "NXDOMAIN"
    assert stage.is_quiet()


def test_of_two_who_know_no_such_thing_the_first_in_resolv_conf_counts() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask("ipv4-only.corp.example.")
    stage.answer(TWO, no_such_name)
    stage.answer(ONE, lambda answer: answer.answer.clear())
    assert question.rcode == "NOERROR"
    assert not question.answer.answer


def test_nobody_waits_for_an_upstream_that_fails() -> None:
    stage = Stage(ONE, TWO)
    question = stage.ask()
    stage.answer(TWO, no_such_name)
    stage.forwarder.failed(stage.now, stage.asked(ONE)[0][0])
    assert question.rcode == "NXDOMAIN"
    assert stage.is_quiet()


def test_an_upstream_that_is_silent_is_waited_for_once_in_a_while() -> None:
    stage = Stage(ONE, TWO)

    def is_held(name: str) -> bool:
        question = stage.ask(name)
        stage.answer(TWO, no_such_name)
        was_held = not question.answers
        stage.wait(forward.HOLD_S + 0.2)
        assert question.rcode == "NXDOMAIN"
        assert stage.is_quiet()
        return was_held

    assert is_held("a.example.")
    assert not is_held("b.example.")
    stage.wait(forward.SILENT_S)
    assert is_held("c.example.")
    assert not is_held("d.example.")
    stage.ask("e.example.")
    stage.answer(ONE)
    assert is_held("f.example."), "it answers again"


def test_many_who_ask_the_same_at_once_get_its_answer() -> None:
    """A host full of containers that start, or one application with hundreds of threads."""
    stage = Stage(ONE)
    questions = [stage.ask(client=number.to_bytes(4, "big")) for number in range(400)]
    questions += [stage.ask() for _ in range(400)]
    assert len(stage.asked()) == 1
    stage.answer(ONE)
    assert all(question.addresses == ["203.0.113.9"] for question in questions)
    assert stage.is_quiet()
    assert not stage.forwarder._waiting


def test_those_who_wait_are_bounded_in_all_and_per_client() -> None:
    stage = Stage(ONE)
    mine = [stage.ask(f"n{number % 7}.example.") for number in range(forward.WAITERS_PER_CLIENT_MAX + 3)]
    assert [question.rcode for question in mine if question.answers] == ["SERVFAIL"] * 3
    rest = forward.WAITERS_MAX - forward.WAITERS_PER_CLIENT_MAX
    others = [stage.ask("n1.example.", client=number.to_bytes(4, "big")) for number in range(rest + 2)]
    assert [question.rcode for question in others if question.answers] == ["SERVFAIL"] * 2
    stage.wait(6.0)
    assert all(len(question.answers) == 1 for question in (*mine, *others))
    assert not stage.forwarder._waiting
    assert stage.forwarder._waiting_in_all == 0


def test_without_upstreams_the_answer_is_servfail() -> None:
    assert Stage().ask().rcode == "SERVFAIL"


def test_an_upstream_that_leads_back_to_us_is_left_out() -> None:
    stage = Stage(ONE, TWO)
    came_back = wire.parse_query(stage.probes[0])
    assert stage.forwarder.is_probe(stage.now, came_back.folded)
    assert stage.forwarder.upstreams == (TWO,)
    assert stage.forwarder.looping == (ONE,)
    assert not stage.forwarder.is_probe(stage.now, wire.encode_name("0123456789abcdef.test"))
    stage.ask()
    assert not stage.asked(ONE)


def test_an_upstream_that_led_back_to_us_is_used_again_when_it_does_no_more() -> None:
    """Its own settings were mended, or another resolver runs at its address: resolv.conf is the same as before."""
    stage = Stage(ONE)
    assert stage.forwarder.is_probe(stage.now, wire.parse_query(stage.probes[0]).folded)
    stage.wait(forward.PROBE_AGAIN_S - 1.0)
    assert not stage.transport.sent
    stage.wait(1.2)
    for _ in range(3):
        (_, again, message, _) = stage.transport.sent.pop()
        assert not stage.transport.sent
        assert again == ONE
        assert stage.forwarder.is_probe(stage.now, wire.parse_query(message).folded), "it still leads back"
        stage.wait(forward.PROBE_AGAIN_S)
        assert stage.forwarder.upstreams == ()
    stage.answer(ONE)
    stage.wait(forward.PROBE_S)
    assert stage.forwarder.upstreams == (ONE,)
    assert stage.forwarder.looping == ()
    assert stage.forwarder.deadline() is None, "nobody is asked again"
    stage.ask()
    stage.answer(ONE)
    assert stage.is_quiet()
    assert len(stage.forwarder._probes) == 1


def test_a_question_that_comes_back_joins_its_own_flight() -> None:
    stage = Stage(ONE)
    question = stage.ask()
    for _ in range(5):
        stage.ask(client=b"loop")
    assert len(stage.transport.sent) == 1
    stage.wait(5.0)
    assert question.rcode == "SERVFAIL"


def test_other_upstreams_empty_the_cache_and_are_probed() -> None:
    stage = Stage(ONE)
    stage.ask()
    stage.answer(ONE)
    stage.forwarder.set_upstreams(stage.now, (TWO,))
    assert len(stage.asked(TWO)) == 1
    stage.wait(forward.PROBE_S + 0.2)
    assert stage.is_quiet()
    assert not stage.ask().answers
    assert len(stage.asked(TWO)) == 1


def test_the_cache_is_bounded() -> None:
    from weavenet.dns import cache as cache_module

    stage = Stage(ONE)
    for number in range(cache_module.ENTRIES_MAX + 10):
        stage.ask(f"n{number}.example.")
        stage.answer(ONE)
    assert len(stage.forwarder.cache) == cache_module.ENTRIES_MAX
    assert not stage.ask("n0.example.").answers
    assert stage.ask(f"n{cache_module.ENTRIES_MAX + 9}.example.").addresses
