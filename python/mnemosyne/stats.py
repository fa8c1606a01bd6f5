"""What a store has seen since it was made, added up from its events: the other view beside ``mnemosyne.metrics``.

The sums are Rust's (``rust/core/src/stats.rs``), and ``/metrics`` of the window shows the same. Events are committed
with what they tell of (DUR-2), so these sums hold whatever was killed meanwhile. A claim that a ``kill -9`` cut off is
begun and never ended; it is counted as ``cut_off``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mnemosyne.models import Usage

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["StoreStats", "read_stats"]

_COUNTED = ("runs", "claims", "tasks", "reviews", "steps", "failures")


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
        counted: dict[str, JsonValue] = {name: dict[str, "JsonValue"](getattr(self, name)) for name in _COUNTED}
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
    if not store.exists():
        return StoreStats()
    from mnemosyne.orchestra import sum_up

    found = await sum_up(store)
    counts = {name: Counter(cast(dict[str, int], found[name])) for name in _COUNTED}
    agents = cast(dict[str, dict[str, int]], found["agents"])
    return StoreStats(
        events=cast(int, found["events"]),
        **counts,
        confidence=cast(float, found["mean_review_confidence"]),
        usage=Usage.model_validate(found["usage"]),
        agents={role: Counter(counted) for role, counted in agents.items()},
        restarts=cast(int, found["restarts"]),
        quarantines=cast(int, found["quarantines"]),
    )
