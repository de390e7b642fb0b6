"""``weave lab demo``: a story that a person can follow, in which every claim is checked while it is told.

Exit status 0 when every claim held, 1 with the one that did not, 128 + signal when interrupted. Whatever happens,
nothing of the lab remains.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import lab as labs
from weavenet.lab import observe
from weavenet.lab.host import Container, Host, Result
from weavenet.lab.interruption import then_always
from weavenet.lab.lab import Lab
from weavenet.lab.pings import Pings
from weavenet.lab.topology import of_count
from weavenet.lab.waiting import wait_until

HOSTS = 3
PER_HOST = 2
LINK_DEADLINE_S = 60.0
HEAL_DEADLINE_S = 60.0
NOTICE_DEADLINE_S = 60.0
SETTLE_DEADLINE_S = 10.0
"""For what follows a new link within a moment, on a machine that has time."""
PINGS_MIN = 200  # at 100 a second: the silence of a dead daemon would be seen


class Narrator:
    """Plain text; headings are bold when a person looks on."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._started = time.monotonic()

    def chapter(self, title: str) -> None:
        clock = f"{time.monotonic() - self._started:4.1f} s"
        bold, plain = ("\033[1m", "\033[0m") if self._is_terminal else ("", "")
        print(f"\n{bold}{clock}  {title}{plain}", flush=True)

    def say(self, text: str) -> None:
        for line in text.splitlines():
            print(f"        {line}".rstrip(), flush=True)

    def command(self, place: str, *words: str) -> None:
        print(f"        {place}$ {' '.join(words)}", flush=True)


class Story:
    """The chapters, in order, over one lab."""

    def __init__(self, name: str, narrator: Narrator) -> None:
        self._name = name
        self._tell = narrator
        self._containers: list[tuple[Container, str]] = []
        self.lab: Lab | None = None
        self.summary: list[str] = []

    def tell(self) -> None:
        self._tell.chapter(
            "Three hosts, each with namespaces, disk and machine-id of its own, and a network between them"
        )
        self.lab = lab = Lab.up(self._name, of_count(HOSTS))
        self._tell.say(", ".join(f"{host.name} is {host.address}" for host in lab.hosts))
        self._launch(lab.hosts)
        self._consense(lab.hosts)
        self._attach(lab.hosts)
        self._look(lab.hosts[0])
        self._ping_all()
        self._call_by_name(lab)
        self._divide(lab)
        self._heal(lab)
        self._crash(lab)

    def _launch(self, hosts: Sequence[Host]) -> None:
        self._tell.chapter("weave starts on all of them at the same moment, each told about all; none is special")
        words = ["launch", *(host.name for host in hosts)]
        self._tell.command("h1,h2,h3", "weave", *words)
        began = time.monotonic()
        for host, done in zip(hosts, observe.on_each(hosts, *words), strict=True):
            _succeeded(host, words, done)
            self._tell.say(f"{host.name} is peer {done.stdout.strip()}")
        self._wait_for_links(hosts, LINK_DEADLINE_S)
        self._tell.say(
            f"every host has a link and a data path to every other, {time.monotonic() - began:.1f} s after launch"
        )

    def _consense(self, hosts: Sequence[Host]) -> None:
        self._tell.chapter("The hosts agree who may hand out which addresses")
        self._tell.command("h1,h2,h3", "weave consense")
        for host, done in zip(hosts, observe.on_each(hosts, "consense"), strict=True):
            _succeeded(host, ["consense"], done)
        clusters = {observe.report(host).router.cluster for host in hosts}
        _expect(len(clusters) == 1, "the three hosts are one cluster", f"clusters: {sorted(clusters)}")
        shares = observe.owners(hosts[0])
        _expect(len(shares) == HOSTS, "each host owns a share of the addresses", str(shares))
        for host in hosts:
            _expect(observe.owners(host) == shares, f"{host.name} knows the same shares", str(observe.owners(host)))
        self._tell.say(f"one cluster; {len(shares)} shares of the addresses, and all hosts know the same")

    def _attach(self, hosts: Sequence[Host]) -> None:
        self._tell.chapter("Two containers on each host join the network")
        for host in hosts:
            for number in range(1, PER_HOST + 1):
                self._add(host, f"{host.name}-c{number}")
        self._expect_unique()

    def _add(self, host: Host, name: str) -> str:
        container = host.start_container(name)
        self._tell.command(host.name, "weave attach", container.id)
        addresses = container.attach()
        _expect(len(addresses) == 1, f"attach of {name} prints an address", str(addresses))
        self._tell.say(addresses[0])
        self._containers.append((container, addresses[0]))
        return addresses[0]

    def _expect_unique(self) -> None:
        addresses = [address for _, address in self._containers]
        _expect(len(set(addresses)) == len(addresses), "no address is used twice", " ".join(addresses))

    def _look(self, host: Host) -> None:
        self._tell.chapter("What a host says about it")
        for words in (["status"], ["status", "connections"], ["status", "ipam"]):
            self._tell.command(host.name, "weave", *words)
            done = host.weave(*words)
            _succeeded(host, words, done)
            self._tell.say(done.stdout)

    def _ping_all(self) -> None:
        count = len(self._containers) * (len(self._containers) - 1)
        self._tell.chapter(f"Every container pings every other: {count} ordered pairs")
        assert self.lab is not None
        lab, silent = self.lab, [""]

        def none_silent() -> bool:
            silent[:] = lab.unreachable(self._containers)
            return not silent

        with contextlib.suppress(WeaveError):
            wait_until(none_silent, SETTLE_DEADLINE_S, "every container to answer")
        _expect(not silent, f"all {count} pairs answer", "; ".join(silent))
        self._tell.say(f"{count} of {count} answered")
        self.summary.append(f"{count} of {count} ordered pairs of containers reached each other")

    def _call_by_name(self, lab: Lab) -> None:
        source = next(container for container, _ in self._containers if container.host.name == "h1")
        target, address = next(each for each in self._containers if each[0].host.name == "h3")
        self._tell.chapter("Containers find each other by name, wherever they are; no name outlives its container")
        self._tell.command(source.name, "ping -c 1", target.name)
        wait_until(lambda: source.ping(target.name), NOTICE_DEADLINE_S, f"{target.name} to answer to its name")
        self._tell.say(f"{target.name} is {address}, and answers")
        for host in lab.hosts[1:3]:
            name = f"{host.name}-web"
            container = host.start_container(name)
            self._tell.command(host.name, "weave attach -h web", container.id)
            words = ["attach", "-h", "web", container.id]
            done = host.weave(*words)
            _succeeded(host, words, done)
            self._tell.say(done.stdout.strip())
        wait_until(
            lambda: len(source.resolve("web")) == len(lab.hosts) - 1, NOTICE_DEADLINE_S, "web to have two addresses"
        )
        self._tell.say(f"web is {' and '.join(source.resolve('web'))}, seen from {source.name}")
        lab.host("h2").container("h2-web").remove()
        self._tell.command("h2", "ip netns delete h2-web")
        began = time.monotonic()
        wait_until(lambda: len(source.resolve("web")) == 1, NOTICE_DEADLINE_S, "the dead to lose its name")
        took = time.monotonic() - began
        self._tell.say(f"web is {source.resolve('web')[0]}, {took * 1000:.0f} ms later")
        self.summary.append(f"a dead container's name was gone on another host after {took * 1000:.0f} ms")
        lab.host("h3").container("h3-web").remove()

    def _divide(self, lab: Lab) -> None:
        h1, h2, h3 = lab.hosts
        self._tell.chapter("The network breaks: h1 on one side, h2 and h3 on the other; both go on")
        self._tell.command("machine", "weave lab partition h1 / h2,h3")
        lab.partition([["h1"], ["h2", "h3"]])
        here = next(container for container, _ in self._containers if container.host.name == h1.name)
        there = next(address for container, address in self._containers if container.host.name == h2.name)
        _expect(not here.ping(there, timeout_s=1), "nothing passes between the sides", f"{there} answered")
        self._tell.say(f"{here.name} gets no answer from {there}")
        began = time.monotonic()
        wait_until(
            lambda: not observe.linked(h1) and observe.linked(h2) == {"h3"} and observe.linked(h3) == {"h2"},
            NOTICE_DEADLINE_S,
            "both sides to notice the break",
        )
        self._tell.say(f"both sides noticed after {time.monotonic() - began:.1f} s and give addresses all the same:")
        for host in (h1, h2, h3):
            self._add(host, f"{host.name}-c{PER_HOST + 1}")
        self._expect_unique()
        self._tell.say(f"{len(self._containers)} addresses, none twice")
        self.summary.append("while divided, both sides gave out addresses, none of them twice")

    def _heal(self, lab: Lab) -> None:
        self._tell.chapter("The network heals")
        self._tell.command("machine", "weave lab heal")
        lab.heal()
        began = time.monotonic()
        self._wait_for_links(lab.hosts, HEAL_DEADLINE_S)
        took = time.monotonic() - began
        self._tell.say(f"all links and data paths are back after {took:.1f} s")
        self.summary.append(f"all links were back {took:.1f} s after the network healed")
        rings: list[dict[str, int]] = []

        def is_one() -> bool:
            rings[:] = [observe.owners(host) for host in lab.hosts]
            return all(ring == rings[0] for ring in rings)

        with contextlib.suppress(WeaveError):
            wait_until(is_one, SETTLE_DEADLINE_S, "one ring")
        _expect(all(ring == rings[0] for ring in rings), "all hosts know the same shares again", str(rings))
        self._ping_all()

    def _crash(self, lab: Lab) -> None:
        h2 = lab.host("h2")
        name = observe.report(h2).router.name
        source = next(container for container, _ in self._containers if container.host.name == "h1")
        target = next(address for container, address in self._containers if container.host.name == "h2")
        self._tell.chapter(f"The daemon of h2 is killed while {source.name} pings {target} on h2 100 times a second")
        with Pings(source, target) as pings:
            self._tell.command("h2", "kill -9 <the weave daemon>")
            h2.kill_daemon()
            alone = pings.answered()
            wait_until(lambda: pings.answered() >= alone + PINGS_MIN // 2, LINK_DEADLINE_S, "pings without a daemon")
            self._tell.command("h2", "weave launch")
            done = h2.weave("launch")
            _succeeded(h2, ["launch"], done)
            self._wait_for_links(lab.hosts, LINK_DEADLINE_S)
            wait_until(lambda: pings.answered() >= PINGS_MIN, LINK_DEADLINE_S, f"{PINGS_MIN} answered pings")
            count = pings.stop()
        _expect(count.lost == 0, "no ping is lost", f"{count.lost} of {count.sent}, {count.longest_gap} in a row")
        _expect(observe.report(h2).router.name == name, f"h2 is still {name}", observe.report(h2).router.name)
        self._tell.say(f"{count.sent} pings sent, {count.lost} lost; h2 is still peer {name}")
        self.summary.append(f"a daemon died and came back: {count.lost} of {count.sent} pings lost")

    def _wait_for_links(self, hosts: Sequence[Host], deadline_s: float) -> None:
        missing: list[str] = []

        def whole() -> bool:
            missing[:] = observe.missing_links(hosts)
            return not missing

        try:
            wait_until(whole, deadline_s, "links between all hosts")
        except WeaveError:
            _expect(False, f"links between all hosts within {deadline_s:g} s", f"missing: {', '.join(missing)}")


def _expect(holds: bool, claim: str, found: str) -> None:
    if not holds:
        raise WeaveError(Failure(Code.HOST, claim, found))


def _succeeded(host: Host, words: Sequence[str], done: Result) -> None:
    said = (done.stderr or done.stdout).strip()
    _expect(
        done.returncode == 0, f"`weave {' '.join(words)}` on {host.name} succeeds", f"exit {done.returncode}: {said}"
    )


def tell(make_story: Callable[[str, Narrator], Story] = Story) -> int:
    """Runs the demo in a lab of its own; returns the exit status. Raises ``Interrupted`` after the teardown."""
    name = f"demo-{os.getpid()}"
    narrator = Narrator()
    story = make_story(name, narrator)
    failures: list[WeaveError] = []

    def begin() -> None:
        try:
            story.tell()
        except WeaveError as problem:
            failures.append(problem)
            if story.lab is not None:
                _show_logs(story.lab)

    def end() -> None:
        labs.down(name)
        narrator.chapter("The lab is taken down; nothing of it remains")

    then_always(begin, end)
    for line in story.summary:
        narrator.say(f"- {line}")
    for problem in failures:
        print(f"\nweave lab demo failed: expected that {problem.failure.expected}", file=sys.stderr)
        print(f"  found: {problem.failure.found}", file=sys.stderr)
    return 1 if failures else 0


def _show_logs(lab: Lab) -> None:
    for host in lab.hosts:
        tail = observe.log_tail(host)
        if tail:
            print(f"\nend of /var/log/weave.log on {host.name}:\n{tail}", file=sys.stderr)
