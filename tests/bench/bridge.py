"""Measures the bridge beside asyncio itself, in one process: ``make bench-bridge``.

Floors first, each as fast as it can be written by hand; their payload is one dict that is made once, and each hands the
result of an item back to whoever waits for that item. Ours is sent one
Rust value again and again, which becomes new Python objects each time, and its result is read back into Rust. The load
on the bridge is made by tokio tasks (``rust/bridge/src/bench.rs``), which is where work comes from in production.

``ours_*`` is the bridge: mailbox, loop, agent, completion. ``supervised_*`` is ``send_work`` from Rust, through the
agent's supervisor and actor, with its events. ``python_*`` is ``ClaudeAgentBridge.send_work`` from a user's loop.

Rounds take the cases in turn, so that what else the machine does falls on all of them; the figure of a case is the
median of its rounds. Usage: ``bridge.py [ROUNDS]`` (5).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import platform
import queue
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, ClaudeAgentBridge, Phase, WorkItem, _core, loop
from mnemosyne.mailbox import mailbox

ITEM = WorkItem(
    id="item-1",
    description="Rename the function parse to read in the module of the tests",
    phase=Phase.PLAN_TO_ARTIFACTS,
    role=AgentRole.EXECUTOR,
    context={"pack": "x" * 1024},
)
WORK = ITEM.model_dump(mode="json")
assert len(ITEM.description) == 60

Figures = dict[str, float]
Handler = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]


class Trivial(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True}


class Suspends(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"success": True}


class Sleeps(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"success": True}


def figures(seconds: float, took: list[float]) -> Figures:
    took.sort()
    return {
        "items_per_s": len(took) / seconds,
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[len(took) * 99 // 100] * 1e6,
    }


# ---- floors ----


async def _tasks(handler: Handler, in_flight: int, items: int) -> Figures:
    here, over = asyncio.get_running_loop(), asyncio.Event()
    took: list[float] = []
    left = items

    def begin() -> None:
        nonlocal left
        if left:
            left -= 1
            began = time.perf_counter()
            here.create_task(handler(WORK)).add_done_callback(partial(end, began))

    def end(began: float, task: asyncio.Task[dict[str, Any]]) -> None:
        assert task.result()["success"]
        took.append(time.perf_counter() - began)
        if len(took) == items:
            over.set()
        begin()

    began = time.perf_counter()
    for _ in range(in_flight):
        begin()
    await over.wait()
    return figures(time.perf_counter() - began, took)


def task_per_item(handler: Handler, in_flight: int, items: int) -> Figures:
    """A task for each item, on one loop, without threads."""
    return asyncio.run(_tasks(handler, in_flight, items))


class Elsewhere:
    """A loop on a thread of its own."""

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self.loop

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def threadsafe(handler: Handler, in_flight: int, items: int) -> Figures:
    """``run_coroutine_threadsafe`` from another thread."""
    free = threading.Semaphore(in_flight)
    took: list[float] = []
    with Elsewhere() as there:
        start = time.perf_counter()
        for _ in range(items):
            free.acquire()
            began = time.perf_counter()

            def end(future: Any, began: float = began) -> None:
                assert future.result()["success"]
                took.append(time.perf_counter() - began)
                free.release()

            asyncio.run_coroutine_threadsafe(handler(WORK), there).add_done_callback(end)
        for _ in range(in_flight):
            free.acquire()
        return figures(time.perf_counter() - start, took)


def threadsafe_one(handler: Handler, in_flight: int, items: int) -> Figures:
    """``run_coroutine_threadsafe(...).result()``: one at a time."""
    took: list[float] = []
    with Elsewhere() as there:
        start = time.perf_counter()
        for _ in range(items):
            began = time.perf_counter()
            asyncio.run_coroutine_threadsafe(handler(WORK), there).result()
            took.append(time.perf_counter() - began)
        return figures(time.perf_counter() - start, took)


def batched(handler: Handler, in_flight: int, items: int) -> Figures:
    """One ``call_soon_threadsafe`` for all that can be sent; all that ended in a round comes back as one list."""
    back: queue.SimpleQueue[list[tuple[int, dict[str, Any]]]] = queue.SimpleQueue()
    took: list[float] = []
    with Elsewhere() as there:
        ended: list[tuple[int, dict[str, Any]]] = []

        def flush() -> None:
            back.put(ended.copy())
            ended.clear()

        def end(number: int, task: asyncio.Task[dict[str, Any]]) -> None:
            ended.append((number, task.result()))
            if len(ended) == 1:
                there.call_soon(flush)

        def begin(batch: list[tuple[int, dict[str, Any]]]) -> None:
            for number, work in batch:
                there.create_task(handler(work)).add_done_callback(partial(end, number))

        start = time.perf_counter()
        sent: dict[int, float] = {}
        numbers = itertools.count()
        left, sendable = items, in_flight
        while len(took) < items:
            if count := min(sendable, left):
                left -= count
                batch = [(next(numbers), WORK) for _ in range(count)]
                now = time.perf_counter()
                sent.update((number, now) for number, _ in batch)
                there.call_soon_threadsafe(begin, batch)
            done = back.get()
            now = time.perf_counter()
            for number, result in done:
                assert result["success"]
                took.append(now - sent.pop(number))
            sendable = len(done)
        return figures(time.perf_counter() - start, took)


# ---- ours ----


async def _drive(agent: type, in_flight: int, items: int, supervised: bool) -> Figures:
    load: Any = {
        "agent": loop.register(agent),
        "supervised": supervised,
        "in_flight": in_flight,
        "items": items,
        "item": WORK,
    }
    answer: Any = await mailbox().call(lambda port, ticket: _core.bench_bridge(port, ticket, load))
    assert answer["items"] == items, answer
    return {
        "items_per_s": items / answer["seconds"],
        "p50_us": answer["p50_us"],
        "p99_us": answer["p99_us"],
    }


def ours(agent: type, in_flight: int, items: int) -> Figures:
    return asyncio.run(_drive(agent, in_flight, items, supervised=False))


def supervised(agent: type, in_flight: int, items: int) -> Figures:
    return asyncio.run(_drive(agent, in_flight, items, supervised=True))


async def _python(agent: type, in_flight: int, items: int) -> Figures:
    took: list[float] = []
    left = items
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=agent, in_flight=in_flight)) as bridge:

        async def driver() -> None:
            nonlocal left
            while left:
                left -= 1
                began = time.perf_counter()
                assert (await bridge.send_work(ITEM)).success
                took.append(time.perf_counter() - began)

        start = time.perf_counter()
        await asyncio.gather(*(driver() for _ in range(in_flight)))
        return figures(time.perf_counter() - start, took)


def from_python(agent: type, in_flight: int, items: int) -> Figures:
    return asyncio.run(_python(agent, in_flight, items))


def ping_pong(apart: bool, in_flight: int, items: int) -> Figures:
    """Two threads of Rust that wake each other, on two cores or where the scheduler puts them (on one)."""
    seconds, p50, p99 = _core.bench_ping_pong(items, apart)
    return {"items_per_s": items / seconds, "p50_us": p50, "p99_us": p99}


class Contended:
    """A Python thread that computes without end."""

    def __enter__(self) -> None:
        self.over = False
        self.thread = threading.Thread(target=self.compute)
        self.thread.start()

    def compute(self) -> None:
        number = 0
        while not self.over:
            number = (number * 31 + 7) % 1_000_003

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join()


def contended(measure: Callable[..., Figures]) -> Callable[..., Figures]:
    def run(*arguments: Any) -> Figures:
        with Contended():
            return measure(*arguments)

    return run


# The bridge alone, as a program in Rust has it; then with the models of the Python API, which import pydantic.
FIRST_ITEM = """
import asyncio, sys, time
from mnemosyne import AgentExecutionMixin, _core, loop
from mnemosyne.mailbox import mailbox
class Trivial(AgentExecutionMixin):
    async def execute_work(self, work):
        return {"success": True}
async def main():
    item = {"id": "w", "description": "d", "phase": "plan_to_artifacts", "role": "executor"}
    load = {"agent": loop.register(Trivial), "supervised": True, "in_flight": 1, "items": 1, "item": item}
    answer = await mailbox().call(lambda port, ticket: _core.bench_bridge(port, ticket, load))
    print(time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)
    assert answer["items"] == 1 and "pydantic" not in sys.modules
asyncio.run(main())
"""
FIRST_ITEM_PYTHON = """
import asyncio, sys, time
from mnemosyne import AgentExecutionMixin, AgentRole, ClaudeAgentBridge, Phase, WorkItem
class Trivial(AgentExecutionMixin):
    async def execute_work(self, work):
        return {"success": True}
async def main():
    bridge = await ClaudeAgentBridge.spawn("executor", Trivial)
    await bridge.send_work(WorkItem(id="w", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR))
    print(time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)
    assert "anthropic" not in sys.modules
    await bridge.shutdown()
asyncio.run(main())
"""


def first_item(program: str, in_flight: int, items: int) -> Figures:
    """From the start of a process to the end of its first item."""
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    took = float(done.stdout) - began
    return {"items_per_s": 1 / took, "p50_us": took * 1e6, "p99_us": took * 1e6}


# ---- cases ----


async def trivial(work: dict[str, Any]) -> dict[str, Any]:
    return {"success": True}


async def suspends(work: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"success": True}


async def sleeps(work: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0.05)
    return {"success": True}


# The speed of a machine that is not alone on its host changes within tenths of a second, so what is compared closely is
# measured for about a second at a time. The sleepers begin all at once and spread over their 50 ms within ten rounds:
# of 10 rounds the start is most, of 40 it is not.
CASES: dict[str, tuple[Callable[..., Figures], Any, int, int]] = {
    "pingpong_1": (ping_pong, True, 1, 3_000),
    "pingpong_one_core_1": (ping_pong, False, 1, 3_000),
    "threadsafe_1": (threadsafe_one, trivial, 1, 2_000),
    "ours_1": (ours, Trivial, 1, 3_000),
    "task_64": (task_per_item, trivial, 64, 120_000),
    "threadsafe_64": (threadsafe, trivial, 64, 10_000),
    "batched_64": (batched, trivial, 64, 100_000),
    "ours_64": (ours, Trivial, 64, 200_000),
    "supervised_64": (supervised, Trivial, 64, 10_000),
    "python_64": (from_python, Trivial, 64, 4_000),
    "task_1000": (task_per_item, trivial, 1_000, 40_000),
    "batched_1000": (batched, trivial, 1_000, 100_000),
    "ours_1000": (ours, Trivial, 1_000, 200_000),
    "task_suspend_64": (task_per_item, suspends, 64, 30_000),
    "batched_suspend_64": (batched, suspends, 64, 30_000),
    "ours_suspend_64": (ours, Suspends, 64, 30_000),
    "task_sleep_1000": (task_per_item, sleeps, 1_000, 40_000),
    "ours_sleep_1000": (ours, Sleeps, 1_000, 40_000),
    "threadsafe_contended_64": (contended(threadsafe), trivial, 64, 2_000),
    "batched_contended_64": (contended(batched), trivial, 64, 2_000),
    "ours_contended_64": (contended(ours), Trivial, 64, 2_000),
    "first_item": (first_item, FIRST_ITEM, 1, 1),
    "first_item_python": (first_item, FIRST_ITEM_PYTHON, 1, 1),
}

# Ours, what it is compared with, which figure, and the ratio that is asked for on 3.11 and on 3.12 and later.
RATIOS: tuple[tuple[str, str, str, str, float, float], ...] = (
    ("64 in flight / run_coroutine_threadsafe", "ours_64", "threadsafe_64", "items_per_s", 4, 8),
    ("64 in flight / hand-batched", "ours_64", "batched_64", "items_per_s", 1, 1),
    ("64 in flight / a task per item, one loop", "ours_64", "task_64", "items_per_s", 0.75, 1.3),
    ("1,000 in flight / hand-batched", "ours_1000", "batched_1000", "items_per_s", 1.5, 2),
    ("one at a time, p50 / ping-pong (at most)", "ours_1", "pingpong_1", "p50_us", 2, 2),
)
IDEAL_SLEEPING = 1_000 / 0.05


def main(rounds: int) -> None:
    measured: dict[str, list[Figures]] = {name: [] for name in CASES}
    for number in range(rounds + 1):
        for name, (measure, what, in_flight, items) in CASES.items():
            count = max(items // 10, in_flight) if number == 0 else items  # the first round warms up
            found = measure(what, in_flight, count)
            if number:
                measured[name].append(found)
    cases = {
        name: {figure: statistics.median(entry[figure] for entry in entries) for figure in entries[0]}
        for name, entries in measured.items()
    }
    show(cases, rounds)
    target = Path(__file__).parents[2] / "target" / "bench"
    target.mkdir(parents=True, exist_ok=True)
    report = {"python": platform.python_version(), "machine": machine(), "runs": rounds, "cases": cases}
    (target / "bridge.json").write_text(json.dumps(report, indent=2) + "\n")


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0].split(':')[1].strip() if names else platform.processor()}, {platform.platform()}"


def show(cases: dict[str, Figures], rounds: int) -> None:
    print(f"Python {platform.python_version()}, {machine()}; medians of {rounds}")
    print(f"{'case':26} {'items/s':>10} {'p50 us':>10} {'p99 us':>10}")
    for name, entry in cases.items():
        print(f"{name:26} {entry['items_per_s']:10,.0f} {entry['p50_us']:10,.1f} {entry['p99_us']:10,.1f}")
    new = sys.version_info >= (3, 12)
    print()
    for what, mine, other, figure, old_target, new_target in RATIOS:
        ratio = cases[mine][figure] / cases[other][figure]
        print(f"{what:46} {ratio:6.2f}   asked for: {new_target if new else old_target}")
    sleeping = cases["ours_sleep_1000"]["items_per_s"] / IDEAL_SLEEPING
    print(f"{'1,000 sleeping 50 ms / ideal':46} {sleeping:6.2f}   asked for: 0.85")
    first = cases["first_item"]["p50_us"] / 1e3
    print(f"{'first item after process start, ms (at most)':46} {first:6.0f}   asked for: 150")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory of this process, MB':46} {memory:6.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
