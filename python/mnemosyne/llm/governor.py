"""Who may send now: one governor for each endpoint and model, shared by all agents of the process.

A server that is overloaded is not helped by more requests, and a limit of the account is a limit for every agent. So:

- The number of requests at a time falls by half with an overload and climbs back by about one for each round of
  answers (additive increase, multiplicative decrease). Requests that were under way together count as one overload.
- After five overloads in a row, with no answer between them, the *breaker* opens: nothing is sent but one *probe* at a
  time, in growing intervals. The first answer closes it, and the limit climbs from one.
- A time that a server names with a 429 holds everybody back. Who would wait for longer than an agent may be held
  is told so by ``Held`` and parks its work.

All agents of a process live on one loop, so nothing here is locked. Who waits is served in the order of coming.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from mnemosyne.llm.failures import LONGEST_RETRY_AFTER, LONGEST_WAIT_IN_TASK, Failure

__all__ = ["MONOTONIC", "SHARED", "Governor", "Governors", "Held", "Permit", "Time"]

OVERLOADS_TO_OPEN = 5
FIRST_PROBE_SECONDS = 1.0
LONGEST_PROBE_SECONDS = 60.0
"""The interval doubles from one to the other; half of each is drawn evenly, so that processes do not probe in step."""

_OVERLOADS = frozenset({Failure.WAIT_UNTIL, Failure.OVERLOADED, Failure.UNREACHABLE})
_ANSWERS = frozenset({Failure.FATAL, Failure.CONTEXT_OVERFLOW})
"""The server answered, if only to say no: it is not overloaded."""


class Time(Protocol):
    """The clock and the only way to wait; tests put their own in its place."""

    def now(self) -> float:
        """Return seconds; only their differences mean something."""

    async def pause(self, seconds: float, woken: asyncio.Event | None = None) -> None:
        """Wait for so long, or until ``woken`` is set."""


class _Monotonic:
    def now(self) -> float:
        return time.monotonic()

    async def pause(self, seconds: float, woken: asyncio.Event | None = None) -> None:
        if woken is None:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                await woken.wait()


MONOTONIC: Time = _Monotonic()


class Held(Exception):
    """The request may not be sent soon enough to wait for it.

    Attributes:
        failure: How the requests before failed.
        seconds: After which it may be tried again, where the server named a time; None: it waited as long as it may.
    """

    def __init__(self, failure: Failure, seconds: float | None, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.seconds = seconds
        self.reason = reason


@dataclass(eq=False)
class _Open:
    """The breaker is open."""

    since: float
    probe_at: float
    probes: int = 0
    probing: bool = False


@dataclass(eq=False)
class Permit:
    """The right to send one request; give it back with ``release``, whatever happened."""

    governor: Governor
    era: int
    """Of the limit when it was given: what was under way before a cut must not cut again."""
    probe: _Open | None
    """The opening of the breaker that it probes; a later one is not its business."""
    _told: bool = False
    """The server's answer is known."""

    def accepted(self) -> None:
        """The server began to answer."""
        if not self._told:
            self._told = True
            self.governor._accepted(self)

    def failed(self, failure: Failure, retry_after: float | None) -> None:
        """The request failed in this way."""
        if failure in _OVERLOADS:
            # Also after it began to answer: servers say so in the middle of a stream too.
            self._told = True
            self.governor._overloaded(self, failure, retry_after)
        elif failure in _ANSWERS:
            self.accepted()

    def release(self) -> None:
        """Give the place back."""
        self.governor._released(self, told=self._told)


@dataclass(eq=False)
class Governor:
    """The state of one endpoint and model, see the module."""

    endpoint: str
    model: str
    time: Time = MONOTONIC
    random: random.Random = field(default_factory=random.Random)
    limit: float = math.inf
    """Requests at a time, at least 1. None until the first overload: how many agents there are is not ours to say."""
    in_flight: int = 0
    news: list[tuple[bool, dict[str, JsonValue]]] = field(default_factory=list)
    """Breaker opened (True) or closed, and what the event says; taken by whoever has a journal."""
    _era: int = 0
    _overloads: int = 0
    _last: Failure = Failure.OVERLOADED
    _open: _Open | None = None
    _held_until: float = -math.inf
    _queue: deque[asyncio.Event] = field(default_factory=deque)

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open."""
        return self._open is not None

    async def admit(self, patience: float, on_wait: Callable[[], None] = lambda: None) -> Permit:
        """Wait until a request may be sent, at most ``patience`` seconds.

        Args:
            patience: Seconds.
            on_wait: Called before the first wait, if there is one.

        Raises:
            Held: It would have to wait for longer than an agent may be held.
        """
        woken = asyncio.Event()
        self._queue.append(woken)
        deadline = self.time.now() + patience
        try:
            while (seconds := self._seconds_until(woken)) > 0:
                on_wait()
                self._refuse_long_wait(deadline)
                woken.clear()
                await self.time.pause(min(seconds, deadline - self.time.now()), woken)
        finally:
            self._queue.remove(woken)
            self._wake_first()
        return self._take()

    def _seconds_until(self, woken: asyncio.Event) -> float:
        """Return how long this waiter has to wait from now; infinite: until it is woken."""
        now = self.time.now()
        if now < self._held_until:
            return self._held_until - now
        if self._queue[0] is not woken:
            return math.inf
        if self._open is None:
            return 0.0 if self.in_flight + 1 <= self.limit else math.inf
        return math.inf if self._open.probing else self._open.probe_at - now

    def _refuse_long_wait(self, deadline: float) -> None:
        now = self.time.now()
        if self._held_until - now > LONGEST_WAIT_IN_TASK:
            raise Held(Failure.WAIT_UNTIL, self._held_until - now, "the server named a time for this model")
        if now >= deadline:
            raise Held(self._last, None, "its turn to send did not come in time: other requests fail or are under way")

    def _take(self) -> Permit:
        self.in_flight += 1
        if self._open is not None:
            self._open.probing = True
            self._open.probes += 1
        return Permit(self, self._era, probe=self._open)

    def _accepted(self, permit: Permit) -> None:
        self._overloads = 0
        self.limit += 1.0 / self.limit
        opened = self._probed_by(permit)
        if opened is not None:
            self._open = None
            self._say(opened=False, seconds=round(self.time.now() - opened.since, 3), probes=opened.probes)
        self._wake_first()

    def _overloaded(self, permit: Permit, failure: Failure, retry_after: float | None) -> None:
        now = self.time.now()
        self._last = failure
        if permit.era == self._era:
            self._era += 1
            self.limit = max(1.0, min(self.limit, float(self.in_flight)) / 2)
        if failure is Failure.WAIT_UNTIL and retry_after is not None:
            self._held_until = max(self._held_until, now + min(retry_after, LONGEST_RETRY_AFTER))
        self._overloads += 1
        opened = self._probed_by(permit)
        if opened is not None:
            self._probe_later(opened, retry_after)
        elif self._open is None and self._overloads >= OVERLOADS_TO_OPEN:
            self._open = _Open(since=now, probe_at=now)
            self.limit = 1.0
            self._probe_later(self._open, retry_after)
            self._say(opened=True, overloads=self._overloads, failure=str(failure))

    def _probed_by(self, permit: Permit) -> _Open | None:
        return self._open if permit.probe is self._open else None

    def _probe_later(self, opened: _Open, retry_after: float | None) -> None:
        opened.probing = False
        interval = min(LONGEST_PROBE_SECONDS, FIRST_PROBE_SECONDS * 2.0 ** min(opened.probes, 10))
        asked = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
        opened.probe_at = self.time.now() + max(asked, self.random.uniform(interval / 2, interval))

    def _released(self, permit: Permit, *, told: bool) -> None:
        self.in_flight -= 1
        opened = self._probed_by(permit)
        if opened is not None and not told:
            self._probe_later(opened, None)  # it ended without a word, so another one asks
        self._wake_first()

    def _say(self, *, opened: bool, **data: JsonValue) -> None:
        self.news.append((opened, {"endpoint": self.endpoint, "model": self.model, **data}))

    def _wake_first(self) -> None:
        if self._queue:
            self._queue[0].set()


@dataclass(eq=False)
class Governors:
    """The governors of a process."""

    time: Time = MONOTONIC
    random: random.Random = field(default_factory=random.Random)
    _known: dict[tuple[str, str], Governor] = field(default_factory=dict)

    def of(self, endpoint: str, model: str) -> Governor:
        """Return the governor of a model at an endpoint; the same one each time."""
        key = (endpoint, model)
        if key not in self._known:
            self._known[key] = Governor(endpoint, model, self.time, self.random)
        return self._known[key]


SHARED = Governors()
