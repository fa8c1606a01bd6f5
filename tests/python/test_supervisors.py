"""Supervisors and agents as data from Python, and agents that come and go while the tree runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, InvalidInput, Orchestra, WorkItem
from mnemosyne.bridge import SupervisorSpec
from mnemosyne.errors import BridgeClosed
from mnemosyne.models import JsonValue, Phase


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {"success": True, "data": {"said": str(work_dict["description"])}}


class Slow(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        await asyncio.sleep(0.5)
        return {"success": True, "data": {}}


def orchestra(path: Path, spec: AgentSpec, **more: object) -> Orchestra:
    agents = {role: AgentSpec(source=Echo) for role in AgentRole} | {AgentRole.EXECUTOR: spec}
    return Orchestra(store=path / "store.db", agents=agents, model="demo", base_url="http://127.0.0.1:9", **more)


def item(name: str) -> WorkItem:
    return WorkItem(id=name, description=name, phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR)


async def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


async def test_specifications_are_read_back_with_every_default(tmp_path: Path) -> None:
    spec = AgentSpec(source=Echo, instances=2, shutdown="infinity", restart="transient", config={"api_key": "sk-none"})
    line = SupervisorSpec(strategy="rest_for_one", intensity=2, period=10)
    async with orchestra(tmp_path, spec, supervisors={AgentRole.EXECUTOR: line}) as tree:
        views = await tree.supervisors()
    assert views[AgentRole.EXECUTOR].supervisor == {"strategy": "rest_for_one", "intensity": 2, "period": 10.0}
    assert views[AgentRole.REVIEWER].supervisor == {"strategy": "pool", "intensity": 5, "period": 300.0}
    assert [child.id for child in views[AgentRole.EXECUTOR].children] == ["executor-1", "executor-2"]
    child = views[AgentRole.EXECUTOR].children[0].model_dump(exclude={"id", "role", "source"})
    assert child == {
        "in_flight": 1,
        "restart": "transient",
        "shutdown": "infinity",
        "isolation": "thread",
        "limits": {"memory_mb": None, "cpu_seconds": None},
    }
    assert "sk-none" not in str(views)


async def test_each_wrong_key_has_its_own_error_and_nothing_is_started(tmp_path: Path) -> None:
    faulty = AgentSpec(source=Echo, in_flight=0, restart="always", shutdown=-1, limits={"disk": 1})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as refused:
        async with orchestra(tmp_path, faulty):
            pass
    assert (refused.value.code, str(refused.value.args[0])[:6]) == ("MN-0109", "4 keys")
    reason = str(refused.value.reason)
    assert all(f"{key} is " in reason for key in ("in_flight", "restart", "shutdown", "limits.disk")), reason
    supervisor = SupervisorSpec(strategy="all_for_one", intensity=-1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="2 keys of the supervisor"):
        async with orchestra(tmp_path, AgentSpec(source=Echo), supervisors={AgentRole.EXECUTOR: supervisor}):
            pass


async def test_a_pool_is_scaled_and_what_is_ended_finishes_its_work(tmp_path: Path) -> None:
    async with orchestra(tmp_path, AgentSpec(source=Slow, instances=2)) as tree:
        executors = lambda: [agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR]  # noqa: E731
        await tree.scale(AgentRole.EXECUTOR, 4)
        await until("four are idle", lambda: [agent.health().state for agent in executors()] == ["idle"] * 4)
        work = [await tree.submit_work(item(f"w-{number}")) for number in range(4)]
        await until("four are busy", lambda: [agent.health().state for agent in executors()] == ["busy"] * 4)
        gone = executors()[3]
        await tree.scale(AgentRole.EXECUTOR, 1)
        assert [agent.agent_id for agent in executors()] == ["executor-1"]
        assert all([(await one.result()).success for one in work])
        with pytest.raises(BridgeClosed):
            gone.health()
        with pytest.raises(InvalidInput) as refused:
            await tree.scale(AgentRole.EXECUTOR, -1)
        assert refused.value.code == "MN-0361"


async def test_an_agent_that_was_stopped_is_kept_and_started_once_more(tmp_path: Path) -> None:
    async with orchestra(tmp_path, AgentSpec(source=Echo, instances=1)) as tree:
        agent = next(agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR)
        # One that is ended before its first generation has none.
        await until("its first generation is there", lambda: agent.health().generation == 1)
        await agent.shutdown()
        assert agent.health().state == "stopped"
        again = next(agent for agent in tree.agents() if agent.role is AgentRole.EXECUTOR)
        assert (await again.restart("wanted again")).generation == 2
        assert (await again.send_work(item("direct"))).data == {"said": "direct"}
