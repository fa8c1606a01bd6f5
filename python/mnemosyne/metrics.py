"""Counters of this process, for whoever asks how often the model was called and how it failed.

Every room may use it. A label never comes from outside unchecked: a counter keeps at most 32 of them and counts
what comes after as ``other``, so that no server can fill the memory by inventing names.
"""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["MetricsCollector", "get_metrics_collector"]

_MOST_LABELS = 32
_OTHER = "other"


class MetricsCollector:
    """Counts what happened; every method may be called from any thread."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter[str]] = {"api_calls": Counter(), "retries": Counter(), "parked": Counter()}
        self._lock = threading.Lock()

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
        """Return ``{"api_calls": {outcome: n}, "retries": {class: n}, "parked": {class: n}}``."""
        with self._lock:
            return {name: dict(counter) for name, counter in self._counters.items()}

    def _count(self, name: str, label: str) -> None:
        with self._lock:
            counter = self._counters[name]
            known = label in counter or len(counter) < _MOST_LABELS
            counter[label if known else _OTHER] += 1


_COLLECTOR = MetricsCollector()


def get_metrics_collector() -> MetricsCollector:
    """Return the collector of this process."""
    return _COLLECTOR
