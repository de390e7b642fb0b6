"""What a bench starts is its own also when it became an orphan and ended: PID 1 of the machine has no part in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BURNT_S = 0.5
BURN = """
import sys, time
while time.process_time() < float(sys.argv[1]):
    pass
print("burnt", flush=True)
"""
MEASURE = """
import subprocess, sys, time
from bench import gate

gate.stolen_ticks = lambda: 0
gate.adopt_orphans()
before = gate.Gate()._foreign()
# Returns when the orphan has closed its output, with its last word.
subprocess.run(["sh", "-c", '"$@" &', "sh", sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.PIPE)
time.sleep(0.3)  # for PID 1 to collect it
print(gate.Gate()._foreign() - before)
"""


def test_the_time_of_orphans_is_not_foreign(tmp_path: Path) -> None:
    burn, measure = tmp_path / "burn.py", tmp_path / "measure.py"
    burn.write_text(BURN)
    measure.write_text(MEASURE)
    # A shell as PID 1 collects orphans, as systemd does; nobody else is in its PID namespace.
    machine = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; true', "sh"]
    done = subprocess.run(
        [*machine, sys.executable, measure, burn, str(BURNT_S)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout, done.stderr
    assert int(done.stdout) < BURNT_S * os.sysconf("SC_CLK_TCK") / 2
