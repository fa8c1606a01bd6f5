"""Measures what a newcomer waits for: ``--help``, the demo, and its memory. Median of 5 after one warm-up.

Beside each figure stands a floor of the same run: an interpreter that does nothing, and one that only imports the SDK.
Usage: ``demo.py COMMAND`` with the ``mnemosyne`` of an environment that holds the release wheel; ``make bench-demo``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
POLL_SECONDS = 0.02  # peaks that are shorter than this are not seen


def children() -> dict[int, list[int]]:
    """Return the processes of this machine by their parent."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            found.setdefault(parent, []).append(int(entry.name))
    return found


def pss_megabytes(root: int) -> float:
    """Return the summed proportional set size of a process and its descendants, without the demo server."""
    family, total, todo = children(), 0, [root]
    while todo:
        process = todo.pop()
        todo += family.get(process, [])
        try:
            if b"mnemosyne.demo.server" in Path(f"/proc/{process}/cmdline").read_bytes():
                continue
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def timed(arguments: list[str], folder: Path, *, watch: bool = False) -> tuple[float, float]:
    """Run a command; return its seconds and, if watched, its peak memory in MB."""
    began, peak = time.monotonic(), 0.0
    process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL)
    while watch and process.poll() is None:
        peak = max(peak, pss_megabytes(process.pid))
        time.sleep(POLL_SECONDS)
    if process.wait() != 0:
        sys.exit(f"{arguments} exited {process.returncode}")
    return time.monotonic() - began, peak


def median(arguments: list[str], folder: Path) -> float:
    timed(arguments, folder)
    return statistics.median(timed(arguments, folder)[0] for _ in range(RUNS))


def main(command: str) -> None:
    python = str(Path(command).with_name("python"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = [command, "--store", str(folder / "store.db"), "demo"]
        figures = {
            "python -c pass, s": median([python, "-c", "pass"], folder),
            "mnemosyne --help, s": median([command, "--help"], folder),
            "import anthropic, s": median([python, "-c", "import anthropic"], folder),
            "mnemosyne demo, s": median(demo, folder),
            "mnemosyne demo, peak PSS MB": statistics.median(timed(demo, folder, watch=True)[1] for _ in range(RUNS)),
        }
    for what, figure in figures.items():
        print(f"{what:32} {figure:8.3f}")
    target = Path(__file__).parents[2] / "target" / "bench"
    target.mkdir(parents=True, exist_ok=True)
    (target / "demo.json").write_text(json.dumps({"runs": RUNS, "cases": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
