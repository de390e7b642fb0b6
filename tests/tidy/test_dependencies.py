"""Which folder may import what: dependencies point inwards, and cores do no I/O.

Read from the syntax tree, so imports inside functions count too; ``CLI_TOP`` is about what importing a module alone
would load.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "weavenet"

OUTSIDE = {
    "core": {"msgspec"},
    "wire": {"msgspec"},
    "runtime": {"msgspec", "cryptography"},
    "plane": {"msgspec"},
    "host": {"msgspec", "pyroute2"},
    "control": {"msgspec", "httptools", "prometheus_client"},
    "dns": {"msgspec"},
    "cli": {"click", "msgspec"},
    "lab": {"msgspec", "click"},
    "sim": {"msgspec", "click"},
    "sleeve": {"msgspec", "cryptography"},
}
"""Libraries beyond the standard one, by folder."""

INSIDE = {
    "core": {"core"},
    "wire": {"core"},
    "runtime": {"core", "wire", "plane", "host", "control", "sleeve", "dns", "program"},
    "plane": {"core", "host"},
    "host": {"core", "plane"},
    "control": {"core"},
    "dns": {"core"},
    "cli": {"core", "runtime.settings", "host", "lab", "sim", "program"},
    "lab": {"core", "control", "runtime.settings", "host", "cli"},
    "sim": {"core", "sleeve.path"},
    "sleeve": {"core"},
}
"""Folders or modules of ours, by folder; a folder may always import itself."""

CLI_TOP = {"core", "runtime.settings", "program"}
"""What may be imported together with a module of the CLI; the rest only where it is used."""

CORE_FORBIDDEN = {
    "_socket", "_thread", "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "http", "io", "locale", "logging",
    "multiprocessing", "os", "pathlib", "queue", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
"""Clocks, randomness, environment, files, sockets, threads: a core gets what it needs as arguments."""


class Import(NamedTuple):
    """``module`` in full, ``top``: executed when the file itself is imported."""

    path: Path
    line: int
    module: str
    top: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.module}"


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(), str(path))
    yield from _walk(path, tree, top=True)


def _walk(path: Path, node: ast.AST, *, top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(path, child.lineno, alias.name, top)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno}: relative import"
            yield Import(path, child.lineno, child.module or "", top)
            for alias in child.names:  # `from weavenet.host import netns` imports a module as well
                if (PACKAGE.parent / (child.module or "").replace(".", "/") / f"{alias.name}.py").exists():
                    yield Import(path, child.lineno, f"{child.module}.{alias.name}", top)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue  # loads nothing
        else:
            is_body = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(path, child, top=top and not is_body)


ALL = [one for path in sources() for one in imports(path)]


def folder_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def of_folder(folder: str) -> list[Import]:
    return [one for one in ALL if folder_of(one.path) == folder]


def is_within(module: str, allowed: set[str]) -> bool:
    """``runtime.settings`` is within ``runtime`` and within ``runtime.settings``; a package alone may be named on
    the way to an allowed module of it."""
    return any(module == one or module.startswith(f"{one}.") or one.startswith(f"{module}.") for one in allowed)


def test_every_folder_has_a_rule() -> None:
    folders = {folder_of(path) for path in sources()} - {""}
    assert folders == set(OUTSIDE) == set(INSIDE)


@pytest.mark.parametrize("folder", OUTSIDE)
def test_libraries(folder: str) -> None:
    allowed = OUTSIDE[folder] | {"weavenet", "__future__"}
    wrong = [
        str(one)
        for one in of_folder(folder)
        if (root := one.module.partition(".")[0]) not in sys.stdlib_module_names and root not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("folder", INSIDE)
def test_direction(folder: str) -> None:
    allowed = INSIDE[folder] | {folder}
    wrong = [
        str(one)
        for one in of_folder(folder)
        if one.module.startswith("weavenet.") and not is_within(one.module.removeprefix("weavenet."), allowed)
    ]
    assert not wrong


def test_cores_do_no_io() -> None:
    wrong = [str(one) for one in of_folder("core") if one.module.partition(".")[0] in CORE_FORBIDDEN]
    assert not wrong


def test_cores_use_random_generators_that_they_are_given() -> None:
    wrong = []
    for path in sources(PACKAGE / "core"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_function = (
                isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random" and node.attr != "Random"
            )
            is_imported = (
                isinstance(node, ast.ImportFrom) and node.module == "random" and node.names[0].name != "Random"
            )
            calls_type = (
                isinstance(node, ast.Call) and ast.unparse(node.func) in ("random.Random", "Random") and not node.args
            )
            if is_function or is_imported or calls_type:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong


def test_cores_do_not_wait_or_print() -> None:
    wrong = []
    for path in sources(PACKAGE / "core"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_async = isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
            is_io = isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "input")
            if is_async or is_io:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong


def test_cli_loads_nothing_of_the_daemon() -> None:
    wrong = [
        str(one)
        for one in of_folder("cli")
        if one.top
        and one.module.startswith("weavenet.")
        and not is_within(one.module.removeprefix("weavenet."), CLI_TOP | {"cli"})
    ]
    assert not wrong


def test_netlink_library_stays_behind_its_adapter() -> None:
    wrong = [str(one) for one in ALL if one.module.partition(".")[0] == "pyroute2" and folder_of(one.path) != "host"]
    assert not wrong


def test_asyncio_code_does_not_sleep() -> None:
    """``time.sleep`` blocks the event loop of everybody."""
    wrong = []
    for folder in ("runtime", "control", "host", "plane", "wire"):
        for path in sources(PACKAGE / folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
