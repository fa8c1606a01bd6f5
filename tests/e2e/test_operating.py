"""A run that lives, seen and told what to do from another process: its agents, a drain, a process that was stopped."""

from __future__ import annotations

import os
import signal
import time

import pytest
from command import Running, Sandbox, until
from patient import go_on, run_of

LEASE = 30.0


def agents(sandbox: Sandbox) -> dict[str, dict[str, object]]:
    return {line["agent_id"]: line for line in sandbox.run("agents", "--json").lines if line["type"] == "agent"}


def told(sandbox: Sandbox, verb: str, agent: str) -> dict[str, object]:
    done = sandbox.run("agents", verb, agent, "--json")
    assert done.exit_code == 0, done.err
    return next(line for line in done.lines if line["type"] == "agent")


def test_a_drain_from_another_process_is_what_sigterm_does(sandbox: Sandbox, held: Running) -> None:
    run = run_of(held)
    drain = sandbox.start("drain", run, "--json")
    time_given = 1.0
    assert not drain.ends_within(time_given), "it waits for the work under way"
    go_on(sandbox)
    done = held.finished(30)
    assert (done.summary["state"], done.summary["resume"]) == (
        "interrupted",
        f"mnemosyne resume {run} --store {sandbox.store}",
    )
    assert [line["state"] for line in drain.finished(20).lines if line["type"] == "drain"] == ["interrupted"]
    assert not sandbox.orphans()
    finished = {event["item"] for event in done.events if event["kind"] == "work_completed"}
    assert any(event.get("item") in finished and event["role"] == "executor" for event in done.events)
    again = sandbox.run("drain", run)
    assert (again.exit_code, "error[MN-0363]" in again.err) == (2, True)
    resumed = sandbox.run("resume", run, "--json")
    assert (resumed.exit_code, resumed.summary["state"]) == (0, "done"), resumed.err
    assert not {event["item"] for event in resumed.events if event["kind"] == "work_started"} & finished


def test_agents_are_listed_restarted_stopped_scaled_and_added_from_another_process(
    sandbox: Sandbox, held: Running
) -> None:
    seen = agents(sandbox)
    busy = [name for name, agent in seen.items() if agent["state"] == "busy"]
    assert busy, seen
    assert all(name.startswith("executor-") for name in busy), seen
    assert seen["reviewer-1"]["state"] == "idle"
    assert seen[busy[0]]["item"]
    restarted = told(sandbox, "restart", "reviewer-1")
    assert (restarted["agent_id"], restarted["generation"]) == ("reviewer-1", 2)
    stopped = told(sandbox, "stop", "reviewer-2")
    assert stopped["state"] == "stopped"
    again = told(sandbox, "restart", "reviewer-2")
    assert (again["state"] != "stopped", again["generation"]) == (True, 2)
    scaled = sandbox.run("agents", "scale", "optimizer", "3")
    assert (scaled.exit_code, scaled.out.strip()) == (0, "optimizer has 3 agents")
    added = [sandbox.run("agents", "add", "executor", *more) for more in ((), ("--class", "patient:Patient"))]
    assert [(one.exit_code, one.out.strip()) for one in added] == [
        (0, "executor-3 is idle"),
        (0, "executor-4 is idle"),
    ], [one.err for one in added]
    wrong = sandbox.run("agents", "add", "executor", "--class", "patient")
    assert (wrong.exit_code, "error[MN-0109]" in wrong.err) == (2, True)
    unknown = sandbox.run("agents", "restart", "nobody-1")
    assert (unknown.exit_code, "error[MN-0362]" in unknown.err) == (2, True)
    go_on(sandbox)
    done = held.finished()
    assert done.exit_code == 0, done.err
    reasons = [event["data"]["reason"] for event in done.events if event["kind"] == "agent_restarted"]
    assert reasons == ["requested", "requested"]
    gone = sandbox.run("agents")
    assert (gone.exit_code, "error[MN-0363]" in gone.err) == (2, True)


@pytest.mark.skipif("MNEMOSYNE_LEASES" not in os.environ, reason="waits for a lease to run out: MNEMOSYNE_LEASES=1")
def test_truth_2_a_process_that_was_stopped_is_not_shown_as_running_for_longer_than_a_lease(
    sandbox: Sandbox, held: Running
) -> None:
    run = run_of(held)
    assert sandbox.run("show", run, "--json").summary["state"] == "running"
    held.send(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        until(lambda: sandbox.run("show", run, "--json").summary["state"] != "running", "it is not running", LEASE + 5)
        assert time.monotonic() - stopped < LEASE + 3
        shown = sandbox.run("show", run, "--json").summary
        assert (shown["state"], shown["error"]["code"]) == ("interrupted", "MN-0365")
        assert str(held.process.pid) in shown["error"]["hint"]
        assert [line["state"] for line in sandbox.run("runs", "--json").lines if line["type"] == "run"] == [
            "interrupted"
        ]
        drained = sandbox.run("drain", run)
        assert (drained.exit_code, "error[MN-0364]" in drained.err) == (3, True)
        assert "suspect" in {agent["state"] for agent in agents(sandbox).values()}
    finally:
        held.send(signal.SIGCONT)
    until(lambda: sandbox.run("show", run, "--json").summary["state"] == "running", "it goes on", 15)
    go_on(sandbox)
    assert held.finished().summary["state"] == "interrupted", "it finds the drain that was asked for meanwhile"
