"""A shortened soak; ``make soak-bridge`` is the long one, and ``tests/bench/soak_bridge.py`` says what is looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ITEMS = 5_000


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is left behind is counted in /proc")
def test_thousands_of_items_leave_nothing_behind() -> None:
    script = Path(__file__).parents[1] / "bench" / "soak_bridge.py"
    done = subprocess.run(
        [sys.executable, script, str(ITEMS)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
