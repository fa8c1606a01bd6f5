"""Thousands of restarts of worker processes under load; nothing may be lost, done twice, or left behind.

Usage: ``soak_workers.py [RESTARTS] [SEED]``; ``make soak-workers``. Prints what it saw as JSON, the seed included;
exits 1 where something is wrong. The restart window is widened, so that chaos does not end in quarantine; all else is
as it is: real processes, the guard, the store on disk. Workers are killed from outside, end by themselves, run into
their time limit in a call that does not return, and are restarted by a person's word; every third item leaves a daemon
behind, which lives no longer than its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench_agents import DAEMON_SECONDS
from mnemosyne import AgentError, AgentRole, AgentSpec, MnemosyneError, Orchestra, Phase, WorkItem
from mnemosyne.bridge import SupervisorSpec

AGENTS = 6
LANES = 8
WARM_UP = 30  # restarts before the first look
SEED = 6
AGENT = "bench_agents:Unruly"
QUIET_SECONDS = 0.5  # two looks so far apart that see the same are an end


def item(name: str, seed: int) -> WorkItem:
    return WorkItem(
        id=name,
        description=name,
        phase=Phase.PLAN_TO_ARTIFACTS,
        role=AgentRole.EXECUTOR,
        context={"seed": seed},
        timeout_seconds=1.0,
    )


def restarts(tree: Orchestra) -> int:
    return sum(agent.restarts for agent in tree.health().roles[AgentRole.EXECUTOR].agents)


async def chaos(tree: Orchestra, until: int, dice: random.Random) -> None:
    """Kills workers, and now and then restarts one by a person's word."""
    while restarts(tree) < until:
        agent = dice.choice([agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR])
        pid = agent.health().pid
        with contextlib.suppress(MnemosyneError, ProcessLookupError):
            if dice.random() < 0.2:
                await agent.restart("chaos")
            elif pid is not None:
                os.kill(pid, dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
        await asyncio.sleep(dice.random() * 0.4)  # so that most items meet it at most once


async def shake(tree: Orchestra, until: int, seed: int, names: itertools.count[int]) -> list[str]:
    """Keep items under way while workers are restarted; return those that were accepted, each of which has ended."""
    stop, accepted = asyncio.Event(), list[str]()

    async def lane() -> None:
        while not stop.is_set():
            name = f"i-{next(names)}"
            work = await tree.submit_work(item(name, seed))
            accepted.append(name)
            with contextlib.suppress(AgentError):  # dead: chaos met it three times
                await work.result()

    async with asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(lane())
        await chaos(tree, until, random.Random(seed))
        stop.set()
    return accepted


def children(pid: int) -> list[int]:
    """All processes below one: its own children, and theirs; daemons too, because who adopts them is one of these."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += [int(one) for one in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found + [below for child in found for below in children(child)]


def argument(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def daemons() -> list[int]:
    """All processes that the agents' items left behind, whoever has adopted them."""
    everywhere = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in everywhere if DAEMON_SECONDS.encode() in argument(pid)]


def left(folder: Path) -> dict[str, int]:
    """Count what could be left behind, here and in the guard."""
    below = children(os.getpid())
    guard = next(pid for pid in below if b"guard.py" in argument(pid))
    return {
        "processes": len(set(below) - set(daemons())),
        "daemons that nobody could end": len(set(daemons()) - set(below)),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "tasks": len(asyncio.all_tasks()),
        "descriptors of the guard": len(os.listdir(f"/proc/{guard}/fd")),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
        "files beside the store": sum(len(files) for _, _, files in os.walk(folder)),
    }


async def look(tree: Orchestra, folder: Path) -> dict[str, int]:
    """Return the counts once nothing changes any more."""
    deadline, seen = time.monotonic() + 60, dict[str, int]()
    while time.monotonic() < deadline:
        idle = all(agent.state == "idle" for agent in tree.health().roles[AgentRole.EXECUTOR].agents)
        now = left(folder)
        if idle and now == seen:
            break
        seen = now
        await asyncio.sleep(QUIET_SECONDS)
    return seen


async def after_the_end() -> dict[str, int]:
    """Count what there is once the tree has ended; the guard lives as long as this process does."""
    deadline, gone = time.monotonic() + 5, dict[str, int]()
    while time.monotonic() < deadline:
        below = children(os.getpid())
        gone = {"processes": sum(b"guard.py" not in argument(pid) for pid in below), "daemons": len(daemons())}
        if not any(gone.values()):
            break
        await asyncio.sleep(0.05)
    return gone


async def said(tree: Orchestra, last: str) -> tuple[Counter[str], Counter[str]]:
    """How often each item came to its end, and how often each kind of event was said."""
    ended, kinds = Counter[str](), Counter[str]()
    async for event in tree.events():
        kinds[event.kind] += 1
        if event.kind in ("work_completed", "work_dead"):
            ended[str(event.item)] += 1
            if event.item == last:
                return ended, kinds
    raise AssertionError("the stream ended")


async def main(count: int, seed: int) -> int:
    names = itertools.count()
    spec = AgentSpec(source=AGENT, instances=AGENTS, isolation="process")
    others = {role: AgentSpec(source=AGENT, instances=1) for role in AgentRole if role is not AgentRole.EXECUTOR}
    widened = {AgentRole.EXECUTOR: SupervisorSpec(intensity=1_000_000, period=0.001)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "temporary")
        (folder / "temporary").mkdir()
        (folder / "state").mkdir()
        async with Orchestra(
            store=folder / "state" / "store.db",
            agents={**others, AgentRole.EXECUTOR: spec},
            model="demo",
            base_url="http://127.0.0.1:9",
            supervisors=widened,
        ) as tree:
            accepted = await shake(tree, min(WARM_UP, count), seed, names)
            before = await look(tree, folder / "state")
            began, at = time.monotonic(), restarts(tree)
            accepted += await shake(tree, at + count, seed, names)
            seconds, restarted = time.monotonic() - began, restarts(tree) - at
            after = await look(tree, folder / "state")
            last = item(f"i-{next(names)}", seed)
            await (await tree.submit_work(last)).result()
            ended, kinds = await said(tree, last.id)
        gone = await after_the_end()
    wrong: dict[str, object] = {key: [before[key], after[key]] for key in before if after[key] > before[key]}
    wrong |= {f"{key} after the end": number for key, number in gone.items() if number}
    if lost := [name for name in accepted if ended[name] == 0]:
        wrong["lost"] = lost
    if twice := [name for name, times in ended.items() if times > 1]:
        wrong["ended twice"] = twice
    kept = ("agent_restarted", "agent_failed", "stale_result_dropped", "agent_quarantined", "work_dead")
    print(
        json.dumps(
            {
                "seed": seed,
                "restarts": restarted,
                "restarts_per_s": round(restarted / seconds, 1),
                "items": len(accepted),
                "events": {kind: kinds[kind] for kind in kept},
                "before": before,
                "after": after,
                "after the end": gone,
            }
        )
    )
    if wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of every item whose agent goes down
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(given + [2_000, SEED][len(given) :]))))
