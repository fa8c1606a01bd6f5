"""What becomes of a loop whose agents stand in its way, and of plain functions that do not end.

Each case is a process of its own: a loop that is stuck would take the other tests' agents with it.
"""

import re
import subprocess
import sys
import textwrap

PREAMBLE = """
import asyncio, os, sys, threading, time
from mnemosyne import (
    AgentError, AgentExecutionMixin, AgentRole, AgentSpec, AgentUnavailable, ClaudeAgentBridge, Phase, WorkItem,
    WorkTimeout, _core, loop,
)
loop.LAG_LIMIT_SECONDS = 0.5

def item(name="w", **fields):
    return WorkItem(id=name, description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, **fields)

async def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)

class Agent(AgentExecutionMixin):
    async def execute_work(self, work):
        seconds = work["context"].get("block")
        if seconds:
            time.sleep(seconds)
        if "wait" in work["context"]:
            await asyncio.sleep(work["context"]["wait"])
        return {"success": True, "data": {"thread": threading.get_ident()}}
"""


def in_a_process(program: str, seconds: float = 40.0) -> subprocess.CompletedProcess[str]:
    code = PREAMBLE + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_lag_and_waits_are_readable_and_a_healthy_loop_is_not_suspect() -> None:
    in_a_process(
        """
        async def main():
            async with await ClaudeAgentBridge.spawn("executor", Agent) as bridge:
                await bridge.send_work(item())
                seen = _core.metrics()
                (one,) = seen["loops"]
                assert not one["suspect"] and one["submitted"] == 1 and one["in_flight"] == 0, one
                assert one["heartbeat_age_seconds"] < 2 and one["lag_seconds"] < 0.5, one
                sites = {site["site"]: site["count"] for site in seen["sites"]}
                assert sites["loop_thread"] == 1 and sites["plain_agent"] == 0, sites
                # It holds the loop up for less than the limit: nothing is left behind for it.
                await bridge.send_work(item(context={"block": 0.3}))
                assert bridge.generation == 1 and _core.metrics()["loops_left_behind"] == 0
        asyncio.run(main())
        """
    )


def test_a_process_that_was_stopped_does_not_hold_that_against_its_loop() -> None:
    done = in_a_process(
        """
        import logging, signal, subprocess
        async def main():
            async with await ClaudeAgentBridge.spawn("executor", Agent) as bridge:
                await bridge.send_work(item("first"))
                await until(lambda: _core.metrics()["loops"][0]["heartbeat_age_seconds"] is not None)
                # Five limits long; another process lets it go on.
                subprocess.Popen(["sh", "-c", f"sleep 3.5; kill -CONT {os.getpid()}"])
                os.kill(os.getpid(), signal.SIGSTOP)
                await bridge.send_work(item("next", context={"wait": 0.5}))
                assert bridge.generation == 1 and _core.metrics()["loops_left_behind"] == 0
        logging.basicConfig(level=logging.INFO, stream=sys.stdout)
        asyncio.run(main())
        """
    )
    assert "has done nothing" not in done.stdout, done.stdout


def test_a_loop_that_is_stuck_is_left_behind_and_only_the_one_who_stuck_is_charged() -> None:
    done = in_a_process(
        """
        async def main():
            spec = AgentSpec(source=Agent, in_flight=8)
            innocent = await ClaudeAgentBridge.spawn("executor", spec, agent_id="innocent")
            guilty = await ClaudeAgentBridge.spawn("reviewer", spec, agent_id="guilty")
            before = (await innocent.send_work(item())).data["thread"]
            waiting = asyncio.ensure_future(innocent.send_work(item("waits", context={"wait": 3600})))
            await until(lambda: innocent.health().state == "busy")
            # The one who sticks is begun by a task that has done others before it, which came while the loop was held.
            under_way = lambda: _core.metrics()["loops"][0]["in_flight"]
            holds = asyncio.ensure_future(guilty.send_work(item("holds", context={"block": 0.3})))
            await until(lambda: under_way() == 2)
            quick = [asyncio.ensure_future(innocent.send_work(item(f"quick-{number}"))) for number in range(4)]
            await until(lambda: under_way() == 6)
            blocking = asyncio.ensure_future(guilty.send_work(item("blocks", context={"block": 60})))
            await until(lambda: _core.metrics()["loops"][0]["suspect"])
            try:
                await blocking
            except AgentError as error:
                assert "LoopBlocked" in str(error), error
            else:
                raise AssertionError("it was not charged")
            assert all(result.success for result in await asyncio.gather(holds, *quick))
            try:
                await waiting
            except AgentUnavailable as error:
                assert "not known" in error.reason, error  # lost, not failed: it may be sent again
            else:
                raise AssertionError("it cannot have ended")
            await until(lambda: innocent.health().state == "idle" and guilty.health().state == "idle")
            assert (innocent.health().error_count, innocent.generation) == (0, 2)
            after = (await innocent.send_work(item())).data["thread"]
            assert after != before
            assert (await guilty.send_work(item())).data["thread"] == after
            assert _core.metrics()["loops_left_behind"] == 1
            await innocent.shutdown()
            await guilty.shutdown()
        asyncio.run(main())
        print("over", flush=True)
        """,
    )
    assert "over" in done.stdout
    # The stack of the culprit is on standard error.
    assert re.search(r"in execute_work", done.stderr), done.stderr


def test_down_1_a_loop_that_does_not_let_go_of_the_interpreter_degrades_its_roles_until_it_goes_on() -> None:
    # With such a switch interval nobody gets the interpreter while the handler computes; Rust stores events meanwhile.
    in_a_process(
        """
        from mnemosyne.mailbox import mailbox

        class Hogs(AgentExecutionMixin):
            async def execute_work(self, work):
                sys.setswitchinterval(1000)
                began = time.monotonic()
                while time.monotonic() - began < 3:
                    pass
                sys.setswitchinterval(0.005)
                return {"success": True}

        async def main():
            async with await ClaudeAgentBridge.spawn("executor", Hogs) as bridge:
                assert (await bridge.send_work(item())).success
                everything = {"op": "events", "since": 0, "run": None, "agent": None, "limit": 500, "wait": False}
                reasons = []
                async def told():
                    reasons[:] = [
                        (event["kind"], event["data"].get("reason"))
                        for event in await mailbox().call(lambda port, n: bridge._handle.store(port, n, everything))
                        if event["kind"].startswith("role_")
                    ]
                    return len(reasons) == 2
                deadline = time.monotonic() + 5
                while not await told():
                    assert time.monotonic() < deadline, reasons
                    await asyncio.sleep(0.05)
                (degraded, why), (recovered, _) = reasons
                assert (degraded, recovered) == ("role_degraded", "role_recovered"), reasons
                assert "does not let go of the interpreter" in why, why
                assert bridge.health().state == "idle" and bridge.generation == 1
                assert _core.metrics()["loops_left_behind"] == 0
        asyncio.run(main())
        """
    )


def test_a_plain_function_that_does_not_end_is_left_behind_and_its_room_is_given_to_another() -> None:
    in_a_process(
        """
        loop.GRACE_SECONDS = 0.2

        class Blocks(AgentExecutionMixin):
            def execute_work(self, work):
                if work["context"].get("stick"):
                    begun.append(work["id"])
                    time.sleep(3600)
                return {"success": True, "data": {"thread": threading.get_ident()}}

        begun = []

        async def main():
            bridge = await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Blocks, in_flight=16))
            sticking = [
                asyncio.ensure_future(bridge.send_work(item(f"s-{n}", context={"stick": True}))) for n in range(8)
            ]
            await until(lambda: len(begun) == 8)  # one that is cancelled before it began is never left behind
            waiting = asyncio.ensure_future(bridge.send_work(item("waits")))
            unbegun = asyncio.ensure_future(bridge.send_work(item("unbegun")))
            await until(lambda: _core.metrics()["loops"][0]["in_flight"] == 10)
            unbegun.cancel()  # it waits in the pool, where it can be taken back
            sticking[0].cancel()  # it sleeps in C, where it cannot
            assert (await waiting).data["thread"]
            assert _core.metrics()["functions_left_behind"] == 1
            assert _core.metrics()["loops_left_behind"] == 0
            os._exit(0)
        asyncio.run(main())
        """
    )


def test_a_process_with_a_plain_function_that_does_not_end_still_ends() -> None:
    in_a_process(
        """
        class Blocks(AgentExecutionMixin):
            def execute_work(self, work):
                time.sleep(3600)

        async def main():
            bridge = await ClaudeAgentBridge.spawn("executor", Blocks)
            asyncio.ensure_future(bridge.send_work(item()))
            await until(lambda: bridge.health().state == "busy")
        asyncio.run(main())
        """,
        seconds=20,
    )


def test_a_fork_is_told_and_does_not_hang() -> None:
    in_a_process(
        """
        import warnings
        from mnemosyne import EnvironmentProblem
        warnings.simplefilter("ignore")

        async def main():
            bridge = await ClaudeAgentBridge.spawn("executor", Agent)
            await bridge.send_work(item())
            return bridge
        bridge = asyncio.run(main())
        child = os.fork()
        if child == 0:
            for use in (bridge.health, lambda: asyncio.run(bridge.send_work(item()))):
                try:
                    use()
                except EnvironmentProblem as error:
                    assert error.code == "MN-0340", error
                else:
                    os._exit(1)
            sys.exit(0)  # with its exit hooks
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        asyncio.run(bridge.shutdown())
        """
    )
