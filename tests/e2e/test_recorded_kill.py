"""``kill -9`` at a chosen point of a request or a command, before a proxy that records: nothing happens twice.

``MNEMOSYNE_PROXY_KILLS`` says how many kills (default 8), ``MNEMOSYNE_SEED`` which ones; a failure prints its seed.
Several kills hit one run, each after a resume, and every place of :data:`~recording_proxy.PLACES` is hit in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from appending_model import answer_with, make_project, plan
from command import Finished, Sandbox, until
from messages_server import MessagesServer
from mnemosyne.orchestra import read_journals
from recording_proxy import PLACES, RecordingProxy

KILLS = int(os.environ.get("MNEMOSYNE_PROXY_KILLS", "8"))
SEED = os.environ.get("MNEMOSYNE_SEED") or f"{time.time_ns():x}"
KILLS_OF_A_RUN = 4
TASKS = 2
_TOOL_PLACES = [place for place in PLACES if place.startswith("tool")]

Line = dict[str, Any]


@pytest.fixture
def recorded(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingProxy]:
    """A proxy before a model that knows the proxy, and a project for it."""
    make_project(sandbox.workspace, TASKS)
    (sandbox.root / "plan.json").write_text(json.dumps(plan(TASKS)))
    with MessagesServer() as server:
        # A folder and a mark of its own: what is left of a killed run is looked for in the sandbox.
        outside = Sandbox(tmp_path_factory.mktemp("proxy"))
        proxy = RecordingProxy(server.url, outside.root / "requests.ndjson", outside.environment())
        server.answer = answer_with(sandbox.root / "append.py", sandbox.root / "lines.txt", proxy.url)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How often a process was killed at each place; said at the end."""
    tally: Counter[str] = Counter()
    yield tally
    places = ", ".join(f"{place} {tally[place]}" for place in PLACES)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nkilled {tally.total()} times: {places} (MNEMOSYNE_SEED={SEED})")


@pytest.mark.parametrize("first", range(0, KILLS, KILLS_OF_A_RUN))
def test_once_1_killed_at_a_chosen_point_nothing_is_asked_or_done_twice_and_every_token_is_counted(
    sandbox: Sandbox, recorded: RecordingProxy, tally: Counter[str], first: int
) -> None:
    chance = random.Random(f"{SEED}-{first}")
    kills = [(PLACES[number % len(PLACES)], chance.randint(1, 2)) for number in range(first, first + KILLS_OF_A_RUN)]
    kills = list(islice(kills, KILLS - first))
    said = f"MNEMOSYNE_SEED={SEED}, kills {kills}"
    run, done = _killed(sandbox, recorded, kills, said)
    tally.update(place for place, _ in kills)
    requests = list(recorded.requests())
    assert [line["place"] for line in requests if line["place"]] == [
        place for place, _ in kills if place not in _TOOL_PLACES
    ], said
    steps = asyncio.run(_steps(sandbox.store, run))
    turns = [step for step in steps if step["kind"] == "turn"]
    shortened = [step["input_sha256"] for step in steps if step["name"] == "compaction" and step["output"]]
    # The window is narrow; only what interrupted commands did not print can make a conversation fit.
    assert shortened or any(place in _TOOL_PLACES for place, _ in kills), said
    assert len(shortened) == len(set(shortened)), f"{said}: what an earlier process shortened was shortened again"
    _each_request_was_sent_once_or_is_unknown(requests, turns, said)
    _usage_is_what_the_proxy_saw(requests, turns, done.summary["usage"], said)
    _no_command_ran_twice(sandbox.root / "lines.txt", steps, said)


def test_what_an_interrupted_process_said_and_did_can_be_read(sandbox: Sandbox, recorded: RecordingProxy) -> None:
    # The first command belongs to t1 or to t2; the second kill is one of an answer, half of which had arrived.
    run, _ = _killed(sandbox, recorded, [("tool done", 1), ("middle", 1)], "")
    shown = [sandbox.run("show", run, "--conversation", task) for task in ("t1", "t2")]
    assert [found.exit_code for found in shown] == [0, 0]
    text = "\n".join(found.out for found in shown)
    assert "Make VALUE of part1 3." in text, "what the model was asked"
    assert "command: " in text, "what it called"
    assert "was interrupted when the process ended, and was not run again" in text, "what it was told"
    assert "interrupted: the process ended before this was recorded" in text
    assert "left out or clipped, to fit the model's context window" in text
    assert "what it used is unknown" in text
    assert "\\x1b[2J\\r\\u202eend" in text, "its last words, without their effect"
    assert not set("\x1b\r\u202e") & set(text)

    lines = [line for task in ("t1", "t2") for line in sandbox.run("show", run, "--conversation", task, "--json").lines]
    heads = [(line["kind"], line["attempt"]) for line in lines if line["type"] == "conversation"]
    assert heads == [("optimize", 1), ("execute", 1), ("review", 1), ("accept", 1)] * 2
    assert [line["type"] for line in lines].count("summary") == 2
    entries = [line for line in lines if line["type"] == "entry"]
    assert {line["role"] for line in entries if line["kind"] == "answer"} == {"executor", "reviewer"}
    unknown = [line["kind"] for line in entries if line["state"] == "unknown"]
    assert {"tool", "answer"} <= set(unknown)
    lost = [line for line in entries if line["kind"] == "tool" and line["body"]["interrupted"]]
    assert lost, "its result says so"
    assert all(line["body"]["is_error"] for line in lost)
    assert "has not begun" in sandbox.run("show", run, "--conversation", "prompt_to_spec").out, "there was a plan"
    assert sandbox.run("show", run, "--conversation", "t3").exit_code == 2


def _killed(
    sandbox: Sandbox, recorded: RecordingProxy, kills: list[tuple[str, int]], said: str
) -> tuple[str, Finished]:
    """A run that was killed and resumed for each of ``kills`` (place, and at the how manieth request or command)."""
    start = ["orchestrate", "--plan", str(sandbox.root / "plan.json"), "--workspace", str(sandbox.workspace)]
    arguments = [*start, "--base-url", recorded.url, "--model", "appending", "--max-concurrent", str(TASKS), "--json"]
    run = ""
    for place, nth in kills:
        running = sandbox.start(*arguments)
        recorded.arm(running.process.pid, place, nth)
        run = run or running.event("run_submitted")["run"]
        assert running.ends_within(60), said
        assert running.process.returncode == -9, f"{said}: it ended before {place}: {running.errors}"
        until(lambda: not sandbox.orphans(), f"{said}: every child is gone", 20)
        arguments = ["resume", run, "--json"]
    running = sandbox.start(*arguments)
    recorded.arm(running.process.pid, None)
    done = running.finished()
    assert done.exit_code == 0, f"{said}: {done.err}"
    return run, done


async def _steps(store: Path, run: str) -> list[Line]:
    journals = [await read_journals(store, run, f"t{number}") for number in range(1, TASKS + 1)]
    return [step for task in journals for journal in task for step in _list(journal["steps"])]


def _list(value: Any) -> list[Line]:
    assert isinstance(value, list)
    return value


def _each_request_was_sent_once_or_is_unknown(requests: list[Line], turns: list[Line], said: str) -> None:
    refused = {line["sha256"] for line in requests if line["forwarded"] and line["status"] == 400}
    sent = Counter(line["sha256"] for line in requests if line["forwarded"] and line["sha256"] not in refused)
    failed = {turn["input_sha256"] for turn in turns if turn["state"] == "failed"}
    turns = [turn for turn in turns if turn["input_sha256"] not in refused]
    assert failed <= refused, f"{said}: a turn failed that the model did not refuse for its length"
    finished = Counter(turn["input_sha256"] for turn in turns if turn["state"] == "finished")
    unknown = Counter(turn["input_sha256"] for turn in turns if turn["state"] == "unknown")
    assert len(turns) == finished.total() + unknown.total(), f"{said}: {[turn['state'] for turn in turns]}"
    assert max(finished.values()) == 1, f"{said}: an answer was paid for twice"
    assert sent.keys() >= finished.keys(), said
    assert sent.keys() <= finished.keys() | unknown.keys(), f"{said}: a request that the store does not know"
    for sha256, times in sent.items():
        assert finished[sha256] <= times <= finished[sha256] + unknown[sha256], (
            f"{said}: {sha256} was sent {times} times"
        )
    # Each kill leaves what was under way unknown, and nothing else is.
    assert unknown.total() <= KILLS_OF_A_RUN * TASKS, said


def _usage_is_what_the_proxy_saw(requests: list[Line], turns: list[Line], total: Line, said: str) -> None:
    requests = [line for line in requests if line["forwarded"] and line["status"] == 200]
    seen = {line["sha256"]: _ours(line["usage"]) for line in requests}
    known: Counter[str] = Counter()
    for turn in turns:
        if turn["state"] == "finished":
            usage = turn["output"]["usage"]
            counted = {name: usage[name] for name in seen[turn["input_sha256"]]}
            assert counted == seen[turn["input_sha256"]], said
            assert not turn["spent_unknown"], said
            known.update(counted)
    assert {name: total[name] for name in known} == known, said
    assert total["turns"] == sum(turn["state"] == "finished" for turn in turns), said

    # What nobody could record is marked and charged whole, and that covers what the proxy saw.
    unknown = [turn for turn in turns if turn["state"] == "unknown"]
    assert all(turn["spent_unknown"] for turn in unknown), said
    assert total["unknown_turns"] == len(unknown), said
    spent = sum(sum(_ours(line["usage"]).values()) for line in requests)
    charged = sum(turn["reserved"]["tokens"] for turn in unknown)
    assert known.total() <= spent <= known.total() + charged, said


def _ours(usage: Line) -> dict[str, int]:
    names = {"input_tokens": "input_tokens", "output_tokens": "output_tokens"}
    names |= {"cache_read_input_tokens": "cache_read_tokens", "cache_creation_input_tokens": "cache_write_tokens"}
    return {ours: usage[theirs] for theirs, ours in names.items()}


def _no_command_ran_twice(lines: Path, steps: list[Line], said: str) -> None:
    appended = Counter(lines.read_text().split())
    asked = {
        block["id"]
        for step in steps
        if step["kind"] == "turn" and step["state"] == "finished"
        for block in step["output"]["content"]
        if block.get("name") == "run_command"
    }
    assert max(appended.values()) == 1, f"{said}: a command ran twice for one call: {appended}"
    assert appended.keys() <= asked, said
    commands = [step for step in steps if step["name"] == "tool:run_command"]
    begun = {step["input_sha256"] for step in commands if step["state"] == "unknown"}
    ran = [step for step in commands if step["state"] == "finished" and step["input_sha256"] not in begun]
    # A command that was not interrupted did its work; one that was interrupted may have done it, and was not run again.
    assert len(ran) <= appended.total() <= len(ran) + len(begun), said
    assert len(ran) + len(begun) == len(asked), said
