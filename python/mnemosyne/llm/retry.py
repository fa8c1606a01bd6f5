"""One turn: sent until it is answered or the budget of its failure is used up; each try a journaled step of its own.

A try is sent only after its ``started`` step and its reservation are committed, and its answer is used only after
``finished`` is: killed anywhere in between, a resumed run asks again only what has no recorded answer. The governor is
asked before the step begins, so that what waits for its turn has reserved nothing; a recorded answer is never waited
for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from mnemosyne.errors import BudgetExceeded, ModelError, ModelParked
from mnemosyne.llm.budget import FittedRequest
from mnemosyne.llm.client import Client
from mnemosyne.llm.failures import (
    LONGEST_RETRY_AFTER,
    LONGEST_WAIT_IN_TASK,
    OVERLOADED_SECONDS,
    PARK_SECONDS,
    RULES,
    Failure,
    UsedUp,
)
from mnemosyne.llm.governor import MONOTONIC, SHARED, Governor, Governors, Held, Permit, Time
from mnemosyne.llm.turns import Turn, TurnError
from mnemosyne.metrics import get_metrics_collector
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
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> JsonValue: ...

    async def recorded(self, name: str, *, input: JsonValue) -> bool: ...

    def patience(self, waited: float) -> float: ...

    def progressed(self) -> None: ...

    async def breaker(self, opened: bool, data: dict[str, JsonValue]) -> None: ...


@dataclass(frozen=True)
class RetryPolicy:
    """Where the time, the chance and the governors of a turn come from: values, so that tests take no time.

    How often and for how long is in ``mnemosyne.llm.failures``.
    """

    time: Time = MONOTONIC
    random: random.Random = field(default_factory=random.Random)
    governors: Governors = SHARED


@dataclass(frozen=True)
class _Next:
    """What follows a failure: ask again after ``wait`` seconds, or let go of the item for ``park``, or give up."""

    wait: float | None = None
    park: float | None = None


class _Patience:
    """What is left of the budgets of one turn."""

    def __init__(self, policy: RetryPolicy, journal: Journal) -> None:
        self._policy = policy
        self._journal = journal
        self._since: float | None = None
        self.failures: Counter[Failure] = Counter()

    def begin(self) -> None:
        """From now on it is waited."""
        if self._since is None:
            self._since = self._policy.time.now()

    def left(self) -> float:
        """Seconds that it may still wait for the server."""
        waited = 0.0 if self._since is None else self._policy.time.now() - self._since
        return min(OVERLOADED_SECONDS - waited, self._journal.patience(waited))

    def after(self, error: TurnError) -> _Next:
        """Decide what follows ``error``."""
        self.begin()
        self.failures[error.failure] += 1
        rule, failures = RULES[error.failure], self.failures[error.failure]
        if rule.tries is not None and failures >= rule.tries:
            return _Next()
        if error.retry_after is not None:
            asked = min(error.retry_after, LONGEST_RETRY_AFTER)
            if asked > LONGEST_WAIT_IN_TASK:
                return _Next(park=asked)
            wait = asked
        else:
            bound = min(rule.longest, rule.first * 2.0 ** min(failures - 1, 30))
            wait = self._policy.random.uniform(0.0, bound)
        if rule.seconds is not None and wait >= self.left():
            return _Next(park=self.park_seconds())
        return _Next(wait=wait)

    def park_seconds(self) -> float:
        """For work that has waited for as long as it may."""
        return PARK_SECONDS * self._policy.random.uniform(1.0, 1.2)


async def ask(client: Client, journal: Journal, body: dict[str, JsonValue], policy: RetryPolicy) -> Turn:
    """Send ``body`` until there is a complete answer, or the budget of its failure is used up.

    Raises:
        BudgetExceeded: Not even a shorter answer fits into what is left; nothing was sent.
        ModelParked: The server is overloaded, or asks to wait for longer than an agent may be held.
        ModelError: ``fatal`` where asking the same again cannot help.
        EnvironmentProblem: No key, a refused key, or a server that never answered.
    """
    return await _Asking(client, journal, body, policy).answer()


class _Asking:
    """One turn under way."""

    def __init__(self, client: Client, journal: Journal, body: dict[str, JsonValue], policy: RetryPolicy) -> None:
        self._client = client
        self._journal = journal
        self._body = body
        self._time = policy.time
        self._governor: Governor = policy.governors.of(client.base_url, str(body["model"]))
        self._patience = _Patience(policy, journal)
        self._permit: Permit | None = None
        self._next = _Next()
        self._refusal: TurnError | None = None
        """The newest."""
        self._request = FittedRequest(client, body)

    async def answer(self) -> Turn:
        while True:
            try:
                return await self._try()
            except Held as held:
                raise self._held(held) from None
            except TurnError as error:
                await self._tell()
                if self._next.wait is None:
                    raise self._given_up(error) from error
                get_metrics_collector().count_retry(error.failure)
            await self._time.pause(self._next.wait)

    async def _try(self) -> Turn:
        while True:
            try:
                return await self._step()
            except BudgetExceeded as refused:
                await self._request.fit(refused)

    async def _step(self) -> Turn:
        try:
            output = await self._journal.journaled(
                "turn",
                kind="turn",
                input=self._body,
                function=self._send,
                detail=self._request.detail,
                reserve=self._request.reservation,
                admit=self._admit,
            )
        finally:
            permit, self._permit = self._permit, None
            if permit is not None:
                permit.release()
        return Turn.from_json(output)

    async def _admit(self) -> None:
        self._permit = await self._governor.admit(self._patience.left(), self._patience.begin)
        await self._tell()

    async def _send(self) -> tuple[JsonValue, Usage | None]:
        assert self._permit is not None  # the journal admits before it runs a step
        metrics = get_metrics_collector()
        try:
            turn = await self._client.send(self._request.body, heard=self._heard)
        except TurnError as error:
            self._permit.failed(error.failure, error.retry_after)
            self._next, self._refusal = self._patience.after(error), error
            error.detail = self._described(error)
            metrics.count_api_call(error.failure)
            raise
        self._permit.accepted()
        metrics.count_api_call("ok")
        self._request.check(turn)
        return turn.to_json(), turn.usage

    def _heard(self) -> None:
        """A piece of the answer came: the server has taken the request, and the work goes on."""
        if self._permit is not None:
            self._permit.accepted()
        self._journal.progressed()

    def _described(self, error: TurnError) -> dict[str, JsonValue]:
        """What the event of a failed try says of it."""
        said: dict[str, JsonValue] = {"class": error.failure, "try": self._patience.failures.total()}
        if self._next.wait is not None:
            said["wait_seconds"] = round(self._next.wait, 3)
        return said

    async def _tell(self) -> None:
        news = self._governor.news
        while news:
            opened, data = news.pop(0)
            await self._journal.breaker(opened, data)

    def _held(self, held: Held) -> ModelParked:
        if held.seconds is not None:
            return _parked(held.failure, held.seconds, held.reason)
        # What the server said to this very turn says more than that it had to wait.
        reason = self._refusal.reason if self._refusal is not None else held.reason
        return _parked(held.failure, self._patience.park_seconds(), reason)

    def _given_up(self, error: TurnError) -> ModelError:
        tries = self._patience.failures[error.failure]
        reason = error.reason if tries == 1 else f"{error.reason} (after {tries} tries)"
        if self._next.park is not None:
            return _parked(error.failure, self._next.park, reason)
        return ModelError(
            error.message,
            code=error.code,
            reason=reason,
            hint=error.hint,
            fatal=RULES[error.failure].used_up is not UsedUp.GOES_BACK,
            retry_after=error.retry_after,
            failure=error.failure,
        )


_PARKED = {
    Failure.WAIT_UNTIL: ("MN-0411", "the model's server asks to wait"),
    Failure.OVERLOADED: ("MN-0410", "the model's server is overloaded"),
    Failure.UNREACHABLE: ("MN-0412", "the model's server cannot be reached"),
}


def _parked(failure: Failure, seconds: float, reason: str) -> ModelParked:
    code, message = _PARKED[failure]
    get_metrics_collector().count_parked(failure)
    hint = "nothing has to be done: the work goes on by itself when its time has come"
    return ModelParked(message, code=code, reason=reason, hint=hint, failure=failure, seconds=seconds)
