"""The exit status of ``./test``: what failed in any part, and what ran nothing at all, is a failure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "test"
NOTHING_RAN = 5  # pytest's exit status


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With an interpreter that ends with the status that is written for the part it is asked to run."""
    shutil.copy(SCRIPT, tmp_path / "test")
    for folder in ("unit", "sim", "lab"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / "test_some.py").touch()
        (tmp_path / f"status-{folder}").write_text("0")
    (tmp_path / "packaging").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for path, text in (
        ("packaging/environment", "exit 0"),
        (".venv/bin/python", 'while [ "$1" != --part ]; do shift; done; exit "$(cat "status-$2")"'),
    ):
        (tmp_path / path).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / path).chmod(0o755)
    return tmp_path


def status(checkout: Path, *arguments: str) -> int:
    return subprocess.run([checkout / "test", *arguments], capture_output=True, check=False).returncode


def test_all_parts_pass(checkout: Path) -> None:
    assert status(checkout) == 0
    assert status(checkout, "sim", "-k", "ring") == 0


@pytest.mark.parametrize("part", ["unit", "sim", "lab"])
@pytest.mark.parametrize("found", [1, 3, NOTHING_RAN])
def test_one_part_fails(checkout: Path, part: str, found: int) -> None:
    (checkout / f"status-{part}").write_text(str(found))
    assert status(checkout) != 0
    assert status(checkout, part) != 0
    assert status(checkout, part, "-k", "misspelt") != 0, "a name that selects nothing is no success"
