"""A shortened soak, as ``tests/bench/soak_supervision.py`` does it; ``make soak-supervision`` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RESTARTS = 300


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is left behind is counted in /proc")
def test_hundreds_of_restarts_under_load_lose_nothing_do_nothing_twice_and_leave_nothing_behind() -> None:
    script = Path(__file__).parents[1] / "bench" / "soak_supervision.py"
    done = subprocess.run(
        [sys.executable, script, str(RESTARTS)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
