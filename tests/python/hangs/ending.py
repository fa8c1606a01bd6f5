"""The ways in which a process ends, or is copied, while the bridge is in use."""

import asyncio
import atexit
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnemosyne import (
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    ClaudeAgentBridge,
    MnemosyneError,
    Orchestra,
)
from pydantic import SecretStr

from hangs.common import BlocksInC, Echo, IgnoresCancel, PlainBlocksInC, Sleeps, item, say, until, until_sync

BUSY = 7  # the exit code of those that leave while something is under way


def hang_on_purpose() -> None:
    """For the watchdog's own test."""
    lock = threading.Lock()
    lock.acquire()
    say("about to hang")
    lock.acquire()


def import_without_use() -> None:
    import mnemosyne.bridge
    import mnemosyne.loop
    import mnemosyne.orchestra

    say(len({mnemosyne.bridge, mnemosyne.loop, mnemosyne.orchestra}), "modules")


async def _leave_busy_with(agent: Any) -> None:
    bridge = await ClaudeAgentBridge.spawn("executor", agent)
    working = asyncio.create_task(bridge.send_work(item()))
    await until(lambda: bool(agent.working))
    say("working", not working.done())
    sys.exit(BUSY)


def exit_while_busy() -> None:
    asyncio.run(_leave_busy_with(Sleeps))


def exit_while_a_handler_ignores_cancel() -> None:
    asyncio.run(_leave_busy_with(IgnoresCancel))


def exit_while_the_loop_thread_blocks_in_c() -> None:
    asyncio.run(_leave_busy_with(BlocksInC))


def exit_while_a_plain_function_blocks_in_c() -> None:
    asyncio.run(_leave_busy_with(PlainBlocksInC))


def exit_with_10_000_items_pending() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Sleeps, in_flight=100))
        pending = [asyncio.create_task(bridge.send_work(item(f"w-{n}"))) for n in range(10_000)]
        await until(lambda: len(Sleeps.working) == 100)
        say("pending", sum(not task.done() for task in pending))
        sys.exit(BUSY)

    asyncio.run(main())


def exit_without_closing_the_loop_that_waits() -> None:
    """No ``asyncio.run`` that would cancel anything first: the loop is simply left."""
    loop = asyncio.new_event_loop()
    bridge = loop.run_until_complete(ClaudeAgentBridge.spawn("executor", Sleeps))
    task = loop.create_task(bridge.send_work(item()))
    loop.run_until_complete(until(lambda: bool(Sleeps.working)))
    say("working", not task.done())
    sys.exit(BUSY)


def exit_while_events_are_half_read() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Echo)
        await bridge.send_work(item())
        events = bridge.events()
        while (await anext(events)).kind != "agent_completed":
            pass
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        say("following", not following.done())
        sys.exit(BUSY)

    asyncio.run(main())


def exit_while_a_daemon_thread_waits() -> None:
    async def wait() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Sleeps)
        await bridge.send_work(item())

    threading.Thread(target=lambda: asyncio.run(wait()), daemon=True).start()
    until_sync(lambda: bool(Sleeps.working))
    say("working")
    sys.exit(BUSY)


def exit_waits_for_a_thread_that_still_works() -> None:
    left = threading.Event()

    async def work() -> None:
        async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
            await bridge.send_work(item("first"))
            left.wait()
            results = [await bridge.send_work(item(f"w-{n}")) for n in range(50)]
        say("worked", sum(result.success for result in results))

    threading.Thread(target=lambda: asyncio.run(work())).start()
    left.set()


def exit_hook_runs_twice() -> None:
    hooks: list[Callable[[], object]] = []
    register = atexit.register

    def recording(hook: Callable[..., object], *arguments: Any, **named: Any) -> Callable[..., object]:
        hooks.append(functools.partial(hook, *arguments, **named))
        return register(hook, *arguments, **named)

    atexit.register = recording  # type: ignore[assignment]
    asyncio.run(_one_item())
    ours = list(hooks)
    for hook in [*ours, *ours]:  # and once more when the process ends
        hook()
    say("hooks", len(ours) > 0)


async def _one_item() -> None:
    async with await ClaudeAgentBridge.spawn("executor", Echo) as bridge:
        say("worked", (await bridge.send_work(item())).success)


def use_after_the_exit_hook() -> None:
    """An exit function that was registered before ours runs after it."""

    def late() -> None:
        for _ in range(2):
            try:
                asyncio.run(_one_item())
            except MnemosyneError:
                say("refused")

    atexit.register(late)
    asyncio.run(_one_item())


def kept_bridge_after_the_exit_hook() -> None:
    kept = []

    def late() -> None:
        try:
            asyncio.run(kept[0].send_work(item(), timeout=1.0))
        except MnemosyneError:
            say("refused")

    atexit.register(late)
    kept.append(asyncio.run(ClaudeAgentBridge.spawn("executor", Echo)))


def spawn_while_another_shuts_down() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Echo)
        for number in range(20):
            _, following = await asyncio.gather(bridge.shutdown(), ClaudeAgentBridge.spawn("executor", Echo))
            assert (await following.send_work(item(f"w-{number}"))).success
            bridge = following
        del following
        # And without a word: the last handle is dropped while the next is being made.
        for number in range(20):
            bridge = await ClaudeAgentBridge.spawn("executor", Echo)
            assert (await bridge.send_work(item(f"v-{number}"))).success
        say("spawned 41")

    asyncio.run(main())


def interrupt_once_while_waiting() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Sleeps)
        working = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(Sleeps.working))
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await working
        finally:
            await until(lambda: Sleeps.cancelled == {"w-1"})
            say("cancelled")

    asyncio.run(main())


def interrupt_twice_while_waiting() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", IgnoresCancel)
        working = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(IgnoresCancel.working))
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await working
        finally:
            say("first")
            os.kill(os.getpid(), signal.SIGINT)
            await bridge.shutdown(timeout=3600)

    asyncio.run(main())


def interrupt_while_the_exit_waits_in_rust() -> None:
    """Nothing but the exit hook holds the main thread, and it waits for a loop thread that is stuck in C."""
    leaving = threading.Event()
    sent: list[float] = []

    def interrupt() -> None:
        leaving.wait()
        time.sleep(0.2)  # the hook begins to wait; if it does not yet, the signal comes early and proves less
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    # Registered before the bridge's own hook, so it runs after it.
    atexit.register(lambda: say("through after", f"{time.monotonic() - sent[0]:.3f}" if sent else "no signal"))

    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", BlocksInC)
        task = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(BlocksInC.working))
        atexit.register(leaving.set)
        say("working", not task.done())

    asyncio.run(main())


def terminate_while_busy() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Sleeps)
        task = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(Sleeps.working))
        say("working", not task.done())
        os.kill(os.getpid(), signal.SIGTERM)
        await task

    asyncio.run(main())


def _wait_for_child(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    say("child", os.waitstatus_to_exitcode(status))


def fork_then_use() -> None:
    """The child has none of the threads: a clear error at once, for a kept bridge and for a new one."""

    async def in_child(bridge: ClaudeAgentBridge) -> None:
        attempts = {
            "send_work": lambda: bridge.send_work(item(), timeout=1.0),
            "spawn": lambda: ClaudeAgentBridge.spawn("executor", Echo),
            "shutdown": bridge.shutdown,
        }
        for name, attempt in attempts.items():
            try:
                await attempt()
                say(name, "did nothing")
            except MnemosyneError as error:
                say(name, "refused", error.code, "fork" in f"{error}{error.reason}{error.hint}")

    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", Echo))
    pid = os.fork()
    if pid == 0:
        asyncio.run(in_child(bridge))
        sys.exit(0)  # with its exit hooks
    _wait_for_child(pid)
    say("parent", asyncio.run(bridge.send_work(item())).success)


def fork_then_exit() -> None:
    """The child uses nothing and leaves in the ordinary way, while the parent's agent is busy."""

    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", Sleeps)
        task = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(Sleeps.working))
        pid = os.fork()
        if pid == 0:
            sys.exit(5)
        _wait_for_child(pid)
        task.cancel()
        await until(lambda: Sleeps.cancelled == {"w-1"})
        await bridge.shutdown()
        say("parent")

    asyncio.run(main())


class LeavesWithoutAWord(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        say("leaving")
        os._exit(9)


def os_exit_in_a_handler() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", LeavesWithoutAWord)
        await bridge.send_work(item())

    asyncio.run(main())


class Forks(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        pid = os.fork()
        if pid == 0:
            os._exit(6)
        _, status = os.waitpid(pid, 0)  # noqa: ASYNC222
        return {"success": True, "data": {"child": os.waitstatus_to_exitcode(status)}}


def fork_in_a_handler() -> None:
    async def main() -> None:
        async with await ClaudeAgentBridge.spawn("executor", Forks) as bridge:
            say("child", [(await bridge.send_work(item(f"w-{n}"))).data["child"] for n in range(2)])

    asyncio.run(main())


class Calls(AgentExecutionMixin):
    """Never without an upcall under way."""

    calls = 0

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        async def one(number: int) -> None:
            while True:
                await self.context.artifact(f"a-{number}", b"x" * 1000)
                Calls.calls += 1

        await asyncio.gather(*(one(number) for number in range(16)))
        return {"success": True}


def stop_of_the_interpreter_during_upcalls(folder: str) -> None:
    async def main() -> None:
        agents = {AgentRole.EXECUTOR: AgentSpec(source=Calls)}
        orchestra = Orchestra(store=Path(folder) / "store.db", agents=agents, api_key=SecretStr("k"), max_concurrent=1)
        await orchestra.__aenter__()
        await orchestra.submit_work(item())
        await until(lambda: Calls.calls > 100)
        say("calling")
        sys.exit(BUSY)

    asyncio.run(main())


class DropsItsOwnBridge(AgentExecutionMixin):
    """Holds the only handle to itself, and lets go of it on the loop thread, in the middle of its work."""

    bridges: dict[str, ClaudeAgentBridge] = {}  # noqa: RUF012
    cancelled: set[str] = set()  # noqa: RUF012

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        self.bridges.clear()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.add(work_dict["id"])
            raise
        return {"success": True}


def last_handle_dropped_in_a_handler() -> None:
    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", DropsItsOwnBridge)
        DropsItsOwnBridge.bridges["own"] = bridge
        sending = bridge.try_send_work(item(), timeout=5.0)
        del bridge
        try:
            await sending
        except MnemosyneError as error:
            say("ended with", type(error).__name__)
        say("cancelled", DropsItsOwnBridge.cancelled)
        await _one_item()

    asyncio.run(main())
