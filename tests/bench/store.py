"""Durable work beside LangGraph and DBOS on their SQLite stores: the same items, the same agent that does nothing.

``make bench-store`` installs both peers into environments of their own. Every side runs in a process of its
own per round, the rounds of the sides alternate, and the median of the rounds counts. Each side syncs what it
acknowledges (``synchronous`` is FULL on all three); what one of its items means to it:

- mnemosyne: ``Orchestra.submit_work`` and ``Work.result``: submitted, claimed and completed, a commit for each;
- LangGraph: one ``ainvoke`` of a graph with one node, under a thread id of its own, with its SQLite checkpointer;
- DBOS: one workflow, on its SQLite system database.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypedDict

PEERS = {
    "langgraph": ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2", "aiosqlite==0.22.1"],
    "dbos": ["dbos==3.4.0"],
}
SIDES = ("mnemosyne", *PEERS)
IN_FLIGHT = (1, 64)
GOALS = {1: 3.5, 64: 40.0}
ROUNDS = 5
SECONDS = 2.0
CONTEXT = ("the quick brown fox jumps over the lazy dog 0123456789 " * 20)[:1024]

Call = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def make_item(number: int) -> dict[str, Any]:
    return {"id": f"wi-{number:08d}", "description": "nothing", "priority": number % 10, "context": CONTEXT}


async def execute(item: dict[str, Any]) -> dict[str, Any]:
    """The agent that does nothing, the same on every side."""
    return {"success": True, "data": {"id": item["id"], "characters": len(item["context"])}}


async def drive(call: Call, in_flight: int) -> float:
    """Keep so many items under way for so long; items per second."""
    numbers = iter(range(10**9))

    async def caller(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            item = make_item(next(numbers))
            result = await call(item)
            assert result["data"]["id"] == item["id"], result
            done += 1
        return done

    await caller(time.perf_counter() + 0.3)  # what is loaded late is loaded now
    begin = time.perf_counter()
    done = await asyncio.gather(*(caller(begin + SECONDS) for _ in range(in_flight)))
    return sum(done) / (time.perf_counter() - begin)


async def mnemosyne(folder: Path, in_flight: int) -> float:
    from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra
    from mnemosyne.models import Phase, WorkItem
    from pydantic import SecretStr

    class Nothing(AgentExecutionMixin):
        async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
            return await execute({"id": work_dict["id"], "context": work_dict["context"]["text"]})

    agents = {role: AgentSpec(source=Nothing, instances=1, in_flight=in_flight) for role in AgentRole}
    orchestra = Orchestra(
        store=folder / "store.db", agents=agents, base_url="http://127.0.0.1:9", api_key=SecretStr("none")
    )
    async with orchestra:

        async def call(item: dict[str, Any]) -> dict[str, Any]:
            work = await orchestra.submit_work(
                WorkItem(
                    id=item["id"],
                    description=item["description"],
                    phase=Phase.PLAN_TO_ARTIFACTS,
                    role=AgentRole.EXECUTOR,
                    priority=item["priority"],
                    context={"text": item["context"]},
                )
            )
            return {"data": (await work.result()).data}

        return await drive(call, in_flight)


async def langgraph(folder: Path, in_flight: int) -> float:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        item: dict[str, Any]
        result: dict[str, Any]

    async def node(state: State) -> dict[str, Any]:
        return {"result": await execute(state["item"])}

    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    async with AsyncSqliteSaver.from_conn_string(str(folder / "store.db")) as saver:
        graph = builder.compile(checkpointer=saver)

        async def call(item: dict[str, Any]) -> dict[str, Any]:
            out = await graph.ainvoke({"item": item}, {"configurable": {"thread_id": item["id"]}})
            return dict(out["result"])

        return await drive(call, in_flight)


async def dbos(folder: Path, in_flight: int) -> float:
    from dbos import DBOS

    @DBOS.workflow()
    async def work(item: dict[str, Any]) -> dict[str, Any]:
        return await execute(item)

    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{folder / 'store.sqlite'}",
            "run_admin_server": False,
            "log_level": "ERROR",
            "enable_otlp": False,
        }
    )
    logging.getLogger("dbos").setLevel(logging.ERROR)
    DBOS.launch()
    try:
        return await drive(work, in_flight)
    finally:
        DBOS.destroy()


def environment(side: str, folder: Path) -> str:
    """The interpreter of a side; a peer's is installed where it is not there yet."""
    if side == "mnemosyne":
        return sys.executable
    python = folder / side / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / side], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[side]], check=True)
    return str(python)


def once(python: str, side: str, in_flight: int) -> float:
    command = [python, __file__, "--side", side, "--in-flight", str(in_flight)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(answer.splitlines()[-1])["items_per_second"])


def compare(folder: Path) -> list[dict[str, Any]]:
    pythons = {side: environment(side, folder) for side in SIDES}
    rows = []
    for in_flight in IN_FLIGHT:
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                rates[side].append(once(pythons[side], side, in_flight))
        medians = {side: statistics.median(found) for side, found in rates.items()}
        ratio = medians["mnemosyne"] / max(medians[peer] for peer in PEERS)
        rows.append({"in_flight": in_flight, **medians, "ratio": ratio, "goal": GOALS[in_flight], "rounds": rates})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("target/bench"))
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
            rate = asyncio.run(globals()[options.side](Path(folder), options.in_flight))
        print(json.dumps({"items_per_second": rate}), flush=True)
        os._exit(0)  # a peer's threads may not end by themselves
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = compare(options.folder.absolute())
    print("| in flight | mnemosyne | LangGraph | DBOS | beside the faster | goal |\n|---|---|---|---|---|---|")
    for row in rows:
        sides = " | ".join(f"{row[side]:,.0f}/s" for side in SIDES)
        print(f"| {row['in_flight']} | {sides} | {row['ratio']:.1f}x | {row['goal']}x |")
    (options.folder / "store.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
