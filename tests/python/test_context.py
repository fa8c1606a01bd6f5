"""The upcalls: a step runs once and is replayed, a stale claim stops, direct work keeps nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from journal_in_memory import MemoryJournal, PowerCut
from mnemosyne.agents.context import AgentContext
from mnemosyne.canonical import sha256_json
from mnemosyne.errors import AgentError, BudgetExceeded, Fenced
from mnemosyne.llm import TurnError
from mnemosyne.llm.failures import Failure
from mnemosyne.models import Phase, Usage, WorkItem
from pydantic import JsonValue


def context_on(journal: MemoryJournal | None, attempt: int = 1) -> AgentContext:
    item = WorkItem(id="i1", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor", attempt=attempt)
    return AgentContext(item, epoch=journal.epoch if journal else 0, upcalls=journal)


def counting(log: list[str], name: str, output: JsonValue) -> Callable[[], Awaitable[JsonValue]]:
    async def function() -> JsonValue:
        log.append(name)
        return output

    return function


async def test_started_is_committed_before_the_function_runs_and_finished_before_its_output_is_used() -> None:
    journal, seen = MemoryJournal(), []

    async def look() -> JsonValue:
        seen.extend(journal.states("step"))
        return 7

    assert await context_on(journal).step("look", look, input={"a": 1}) == 7
    assert seen == ["started"]
    assert journal.states("step") == ["finished"]
    assert journal.records[0]["input_sha256"] == sha256_json({"a": 1})


async def test_a_finished_step_is_replayed_and_an_unfinished_one_is_run_again() -> None:
    journal, log = MemoryJournal(), list[str]()
    context = context_on(journal)
    await context.step("first", counting(log, "first", {"x": [1]}))
    journal.cut_after = len(journal.calls) + 1
    with pytest.raises(PowerCut):
        await context.step("second", counting(log, "second", 2))
    journal.next_claim()
    resumed = context_on(journal)
    assert await resumed.step("first", counting(log, "again", None)) == {"x": [1]}
    assert await resumed.step("second", counting(log, "second", 2)) == 2
    assert log == ["first", "second"]
    assert [record["number"] for record in journal.records] == [1, 2, 3]


async def test_the_same_name_and_input_twice_are_two_steps_and_are_replayed_in_order() -> None:
    journal, log = MemoryJournal(), list[str]()
    context = context_on(journal)
    first = [await context.step("draw", counting(log, "draw", number)) for number in (1, 2)]
    journal.next_claim()
    resumed = context_on(journal)
    second = [await resumed.step("draw", counting(log, "draw", number)) for number in (8, 9, 3)]
    assert (first, second) == ([1, 2], [1, 2, 3])
    assert log == ["draw", "draw", "draw"]


async def test_another_input_is_another_step() -> None:
    journal, log = MemoryJournal(), list[str]()
    await context_on(journal).step("read", counting(log, "a", "a"), input="a")
    journal.next_claim()
    assert await context_on(journal).step("read", counting(log, "b", "b"), input="b") == "b"
    assert log == ["a", "b"]


async def test_another_attempt_has_another_journal() -> None:
    journal, log = MemoryJournal(), list[str]()
    await context_on(journal).step("read", counting(log, "one", 1))
    journal.next_claim()
    assert await context_on(journal, attempt=2).step("read", counting(log, "two", 2)) == 2


async def test_a_first_output_is_what_a_replay_would_give() -> None:
    journal = MemoryJournal()

    async def pair() -> JsonValue:
        return {"pair": (1, 2)}  # type: ignore[dict-item]

    first = await context_on(journal).step("pair", pair)
    journal.next_claim()
    assert first == await context_on(journal).step("pair", pair) == {"pair": [1, 2]}


async def test_an_output_that_is_not_json_is_an_error_that_names_the_step() -> None:
    journal = MemoryJournal()

    async def wrong() -> JsonValue:
        return object()  # type: ignore[return-value]

    with pytest.raises(AgentError, match="'look' is not JSON"):
        await context_on(journal).step("look", wrong)
    assert journal.states("step") == ["failed"]


async def test_an_exception_is_recorded_and_raised_as_it_is() -> None:
    journal = MemoryJournal()
    original = RuntimeError("boom")

    async def explode() -> JsonValue:
        raise original

    with pytest.raises(RuntimeError) as raised:
        await context_on(journal).step("explode", explode)
    assert raised.value is original
    assert journal.records[0]["error"] == "RuntimeError: boom"


async def test_a_tool_that_fails_says_its_class_in_the_event_of_its_step() -> None:
    journal = MemoryJournal()

    async def fail() -> tuple[JsonValue, Usage | None]:
        return {"content": "no such file", "is_error": True}, None

    await context_on(journal).journaled("tool:read", kind="tool", input=None, function=fail)
    assert [call["detail"] for call in journal.calls if call["op"] == "step_finish"] == [{"class": "tool_error"}]


async def test_what_a_failed_turn_spent_is_settled_and_unknown_stays_unknown() -> None:
    journal = MemoryJournal()
    for usage in (Usage(input_tokens=5), None):

        async def fail(usage: Usage | None = usage) -> tuple[JsonValue, Usage | None]:
            raise TurnError("no", code="MN-0403", failure=Failure.CUT, usage=usage)

        with pytest.raises(TurnError):
            await context_on(journal).journaled("turn", kind="turn", input=None, function=fail)
    settled = [call["usage"] for call in journal.calls if call["op"] == "step_fail"]
    assert settled == [Usage(input_tokens=5).model_dump(mode="json"), None]


async def test_a_cancelled_step_stays_started() -> None:
    journal, running = MemoryJournal(), asyncio.Event()

    async def forever() -> JsonValue:
        running.set()
        await asyncio.Event().wait()
        return None

    task = asyncio.create_task(context_on(journal).step("wait", forever))
    await asyncio.wait_for(running.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal.states("step") == ["started"]


async def test_fence_1_a_stale_claim_is_stopped_by_its_next_upcall() -> None:
    journal, log = MemoryJournal(), list[str]()
    context = context_on(journal)
    await context.step("one", counting(log, "one", 1))
    journal.next_claim()
    with pytest.raises(Fenced):
        await context.step("two", counting(log, "two", 2))
    with pytest.raises(Fenced):
        await context.artifact("a", "b")
    assert log == ["one"]


async def test_once_1_a_tool_that_failed_or_was_cut_is_described_and_not_run() -> None:
    for state in ("started", "unknown", "failed"):
        journal, ran = MemoryJournal(), list[str]()

        async def run(ran: list[str] = ran) -> tuple[JsonValue, Usage | None]:
            ran.append("run")
            return "ran", None

        async def describe() -> JsonValue:
            return "described"

        await context_on(journal).journaled("tool:x", kind="tool", input=1, function=run, interrupted=describe)
        journal.next_claim()
        journal.records[0] |= {"state": state, "output": None}
        context = context_on(journal)
        again = [
            await context.journaled("tool:x", kind="tool", input=1, function=run, interrupted=describe)
            for _ in range(2)
        ]
        # The second call with the same input is a new one, as a new call of the same tool is.
        assert again == ["described", "ran"]
        assert ran == ["run", "run"]


async def test_budget_1_a_refused_reservation_lets_nothing_run() -> None:
    journal, log = MemoryJournal(), list[str]()

    def refuse(request: dict[str, object]) -> None:
        if request["op"] == "step_start":
            raise BudgetExceeded("too much")

    journal.on_call = refuse
    with pytest.raises(BudgetExceeded):
        await context_on(journal).step("spend", counting(log, "spent", 1))
    assert log == []


async def test_reservations_artifacts_and_progress_go_to_the_runtime() -> None:
    journal = MemoryJournal()
    context = context_on(journal)
    reservation = await context.reserve(tokens=10, usd=0.5)
    await context.settle(reservation, Usage(input_tokens=3))
    reference = await context.artifact("note.md", "héllo")
    context.progress("half way", 0.5)
    assert (reservation.id, reservation.tokens, reservation.usd) == ("r1", 10, 0.5)
    assert journal.artifacts == {"note.md": "héllo".encode()}
    assert (reference.name, reference.size) == ("note.md", 6)
    assert journal.progress == ["half way"]


async def test_what_streams_is_told_at_once_and_then_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mnemosyne.agents.context.time.monotonic", lambda: now)
    journal = MemoryJournal()
    context = context_on(journal)
    for _ in range(50):
        for _ in range(1_000):
            context.progressed()
        now += 0.1
    assert len(journal.progress) == 5


async def test_direct_work_runs_its_steps_and_keeps_nothing() -> None:
    log = list[str]()
    context = context_on(None)
    assert [await context.step("s", counting(log, "s", 1)) for _ in range(2)] == [1, 1]
    assert log == ["s", "s"]
    await context.settle(await context.reserve(tokens=1), Usage())
    context.progress("fine")
    with pytest.raises(AgentError, match="artifact") as raised:
        await context.artifact("a", b"b")
    assert "no store" in raised.value.reason


async def test_text_that_is_not_utf_8_never_reaches_the_journal() -> None:
    journal = MemoryJournal()
    context = context_on(journal)
    with pytest.raises(AgentError) as raised:
        await context.step("list", counting([], "list", ["odd\udcff"]))
    assert raised.value.code == "MN-0310"

    async def failing() -> JsonValue:
        raise OSError("cannot read odd\udcff")

    with pytest.raises(OSError, match="cannot read"):
        await context.step("read", failing)
    assert journal.states("step") == ["failed", "failed"]
    json.dumps(journal.calls, ensure_ascii=False).encode("utf-8")
