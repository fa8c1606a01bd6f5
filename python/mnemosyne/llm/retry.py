"""Three tries for one turn, each a journaled step of its own.

A try is sent only after its ``started`` step and its reservation are committed, and its answer is used only after
``finished`` is: killed anywhere in between, a resumed run asks again only what has no recorded answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from mnemosyne.canonical import sha256_json
from mnemosyne.errors import ModelError
from mnemosyne.llm import prices
from mnemosyne.llm.client import Client
from mnemosyne.llm.turns import Turn, TurnError
from mnemosyne.models import Usage

__all__ = ["Journal", "RetryPolicy", "ask"]


class Journal(Protocol):
    """What a session needs of the agent's context; ``AgentContext`` has it."""

    async def journaled(
        self,
        name: str,
        *,
        kind: str,
        input: JsonValue,
        function: Callable[[], Awaitable[tuple[JsonValue, Usage | None]]],
        detail: dict[str, JsonValue] | None = None,
        reserve: dict[str, JsonValue] | None = None,
        interrupted: Callable[[], Awaitable[JsonValue]] | None = None,
    ) -> JsonValue: ...

    async def recorded(self, name: str, *, input: JsonValue) -> bool: ...


@dataclass(frozen=True)
class RetryPolicy:
    """How often and after how long to ask again.

    The wait is drawn evenly from zero to the bound (full jitter), so that agents that failed together do not come back
    together. ``sleep`` and ``random`` are values so that tests take no time.
    """

    tries: int = 3
    first_seconds: float = 0.5
    longest_seconds: float = 8.0
    longest_retry_after: float = 30.0
    """A server that asks for more is obeyed by giving the turn up, not by holding the agent for hours."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: random.Random = field(default_factory=random.Random)

    def wait(self, failures: int, retry_after: float | None) -> float | None:
        """Return the seconds to wait after ``failures`` failures (1 or more); None: give up now."""
        if failures >= self.tries or (retry_after is not None and retry_after > self.longest_retry_after):
            return None
        if retry_after is not None:
            return retry_after
        return self.random.uniform(0.0, min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1)))


async def ask(client: Client, journal: Journal, body: dict[str, JsonValue], policy: RetryPolicy) -> Turn:
    """Send ``body`` until there is a complete answer, or the policy gives up.

    Raises:
        ModelError: ``fatal`` where the server rejects the request; else after the last try, with ``retry_after``.
        EnvironmentProblem: No key, a refused key, or a server that never answered.
    """

    async def send() -> tuple[JsonValue, Usage | None]:
        turn = await client.send(body)
        return turn.to_json(), turn.usage

    detail: dict[str, JsonValue] = {"request_sha256": sha256_json(body)}
    failures = 0
    while True:
        try:
            output = await journal.journaled(
                "turn", kind="turn", input=body, function=send, detail=detail, reserve=prices.reservation(body)
            )
            return Turn.from_json(output)
        except TurnError as error:
            failures += 1
            wait = None if error.fatal else policy.wait(failures, error.retry_after)
            if wait is None:
                raise _given_up(error, failures) from error
        await policy.sleep(wait)


def _given_up(error: TurnError, tries: int) -> ModelError:
    reason = error.reason if error.fatal or tries == 1 else f"{error.reason} (after {tries} tries)"
    return ModelError(
        error.message,
        code=error.code,
        reason=reason,
        hint=error.hint,
        fatal=error.fatal,
        retry_after=error.retry_after,
    )
