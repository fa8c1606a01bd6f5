"""What this process did, counted: work items by agent, turns by outcome, tokens, cost, reviews and gates.

One of two views. The collector knows what its process did since it began and forgets it with it; ``mnemosyne stats``
(``mnemosyne.stats``) is of the store and of all time. A test holds them together.

Bounded, whatever comes: a label never comes from outside unchecked, what is one too many is counted as ``other``, and
of durations the last 1,024 of each agent are kept. Every method may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemosyne.models import Usage

__all__ = ["AgentMetrics", "MetricsCollector", "WorkItemMetrics", "get_metrics_collector"]

_MOST_LABELS = 32
_OTHER = "other"
_MOST_AGENTS = 256
"""An agent that comes after counts as ``other``: at most 64 work at a time, but each that is added has a new name."""
_MOST_UNDER_WAY = 16_384
"""What a tree takes; an item that is never finished must not be kept for ever."""
_KEPT = 1_024
"""Finished items, and durations of each agent: percentiles are of the recent past."""


@dataclass(slots=True)
class WorkItemMetrics:
    """One claim of a work item, or one piece of direct work.

    Attributes:
        item_id: Of the item.
        agent_id: Who worked on it.
        phase: Of the run.
        started: Seconds of ``time.monotonic``.
        seconds: How long it took; None while it is under way.
        success: Whether the agent returned ``success: true``; None while it is under way.
        error_type: The class of what it raised, or ``unsuccessful`` for a result that says ``success: false``.
        turns: Answers of a model.
        input_tokens: Outside of the cache.
        output_tokens: Of the answers.
        cached_tokens: Read from the cache.
        cost_usd: At list price.
        context_tokens: The longest conversation that was sent: how much of the model's window was used.
        review_passed: The verdict, where the item was a review.
        review_confidence: Of the verdict, from 0 to 1.
        quality_gates_passed: Commands that were green on the commit.
        quality_gates_failed: Commands that were not.
    """

    item_id: str
    agent_id: str
    phase: str
    started: float
    role: str = ""
    seconds: float | None = None
    success: bool | None = None
    error_type: str | None = None
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    context_tokens: int = 0
    review_passed: bool | None = None
    review_confidence: float | None = None
    quality_gates_passed: int = 0
    quality_gates_failed: int = 0


@dataclass
class AgentMetrics:
    """What one agent, or all agents of a role, did in this process.

    Attributes:
        name: The agent's id, or the role.
        started: Items begun.
        succeeded: Items that returned ``success: true``.
        failed: Items that returned ``success: false`` or raised.
        errors: How often each ``error_type`` came.
        reviews: Verdicts given.
        reviews_passed: Verdicts that passed.
        rework: Verdicts that did not: the task gets another attempt.
        quality_gates_passed: Commands that were green on a commit.
        quality_gates_failed: Commands that were not.
        turns: Answers of a model.
        input_tokens: Outside of the cache.
        output_tokens: Of the answers.
        cached_tokens: Read from the cache.
        cost_usd: At list price.
    """

    name: str
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reviews: int = 0
    reviews_passed: int = 0
    rework: int = 0
    quality_gates_passed: int = 0
    quality_gates_failed: int = 0
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    _confidence: float = 0.0
    _seconds: float = 0.0
    _min: float = float("inf")
    _max: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def get_success_rate(self) -> float:
        """Return how many of the finished items succeeded, in percent; 0 where none has finished."""
        return _percent(self.succeeded, self.succeeded + self.failed)

    def get_review_pass_rate(self) -> float:
        """Return how many of the verdicts passed, in percent; 0 where there is none."""
        return _percent(self.reviews_passed, self.reviews)

    @property
    def mean_review_confidence(self) -> float:
        """From 0 to 1; 0 where there is no verdict."""
        return self._confidence / self.reviews if self.reviews else 0.0

    @property
    def mean_seconds(self) -> float:
        """Of all finished items."""
        finished = self.succeeded + self.failed
        return self._seconds / finished if finished else 0.0

    @property
    def min_seconds(self) -> float:
        """Of all finished items; 0 where none has finished."""
        return self._min if self._min < float("inf") else 0.0

    @property
    def max_seconds(self) -> float:
        """Of all finished items."""
        return self._max

    def percentile(self, percent: float) -> float:
        """Return the seconds that so many percent of the last 1,024 items did not exceed; 0 where none has finished."""
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0

    @property
    def p50_seconds(self) -> float:
        """The median."""
        return self.percentile(50)

    @property
    def p95_seconds(self) -> float:
        """What 95 % did not exceed."""
        return self.percentile(95)

    @property
    def p99_seconds(self) -> float:
        """What 99 % did not exceed."""
        return self.percentile(99)

    def _add_item(self, item: WorkItemMetrics) -> None:
        seconds = item.seconds or 0.0
        if item.success:
            self.succeeded += 1
        else:
            self.failed += 1
            _count(self.errors, item.error_type or _OTHER)
        self._seconds += seconds
        if seconds < self._min:
            self._min = seconds
        if seconds > self._max:
            self._max = seconds
        self._recent.append(seconds)
        if item.turns:
            self.turns += item.turns
            self.input_tokens += item.input_tokens
            self.output_tokens += item.output_tokens
            self.cached_tokens += item.cached_tokens
            self.cost_usd += item.cost_usd
        self.quality_gates_passed += item.quality_gates_passed
        self.quality_gates_failed += item.quality_gates_failed
        if item.review_passed is not None:
            self.reviews += 1
            self.reviews_passed += item.review_passed
            self.rework += not item.review_passed
            self._confidence += item.review_confidence or 0.0


class MetricsCollector:
    """Counts what happens in one process; see ``get_metrics_collector``."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter[str]] = {"api_calls": Counter(), "retries": Counter(), "parked": Counter()}
        self._under_way: dict[str, WorkItemMetrics] = {}
        self._finished: deque[WorkItemMetrics] = deque(maxlen=_KEPT)
        self._agents: dict[str, AgentMetrics] = {}
        self._roles: dict[str, AgentMetrics] = {}
        self._lock = threading.Lock()

    # -- work items ------------------------------------------------------------------------------------------------

    def start_work_item(self, item_id: str, agent_id: str, phase: str, *, role: str = "") -> None:
        """Begin to count an item.

        Args:
            item_id: Of the item; one that is begun again before it was finished counts twice as begun.
            agent_id: Who works on it.
            phase: Of the run.
            role: Of the agent; by default its id without the number at its end.
        """
        item = WorkItemMetrics(item_id, agent_id, phase, time.monotonic(), role or _role_of(agent_id))
        with self._lock:
            if len(self._under_way) >= _MOST_UNDER_WAY:
                self._under_way.pop(next(iter(self._under_way)))
            self._under_way[item_id] = item
            for metrics in self._of(item):
                metrics.started += 1

    def finish_work_item(self, item_id: str, *, success: bool, error_type: str | None = None) -> None:
        """Count an item as finished; nothing where it was never begun.

        Args:
            item_id: Of the item.
            success: Whether the agent returned ``success: true``.
            error_type: The class of what it raised.
        """
        ended = time.monotonic()
        with self._lock:
            item = self._under_way.pop(item_id, None)
            if item is None:
                return
            item.seconds, item.success, item.error_type = ended - item.started, success, error_type
            for metrics in self._of(item):
                metrics._add_item(item)
            self._finished.append(item)

    def record_usage(self, item_id: str, usage: Usage) -> None:
        """Add the tokens and the cost of one answer to an item that is under way."""
        with self._lock:
            item = self._under_way.get(item_id)
            if item is None:
                return
            item.turns += usage.turns
            item.input_tokens += usage.input_tokens
            item.output_tokens += usage.output_tokens
            item.cached_tokens += usage.cache_read_tokens
            item.cost_usd += usage.cost_usd
            sent = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            item.context_tokens = max(item.context_tokens, sent)

    def record_review(self, item_id: str, *, passed: bool, confidence: float) -> None:
        """Note the verdict that an item under way came to."""
        with self._lock:
            if (item := self._under_way.get(item_id)) is not None:
                item.review_passed, item.review_confidence = passed, confidence

    def record_gates(self, item_id: str, *, passed: int, failed: int) -> None:
        """Note how many commands were green, and how many were not, on the commit that an item under way looked at."""
        with self._lock:
            if (item := self._under_way.get(item_id)) is not None:
                item.quality_gates_passed += passed
                item.quality_gates_failed += failed

    def get_work_item_metrics(self, item_id: str) -> WorkItemMetrics | None:
        """Return the figures of an item under way, or of one of the last 1,024 that finished."""
        with self._lock:
            found = self._under_way.get(item_id)
            return found or next((item for item in reversed(self._finished) if item.item_id == item_id), None)

    def get_agent_metrics(self, name: str) -> AgentMetrics:
        """Return the figures of an agent by its id, or of all agents of a role; all zero for one that did nothing."""
        with self._lock:
            return self._agents.get(name) or self._roles.get(name) or AgentMetrics(name)

    # -- turns -----------------------------------------------------------------------------------------------------

    def count_api_call(self, outcome: str) -> None:
        """Count a request to the model. ``outcome`` is ``ok`` or the class of its failure."""
        self._count("api_calls", outcome)

    def count_retry(self, failure: str) -> None:
        """Count a failure of this class that was answered by asking again."""
        self._count("retries", failure)

    def count_parked(self, failure: str) -> None:
        """Count work that was let go to wait for its time."""
        self._count("parked", failure)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return ``{"api_calls": {outcome: n}, "retries": {class: n}, "parked": {class: n}, "items": {...}}``.

        ``items`` has ``started``, ``succeeded``, ``failed`` and ``under_way``.
        """
        with self._lock:
            counted = {name: dict(counter) for name, counter in self._counters.items()}
            counted["items"] = {**_sums(self._roles.values()), "under_way": len(self._under_way)}
            return counted

    def _of(self, item: WorkItemMetrics) -> tuple[AgentMetrics, AgentMetrics]:
        # Of two names, found in two small dictionaries: the figures of a role are not added up when somebody asks.
        agent = self._agents.get(item.agent_id)
        if agent is None:
            name = item.agent_id if len(self._agents) < _MOST_AGENTS else _OTHER
            agent = self._agents.setdefault(name, AgentMetrics(name))
        role = self._roles.get(item.role)
        if role is None:
            name = item.role if len(self._roles) < _MOST_LABELS else _OTHER
            role = self._roles.setdefault(name, AgentMetrics(name))
        return agent, role

    def _count(self, name: str, label: str) -> None:
        with self._lock:
            _count(self._counters[name], label)


def _count(counter: Counter[str], label: str) -> None:
    known = label in counter or len(counter) < _MOST_LABELS
    counter[label if known else _OTHER] += 1


def _sums(metrics: Iterable[AgentMetrics]) -> Mapping[str, int]:
    found = list(metrics)
    return {name: sum(getattr(one, name) for one in found) for name in ("started", "succeeded", "failed")}


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _role_of(agent_id: str) -> str:
    """``executor-2`` is an executor; a name that a user chose stands for itself."""
    role, _, number = agent_id.rpartition("-")
    return role if number.isdigit() else agent_id


_COLLECTOR = MetricsCollector()


def get_metrics_collector() -> MetricsCollector:
    """Return the collector of this process."""
    return _COLLECTOR
