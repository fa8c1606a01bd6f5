"""What a store has seen since it was made, added up from its events: the other view beside :mod:`mnemosyne.metrics`.

Events are committed with what they tell of (DUR-2), so these sums hold whatever was killed meanwhile. A claim that a
``kill -9`` cut off is begun and never ended; it is counted as ``cut_off``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.models import Usage

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.models import Event

__all__ = ["StoreStats", "read_stats"]

_ENDINGS = {
    "work_completed": "completed",
    "work_failed": "failed",
    "work_cancelled": "cancelled",
    "work_dead": "dead",
    "work_parked": "parked",
}
_RUN_STATES = {
    "run_submitted": "running",
    "run_resumed": "running",
    "run_paused": "paused",
    "run_completed": "done",
    "run_failed": "failed",
    "run_cancelled": "cancelled",
    "run_interrupted": "interrupted",
    "budget_exceeded": "budget",
}


@dataclass
class StoreStats:
    """Sums over all events of a store.

    Attributes:
        events: How many there are.
        runs: By the state in which the last event left them.
        claims: Claims of work items by their end: ``started``, then ``completed``, ``failed``, ``cancelled``, ``dead``,
            ``parked``, ``errors`` (the agent raised, and the item was given out again or given up) and ``cut_off``.
        tasks: ``accepted``, ``failed``, ``skipped``.
        reviews: ``passed`` and ``rejected``.
        confidence: Mean of the verdicts that passed, from 0 to 1.
        usage: Of all steps whose cost is known. What an agent reserved and settled by hand has no event; it is in the
            summary of its run.
        steps: ``started``, ``finished``, ``failed``, and ``unknown`` for those that a crash cut off.
        failures: Turns and tools that failed, by class.
        agents: By role: ``started``, ``completed``, ``failed``, ``errors``.
        restarts: Of agents.
        quarantines: Of agents.
    """

    events: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    confidence: float = 0.0
    usage: Usage = field(default_factory=Usage)
    steps: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    agents: dict[str, Counter[str]] = field(default_factory=dict)
    restarts: int = 0
    quarantines: int = 0

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the form of ``mnemosyne stats --json``."""
        counted: dict[str, JsonValue] = {
            name: dict[str, "JsonValue"](getattr(self, name))
            for name in ("runs", "claims", "tasks", "reviews", "steps", "failures")
        }
        return {
            "events": self.events,
            **counted,
            "mean_review_confidence": round(self.confidence, 4),
            "usage": self.usage.model_dump(mode="json"),
            "agents": {role: dict[str, "JsonValue"](counter) for role, counter in sorted(self.agents.items())},
            "restarts": self.restarts,
            "quarantines": self.quarantines,
        }


async def read_stats(store: Path) -> StoreStats:
    """Return the sums of a store; all zero where there is none, and asking does not make one."""
    folded = _Fold()
    if store.exists():
        from mnemosyne.orchestra import read_all_events

        async for event in read_all_events(store):
            folded.add(event)
    return folded.done()


class _Fold:
    """One pass over the events."""

    def __init__(self) -> None:
        self.stats = StoreStats()
        self._runs: dict[str, str] = {}
        self._claims: dict[tuple[str, int | None], Event] = {}
        """By item and epoch: those that have begun and not ended."""
        self._confidences: list[float] = []

    def add(self, event: Event) -> None:
        stats, kind, data = self.stats, event.kind, event.data
        stats.events += 1
        if event.run is not None and kind in _RUN_STATES:
            self._runs[event.run] = _RUN_STATES[kind]
        if kind == "work_started":
            self._begin(event)
        elif kind in _ENDINGS:
            self._end(event, _ENDINGS[kind])
        elif kind == "agent_failed" and event.item is not None:
            self._end(event, "errors")
        elif kind in ("task_accepted", "task_failed", "task_skipped"):
            stats.tasks[kind.removeprefix("task_")] += 1
        elif kind in ("review_passed", "review_rejected"):
            stats.reviews[kind.removeprefix("review_")] += 1
            if isinstance(confidence := data.get("confidence"), int | float):
                self._confidences.append(float(confidence))
        elif kind == "step_started":
            stats.steps["started"] += 1
        elif kind == "step_finished":
            stats.steps[str(data.get("state", "finished"))] += 1
            if isinstance(usage := data.get("usage"), dict):
                stats.usage += Usage.model_validate(usage)
            if isinstance(failure := data.get("class"), str):
                stats.failures[failure] += 1
        elif kind == "agent_restarted":
            stats.restarts += 1
        elif kind == "agent_quarantined":
            stats.quarantines += 1

    def done(self) -> StoreStats:
        stats = self.stats
        stats.runs = Counter(self._runs.values())
        for claim in self._claims.values():
            self._count(claim, "cut_off")
        unknown = stats.steps["started"] - stats.steps["finished"] - stats.steps["failed"]
        if unknown:
            stats.steps["unknown"] = unknown
        if self._confidences:
            stats.confidence = sum(self._confidences) / len(self._confidences)
        return stats

    def _begin(self, event: Event) -> None:
        self._claims[str(event.item), event.epoch] = event
        self._count(event, "started")

    def _end(self, event: Event, ending: str) -> None:
        # An item that is cancelled while it waits was never begun, and one that is dead ended with its last claim.
        begun = self._claims.pop((str(event.item), event.epoch), None)
        if begun is not None or ending in ("cancelled", "dead"):
            self._count(event, ending)

    def _count(self, event: Event, what: str) -> None:
        self.stats.claims[what] += 1
        if event.role is not None:
            self.stats.agents.setdefault(event.role, Counter())[what] += 1
