"""What one call of an agent's context costs, beside what an await costs by itself. Median of 5 after one warm-up.

Usage: ``upcalls.py [FOLDER]``, where the store is made; ``make bench-upcalls``. Writes ``target/bench/upcalls.json``.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, Phase, WorkItem
from pydantic import SecretStr

RUNS = 5
CALLS = 500  # of each kind in a run
AT_ONCE = 64
CONTENT = b"x" * 1024
FLOOR = "await of a coroutine that returns"


async def nothing() -> None:
    return None


class Measures(AgentExecutionMixin):
    """Times its own calls, on the loop where they are made."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        loop, context, names = asyncio.get_running_loop(), self.context, iter(range(10**9))

        async def progress() -> None:
            context.progress("half way", 0.5)

        async def artifact() -> None:
            await context.artifact(f"a-{next(names)}", CONTENT)

        async def reserve() -> None:
            await context.reserve(tokens=1)

        async def step() -> None:
            await context.step(f"s-{next(names)}", nothing)

        kinds: dict[str, Callable[[], Awaitable[Any]]] = {
            FLOOR: nothing,
            "asyncio.sleep(0): one turn of the loop": lambda: asyncio.sleep(0),
            "run_in_executor: a thread and back": lambda: loop.run_in_executor(None, int),
            "progress: one way, no answer": progress,
            "reserve: one commit": reserve,
            "artifact of 1 KiB: one commit": artifact,
            "step: two commits": step,
        }
        data = {}
        for kind, call in kinds.items():
            data[kind] = {"one": await one_by_one(call), "many": await at_once(call)}
        return {"success": True, "data": data}


async def one_by_one(call: Callable[[], Awaitable[Any]]) -> float:
    """Return microseconds per call, the median of single calls in a row."""
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def at_once(call: Callable[[], Awaitable[Any]]) -> float:
    """Return microseconds per call with 64 tasks that call all the time."""

    async def lane() -> None:
        for _ in range(CALLS // AT_ONCE + 1):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
    return (time.perf_counter() - began) / (AT_ONCE * (CALLS // AT_ONCE + 1)) * 1e6


async def measured(folder: Path) -> list[dict[str, dict[str, float]]]:
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Measures)}
    runs = []
    async with Orchestra(
        store=folder / "store.db", agents=agents, api_key=SecretStr("k"), max_concurrent=1
    ) as orchestra:
        for number in range(RUNS + 1):
            item = WorkItem(
                id=f"w-{number}", description="measure", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR
            )
            work = await orchestra.submit_work(item)
            runs.append((await work.result()).data)
    return runs[1:]


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        runs = asyncio.run(measured(Path(folder)))
    costs = {
        kind: {way: statistics.median(run[kind][way] for run in runs) for way in ("one", "many")} for kind in runs[0]
    }
    table = dict(sorted(costs.items(), key=lambda entry: entry[1]["one"]))
    floor = table[FLOOR]["one"]
    print(f"| call (Python {platform.python_version()}) | alone, µs | beside the first | 64 at once, µs each |")
    print("|---|---|---|---|")
    for kind, cost in table.items():
        print(f"| {kind} | {cost['one']:.1f} | {cost['one'] / floor:.0f} | {cost['many']:.1f} |")
    target = Path("target/bench")
    target.mkdir(parents=True, exist_ok=True)
    written = {"python": platform.python_version(), "runs": RUNS, "microseconds": table}
    (target / "upcalls.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
