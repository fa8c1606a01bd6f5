"""An executor for tests that begins when three more of its kind have work: it ends only if four are at work at once."""

import asyncio

from mnemosyne import AgentExecutionMixin, create_agent


class Together(AgentExecutionMixin):
    barrier = asyncio.Barrier(4)

    async def execute_work(self, work_dict):
        await asyncio.wait_for(type(self).barrier.wait(), 30)
        return await create_agent("executor", self.config).execute_work(work_dict)
