"""The fold over events: each claim has one end, whatever became of it."""

from __future__ import annotations

from typing import Any

from mnemosyne.models import Event
from mnemosyne.stats import _Fold


def folded(*events: dict[str, Any]) -> dict[str, Any]:
    fold = _Fold()
    for number, event in enumerate(events):
        fold.add(Event.model_validate({"sequence": number, "at": "2026-11-22T10:11:12.345Z", **event}))
    return fold.done().to_dict()


def of(item: str, kind: str, epoch: int | None = 1, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "item": item, "epoch": epoch, "role": "executor", "data": data}


def test_every_end_of_a_claim_has_its_name() -> None:
    ends = {
        "work_completed": "completed",
        "work_failed": "failed",
        "work_cancelled": "cancelled",
        "work_dead": "dead",
        "work_parked": "parked",
        "agent_failed": "errors",
        "agent_started": "cut_off",
    }
    for kind, name in ends.items():
        claims = folded(of("a", "work_started"), of("a", kind))["claims"]
        assert claims == {"started": 1, name: 1}, kind


def test_a_claim_has_one_end_and_an_older_epoch_ends_no_newer_one() -> None:
    claims = folded(
        of("a", "work_started", 1),
        of("a", "agent_failed", 1),
        of("a", "work_failed", 1),  # the same end, told by the item
        of("a", "work_started", 2),
        of("a", "work_completed", 1),
    )["claims"]
    assert claims == {"started": 2, "errors": 1, "cut_off": 1}


def test_what_was_cancelled_while_it_waited_was_never_begun() -> None:
    assert folded(of("a", "work_cancelled", None))["claims"] == {"cancelled": 1}


def test_steps_that_a_crash_cut_off_are_unknown_and_failures_have_their_class() -> None:
    usage = {"turns": 1, "input_tokens": 5, "output_tokens": 2, "cost_usd": 0.5}
    found = folded(
        of("a", "step_started"),
        of("a", "step_finished", state="failed", **{"class": "overloaded"}),
        of("a", "step_started"),
        of("a", "step_finished", state="finished", usage=usage),
        of("a", "step_started"),
    )
    assert found["steps"] == {"started": 3, "finished": 1, "failed": 1, "unknown": 1}
    assert found["failures"] == {"overloaded": 1}
    assert (found["usage"]["input_tokens"], found["usage"]["cost_usd"]) == (5, 0.5)


def test_a_run_is_as_its_last_event_left_it() -> None:
    kinds = ("run_submitted", "run_interrupted", "run_resumed", "budget_exceeded")
    assert folded(*({"kind": kind, "run": "r-1"} for kind in kinds))["runs"] == {"budget": 1}
