"""How processes of ours begin."""

from __future__ import annotations

import subprocess
import sys

import pytest

from weavenet import program

ASK = """
import sys
sys.path.insert(0, {source!r})
from weavenet import program
print(program.command("module")[1:-2])
"""


@pytest.mark.parametrize(("flags", "expected"), [("-IS", "['-I', '-S']"), ("-I", "['-I']")])
def test_whoever_was_started_without_site_starts_others_without(flags: str, expected: str) -> None:
    code = ASK.format(source=program.source)
    done = subprocess.run([sys.executable, flags, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_it_finds_our_package_and_its_libraries_and_gives_the_arguments_and_the_status() -> None:
    done = subprocess.run(
        program.command("weavenet.dns", "not", "a descriptor"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "expected a descriptor" in done.stderr
