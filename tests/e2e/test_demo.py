"""The whole way, once, as a newcomer sees it: a prompt becomes accepted files."""

from __future__ import annotations

from typing import Any

import pytest
from command import DemoServer, Finished, Sandbox

PHASES = ["prompt_to_spec", "spec_to_full_spec", "full_spec_to_plan", "plan_to_artifacts", "complete"]


def test_the_demo_finishes_the_sample_and_its_own_tests_pass(sandbox: Sandbox) -> None:
    done = sandbox.run("demo")
    assert done.exit_code == 0, done.err
    assert done.err == ""
    assert "0.00 (demo model)" in done.out
    sandbox.workspace = sandbox.root / "mnemosyne-demo"
    tests = sandbox.sample_tests()
    assert tests.returncode == 0, tests.stderr
    assert not sandbox.orphans()
    said = sandbox.run("show", done.out.split()[0], "--conversation", "full_spec_to_plan").out
    assert "Write the plan." in said, "what a phase was asked"
    assert '"tasks": [' in said, "and what it answered"
    unknown = sandbox.run("show", done.out.split()[0], "--conversation", "t9")
    assert (unknown.exit_code, unknown.err[:15]) == (2, "error[MN-0430]:")


def test_truth_1_the_summary_tells_of_one_rework_that_a_red_test_caused(sandbox: Sandbox, server: DemoServer) -> None:
    done = sandbox.demo("--base-url", server.url)
    summary = done.summary
    assert (summary["state"], summary["demo"], summary["error"], summary["resume"]) == ("done", True, None, None)
    assert [(phase["name"], phase["state"]) for phase in summary["phases"]] == [(name, "done") for name in PHASES]
    assert len(summary["tasks"]) >= 4
    assert {task["state"] for task in summary["tasks"]} == {"accepted"}
    assert sorted(task["attempts"] for task in summary["tasks"])[-2:] == [1, 2]
    for task in summary["tasks"]:
        proofs = [seen for seen in task["evidence"] if seen["kind"] == "acceptance"]
        assert any(seen["before_exit_code"] not in (0, None) and seen["exit_code"] == 0 for seen in proofs), task["id"]
        assert task["files"]
    rejected = [event for event in done.events if event["kind"] == "review_rejected"]
    assert len(rejected) == 1
    assert "AssertionError" in rejected[0]["data"]["feedback"]
    assert summary["usage"]["cost_usd"] == 0
    assert summary["usage"]["turns"] == sum(server.seen().values())
    assert summary["usage"]["unknown_turns"] == 0


def test_the_events_are_in_sequence_and_the_stored_ones_are_the_same(sandbox: Sandbox, server: DemoServer) -> None:
    done = sandbox.demo("--base-url", server.url)
    sequences = [event["sequence"] for event in done.events]
    assert sequences == sorted(set(sequences))
    assert done.events[-1]["kind"] == "run_completed"
    stored = {event["sequence"]: event for event in sandbox.run_events(done.summary["run"])}
    assert [stored[sequence] for sequence in sequences] == done.events
    assert not {event["kind"] for event in done.events} & {"heartbeat", "progress"}


def test_independent_tasks_overlap_and_dependent_ones_never_do(sandbox: Sandbox, server: DemoServer) -> None:
    done = sandbox.demo("--base-url", server.url, "--max-concurrent", "4")
    tasks = {task["id"]: task for task in done.summary["tasks"]}
    items = _items(done)
    independent = [(a, b) for a in tasks for b in tasks if a < b and not _related(a, b, tasks)]
    assert independent
    assert any(
        first[0] < second[1] and second[0] < first[1]
        for a, b in independent
        for first in items[a]
        for second in items[b]
    ), "no work of two independent tasks was under way at the same time"
    accepted = {event["task"]: event["sequence"] for event in done.events if event["kind"] == "task_accepted"}
    for task in tasks.values():
        for dependency in task["depends_on"]:
            assert accepted[dependency] < min(start for start, _ in items[task["id"]])


def test_with_one_agent_per_role_no_two_items_of_a_role_overlap(sandbox: Sandbox, server: DemoServer) -> None:
    done = sandbox.demo("--base-url", server.url, "--max-concurrent", "1")
    assert done.exit_code == 0
    working: dict[str, str] = {}
    for event in done.events:
        if event["kind"] == "work_started":
            assert event["role"] not in working
            working[event["role"]] = event["item"]
        elif event["kind"] in ("work_completed", "work_failed") and working.get(event["role"]) == event["item"]:
            del working[event["role"]]


def test_a_plan_skips_the_phases_that_a_prompt_is_for(sandbox: Sandbox, server: DemoServer) -> None:
    plan = """{"tasks": [{"id": "prices", "title": "Finish shop/pricing.py", "file_scope": ["shop/pricing.py"],
                          "acceptance": [{"command": "python3 -m unittest tests.test_pricing"}]}]}"""
    (sandbox.root / "plan.json").write_text(plan)
    from mnemosyne.demo.sample import copy_sample

    copy_sample(sandbox.workspace)
    flags = ["--workspace", str(sandbox.workspace), "--model", "demo", "--base-url", server.url, "--json"]
    done = sandbox.run("orchestrate", "--plan", "plan.json", *flags)
    assert done.exit_code == 0, done.err
    states = {phase["name"]: phase["state"] for phase in done.summary["phases"]}
    assert [states[name] for name in PHASES] == ["skipped", "skipped", "skipped", "done", "done"]


def test_budget_1_a_run_stops_before_it_spends_more_and_resumes_with_a_larger_budget(
    sandbox: Sandbox, server: DemoServer
) -> None:
    stopped = sandbox.demo("--base-url", server.url, "--budget-tokens", "60000", "--max-concurrent", "1")
    if stopped.exit_code == 0:
        pytest.fail("60000 tokens are meant to be too few for the demo; choose fewer")
    assert (stopped.exit_code, stopped.summary["state"]) == (4, "budget"), stopped.err
    assert stopped.summary["resume"]
    done = sandbox.run("resume", "--json", "--budget-tokens", "100000000")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err


def _items(done: Finished) -> dict[str, list[tuple[int, int]]]:
    """For each task, from which to which sequence each of its items was under way."""
    started: dict[str, dict[str, Any]] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for event in done.events:
        if event["kind"] == "work_started" and "task" in event:
            started[event["item"]] = event
        elif event["kind"] in ("work_completed", "work_failed") and event.get("item") in started:
            begun = started.pop(event["item"])
            spans.setdefault(begun["task"], []).append((begun["sequence"], event["sequence"]))
    return spans


def _related(a: str, b: str, tasks: dict[str, Any]) -> bool:
    """Whether one of two tasks depends on the other, through any number of steps."""

    def needs(task: str) -> set[str]:
        direct = set(tasks[task]["depends_on"])
        return direct.union(*(needs(dependency) for dependency in direct))

    return a in needs(b) or b in needs(a)
