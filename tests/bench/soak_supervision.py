"""Thousands of restarts of random agents under load; nothing may be lost, done twice, or left behind.

Usage: ``soak_supervision.py [RESTARTS] [SEED]``; ``make soak-supervision``. Prints what it saw as JSON, the seed
included; exits 1 where something is wrong. The restart window is widened, so that chaos does not end in quarantine; all
else is as it is: the store on disk, the agents' loop, the error windows.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
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
from mnemosyne.bridge import SupervisorSpec

AGENTS = 8
LANES = 32
WARM_UP = 200  # restarts before the first look: threads, caches and the store's connections are there by then
SEED = 6


class Unruly(AgentExecutionMixin):
    """Does most of its items; what it does with one claim depends on the seed, the item and the claim only."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if "look" in work_dict["context"]:
            return {"success": True, "data": {"tasks": len(asyncio.all_tasks())}}
        dice = random.Random(f"{work_dict['context']['seed']}/{work_dict['id']}/{self.context.epoch}")
        roll = dice.random()
        await asyncio.sleep(dice.random() * 0.004)
        if roll < 0.05:
            raise RuntimeError(f"{work_dict['id']} had bad luck")
        if roll < 0.06:
            await asyncio.Event().wait()  # until its time limit
        return {"success": True, "data": {"epoch": self.context.epoch}}


def item(name: str, **context: Any) -> WorkItem:
    return WorkItem(
        id=name,
        description=name,
        phase=Phase.PLAN_TO_ARTIFACTS,
        role=AgentRole.EXECUTOR,
        context=context,
        timeout_seconds=1.0,
    )


def executors(tree: Orchestra) -> list[ClaudeAgentBridge]:
    return [agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR]


def restarts(tree: Orchestra) -> int:
    return sum(agent.restarts for agent in tree.health().roles[AgentRole.EXECUTOR].agents)


async def chaos(tree: Orchestra, until: int, dice: random.Random) -> None:
    """Restarts agents: by a person's word, and by filling their error window."""
    while restarts(tree) < until:
        agent = dice.choice(executors(tree))
        try:
            if dice.random() < 0.5:
                await agent.restart("chaos")
            else:
                await asyncio.gather(*(agent.record_error("chaos") for _ in range(5)))
        except MnemosyneError:
            pass  # it is down just now: the next one
        await asyncio.sleep(dice.random() * 0.004)


async def load(tree: Orchestra, stop: asyncio.Event, seed: int, names: Any) -> list[str]:
    """Keeps items under way until told; returns those that were accepted, each with a result."""
    done: list[str] = []

    async def lane() -> None:
        while not stop.is_set():
            name = f"i-{next(names)}"
            work = await tree.submit_work(item(name, seed=seed))
            result = await work.result()
            assert result.success, result
            done.append(name)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(lane())
    return done


async def shake(tree: Orchestra, until: int, seed: int, names: Any, dice: random.Random) -> list[str]:
    stop = asyncio.Event()
    loading = asyncio.ensure_future(load(tree, stop, seed, names))
    shaking = asyncio.gather(*(chaos(tree, until, random.Random(dice.random())) for _ in range(4)))
    await asyncio.wait([loading, shaking], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    await shaking
    return await loading


async def look(tree: Orchestra, names: Any) -> dict[str, int]:
    """Counts what could be left behind, once nothing changes any more."""
    seen: dict[str, int] = {}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        result = await (await tree.submit_work(item(f"look-{next(names)}", look=True))).result()
        now = {
            "agent_tasks": int(result.data["tasks"]),  # type: ignore[arg-type]
            "own_tasks": len(asyncio.all_tasks()),
            "threads": len(os.listdir("/proc/self/task")),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "processes": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        }
        if now == seen:
            return seen
        seen = now
        await asyncio.sleep(0.5)
    return seen


async def completions(tree: Orchestra) -> tuple[Counter[str], Counter[str]]:
    """How often each item was completed, and how often each kind of event was said."""
    completed: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    last = (await (await tree.submit_work(item("the-last", look=True))).result()) and "the-last"
    async for event in tree.events():
        kinds[event.kind] += 1
        if event.kind == "work_completed":
            completed[str(event.item)] += 1
            if event.item == last:
                return completed, kinds
    raise AssertionError("the stream ended")


async def main(count: int, seed: int) -> int:
    dice, names = random.Random(seed), iter(range(10**9))
    spec = AgentSpec(source=Unruly, instances=AGENTS)
    agents = {role: spec if role is AgentRole.EXECUTOR else AgentSpec(source=Unruly, instances=1) for role in AgentRole}
    widened = {AgentRole.EXECUTOR: SupervisorSpec(intensity=1_000_000, period=0.001)}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.db"
        async with Orchestra(
            store=store, agents=agents, model="demo", base_url="http://127.0.0.1:9", supervisors=widened
        ) as tree:
            accepted = await shake(tree, min(WARM_UP, count), seed, names, dice)
            before = await look(tree, names)
            began, at = time.monotonic(), restarts(tree)
            accepted += await shake(tree, at + count, seed, names, dice)
            seconds, restarted = time.monotonic() - began, restarts(tree) - at
            after = await look(tree, names)
            completed, kinds = await completions(tree)
    wrong = {key: [before[key], after[key]] for key in before if after[key] > before[key]}
    if lost := [name for name in accepted if completed[name] == 0]:
        wrong["lost"] = lost  # type: ignore[assignment]
    if twice := [name for name, times in completed.items() if times > 1]:
        wrong["completed twice"] = twice  # type: ignore[assignment]
    said = ("agent_restarted", "agent_failed", "stale_result_dropped", "agent_quarantined", "work_dead")
    print(
        json.dumps(
            {
                "seed": seed,
                "restarts": restarted,
                "restarts_per_s": round(restarted / seconds),
                "items": len(accepted),
                "events": {kind: kinds[kind] for kind in said},
                "before": before,
                "after": after,
            }
        )
    )
    if wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(given + [10_000, SEED][len(given) :]))))
