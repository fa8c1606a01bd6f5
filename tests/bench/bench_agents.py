"""Agents of the benchmarks, apart from these, so that a worker process finds them by name and imports nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

from mnemosyne.agents.base_agent import AgentExecutionMixin

DAEMON_SECONDS = "31415926"
"""What a daemon would sleep: how it is found among all processes."""


class Trivial(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"id": work_dict["id"]}}


class Unruly(AgentExecutionMixin):
    """Does its items with the second claim at the latest: else some would take down three agents and be dead.

    What it does with one claim depends on the seed, the item and the claim only.
    """

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        context = work_dict["context"]
        dice = random.Random(f"{context['seed']}/{work_dict['id']}/{self.context.epoch}")
        await asyncio.sleep(dice.random() * 0.02)
        if dice.random() < 0.3:
            # In a session of its own: only the keeper, its subreaper, can know it.
            await asyncio.create_subprocess_exec("sleep", DAEMON_SECONDS, start_new_session=True)
        roll = dice.random() if self.context.epoch == 1 else 1.0
        if roll < 0.10:
            os._exit(3)
        if roll < 0.13:
            time.sleep(3600)  # noqa: ASYNC251 - its loop does nothing more, and its time limit ends its process
        return {"success": True}
