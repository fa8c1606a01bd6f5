"""A million items through one bridge, with a look before and after at everything that could have been left behind.

Usage: ``soak_bridge.py [ITEMS]``; ``make soak-bridge``. Prints what it saw as JSON; exits 1 where something was left.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mnemosyne import AgentExecutionMixin, AgentSpec, ClaudeAgentBridge, MnemosyneError, Phase, WorkItem, WorkResult
from mnemosyne.agents.context import AgentContext
from mnemosyne.models import Usage

IN_FLIGHT = 64
WARM_UP = 15_000  # fills what is bounded: a standalone bridge keeps its newest 20,000 events
GROWTH = 5.0  # MB of RSS that may be added after the warm-up

# Types on the heap count their instances in their reference count.
PAYLOAD_TYPES = (WorkItem, WorkResult, Usage, AgentContext, MnemosyneError)
COUNTS = (*(payload.__name__ for payload in PAYLOAD_TYPES), "agent_tasks", "own_tasks", "threads", "descriptors")
CONTEXT = {"nested": [{"ü": "ß"}, None, True, 1.5, -(2**63)], "text": "x" * 1000}


class Works(AgentExecutionMixin):
    """Every way in which an item can end: quickly, after a wait, badly."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        match work_dict["context"].get("end"):
            case "tasks":
                return {"success": True, "data": {"tasks": len(asyncio.all_tasks())}}
            case "wait":
                await asyncio.sleep(0)
            case "never":
                await asyncio.Event().wait()  # no timer, which asyncio would keep for a while after its cancellation
        return {"success": True, "data": work_dict["context"]}

    async def close(self) -> None:
        pass


def item(name: str, **context: Any) -> WorkItem:
    return WorkItem(
        id=name, description="d" * 60, phase=Phase.PLAN_TO_ARTIFACTS, role="executor", context={**CONTEXT, **context}
    )


async def send(bridge: ClaudeAgentBridge, number: int) -> None:
    """Every hundredth is cancelled, every tenth waits once."""
    if number % 100 == 0:
        sending = asyncio.ensure_future(bridge.send_work(item(f"w-{number}", end="never")))
        await asyncio.sleep(0.001)
        sending.cancel()
        await asyncio.wait([sending])
    else:
        result = await bridge.send_work(item(f"w-{number}", end="wait" if number % 10 == 0 else None))
        assert result.success, result


async def work(bridge: ClaudeAgentBridge, items: int) -> float:
    numbers = iter(range(items))

    async def lane() -> None:
        for number in numbers:
            await send(bridge, number)

    began = time.monotonic()
    async with asyncio.TaskGroup() as lanes:
        for _ in range(IN_FLIGHT):
            lanes.create_task(lane())
    return time.monotonic() - began


async def at_rest() -> None:
    """Wait until nothing more goes away: cancelled work ends a little later than its caller's await."""
    before = -1
    while (now := sum(map(sys.getrefcount, PAYLOAD_TYPES))) != before:
        before = now
        await asyncio.sleep(0.2)
        gc.collect()


async def look(bridge: ClaudeAgentBridge) -> dict[str, Any]:
    """Count what could be left behind, at rest."""
    tasks = (await bridge.send_work(item("tasks", end="tasks"))).data["tasks"]
    await at_rest()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    objects = Counter(type(found).__name__ for found in gc.get_objects())
    return {
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        **{payload.__name__: sys.getrefcount(payload) for payload in PAYLOAD_TYPES},
        "agent_tasks": tasks,
        "own_tasks": len(asyncio.all_tasks()),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": objects["dict"] + objects["list"] + objects["Task"] + objects["Future"] + objects["Context"],
    }


async def main(items: int) -> int:
    spec = AgentSpec(source=Works, in_flight=IN_FLIGHT)
    async with await ClaudeAgentBridge.spawn("executor", spec) as bridge:
        await work(bridge, WARM_UP)
        before = await look(bridge)
        seconds = await work(bridge, items)
        after = await look(bridge)
    left = {key: [before[key], after[key]] for key in COUNTS if after[key] > before[key]}
    if after["rss_mb"] - before["rss_mb"] >= GROWTH:
        left["rss_mb"] = [before["rss_mb"], after["rss_mb"]]
    if after["objects"] - before["objects"] > IN_FLIGHT:
        left["objects"] = [before["objects"], after["objects"]]
    print(json.dumps({"items": items, "items_per_s": round(items / seconds), "before": before, "after": after}))
    if left:
        print(f"left behind: {left}", file=sys.stderr)
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)))
