"""What the scenarios share: items, waiting, and agents that behave."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, ClassVar

from mnemosyne import AgentExecutionMixin, AgentRole, Phase, WorkItem


def say(*words: object) -> None:
    print(*words, flush=True)


def item(name: str = "w-1", **fields: Any) -> WorkItem:
    return WorkItem(id=name, description="do it", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, **fields)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def until_sync(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)  # polling a condition with a deadline


class Echo(AgentExecutionMixin):
    loops: ClassVar[list[asyncio.AbstractEventLoop]] = []  # kept, so that each has a number of its own

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        if loop not in self.loops:
            self.loops.append(loop)
        return {"success": True, "data": {"context": work_dict["context"], "loop": self.loops.index(loop)}}


class Sleeps(AgentExecutionMixin):
    working: ClassVar[set[str]] = set()
    cancelled: ClassVar[set[str]] = set()

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.working.add(work_dict["id"])
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.add(work_dict["id"])
            raise
        return {"success": True}


class IgnoresCancel(AgentExecutionMixin):
    """As a ``try: ... except: pass`` around every await does."""

    working: ClassVar[set[str]] = set()

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"].get("quick"):
            return {"success": True}
        self.working.add(work_dict["id"])
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


class BlocksInC(AgentExecutionMixin):
    """Holds the whole loop thread up, but not the GIL."""

    working: ClassVar[set[str]] = set()

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.working.add(work_dict["id"])
        time.sleep(work_dict["context"].get("seconds", 3600))  # noqa: ASYNC251
        return {"success": True}


class PlainBlocksInC(AgentExecutionMixin):
    """Holds one thread of the pool for plain functions up."""

    working: ClassVar[set[str]] = set()

    def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        self.working.add(work_dict["id"])
        time.sleep(work_dict["context"].get("seconds", 3600))
        return {"success": True}
