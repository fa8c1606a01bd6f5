"""A server that is overloaded, or names a time: the run waits, says until when, and goes on by itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from command import DemoServer, Running, Sandbox, until

Faulty = Callable[..., DemoServer]


@pytest.fixture
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """Makes demo servers that meet requests with these faults."""
    servers: list[DemoServer] = []

    def make(*faults: dict[str, Any]) -> DemoServer:
        folder: Path = tmp_path_factory.mktemp("faulty")
        script = folder / "faults.json"
        script.write_text(json.dumps({"faults": faults}))
        servers.append(DemoServer(folder, "--faults", str(script)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_run_that_is_told_to_wait_says_until_when_survives_kill_9_and_goes_on_by_itself(
    sandbox: Sandbox, faulty: Faulty
) -> None:
    # One second more than an agent would wait itself.
    limit = {"fault": "status", "status": 429, "retry_after": 31, "phase": "prompt_to_spec", "nth": 1}
    server = faulty(limit)
    running = sandbox.start_demo("--base-url", server.url)
    parked = running.event("work_parked")
    run, when = parked["run"], parked["data"]["until"]
    left = (datetime.fromisoformat(when) - datetime.now(UTC)).total_seconds()
    assert 20 < left <= 31
    assert (parked["data"]["class"], parked["data"]["run_waits"]) == ("wait_until", True)

    shown = sandbox.run("show", run, "--json").summary
    assert shown["state"] == "waiting"
    assert [(item["until"], item["class"]) for item in shown["parked"]] == [(when, "wait_until")]
    assert when[11:19] in sandbox.run("show", run).out
    assert "waiting (pid" in sandbox.run("runs").out

    running.send(signal.SIGKILL)
    running.ends_within(10)
    assert sandbox.run("show", run, "--json").summary["state"] == "interrupted"
    resumed = sandbox.start("resume", run)
    done = resumed.finished()
    assert done.exit_code == 0, done.err
    events = sandbox.run_events(run)
    again = next(event for event in events if event["kind"] == "work_started" and event["epoch"] == 2)
    assert again["item"] == parked["item"]
    assert again["at"] >= when
    assert not [event for event in events if event["kind"] in ("work_failed", "agent_failed")]
    spec = {
        event["data"]["request_sha256"]
        for event in events
        if event["kind"] == "step_started" and event["item"] == again["item"] and event["data"]["kind"] == "turn"
    }
    assert {hash: server.seen()[hash] for hash in spec} == dict.fromkeys(spec, 2), (
        "asked once more, with the same request"
    )


def test_an_overload_is_waited_for_with_one_probe_at_a_time_and_nothing_fails(sandbox: Sandbox, faulty: Faulty) -> None:
    server = faulty({"fault": "status", "status": 529, "role": "executor", "to": 5})
    done = sandbox.demo("--base-url", server.url)
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    failed = [event["data"] for event in done.events if event["data"].get("class") == "overloaded"]
    assert [data["state"] for data in failed] == ["failed"] * 5
    assert all(data["try"] >= 1 and data["wait_seconds"] <= 30 for data in failed)
    kinds = [event["kind"] for event in done.events]
    opened, closed = kinds.index("breaker_opened"), kinds.index("breaker_closed")
    assert opened < closed
    assert done.events[opened]["data"]["endpoint"] == server.url
    assert not {"work_failed", "work_parked", "agent_failed"} & set(kinds)


def test_ctrl_c_ends_a_run_that_waits_at_once_and_leaves_it_to_be_resumed(sandbox: Sandbox, faulty: Faulty) -> None:
    server = faulty({"fault": "status", "status": 429, "retry_after": 3600, "phase": "prompt_to_spec"})
    running = sandbox.start("demo", "--workspace", str(sandbox.workspace), "--base-url", server.url)
    run = _until_it_waits(running, sandbox)
    assert any("the run waits until" in line for line in running.text_lines())
    running.send(signal.SIGINT)
    done = running.finished(20)
    assert done.exit_code == 130
    summary = sandbox.run("show", run, "--json").summary
    assert (summary["state"], len(summary["parked"])) == ("interrupted", 1)
    assert sum(server.seen().values()) == 1, "nobody asked again"


def _until_it_waits(running: Running, sandbox: Sandbox) -> str:
    until(lambda: any("waits until" in line for line in running.text_lines()), "it says that it waits")
    return str(sandbox.run("runs", "--json").lines[0]["run"])
