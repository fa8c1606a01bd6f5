"""``ClaudeAgentBridge`` and the loop thread, with real agents in the real tree."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, ClassVar

import pytest
from mnemosyne import (
    AgentError,
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    AgentUnavailable,
    BridgeClosed,
    BridgeFull,
    ClaudeAgentBridge,
    InvalidInput,
    Phase,
    WorkItem,
    WorkTimeout,
)
from mnemosyne.eager import new_event_loop, start_task
from mnemosyne.redaction import HIDDEN


def item(name: str = "w-1", **fields: Any) -> WorkItem:
    return WorkItem(id=name, description="do it", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, **fields)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"success": True, "data": {"context": work_dict["context"], "thread": threading.get_ident()}}


class Raises(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        raise LookupError("nothing by that name")


class Exits(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"].get("exit"):
            raise SystemExit(3)
        return {"success": True}


class Sleeps(AgentExecutionMixin):
    cancelled: ClassVar[list[str]] = []
    working: ClassVar[list[str]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.working.append(work_dict["id"])
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.append(work_dict["id"])
            raise
        return {"success": True}


class Blocks(AgentExecutionMixin):
    def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"success": True, "data": {"thread": threading.get_ident(), "id": self.context.item.id}}


class Misspells(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "artefacts": []}


class Refuses(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": False, "error": "not today"}


async def test_work_goes_to_the_loop_thread_and_back_unchanged() -> None:
    context = {"nested": [{"ü": "ß"}, None, True, 1.5, -(2**63), 2**64 - 1], "text": "x" * 100_000}
    async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
        result = await bridge.send_work(item(context=context))
    assert result.success
    assert result.data["context"] == context
    assert result.data["thread"] != threading.get_ident()


async def test_an_exception_comes_back_whole_as_the_cause() -> None:
    async with await ClaudeAgentBridge.spawn(AgentRole.EXECUTOR, Raises) as bridge:
        with pytest.raises(AgentError, match="nothing by that name") as caught:
            await bridge.send_work(item())
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.__cause__.__traceback__ is not None
        assert bridge.health().error_count == 1


async def test_a_system_exit_of_an_agent_is_its_error_and_not_the_end_of_the_loop() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Exits) as bridge:
        with pytest.raises(AgentError, match="SystemExit"):
            await bridge.send_work(item(context={"exit": True}))
        assert (await bridge.send_work(item("w-2"))).success


async def test_kill_1_a_cancelled_await_cancels_the_python_task() -> None:
    Sleeps.cancelled.clear()
    async with await ClaudeAgentBridge.spawn("executor", Sleeps) as bridge:
        sending = asyncio.create_task(bridge.send_work(item("cancelled")))
        await until(lambda: "cancelled" in Sleeps.working)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(lambda: Sleeps.cancelled == ["cancelled"])
        await until(lambda: bridge.health().state == "idle")
        assert bridge.health().error_count == 0


async def test_kill_1_a_time_limit_cancels_the_python_task() -> None:
    Sleeps.cancelled.clear()
    async with await ClaudeAgentBridge.spawn("executor", Sleeps) as bridge:
        with pytest.raises(WorkTimeout):
            await bridge.send_work(item("late"), timeout=0.05)
        await until(lambda: Sleeps.cancelled == ["late"])


async def test_try_send_work_says_full_at_once() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Sleeps) as bridge:
        first = asyncio.ensure_future(bridge.try_send_work(item("first")))
        await until(lambda: bridge.health().state == "busy")
        with pytest.raises(BridgeFull) as caught:
            bridge.try_send_work(item("second"))
        assert caught.value.code == "MN-0304"
        first.cancel()


async def test_five_errors_restart_the_agent_with_a_new_generation() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Raises) as bridge:
        for number in range(5):
            with pytest.raises(AgentError):
                await bridge.send_work(item(f"w-{number}"))
        await until(lambda: bridge.generation == 2)
        kinds = []
        async for event in bridge.events():
            kinds.append(event.kind)
            if event.kind == "agent_restarted":
                break
        assert kinds.count("agent_error_recorded") == 5
        assert "agent_health_degraded" in kinds


async def test_record_error_and_restart_are_for_what_send_work_did_not_see() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
        health = await bridge.record_error(ValueError("seen elsewhere"))
        assert (health.error_count, health.last_error) == (1, "ValueError: seen elsewhere")
        await bridge.restart("a new one, please")
        await until(lambda: bridge.generation == 2 and bridge.health().state == "idle")
        assert (await bridge.send_work(item())).success


async def test_a_plain_function_runs_outside_the_loop_with_its_context() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Blocks) as bridge:
        result = await bridge.send_work(item("plain"))
    assert result.data["id"] == "plain"


async def test_an_unknown_key_in_a_result_is_an_error_that_names_it() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Misspells) as bridge:
        with pytest.raises(AgentError, match="artefacts"):
            await bridge.send_work(item())


async def test_success_false_is_a_result_and_no_error() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Refuses) as bridge:
        result = await bridge.send_work(item())
        assert (result.success, result.error) == (False, "not today")
        assert bridge.health().error_count == 0


async def test_what_json_cannot_say_is_refused_with_its_path() -> None:
    class Nan(AgentExecutionMixin):
        async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
            return {"success": True, "data": {"a": [1.0, float("nan")]}}

    async with await ClaudeAgentBridge.spawn("executor", Nan) as bridge:
        with pytest.raises(AgentError, match=r"a\.1"):
            await bridge.send_work(item())


async def test_down_1_an_agent_that_cannot_be_imported_degrades_and_says_why() -> None:
    bridge = await ClaudeAgentBridge.spawn("executor", "no_such_module:Agent")
    await until(lambda: bridge.health().state == "degraded")
    with pytest.raises(AgentUnavailable) as caught:
        await bridge.send_work(item(), timeout=1.0)
    assert (caught.value.code, "no_such_module" in caught.value.reason) == ("MN-0303", True)
    await bridge.shutdown()


async def test_shutdown_is_idempotent_and_closes() -> None:
    bridge = await ClaudeAgentBridge.spawn("executor", Echo)
    await bridge.shutdown()
    await bridge.shutdown()
    with pytest.raises(BridgeClosed):
        await bridge.send_work(item())


async def test_a_specification_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidInput, match="role"):
        await ClaudeAgentBridge.spawn("janitor", Echo)
    with pytest.raises(InvalidInput, match="isolation"):
        await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, isolation="container"))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=0))


async def test_many_items_at_once_each_get_their_own_answer() -> None:
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=64)) as bridge:
        results = await asyncio.gather(*(bridge.send_work(item(f"w-{n}", context={"n": n})) for n in range(500)))
    assert [result.data["context"] for result in results] == [{"n": n} for n in range(500)]


def test_a_bridge_serves_two_loops_of_the_user() -> None:
    async def work(bridge: ClaudeAgentBridge) -> bool:
        return (await bridge.send_work(item())).success

    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", Echo))
    assert asyncio.run(work(bridge))
    assert asyncio.run(work(bridge))
    asyncio.run(bridge.shutdown())


def test_dropping_the_last_handle_stops_the_loop_thread() -> None:
    async def use() -> int:
        bridge = await ClaudeAgentBridge.spawn("executor", Echo)
        result = await bridge.send_work(item())
        thread = result.data["thread"]
        assert isinstance(thread, int)
        return thread

    thread = asyncio.run(use())
    gc.collect()
    deadline = time.monotonic() + 5
    while thread in sys._current_frames():
        assert time.monotonic() < deadline, "the loop thread lives on"
        time.sleep(0.01)  # polling a condition with a deadline


def in_a_process(program: str, seconds: float = 20.0) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False)


PREAMBLE = """
import asyncio, sys
from mnemosyne import AgentExecutionMixin, AgentRole, ClaudeAgentBridge, Phase, WorkItem
class Sleeps(AgentExecutionMixin):
    async def execute_work(self, work):
        print("working", flush=True)
        await asyncio.sleep(3600)
item = WorkItem(id="w", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR)
"""


def test_importing_the_package_costs_neither_the_core_nor_pydantic_nor_the_sdk() -> None:
    done = in_a_process(
        """
import sys, mnemosyne
assert mnemosyne.__version__
heavy = {"pydantic", "anthropic", "mnemosyne._core"} & set(sys.modules)
assert not heavy, heavy
"""
    )
    assert done.returncode == 0, done.stderr


class Stalls(AgentExecutionMixin):
    """Holds the whole loop up for a moment, so that what is sent meanwhile arrives at once."""

    started: ClassVar[list[str]] = []

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.started.append(work_dict["id"])
        if work_dict["context"].get("stall"):
            time.sleep(0.5)  # noqa: ASYNC251
        return {"success": True}


async def test_kill_1_work_that_is_cancelled_before_it_began_costs_the_agent_nothing() -> None:
    Stalls.started.clear()
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Stalls, in_flight=2)) as bridge:
        await bridge.send_work(item("w-0"))
        stalling = asyncio.create_task(bridge.send_work(item("stall", context={"stall": True})))
        await until(lambda: "stall" in Stalls.started)
        sending = asyncio.create_task(bridge.send_work(item("cancelled")))
        # Nothing outside the held-up loop can see that the work lies in its mailbox. If it does not yet, the cancel
        # overtakes it and less is proved; the test cannot fail for it.
        await asyncio.sleep(0.1)
        sending.cancel()
        assert (await stalling).success
        await until(lambda: bridge.health().state == "idle", seconds=2)
        assert bridge.generation == 1
    assert "cancelled" not in Stalls.started


class SaysCancelled(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        raise asyncio.CancelledError("by itself")


async def test_a_cancellation_that_nobody_asked_for_is_the_agent_s_error() -> None:
    async with await ClaudeAgentBridge.spawn("executor", SaysCancelled) as bridge:
        with pytest.raises(AgentError, match="CancelledError"):
            await bridge.send_work(item())
        assert bridge.health().error_count == 1


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class RaisesStrangely(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"].get("surrogate"):
            raise LookupError("a file named \udcff")
        raise Unspeakable


async def test_an_exception_without_a_text_or_with_a_strange_one_is_an_error_like_any_other() -> None:
    async with await ClaudeAgentBridge.spawn("executor", RaisesStrangely) as bridge:
        with pytest.raises(AgentError) as caught:
            await bridge.send_work(item(), timeout=2.0)
        assert isinstance(caught.value.__cause__, Unspeakable)
        with pytest.raises(AgentError) as caught:
            await bridge.send_work(item(context={"surrogate": True}), timeout=2.0)
        assert isinstance(caught.value.__cause__, LookupError)


class ExitsAside(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"].get("exit"):
            await asyncio.gather(self._leave())
        return {"success": True, "data": {"thread": threading.get_ident()}}

    async def _leave(self) -> None:
        raise SystemExit(3)

    async def close(self) -> None:
        raise SystemExit(4)


async def test_a_system_exit_in_a_task_of_an_agent_or_in_its_close_is_not_the_end_of_the_loop() -> None:
    async with await ClaudeAgentBridge.spawn("executor", ExitsAside) as bridge:
        thread = (await bridge.send_work(item("w-1"))).data["thread"]
        with pytest.raises(AgentError, match="SystemExit"):
            await bridge.send_work(item("w-2", context={"exit": True}), timeout=2.0)
        await bridge.restart()
        await until(lambda: bridge.generation == 2 and bridge.health().state == "idle")
        assert (await bridge.send_work(item("w-3"), timeout=2.0)).data["thread"] == thread


async def test_a_time_limit_that_is_no_time_is_answered_and_not_forgotten() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Sleeps) as bridge:
        for timeout in (-1.0, 0.0):
            with pytest.raises(WorkTimeout):
                await asyncio.wait_for(bridge.send_work(item(), timeout=timeout), 2)
    async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
        assert (await asyncio.wait_for(bridge.send_work(item(), timeout=1e300), 2)).success
        await asyncio.wait_for(bridge.shutdown(timeout=-1.0), 10)


async def test_bridges_that_are_spawned_at_once_share_one_loop_thread_and_keep_their_answers_apart() -> None:
    bridges = await asyncio.gather(*(ClaudeAgentBridge.spawn("executor", Echo) for _ in range(4)))
    sending = (bridge.send_work(item(context={"n": n})) for n, bridge in enumerate(bridges))
    results = await asyncio.gather(*sending)
    await asyncio.gather(*(bridge.shutdown() for bridge in bridges))
    assert len({result.data["thread"] for result in results}) == 1
    assert [result.data["context"] for result in results] == [{"n": n} for n in range(4)]


async def test_a_bridge_s_events_end_with_it() -> None:
    bridge = await ClaudeAgentBridge.spawn("executor", Echo)
    await bridge.send_work(item())
    kinds: list[str] = []

    async def follow() -> None:
        async for event in bridge.events():
            kinds.append(event.kind)

    following = asyncio.create_task(follow())
    await bridge.shutdown()
    await asyncio.wait_for(following, 10)
    assert kinds == ["agent_started", "agent_started_with_task", "agent_completed"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
def test_a_loop_that_is_closed_leaves_no_descriptor_behind() -> None:
    async def work(bridge: ClaudeAgentBridge) -> None:
        assert (await bridge.send_work(item())).success

    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", Echo))
    asyncio.run(work(bridge))
    gc.collect()
    before = descriptors()
    for _ in range(20):
        asyncio.run(work(bridge))
    gc.collect()
    assert descriptors() <= before + 2
    asyncio.run(bridge.shutdown())


def test_a_process_ends_that_left_a_bridge_open_after_closing_another() -> None:
    done = in_a_process(
        PREAMBLE
        + """
class Slow(Sleeps):
    async def close(self):
        await asyncio.sleep(1)
async def main():
    first = await ClaudeAgentBridge.spawn("executor", Slow)
    del first
    return await ClaudeAgentBridge.spawn("executor", Slow)
kept = asyncio.run(main())
sys.exit(7)
"""
    )
    assert done.returncode == 7, done.stderr


class AsksWho(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        first = asyncio.current_task()
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return {"success": True, "data": {"is_one": first is not None and first is asyncio.current_task()}}


async def test_an_item_is_one_task_from_its_first_step_to_its_last() -> None:
    async with await ClaudeAgentBridge.spawn("executor", AsksWho) as bridge:
        assert (await bridge.send_work(item())).data["is_one"]


MARKS = """
import contextvars, json, time, weakref
from mnemosyne import AgentSpec

VARIABLE = contextvars.ContextVar("variable", default="clean")
HELD, SEEN = [], weakref.WeakKeyDictionary()
called, made = [], 0

class Counted(asyncio.Task):
    def __init__(self, *arguments, **options):
        global made
        made += options.get("name") == "mnemosyne-item"
        super().__init__(*arguments, **options)
asyncio.Task = Counted

def variable(task): VARIABLE.set("dirty")
def name(task): task.set_name("dirty")
def cancel(task): task.cancel()
def callback(task): task.add_done_callback(lambda _: called.append("called"))
def hold(task): HELD.append(task)
def table(task): SEEN[task] = "dirty"
def timer(task): asyncio.get_running_loop().call_later(0.01, task.cancel)
def nothing(task): pass

class Marks(AgentExecutionMixin):
    async def execute_work(self, work):
        how = work["context"]["how"]
        if how == "error":
            raise LookupError("whoever holds it holds the frames that it came through")
        task = asyncio.current_task()
        if how == "collect":  # the others come meanwhile, and are done in as few ticks as can be
            time.sleep(0.1)
        elif how == "look":
            clean = (VARIABLE.get(), task.get_name(), task.cancelling(), task in SEEN)
            assert clean == ("clean", "mnemosyne-item", 0, False), clean
            assert not any(held is task for held in HELD)
        elif how == "wait":
            await asyncio.sleep(0.05)
        else:
            globals()[how](task)
        return {"success": True}

async def main():
    spec = AgentSpec(source=Marks, in_flight=128)
    async with await ClaudeAgentBridge.spawn("executor", spec) as bridge:
        async def send(how):
            work = WorkItem(id="w", description="d", phase=item.phase, role=item.role, context={"how": how})
            try:
                return (await bridge.send_work(work)).success
            except Exception as error:
                return type(error.__cause__ or error).__name__
        before = made
        these = [how for _ in range(20) for how in (HOW, "look", "wait")]
        outcomes = await asyncio.gather(*map(send, ["collect", *these]))
        print(json.dumps({"made": made - before, "outcomes": sorted(set(map(str, outcomes))), "called": len(called)}))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "outcomes"),
    [
        *((mark, ["True"]) for mark in ("variable", "name", "callback", "hold", "table", "timer", "nothing")),
        ("cancel", ["True"]),
        ("error", ["LookupError", "True"]),
    ],
)
def test_what_an_item_leaves_on_its_task_or_in_its_context_no_other_meets(how: str, outcomes: list[str]) -> None:
    done = in_a_process(f"{PREAMBLE}HOW = {how!r}{MARKS}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outcomes"] == outcomes
    # Who leaves no mark shares a task with those after it, up to and with the next one that waits.
    assert said["made"] <= 30 if how == "nothing" else said["made"] >= 40, said
    assert said["called"] == (20 if how == "callback" else 0)


class SaysItsKey(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": False, "error": f"{self.config['api_key']} was refused"}


async def test_secret_1_a_key_in_the_error_of_a_result_is_hidden() -> None:
    spec = AgentSpec(source=SaysItsKey, config={"api_key": "canary-0a1b2c3d4e5f60718293"})
    async with await ClaudeAgentBridge.spawn("executor", spec) as bridge:
        result = await bridge.send_work(item())
        assert (result.success, result.error) == (False, f"{HIDDEN} was refused")


def test_a_loop_that_has_ended_leaves_nothing_of_itself() -> None:
    done = in_a_process(
        PREAMBLE
        + """
import gc, time
from mnemosyne import loop
def loops():
    gc.collect()
    return sum(type(known) is loop._Loop for known in gc.get_objects())
class Echo(AgentExecutionMixin):
    async def execute_work(self, work):
        return {"success": True, "data": {"loops": loops()}}
async def main():
    async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
        return (await bridge.send_work(item)).data["loops"]
assert asyncio.run(main()) == 1
deadline = time.monotonic() + 10
while loops():
    assert time.monotonic() < deadline, "it is still there"
    time.sleep(0.01)  # polling a condition with a deadline
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_task_that_cannot_be_made_takes_no_callback_of_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: object, **__: object) -> None:
        raise MemoryError

    async def nothing() -> None:
        raise AssertionError("its task was never made")

    loop, work, called = new_event_loop(), nothing(), []
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "Task", scarce)
        with pytest.raises(MemoryError):
            start_task(work, loop, Context())
    work.close()
    loop.call_soon(called.append, "called")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert called == ["called"]


class AsksForDebug(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        said = [loop.get_debug()]
        for enabled in (True, False):
            loop.set_debug(enabled)
            said.append(loop.get_debug())
        return {"success": True, "data": {"said": said}}


async def test_the_agents_loop_can_be_told_to_debug_and_says_whether_it_does() -> None:
    async with await ClaudeAgentBridge.spawn("executor", AsksForDebug) as bridge:
        assert (await bridge.send_work(item())).data["said"] == [False, True, False]


class Changes(AgentExecutionMixin):
    """Does as it likes with what it is given and with what it gave."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {"success": True, "data": {}}

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        number = work_dict["context"]["n"]
        work_dict.clear()
        self.result["data"]["n"] = number
        self.result["data"]["seen"] = self.context.item.context["n"]
        return self.result


async def test_what_an_agent_does_to_its_dicts_changes_neither_its_context_nor_another_result() -> None:
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Changes, in_flight=64)) as bridge:
        results = await asyncio.gather(*(bridge.send_work(item(context={"n": n})) for n in range(64)))
    assert [result.data for result in results] == [{"n": n, "seen": n} for n in range(64)]


class Shows(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"work": dict(work_dict)}}


async def test_an_agent_gets_the_item_as_the_model_would_write_it() -> None:
    whole = item("w-7", priority=7, depends_on=["a"], file_scope=["src/"], timeout_seconds=5.0, attempt=2)
    async with await ClaudeAgentBridge.spawn("executor", Shows) as bridge:
        for sent in (whole, item("w-8", context={"k": [1, None]})):
            shown = (await bridge.send_work(sent)).data["work"]
            assert shown == sent.model_dump(mode="json")


class Spends(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "usage": {"turns": 2, "input_tokens": 5}, "evidence": [{"kind": "acceptance"}]}


async def test_a_result_with_more_than_data_is_judged_by_the_model_and_comes_whole() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Spends) as bridge:
        result = await bridge.send_work(item())
    assert (result.usage.turns, result.usage.input_tokens) == (2, 5)
    assert [entry.kind for entry in result.evidence] == ["acceptance"]
