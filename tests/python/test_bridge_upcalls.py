"""Upcalls in crowds: what many tasks ask of the store at once, while more work arrives."""

import asyncio
from pathlib import Path
from typing import Any

from mnemosyne import (
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    ClaudeAgentBridge,
    Orchestra,
    Phase,
    WorkItem,
)
from pydantic import SecretStr

TASKS = 64
CALLS = 157  # each: 10,048 in all


def item(name: str) -> WorkItem:
    return WorkItem(id=name, description="ask", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR)


class Reserves(AgentExecutionMixin):
    """Begins when all are there, then asks for everything at once. A reservation's number rises with each commit."""

    all_there = asyncio.Barrier(TASKS)

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await self.all_there.wait()
        reserved = await asyncio.gather(*(self.context.reserve(tokens=number + 1) for number in range(CALLS)))
        self.context.progress("reserved")
        return {
            "success": True,
            "data": {
                "numbers": [int(reservation.id.removeprefix("u-")) for reservation in reserved],
                "tokens": [reservation.tokens for reservation in reserved],
            },
        }


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"success": True}


async def test_ten_thousand_upcalls_from_64_tasks_are_answered_in_order_while_work_arrives(tmp_path: Path) -> None:
    spec = AgentSpec(source=Reserves, instances=1, in_flight=TASKS)
    agents = {AgentRole.EXECUTOR: spec}
    orchestra = Orchestra(store=tmp_path / "store.db", agents=agents, api_key=SecretStr("k"))
    async with orchestra, await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=8)) as neighbour:
        work = [await orchestra.submit_work(item(f"w-{number}")) for number in range(TASKS)]
        asking = asyncio.gather(*(one.result() for one in work))
        arrived = 0
        while not asking.done():
            assert (await neighbour.send_work(item(f"n-{arrived}"), timeout=10.0)).success
            arrived += 1
        results = await asking
    assert arrived > 0
    for result in results:
        assert result.data["tokens"] == list(range(1, CALLS + 1))
        # In the order in which the item asked, and each once.
        numbers = result.data["numbers"]
        assert numbers == sorted(set(numbers))
    assert len({number for result in results for number in result.data["numbers"]}) == TASKS * CALLS
