"""Removes from this host's kernel whatever the product made there: devices, tables, rules, routes.

Only what carries our names is touched. Works without a running daemon and may be repeated. What others changed because
of us (``ip_forward`` switched on by ``expose``) is put back by ``hide`` and :mod:`weavenet.runtime.erasing`, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.core.limits import BRIDGE
from weavenet.host import exposure_rules, iptables, netns, rules
from weavenet.host.bridge import is_port_name
from weavenet.host.dnsaddress import ADDRESS, TABLE
from weavenet.host.firewall import LEGACY_RULE
from weavenet.host.kernel import Kernel
from weavenet.host.nft import Command, Nft, NftError


async def erase(devices: Collection[str], namespace: int | None = None) -> None:
    """``devices``: names of the data paths' devices. Raises WeaveError with what could not be removed; everything else
    is gone then."""
    troubles = [*await _erase_devices({*devices, BRIDGE}, namespace), *await _erase_rules(namespace)]
    if troubles:
        step = "remove them by hand, or run `weave reset` again"
        raise WeaveError(
            Failure(Code.HOST, "expected to remove what weave made on this host", "; ".join(troubles), step)
        )


async def _erase_devices(names: Collection[str], namespace: int | None) -> list[str]:
    troubles = []
    async with await Kernel.open(namespace) as kernel:
        with contextlib.suppress(OSError):  # mostly: there was none
            await kernel.netlink.no_longer_answer_through(ADDRESS, TABLE)
        ours = [link for link in kernel.links.all() if link.name in names or is_port_name(link.name)]
        for link in sorted(ours, key=lambda link: link.name == BRIDGE):
            try:
                await kernel.netlink.delete_link(link.index)
            except OSError as error:
                troubles.append(f"device {link.name}: {error.strerror or error}")
    return troubles


async def _erase_rules(namespace: int | None) -> list[str]:
    nft = Nft(namespace)
    try:
        present = await nft.run([{"list": {"ruleset": None}}])
        commands = [command for family in _families(present) for command in rules.delete_table(family)]
        commands += _forward_deletions(present)
        if commands:
            await nft.run(commands)
    except NftError as error:
        return [f"firewall rules: {error.strerror}"] if nft.backend else []
    return await asyncio.to_thread(netns.call, namespace, _erase_legacy)


def _families(ruleset: Iterable[Command]) -> list[str]:
    """Those in which there is a table of ours."""
    tables = (item["table"] for item in ruleset if "table" in item)
    return sorted({table["family"] for table in tables if table.get("name") == rules.TABLE})


def _forward_deletions(ruleset: Iterable[Command]) -> list[Command]:
    """Our tagged rules in tables of others."""
    found = (item["rule"] for item in ruleset if "rule" in item)
    tagged = (rule for rule in found if rule.get("table") == "filter" and _is_tagged(str(rule.get("comment", ""))))
    places = ({key: rule[key] for key in ("family", "table", "chain", "handle")} for rule in tagged)
    return [{"delete": {"rule": place}} for place in places]


def _is_tagged(comment: str) -> bool:
    return comment == rules.FORWARD_COMMENT or comment.startswith(exposure_rules.COMMENT)


def _erase_legacy() -> list[str]:
    """What could not be looked at."""
    troubles = []
    for family in iptables.families_in_use():
        listing = iptables.listing(family)
        if listing.returncode == iptables.BUSY:
            troubles.append(f"rules of {iptables.PROGRAMS[family]}: {listing.stderr.strip()}")
        for arguments in exposure_rules.legacy_changes(listing.stdout, (), family):
            iptables.run(family, *arguments)
        for chain in ("DOCKER-USER", "FORWARD"):
            if iptables.run(family, "-C", chain, *LEGACY_RULE).returncode == 0:
                iptables.run(family, "-D", chain, *LEGACY_RULE)
    return troubles
