"""Agents in processes of their own, with real processes: what they see, how they end, and what is left of them."""

# ruff: noqa: ASYNC220 - a process is started here and there; nothing else is on the loop of a test

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from messages_server import MessagesServer, Reply, stream
from mnemosyne import (
    AgentError,
    AgentRole,
    AgentSpec,
    ClaudeAgentBridge,
    Event,
    InvalidInput,
    Orchestra,
    Phase,
    Plan,
    WorkItem,
    WorkTimeout,
    worker,
)
from mnemosyne.models import Acceptance, PlanTask
from mnemosyne.orchestra import show_run
from pydantic import SecretStr
from worker_agents import Burns, Does, Listens, Packs, Plain

KEY = SecretStr("test-key-that-is-never-used")
LIVE_ITEMS = int(os.environ.get("MNEMOSYNE_LIVE_ITEMS", "10"))
LONG = pytest.mark.skipif(os.environ.get("MNEMOSYNE_LONG") != "1", reason="takes half a minute: MNEMOSYNE_LONG=1")
LEASE_SECONDS = 30.0


def item(name: str = "w-1", *, timeout: float = 60.0, **context: Any) -> WorkItem:
    return WorkItem(
        id=name,
        description=f"do {name}",
        phase=Phase.PLAN_TO_ARTIFACTS,
        role=AgentRole.EXECUTOR,
        context=context,
        timeout_seconds=timeout,
    )


def in_process(source: type = Does, **more: Any) -> AgentSpec:
    return AgentSpec(source=source, isolation="process", **more)


@contextlib.asynccontextmanager
async def spawned(source: type = Does, **more: Any) -> AsyncIterator[ClaudeAgentBridge]:
    async with await ClaudeAgentBridge.spawn("executor", in_process(source, **more)) as bridge:
        yield bridge


def orchestra(store: Path, spec: AgentSpec, **more: Any) -> Orchestra:
    agents = {AgentRole.EXECUTOR: spec, **more.pop("agents", {})}
    return Orchestra(store=store, agents=agents, api_key=KEY, max_concurrent=more.pop("max_concurrent", 1), **more)


async def until(condition: Callable[[], object], seconds: float = 20.0, what: str = "the condition") -> float:
    """Poll a condition with a deadline; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what} did not come true in {seconds:g} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes(argument: str) -> list[int]:
    """All processes with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if alive(pid)]


def below(root: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, queue = [], [root]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


async def recorded(orchestra: Orchestra, kind: str) -> list[Event]:
    """All events of a kind so far."""
    found = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            async for event in orchestra.events():
                if event.kind == kind:
                    found.append(event)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


async def test_a_worker_does_what_an_agent_of_the_thread_does_in_another_process() -> None:
    async with spawned() as bridge:
        value = {"text": "ä\n", "list": [1, 2.5, None, True, {"deep": [[]]}], "big": 2**63, "small": -(2**63)}
        result = await bridge.send_work(item(do="echo", value=value))
        health = bridge.health()
    assert result.data["value"] == value
    assert result.data["pid"] == health.pid != os.getpid()
    assert health.heartbeat_age_seconds is not None
    assert health.heartbeat_age_seconds < 5
    await until(lambda: not alive(int(str(health.pid))))


async def test_secret_1_a_worker_sees_what_the_thread_sees_and_others_see_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_TEST", "secret-in-the-environment")
    async with spawned(config={"api_key": "secret-in-the-configuration"}) as bridge:
        seen = (await bridge.send_work(item("see-1", do="see"))).data
        pid = bridge.health().pid
        for file in ("cmdline", "environ"):
            assert b"secret-in" not in Path(f"/proc/{pid}/{file}").read_bytes(), file
    assert (seen["key"], seen["variable"]) == ("secret-in-the-configuration", "secret-in-the-environment")
    assert (seen["folder"], seen["item"], seen["agent"]) == (os.getcwd(), "see-1", "executor-1")


async def test_an_exception_of_a_worker_has_its_type_text_and_notes() -> None:
    async with spawned() as bridge:
        with pytest.raises(AgentError, match="LookupError: nothing by that name") as caught:
            await bridge.send_work(item(do="fail"))
        assert "looked everywhere" in caught.value.__notes__[0]
        assert bridge.health().generation == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("bytes", "not a valid JSON value"),
        ("nan", "NaN|finite"),
        ("big", "64 bits"),
        ("half", "surrogate"),
        ("deep", "deep"),
    ],
)
async def test_truth_1_what_is_no_json_is_an_error_of_the_agent_and_not_of_its_process(what: str, said: str) -> None:
    async with spawned() as bridge:
        with pytest.raises(AgentError, match=said):
            await bridge.send_work(item(do="give", what=what))
        assert (await bridge.send_work(item(do="echo"))).success
        assert bridge.health().generation == 1


async def test_what_a_worker_logs_reaches_our_logging_and_what_it_prints_goes_nowhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with spawned() as bridge:
        await bridge.send_work(item(do="log"))
        await until(lambda: "said in the worker" in caplog.text)
    assert [record.levelno for record in caplog.records if record.name == "tests.worker"] == [logging.WARNING]
    assert "not for the user" not in capfd.readouterr().out


async def test_a_plain_function_of_a_worker_has_a_thread_and_its_context() -> None:
    async with spawned(Plain) as bridge:
        assert (await bridge.send_work(item("plain-1"))).data == {"main": False, "item": "plain-1"}


async def test_kill_1_a_plain_function_that_does_not_stop_ends_with_its_process(tmp_path: Path) -> None:
    async with spawned(Plain) as bridge:
        await until(lambda: bridge.health().state == "idle")
        before = bridge.health().pid
        with pytest.raises(WorkTimeout):
            await bridge.send_work(item(timeout=0.3, file=str(tmp_path / "calls")))
        await until(lambda: bridge.health().state == "idle")
        assert bridge.health().pid != before
        await until(lambda: not alive(int(str(before))))  # the next one may be there before SIGKILL


async def test_a_class_that_no_other_process_can_find_is_refused() -> None:
    class Local(Does):
        pass

    with pytest.raises(InvalidInput, match="process of its own") as caught:
        await ClaudeAgentBridge.spawn("executor", in_process(Local))
    assert caught.value.code == "MN-0380"


@pytest.mark.parametrize(("limits", "said"), [({"disk": 1}, "disk"), ({"memory_mb": 0}, "memory_mb")])
async def test_limits_that_cannot_be_used_are_refused_by_name(limits: dict[str, int], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        await ClaudeAgentBridge.spawn("executor", in_process(limits=limits))


async def test_a_worker_that_takes_too_much_memory_is_refused_it() -> None:
    async with spawned(limits={"memory_mb": 200}) as bridge:
        assert (await bridge.send_work(item(do="eat", bytes=20_000_000))).data["bytes"] == 20_000_000
        with pytest.raises(AgentError, match="MemoryError"):
            await bridge.send_work(item(do="eat", bytes=2_000_000_000))
        assert bridge.health().generation == 1


async def test_a_worker_that_uses_up_its_processor_time_is_ended() -> None:
    async with spawned(limits={"cpu_seconds": 2}) as bridge:
        with pytest.raises(AgentError, match=f"signal {int(signal.SIGXCPU)}|signal {int(signal.SIGKILL)}"):
            await bridge.send_work(item(do="spin", timeout=30.0))


async def test_a_worker_that_ends_says_how_and_what_it_said_last() -> None:
    async with spawned() as bridge:
        with pytest.raises(AgentError, match="its process ended with exit code 7") as caught:
            await bridge.send_work(item(do="exit", code=7))
        assert caught.value.__notes__ == ["the last words"]
        await until(lambda: bridge.health().state == "idle")
        assert bridge.health().generation == 2
        assert (await bridge.send_work(item(do="echo"))).success


async def test_sup_4_an_idle_worker_that_is_killed_is_replaced_and_no_item_is_charged(store: Path) -> None:
    async with orchestra(store, in_process()) as opened:
        assert (await (await opened.submit_work(item("before", do="echo"))).result()).success
        [bridge] = [agent for agent in opened.agents() if agent.role is AgentRole.EXECUTOR]
        os.kill(int(str(bridge.health().pid)), signal.SIGKILL)
        await until(lambda: bridge.health().generation == 2)
        assert (await (await opened.submit_work(item("after", do="echo"))).result()).success
        [restarted] = await recorded(opened, "agent_restarted")
        assert (restarted.data["generation"], "signal 9" in str(restarted.data["reason"])) == (2, True)
        assert [event.kind for event in await recorded(opened, "agent_failed")] == []


async def test_kill_1_an_agent_that_hangs_in_c_code_is_killed_and_its_item_done_within_a_second_of_its_deadline(
    store: Path, tmp_path: Path
) -> None:
    timeout = 1.5
    context = {"file": str(tmp_path / "calls"), "steps": str(tmp_path / "steps")}
    # Two, so that the item does not also wait for a process to start.
    async with orchestra(store, in_process(), max_concurrent=2) as opened:
        await until(lambda: all(one.state == "idle" for one in opened.health().roles[AgentRole.EXECUTOR].agents))
        work = await opened.submit_work(item(do="hang_first", timeout=timeout, **context))
        # Each call of the agent leaves a line with the process that made it.
        await until(lambda: Path(context["file"]).exists())
        [before] = map(int, Path(context["file"]).read_text().split())
        result = await asyncio.wait_for(work.result(), 30)
        began = [event.at for event in await recorded(opened, "work_started")]
        [failed] = await recorded(opened, "agent_failed")
        [restarted] = await recorded(opened, "agent_restarted")
        await until(lambda: not alive(before))
    # A crash and no attempt; what the journal had was not done again.
    assert (result.data, len(Path(context["steps"]).read_text().splitlines())) == ({"epoch": 2, "attempt": 1}, 1)
    assert "did not end within its time limit" in str(failed.data["error"])
    assert restarted.data["generation"] == 2
    again = seconds_between(began[0], began[1])
    assert again <= timeout + 1.0, f"it was given out again after {again:.2f} s"


def seconds_between(first: str, second: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


async def test_fence_2_a_result_that_comes_after_its_work_was_left_behind_is_counted_and_dropped(
    store: Path, tmp_path: Path
) -> None:
    async with orchestra(store, in_process()) as opened:
        work = await opened.submit_work(item(do="stubborn", timeout=1.0, file=str(tmp_path / "calls")))
        assert (await asyncio.wait_for(work.result(), 30)).data == {"by": "another"}
        [stale] = await recorded(opened, "stale_result_dropped")
        assert stale.data["generation"] == 1


@LONG  # the rule itself is proved on a paused clock, beside the runtime
async def test_an_agent_that_is_left_behind_twice_goes_on_in_a_process_of_its_own(store: Path, tmp_path: Path) -> None:
    async with orchestra(store, AgentSpec(source=Does)) as opened:
        work = await opened.submit_work(item(do="deaf", timeout=0.2, file=str(tmp_path / "calls")))
        result = await asyncio.wait_for(work.result(), 40)
        reasons = [str(event.data["reason"]) for event in await recorded(opened, "agent_restarted")]
        assert result.data["pid"] == opened.health().roles[AgentRole.EXECUTOR].agents[0].pid != os.getpid()
        assert [reason.endswith("a process of its own") for reason in reasons] == [False, True]


async def test_truth_2_a_model_that_streams_slowly_is_progress_and_an_agent_that_says_nothing_is_not(
    store: Path,
) -> None:
    story = stream([{"type": "text", "text": "once upon a time"}] * 6, "end_turn")
    slowly = Reply(events=story, pause=0.15)
    with MessagesServer(slowly, slowly) as server:
        agents = {
            AgentRole.EXECUTOR: in_process(Listens, instances=2),
            AgentRole.REVIEWER: AgentSpec(source=Listens, instances=2),
        }
        async with orchestra(store, in_process(Listens, instances=2), agents=agents) as opened:
            works = [
                await opened.submit_work(
                    WorkItem(
                        id=f"{role}-{what}",
                        description="d",
                        phase=Phase.PLAN_TO_ARTIFACTS,
                        role=role,
                        context={"url": server.url} if what == "hears" else {},
                        timeout_seconds=60,
                    )
                )
                for role in agents
                for what in ("hears", "waits")
            ]
            ages: dict[str, float] = {}  # as last seen
            ended = [asyncio.ensure_future(work.result()) for work in works if work.id.endswith("hears")]
            while not all(work.done() for work in ended):
                for role in agents:
                    for agent in opened.health().roles[role].agents:
                        if agent.progress_age_seconds is not None:
                            ages[agent.agent_id] = agent.progress_age_seconds
                await asyncio.sleep(0.05)
            assert all(work.result().success for work in ended)
            for work in works:
                await work.cancel()
    took = slowly.pause * len(story)
    for role in agents:
        heard, silent = sorted(age for name, age in ages.items() if name.startswith(role))
        assert heard < took / 2 < took - 1 < silent, ages


SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, Phase, WorkItem
from pydantic import SecretStr
import os, time


class Outside(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        calls = Path(self.config["calls"])
        while not calls.exists():  # all items are there, or one of them would have all the failures
            await asyncio.sleep(0.01)
        with calls.open("a") as file:
            file.write("call\\n")
        call = len(calls.read_text().splitlines())
        if call <= 5:
            raise RuntimeError(f"failure {call}")
        if call == 6:
            time.sleep(3600)
        if call == 7:
            os._exit(1)
        return {"success": True, "data": {"call": call}}


async def main():
    spec = AgentSpec(source=Outside, isolation="process", config={"calls": sys.argv[2]})
    async with Orchestra(store=Path(sys.argv[1]), agents={AgentRole.EXECUTOR: spec}, api_key=SecretStr("none"),
                         max_concurrent=1) as orchestra:
        works = []
        for number in range(6):
            works.append(await orchestra.submit_work(WorkItem(
                id=f"w-{number}", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR,
                timeout_seconds=2.0)))
        Path(sys.argv[2]).touch()
        for work in works:
            await work.result()
        completed = 0
        async for event in orchestra.events():
            print(json.dumps({"kind": event.kind, "item": event.item, "data": event.data}))
            completed += event.kind == "work_completed"
            if completed == len(works):
                break


if __name__ == "__main__":
    asyncio.run(main())
"""


def test_fence_2_the_events_alone_tell_of_an_agent_that_raises_then_hangs_then_ends_its_process(tmp_path: Path) -> None:
    program = tmp_path / "outside.py"
    program.write_text(SCRIPT)
    arguments = [sys.executable, str(program), str(tmp_path / "store.db"), str(tmp_path / "calls")]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stderr
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    restarts = [event["data"] for event in events if event["kind"] == "agent_restarted"]
    assert [restart["generation"] for restart in restarts] == [2, 3, 4]
    for restart, reason in zip(restarts, ["5 errors within 60 s", "did not stop", "exit code 1"], strict=True):
        assert reason in restart["reason"]
    done = Counter(event["item"] for event in events if event["kind"] == "work_completed")
    assert done == {f"w-{number}": 1 for number in range(6)}
    # Seven calls came to nothing, six each did an item; no process said anything after it was given up.
    assert len((tmp_path / "calls").read_text().splitlines()) == 13
    assert [event for event in events if event["kind"] == "stale_result_dropped"] == []


def test_a_program_that_starts_agents_as_it_is_imported_is_told_so_and_starts_no_more_of_them(tmp_path: Path) -> None:
    program = tmp_path / "unguarded.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio
            from mnemosyne import AgentExecutionMixin, AgentSpec, ClaudeAgentBridge

            class Mine(AgentExecutionMixin):
                async def execute_work(self, work_dict):
                    return {"success": True}

            async def main():
                bridge = await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Mine, isolation="process"))
                while bridge.health().state != "degraded":
                    await asyncio.sleep(0.01)
                print(bridge.health().last_error)
                await bridge.shutdown()

            asyncio.run(main())
        """)
    )
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert "cannot be imported by its process" in ran.stdout, ran.stderr  # MN-0381


async def test_kill_1_cancel_of_a_run_ends_all_that_its_items_had_started(store: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "a.txt").write_text("a\n")
    marker = f"{3000 + os.getpid() / 1e7:.7f}"
    tasks = [
        PlanTask(
            id=f"t{n}", title=f"t{n}", file_scope=[f"{n}.txt"], acceptance=[Acceptance(command=f"test -f {n}.txt")]
        )
        for n in range(LIVE_ITEMS)
    ]
    begun = tmp_path / "begun"
    config = {"marker": marker, "begun": str(begun), "items": LIVE_ITEMS}
    workers = 2
    executor = in_process(Burns, instances=workers, in_flight=-(-LIVE_ITEMS // workers), config=config)
    agents = {AgentRole.OPTIMIZER: AgentSpec(source=Packs, instances=4)}
    async with orchestra(store, executor, agents=agents) as opened:
        run = await opened.submit(Plan(tasks=tasks), workspace=workspace)
        # One of them has started its command outside of the guard and hangs.
        await until(lambda: len(processes(marker)) == LIVE_ITEMS, 120, "all items under way")
        await until(lambda: Path(f"{begun}.hangs").exists(), 20, "the hang")
        assert len(begun.read_text().splitlines()) == LIVE_ITEMS
        [hanging] = [int(pid) for pid in begun.read_text().splitlines()[:1]]
        began = time.monotonic()
        await run.cancel()
        await until(lambda: not processes(marker) and not alive(hanging), 20)
        took = time.monotonic() - began
        assert (await asyncio.wait_for(run.result(), 10)).state == "cancelled"
    assert took < 3.0, f"{LIVE_ITEMS} items: {took:.2f} s"


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from mnemosyne import AgentRole, AgentSpec, Orchestra, Phase, WorkItem
from pydantic import SecretStr

async def main():
    spec = AgentSpec(source="worker_agents:Does", isolation="process", instances=8)
    agents = {AgentRole.EXECUTOR: spec}
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, api_key=SecretStr("none")) as opened:
        for number in range(8):
            context = {"do": "daemon" if number == 0 else "wait", "file": sys.argv[2]}
            await opened.submit_work(WorkItem(id=f"w-{number}", description="d", phase=Phase.PLAN_TO_ARTIFACTS,
                                              role=AgentRole.EXECUTOR, context=context))
        while any(agent.health().state != "busy" for agent in opened.agents() if agent.role is AgentRole.EXECUTOR):
            await asyncio.sleep(0.02)
        print("busy", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_kill_2_nothing_is_left_of_eight_busy_workers_two_seconds_after_kill_9_of_their_supervisor(
    store: Path, tmp_path: Path
) -> None:
    daemon_file = tmp_path / "daemon.pid"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", SUPERVISOR, str(store), str(daemon_file)]
    supervisor = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    assert supervisor.stdout is not None
    with supervisor.stdout:
        assert await asyncio.wait_for(asyncio.to_thread(supervisor.stdout.readline), 60) == "busy\n"
        await until(daemon_file.exists)
        daemon = int(daemon_file.read_text())
        tree = [*below(supervisor.pid), daemon]
        workers = [pid for pid in tree if b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 8
        supervisor.kill()
        took = await until(lambda: not any(map(alive, tree)), 20, "the end of all")
        supervisor.wait()
    assert took < 2.0, f"{took:.2f} s"


async def test_fence_3_what_a_dead_boot_left_is_ended_at_the_next_start_and_what_lives_is_not(store: Path) -> None:
    boots = store.with_name(f"{store.name}.d") / "boots"
    command = ["/bin/sleep", "300"]
    async with orchestra(store, AgentSpec(source=Does)) as opened:
        [own] = [path.stem for path in boots.glob("*.lock")]
        left = [subprocess.Popen(command, env={"MNEMOSYNE_BOOT": f"{boots}/{boot}"}) for boot in ("b-00000001", own)]
        try:
            async with orchestra(store, AgentSpec(source=Does)):
                # Its parent, this process, has to see it.
                assert await asyncio.wait_for(asyncio.to_thread(left[0].wait), 10) == -signal.SIGKILL
                assert left[1].poll() is None
        finally:
            for process in left:
                process.kill()
                process.wait()
        assert opened.health()


async def test_fence_3_a_guard_that_was_killed_with_its_keepers_leaves_work_for_the_sweep(
    store: Path, tmp_path: Path
) -> None:
    daemon_file = tmp_path / "daemon.pid"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", SUPERVISOR, str(store), str(daemon_file)]
    supervisor = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment)
    assert supervisor.stdout is not None
    with supervisor.stdout:
        await until(daemon_file.exists, 60)
        daemon = int(daemon_file.read_text())
        tree = below(supervisor.pid)
        supervisor.send_signal(signal.SIGSTOP)
        for pid in tree:  # stopped first, so that none can act on the death of another
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in [supervisor.pid, *(pid for pid in tree if pid != daemon)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.kill(daemon, signal.SIGCONT)
        supervisor.wait()
    await until(lambda: not any(alive(pid) for pid in tree if pid != daemon))
    assert alive(daemon)
    assert worker.sweep(store.with_name(f"{store.name}.d")) == 1
    await until(lambda: not alive(daemon))


@LONG
async def test_truth_2_show_stops_saying_running_within_a_lease_of_sigstop(store: Path, tmp_path: Path) -> None:
    supervisor, run = await stopped_supervisor(store, tmp_path)
    try:
        began = time.monotonic()
        while (await show_run(store, run)).state == "running":
            assert time.monotonic() - began < LEASE_SECONDS + 1
            await asyncio.sleep(0.25)
        await says_that_it_is_silent(store, run, supervisor.pid)
    finally:
        supervisor.kill()
        supervisor.wait()


@LONG
async def test_truth_2_a_worker_that_is_stopped_is_suspect_then_ended(tmp_path: Path) -> None:
    async with spawned() as bridge:
        health = bridge.health
        await bridge.send_work(item(do="echo"))
        before = int(str(health().pid))
        os.kill(before, signal.SIGSTOP)
        took = await until(lambda: health().state == "suspect", 20)
        assert took > 12
        assert not health().is_healthy
        await until(lambda: health().generation == 2 and health().state == "idle", 30)
        assert not alive(before)


RUNNER = """
import asyncio, sys
from pathlib import Path
from mnemosyne import AgentRole, AgentSpec, Orchestra
from pydantic import SecretStr

async def main():
    agents = {AgentRole.ORCHESTRATOR: AgentSpec(source="worker_agents:Waits", isolation="process")}
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, api_key=SecretStr("none")) as opened:
        run = await opened.submit("wait", workspace=Path(sys.argv[2]))
        async for event in run.events():
            if event.kind == "work_started":
                print(run.id, flush=True)

asyncio.run(main())
"""


async def stopped_supervisor(store: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process with a run under way, under SIGSTOP."""
    workspace = folder / "workspace"
    workspace.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", RUNNER, str(store), str(workspace)]
    supervisor = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    assert supervisor.stdout is not None
    run = (await asyncio.wait_for(asyncio.to_thread(supervisor.stdout.readline), 60)).strip()
    supervisor.stdout.close()
    supervisor.send_signal(signal.SIGSTOP)
    return supervisor, run


async def says_that_it_is_silent(store: Path, run: str, pid: int) -> None:
    command = [sys.executable, "-m", "mnemosyne", "--store", str(store), "show", run]
    shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0, shown.stderr
    assert "running" not in shown.stdout
    assert "interrupted" in shown.stdout
    assert "MN-0365" in shown.stdout + shown.stderr
    assert f"pid {pid}" in shown.stdout + shown.stderr
