"""Labs for tests: each with a name of its own, taken down whatever happens. Everything here needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.clusters import form
from lab.fresh import NAME, MakeLab, new_name
from weavenet.lab import lab as labs
from weavenet.lab import processes, state
from weavenet.lab.lab import Lab
from weavenet.lab.topology import Topology, of_count

_HERE = Path(__file__).parent
MACHINE = frozenset({"test_host_attachments", "test_lab_leftovers"})
"""Modules that make named namespaces on the machine, or look at what there is on it: never beside each other."""
HANGS_S = 1200
"""A test that takes so long hangs; on a machine that does much else, dozens of daemons take their time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(HANGS_S))
            module = item.path.stem
            item.add_marker(pytest.mark.xdist_group("machine" if module in MACHINE else module))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: the lab makes network namespaces"))


@pytest.fixture(scope="session", autouse=True)
def labs_of_dead_test_runs() -> None:
    """A test run that was killed could not tidy up; this one does it."""
    if os.geteuid() == 0:
        for name in state.existing():
            found = NAME.fullmatch(name)
            if found and not processes.start_time(int(found[1])):
                labs.down(name)


@pytest.fixture(scope="session", autouse=True)
def place_of_named_namespaces() -> Iterator[None]:
    """The first `ip netns add` mounts /run/netns; who found the machine without it leaves it without it."""
    folder = Path("/run/netns")

    def is_mounted() -> bool:
        # Not Path.is_mount(): a folder bound onto itself is on the device of its parent.
        return any(line.split()[4] == str(folder) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    was_mounted = is_mounted()
    yield
    if not was_mounted and is_mounted() and not any(folder.iterdir()):
        subprocess.run(["umount", str(folder)], check=False)
        with contextlib.suppress(OSError):  # somebody else made one there meanwhile
            folder.rmdir()


@pytest.fixture(scope="module")
def make_lab() -> Iterator[MakeLab]:
    """Makes labs that live until the module's tests are done, or until their ``down``."""
    names: list[str] = []

    def make(shape: int | Topology = 3) -> Lab:
        name = new_name()
        names.append(name)
        return Lab.up(name, of_count(shape) if isinstance(shape, int) else shape)

    try:
        yield make
    finally:
        for name in names:
            labs.down(name)


@pytest.fixture
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    """A formed cluster of three, of its own for each test: what ends an identity cannot be undone. Modules that share
    one lab between their tests have a fixture of this name themselves."""
    lab = make_lab(3)
    form(lab)
    yield lab
    lab.down()


@pytest.fixture
def lab_name() -> Iterator[str]:
    """The name of a lab that the test makes by itself."""
    name = new_name()
    try:
        yield name
    finally:
        labs.down(name)
