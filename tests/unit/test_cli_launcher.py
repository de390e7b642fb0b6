"""The launcher script: finds its checkout from anywhere, and runs nothing of the caller's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv" / "stamp").exists(), reason="the environment of the checkout is not made (./test makes it)"
)


def weave(program: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "WEAVE_HTTP_ADDR": "/nonexistent/control.sock", **variables}
    return subprocess.run(
        [program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_through_links_and_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "weave").symlink_to(ROOT / "weave")
    (tmp_path / "second").symlink_to("weave")
    for program in (tmp_path / "weave", tmp_path / "second", ROOT / "weave"):
        result = weave(str(program), "version", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("weave script ")


def test_found_on_path_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "weave").symlink_to(ROOT / "weave")
    result = weave("sh", "-c", "weave version", cwd=Path("/"), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert result.stdout.startswith("weave script ")


@pytest.mark.parametrize("verb", ["version", "lab", "setup"])
def test_from_a_folder_that_is_gone(tmp_path: Path, verb: str) -> None:
    """The shell that reads the launcher says so before its first line; nothing else does."""
    script = 'cd "$1" && rmdir "$1" && exec "$2" "$3" --help'
    gone = tmp_path / "gone"
    gone.mkdir()
    result = weave("sh", "-c", script, "sh", str(gone), str(ROOT / "weave"), verb, cwd=tmp_path)
    assert result.returncode == 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("sh: 0: getcwd()")] == []


def test_modules_of_the_caller_are_not_run(tmp_path: Path) -> None:
    for name in ("socket.py", "weavenet.py", "sitecustomize.py", "click.py"):
        (tmp_path / name).write_text("raise SystemExit('the module of the caller was run')")
    result = weave(str(ROOT / "weave"), "password", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_simulations_in_several_processes(tmp_path: Path) -> None:
    """Each process imports what the launcher ran; that must not run the command again."""
    arguments = ("--seeds", "2", "--peers", "2", "--steps", "2", "--jobs", "2")
    result = weave(str(ROOT / "weave"), "sim", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 histories" in result.stdout


def test_status_of_the_program(tmp_path: Path) -> None:
    assert weave(str(ROOT / "weave"), "status", cwd=tmp_path).returncode == 1
    assert weave(str(ROOT / "weave"), "stop", cwd=tmp_path).returncode == 0


def test_ctrl_c_before_the_command_is_loaded_ends_it_quietly(tmp_path: Path) -> None:
    package = tmp_path / "weavenet" / "cli"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "src/weavenet/program.py", package.parent)
    (package / "quick.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(package.parent / "program.py"), "weavenet.cli.quick", "lab", "demo"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
