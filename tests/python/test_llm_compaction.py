"""A conversation that does not fit: shortened, never broken, and the same again after a kill."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from journal_in_memory import MemoryJournal, PowerCut
from messages_server import MessagesServer, Reply, failing, saying, stream
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import ModelError
from mnemosyne.llm import ClaudeSession, Client, ResultMessage, RetryPolicy, SessionOptions, compaction
from mnemosyne.models import Phase, WorkItem
from pydantic import JsonValue

TASK = """\
Carry out this task.
<task>
finish it
</task>
<acceptance>
make test
</acceptance>
<feedback>
red
</feedback>"""
ROUNDS = 8


@dataclass
class Outcome:
    content: str
    is_error: bool = False


@dataclass
class Wordy:
    """A tool whose results are long, each recognisable."""

    length: int = 4_000
    ran: list[str] = field(default_factory=list)

    def definitions(self) -> list[dict[str, JsonValue]]:
        return [{"name": "look", "description": "looks", "input_schema": {"type": "object"}}]

    async def run(self, name: str, input: dict[str, JsonValue]) -> Outcome:
        self.ran.append(str(input["at"]))
        return Outcome(f"<{input['at']}>" + "x" * self.length)

    async def describe_interrupted(self, name: str, input: dict[str, JsonValue]) -> str:
        return f"interrupted: {input['at']}"


class Narrow(MessagesServer):
    """A server with a small window, which holds every request to the rules of the API.

    Attributes:
        window: Bytes of messages that it takes.
        broken: What was wrong with requests.
    """

    def __init__(self, window: int, *, words: int = 0, refuse: str = "status", rounds: int = ROUNDS) -> None:
        super().__init__(answer=self._answer_to)
        self.window = window
        self.broken: list[str] = []
        self._words, self._refuse, self._rounds = words, refuse, rounds

    def _answer_to(self, body: dict[str, Any]) -> Reply:
        messages = body["messages"]
        if body["system"] == compaction.SUMMARIZER:
            return saying("I looked at many places.") if self._fits(messages) else self._refusal(messages)
        self.broken += problems_of(messages)
        if not self._fits(messages):
            return self._refusal(messages)
        turn = int(str(sorted(seen_marks(messages))[-1:] or ["-1"])[2:-2]) + 1
        if turn == self._rounds:
            return saying("done")
        uses = [
            {"type": "tool_use", "id": f"t{turn}_{index}", "name": "look", "input": {"at": f"{turn:03}"}}
            for index in range(2)
        ]
        thinking = {"type": "thinking", "thinking": f"round {turn}", "signature": f"signed {turn}"}
        text = {"type": "text", "text": f"mark {turn:03} " + "w" * self._words}
        return Reply(events=stream([thinking, text, *uses], "tool_use", input_tokens=compaction.size(messages)))

    def _fits(self, messages: list[Any]) -> bool:
        return compaction.size(messages) <= self.window

    def _refusal(self, messages: list[Any]) -> Reply:
        if self._refuse == "stop_reason":
            return saying("I was about to", "model_context_window_exceeded")
        said = f"prompt is too long: {compaction.size(messages)} tokens > {self.window} maximum"
        return failing(400, "invalid_request_error", said)


def seen_marks(messages: list[Any]) -> set[str]:
    """How far the conversation has come, from whatever is left of it."""
    words = json.dumps(messages).replace("<", " ").replace(">", " ").split()
    return {after[:3] for word, after in pairwise(words) if word.endswith("mark")}


def problems_of(messages: list[Any]) -> list[str]:
    """The rules of the API that messages break, and whether our own words are all there."""
    problems = [] if messages[0]["role"] == "user" else ["it does not begin with us"]
    for before, message in pairwise(messages):
        asked = [block["id"] for block in before["content"] if isinstance(block, dict) and block["type"] == "tool_use"]
        given = [
            block["tool_use_id"]
            for block in message["content"]
            if isinstance(block, dict) and block["type"] == "tool_result"
        ]
        problems += [f"{asked} was answered by {given}"] if asked != given else []
        problems += ["two turns of one side"] if before["role"] == message["role"] else []
    for message in messages:
        for block in message["content"]:
            if isinstance(block, dict) and block["type"] == "thinking":
                number = block["thinking"].removeprefix("round ")
                problems += [] if block["signature"] == f"signed {number}" else ["thinking was changed"]
    first = messages[0]["content"]
    ours = first if isinstance(first, str) else first[0]["text"]
    return problems + ([] if ours == TASK else ["the task is not what it was"])


async def converse(server: MessagesServer, journal: MemoryJournal, tools: Wordy, **more: Any) -> ResultMessage:
    item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    context = AgentContext(item, epoch=journal.epoch, upcalls=journal)
    client = Client({"base_url": server.url, "api_key": "key"})
    options = SessionOptions(more.pop("model", "demo"), "You are a test.", tools=tools, retry=RetryPolicy(), **more)
    try:
        async with ClaudeSession(client, context, options) as session:
            await session.query(TASK)
            messages = [message async for message in session.receive_response()]
    finally:
        await client.close()
    assert isinstance(messages[-1], ResultMessage)
    return messages[-1]


def ways(journal: MemoryJournal) -> list[str]:
    return [record["output"]["way"] for record in journal.records if record["name"] == "compaction"]


@pytest.mark.parametrize("refuse", ["status", "stop_reason"])
async def test_what_does_not_fit_goes_on_with_old_results_left_out(refuse: str) -> None:
    journal, tools = MemoryJournal(), Wordy()
    with Narrow(30_000, refuse=refuse) as server:
        result = await converse(server, journal, tools)
    assert (result.text, result.is_error) == ("done", False)
    assert server.broken == []
    assert set(ways(journal)) == {"left out"}
    assert Counter(tools.ran) == {f"{number:03}": 2 for number in range(ROUNDS)}
    last = json.dumps(server.seen[-1].body)
    assert "[4,005 characters left out to save room; make the call again if you need them]" in last
    assert "<007>" in last, "what came last is there"


async def test_where_results_are_not_what_is_long_the_model_sums_up() -> None:
    journal = MemoryJournal()
    with Narrow(12_000, words=2_500) as server:
        result = await converse(server, journal, Wordy(length=200))
    assert (result.text, server.broken) == ("done", [])
    assert "summary" in ways(journal)
    summaries = [seen.body for seen in server.seen if seen.body["system"] == compaction.SUMMARIZER]
    assert summaries
    assert all("tools" not in body for body in summaries)
    first = server.seen[-1].body["messages"][0]["content"]
    assert first[0]["text"] == TASK, "word for word"
    assert "<summary>\nI looked at many places.\n</summary>" in first[1]["text"]
    # Usage counts the summaries too: each took a turn of the model.
    assert result.usage.turns == result.turns + len(summaries)


async def test_a_model_whose_window_is_known_is_never_asked_what_will_not_fit() -> None:
    journal, tools = MemoryJournal(), Wordy(length=100_000)
    with Narrow(10**9) as server:  # the server would take it all; it says one token for each byte of messages
        result = await converse(server, journal, tools, model="claude-sonnet-5-5")
    assert (result.text, server.broken) == ("done", [])
    assert set(ways(journal)) == {"left out"}
    largest = max(compaction.size(seen.body["messages"]) for seen in server.seen)
    assert 700_000 < largest < 1_000_000 - 32_000
    assert len(server.seen) == ROUNDS + 1, "nothing was asked in vain"


async def test_what_we_said_alone_does_not_fit_and_is_asked_once() -> None:
    with Narrow(50) as server, pytest.raises(ModelError) as raised:
        await converse(server, MemoryJournal(), Wordy())
    assert (raised.value.code, raised.value.fatal) == ("MN-0407", True)
    assert "prompt is too long" in raised.value.reason
    assert len(server.seen) == 1


async def test_a_window_that_nothing_fits_into_ends_the_work_after_two_attempts_to_shorten() -> None:
    journal = MemoryJournal()
    with Narrow(20_000) as server:

        def closing(body: dict[str, Any]) -> Reply:
            if len(server.seen) == 3:
                server.window = len(TASK)
            return server._answer_to(body)

        server.answer = closing
        with pytest.raises(ModelError) as raised:
            await converse(server, journal, Wordy())
    assert raised.value.code == "MN-0407"
    # After two turns: the third, the same with results left out, and the summary, each refused once.
    assert len(server.seen) == 2 + 3


async def test_a_server_that_refuses_what_was_left_out_gets_a_summary() -> None:
    def picky(body: dict[str, Any]) -> Reply:
        if "left out to save room" in json.dumps(body["messages"]) and "tools" in body:
            return failing(400, "invalid_request_error", "messages.1.content.0: thinking blocks cannot be modified")
        return server._answer_to(body)

    journal = MemoryJournal()
    with Narrow(30_000) as server:
        server.answer = picky
        result = await converse(server, journal, Wordy())
    assert (result.text, server.broken) == ("done", [])
    assert ways(journal)[:2] == ["left out", "summary"]


@pytest.mark.parametrize(
    ("window", "words", "length", "refuse"),
    [(30_000, 0, 4_000, "status"), (30_000, 0, 4_000, "stop_reason"), (9_000, 2_000, 200, "status")],
)
async def test_once_1_killed_at_any_upcall_after_a_refusal_the_shortened_conversation_is_the_same(
    window: int, words: int, length: int, refuse: str
) -> None:
    rounds = 5
    with Narrow(window, words=words, rounds=rounds, refuse=refuse) as server:
        whole = MemoryJournal()
        expected = await converse(server, whole, Wordy(length))
        assert ways(whole), "this test is about a conversation that was shortened"
        asked = [seen.body_sha256 for seen in server.seen]
        first = next(at for at, call in enumerate(whole.calls) if call.get("name") == "compaction")
        for cut in range(first - 1, len(whole.calls) + 1):
            server.seen.clear()
            journal, tools = MemoryJournal(), Wordy(length)
            journal.cut_after = cut
            with pytest.raises(PowerCut):
                await converse(server, journal, tools)
            journal.next_claim()
            # A refused request is a finished step: what it led to is in the journal, or it is asked once more.
            result = await converse(server, journal, tools)
            assert (result.text, result.turns) == (expected.text, expected.turns)
            seen = Counter(request.body_sha256 for request in server.seen)
            if "interrupted" not in json.dumps(journal.records):  # or the model was told what nobody else was told
                assert seen.keys() <= set(asked), f"cut after {cut}: a request that was never asked before"
                assert result.usage == expected.usage
            refused = {
                record["detail"]["request_sha256"]
                for record in journal.records
                if record["kind"] == "turn" and record["state"] == "failed"
            }
            assert all(count == 1 or (digest in refused and count == 2) for digest, count in seen.items()), cut
            assert max(Counter(tools.ran).values()) <= 2, "two calls of a round look at the same place"
    assert server.broken == []


async def test_a_resumed_claim_follows_the_journal_even_if_it_would_shorten_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = MemoryJournal()
    with Narrow(30_000) as server:
        journal.on_call = cut_at_the_turn_after_a_compaction()
        with pytest.raises(PowerCut):
            await converse(server, journal, Wordy())
        shortened = [record for record in journal.records if record["name"] == "compaction"]
        assert len(shortened) == 1
        journal.on_call = lambda request: None
        journal.next_claim()
        before = len(server.seen)

        def differently(messages: Any, room: int) -> Any:
            raise AssertionError("the journal knows what to do")

        with monkeypatch.context() as patch:
            patch.setattr(compaction, "leave_out", differently)
            patch.setattr(server, "window", 1_000_000)
            await converse(server, journal, Wordy())
    (left_out,) = (json.dumps(entry["content"]) for entry in shortened[0]["output"]["results"][:1])
    assert left_out in json.dumps(server.seen[before].body)


def cut_at_the_turn_after_a_compaction() -> Any:
    seen: list[str] = []

    def on_call(request: dict[str, Any]) -> None:
        if request["op"] == "step_start":
            seen.append(request["name"])
            if request["name"] == "turn" and "compaction" in seen:
                raise PowerCut

    return on_call


def round_of(number: int, *contents: str) -> list[dict[str, Any]]:
    uses = [{"type": "tool_use", "id": f"{number}-{at}", "name": "look", "input": {}} for at in range(len(contents))]
    results = [
        {"type": "tool_result", "tool_use_id": f"{number}-{at}", "content": content}
        for at, content in enumerate(contents)
    ]
    return [{"role": "assistant", "content": uses}, {"role": "user", "content": results}]


def conversation(*rounds: tuple[str, ...]) -> list[Any]:
    messages: list[Any] = [{"role": "user", "content": TASK}]
    for number, contents in enumerate(rounds):
        messages += round_of(number, *contents)
    return messages


def contents(messages: list[Any]) -> list[str]:
    blocks = [block for message in messages for block in message["content"] if isinstance(block, dict)]
    return [block["content"] for block in blocks if block["type"] == "tool_result"]


def test_the_oldest_results_are_left_out_first_and_no_more_than_needed() -> None:
    messages = conversation(("a" * 9_000,), ("b" * 9_000, "short"), ("c" * 9_000,), ("d" * 9_000,), ("e" * 9_000,))
    recipe = compaction.leave_out(messages, 33_000)
    assert recipe is not None
    shorter = compaction.follow(recipe, messages, [TASK])
    assert [content[:1] for content in contents(shorter)] == ["[", "[", "s", "c", "d", "e"]
    assert compaction.size(shorter) <= 33_000
    assert [block for block in shorter if block["role"] == "assistant"] == [
        block for block in messages if block["role"] == "assistant"
    ]


def test_the_newest_results_are_clipped_and_keep_their_beginning_and_end() -> None:
    messages = conversation(("a" * 9_000,), ("b" * 30_000 + "END",))
    recipe = compaction.leave_out(messages, 9_000)
    assert recipe is not None
    old, new = contents(compaction.follow(recipe, messages, [TASK]))
    assert len(old) < 7_000
    assert new.startswith("bbb")
    assert new.endswith("END")
    assert "characters left out" in new


def test_where_leaving_out_is_not_enough_it_says_so() -> None:
    assert compaction.leave_out(conversation(("short",), ("short",)), 10) is None
    assert compaction.leave_out(conversation(("a" * 9_000,)), 100) is None


def test_the_text_to_be_summed_up_is_bounded_and_holds_every_kind_of_thing() -> None:
    messages = conversation(*(("a" * 5_000,) for _ in range(50)))
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "I think"}]})
    prompt = compaction.summary_prompt(messages, 20_000)
    assert len(prompt) < 20_500
    assert "task: Carry out" in prompt
    assert "call: look {}" in compaction.summary_prompt(conversation(("a",)), 20_000)
    assert "it gave: a" in compaction.summary_prompt(conversation(("a",)), 20_000)
    assert "engineer: I think" in prompt
