"""The UDP side in this process: what its sockets' owners may do to it."""

from __future__ import annotations

import random
import socket

import dns.edns

import dns_oracle as oracle
from weavenet.dns.forward import Forwarder, Upstream
from weavenet.dns.local import SHUFFLES
from weavenet.dns.loop import READ, Loop
from weavenet.dns.resolver import Resolver
from weavenet.dns.udp import PreparedAnswers, UdpServer
from weavenet.dns.zone import Zone


class FakeTransport:
    exchange = 0

    def open(self, exchange: int, upstream: Upstream, message: bytes, *, tcp: bool) -> None:
        self.exchange = exchange

    def close(self, exchange: int) -> None:
        pass


def test_orders_of_addresses_are_made_only_for_questions_that_are_kept() -> None:
    """Of those with EDNS options, such as cookies, none comes a second time."""
    zone = Zone("weave.local.")
    zone.set("many.weave.local.", [bytes([10, 32, 0, number]) for number in range(50)])
    resolver = Resolver(zone, 1, Forwarder(FakeTransport(), random.Random(1)), random.Random(1))
    query = oracle.ask("many.weave.local.", edns=1232)
    for options, count in (([], SHUFFLES), ([dns.edns.GenericOption(10, b"a cookie")], 1)):
        query.use_edns(0, 0, 1232, options=options)
        found = resolver.handle(query.to_wire(), b"", lambda answer: None, stream=False)
        assert found is not None
        assert len(found.answers) == count


def test_an_answer_that_comes_after_the_socket_was_closed_goes_to_nobody() -> None:
    """The bridge was made anew while an upstream was asked, and the number of the socket is another's."""
    transport, loop = FakeTransport(), Loop()
    forwarder = Forwarder(transport, random.Random(1))
    forwarder.set_upstreams(0.0, (Upstream("192.0.2.1", 53),))
    resolver = Resolver(Zone("weave.local."), 1, forwarder, random.Random(1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, socket.create_server(("127.0.0.1", 0)) as somebody:
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        listening.bind(("127.0.0.1", 0))
        number = listening.fileno()
        server = UdpServer(loop, listening, resolver, PreparedAnswers())
        client.connect(listening.getsockname())
        client.send(oracle.ask("example.com.").to_wire())
        server._ready(READ)
        assert forwarder.flights == 1
        server.close()
        listening.close()
        with socket.create_connection(somebody.getsockname()) as stream:
            assert stream.fileno() == number
            forwarder.failed(1.0, transport.exchange)
            assert forwarder.flights == 0
        accepted, _ = somebody.accept()
        with accepted:
            assert accepted.recv(512) == b""
    loop.close()
