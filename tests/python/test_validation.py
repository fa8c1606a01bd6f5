"""Validation before money: all that is wrong at once, with path, value and fix; Rust judges the same cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mnemosyne import validation
from mnemosyne.errors import InvalidInput, from_wire
from mnemosyne.models import Acceptance, Plan, PlanTask, WorkItem
from mnemosyne.validation import check_prompt, validate_work_item, validate_work_plan

CASES = json.loads((Path(__file__).parents[1] / "shared" / "validation.json").read_text(encoding="utf-8"))
CHECKS = {
    "plan": validation.validate_work_plan,
    "work_item": validation.validate_work_item,
    "review_artifact": validation.validate_review_artifact,
    "optimization_request": validation.validate_optimization_request,
    "agent_state": validation.validate_agent_state,
}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_shared_cases_are_judged_as_they_say(case: dict[str, Any]) -> None:
    report = CHECKS[case["kind"]](case["value"])
    assert [[finding.code, finding.path] for finding in report.errors] == case["errors"]
    assert [finding.path for finding in report.warnings] == case["warnings"]
    for finding in (*report.errors, *report.warnings):
        assert finding.message
        assert finding.fix
        assert str(finding).isprintable()


def test_every_error_is_in_the_exception_with_its_value_and_its_fix() -> None:
    tasks = [{"id": "a", "title": "A", "depends_on": ["bb"], "acceptance": [{"command": "true"}]}]
    with pytest.raises(InvalidInput) as caught:
        validate_work_plan({"tasks": tasks}).raise_for_errors()
    assert caught.value.code == "MN-0105"
    assert caught.value.message.startswith("the plan has 2 problems, the first at tasks[0].depends_on[0]: ")
    assert caught.value.reason.startswith("also at tasks[0].acceptance: ")
    assert caught.value.hint.endswith("; nothing was stored")
    assert [problem["value"] for problem in caught.value.problems] == ["bb", "true"]
    over = from_wire({"kind": "invalid_input", "code": "MN-0105", "data": {"problems": list(caught.value.problems)}})
    assert isinstance(over, InvalidInput)
    assert over.problems == caught.value.problems


def test_a_misspelt_key_or_name_is_answered_with_the_one_that_was_meant() -> None:
    task = {"id": "first", "title": "A", "acceptance": [{"command": "test -f a"}]}
    report = validate_work_plan({"tasks": [{**task, "dependson": []}]})
    assert report.errors[0].fix == "did you mean depends_on?"
    report = validate_work_plan({"tasks": [task, {**task, "id": "second", "depends_on": ["frist"]}]})
    assert report.errors[0].fix == "did you mean first?"


def test_a_vague_word_comes_with_a_better_question() -> None:
    task = {"id": "a", "title": "A", "description": "It must be FAST.", "acceptance": [{"command": "test -f a"}]}
    warning = validate_work_plan({"tasks": [task]}).warnings[-1]
    assert (warning.value, warning.fix) == ("fast", "say instead: how many seconds at most, for how much input?")


def plan_of(count: int, *, ring: bool = False) -> Plan:
    def task(at: int) -> PlanTask:
        before = [f"t{(at - 1) % count}"] if ring or at else []
        acceptance = [Acceptance(command=f"python3 -m unittest tests.test_{at}")]
        return PlanTask(
            id=f"t{at}", title=f"Write part {at}", description="Write it, with a test.", depends_on=before,
            file_scope=[f"src/part_{at}.py"], acceptance=acceptance,
        )  # fmt: skip

    return Plan(tasks=[task(at) for at in range(count)])


def test_long_chains_and_rings_are_judged_without_recursion_and_told_in_one_line() -> None:
    assert validate_work_plan(plan_of(3_000)).ok
    errors = validate_work_plan(plan_of(3_000, ring=True)).errors
    assert [error.code for error in errors] == ["MN-0104"]
    assert len(str(errors[0])) < 500


def test_too_much_of_anything_is_refused() -> None:
    item = {"id": "i", "description": "d", "phase": "complete", "role": "executor"}
    for change, path in (
        ({"description": "x" * 10_000_000}, "description"),
        ({"depends_on": ["x"] * 10_001}, "depends_on"),
        ({"context": {"blob": "x" * 10_000_001}}, "context"),
        ({"description": "\ud800"}, "description"),
    ):
        errors = validate_work_item({**item, **change}).errors
        assert [(error.code, error.path) for error in errors] == [("MN-0117", path)]
    tasks = [{"id": f"t{at}", "title": "T", "acceptance": [{"command": "x"}]} for at in range(10_001)]
    assert [error.path for error in validate_work_plan({"tasks": tasks}).errors] == ["tasks"]
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert [error.code for error in validate_work_plan({"tasks": deep}).errors] == ["MN-0103"]
    assert [error.path for error in validate_work_item({**item, "context": {"deep": deep}}).errors] != []


@pytest.mark.parametrize("text", ["x" * 1_000_001, "a\0b", "\ud800"], ids=["long", "nul", "surrogate"])
def test_a_prompt_that_no_model_could_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_prompt(text)
    assert caught.value.code == "MN-0102"


def test_a_good_item_is_the_same_as_a_model_and_as_json() -> None:
    item = WorkItem(id="i", description="d", phase="complete", role="executor")
    assert validate_work_item(item).ok
    assert validate_work_item(item.model_dump(mode="json")).ok
