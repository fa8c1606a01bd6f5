"""llmock breaks our client on purpose and judges it: did it recover, or did it only look so?

Each behaviour that llmock 0.2 offers is met by a real session of ours over real sockets, with our own waits. A test
asserts what became of the session and what llmock says of it: no errors, and no warnings either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command import Sandbox
from journal_in_memory import MemoryJournal
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import EnvironmentProblem, ModelError
from mnemosyne.llm import ClaudeSession, Client, ResultMessage, SessionOptions
from mnemosyne.models import Phase, WorkItem
from peers import PYTHON, call, need, running

need(PYTHON, "llmock")

SERVE = """
import os, random, sys
random.seed(os.environ.get("SEED"))
from llmock.chaos import ChaosSettings
from llmock.testing import LLMockServer
server = LLMockServer(chaos=ChaosSettings.from_env()).start()
print(server.url, flush=True)
sys.stdin.read()
"""
SECONDS = 120.0
Behavior = dict[str, Any]


@dataclass
class LLMock:
    """One llmock server; settings other than behaviours are those of its environment."""

    url: str

    def script(self, *behaviors: Behavior) -> None:
        call(f"{self.url}/_llmock/reset", {})
        if behaviors:
            call(f"{self.url}/_llmock/scenario", {"behaviors": behaviors})

    def verdict(self) -> dict[str, Any]:
        found: dict[str, Any] = call(f"{self.url}/_llmock/verdict")
        return found

    def assert_resilient(self, *, attempts: int | None = None, faults: int | None = None) -> None:
        """It found nothing to complain of, and it is the scenario that was meant: so many attempts, so many faults."""
        verdict = self.verdict()
        assert verdict["passed"], json.dumps(verdict, indent=1)
        assert [found for found in verdict["findings"] if not self._asked_again(found)] == []
        assert attempts in (None, verdict["attempts"]), json.dumps(verdict, indent=1)
        assert faults in (None, verdict["faults_injected"]), json.dumps(verdict, indent=1)

    def _asked_again(self, finding: dict[str, Any]) -> bool:
        """Whether the try after a malformed event, which llmock misses, is in its own journal.

        It takes a request for another try only of one that failed and that ended before. But where the last event is
        the malformed one, it believes that all went well; and else we hang up at once and are back before it noticed.
        """
        if finding["code"] != "malformed_chunk_ignored":
            return False
        requests = call(f"{self.url}/_llmock/requests")["requests"]
        (first,) = [request for request in requests if request["seq"] == finding["requests"][0]]
        later = [request for request in requests if request["started_at"] > first["started_at"]]
        return any(request["fingerprint"] == first["fingerprint"] for request in later)


@contextlib.contextmanager
def llmock_server(folder: Path, **settings: str) -> Iterator[LLMock]:
    with running([PYTHON, "-c", SERVE], log=folder / "llmock.log", environment=settings) as url:
        yield LLMock(url)


@pytest.fixture(scope="module")
def llmock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMock]:
    with llmock_server(tmp_path_factory.mktemp("llmock")) as server:
        yield server


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.close()


@dataclass
class Outcome:
    content: str
    is_error: bool = False


@dataclass
class Weather:
    """A tool of the kind that llmock calls by itself."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    def definitions(self) -> list[dict[str, Any]]:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        return [{"name": "get_weather", "description": "The weather of a city.", "input_schema": schema}]

    async def run(self, name: str, input: dict[str, Any]) -> Outcome:
        if name != "get_weather":
            return Outcome(f"there is no tool {name}", is_error=True)
        self.asked.append(input)
        return Outcome("21 C")

    async def describe_interrupted(self, name: str, input: dict[str, Any]) -> str:
        return "interrupted"


async def converse(llmock: LLMock, tools: Weather | None = None, city: str = "Paris", **options: Any) -> ResultMessage:
    journal = MemoryJournal()
    item = WorkItem(id="i1", description="voices", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    client = Client({"base_url": f"{llmock.url}/anthropic", "api_key": "key"})
    try:
        context = AgentContext(item, epoch=journal.epoch, upcalls=journal)
        chosen = SessionOptions("claude-opus-5-5", "You are a test.", tools=tools, **({"max_tokens": 1024} | options))
        async with ClaudeSession(client, context, chosen) as session:
            await session.query(f"What is the weather in {city}?")
            return await _last(session.receive_response())
    finally:
        await client.close()


async def _last(messages: AsyncIterator[Any]) -> ResultMessage:
    last = None
    async for message in messages:
        last = message
    assert isinstance(last, ResultMessage)
    return last


OFFERED = """
import json, typing
from llmock import scenarios
kinds = [typing.get_args(kind) for kind in (scenarios.StreamFaultKind, scenarios.ToolFaultKind)]
print(json.dumps([sorted(scenarios._TYPE_NAMES), *map(sorted, kinds)]))
"""


def test_all_that_it_offers_is_met_here() -> None:
    offered = subprocess.run([PYTHON, "-c", OFFERED], capture_output=True, text=True, check=True, timeout=SECONDS)
    behaviors = ["delay", "fail", "reply", "slow_first_token", "stream_fault", "tool_fault"]
    stream_faults, tool_faults = (
        ["disconnect", "malformed", "stall", "truncate"],
        ["malformed_arguments", "unknown_tool"],
    )
    assert json.loads(offered.stdout) == [behaviors, stream_faults, tool_faults], "a new release offers something else"


# --- what is worth another try ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_failure_that_passes_is_survived(llmock: LLMock, status: int) -> None:
    llmock.script({"type": "fail", "status": status}, {"type": "reply", "text": "21 C"})
    assert (await converse(llmock)).text == "21 C"
    llmock.assert_resilient(attempts=2, faults=1)


async def test_two_rate_limits_are_waited_for_as_long_as_they_say(llmock: LLMock) -> None:
    llmock.script({"type": "fail", "status": 429, "retry_after": 1.5, "times": 2}, {"type": "reply", "text": "21 C"})
    assert (await converse(llmock)).text == "21 C"
    llmock.assert_resilient(attempts=3, faults=2)


async def test_an_outage_is_waited_out_without_a_storm(llmock: LLMock) -> None:
    llmock.script({"type": "fail", "status": 503, "times": None})
    asking = asyncio.create_task(converse(llmock, city="Rome"))
    deadline = time.monotonic() + SECONDS
    while len(call(f"{llmock.url}/_llmock/requests")["requests"]) < 7:
        assert time.monotonic() < deadline, "it stopped asking"
        assert not asking.done(), "it gave up"
        await asyncio.sleep(0.1)
    call(f"{llmock.url}/_llmock/scenario", method="DELETE")
    assert (await asking).text
    llmock.assert_resilient()


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
@pytest.mark.parametrize("after_chunks", [0, 1, 4])
async def test_a_broken_stream_is_asked_for_again(llmock: LLMock, kind: str, after_chunks: int) -> None:
    llmock.script(
        {"type": "stream_fault", "kind": kind, "after_chunks": after_chunks},
        {"type": "reply", "text": "It is 21 C in Paris, and the sun shines.", "times": 2},
    )
    assert (await converse(llmock)).text == "It is 21 C in Paris, and the sun shines."
    llmock.assert_resilient(attempts=2, faults=1)


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_once_1_a_tool_call_that_broke_off_is_not_run(llmock: LLMock, kind: str) -> None:
    asked = {"type": "reply", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}
    llmock.script({"type": "stream_fault", "kind": kind, "after_chunks": 2}, {**asked, "times": 2})
    tools = Weather()
    await converse(llmock, tools)
    assert tools.asked == [{"city": "Paris"}]
    llmock.assert_resilient(attempts=3, faults=1)


async def test_a_stream_that_stands_still_is_left_and_asked_for_again(llmock: LLMock) -> None:
    llmock.script({"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 75})
    assert (await converse(llmock)).text
    llmock.assert_resilient(attempts=2, faults=1)


@pytest.mark.parametrize("behavior", [{"type": "delay"}, {"type": "slow_first_token"}], ids=lambda found: found["type"])
async def test_a_slow_answer_is_no_failure(llmock: LLMock, behavior: Behavior) -> None:
    llmock.script({**behavior, "seconds": 3}, {"type": "reply", "text": "21 C"})
    assert (await converse(llmock)).text == "21 C"
    llmock.assert_resilient(attempts=1)


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_an_error_that_no_try_can_mend_is_told_at_once(llmock: LLMock, status: int) -> None:
    llmock.script({"type": "fail", "status": status, "times": None})
    with pytest.raises((ModelError, EnvironmentProblem)):
        await converse(llmock)
    llmock.assert_resilient(attempts=1, faults=1)


async def test_a_prompt_that_is_too_long_is_told_at_once(tmp_path: Path) -> None:
    with llmock_server(tmp_path, LLMOCK_CONTEXT_WINDOW="3") as small:
        with pytest.raises(ModelError):
            await converse(small)
        small.assert_resilient(attempts=1, faults=1)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_truth_1_an_answer_that_was_stopped_is_no_answer(llmock: LLMock, reason: str) -> None:
    llmock.script({"type": "reply", "text": "It is", "finish_reason": reason, "times": None})
    with pytest.raises(ModelError):
        await converse(llmock)
    llmock.assert_resilient(faults=0)


# --- tools --------------------------------------------------------------------------------------------------------


async def test_llmock_calls_the_tool_that_fits_and_gets_its_result(llmock: LLMock) -> None:
    llmock.script()
    tools = Weather()
    result = await converse(llmock, tools)
    assert (len(tools.asked), result.turns, result.is_error) == (1, 2, False)
    llmock.assert_resilient(attempts=2, faults=0)


async def test_a_tool_that_does_not_exist_is_told_to_the_model(llmock: LLMock) -> None:
    llmock.script({"type": "tool_fault", "kind": "unknown_tool"})
    tools = Weather()
    assert (await converse(llmock, tools)).text
    assert tools.asked == []
    llmock.assert_resilient(attempts=2)


async def test_once_1_a_tool_is_not_run_with_half_of_its_arguments(llmock: LLMock) -> None:
    llmock.script({"type": "tool_fault", "kind": "malformed_arguments"})
    tools = Weather()
    assert (await converse(llmock, tools)).text
    assert len(tools.asked) == 1
    llmock.assert_resilient(attempts=3)


# --- a whole run --------------------------------------------------------------------------------------------------


def test_a_whole_run_comes_through(llmock: LLMock, sandbox: Sandbox) -> None:
    judgement = {
        "passed": True,
        "confidence": 0.9,
        "feedback": "",
        "requirements": [{"id": "t1", "met": True, "reason": "ran"}],
    }
    written = {"path": "answer.py", "content": "def value():\n    return 42\n"}
    llmock.script(
        {"type": "fail", "status": 529},
        {"type": "stream_fault", "kind": "disconnect", "after_chunks": 3, "match": {"tools": True}},
        {"type": "stream_fault", "kind": "malformed", "after_chunks": 2, "match": {"tools": False}},
        {
            "type": "reply",
            "tool_calls": [{"name": "write_file", "arguments": written}],
            "times": 2,
            "match": {"tools": True},
        },
        {"type": "reply", "text": "I wrote it.", "match": {"tools": True}},
        {"type": "reply", "text": json.dumps(judgement), "times": 2, "match": {"tools": False}},
    )
    command = 'python3 -c "import answer; assert answer.value() == 42"'
    task = {"id": "t1", "title": "Answer", "file_scope": ["answer.py"], "acceptance": [{"command": command}]}
    (sandbox.root / "plan.json").write_text(json.dumps({"tasks": [task]}))
    sandbox.workspace.mkdir()
    flags = ["--plan", "plan.json", "--workspace", str(sandbox.workspace), "--model", "claude-opus-5-5", "--json"]
    done = sandbox.run("orchestrate", *flags, "--base-url", f"{llmock.url}/anthropic")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    assert (sandbox.workspace / "answer.py").read_text() == written["content"]
    llmock.assert_resilient(attempts=6, faults=3)


# --- quotas and chaos ---------------------------------------------------------------------------------------------


async def test_a_quota_of_requests_is_kept_by_waiting(tmp_path: Path) -> None:
    with llmock_server(tmp_path, LLMOCK_RPM="20") as limited:
        call_tool = {"type": "reply", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}
        limited.script({**call_tool, "times": 21}, {"type": "reply", "text": "enough"})
        # A refused request has used up its behaviour all the same.
        assert (await converse(limited, Weather())).turns > 20
        limited.assert_resilient()
        assert limited.verdict()["faults_injected"] >= 1, "the quota is meant to be met"


async def test_a_quota_of_tokens_is_kept_by_waiting(tmp_path: Path) -> None:
    with llmock_server(tmp_path, LLMOCK_TPM="60000") as limited:
        call_tool = {"type": "reply", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}
        limited.script({**call_tool, "times": 3}, {"type": "reply", "text": "enough"})
        assert (await converse(limited, Weather(), max_tokens=16_000)).turns > 2
        limited.assert_resilient()
        assert limited.verdict()["faults_injected"] >= 1, "the quota is meant to be met"


async def test_what_chaos_brings_is_recovered_from(tmp_path: Path) -> None:
    errors = {f"LLMOCK_ERROR_RATE_{status}": "0.08" for status in (429, 500, 529)}
    faults = {f"LLMOCK_STREAM_FAULT_{kind}": "0.08" for kind in ("DISCONNECT", "TRUNCATE", "MALFORMED")}
    # One session after the other, so that the seed decides who meets what.
    with llmock_server(tmp_path, SEED="7", LLMOCK_STREAM_CHUNK_DELAY_MS="5", **errors, **faults) as wild:
        for number in range(12):
            # llmock tells calls apart by what is asked.
            assert (await converse(wild, Weather(), city=f"Paris {number}")).turns == 2
        wild.assert_resilient()
        assert wild.verdict()["faults_injected"] >= 6
