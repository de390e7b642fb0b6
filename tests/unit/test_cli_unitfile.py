"""The unit and the skeleton of weave.conf, as systemd and launch read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from weavenet.cli import unitfile
from weavenet.cli.compose import compose
from weavenet.cli.layers import OPTIONS, read_layers
from weavenet.cli.unitfile import quoted, skeleton, unit
from weavenet.lab.boot import read_unit

EXPOSURE_MAX = 5.0
"""Spec 08, of ``systemd-analyze security``."""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def analyzed(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def written(tmp_path: Path) -> Path:
    launcher = tmp_path / "a folder 100%" / "weave"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    path = tmp_path / unitfile.UNIT_NAME
    path.write_text(unit(str(launcher), str(launcher.with_name("README.md")), "/etc/weave $x.conf"))
    return path


@needs_systemd
def test_systemd_finds_nothing_wrong(written: Path) -> None:
    assert analyzed(written, "verify").strip() == ""


@needs_systemd
def test_the_sandbox_is_as_tight_as_promised(written: Path) -> None:
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", analyzed(written, "security", "--offline=true"))
    assert found is not None and float(found[1]) <= EXPOSURE_MAX


def test_any_path_is_taken_literally(written: Path) -> None:
    command, environment = read_unit(written.read_text())
    assert command == [str(written.parent / "a folder 100%" / "weave"), "launch", "--foreground"]
    assert environment["WEAVE_CONF"] == "/etc/weave $x.conf"


@pytest.mark.parametrize("word", ["/opt/weave/weave", "a b", "50%", "$HOME", 'say "x"', "back\\slash", "it's"])
def test_a_quoted_word_is_one_word(word: str) -> None:
    command, _ = read_unit(f"ExecStart={quoted(word)} launch\n")
    assert command == [word, "launch"]


def test_the_skeleton_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weave.conf"
    path.write_text(skeleton())
    read = read_layers({}, {}, str(path))
    assert not any(read.levels) and not read.conf_peers


def test_every_line_of_the_skeleton_counts_without_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "weave.conf"
    password = tmp_path / "password"
    password.write_text("a long random text of many words\n")
    password.chmod(0o600)
    keys = []
    for line in skeleton().splitlines():
        if not re.match(r"#[a-z]", line):
            continue
        key, _, value = line[1:].partition(" = ")
        keys.append(key)
        if key == "password-file":
            value = f'"{password}"'
        path.write_text(f"{key} = {value}\n")
        path.chmod(0o600)
        compose(read_layers({}, {}, str(path)), ())
    second_names = {"not-elector", "not-electorate", "observer", "init-peer-count"}
    of_one_start = {"foreground", "resume", "no-restart", "first-start", "assume-identity"}
    assert sorted(keys) == sorted({"peers", *(each.name for each in OPTIONS)} - second_names - of_one_start)
