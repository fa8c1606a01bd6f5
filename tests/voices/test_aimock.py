"""aimock talks to our client, and listens to our server.

It brings conversations of its own, as fixtures: our session must take every one of them as it is written. And it can
stand between a client and a server, read the stream with its own parser and write fixtures of what it understood: what
it understood of our demo server must be enough to play the same run once more without that server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import DemoServer, Sandbox
from journal_in_memory import MemoryJournal
from mnemosyne.agents.context import AgentContext
from mnemosyne.demo.sample import copy_sample
from mnemosyne.llm import AssistantMessage, ClaudeSession, Client, SessionOptions, Turn
from mnemosyne.models import Phase, WorkItem
from peers import AIMOCK, call, need, running

need(AIMOCK, "aimock")

START = Path(__file__).with_name("aimock.mjs")
SECONDS = 120.0
Entry = dict[str, Any]


@contextlib.contextmanager
def aimock(folder: Path, *fixtures: Path, **options: Any) -> Iterator[str]:
    node = shutil.which("node")
    assert node is not None
    with running([node, START, AIMOCK, json.dumps(options), *fixtures], log=folder / "aimock.log") as url:
        yield url


# --- its conversations --------------------------------------------------------------------------------------------


def entries(file: Path) -> list[Entry]:
    """The answers of a chat in a fixture file; there are files about other things as well."""
    content = json.loads(file.read_text())
    found = content.get("fixtures", []) if isinstance(content, dict) else []
    kinds = {"content", "toolCalls", "blocks", "error"}
    return [
        entry
        for entry in found
        if isinstance(entry.get("response"), dict)
        and kinds & entry["response"].keys()
        and "endpoint" not in entry["match"]
    ]


def conversations() -> list[tuple[Path, str, list[Entry]]]:
    """File, what the user says, and what is answered, one after the other."""
    found: dict[tuple[Path, str], list[Entry]] = {}
    for file in sorted((AIMOCK / "fixtures").rglob("*.json")):
        for entry in entries(file):
            said = entry["match"].get("userMessage") or entry["match"].get("toolName")
            if said is not None:
                found.setdefault((file, str(said)), []).append(entry)
    return [(file, said, answers) for (file, said), answers in found.items()]


CONVERSATIONS = conversations()


class AnyTools:
    """Offers the tools that a conversation calls, and agrees to everything."""

    def __init__(self, answers: list[Entry]) -> None:
        self._names = sorted({name for entry in answers for name, _ in calls_of(entry["response"])})

    def definitions(self) -> list[dict[str, Any]]:
        schema = {"type": "object", "properties": {}}
        return [{"name": name, "description": name, "input_schema": schema} for name in self._names]

    async def run(self, name: str, input: dict[str, Any]) -> Any:
        return Agreed()

    async def describe_interrupted(self, name: str, input: dict[str, Any]) -> str:
        return "interrupted"


class Agreed:
    content = "done"
    is_error = False


def calls_of(response: Entry) -> list[tuple[str, Any]]:
    blocks = [block for block in response.get("blocks", []) if block["type"] == "toolCall"]
    asked = [*response.get("toolCalls", []), *blocks]
    return [(call["name"], _parsed(call["arguments"])) for call in asked]


def _parsed(arguments: object) -> object:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


async def turns(url: str, said: str, answers: list[Entry]) -> list[Turn]:
    """Say it, again and again, until as many turns were answered as there are answers."""
    journal = MemoryJournal()
    item = WorkItem(id="i1", description="voices", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    client = Client({"base_url": url, "api_key": "key"})
    tools = AnyTools(answers)
    options = SessionOptions(
        "demo", "You are a test.", tools=tools if tools.definitions() else None, max_turns=len(answers)
    )
    found: list[Turn] = []
    try:
        context = AgentContext(item, epoch=journal.epoch, upcalls=journal)
        async with ClaudeSession(client, context, options) as session:
            while len(found) < len(answers):
                await session.query(said)
                found += [m.turn async for m in session.receive_response() if isinstance(m, AssistantMessage)]
    finally:
        await client.close()
    return found


async def keeps_asking(url: str, said: str, answers: list[Entry]) -> None:
    """An error that never passes is no answer, and is asked for again and again."""
    asking = asyncio.create_task(turns(url, said, answers))
    try:
        deadline = time.monotonic() + SECONDS
        while len(seen := call(f"{url}/__aimock/journal")) < 4:
            assert time.monotonic() < deadline, f"it stopped asking after {len(seen)} requests"
            assert not asking.done(), asking
            await asyncio.sleep(0.1)
        assert {entry["response"]["status"] for entry in seen} == {answers[0]["response"]["status"]} == {429}
    finally:
        asking.cancel()
        await asyncio.wait([asking])


def test_all_but_one_of_its_answers_can_be_reached_by_talking() -> None:
    everything = [entry for file in (AIMOCK / "fixtures").rglob("*.json") for entry in entries(file)]
    reached = [entry for _, _, answers in CONVERSATIONS for entry in answers]
    # It waits for the result of a tool call by an id that the call itself never has.
    assert [entry["match"] for entry in everything if entry not in reached] == [{"toolCallId": "call_background"}]
    assert len(reached) >= 20


@pytest.mark.parametrize(
    ("file", "said", "answers"),
    CONVERSATIONS,
    ids=[f"{file.relative_to(AIMOCK / 'fixtures')}: {said}" for file, said, _ in CONVERSATIONS],
)
async def test_each_conversation_is_taken_as_it_is_written(
    tmp_path: Path, file: Path, said: str, answers: list[Entry]
) -> None:
    with aimock(tmp_path, file, strict=True) as url:
        if "error" in answers[0]["response"]:
            await keeps_asking(url, said, answers)
            return
        found = await turns(url, said, answers)
    assert len(found) == len(answers)
    for turn, entry in zip(found, answers, strict=True):
        response = entry["response"]
        assert [(use["name"], use["input"]) for use in turn.tool_uses] == calls_of(response)
        texts = [block["text"] for block in response.get("blocks", []) if block["type"] == "text"]
        assert turn.text == response.get("content", "".join(texts))
        if "blocks" in response:
            kinds = {"toolCall": "tool_use", "text": "text"}
            assert [block["type"] for block in turn.content] == [kinds[block["type"]] for block in response["blocks"]]


# --- our server ---------------------------------------------------------------------------------------------------

PLAN = {
    "tasks": [
        {
            "id": "prices",
            "title": "Finish shop/pricing.py",
            "file_scope": ["shop/pricing.py"],
            "acceptance": [{"command": "python3 -m unittest tests.test_pricing"}],
        }
    ]
}


def run_plan(folder: Path, url: str) -> tuple[bytes, int]:
    """Carry out a plan of one task by the server at ``url``; returns the file, and the number of turns."""
    folder.mkdir()
    sandbox = Sandbox(folder)
    try:
        (folder / "plan.json").write_text(json.dumps(PLAN))
        copy_sample(sandbox.workspace)
        flags = ["--workspace", str(sandbox.workspace), "--model", "demo", "--base-url", url, "--json"]
        done = sandbox.run("orchestrate", "--plan", "plan.json", *flags)
        assert done.exit_code == 0, done.err
        return (sandbox.workspace / "shop" / "pricing.py").read_bytes(), done.summary["usage"]["turns"]
    finally:
        sandbox.close()


def forget_seconds(file: Path) -> None:
    """Match a request by what comes before its evidence, which says how many seconds a command took."""
    content = json.loads(file.read_text())
    for entry in content["fixtures"]:
        entry["match"]["userMessage"] = entry["match"]["userMessage"].split("<evidence>")[0]
    file.write_text(json.dumps(content))


def test_what_aimock_understood_of_our_server_plays_the_same_run_again(tmp_path: Path) -> None:
    fixtures = tmp_path / "fixtures"
    fixtures.mkdir()
    (tmp_path / "server").mkdir()
    server = DemoServer(tmp_path / "server")
    try:
        record = {"providers": {"anthropic": server.url}, "fixturePath": str(fixtures)}
        with aimock(tmp_path, record=record) as url:
            first = run_plan(tmp_path / "first", url)
        asked = server.seen()
    finally:
        server.close()
    assert sum(asked.values()) == first[1], "aimock asked our server for every turn"
    files = sorted(fixtures.rglob("*.json"))
    node = shutil.which("node")
    validated = subprocess.run(
        [str(node), str(AIMOCK / "dist" / "aimock-cli.js"), "validate", "--json", str(fixtures)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert validated.returncode == 0, validated.stdout
    for file in files:
        forget_seconds(file)
    with aimock(tmp_path, *files, strict=True) as url:
        again = run_plan(tmp_path / "again", url)
    assert again == first
