"""What it costs to count a work item: start and finish, beside two calls of an empty function.

``python tests/bench/metrics.py``: medians of 5 rounds of 100,000 items each, in microseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from mnemosyne.metrics import MetricsCollector

ITEMS = 100_000


def nothing(item: str, **_: object) -> None:
    """What a collector that does nothing would cost."""


def per_item(start: Callable[..., None], finish: Callable[..., None]) -> float:
    """Return microseconds per item."""
    names = [f"r-7f3a.{number}" for number in range(ITEMS)]
    began = time.perf_counter()
    for name in names:
        start(name, agent_id="executor-1", phase="plan_to_artifacts")
        finish(name, success=True)
    return (time.perf_counter() - began) / ITEMS * 1e6


def main() -> None:
    """Measure and print."""
    collector = MetricsCollector()
    empty, counted = [], []
    for _ in range(5):
        empty.append(per_item(nothing, nothing))
        counted.append(per_item(collector.start_work_item, collector.finish_work_item))
    print(f"two empty calls    {statistics.median(empty):6.2f} us per item")
    print(f"start and finish   {statistics.median(counted):6.2f} us per item")


if __name__ == "__main__":
    main()
