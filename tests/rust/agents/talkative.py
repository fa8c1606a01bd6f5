"""An agent for tests that says its key in an error."""

from mnemosyne import AgentExecutionMixin


class Talkative(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        raise RuntimeError(f"refused with {self.config['api_key']}")
