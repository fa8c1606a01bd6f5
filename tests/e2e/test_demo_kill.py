"""``mnemosyne demo --kill N`` kills and resumes its own run, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from command import SECONDS, Finished, Sandbox, until
from mnemosyne.cli.kill import STEPS

KILLS = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """The same demo without a kill, and its workspace."""
    sandbox = Sandbox(tmp_path_factory.mktemp("undisturbed"))
    done = sandbox.demo()
    assert done.exit_code == 0, done.err
    sandbox.close()
    return done, sandbox.workspace


def test_once_1_a_demo_that_is_killed_again_and_again_ends_with_the_same_files_and_evidence(
    sandbox: Sandbox, undisturbed: tuple[Finished, Path]
) -> None:
    done = sandbox.demo("--kill", str(KILLS))
    assert done.exit_code == 0, done.err
    kills = [line for line in done.lines if line["type"] == "kill"]
    assert [kill["number"] for kill in kills] == [1, 2, 3]
    for number, kill in enumerate(kills, start=1):
        assert abs(kill["steps"] - number * STEPS / (KILLS + 1)) < 10, "the kills are spread over the run"
    sequences = [event["sequence"] for event in done.events]
    assert sequences == sorted(set(sequences))
    assert [event["kind"] for event in done.events].count("run_resumed") == KILLS
    summary, plain = done.summary, undisturbed[0].summary
    assert (summary["state"], summary["resumes"], summary["error"]) == ("done", KILLS, None)
    assert summary["kill"]["kills"] == KILLS
    assert summary["kill"]["paid_twice"] == 0
    assert summary["kill"]["answers"] >= plain["usage"]["turns"]
    assert _files(sandbox.workspace) == _files(undisturbed[1])
    assert _evidence(done) == _evidence(undisturbed[0])
    assert not sandbox.orphans()


def test_the_steps_of_the_demo_are_as_many_as_the_kills_are_spread_over(undisturbed: tuple[Finished, Path]) -> None:
    finished = sum(event["kind"] == "step_finished" for event in undisturbed[0].events)
    assert abs(finished - STEPS) <= STEPS / 10, f"STEPS is {STEPS}, but there are {finished}"


def test_people_are_told_what_was_killed_and_that_nothing_was_paid_twice(sandbox: Sandbox) -> None:
    done = sandbox.run("demo", "--kill", "1", "--workspace", str(sandbox.workspace))
    assert done.exit_code == 0, done.err
    assert done.err == ""
    said = done.out.splitlines()
    (kill,) = [number for number, line in enumerate(said) if line.startswith("--- kill -9 of process ")]
    told = re.fullmatch(r"--- kill -9 of process \d+ and all it started, 1 of 1, after (\d+) steps", said[kill])
    assert told is not None, said[kill]
    assert STEPS / 2 <= int(told[1]) < STEPS / 2 + 10, "what finished before the kill was noticed is counted as well"
    assert said[kill + 1].startswith("--- mnemosyne resume r-")
    assert "killed    once with kill -9, resumed once" in said
    assert said[-1].endswith("was paid for twice")


def test_kill_2_ctrl_c_ends_all_of_it_and_the_run_can_be_resumed(sandbox: Sandbox) -> None:
    running = sandbox.start_demo("--kill", "2")
    running.event("run_resumed")
    running.send(signal.SIGINT)
    stopped = running.finished()
    assert (stopped.exit_code, stopped.summary["state"]) == (130, "interrupted"), stopped.err
    until(lambda: not sandbox.orphans(), "everything is gone", 20)
    done = sandbox.run("resume", "--json")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err


def test_kill_2_the_second_ctrl_c_stops_at_once(sandbox: Sandbox) -> None:
    running = sandbox.start_demo("--kill", "2")
    running.event("phase_completed")
    for _ in range(2):
        running.send(signal.SIGTERM)
        until(lambda: "stopping" in running.errors or running.process.poll() is not None, "it answers the signal")
    stopped = running.finished()
    assert (stopped.exit_code, stopped.summary["exit_code"]) == (143, 143), stopped.err
    until(lambda: not sandbox.orphans(), "everything is gone", 20)


def test_kill_2_nothing_outlives_the_process_that_kills(sandbox: Sandbox) -> None:
    running = sandbox.start_demo("--kill", "2")
    running.event("work_started", role="executor")
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(SECONDS)
    until(lambda: not sandbox.orphans(), "everything is gone", 20)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def _evidence(done: Finished) -> object:
    """What proves each task, without the seconds it took."""
    found = [
        (task["id"], task["state"], sorted(task["files"]), {**proof, "seconds": 0})
        for task in done.summary["tasks"]
        for proof in task["evidence"]
    ]
    return sorted(found, key=json.dumps)
