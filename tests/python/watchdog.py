"""Runs a program in a process of its own that has to end in time; if it does not, the failure shows where it stands.

The stacks of Python come from ``faulthandler``, whose signal handler needs no GIL; the native ones from gdb where it is
installed, else what the kernel knows of each thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "run_in_time"]

HERE = Path(__file__).parent
DUMP = signal.SIGUSR1  # `hangs/__main__.py` has faulthandler answer it


@dataclass(frozen=True)
class Ended:
    """How the process ended: its exit code (negative: the signal), what it printed, and after how long."""

    code: int
    out: str
    err: str
    seconds: float


def run_in_time(name: str, *arguments: str, seconds: float = 30.0) -> Ended:
    """Run the scenario ``name`` of :mod:`hangs`.

    Args:
        seconds: After which it is a hang. Generous: it must hold on a machine that does other things too.

    Raises:
        AssertionError: It did not end in time; the message has the stacks of all its threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        command = [sys.executable, "-m", "hangs", name, *arguments]
        started = time.monotonic()
        with out.open("wb") as to_out, err.open("wb") as to_err:
            child = subprocess.Popen(command, cwd=HERE, stdout=to_out, stderr=to_err, start_new_session=True)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            native = native_stacks(child.pid)
            python = python_stacks(child, err)
            raise AssertionError(
                f"{name} hangs: not over after {seconds:.0f} s\n-- it printed\n{out.read_text()}\n"
                f"-- Python\n{python}\n-- native\n{native}"
            ) from None
        finally:
            end_group(child)
        return Ended(child.returncode, out.read_text(), err.read_text(), time.monotonic() - started)


def python_stacks(child: subprocess.Popen[bytes], err: Path) -> str:
    """Ask for the stacks, and wait until they are written."""
    before = err.stat().st_size
    child.send_signal(DUMP)
    deadline = time.monotonic() + 2
    size = -1
    while time.monotonic() < deadline and (size == -1 or err.stat().st_size != size):
        size = err.stat().st_size if err.stat().st_size > before else -1
        time.sleep(0.1)  # polling a condition with a deadline
    return err.read_text()


def native_stacks(pid: int) -> str:
    gdb = shutil.which("gdb")
    if gdb is not None:
        command = [gdb, "-p", str(pid), "-batch", "-nx", "-ex", "set pagination off", "-ex", "thread apply all bt 40"]
        with_gdb = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "Thread" in with_gdb.stdout:
            return with_gdb.stdout[-20_000:]
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        known = [f"{name}: {read(task / name)}" for name in ("comm", "wchan", "syscall", "stack")]
        lines.append(f"thread {task.name}: " + ", ".join(known))
    return "\n".join(lines)


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return type(error).__name__


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Nothing that the scenario started outlives it, a forked child that hangs included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
