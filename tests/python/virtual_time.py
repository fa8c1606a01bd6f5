"""Time that passes only when everybody waits for it, so that 20 minutes against a real server take a second.

A task is either waiting here or doing something real (a request to a loopback server, say). While one does, no time
passes; when all wait, it is at once as late as the first of them is waiting for.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from mnemosyne.llm import RetryPolicy
from mnemosyne.llm.governor import Governors

__all__ = ["VirtualTime", "minutes", "policy"]

Result = TypeVar("Result")


@dataclass
class _Sleeper:
    due: float
    wake: asyncio.Event
    woken: asyncio.Event | None

    @property
    def asleep(self) -> bool:
        return not self.wake.is_set() and not (self.woken and self.woken.is_set())


class VirtualTime:
    """The ``Time`` of a retry policy.

    Attributes:
        slept: Every wait that was asked for, in order; only those with an end.
    """

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._now = 0.0
        self._sleepers: list[_Sleeper] = []
        self._tasks = 0

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait as ``asyncio.sleep`` does, for code that has no other way to wait."""
        await self.pause(seconds)

    async def pause(self, seconds: float, woken: asyncio.Event | None = None) -> None:
        if math.isfinite(seconds):
            self.slept.append(seconds)
        sleeper = _Sleeper(self._now + max(seconds, 0.0), asyncio.Event(), woken)
        self._sleepers.append(sleeper)
        self._pass()
        waits = [asyncio.ensure_future(event.wait()) for event in (sleeper.wake, woken) if event is not None]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._sleepers.remove(sleeper)

    async def run(self, *work: Coroutine[Any, Any, Result]) -> list[Result]:
        """Run these to their end side by side and return what they return; the first exception is raised."""
        tasks = [asyncio.create_task(one) for one in work]
        self._tasks = len(tasks)
        for task in tasks:
            task.add_done_callback(lambda _: self._ended())
        return list(await asyncio.wait_for(asyncio.gather(*tasks), timeout=120.0))

    def _ended(self) -> None:
        self._tasks -= 1
        self._pass()

    def _pass(self) -> None:
        asleep = [sleeper for sleeper in self._sleepers if sleeper.asleep]
        if not asleep or len(asleep) < self._tasks:
            return
        first = min(asleep, key=lambda sleeper: sleeper.due)
        assert math.isfinite(first.due), "everybody waits for somebody else"
        self._now = max(self._now, first.due)
        first.wake.set()


def minutes(times: list[float], total: int) -> list[int]:
    """Return how many of ``times`` (seconds) fall into each of the first ``total`` minutes."""
    counted = [0] * total
    for minute in itertools.takewhile(lambda minute: minute < total, sorted(int(at // 60) for at in times)):
        counted[minute] += 1
    return counted


def policy() -> RetryPolicy:
    """A retry policy whose waits take no time, and whose governors nobody shares."""
    time = VirtualTime()
    return RetryPolicy(time, random.Random(1), Governors(time, random.Random(2)))
