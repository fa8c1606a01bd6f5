"""What supervision costs: memory and time of idle agents, and how soon an agent works again after a crash.

Usage: ``supervision.py``; ``make bench-supervision``. Prints the tables of docs/performance.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import tempfile
import time
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

from mnemosyne import (
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    ClaudeAgentBridge,
    MnemosyneError,
    Orchestra,
    Phase,
    WorkItem,
)
from mnemosyne.agents.agent_factory import make_agent
from mnemosyne.bridge import SupervisorSpec

CROWDS = (10, 100, 1_000)
ROUNDS = 5
FIRST_CRASHES = 200
LATER_CRASHES = 4  # of each agent: the delays are at most 0.5, 1, 2 and 4 s
LATER_AGENTS = 25
PEOPLE = 1_000  # Python objects whose memory is measured


class Idle(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"].get("crash"):
            raise RuntimeError("as told")
        return {"success": True, "data": {}}


def item(**context: Any) -> WorkItem:
    return WorkItem(
        id="direct", description="direct", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, context=context
    )


def orchestra(folder: str) -> Orchestra:
    none = {role: AgentSpec(source=Idle, instances=1) for role in AgentRole}
    wide = {AgentRole.EXECUTOR: SupervisorSpec(intensity=1_000)}
    return Orchestra(
        store=Path(folder) / "store.db", agents=none, model="demo", base_url="http://127.0.0.1:9", supervisors=wide
    )


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def until_idle(tree: Orchestra, count: int) -> None:
    """Poll the youngest agent, which starts last: to ask a thousand is work for the interpreter that starts them."""
    youngest = [agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR][-1]
    while youngest.health().state != "idle":  # noqa: ASYNC110 - polling a condition
        await asyncio.sleep(0.001)
    while [one.state for one in tree.health().roles[AgentRole.EXECUTOR].agents] != ["idle"] * count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def crowd(tree: Orchestra, count: int) -> tuple[float, float, float]:
    """Start and stop seconds of so many agents beside the one that is there, and bytes of each."""
    before, began = resident(), time.perf_counter()
    await tree.scale(AgentRole.EXECUTOR, count + 1)
    await until_idle(tree, count + 1)
    started = time.perf_counter() - began
    size = (resident() - before) / count
    began = time.perf_counter()
    await tree.scale(AgentRole.EXECUTOR, 1)
    return started, time.perf_counter() - began, size


def object_size() -> float:
    """Bytes of one agent's Python object, as its host makes it."""
    tracemalloc.start()
    kept = [make_agent(Idle, {}) for _ in range(PEOPLE)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(kept)


async def works_again(agent: ClaudeAgentBridge) -> None:
    while True:
        try:
            await agent.send_work(item())
            return
        except MnemosyneError:
            await asyncio.sleep(0.001)


async def fill_window(agent: ClaudeAgentBridge) -> int:
    """Five errors; the generation that the fifth ends."""
    generation = agent.generation
    for _ in range(5):
        with contextlib.suppress(MnemosyneError):
            await agent.send_work(item(crash=True))
    return generation


async def crashes(tree: Orchestra) -> tuple[list[float], list[tuple[float, float]]]:
    """Seconds from the fifth error to the next result, for first crashes; announced and real delays of later ones."""
    first: list[float] = []
    for _ in range(FIRST_CRASHES):
        agent = await tree.add_agent(AgentRole.EXECUTOR, AgentSpec(source=Idle, restart="permanent", in_flight=2))
        await works_again(agent)
        await fill_window(agent)
        began = time.perf_counter()
        await works_again(agent)
        first.append(time.perf_counter() - began)
        await agent.shutdown(timeout=0)
    agents = [
        await tree.add_agent(AgentRole.EXECUTOR, AgentSpec(source=Idle, in_flight=2)) for _ in range(LATER_AGENTS)
    ]
    return first, [pair for pairs in await asyncio.gather(*map(later_crashes, agents)) for pair in pairs]


async def later_crashes(agent: ClaudeAgentBridge) -> list[tuple[float, float]]:
    """Announced and real delays of the restarts of one agent, from the stored events."""
    await works_again(agent)
    for _ in range(LATER_CRASHES + 1):
        await fill_window(agent)
        await works_again(agent)
    announced: dict[int, tuple[datetime, float]] = {}
    later: list[tuple[float, float]] = []
    async for event in agent.events():
        at = datetime.fromisoformat(event.at)
        if event.kind == "agent_restarted":
            announced[int(event.generation or 0)] = (at, float(event.data["delay_seconds"]))  # type: ignore[arg-type]
        if event.kind == "agent_started" and event.generation in announced:
            said_at, delay = announced[event.generation]
            if delay > 0:
                later.append((delay, (at - said_at).total_seconds()))
            if event.generation == LATER_CRASHES + 2:
                return later
    raise AssertionError("the stream ended")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with orchestra(folder) as tree:
            await crowd(tree, 50)  # what is made once: threads, caches, the first pages
            print("| idle agents | start, ms | stop, ms | µs each: start | stop | bytes each, beyond the object |")
            print("|---|---|---|---|---|---|")
            own = object_size()
            for count in CROWDS:
                rounds = [await crowd(tree, count) for _ in range(ROUNDS)]
                start, stop = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
                # Pages that the allocator keeps from a round before count for nothing in the next: the first tells.
                size = (
                    f"{max(size for _, _, size in rounds) - own:,.0f}"
                    if count >= CROWDS[-1]
                    else "below a page's noise"
                )
                each = f"{start / count * 1e6:.0f} | {stop / count * 1e6:.0f}"
                print(f"| {count:,} | {start * 1e3:.1f} | {stop * 1e3:.1f} | {each} | {size} |")
            print(f"\nthe object itself: {own:,.0f} bytes")
        async with orchestra(folder) as tree:
            first, later = await crashes(tree)
    first.sort()
    p50, p99 = first[len(first) // 2] * 1e3, first[int(len(first) * 0.99)] * 1e3
    print(f"\nfirst crash to the next result: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {first[-1] * 1e3:.1f} ms")
    late = sorted(real - delay for delay, real in later)
    longest = max(delay for delay, _ in later)
    print(
        f"{len(late)} later crashes, announced delays up to {longest * 1e3:.0f} ms, started so much after these: "
        f"p50 {late[len(late) // 2] * 1e3:.1f} ms, p99 {late[int(len(late) * 0.99)] * 1e3:.1f} ms, "
        f"worst {late[-1] * 1e3:.1f} ms, earliest {late[0] * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    asyncio.run(main())
