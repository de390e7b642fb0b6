"""A pytest plugin: several runs of pytest, one summary.

Each part of ``./test`` writes its reports to a file; the run with ``--parts-summary`` loads those of the earlier parts
into its own summary, so the last line counts everything and every failure is named again at the end. Changes nothing
about which tests run or how; the exit status of a part is that of its own tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parts", "one summary over several runs")
    group.addoption("--part", help="name of this run")
    group.addoption("--parts-dir", type=Path, help="folder of the reports of all parts")
    group.addoption("--parts-summary", action="store_true", help="add the earlier parts to this run's summary")


def pytest_configure(config: pytest.Config) -> None:
    # xdist's workers send their reports to the controller, which alone writes.
    if config.option.part and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Parts(config), "parts-recorder")


class Parts:
    """Records this run and, on request, recalls the earlier ones."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.name: str = config.option.part
        self.folder: Path = config.option.parts_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.lines: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # What the summary does not count (set-up and tear-down that passed) is not worth keeping.
        if report.when == "call" or not report.passed:
            self._record(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._record(report)

    def _record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        data.pop("node", None)  # xdist's handle on the worker
        self.lines.append(data)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Iterator[None]:
        took = time.monotonic() - self.started
        file = self.folder / f"{time.time_ns()}-{self.name}.json"
        earlier = sorted(self.folder.glob("*.json")) if self.config.option.parts_summary else []
        file.write_text(json.dumps({"part": self.name, "seconds": took, "reports": self.lines}, default=repr))
        times = []
        for path in earlier:
            content = json.loads(path.read_text())
            times.append((content["part"], content["seconds"]))
            for data in content["reports"]:
                self._recall(terminalreporter, data)
        yield
        times.append((self.name, took))
        terminalreporter.section("time per part")
        for name, seconds in times:
            terminalreporter.line(f"{name:>8} {seconds:7.1f} s")

    def _recall(self, terminalreporter: Any, data: dict[str, Any]) -> None:
        report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
        if isinstance(report, pytest.CollectReport):
            category = "error" if report.failed else "skipped"
        else:
            category, _, _ = self.config.hook.pytest_report_teststatus(report=report, config=self.config)
        if category:
            terminalreporter.stats.setdefault(category, []).append(report)
