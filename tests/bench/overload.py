"""Requests during a wall of 529, minute by minute: our governor beside the SDK's own retry.

A real server on loopback refuses everything for 20 minutes; 8 tasks run into it. Time is virtual: it passes when all
tasks wait, so the table does not depend on the machine. The SDK is the installed one with its defaults; only its sleep
is replaced by the same clock.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "python"))

from overload_wall import Outcome, Wall, governed, with_the_sdk
from virtual_time import minutes

MINUTES, TASKS = 20, 8
LOOP_MINUTES = 2  # it is the same in each


async def main() -> None:
    """Print the table."""
    ours, theirs, loop = Wall(MINUTES), Wall(MINUTES), Wall(LOOP_MINUTES)
    outcomes = [await governed(ours, tasks=TASKS), await with_the_sdk(theirs, tasks=TASKS, again=False)]
    await with_the_sdk(loop, tasks=TASKS, again=True)
    counts = [minutes(wall.times, MINUTES) for wall in (ours, theirs)]
    print("| requests in minute | mnemosyne | the SDK's default retry |\n|---|---|---|")
    for first, last in ((1, 1), (2, 2), (3, 5), (6, 10), (11, 15), (16, 20)):
        span = f"{first}" if first == last else f"{first} to {last}, each"
        cells = [sum(count[first - 1 : last]) / (last + 1 - first) for count in counts]
        print(f"| {span} | " + " | ".join(f"{cell:.1f}".removesuffix(".0") for cell in cells) + " |")
    print("| in all | " + " | ".join(f"{sum(count)}" for count in counts) + " |")
    print("| tasks that failed | " + " | ".join(f"{outcome.failed} of {TASKS}" for outcome in outcomes) + " |")
    print("| tasks that were parked | " + " | ".join(f"{outcome.parked}" for outcome in outcomes) + " |")
    print("| last task answered | " + " | ".join(map(_answered, (ours, theirs), outcomes)) + " |")
    rate = len([at for at in loop.times if at < loop.ends]) / LOOP_MINUTES
    print(f"\nThe SDK in a loop that starts a failed task again at once: {rate:,.0f} requests a minute.")


def _answered(wall: Wall, outcome: Outcome) -> str:
    return f"{outcome.ended - wall.ends:.0f} s after the wall" if outcome.answered else "never"


if __name__ == "__main__":
    asyncio.run(main())
