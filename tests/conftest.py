"""Children that tests start find the package of this checkout, also when pytest is called by hand."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent.parent / "src"))
