"""What a process of its own costs an agent, beside the loop thread: an item, a start, a restart, memory.

Usage: ``workers.py``; ``make bench-workers``. Median of 5; writes ``target/bench/workers.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from mnemosyne import AgentRole, AgentSpec, ClaudeAgentBridge, Phase, WorkItem

RUNS = 5
ITEMS = 500
AT_ONCE = 64
Isolation = Literal["thread", "process"]


def item(number: int, context: dict[str, Any] | None = None) -> WorkItem:
    return WorkItem(
        id=f"w-{number}",
        description="sixty characters that say what this item of work is about..",
        phase=Phase.PLAN_TO_ARTIFACTS,
        role=AgentRole.EXECUTOR,
        context=context or {"text": "x" * 1024},
    )


async def spawn(isolation: Isolation, in_flight: int = 1) -> ClaudeAgentBridge:
    # Found by name, as in a program of the user's, and by a worker process too.
    spec = AgentSpec(source="bench_agents:Trivial", isolation=isolation, in_flight=in_flight)
    bridge = await ClaudeAgentBridge.spawn("executor", spec)
    while bridge.health().state != "idle":  # noqa: ASYNC110 - polling a condition
        await asyncio.sleep(0.001)
    return bridge


async def alone(isolation: Isolation) -> float:
    """Microseconds from ``send_work`` to its result, one item after the other."""
    async with await spawn(isolation) as bridge:
        taken = []
        for number in range(ITEMS):
            began = time.perf_counter()
            await bridge.send_work(item(number))
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def at_once(isolation: Isolation) -> float:
    """Items a second with 64 in flight."""
    async with await spawn(isolation, AT_ONCE) as bridge:
        began = time.perf_counter()
        await asyncio.gather(*(bridge.send_work(item(number)) for number in range(4 * ITEMS)))
        return 4 * ITEMS / (time.perf_counter() - began)


async def start(isolation: Isolation) -> float:
    """Milliseconds from ``spawn`` to an idle agent."""
    began = time.perf_counter()
    bridge = await spawn(isolation)
    taken = time.perf_counter() - began
    await bridge.shutdown()
    return taken * 1e3


async def restart(isolation: Isolation) -> float:
    """Milliseconds from ``kill -9`` of the process, or on the thread from a requested restart, to an idle agent."""
    async with await spawn(isolation) as bridge:
        await bridge.send_work(item(0))
        began = time.perf_counter()
        if isolation == "process":
            os.kill(int(str(bridge.health().pid)), signal.SIGKILL)
        else:
            await bridge.restart()
        while bridge.health().generation == 1 or bridge.health().state != "idle":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return (time.perf_counter() - began) * 1e3


def proportional(pid: int) -> float:
    """MiB of a process, each shared page divided by how many share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


async def memory(isolation: Isolation) -> float:
    """MiB that each of 8 agents adds, after an item, without its keeper (about 1 MiB)."""
    before = proportional(os.getpid())
    bridges = [await spawn(isolation) for _ in range(8)]
    for bridge in bridges:
        await bridge.send_work(item(0))
    added = proportional(os.getpid()) - before
    added += sum(proportional(pid) for bridge in bridges if (pid := bridge.health().pid))
    for bridge in bridges:
        await bridge.shutdown()
    return added / 8


KINDS: dict[str, Callable[[Isolation], Awaitable[float]]] = {
    "one item after the other, µs each": alone,
    "64 in flight, items/s": at_once,
    "spawn until idle, ms": start,
    "killed (thread: asked) until the next is idle, ms": restart,
    "memory of each of 8 agents, MiB": memory,
}


async def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    table: dict[str, dict[str, float]] = {}
    await start("process")  # the guard, once for the program
    for kind, measure in KINDS.items():
        rows: dict[Isolation, list[float]] = {"thread": [], "process": []}
        for _ in range(RUNS):
            for isolation, row in rows.items():
                row.append(await measure(isolation))
        table[kind] = {isolation: statistics.median(row) for isolation, row in rows.items()}
        thread, process = table[kind]["thread"], table[kind]["process"]
        ratio = f"{process / thread:.3g}" if thread > 0.1 else ""
        print(f"| {kind} | {thread:,.1f} | {process:,.1f} | {ratio} |", flush=True)
    target = Path("target/bench/workers.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"python": platform.python_version(), "table": table}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
