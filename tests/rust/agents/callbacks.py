"""Agents for the embedding tests that call back into the Rust program: see ``tests/rust/hangs.rs``."""

import asyncio

import rust_callbacks
from mnemosyne import AgentExecutionMixin


class CallsBack(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        function = getattr(rust_callbacks, work_dict["context"]["function"])
        if work_dict["context"].get("from_the_loop"):
            asyncio.get_running_loop().call_soon(function)
            await asyncio.sleep(0.05)
        else:
            function()
        return {"success": True}


class PlainCallsBack(AgentExecutionMixin):
    def execute_work(self, work_dict):
        getattr(rust_callbacks, work_dict["context"]["function"])()
        return {"success": True}


class Sleeps(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        rust_callbacks.working()
        await asyncio.sleep(3600)
