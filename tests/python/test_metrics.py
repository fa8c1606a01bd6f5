"""The collector of one process: figures by item, agent and role, bounded, from any thread."""

from __future__ import annotations

import sys
import threading

import pytest
from mnemosyne.metrics import MetricsCollector, get_metrics_collector
from mnemosyne.models import Usage


class Clock:
    """Time as the test says."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mnemosyne.metrics.time", clock)
    return clock


def work(
    collector: MetricsCollector, clock: Clock, item: str, seconds: float, *, agent: str = "executor-1", **how: object
) -> None:
    collector.start_work_item(item, agent, "plan_to_artifacts")
    clock.now += seconds
    collector.finish_work_item(item, **{"success": True, **how})  # type: ignore[arg-type]


def test_an_agent_is_known_by_its_successes_its_errors_and_its_times(clock: Clock) -> None:
    collector = MetricsCollector()
    for number in range(1, 101):
        work(
            collector,
            clock,
            f"i{number}",
            float(number),
            success=number % 4 != 0,
            error_type=None if number % 4 else "KeyError",
        )
    metrics = collector.get_agent_metrics("executor-1")
    assert (metrics.started, metrics.succeeded, metrics.failed) == (100, 75, 25)
    assert metrics.get_success_rate() == 75.0
    assert metrics.errors == {"KeyError": 25}
    assert (metrics.min_seconds, metrics.mean_seconds, metrics.max_seconds) == (1.0, 50.5, 100.0)
    assert (metrics.p50_seconds, metrics.p95_seconds, metrics.p99_seconds) == (51.0, 96.0, 100.0)


def test_a_role_is_all_its_agents_and_a_name_that_did_nothing_is_all_zero(clock: Clock) -> None:
    collector = MetricsCollector()
    work(collector, clock, "a", 1.0)
    work(collector, clock, "b", 3.0, agent="executor-2", success=False, error_type="unsuccessful")
    work(collector, clock, "c", 5.0, agent="my-own")
    role = collector.get_agent_metrics("executor")
    assert (role.succeeded, role.failed, role.mean_seconds, role.get_success_rate()) == (1, 1, 2.0, 50.0)
    assert collector.get_agent_metrics("my-own").succeeded == 1
    nobody = collector.get_agent_metrics("reviewer")
    assert (nobody.get_success_rate(), nobody.p99_seconds, nobody.mean_review_confidence) == (0.0, 0.0, 0.0)


def test_reviews_gates_and_tokens_are_the_items_and_then_the_agents(clock: Clock) -> None:
    collector = MetricsCollector()
    for number, passed in enumerate((True, True, False)):
        item = f"r{number}"
        collector.start_work_item(item, "reviewer-1", "plan_to_artifacts", role="reviewer")
        collector.record_gates(item, passed=3, failed=0 if passed else 1)
        collector.record_review(item, passed=passed, confidence=0.5 + number / 10)
        collector.record_usage(
            item, Usage(turns=1, input_tokens=10, cache_read_tokens=90, output_tokens=5, cost_usd=0.25)
        )
        collector.record_usage(item, Usage(turns=1, input_tokens=20, output_tokens=5))
        collector.finish_work_item(item, success=True)
    one = collector.get_work_item_metrics("r2")
    assert one is not None
    assert (one.review_passed, one.quality_gates_failed, one.context_tokens, one.turns) == (False, 1, 100, 2)
    role = collector.get_agent_metrics("reviewer")
    assert (role.get_review_pass_rate(), role.rework) == (pytest.approx(200 / 3), 1)
    assert role.mean_review_confidence == pytest.approx(0.6)
    assert (role.quality_gates_passed, role.quality_gates_failed) == (9, 1)
    assert (role.turns, role.input_tokens, role.cached_tokens, role.output_tokens, role.cost_usd) == (
        6,
        90,
        270,
        30,
        0.75,
    )


def test_what_was_never_begun_is_not_counted_as_finished() -> None:
    collector = MetricsCollector()
    collector.finish_work_item("x", success=True)
    collector.record_usage("x", Usage(turns=1))
    assert collector.snapshot()["items"] == {"started": 0, "succeeded": 0, "failed": 0, "under_way": 0}
    assert collector.get_work_item_metrics("x") is None


def test_memory_is_bounded_whatever_comes() -> None:
    collector = MetricsCollector()
    for number in range(20_000):
        collector.start_work_item(f"i{number}", f"agent{number}", "complete", role=f"role{number}")
        if number % 8 == 0:
            collector.finish_work_item(f"i{number}", success=False, error_type=f"Error{number}")
    assert len(collector._agents) <= 257
    assert len(collector._roles) <= 33
    assert len(collector._under_way) <= 16_384
    assert len(collector._finished) == 1_024
    assert len(collector.get_agent_metrics("other").errors) <= 33
    assert collector.snapshot()["items"]["started"] == 20_000, "what has no name of its own is counted all the same"
    for number in range(5_000):
        collector.start_work_item("again", "executor-1", "complete", role="role0")
        collector.finish_work_item("again", success=number > 0)
    assert len(collector.get_agent_metrics("other")._recent) == 1_024


def test_every_thread_may_count() -> None:
    collector, before = MetricsCollector(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=_count, args=(collector, name)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert collector.snapshot()["items"] == {"started": 2_000, "succeeded": 2_000, "failed": 0, "under_way": 0}
    assert collector.snapshot()["api_calls"] == {"ok": 2_000}
    assert collector.get_agent_metrics("executor").turns == 2_000


def _count(collector: MetricsCollector, name: str) -> None:
    for number in range(500):
        item = f"{name}{number}"
        collector.start_work_item(item, "executor-1", "complete")
        collector.record_usage(item, Usage(turns=1))
        collector.count_api_call("ok")
        collector.finish_work_item(item, success=True)


def test_a_process_has_one() -> None:
    assert get_metrics_collector() is get_metrics_collector()
