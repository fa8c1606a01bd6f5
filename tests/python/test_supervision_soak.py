"""Shortened soaks of ``tests/bench``; ``make soak-supervision`` and ``make soak-workers`` are the long ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RESTARTS = 300
WORKER_RESTARTS = 25
COUNTED = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is left behind is counted in /proc")


@COUNTED
def test_hundreds_of_restarts_under_load_lose_nothing_do_nothing_twice_and_leave_nothing_behind() -> None:
    soak("soak_supervision.py", RESTARTS)


@COUNTED
def test_kill_2_restarts_of_worker_processes_under_load_leave_no_process_descriptor_thread_or_file_behind() -> None:
    soak("soak_workers.py", WORKER_RESTARTS)


def soak(name: str, restarts: int) -> None:
    script = Path(__file__).parents[1] / "bench" / name
    done = subprocess.run(
        [sys.executable, script, str(restarts)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
