"""``weave status ipam --unreachable``: absent peers, since when, and how much of each range they hold.

Made for an alert: the exit status is 2 at or above the threshold.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import click

from weavenet.cli.client import ask
from weavenet.cli.outcome import ABSENT, LIMIT, Ended
from weavenet.cli.printing import as_json
from weavenet.core.plain import plain
from weavenet.core.words import duration, titled

_WORD = re.compile(r"\w[\w.-]*")
"""What a shell takes as it stands, and `rmpeer` as no option."""


class Percent(click.ParamType[float]):
    """``10%`` or ``10``, above 0 and at most 100."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(str(value).strip().removesuffix("%"))
        except ValueError:
            number = 0.0
        if not 0 < number <= 100:
            self.fail(f"expected a share of the range such as 10%; found: {value!r}", param, ctx)
        return number


def show(older_than_s: float, threshold: float | None, output: str | None) -> None:
    """Print who has been absent for ``older_than_s``. Raises Ended(2) when they hold ``threshold`` percent or more of
    the range, or of one of two."""
    report = ask("GET", "/v1/report").json()
    ipam = report.get("IPAM")
    if not isinstance(ipam, dict):
        raise Ended(ABSENT, "address allocation is off on this peer (--ipalloc-range '')")
    rows = absent(report, ipam, older_than_s)
    totals = [_total(rows, each) for each in ipam["Ranges"]]
    share = max((total["Percent"] for total in totals), default=0.0)
    if output:
        document = {"Peers": rows, **(totals[0] if totals else {}), "Ranges": totals, "Threshold": threshold}
        as_json({**document, "Reached": threshold is not None and share >= threshold})
    else:
        names = [plain(titled(row["Peer"], row["Nickname"])) or "-" for row in rows]
        width = max((37, *map(len, names)))
        for name, row in zip(names, rows, strict=True):
            click.echo(f"{name:<{width}} {_absence(row)}")
    sizes = [
        f"{total['Size']} addresses, {total['Percent']:.1f}% of {total['Range'] if len(totals) > 1 else 'the range'}"
        for total in totals
    ]
    text = ", ".join([f"{len(rows)} absent peer{'' if len(rows) == 1 else 's'}", *sizes])
    if threshold is None or share < threshold:
        if not output:
            click.echo(text)
        return
    nicknames = Counter(peer["NickName"] for peer in _peers(report))
    advised = " ".join(
        row["Nickname"] if nicknames[row["Nickname"]] == 1 and _WORD.fullmatch(row["Nickname"]) else row["UID"]
        for row in rows
        if row["Ranges"]
    )
    step = f"bring them back, or if they are gone for good: weave rmpeer {advised}"
    raise Ended(LIMIT, f"{text}, the threshold is {threshold:g}%; next: {step}")


def _total(rows: list[dict[str, Any]], each: dict[str, Any]) -> dict[str, Any]:
    """What all rows hold of one range of the report."""
    size = sum(share["Size"] for row in rows for share in row["Ranges"] if share["Range"] == each["Range"])
    return {"Range": each["Range"], "Size": size, "Percent": 100.0 * size / (each["RangeNumIPs"] or 1)}


def absent(report: dict[str, Any], ipam: dict[str, Any], older_than_s: float) -> list[dict[str, Any]]:
    """The longest absent first: owners of addresses, and known peers that own none."""
    owners = {entry["UID"]: entry for each in ipam["Ranges"] for entry in each["Entries"]}
    peers = {peer["UID"]: {**peer, "Peer": peer["Name"], "Nickname": peer["NickName"]} for peer in _peers(report)}
    now = time.time()
    rows = []
    for uid, known in {**peers, **owners}.items():
        seconds = known["UnreachableSeconds"]
        if seconds is None or seconds < older_than_s:
            continue
        shares = [
            {"Range": each["Range"], "Size": entry["Size"], "Percent": entry["Percent"]}
            for each in ipam["Ranges"]
            for entry in each["Entries"]
            if entry["UID"] == uid
        ]
        first = next((share for share in shares if share["Range"] == ipam["Range"]), {"Size": 0, "Percent": 0.0})
        rows.append(
            {
                "Peer": known["Peer"],
                "Nickname": known["Nickname"],
                "UID": uid,
                "UnreachableSeconds": seconds,
                "UnreachableSince": round(now - seconds, 1),
                "Size": first["Size"],
                "Percent": first["Percent"],
                "Ranges": shares,
            }
        )
    return sorted(rows, key=lambda row: (-row["UnreachableSeconds"], row["UID"]))


def _peers(report: dict[str, Any]) -> list[dict[str, Any]]:
    found = report["Router"]["Peers"]
    assert isinstance(found, list)
    return found


def _absence(row: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["UnreachableSince"]))
    shares = [f"{row['Size']:>8} IPs ({row['Percent']:04.1f}% of total)"]
    if len(row["Ranges"]) > 1:
        shares = [f"{each['Size']:>8} IPs ({each['Percent']:04.1f}% of {each['Range']})" for each in row["Ranges"]]
    share = ", ".join(shares)
    return f"{share} absent since {since} ({duration(row['UnreachableSeconds'])}) {row['UID']}"
