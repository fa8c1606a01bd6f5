"""A run and the world around it: other processes, signals, and a user who works in the same folder."""

from __future__ import annotations

import signal
import subprocess

import pytest
from command import SECONDS, DemoServer, Running, Sandbox, until
from patient import go_on, run_of


def test_a_second_live_run_in_the_same_workspace_is_refused(
    sandbox: Sandbox, server: DemoServer, held: Running
) -> None:
    second = sandbox.demo("--base-url", server.url)
    assert second.exit_code == 2
    assert second.summary["error"]["code"] == "MN-0113"
    assert second.summary["run"] is None
    go_on(sandbox)
    assert held.finished().exit_code == 0


def test_fence_3_a_living_run_is_not_resumed_and_its_process_is_named(sandbox: Sandbox, held: Running) -> None:
    run = run_of(held)
    for refused in (sandbox.run("resume", run), sandbox.run("resume", run, "--json")):
        assert refused.exit_code == 2
        assert "error[MN-0112]" in refused.err
        assert str(held.process.pid) in refused.err
    listed = sandbox.run("runs", "--json").lines
    assert [(line["run"], line["state"], line["pid"]) for line in listed] == [(run, "running", held.process.pid)]
    go_on(sandbox)
    assert held.finished().exit_code == 0


def test_a_run_is_cancelled_from_another_process(sandbox: Sandbox, held: Running) -> None:
    run = run_of(held)
    assert sandbox.run("cancel", run).exit_code == 0
    done = held.finished(20)
    assert (done.exit_code, done.summary["state"], done.summary["resume"]) == (1, "cancelled", None)
    assert done.events[-1]["kind"] == "run_cancelled"
    again = sandbox.run("resume", run)
    assert again.exit_code == 2
    assert "error[MN-0116]" in again.err
    assert not sandbox.orphans()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_work_end_and_resume_completes(
    sandbox: Sandbox, held: Running, number: signal.Signals, exit_code: int
) -> None:
    run = run_of(held)
    held.send(number)
    until(lambda: "stopping" in held.errors, "it says that it drains")
    go_on(sandbox)
    stopped = held.finished()
    assert (stopped.exit_code, stopped.summary["state"]) == (exit_code, "interrupted")
    assert stopped.summary["resume"] == f"mnemosyne resume {run} --store {sandbox.store}"
    assert not sandbox.orphans()
    finished = [event["item"] for event in stopped.events if event["kind"] == "work_completed"]
    assert any(event["item"] in finished and event["role"] == "executor" for event in stopped.events if "item" in event)
    done = sandbox.run("resume", run, "--json")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    assert not {event["item"] for event in done.events if event["kind"] == "work_started"} & set(finished)


def test_the_second_signal_stops_at_once_and_resume_completes(sandbox: Sandbox, held: Running) -> None:
    run = run_of(held)
    held.send(signal.SIGINT)
    until(lambda: "stopping" in held.errors, "it says that it drains")
    held.send(signal.SIGINT)
    stopped = held.finished(5)
    assert (stopped.exit_code, stopped.summary["state"], stopped.summary["run"]) == (130, "interrupted", run)
    assert stopped.summary["usage"]["turns"] >= 3  # what the phases before had cost is not forgotten
    until(lambda: not sandbox.orphans(), "every child is gone", 20)
    go_on(sandbox)
    assert sandbox.run("resume", "--json").exit_code == 0


def test_a_file_that_the_user_changed_is_never_overwritten(sandbox: Sandbox, held: Running) -> None:
    mine = "# I am still thinking about this\n"
    for name in ("pricing.py", "discounts.py"):
        (sandbox.workspace / "shop" / name).write_text(mine)
    go_on(sandbox)
    done = held.finished()
    assert (done.exit_code, done.summary["state"]) == (1, "failed")
    states = [task["state"] for task in done.summary["tasks"]]
    assert states.count("conflict") == 2, states
    assert set(states) <= {"conflict", "skipped"}
    for name in ("pricing.py", "discounts.py"):
        assert (sandbox.workspace / "shop" / name).read_text() == mine
    assert sandbox.run("runs").exit_code == 0


def test_events_can_be_followed_from_another_process_until_the_run_ends(sandbox: Sandbox, held: Running) -> None:
    run = run_of(held)
    follower = sandbox.start("events", run, "--follow", "--json")
    follower.event("work_started", role="executor")
    go_on(sandbox)
    assert held.finished().exit_code == 0
    followed = follower.finished(20)
    assert followed.events[-1]["kind"] == "run_completed"
    assert followed.lines[-1]["state"] == "done"


def test_a_viewer_that_goes_away_does_not_stop_the_run(sandbox: Sandbox, server: DemoServer) -> None:
    arguments = ["demo", "--json", "--workspace", str(sandbox.workspace), "--base-url", server.url]
    process = subprocess.Popen(
        sandbox.command(*arguments), cwd=sandbox.root, env=sandbox.environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) == 0
    assert [line["state"] for line in sandbox.run("runs", "--json").lines] == ["done"]
