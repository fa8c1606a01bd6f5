"""Many at once: threads, loops, items, cancels."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

from mnemosyne import AgentExecutionMixin, AgentSpec, BridgeFull, ClaudeAgentBridge, MnemosyneError

from hangs.common import BlocksInC, Echo, Sleeps, item, say, until, until_sync


def cancel_storm(count: str) -> None:
    async def main() -> None:
        number = int(count)
        async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Sleeps, in_flight=number)) as bridge:
            sending = [asyncio.create_task(bridge.send_work(item(f"w-{n}"))) for n in range(number)]
            await until(lambda: len(Sleeps.working) == number, 30)
            for task in sending:
                task.cancel()
            ended = await asyncio.gather(*sending, return_exceptions=True)
            say("cancelled", sum(isinstance(outcome, asyncio.CancelledError) for outcome in ended))
            await until(lambda: len(Sleeps.cancelled) == number, 30)
            await until(lambda: bridge.health().state == "idle", 30)
            say("errors", bridge.health().error_count, "generation", bridge.generation)

    asyncio.run(main())


class Hog:
    """A thread that wants the GIL all the time."""

    def __enter__(self) -> None:
        self.over = False
        self.thread = threading.Thread(target=self._count, daemon=True)
        self.thread.start()

    def _count(self) -> None:
        number = 0
        while not self.over:
            number += 1

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join()


def gil_hogged_by_another_thread() -> None:
    async def main() -> None:
        async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=50)) as bridge:
            with Hog():
                results = await asyncio.gather(*(bridge.send_work(item(f"w-{n}")) for n in range(200)))
        say("worked", sum(result.success for result in results))

    asyncio.run(main())


def gil_hogged_at_exit() -> None:
    hog = Hog()
    hog.__enter__()
    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", Echo))
    say("worked", asyncio.run(bridge.send_work(item())).success)


def every_call_from_every_thread() -> None:
    """Snapshots, refusals, cancels and results at once: where a lock of ours is held while another side attaches, this
    stands still sooner or later."""
    until_when = time.monotonic() + 1.5

    async def work(bridge: ClaudeAgentBridge, number: int) -> None:
        turn = 0
        while time.monotonic() < until_when:
            turn += 1
            name = f"{number}-{turn}"
            try:
                sending = asyncio.ensure_future(bridge.try_send_work(item(name), timeout=5.0))
            except BridgeFull:
                await bridge.send_work(item(name), timeout=5.0)
                continue
            if turn % 3 == 0:
                sending.cancel()
            bridge.health()
            await asyncio.wait([sending])

    def look(bridge: ClaudeAgentBridge) -> None:
        while time.monotonic() < until_when:
            bridge.health()
            gc.collect(0)

    def in_thread(bridge: ClaudeAgentBridge, number: int) -> Callable[[], None]:
        return lambda: asyncio.run(work(bridge, number))

    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=4)))
    threads = [threading.Thread(target=in_thread(bridge, number)) for number in range(6)]
    threads += [threading.Thread(target=look, args=(bridge,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("errors", bridge.health().error_count)
    asyncio.run(bridge.shutdown())


def two_bridges_on_two_user_loops() -> None:
    """Each loop uses its own bridge and the other's."""
    bridges: dict[int, ClaudeAgentBridge] = {}
    worked: list[int] = []

    async def use(mine: int) -> None:
        bridges[mine] = await ClaudeAgentBridge.spawn("executor", Echo)
        await until(lambda: len(bridges) == 2)
        for number in range(50):
            both = (bridge.send_work(item(f"{mine}-{number}", context={"n": number})) for bridge in bridges.values())
            results = await asyncio.gather(*both)
            assert [result.data["context"] for result in results] == [{"n": number}] * 2
        worked.append(mine)
        await until(lambda: len(worked) == 2)
        await bridges[mine].shutdown()

    threads = [threading.Thread(target=lambda mine=mine: asyncio.run(use(mine))) for mine in (1, 2)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("worked", sorted(worked))


def user_loop_closed_with_work_in_flight() -> None:
    """The loop is closed under the work: nobody waits any more, so the work is cancelled; the bridge goes on."""
    loop = asyncio.new_event_loop()
    bridge = loop.run_until_complete(ClaudeAgentBridge.spawn("executor", Sleeps))
    task = loop.create_task(bridge.send_work(item("lost")))
    loop.run_until_complete(until(lambda: "lost" in Sleeps.working))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task, loop
    gc.collect()
    until_sync(lambda: "lost" in Sleeps.cancelled)
    until_sync(lambda: bridge.health().state == "idle")

    async def again() -> None:
        sending = asyncio.create_task(bridge.send_work(item("again")))
        await until(lambda: "again" in Sleeps.working)
        sending.cancel()
        await until(lambda: "again" in Sleeps.cancelled)
        await bridge.shutdown()

    asyncio.run(again())
    say("cancelled", sorted(Sleeps.cancelled))


def answers_come_after_the_loop_was_closed() -> None:
    """What comes back finds no loop; the next loop of the same thread gets its own answers only."""

    async def begin(bridge: ClaudeAgentBridge) -> "asyncio.Task[object]":
        task: asyncio.Task[object] = asyncio.create_task(bridge.send_work(item("old", context={"seconds": 0.3})))
        await until(lambda: "old" in BlocksInC.working)
        return task

    async def again(bridge: ClaudeAgentBridge) -> bool:
        return (await bridge.send_work(item("new", context={"seconds": 0.0}), timeout=5.0)).success

    loop = asyncio.new_event_loop()
    bridge = loop.run_until_complete(ClaudeAgentBridge.spawn("executor", AgentSpec(source=BlocksInC, in_flight=2)))
    task = loop.run_until_complete(begin(bridge))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    say("new", asyncio.run(again(bridge)))
    asyncio.run(bridge.shutdown())


def threads_come_and_go() -> None:
    """A hundred threads with a loop each, which end in the middle of what they asked for."""

    async def ask(bridge: ClaudeAgentBridge, number: int) -> None:
        asyncio.ensure_future(bridge.send_work(item(f"left-{number}")))  # noqa: RUF006
        await bridge.send_work(item(f"w-{number}"))

    bridge = asyncio.run(ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=8)))
    for start in range(0, 100, 10):
        numbers = range(start, start + 10)
        threads = [threading.Thread(target=lambda n=n: asyncio.run(ask(bridge, n))) for n in numbers]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    say("errors", bridge.health().error_count)
    asyncio.run(bridge.shutdown())


def time_limit_while_the_loop_thread_is_held_up() -> None:
    """The limit of one item holds although the loop that would have to cancel it does not turn."""

    async def main() -> None:
        spec = AgentSpec(source=BlocksInC, in_flight=2)
        async with await ClaudeAgentBridge.spawn("executor", spec) as bridge:
            holding = asyncio.create_task(bridge.send_work(item("holding", context={"seconds": 1.5})))
            await until(lambda: "holding" in BlocksInC.working)
            try:
                await bridge.send_work(item("late", context={"seconds": 0.0}), timeout=0.1)
            except MnemosyneError as error:
                say(type(error).__name__)
            say("holding", (await holding).success)

    asyncio.run(main())


class Plain(AgentExecutionMixin):
    def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"success": True, "data": {"id": self.context.item.id}}


def cancels_race_with_results() -> None:
    """Each item is cancelled at about the moment it ends; every one is answered, and each with its own."""

    async def one(bridge: ClaudeAgentBridge, number: int) -> str:
        task = asyncio.create_task(bridge.send_work(item(f"w-{number}", context={"n": number})))
        for _ in range(number % 40):
            await asyncio.sleep(0)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            return "cancelled"
        assert result.data["context"] == {"n": number}
        return "done"

    async def main() -> None:
        async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, in_flight=32)) as bridge:
            ended = await asyncio.gather(*(one(bridge, number) for number in range(2_000)))
            await until(lambda: bridge.health().state == "idle")
            say("answered", len(ended), "errors", bridge.health().error_count)

    asyncio.run(main())
