"""What the benches say when something goes wrong, and how they read what others measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from bench import dns, hosts
from bench.__main__ import parse
from bench.gate import Gate
from bench.table import percentile

DNSPERF = """
> NOERROR host1.weave.local A 0.000050
> NOERROR host2.weave.local A 0.000070
  Queries lost:         {lost} (0.00%)
  Queries per second:   5000.0
  Average Latency (s):  0.000060 (min 0.000050, max 0.000070)
"""


def test_a_lab_that_cannot_be_made_is_reported_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weave = tmp_path / "weave"
    weave.write_text('#!/bin/sh\necho "no room for lab $2" >&2\nexit 1\n')
    weave.chmod(0o755)
    monkeypatch.setattr(hosts, "WEAVE", str(weave))
    with pytest.raises(hosts.Failed, match="no room for lab up"), hosts.lab(3, Gate()):
        pass


def test_a_lost_query_is_no_fast_one() -> None:
    assert dns.read(DNSPERF.format(lost=0)).latencies_us == pytest.approx([50, 70])
    assert percentile(dns.read(DNSPERF.format(lost=1)).latencies_us, 99) == math.inf


@pytest.mark.parametrize("arguments", [["nothing"], ["ring", "--repeat", "-1"], ["ring", "--quick", "--write"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "error: " in capsys.readouterr().err
