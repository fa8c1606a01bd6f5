"""Handlers that do what no handler should. None may take anything with it but its own item.

Every scenario ends with work of another agent on the same loop, to show that it still turns.
"""

import asyncio
import gc
import itertools
import signal
import sys
import warnings
from typing import Any

from mnemosyne import AgentExecutionMixin, AgentSpec, ClaudeAgentBridge, MnemosyneError

from hangs.common import Echo, IgnoresCancel, PlainBlocksInC, Sleeps, item, say, until


async def _others_go_on(agent: type[AgentExecutionMixin], **context: Any) -> None:
    """Give ``agent`` an item and say how it ended; then see that a neighbour still works, on the same loop."""
    async with (
        await ClaudeAgentBridge.spawn("executor", Echo) as neighbour,
        await ClaudeAgentBridge.spawn("executor", agent) as bridge,
    ):
        before = await neighbour.send_work(item(), timeout=5.0)
        try:
            result = await bridge.send_work(item(context=context), timeout=5.0)
            say("result", result.success)
        except MnemosyneError as error:
            say(type(error).__name__, "from", type(error.__cause__).__name__)
        after = await neighbour.send_work(item(), timeout=5.0)
        say("neighbour", after.success and after.data["loop"] == before.data["loop"])


class Odd(BaseException):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


RAISED: dict[str, type[BaseException]] = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "Odd": Odd,
    "Unspeakable": Unspeakable,
}


class Raises(AgentExecutionMixin):
    """At once (in the first step of its task), or after it gave way to the loop."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if work_dict["context"]["later"]:
            await asyncio.sleep(0)
        raise RAISED[work_dict["context"]["error"]]


class PlainRaises(AgentExecutionMixin):
    def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        raise RAISED[work_dict["context"]["error"]]


def raised_by_a_handler(error: str) -> None:
    async def main() -> None:
        await _others_go_on(Raises, error=error, later=False)
        await _others_go_on(Raises, error=error, later=True)
        await _others_go_on(PlainRaises, error=error)

    asyncio.run(main())


class LeavesFromACallback(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        loop.call_soon(sys.exit, 3)
        task = loop.create_task(asyncio.sleep(0))
        task.add_done_callback(lambda _: sys.exit(4))
        await asyncio.sleep(0.05)
        return {"success": True}


def system_exit_in_a_callback_of_a_handler() -> None:
    asyncio.run(_others_go_on(LeavesFromACallback))


class ClosesTheLoop(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().close()
        return {"success": True}


def handler_closes_the_loop() -> None:
    asyncio.run(_others_go_on(ClosesTheLoop))


class StopsTheLoop(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.05)
        return {"success": True}


def handler_stops_the_loop() -> None:
    asyncio.run(_others_go_on(StopsTheLoop))


class RunsALoop(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        waiting = asyncio.sleep(0)
        try:
            asyncio.run(waiting)
        finally:
            waiting.close()
        return {"success": True}


def asyncio_run_in_a_handler() -> None:
    asyncio.run(_others_go_on(RunsALoop))


class CancelsEverything(AgentExecutionMixin):
    """As a library does that tidies up "its" loop."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        for task in asyncio.all_tasks():
            task.cancel("tidy")
        await asyncio.sleep(0.05)
        return {"success": True}


def handler_cancels_every_task_of_the_loop() -> None:
    asyncio.run(_others_go_on(CancelsEverything))


class InstallsSignalHandlers(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, sys.exit)
        return {"success": True}


def handler_installs_a_signal_handler() -> None:
    asyncio.run(_others_go_on(InstallsSignalHandlers))


class RecursesForEver(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return await self.execute_work(work_dict)


def handler_recurses_for_ever() -> None:
    asyncio.run(_others_go_on(RecursesForEver))


def task_of_an_item_cannot_be_made() -> None:
    """There is no memory for that of the second item, which is the first one's neighbour's."""
    real, items = asyncio.Task, itertools.count(1)

    def scarce(*work: Any, **options: Any) -> object:
        if options.get("name") == "mnemosyne-item" and next(items) == 2:
            raise MemoryError
        return real(*work, **options)

    asyncio.Task = scarce  # type: ignore[misc,assignment]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(_others_go_on(Echo))
        gc.collect()
    say("items", next(items) - 1, "warnings", [str(warning.message) for warning in warned])


class ReturnsAKnot(AgentExecutionMixin):
    """A value that contains itself, or is nested 100,000 deep."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        knot: list[Any] = []
        if work_dict["context"].get("deep"):
            for _ in range(100_000):
                knot = [knot]
        else:
            knot.append(knot)
        return {"success": True, "data": {"knot": knot}}


def handler_returns_a_knot() -> None:
    async def main() -> None:
        await _others_go_on(ReturnsAKnot)
        await _others_go_on(ReturnsAKnot, deep=True)

    asyncio.run(main())


class Nested(AgentExecutionMixin):
    """Uses a bridge itself, from the agents' own loop, and never closes it."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        inner = await ClaudeAgentBridge.spawn("reviewer", Echo)
        return {"success": (await inner.send_work(item("inner"))).success}


def bridge_in_a_handler() -> None:
    asyncio.run(_others_go_on(Nested))


def handler_ignores_cancel() -> None:
    """It is given up after its grace: the caller, the neighbour and the agent's next item do not wait for it."""

    async def main() -> None:
        spec = AgentSpec(source=IgnoresCancel, in_flight=2)
        async with (
            await ClaudeAgentBridge.spawn("executor", Echo) as neighbour,
            await ClaudeAgentBridge.spawn("executor", spec) as bridge,
        ):
            sending = asyncio.create_task(bridge.send_work(item(), timeout=0.05))
            await until(lambda: bool(IgnoresCancel.working))
            say("neighbour", (await neighbour.send_work(item(), timeout=5.0)).success)
            say("meanwhile", (await bridge.send_work(item("w-2", context={"quick": True}), timeout=5.0)).success)
            try:
                await sending
            except MnemosyneError as error:
                say(type(error).__name__)
            await until(lambda: bridge.health().state == "idle")
            say("afterwards", (await bridge.send_work(item("w-3", context={"quick": True}), timeout=5.0)).success)
            await bridge.shutdown(timeout=0.1)

    asyncio.run(main())


def slow_agents_do_not_slow_others() -> None:
    """Every thread of the pool for plain functions is busy; coroutine agents do not need one."""

    async def main() -> None:
        spec = AgentSpec(source=PlainBlocksInC, in_flight=500)
        slow = await ClaudeAgentBridge.spawn("executor", spec)
        neighbour = await ClaudeAgentBridge.spawn("executor", Echo)
        sending = [
            asyncio.create_task(slow.send_work(item(f"s-{n}", context={"seconds": 0.2}), timeout=0.5))
            for n in range(500)
        ]
        await until(lambda: bool(PlainBlocksInC.working))
        results = [await neighbour.send_work(item(f"w-{n}"), timeout=5.0) for n in range(50)]
        say("neighbour", sum(result.success for result in results))
        ended = await asyncio.gather(*sending, return_exceptions=True)
        say("slow", len(ended))

    asyncio.run(main())


def handler_is_cancelled_while_it_cleans_up() -> None:
    """Cancelled by its caller, and again by the end of the agent, in the middle of a ``finally``."""

    class CleansUp(Sleeps):
        async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
            try:
                return await super().execute_work(work_dict)
            finally:
                await asyncio.sleep(3600)

    async def main() -> None:
        bridge = await ClaudeAgentBridge.spawn("executor", CleansUp)
        sending = asyncio.create_task(bridge.send_work(item()))
        await until(lambda: bool(Sleeps.working))
        sending.cancel()
        await until(lambda: Sleeps.cancelled == {"w-1"})
        await bridge.shutdown(timeout=0.1)
        say("over")

    asyncio.run(main())
