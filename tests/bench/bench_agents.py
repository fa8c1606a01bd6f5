"""Agents of the benchmarks, apart from these, so that a worker process finds them by name and imports nothing else."""

from __future__ import annotations

from typing import Any

from mnemosyne.agents.base_agent import AgentExecutionMixin


class Trivial(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"id": work_dict["id"]}}
