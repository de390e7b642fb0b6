"""docs/benchmarks.md: replaces one bench's section, between its two markers, with what was just measured."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from bench.table import Result

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENT = CHECKOUT / "docs" / "benchmarks.md"


def machine() -> str:
    """Kernel, CPU and Python, in a few words. No name of the machine."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    kernel = ".".join(platform.release().split("-")[0].split(".")[:3])
    return f"{os.cpu_count()} × {model}, Linux {kernel}, Python {platform.python_version()}"


def commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "weave")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with uncommitted changes" if changed else "")


def section(command: str, result: Result) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"`{command}`, {today}, commit {commit()}, {machine()}\n\n{result.markdown()}\n"


def write(name: str, text: str) -> None:
    """Raises ValueError when the document has no place for this bench."""
    document = DOCUMENT.read_text()
    pattern = re.compile(rf"(<!-- bench {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    fresh, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n{match[2]}", document)
    if count != 1:
        raise ValueError(f"{DOCUMENT} has {count} sections for {name}, expected one between its two markers")
    DOCUMENT.write_text(fresh)
