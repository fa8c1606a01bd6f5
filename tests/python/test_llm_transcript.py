"""A journal read as a conversation, and shown so that no text of a model reaches the terminal as more than text."""

from __future__ import annotations

from typing import Any

from mnemosyne.canonical import sha256_json
from mnemosyne.cli.style import one_line, visible_lines
from mnemosyne.llm.transcript import Entry, call_of, entries

CALL = {"type": "tool_use", "id": "toolu_1", "name": "run_command", "input": {"command": "make"}}
ANSWER = {"content": [{"type": "text", "text": "I make it"}, CALL], "stop_reason": "tool_use", "usage": {"turns": 1}}
OPENING = {"model": "demo", "system": "You are", "tools": [{"name": "run_command"}], "stream": True, "max_tokens": 9}


def step(number: int, name: str, kind: str, output: Any = None, **more: Any) -> dict[str, Any]:
    step = {"number": number, "name": name, "kind": kind, "input_sha256": f"{number:064}", "state": "finished"}
    return {**step, "output": output, "error": None, "reserved": None, "spent_unknown": False, **more}


def tool(number: int, output: Any = None, **more: Any) -> dict[str, Any]:
    return step(number, "tool:run_command", "tool", output, input_sha256=sha256_json(call_of(CALL)), **more)


def read(*steps: dict[str, Any]) -> list[Entry]:
    return list(entries(steps))


def test_an_opening_says_to_whom_with_what_and_what() -> None:
    opening = {**OPENING, "messages": [{"role": "user", "content": "go"}]}
    first, later = read(
        step(1, "prompt", "step", opening), step(2, "prompt", "step", {"role": "user", "content": "again"})
    )
    assert first.kind == later.kind == "prompt"
    assert first.body == {"text": "go", "model": "demo", "system": "You are", "tools": ["run_command"]}
    assert later.body == {"text": "again"}


def test_a_result_is_joined_to_its_call_which_the_journal_names_only_by_a_hash() -> None:
    _, result = read(step(1, "turn", "turn", ANSWER), tool(2, {"content": "made", "is_error": False}))
    call = {"tool_use_id": "toolu_1", "name": "run_command", "input": {"command": "make"}}
    assert result.body == {**call, "content": "made", "is_error": False, "interrupted": False}


def test_a_tool_that_an_earlier_process_began_is_marked_and_so_is_the_result_that_says_so() -> None:
    answer, begun, told = read(
        step(1, "turn", "turn", ANSWER),
        tool(2, state="unknown"),
        tool(3, {"content": "This call was interrupted", "is_error": True}),
    )
    assert (begun.state, begun.body["interrupted"]) == ("unknown", False)
    assert (told.state, told.body["interrupted"]) == ("finished", True)
    assert answer.body["usage"] == {"turns": 1}


def test_an_answer_that_nobody_recorded_is_unknown_with_what_it_is_charged() -> None:
    (lost,) = read(step(1, "turn", "turn", state="unknown", reserved={"tokens": 900, "usd": None}, spent_unknown=True))
    assert (lost.kind, lost.state, lost.body) == ("answer", "unknown", {})
    assert (lost.reserved_tokens, lost.spent_unknown) == (900, True)


def test_an_answer_that_was_lost_does_not_hide_the_calls_of_the_one_before() -> None:
    steps = [step(1, "turn", "turn", ANSWER), step(2, "turn", "turn", state="failed", error="cut"), tool(3, {})]
    assert read(*steps)[2].body["tool_use_id"] == "toolu_1"


def test_what_the_harness_recorded_stays_a_step_with_its_output() -> None:
    (gates,) = read(step(1, "gates", "step", {"passed": True}))
    assert (gates.kind, gates.body) == ("step", {"output": {"passed": True}})


def test_control_characters_are_written_out_and_lines_and_tabs_stay() -> None:
    assert visible_lines("a\tb\r\nc\x1b[31m\x07\x9b\u202e\n\n") == ["a\tb", "c\\x1b[31m\\x07\\x9b\\u202e"]
    assert visible_lines("") == [""]
    assert one_line("a\u202eb\x1b\nc") == "a b c"
