"""A conversation: the tool loop, structured answers, and a journal that replays it exactly (ONCE-1, TRUTH-1)."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from journal_in_memory import MemoryJournal, PowerCut
from messages_server import MessagesServer, Reply, failing, saying, stream, thinking_then, using
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import Fenced, ModelError
from mnemosyne.llm import (
    AssistantMessage,
    ClaudeSession,
    Client,
    ResultMessage,
    SessionOptions,
    ToolMessage,
    structured,
)
from mnemosyne.models import Phase, WorkItem
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from virtual_time import policy


@dataclass
class Outcome:
    content: str
    is_error: bool = False


@dataclass
class CountingTools:
    """Tools that write down what was really run."""

    ran: list[str] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    description: str = "counts"

    def definitions(self) -> list[dict[str, JsonValue]]:
        schema: dict[str, JsonValue] = {"type": "object", "properties": {"command": {"type": "string"}}}
        return [{"name": "run_command", "description": self.description, "input_schema": schema}]

    async def run(self, name: str, input: dict[str, JsonValue]) -> Outcome:
        command = str(input["command"])
        self.ran.append(command)
        return Outcome(f"did {command}", is_error=command == "fail")

    async def describe_interrupted(self, name: str, input: dict[str, JsonValue]) -> str:
        self.described.append(str(input["command"]))
        return f"interrupted: {input['command']}"


def context_on(journal: MemoryJournal) -> AgentContext:
    item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    return AgentContext(item, epoch=journal.epoch, upcalls=journal)


def options(tools: CountingTools | None, **more: Any) -> SessionOptions:
    return SessionOptions("demo", "You are a test.", tools=tools, retry=policy(), **more)


async def converse(
    server: MessagesServer, journal: MemoryJournal, tools: CountingTools | None, prompt: str = "go", **more: Any
) -> list[AssistantMessage | ToolMessage | ResultMessage]:
    client = Client({"base_url": server.url, "api_key": "key"})
    try:
        async with ClaudeSession(client, context_on(journal), options(tools, **more)) as session:
            await session.query(prompt)
            return [message async for message in session.receive_response()]
    finally:
        await client.close()


def call(identifier: str, command: str) -> tuple[str, str, dict[str, Any]]:
    return identifier, "run_command", {"command": command}


def scripted(body: dict[str, Any]) -> Reply:
    """Three turns, as a pure function of the request: two tools, one tool, the end."""
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    if turns == 0:
        thinking = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
        uses = [
            {"type": "tool_use", "id": i, "name": n, "input": g} for i, n, g in (call("a", "one"), call("b", "two"))
        ]
        return Reply(events=stream([thinking, *uses], "tool_use"))
    return using(call("c", "three")) if turns == 1 else saying("all done")


async def test_all_results_of_a_turn_go_back_in_one_message_beside_unchanged_thinking() -> None:
    tools = CountingTools()
    with MessagesServer(answer=scripted) as server:
        messages = await converse(server, MemoryJournal(), tools)
    result = messages[-1]
    assert isinstance(result, ResultMessage)
    assert (result.text, result.turns, result.is_error) == ("all done", 3, False)
    assert tools.ran == ["one", "two", "three"]
    second = server.seen[1].body["messages"]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    assert [block["tool_use_id"] for block in second[2]["content"]] == ["a", "b"]
    assert [block["content"] for block in second[2]["content"]] == ["did one", "did two"]


async def test_a_tool_that_fails_is_told_to_the_model() -> None:
    with MessagesServer(using(call("a", "fail")), saying("I see")) as server:
        await converse(server, MemoryJournal(), CountingTools())
    (block,) = server.seen[1].body["messages"][2]["content"]
    assert block == {"type": "tool_result", "tool_use_id": "a", "content": "did fail", "is_error": True}


async def test_tool_input_that_is_no_object_is_told_to_the_model_and_not_run() -> None:
    tools = CountingTools()
    uses = [{"type": "tool_use", "id": "a", "name": "run_command", "input": ["rm"]}]
    with MessagesServer(Reply(events=stream(uses, "tool_use")), saying("sorry")) as server:
        await converse(server, MemoryJournal(), tools)
    assert tools.ran == []
    assert server.seen[1].body["messages"][2]["content"][0]["is_error"] is True


@pytest.mark.parametrize("stop_reason", ["end_turn", "max_tokens", "refusal"])
async def test_truth_1_a_tool_call_runs_only_if_the_turn_stopped_for_it(stop_reason: str) -> None:
    tools = CountingTools()
    uses = [{"type": "tool_use", "id": "a", "name": "run_command", "input": {"command": "no"}}]
    with MessagesServer(Reply(events=stream(uses, stop_reason))) as server, contextlib.suppress(ModelError):
        await converse(server, MemoryJournal(), tools)
    assert tools.ran == []


async def test_a_used_up_turn_limit_is_an_error_result() -> None:
    with MessagesServer(answer=lambda body: using(call(str(len(body["messages"])), "more"))) as server:
        messages = await converse(server, MemoryJournal(), CountingTools(), max_turns=3)
    result = messages[-1]
    assert isinstance(result, ResultMessage)
    assert (result.is_error, result.turns, len(server.seen)) == (True, 3, 3)


@pytest.mark.parametrize(
    ("stop_reason", "code"),
    [
        ("refusal", "MN-0402"),
        ("max_tokens", "MN-0405"),
        ("model_context_window_exceeded", "MN-0407"),
        ("brand_new", "MN-0404"),
    ],
)
async def test_every_other_end_is_a_fatal_model_error(stop_reason: str, code: str) -> None:
    with MessagesServer(saying("I only know the sample", stop_reason)) as server, pytest.raises(ModelError) as raised:
        await converse(server, MemoryJournal(), None)
    assert (raised.value.code, raised.value.fatal) == (code, True)
    if stop_reason == "refusal":
        assert "I only know the sample" in raised.value.reason


async def test_a_refusal_says_what_the_server_said_about_it() -> None:
    events = stream([], "refusal")
    for event in events:
        if event["type"] == "message_delta":
            event["delta"]["stop_details"] = {"type": "refusal", "category": "cyber", "explanation": "too dangerous"}
    with MessagesServer(Reply(events=events)) as server, pytest.raises(ModelError) as raised:
        await converse(server, MemoryJournal(), None)
    assert (raised.value.code, raised.value.reason) == ("MN-0402", "too dangerous")


async def test_what_an_interrupted_tool_left_may_have_a_name_that_is_not_utf_8() -> None:
    class Odd(CountingTools):
        async def describe_interrupted(self, name: str, input: dict[str, JsonValue]) -> str:
            return "odd\udcff"

    journal = MemoryJournal()
    with MessagesServer(using(call("a", "x")), saying("ok")) as server:
        journal.cut_after = 6  # journal, prompt, turn: the tool is started
        with pytest.raises(PowerCut):
            await converse(server, journal, Odd())
        assert journal.states("tool") == ["started"]
        journal.next_claim()
        await converse(server, journal, Odd())
    assert server.seen[1].body["messages"][2]["content"][0]["content"] == "odd?"
    json.dumps(journal.calls, ensure_ascii=False).encode("utf-8")


async def test_a_paused_turn_is_sent_back_and_goes_on() -> None:
    with MessagesServer(saying("half", "pause_turn"), saying("whole")) as server:
        messages = await converse(server, MemoryJournal(), None)
    assert isinstance(messages[-1], ResultMessage)
    assert messages[-1].text == "whole"
    assert server.seen[1].body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "half"}]}


async def test_progress_names_the_tool_and_what_it_works_on() -> None:
    said: list[str] = []
    with MessagesServer(using(call("a", "make test")), saying("ok")) as server:
        await converse(server, MemoryJournal(), CountingTools(), progress=said.append)
    assert said == ["run_command make test"]


async def test_text_that_is_not_utf_8_is_replaced_before_it_is_sent() -> None:
    with MessagesServer(saying("ok")) as server:
        await converse(server, MemoryJournal(), None, prompt="file \udcff name")
    assert server.seen[0].body["messages"][0]["content"] == "file ? name"


async def test_a_finished_conversation_is_replayed_without_one_request() -> None:
    journal, tools = MemoryJournal(), CountingTools()
    with MessagesServer(answer=scripted) as server:
        first = await converse(server, journal, tools)
        journal.next_claim()
        assert await converse(server, journal, tools) == first
    assert len(server.seen) == 3
    assert tools.ran == ["one", "two", "three"]


async def test_a_resumed_request_is_the_same_even_if_prompt_and_tools_have_changed() -> None:
    journal = MemoryJournal()
    with MessagesServer(answer=scripted) as server:
        journal.on_call = stop_at("step_start", "turn", 2)
        with pytest.raises(PowerCut):
            await converse(server, journal, CountingTools(), prompt="the first words")
        journal.on_call = lambda request: None
        journal.next_claim()
        await converse(server, journal, CountingTools(description="changed"), prompt="other words")
    for seen in server.seen:
        assert seen.body["messages"][0]["content"] == "the first words"
        assert seen.body["tools"][0]["description"] == "counts"


def stop_at(operation: str, name: str, occurrence: int) -> Any:
    left = [occurrence]

    def on_call(request: dict[str, Any]) -> None:
        if request["op"] == operation and request.get("name") == name:
            left[0] -= 1
            if not left[0]:
                raise PowerCut

    return on_call


async def test_once_1_killed_after_every_upcall_each_request_is_seen_once_and_each_tool_runs_at_most_once() -> None:
    with MessagesServer(answer=scripted) as server:
        whole = MemoryJournal()
        expected = (await converse(server, whole, CountingTools()))[-1]
        upcalls = len(whole.calls)
        assert upcalls == 15  # the journal; start and finish of the prompt, three turns, three tools

        for cut in range(1, upcalls + 1):
            server.seen.clear()
            journal, tools = MemoryJournal(), CountingTools()
            journal.cut_after = cut
            with pytest.raises(PowerCut):
                await converse(server, journal, tools)
            unfinished = [record for record in journal.records if record["state"] == "started"]
            journal.next_claim()
            result = (await converse(server, journal, tools))[-1]

            assert result == expected
            seen = Counter(request.body_sha256 for request in server.seen)
            open_turns = {record["input_sha256"] for record in unfinished if record["kind"] == "turn"}
            assert all(count == 1 or digest in open_turns for digest, count in seen.items()), f"cut after {cut}"
            # Started is committed before anything is sent, so here the open turn was not even sent twice.
            assert all(count == 1 for count in seen.values())
            open_tools = [record for record in unfinished if record["kind"] == "tool"]
            assert len(tools.described) == len(open_tools)
            assert Counter(tools.ran + tools.described) == Counter(["one", "two", "three"]), f"cut after {cut}"
            if open_tools:
                told = json.dumps(server.seen[-1].body)
                assert f"interrupted: {tools.described[0]}" in told


async def test_once_1_killed_between_the_act_and_its_record_a_turn_is_asked_twice_and_a_tool_is_not_run_twice() -> None:
    with MessagesServer(answer=scripted) as server:
        for number in range(2, 8):  # step 1 is the prompt
            server.seen.clear()
            journal, tools = MemoryJournal(), CountingTools()
            journal.on_call = stop_before_finish(number)
            with pytest.raises(PowerCut):
                await converse(server, journal, tools)
            unfinished = journal.records[number - 1]
            journal.on_call = lambda request: None
            journal.next_claim()
            await converse(server, journal, tools)

            seen = Counter(request.body_sha256 for request in server.seen)
            twice = {digest for digest, count in seen.items() if count > 1}
            if unfinished["kind"] == "turn":
                assert twice == {unfinished["input_sha256"]}
                assert seen[unfinished["input_sha256"]] == 2
                assert journal.states("turn").count("unknown") == 1
            else:
                assert twice == set()
                assert len(tools.described) == 1
            assert sorted(tools.ran) == ["one", "three", "two"]


def stop_before_finish(number: int) -> Any:
    def on_call(request: dict[str, Any]) -> None:
        if request["op"] == "step_finish" and request["number"] == number:
            raise PowerCut

    return on_call


async def test_once_1_an_interruption_that_was_itself_interrupted_is_still_not_run() -> None:
    journal, tools = MemoryJournal(), CountingTools()
    with MessagesServer(answer=scripted) as server:
        journal.on_call = stop_before_finish(3)
        with pytest.raises(PowerCut):
            await converse(server, journal, tools)
        journal.next_claim()
        journal.on_call = stop_before_finish(4)
        with pytest.raises(PowerCut):
            await converse(server, journal, tools)
        journal.next_claim()
        journal.on_call = lambda request: None
        await converse(server, journal, tools)
    assert tools.ran.count("one") == 1
    assert tools.described == ["one", "one"]


async def test_fence_1_a_claim_that_was_taken_over_sends_nothing_and_runs_nothing() -> None:
    journal, tools = MemoryJournal(), CountingTools()

    def take_over(request: dict[str, Any]) -> None:
        if request["op"] == "step_finish" and request["number"] == 2:
            journal.epoch += 1

    journal.on_call = take_over
    with MessagesServer(answer=scripted) as server, pytest.raises(Fenced):
        await converse(server, journal, tools)
    assert len(server.seen) == 1
    assert tools.ran == []


class Answer(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    number: int = Field(ge=1, le=10)
    words: list[str] = Field(default_factory=list)


async def asked(server: MessagesServer, journal: MemoryJournal | None = None, **more: Any) -> Answer:
    client = Client({"base_url": server.url, "api_key": "key"})
    try:
        answer = await structured(
            client,
            context_on(journal or MemoryJournal()),
            model="demo",
            system="You are a test.",
            prompt="a number, please",
            output=Answer,
            retry=policy(),
            **more,
        )
        return answer.value
    finally:
        await client.close()


async def test_the_schema_on_the_wire_is_closed_complete_and_named_after_the_model() -> None:
    with MessagesServer(saying('{"number": 3, "words": []}')) as server:
        assert await asked(server) == Answer(number=3)
    body = server.seen[0].body
    assert set(body) == {"model", "max_tokens", "system", "stream", "messages", "output_config"}
    schema = body["output_config"]["format"]["schema"]
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert (schema["title"], schema["additionalProperties"]) == ("Answer", False)
    assert schema["required"] == ["number", "words"]
    assert "maximum" not in schema["properties"]["number"]


async def test_prose_where_json_is_due_is_sent_back_once_with_its_problem() -> None:
    with MessagesServer(saying("The number is three."), saying('{"number": 3, "words": []}')) as server:
        assert await asked(server) == Answer(number=3)
    repair = server.seen[1].body["messages"]
    assert repair[1]["content"] == [{"type": "text", "text": "The number is three."}]
    assert "Invalid JSON" in repair[2]["content"]


async def test_a_value_out_of_range_is_sent_back_with_the_rule_it_breaks() -> None:
    with MessagesServer(saying('{"number": 11, "words": []}'), saying('{"number": 10, "words": []}')) as server:
        assert (await asked(server)).number == 10
    assert "number: Input should be less than or equal to 10" in server.seen[1].body["messages"][2]["content"]


async def test_a_problem_that_only_our_check_sees_is_sent_back_too() -> None:
    def odd(answer: Answer) -> list[str]:
        return [] if answer.number % 2 else ["number must be odd"]

    with MessagesServer(saying('{"number": 2, "words": []}'), saying('{"number": 5, "words": []}')) as server:
        assert (await asked(server, check=odd)).number == 5
    assert "number must be odd" in server.seen[1].body["messages"][2]["content"]


async def test_a_second_unusable_answer_is_a_fatal_model_error_that_names_the_document() -> None:
    with (
        MessagesServer(saying("no"), saying("still no"), saying('{"number": 3}')) as server,
        pytest.raises(ModelError) as raised,
    ):
        await asked(server)
    assert (raised.value.code, raised.value.fatal, len(server.seen)) == ("MN-0401", True, 2)
    assert "Answer" in raised.value.message


async def test_a_repaired_answer_is_replayed_without_one_request() -> None:
    journal = MemoryJournal()
    with MessagesServer(saying("no"), saying('{"number": 3, "words": []}')) as server:
        await asked(server, journal)
        journal.next_claim()
        assert await asked(server, journal) == Answer(number=3)
    assert len(server.seen) == 2


async def test_a_failing_server_during_a_structured_answer_is_no_repair_round() -> None:
    with MessagesServer(failing(529, "overloaded_error"), saying('{"number": 1, "words": []}')) as server:
        assert (await asked(server)).number == 1
    assert server.seen[0].body_sha256 == server.seen[1].body_sha256


async def test_thinking_before_json_does_not_disturb_it() -> None:
    reply = thinking_then({"type": "text", "text": '{"number": 4, "words": ["x"]}'}, stop_reason="end_turn")
    with MessagesServer(reply) as server:
        assert (await asked(server)).words == ["x"]
