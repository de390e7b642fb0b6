"""Targets: which peers an operator wants links to, and which must not be dialled.

Targets are those of the configuration file and those of the command line. The latter are persisted (table ``targets``,
key: text, value: ``cli``). What was forgotten is persisted too (table ``suppressed``, key: text), so that neither the
file at the next start nor discovery brings it back before an operator names it again.

Does not dial and does not resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from weavenet.core.commands import Done
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import TARGETS_MAX
from weavenet.core.mesh.target import Target, parse_target
from weavenet.core.types import PeerId

TABLE_TARGETS = "targets"
TABLE_SUPPRESSED = "suppressed"
ORIGIN_CONF = "conf"
ORIGIN_CLI = "cli"


class Suppressed(msgspec.Struct, frozen=True, array_like=True):
    """A forgotten target with the addresses and peers found behind it, none of which discovery dials."""

    addresses: tuple[tuple[str, int], ...]
    peers: tuple[PeerId, ...]


class TargetSet:
    """Which targets count now. Every change goes to the outbox before it takes effect. ``port``: the one that is meant
    where a target names none."""

    def __init__(self, disk: Mapping[tuple[str, bytes], bytes], outbox: Outbox, port: int) -> None:
        self._outbox = outbox
        self._port = port
        self._conf: dict[str, Target] = {}
        self._cli: dict[str, Target] = {}
        self.suppressed: dict[str, Suppressed] = {}
        for (table, key), value in sorted(disk.items()):
            if table == TABLE_TARGETS:
                target = parse_target(key.decode())
                if isinstance(target, Target):
                    self._cli[target.text] = target
            elif table == TABLE_SUPPRESSED:
                self.suppressed[key.decode()] = msgspec.msgpack.decode(value, type=Suppressed)

    def start(self, conf: Iterable[str], launch: Iterable[str] | None) -> None:
        """Take in the configuration file's targets and, when given, the command line's in place of the persisted."""
        for text in conf:
            target = parse_target(text)
            if isinstance(target, Failure):
                self._outbox.note("warning", "targets", f"of the configuration file, ignored: {target.sentence()}")
            elif len(self._conf) < TARGETS_MAX:
                self._conf[target.text] = target
        if launch is not None:
            failure = self.connect(tuple(launch), replace=True)
            if failure is not None:
                self._outbox.note("warning", "targets", f"of the command line, ignored: {failure.sentence()}")

    def active(self) -> dict[str, str]:
        """Text of each target to its origin, those of the configuration file first."""
        found = {text: ORIGIN_CONF for text in sorted(self._conf) if text not in self.suppressed}
        for text in sorted(self._cli):
            found.setdefault(text, ORIGIN_CLI)
        return found

    def named(self, text: str) -> Target | Failure:
        """What ``text`` means: the target that was given, also where only one of them names the usual port."""
        target = parse_target(text)
        if isinstance(target, Failure) or target.text in self._conf or target.text in self._cli:
            return target
        other = Target(target.host, self._port if target.port is None else None)
        is_same = target.port in (None, self._port) and (other.text in self._conf or other.text in self._cli)
        return other if is_same else target

    def connect(self, texts: tuple[str, ...], *, replace: bool) -> Failure | None:
        """Add to the command line's targets, or replace them. All or nothing."""
        wanted: dict[str, Target] = {}
        for text in texts:
            target = parse_target(text)
            if isinstance(target, Failure):
                return target
            wanted[target.text] = target
        after = wanted if replace else self._cli | wanted
        if len(after.keys() | self._conf.keys()) > TARGETS_MAX:
            return Failure(
                Code.INVALID,
                f"expected at most {TARGETS_MAX} targets",
                str(len(after.keys() | self._conf.keys())),
                "name a few well-connected peers; discovery finds the others",
            )
        changes = [Change(TABLE_TARGETS, text.encode(), None) for text in sorted(self._cli.keys() - after.keys())]
        changes += [
            Change(TABLE_TARGETS, text.encode(), ORIGIN_CLI.encode())
            for text in sorted(after.keys() - self._cli.keys())
        ]
        for text in sorted(wanted.keys() & self.suppressed.keys()):
            changes.append(Change(TABLE_SUPPRESSED, text.encode(), None))
            del self.suppressed[text]
        self._outbox.persist(*changes)
        self._cli = dict(after)
        return None

    def forget(self, texts: tuple[str, ...], found: Mapping[str, Suppressed]) -> Done | Failure:
        """Stop dialling ``texts``; ``found`` says what is known behind each canonical text. Idempotent."""
        parsed: list[Target] = []
        for text in texts:
            target = self.named(text)
            if isinstance(target, Failure):
                return target
            parsed.append(target)
        fresh = {target.text for target in parsed} - self.suppressed.keys()
        if len(self.suppressed) + len(fresh) > TARGETS_MAX:
            return Failure(
                Code.INVALID,
                f"expected at most {TARGETS_MAX} forgotten targets",
                str(len(self.suppressed) + len(fresh)),
                "launch with --no-discovery instead",
            )
        changes: list[Change] = []
        lines: list[str] = []
        for target in parsed:
            text = target.text
            if text in self._cli:
                del self._cli[text]
                changes.append(Change(TABLE_TARGETS, text.encode(), None))
            suppressed = found.get(text, Suppressed((), ()))
            self.suppressed[text] = suppressed
            changes.append(Change(TABLE_SUPPRESSED, text.encode(), msgspec.msgpack.encode(suppressed)))
            if text in self._conf:
                lines.append(
                    f"{text} is from the configuration file; it stays forgotten until `weave connect {text}`, "
                    "remove it there as well"
                )
        self._outbox.persist(*changes)
        return Done("\n".join(lines))
