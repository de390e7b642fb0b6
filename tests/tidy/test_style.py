"""Sizes, names, leftovers, documents; and the linters, so that one command checks everything."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "weavenet"
MODULE_LINES_MAX = 600
UNDOCUMENTED_LINES_MAX = 25
"""A public function of a core up to this length may let its name speak."""
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "base", "common", "misc"}
LEFTOVERS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(wor" r"k|home/\w+|root/\.\w+|tmp/w)/")


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the project; without git (an unpacked archive) everything that is there."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".venv", ".git", ".cache"} & set(path.parts)]
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            found.append((path.relative_to(ROOT), data.decode("utf-8", "replace")))
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_modules_are_of_a_size_to_read() -> None:
    long = [
        path
        for path in [*modules(), *ROOT.glob("tests/**/*.py")]
        if len(path.read_text().splitlines()) > MODULE_LINES_MAX
    ]
    assert not long, f"more than {MODULE_LINES_MAX} lines"


def test_names_say_what_is_inside() -> None:
    wrong = [path for path in tracked() if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts[:-1]}]
    assert not wrong


def test_nothing_is_left_for_later() -> None:
    wrong = [
        f"{path}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if LEFTOVERS.search(line)
    ]
    assert not wrong


def test_no_paths_of_one_machine() -> None:
    wrong = [
        f"{path}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    wrong = [
        path.relative_to(ROOT)
        for path in modules()
        if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not wrong


def test_public_parts_of_cores_are_documented() -> None:
    wrong = []
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno
            if lines > UNDOCUMENTED_LINES_MAX and not ast.get_docstring(node):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert not wrong


def test_the_map_shows_every_folder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text() + (ROOT / "README.md").read_text()
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    packages = {f"src/weavenet/{path.relative_to(PACKAGE).parts[0]}" for path in PACKAGE.glob("*/*.py")}
    shown = {name for name in folders | packages if f"{name}`" in text or f"{name}/" in text or name.startswith(".")}
    assert folders | packages == shown


def test_documents_name_only_what_exists() -> None:
    wrong = []
    for path, text in texts():
        if path.suffix != ".md" or path.name == "CHANGELOG.md":
            continue
        for name in re.findall(r"`((?:src|tests|bench|docs|packaging)/[\w./-]*)`", text):
            if not (ROOT / name).exists():
                wrong.append(f"{path}: {name}")
    assert not wrong


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--output-format", "concise"],
        ["ruff", "format", "--check", "--output-format", "concise"],
        ["mypy"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_linters(command: list[str]) -> None:
    arguments = [] if command[0] == "mypy" else ["--quiet", "."]
    result = subprocess.run(
        [sys.executable, "-m", *command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", ["weave", "test", ".ci/run", "packaging/environment"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = "sh" if path.read_text().startswith("#!/bin/sh") else "bash"
    subprocess.run([shell, "-n", str(path)], check=True)


def test_names_of_test_files_are_unique() -> None:
    """Pytest imports them by their bare names, and collects nothing of the second file of one name."""
    names = [path.name for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(names) == sorted(set(names))
