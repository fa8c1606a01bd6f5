"""An agent for the embedding tests that never ends by itself."""

import asyncio

from mnemosyne import AgentExecutionMixin


class Sleeper(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        await asyncio.Event().wait()
