"""Two views of the same work: the collector's, of one process, and the store's, of all time. They agree.

The store's is added up from events; here it is held to the rows, which are written by other statements.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from command import DemoServer, Sandbox, until

ITEMS = int(os.environ.get("MNEMOSYNE_STATS_ITEMS", "1000"))

WORKER = """
import asyncio, json, sys
from pathlib import Path
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, Usage, WorkItem
from mnemosyne.metrics import get_metrics_collector

class Counting(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        number = int(work_dict["id"].rpartition("-")[2])
        if number % 3 == 0:
            reservation = await self.context.reserve(tokens=100)
            await self.context.settle(reservation, Usage(turns=1, input_tokens=7, output_tokens=number % 5))
        if number % 20 == 19:
            return {"success": False, "error": "it could not be done"}
        return {"success": True, "data": {}}

async def main(store, count, submit):
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Counting, instances=4)}
    async with Orchestra(store=Path(store), agents=agents, model="demo") as orchestra:
        about = {"description": "count", "phase": "plan_to_artifacts", "role": "executor"}
        items = [WorkItem(id=f"w-{n}", **about) for n in range(count)]
        if submit:
            await asyncio.gather(*(orchestra.submit_work(item, idempotency_key=item.id) for item in items))
            print("submitted", flush=True)
        done = 0
        async for event in orchestra.events():
            done += event.kind in ("work_completed", "work_failed")
            if done >= count // 5 and submit:
                print("a fifth is done", flush=True)
                submit = False
            if done == count:
                break
    print(json.dumps(get_metrics_collector().snapshot()["items"]), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "submit"))
"""


def worker(store: Path, log: Path, how: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(store), str(ITEMS), how], stdout=out, stderr=out)


def stats(sandbox: Sandbox) -> dict[str, Any]:
    said = sandbox.run("stats", "--json")
    assert said.exit_code == 0, said.err
    return said.lines[-1]


def query(store: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        return database.execute(text).fetchall()


def test_dur_2_the_sums_equal_the_rows_after_a_thousand_items_with_a_kill_in_between(sandbox: Sandbox) -> None:
    sandbox.store.parent.mkdir(parents=True, exist_ok=True)
    log = sandbox.root / "worker.log"
    killed = worker(sandbox.store, log, "submit")
    until(lambda: "a fifth is done" in log.read_text(), "a fifth is done", 120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    ended = worker(sandbox.store, log, "go on")
    assert ended.wait(180) == 0, log.read_text()[-2000:]
    found = stats(sandbox)
    states = dict(query(sandbox.store, "select state, count(*) from items group by state"))
    claims = query(sandbox.store, "select sum(epoch) from items")[0][0]  # every claim raises it
    assert found["claims"]["started"] == claims
    assert (found["claims"]["completed"], found["claims"]["failed"]) == (states["done"], states["failed"])
    assert (states["done"], states["failed"]) == (ITEMS - ITEMS // 20, ITEMS // 20)
    ended_claims = sum(count for name, count in found["claims"].items() if name != "started")
    assert ended_claims == claims, "each claim has one end"
    assert found["agents"]["executor"] == found["claims"]


def test_the_collector_of_a_process_agrees_with_the_store_over_its_life(sandbox: Sandbox) -> None:
    sandbox.store.parent.mkdir(parents=True, exist_ok=True)
    log = sandbox.root / "worker.log"
    assert worker(sandbox.store, log, "submit").wait(180) == 0, log.read_text()[-2000:]
    collector = json.loads(log.read_text().splitlines()[-1])
    claims = stats(sandbox)["claims"]
    assert (collector["started"], collector["succeeded"], collector["failed"], collector["under_way"]) == (
        claims["started"],
        claims["completed"],
        claims["failed"],
        0,
    )


def test_the_sums_of_a_run_are_those_of_its_summary(sandbox: Sandbox, server: DemoServer) -> None:
    summary = sandbox.demo("--base-url", server.url).summary
    found = stats(sandbox)
    usage = {name: value for name, value in summary["usage"].items() if name != "unknown_turns"}
    assert found["usage"] == usage
    assert (found["runs"], found["tasks"]) == ({"done": 1}, {"accepted": 4})
    assert found["reviews"] == {"passed": 4, "rejected": sum(task["attempts"] - 1 for task in summary["tasks"])}
    plain = sandbox.run("stats")
    assert plain.exit_code == 0
    assert f"{usage['input_tokens']:,} in" in plain.out


def test_a_store_that_does_not_exist_has_seen_nothing_and_is_not_made(sandbox: Sandbox) -> None:
    assert stats(sandbox)["events"] == 0
    assert not sandbox.store.exists()
