"""A wall of 529: a real server that refuses everything for some minutes of virtual time, and those who run into it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import anthropic
from anthropic import _base_client
from journal_in_memory import MemoryJournal
from messages_server import MessagesServer, Reply, failing, saying
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import ModelParked
from mnemosyne.llm import Client, RetryPolicy
from mnemosyne.llm.governor import Governor, Governors, Permit
from mnemosyne.llm.retry import ask
from mnemosyne.models import Phase, WorkItem
from virtual_time import VirtualTime

__all__ = ["Outcome", "Wall", "governed", "with_the_sdk"]

KEY = "sk-ant-test-0123456789abcdef"


@dataclass
class Wall:
    """Answers 529 until ``ends`` (seconds), then well.

    Attributes:
        times: When each request came.
    """

    minutes: float
    time: VirtualTime = field(default_factory=VirtualTime)
    times: list[float] = field(default_factory=list)

    @property
    def ends(self) -> float:
        return self.minutes * 60.0

    def answer(self, _body: dict[str, Any]) -> Reply:
        self.times.append(self.time.now())
        return failing(529, "overloaded_error", "busy") if self.time.now() < self.ends else saying("done")


@dataclass
class Outcome:
    """How it went.

    Attributes:
        most_while_open: Requests at a time that were begun while the breaker was open.
        ended: When the last task ended.
    """

    answered: int = 0
    failed: int = 0
    parked: int = 0
    parked_at: list[float] = field(default_factory=list)
    most_while_open: int = 0
    breaker: list[tuple[bool, dict[str, Any]]] = field(default_factory=list)
    ended: float = 0.0


async def governed(wall: Wall, *, tasks: int) -> Outcome:
    """Our own way: each task asks, and where it is parked, asks again when its time has come, as the store would."""
    outcome = Outcome()
    policy = RetryPolicy(wall.time, random.Random(1), Governors(wall.time, random.Random(2)))
    with MessagesServer(answer=wall.answer) as server:
        client = Client({"base_url": server.url, "api_key": KEY})
        governor = policy.governors.of(client.base_url, "demo")
        _count_while_open(governor, outcome)

        async def task(number: int) -> None:
            journal = MemoryJournal()
            while True:
                try:
                    await ask(client, _context(journal, number), _body(number), policy)
                except ModelParked as parked:
                    outcome.parked += 1
                    outcome.parked_at.append(wall.time.now())
                    journal.next_claim()
                    await wall.time.pause(parked.seconds)
                except Exception:
                    outcome.failed += 1
                    return
                else:
                    outcome.answered += 1
                    outcome.ended = wall.time.now()
                    return
                finally:
                    outcome.breaker += journal.breaker
                    journal.breaker.clear()

        await wall.time.run(*(task(number) for number in range(tasks)))
        await client.close()
    return outcome


async def with_the_sdk(wall: Wall, *, tasks: int, again: bool) -> Outcome:
    """The SDK's own retry with its defaults; ``again``: what failed is started again at once, as a plain loop does."""
    outcome = Outcome()
    slept = _base_client.anyio.sleep
    _base_client.anyio.sleep = wall.time.sleep
    try:
        with MessagesServer(answer=wall.answer) as server:
            sdk = anthropic.AsyncAnthropic(api_key=KEY, base_url=server.url)

            async def task(number: int) -> None:
                while True:
                    try:
                        stream = await sdk.messages.create(**_body(number))  # type: ignore[call-overload]
                        async with stream:
                            async for _ in stream:
                                pass
                    except anthropic.APIStatusError:
                        outcome.failed += 1
                        outcome.ended = wall.time.now()
                        if not again:
                            return
                    else:
                        outcome.answered += 1
                        outcome.ended = wall.time.now()
                        return

            await wall.time.run(*(task(number) for number in range(tasks)))
            await sdk.close()
    finally:
        _base_client.anyio.sleep = slept
    return outcome


def _count_while_open(governor: Governor, outcome: Outcome) -> None:
    begun: set[int] = set()
    admit, released = governor.admit, governor._released

    async def counted(*arguments: Any) -> Permit:
        permit = await admit(*arguments)
        if governor.is_open:
            begun.add(id(permit))
            outcome.most_while_open = max(outcome.most_while_open, len(begun))
        return permit

    def given_back(permit: Permit, *, told: bool) -> None:
        begun.discard(id(permit))
        released(permit, told=told)

    governor.admit = counted  # type: ignore[method-assign, assignment]
    governor._released = given_back  # type: ignore[method-assign]


def _context(journal: MemoryJournal, number: int) -> AgentContext:
    item = WorkItem(id=f"i{number}", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    return AgentContext(item, epoch=journal.epoch, upcalls=journal)


def _body(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"task {number}"}]
    return {"model": "demo", "max_tokens": 100, "stream": True, "messages": messages}
