"""An agent for the embedding tests that gives back what it was given."""

from mnemosyne import AgentExecutionMixin


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        return {"success": True, "data": work_dict["context"]}
