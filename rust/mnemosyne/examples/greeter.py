"""A Python agent for `embed.rs`: all that a user writes is one method."""

import asyncio

from mnemosyne import AgentExecutionMixin


class Greeter(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        await asyncio.sleep(0)  # an agent is asyncio code like any other
        return {"success": True, "data": {"greeting": f"asked to {work_dict['description']}: hello from Python"}}
