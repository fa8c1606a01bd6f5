"""What it costs to judge a plan of 100 tasks before anything is stored: as a model, and from JSON with its reading.

``python tests/bench/validation.py``: p50 and p99 of 2,000 rounds, in milliseconds, beside ``json.loads`` of the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from mnemosyne.models import Acceptance, Plan, PlanTask
from mnemosyne.validation import validate_work_plan

ROUNDS = 2_000


def plan_of(count: int) -> Plan:
    """A plan as models write them: a sentence or two for each task, dependencies on the ten before."""
    return Plan(
        tasks=[
            PlanTask(
                id=f"t{at}",
                title=f"Write part {at} of the importer",
                description="Read the file line by line, refuse what has no header, and say which line it was.",
                depends_on=[f"t{before}" for before in range(max(0, at - 10), at)],
                file_scope=[f"importer/part_{at}.py", f"tests/test_part_{at}.py"],
                acceptance=[Acceptance(command=f"python3 -m unittest tests.test_part_{at} && ruff check importer")],
            )
            for at in range(count)
        ]
    )


def measured(name: str, function: Callable[[], object]) -> None:
    """Print the p50 and p99 of ``function``."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1_000)
    times.sort()
    print(f"{name:32}  p50 {times[ROUNDS // 2]:7.3f} ms   p99 {times[ROUNDS * 99 // 100]:7.3f} ms")


def main() -> None:
    """Measure and print."""
    plan = plan_of(100)
    text = plan.model_dump_json()
    assert validate_work_plan(plan).ok
    measured("json.loads", lambda: json.loads(text))
    measured("validate_work_plan(model)", lambda: validate_work_plan(plan))
    measured("validate_work_plan(JSON)", lambda: validate_work_plan(json.loads(text)))


if __name__ == "__main__":
    main()
