"""``Orchestra``: durable items and runs over a real store, with small agents in the place of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mnemosyne import (
    AgentError,
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    BridgeClosed,
    Budget,
    BudgetExceeded,
    InvalidInput,
    Orchestra,
    Phase,
    Plan,
    WorkItem,
)
from mnemosyne.models import Acceptance, AgentHealth, PlanTask, RoleHealth, SystemHealth, Usage
from mnemosyne.orchestra import read_events, show_run
from pydantic import JsonValue, SecretStr

KEY = SecretStr("test-key-that-is-never-used")


def item(name: str, **fields: Any) -> WorkItem:
    return WorkItem(id=name, description=f"do {name}", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, **fields)


def orchestra(store: Path, executor: type, **more: Any) -> Orchestra:
    agents = {AgentRole.EXECUTOR: AgentSpec(source=executor), **more.pop("agents", {})}
    return Orchestra(store=store, agents=agents, api_key=KEY, max_concurrent=more.pop("max_concurrent", 1), **more)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "a.txt").write_text("a\n")
    return folder


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"context": work_dict["context"], "epoch": self.context.epoch}}


class Fails(AgentExecutionMixin):
    told = threading.Event()

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await until(self.told.is_set)
        return {"success": False, "error": "not today"}


class Hangs(AgentExecutionMixin):
    working: ClassVar[list[str]] = []
    cancelled: ClassVar[list[str]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.working.append(work_dict["id"])
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.append(work_dict["id"])
            raise
        return {"success": True}


async def test_dur_1_a_durable_item_gives_its_result_also_to_a_new_orchestra(store: Path) -> None:
    async with orchestra(store, Echo) as first:
        work = await first.submit_work(item("w-1", context={"ü": [1, None]}), idempotency_key="key")
        result = await asyncio.wait_for(work.result(), 10)
        assert result.data == {"context": {"ü": [1, None]}, "epoch": 1}
    async with orchestra(store, Echo) as second:
        again = await second.submit_work(item("w-2"), idempotency_key="key")
        assert again.id == "w-1"
        assert await asyncio.wait_for(again.result(), 10) == result
        with pytest.raises(InvalidInput, match="w-1"):
            await second.submit_work(item("w-1"))


async def test_an_item_that_waits_is_done_by_the_next_orchestra_on_the_store(store: Path) -> None:
    Hangs.working.clear()
    async with orchestra(store, Hangs) as first:
        await first.submit_work(item("w-1"))
        await first.submit_work(item("w-2", depends_on=["w-1"]))
        await until(lambda: Hangs.working == ["w-1"])
        assert not await first.drain(0.0)
    async with orchestra(store, Echo) as second:
        kinds = {name: [] for name in ("w-1", "w-2")}  # type: dict[str, list[str]]
        async for event in second.events():
            if event.item in kinds:
                kinds[event.item].append(event.kind)
                if event.item == "w-2" and event.kind == "work_completed":
                    break
    assert [kind for kind in kinds["w-1"] if kind.startswith("work_")] == [
        "work_started",
        "work_started",
        "work_completed",
    ]


async def test_a_result_that_is_no_success_is_a_value_and_what_waits_for_it_is_cancelled(store: Path) -> None:
    async with orchestra(store, Fails) as opened:
        work = await opened.submit_work(item("w-1"))
        dependent = await opened.submit_work(item("w-2", depends_on=["w-1"]))
        Fails.told.set()  # not before: what depends on an item that has failed already is refused
        result = await asyncio.wait_for(work.result(), 10)
        assert (result.success, result.error) == (False, "not today")
        with pytest.raises(AgentError, match="w-2 is cancelled"):
            await asyncio.wait_for(dependent.result(), 10)


async def test_kill_1_a_cancelled_item_stops_its_agent_at_once(store: Path) -> None:
    Hangs.working.clear()
    Hangs.cancelled.clear()
    async with orchestra(store, Hangs) as opened:
        work = await opened.submit_work(item("w-1"))
        await until(lambda: Hangs.working == ["w-1"])
        await work.cancel("not needed")
        await until(lambda: Hangs.cancelled == ["w-1"], seconds=2)
        with pytest.raises(AgentError, match="w-1 is cancelled") as caught:
            await asyncio.wait_for(work.result(), 10)
        assert "not needed" in caught.value.reason
        await until(lambda: opened.health().roles[AgentRole.EXECUTOR].agents[0].state == "idle")
        await work.cancel()  # one that has ended is left alone


async def test_agents_are_added_at_once_and_each_gets_a_name_of_its_own(store: Path) -> None:
    async with orchestra(store, Echo) as opened:
        bridges = await asyncio.gather(
            *(opened.add_agent(AgentRole.EXECUTOR, AgentSpec(source=Echo)) for _ in range(16))
        )
        assert len({bridge.agent_id for bridge in bridges}) == 16
        assert (await bridges[-1].send_work(item("direct"))).success
        assert len([agent for agent in opened.agents() if agent.role is AgentRole.EXECUTOR]) == 17
        events = bridges[0].events()
        assert (await anext(events)).kind == "agent_started"
    assert [event.kind async for event in events] == []
    with pytest.raises(BridgeClosed):
        opened.health()


async def test_health_has_the_keys_of_the_contract(store: Path) -> None:
    async with orchestra(store, Echo, max_concurrent=2) as opened:
        await until(lambda: all(bridge.health().state == "idle" for bridge in opened.agents()))
        health = opened.health()
        assert {role: len(found.agents) for role, found in health.roles.items()} == {
            AgentRole.ORCHESTRATOR: 1,
            AgentRole.OPTIMIZER: 2,
            AgentRole.REVIEWER: 2,
            AgentRole.EXECUTOR: 2,
        }
        assert (health.roles[AgentRole.EXECUTOR].state, health.roles[AgentRole.EXECUTOR].reason) == ("running", None)
        assert set(health.queue) == {"ready", "running", "waiting"}
        assert health.store == {"state": "available", "reason": None}
        agent = health.roles[AgentRole.EXECUTOR].agents[0]
        assert (agent.agent_id, agent.generation, agent.restarts, agent.is_healthy) == ("executor-1", 1, 0, True)
        assert (agent.error_count, agent.last_error, agent.should_restart) == (0, None, False)


async def test_health_has_the_same_fields_where_rust_says_it_and_where_its_models_read_it(store: Path) -> None:
    # The models overlook a field that they do not know, so that an older client reads a newer health.
    async with orchestra(store, Echo) as opened:
        said: Any = opened._open_handle().health()
        assert set(said) == set(SystemHealth.model_fields)
        for role in said["roles"].values():
            assert set(role) == set(RoleHealth.model_fields)
            for agent in role["agents"]:
                assert set(agent) == set(AgentHealth.model_fields)
        assert sum(len(role["agents"]) for role in said["roles"].values()) >= 4


async def test_dur_3_events_are_replayed_without_gaps_and_end_with_the_orchestra(store: Path) -> None:
    seen: list[int] = []
    async with orchestra(store, Echo) as opened:

        async def follow() -> None:
            async for event in opened.events():
                seen.append(event.sequence)

        following = asyncio.create_task(follow())
        works = [await opened.submit_work(item(f"w-{number}")) for number in range(20)]
        await asyncio.gather(*(work.result() for work in works))
    await asyncio.wait_for(following, 10)
    async with orchestra(store, Echo) as again:
        replayed = []
        async for event in again.events():
            replayed.append(event.sequence)
            if len(replayed) == len(seen):
                break
    assert seen == replayed == list(range(1, len(seen) + 1))


async def test_two_orchestras_in_one_process_do_not_mix_their_items(tmp_path: Path) -> None:
    async with orchestra(tmp_path / "a.db", Echo) as first, orchestra(tmp_path / "b.db", Echo) as second:
        works = []
        for number in range(30):
            for name, opened in (("a", first), ("b", second)):
                works.append((name, await opened.submit_work(item(f"w-{number}", context={"of": name}))))
        results = await asyncio.gather(*(work.result() for _, work in works))
    assert [result.data["context"] for result in results] == [{"of": name} for name, _ in works]


class Thrifty(AgentExecutionMixin):
    refused: ClassVar[list[str]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        reservation = await self.context.reserve(tokens=60)
        try:
            await self.context.reserve(tokens=60)
        except BudgetExceeded as error:
            self.refused.append(error.code)
            raise
        return {"success": True, "data": {"reservation": reservation.id}}


async def test_budget_1_a_reservation_that_does_not_fit_stops_the_run(store: Path, workspace: Path) -> None:
    Thrifty.refused.clear()
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Thrifty)}
    async with orchestra(store, Echo, agents=agents) as opened:
        run = await opened.submit("spend", workspace=workspace, budget=Budget(tokens=100))
        result = await asyncio.wait_for(run.result(), 20)
        assert (result.state, result.exit_code) == ("budget", 4)
        assert Thrifty.refused == ["MN-0501"]
        own = [event.kind async for event in run.events() if event.run == run.id]
        assert (own[0], own[-1]) == ("run_submitted", "budget_exceeded")
        assert opened.health().roles[AgentRole.ORCHESTRATOR].agents[0].error_count == 0


class Spends(AgentExecutionMixin):
    """Two of them want to spend more than there is at once, and less than there is one after the other."""

    asking: ClassVar[list[str]] = []
    order: ClassVar[list[str]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        me = self.context.agent_id

        async def spend() -> tuple[JsonValue, Usage | None]:
            self.order.append(f"{me} begins")
            # Until the other one asks as well; what it asks for cannot be there before this ends.
            await until(lambda: len(self.asking) == 2)
            for number in range(3):
                await self.context.artifact(f"note-{number}", "the other one's request is with the store")
            self.order.append(f"{me} ends")
            return None, Usage(turns=1, input_tokens=30)

        self.asking.append(me)
        await self.context.journaled(
            "turn", kind="turn", input=None, function=spend, reserve={"tokens": 60, "usd": None}
        )
        return {"success": True, "data": {"pack": "files"}}


async def test_budget_1_whoever_fits_once_another_has_ended_waits_and_does_not_stop_the_run(
    store: Path, workspace: Path
) -> None:
    Spends.asking.clear()
    Spends.order.clear()
    agents = {AgentRole.OPTIMIZER: AgentSpec(source=Spends)}
    command = [Acceptance(command="test -f done")]
    tasks = [PlanTask(id=name, title=name, file_scope=[name], acceptance=command) for name in ("one", "two")]
    async with orchestra(store, Hangs, agents=agents, max_concurrent=2) as opened:
        run = await opened.submit(Plan(tasks=tasks), workspace=workspace, budget=Budget(tokens=100))
        await until(lambda: len(Spends.order) == 4, 20)
        first, second = Spends.asking
        if Spends.order[0] != f"{first} begins":
            first, second = second, first
        assert Spends.order == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
        await run.cancel()
        spent = (await run.result()).spent
        assert (spent["tokens"], spent["calls"]) == (60, 2)


async def test_budget_1_an_agent_without_a_price_is_refused_where_dollars_are_limited(
    store: Path, workspace: Path
) -> None:
    agents = {AgentRole.REVIEWER: AgentSpec(source=Echo, config={"model": "mystery-1"})}
    async with orchestra(store, Echo, agents=agents) as opened:
        with pytest.raises(InvalidInput, match="mystery-1") as refused:
            await opened.submit("do it", workspace=workspace, budget=Budget(usd=1))
        assert refused.value.code == "MN-0119"
    async with orchestra(store, Echo, agents={AgentRole.ORCHESTRATOR: AgentSpec(source=Thrifty)}) as opened:
        run = await opened.submit("do it", workspace=workspace, budget=Budget(usd=1))
        result = await asyncio.wait_for(run.result(), 20)
        assert (result.state, result.error and result.error["code"]) == ("budget", "MN-0503"), "it reserves no dollars"


async def test_budget_1_time_that_is_used_up_stops_work_that_is_under_way(store: Path, workspace: Path) -> None:
    Hangs.cancelled.clear()
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Hangs)}
    async with orchestra(store, Hangs, agents=agents) as opened:
        run = await opened.submit("do it", workspace=workspace, budget=Budget(seconds=1.5))
        result = await asyncio.wait_for(run.result(), 20)
        assert (result.state, result.exit_code) == ("budget", 4)
        assert result.spent["seconds"] >= 1.5
        await until(lambda: len(Hangs.cancelled) == 1)
        said = [event.data["fraction"] async for event in run.events() if event.kind == "budget_warning"]
        assert said == [0.8, 0.95]
        with pytest.raises(InvalidInput, match="not larger"):
            await opened.resume(run.id, budget=Budget(seconds=1.0))


class Keeps(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        stored = await self.context.artifact("note.txt", "ä note")
        return {"success": True, "artifacts": [stored.model_dump()]}


async def test_an_artifact_is_stored_and_named_in_the_result(store: Path) -> None:
    async with orchestra(store, Keeps) as opened:
        result = await asyncio.wait_for((await opened.submit_work(item("w-1"))).result(), 10)
    assert [(artifact.name, artifact.size) for artifact in result.artifacts] == [("note.txt", len("ä note".encode()))]


async def test_a_run_that_another_process_took_over_is_not_stopped_by_the_one_that_left_it(
    store: Path, workspace: Path
) -> None:
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Hangs)}
    Hangs.working.clear()
    Hangs.cancelled.clear()
    async with orchestra(store, Echo, agents=agents) as second:
        async with orchestra(store, Echo, agents=agents) as first:
            run = await first.submit("hang", workspace=workspace)
            await until(lambda: len(Hangs.working) == 1)
            await run.interrupt()
            await until(lambda: len(Hangs.cancelled) == 1, seconds=2)
            resumed = await second.resume(run.id)
            await until(lambda: len(Hangs.working) == 2)
        assert (await show_run(store, run.id)).state == "running"
        await resumed.cancel()
    assert (await show_run(store, run.id)).state == "cancelled"


class Chatters(AgentExecutionMixin):
    waits: ClassVar[bool] = True

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        async def nothing() -> None:
            return None

        if Chatters.waits:
            await asyncio.sleep(3600)
        for number in range(200):
            await self.context.step(f"step {number}", nothing)
        return {"success": False, "error": "enough"}


async def test_a_long_history_is_replayed_whole_also_where_an_end_was_not_the_last(
    store: Path, workspace: Path
) -> None:
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Chatters)}
    async with orchestra(store, Echo, agents=agents) as opened:
        run = await opened.submit("chatter", workspace=workspace)
        await until(lambda: any(bridge.health().state == "busy" for bridge in opened.agents()))
        await run.interrupt()
        Chatters.waits = False
        run = await opened.resume(run.id)
        assert (await asyncio.wait_for(run.result(), 60)).state == "failed"
        followed = [event.sequence async for event in run.events()]
    read = [event.sequence async for event in read_events(store, run.id, since=0, follow=False)]
    assert len(read) > 1000
    assert followed == read[: len(followed)]
    kinds = [event.kind async for event in read_events(store, run.id, since=followed[-1] - 1, follow=True)]
    assert "run_failed" not in kinds[1:], "the replay stopped before the end"


PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, Phase, WorkItem
from pydantic import SecretStr

log, deadly = Path(sys.argv[2]), sys.argv[3] == "deadly"

class Counts(AgentExecutionMixin):
    async def execute_work(self, work):
        async def first():
            with log.open("a") as file:
                file.write("first\\n")
            return {"n": 1}
        async def second():
            with log.open("a") as file:
                file.write("second\\n")
            if deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"n": 2}
        one = await self.context.step("count", first, input={"step": 1})
        two = await self.context.step("count", second, input={"step": 2})
        return {"success": True, "data": {"sum": one["n"] + two["n"], "epoch": self.context.epoch}}

async def main():
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Counts)}
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, api_key=SecretStr("k"), max_concurrent=1) as orchestra:
        item = WorkItem(id="w-1", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR)
        work = await orchestra.submit_work(item, idempotency_key="once")
        result = await asyncio.wait_for(work.result(), 20)
        print(result.data["sum"], result.data["epoch"])
        print(*[event.kind async for event in first_events(orchestra)])

async def first_events(orchestra):
    async for event in orchestra.events():
        if event.item == "w-1":
            yield event
            if event.kind == "work_completed":
                return

asyncio.run(main())
"""


def in_a_process(store: Path, log: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(store), str(log), how]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANTHROPIC_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_dur_1_after_a_kill_an_item_goes_on_and_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    store, log = tmp_path / "store.db", tmp_path / "log"
    killed = in_a_process(store, log, "deadly")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = in_a_process(store, log, "peaceful")
    assert done.returncode == 0, done.stderr
    answer, events = done.stdout.splitlines()
    assert answer == "3 2", "the sum of both steps, under the second claim"
    assert log.read_text().split() == ["first", "second", "second"]
    assert events.split().count("step_finished") == 2
    assert events.split().count("work_completed") == 1


RUN = """
import asyncio, os, signal, sys
from pathlib import Path
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra
from pydantic import SecretStr

class Dies(AgentExecutionMixin):
    async def execute_work(self, work):
        async def look():
            return {"pid": os.getpid()}
        await self.context.step("look", look)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Dies)}
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, api_key=SecretStr("k")) as orchestra:
        run = await orchestra.submit("build it", workspace=Path(sys.argv[2]))
        await run.result()

asyncio.run(main())
"""


class Resumed(AgentExecutionMixin):
    seen: ClassVar[list[tuple[str, int, Any]]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        async def look() -> Any:
            return {"pid": os.getpid()}

        looked = await self.context.step("look", look)
        self.seen.append((work_dict["phase"], self.context.epoch, looked))
        if work_dict["phase"] == "prompt_to_spec":
            return {"success": True, "data": {"spec": {"goal": "built"}}}
        await asyncio.sleep(3600)
        return {"success": True}


async def test_a_run_whose_process_was_killed_is_resumed_and_replays_its_finished_step(
    store: Path, workspace: Path
) -> None:
    Resumed.seen.clear()
    command = [sys.executable, "-c", RUN, str(store), str(workspace)]
    killed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source=Resumed)}
    async with orchestra(store, Echo, agents=agents) as opened:
        first = await anext(event async for event in opened.events() if event.kind == "run_submitted")
        assert first.run is not None
        assert (await show_run(store, first.run)).state == "interrupted"
        run = await opened.resume(first.run)
        await until(lambda: len(Resumed.seen) == 2, seconds=20)
        with pytest.raises(InvalidInput, match=str(os.getpid())):
            await opened.resume(run.id)
        await run.cancel("seen enough")
        result = await asyncio.wait_for(run.result(), 10)
        own = [event.kind async for event in run.events() if event.run == run.id]
    (phase, epoch, looked), (following, *_) = Resumed.seen
    assert (phase, epoch, following) == ("prompt_to_spec", 2, "spec_to_full_spec")
    assert looked["pid"] != os.getpid(), "the step of the killed process was replayed"
    assert (result.state, result.exit_code, result.resumes) == ("cancelled", 1, 1)
    assert own.index("run_resumed") < own.index("phase_completed") < own.index("run_cancelled") == len(own) - 1


def test_a_process_that_ends_with_its_orchestra_leaves_no_boot_behind(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    done = in_a_process(store, tmp_path / "log", "peaceful")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "store.db.d" / "boots").glob("*.lock")) == []


def test_secret_1_an_agent_that_names_its_own_server_does_not_get_the_key_of_the_orchestra(store: Path) -> None:
    theirs = AgentSpec(source=Echo, config={"base_url": "http://127.0.0.1:9"})
    opened = Orchestra(store=store, agents={AgentRole.EXECUTOR: theirs}, api_key=SecretStr("sk-canary-0123456789"))
    configs = {
        role: opened._role(role, None, opened._resolve_key())["spec"]["config"]  # type: ignore[index, call-overload]
        for role in AgentRole
    }
    assert "api_key" not in configs[AgentRole.EXECUTOR]
    assert "api_key" in configs[AgentRole.REVIEWER]
    assert configs[AgentRole.REVIEWER]["key_source"] == "api_key of the Orchestra"
    assert "canary" not in str(configs)
