"""What an agent is and how it is called: any class, whole results, whole exceptions."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from messages_server import MessagesServer, saying, using
from mnemosyne.agents.agent_factory import DEFAULT_SOURCES, create_agent, make_agent, resolve_source
from mnemosyne.agents.base_agent import AgentExecutionMixin, call_agent, current_context, working_on
from mnemosyne.agents.context import AgentContext
from mnemosyne.agents.executor import ExecutorAgent
from mnemosyne.errors import AgentError, AgentUnavailable, BudgetExceeded, InvalidInput, ModelError
from mnemosyne.models import AgentRole, Phase, WorkItem, WorkResult
from pydantic import JsonValue

Json = dict[str, JsonValue]


def item(identifier: str = "i1", **more: Any) -> WorkItem:
    return WorkItem(id=identifier, description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor", **more)


class Returning(AgentExecutionMixin):
    def __init__(self, returned: object = None) -> None:
        self.returned = returned

    async def execute_work(self, work_dict: Json) -> Json:
        return self.returned  # type: ignore[return-value]


class Raising(AgentExecutionMixin):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def execute_work(self, work_dict: Json) -> Json:
        raise self.error


class Blocking(AgentExecutionMixin):
    def execute_work(self, work_dict: Json) -> Json:  # type: ignore[override]
        return {"success": True, "data": {"thread": threading.current_thread().name, "item": self.context.item.id}}


class Meeting(AgentExecutionMixin):
    """Works on two items at once and says which one it sees."""

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(2)

    async def execute_work(self, work_dict: Json) -> Json:
        await self.barrier.wait()
        return {"success": True, "data": {"asked": work_dict["id"], "seen": self.context.item.id}}


async def test_a_result_is_completed_and_handed_on() -> None:
    result = await call_agent(Returning({"success": True, "data": {"x": [1, None]}}), {})
    assert result == WorkResult(success=True, data={"x": [1, None]}).model_dump(mode="json")


async def test_success_false_is_a_result_and_no_error() -> None:
    assert (await call_agent(Returning({"success": False, "error": "could not"}), {}))["error"] == "could not"


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ({"success": True, "sucess": True, "extra": 1}, ["sucess", "extra"]),
        ({"data": {}}, ["success"]),
        ({"success": "no"}, ["success"]),
        ({"success": True, "data": {"x": object()}}, ["data"]),
        (None, ["NoneType"]),
        ("done", ["str"]),
        ([{"success": True}], ["list"]),
    ],
)
async def test_truth_1_what_is_no_result_is_an_agent_error_that_names_the_keys(
    returned: object, named: list[str]
) -> None:
    with pytest.raises(AgentError) as raised:
        await call_agent(Returning(returned), {})
    assert raised.value.code == "MN-0307"
    assert all(name in raised.value.message for name in named)


async def test_a_model_error_passes_unchanged() -> None:
    error = ModelError("the model is away", fatal=False)
    with pytest.raises(ModelError) as raised:
        await call_agent(Raising(error), {})
    assert raised.value is error


async def test_any_other_exception_passes_unchanged() -> None:
    error = KeyError("whole")
    with pytest.raises(KeyError) as raised:
        await call_agent(Raising(error), {})
    assert raised.value is error


async def test_bad_input_raised_by_an_agent_is_its_own_error_and_does_not_fail_the_item_for_good() -> None:
    error = InvalidInput("not good", code="MN-0100")
    with pytest.raises(AgentError) as raised:
        await call_agent(Raising(error), {})
    assert raised.value.__cause__ is error
    assert not isinstance(raised.value, InvalidInput)


async def test_a_plain_function_runs_beside_the_loop_and_sees_its_context() -> None:
    with working_on(AgentContext(item("i7"))):
        result = await call_agent(Blocking(), {})
    data = result["data"]
    assert isinstance(data, dict)
    assert data["item"] == "i7"
    assert data["thread"] != threading.current_thread().name


async def test_the_context_is_that_of_the_item_at_hand_also_with_two_at_once() -> None:
    agent = Meeting()

    async def work(identifier: str) -> JsonValue:
        with working_on(AgentContext(item(identifier))):
            return (await call_agent(agent, {"id": identifier}))["data"]

    results = await asyncio.wait_for(asyncio.gather(work("a"), work("b")), 5)
    assert list(results) == [{"asked": "a", "seen": "a"}, {"asked": "b", "seen": "b"}]


def test_without_work_at_hand_there_is_no_context() -> None:
    with pytest.raises(AgentError, match="no work at hand"):
        current_context()
    with working_on(AgentContext(item())):
        assert current_context().item.id == "i1"
    with pytest.raises(AgentError, match="no work at hand"):
        _ = Returning().context


@pytest.mark.parametrize("role", list(AgentRole))
def test_every_role_has_its_agent_and_gets_its_configuration(role: AgentRole) -> None:
    agent = create_agent(role.value, {"model": "demo"})
    assert type(agent).__name__ == f"{role.value.title()}Agent"
    assert agent.config == {"model": "demo"}
    assert resolve_source(DEFAULT_SOURCES[role]) is type(agent)
    assert create_agent(role).config == {}


def test_an_unknown_role_is_bad_input_that_lists_the_roles() -> None:
    with pytest.raises(InvalidInput) as raised:
        create_agent("president")
    assert "executor" in raised.value.hint


@pytest.mark.parametrize("source", ["module", "module:", ":Class", "a b:C", "module:Class:Other", "../x:Y"])
def test_a_source_of_another_form_is_bad_input(source: str) -> None:
    with pytest.raises(InvalidInput, match="not named as"):
        resolve_source(source)


def test_a_module_is_found_again_after_its_file_was_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module, source = tmp_path / "corrected_agent.py", "corrected_agent:Mine"
    broken = {
        None: "No module named",
        "class Mine(:\n": "SyntaxError",
        "import not_there_at_all\n": "not_there_at_all",
        "Other = 1\n": "AttributeError",
        "Mine = 1\n": "not a class",
        "class Mine: pass\n": "execute_work",
    }
    for text, reason in broken.items():
        if text is not None:
            module.write_text(text)
        with pytest.raises(AgentUnavailable) as raised:
            resolve_source(source)
        assert reason in raised.value.reason
    module.write_text("class Mine:\n    async def execute_work(self, work):\n        return {'success': True}\n")
    agent = make_agent(source, {"x": 1})
    assert agent.config == {"x": 1}
    sys.modules.pop("corrected_agent")


def test_a_constructor_that_raises_is_an_agent_that_cannot_be_had() -> None:
    class Broken(AgentExecutionMixin):
        def __init__(self) -> None:
            raise OSError("no licence")

    with pytest.raises(AgentUnavailable) as raised:
        make_agent(Broken)
    assert (raised.value.code, "no licence" in raised.value.reason) == ("MN-0309", True)


class Delegating(AgentExecutionMixin):
    """An outside class that fails at first and then lets ours do the work."""

    failures = 1

    async def execute_work(self, work_dict: Json) -> Json:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not yet")
        self.inner = create_agent("executor", self.config)
        return await self.inner.execute_work(work_dict)

    async def close(self) -> None:
        if isinstance(self.inner, ExecutorAgent):
            await self.inner.close()


class OneTool:
    """The least a tree's tools can be."""

    def definitions(self) -> list[Json]:
        return [{"name": "write_file", "input_schema": {"type": "object"}}]

    async def run(self, name: str, input: Json) -> Any:
        return type("Outcome", (), {"content": "written", "is_error": False})()

    async def describe_interrupted(self, name: str, input: Json) -> str:
        raise AssertionError("nothing was interrupted")


async def test_an_outside_class_may_hand_its_work_to_the_built_in_executor() -> None:
    with MessagesServer(using(("t", "write_file", {"path": "a"})), saying("wrote a")) as server:
        agent = make_agent(Delegating, {"base_url": server.url, "api_key": "key", "model": "demo"})
        context = AgentContext(item(context={"acceptance": [{"command": "make test"}]}))
        context.tools = OneTool()
        with working_on(context):
            with pytest.raises(RuntimeError, match="not yet"):
                await call_agent(agent, {})
            result = await call_agent(agent, context.item.model_dump(mode="json"))
        await agent.close()  # type: ignore[attr-defined]
    assert result["data"] == {"summary": "wrote a"}
    assert "<acceptance>\nmake test\n</acceptance>" in server.seen[0].body["messages"][0]["content"]
    assert server.seen[0].body["system"].startswith("You are the Executor of mnemosyne")


class HandsOn(AgentExecutionMixin):
    """Hands its item on, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    async def execute_work(self, work_dict: Json) -> Json:
        if self.times == 0:
            return {"success": True}
        return await HandsOn(self.times - 1).execute_work(work_dict)


class HandsOnPlainly(AgentExecutionMixin):
    def execute_work(self, work_dict: Json) -> Json:  # type: ignore[override]
        return Blocking().execute_work(work_dict)


class Derived(Blocking):
    def execute_work(self, work_dict: Json) -> Json:  # type: ignore[override]
        return super().execute_work(work_dict)


async def test_budget_1_work_is_handed_on_no_deeper_than_the_budget_allows() -> None:
    with working_on(AgentContext(item(), depth_limit=3)):
        assert (await call_agent(HandsOn(2), {}))["success"]
        with pytest.raises(BudgetExceeded) as refused:
            await call_agent(HandsOn(3), {})
        assert (refused.value.code, refused.value.data["kind"], refused.value.data["limit"]) == ("MN-0501", "depth", 3)
        assert (await call_agent(HandsOn(2), {}))["success"], "what was refused does not count any more"
    with working_on(AgentContext(item())):
        assert (await call_agent(HandsOn(20), {}))["success"], "no limit"


async def test_budget_1_a_plain_function_hands_on_too_and_a_base_class_is_no_other_agent() -> None:
    with working_on(AgentContext(item(), depth_limit=1)):
        with pytest.raises(BudgetExceeded):
            await call_agent(HandsOnPlainly(), {})
        assert (await call_agent(Derived(), {}))["success"]


async def test_a_cancellation_that_nobody_asked_for_is_the_agents_error() -> None:
    with pytest.raises(AgentError, match="was not cancelled") as raised:
        await call_agent(Raising(asyncio.CancelledError()), {})
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)


async def test_kill_1_a_cancellation_passes_unchanged() -> None:
    class Waiting(AgentExecutionMixin):
        async def execute_work(self, work_dict: Json) -> Json:
            await asyncio.Event().wait()
            return {}

    task = asyncio.create_task(call_agent(Waiting(), {}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_plain_function_that_runs_out_of_an_iterator_is_an_error_and_does_not_hang() -> None:
    class Empty(AgentExecutionMixin):
        def execute_work(self, work_dict: Json) -> Json:  # type: ignore[override]
            return {"success": next(iter([]))}

    async with asyncio.timeout(2):
        with working_on(AgentContext(item("i8"))), pytest.raises(RuntimeError, match="StopIteration") as raised:
            await call_agent(Empty(), {})
    assert isinstance(raised.value.__cause__, StopIteration)
