"""``kill -9`` at any moment, then ``resume``: it finishes, nothing is paid for twice, nobody is left behind.

``MNEMOSYNE_KILLS`` says how many moments (default 6), ``MNEMOSYNE_SEED`` which ones; a failure prints its seed.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import DemoServer, Running, Sandbox, until

KILLS = int(os.environ.get("MNEMOSYNE_KILLS", "6"))
SEED = os.environ.get("MNEMOSYNE_SEED") or f"{time.time_ns():x}"


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A server whose log holds the requests of one test only."""
    server = DemoServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def usual_seconds(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> float:
    """How long a run takes here from its first event to its end."""
    sandbox = Sandbox(tmp_path_factory.mktemp("usual"))
    running = sandbox.start_demo("--base-url", server.url)
    running.event("run_submitted")
    began = time.monotonic()
    done = running.finished()
    assert done.exit_code == 0, done.err
    sandbox.close()
    return time.monotonic() - began


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_is_finished_by_resume(
    sandbox: Sandbox, own_server: DemoServer, usual_seconds: float, number: int
) -> None:
    moment = random.Random(f"{SEED}-{number}").uniform(0, usual_seconds)
    said = f"MNEMOSYNE_SEED={SEED}, kill {number} at {moment:.3f} s"
    running = sandbox.start_demo("--base-url", own_server.url)
    run = running.event("run_submitted")["run"]
    running.ends_within(moment)
    _kill(running, sandbox)

    state = sandbox.run("show", run, "--json").summary["state"]
    assert state in ("interrupted", "done"), said
    if state == "interrupted":
        done = sandbox.run("resume", "--json")
        assert done.exit_code == 0, f"{said}: {done.err}"
        assert done.events[0]["kind"] == "run_resumed", said
        assert done.summary["resumes"] == 1, said
    tests = sandbox.sample_tests()
    assert tests.returncode == 0, f"{said}: {tests.stderr}"
    _nothing_was_asked_twice(sandbox.run_events(run), own_server.seen(), said)
    assert not sandbox.orphans(), said


def test_a_run_killed_again_and_again_is_still_finished(
    sandbox: Sandbox, own_server: DemoServer, usual_seconds: float
) -> None:
    chance = random.Random(SEED)
    running = sandbox.start_demo("--base-url", own_server.url)
    run = running.event("run_submitted")["run"]
    for _ in range(3):
        running.ends_within(chance.uniform(0.2, 0.5) * usual_seconds)
        _kill(running, sandbox)
        if sandbox.run("show", run, "--json").summary["state"] == "done":  # killed on its way out
            break
        running = sandbox.start("resume", run, "--json")
        running.event("run_resumed")
    else:
        done = running.finished()
        assert done.exit_code == 0, f"MNEMOSYNE_SEED={SEED}: {done.err}"
    _nothing_was_asked_twice(sandbox.run_events(run), own_server.seen(), f"MNEMOSYNE_SEED={SEED}")
    assert sandbox.sample_tests().returncode == 0


def test_kill_2_a_daemon_that_a_command_left_does_not_outlive_a_killed_run(sandbox: Sandbox) -> None:
    (sandbox.root / "hold.py").write_text(HOLDING.format(pid_file=sandbox.root / "daemon.pid"))
    running = sandbox.start_demo("--agent", "executor=hold:Holding")
    until((sandbox.root / "daemon.pid").exists, "the daemon runs")
    _kill(running, sandbox)
    pid = int((sandbox.root / "daemon.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


HOLDING = '''
import asyncio
from mnemosyne import AgentExecutionMixin
from mnemosyne.guard import shared

# A session of its own, and no parent: only the guard, as its subreaper, can find it.
DAEMON = """
setsid sh -c 'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600' >/dev/null 2>&1 </dev/null &
sleep 600
"""

class Holding(AgentExecutionMixin):
    async def execute_work(self, work):
        await shared().run(["/bin/sh", "-c", DAEMON], cwd=self.context.tree, timeout=600)
        return {{"success": False}}
'''


def _kill(running: Running, sandbox: Sandbox) -> None:
    """``kill -9`` the process itself, not its group: what it started has to go by itself."""
    running.process.kill()
    running.process.wait()
    until(lambda: not sandbox.orphans(), f"every child is gone: {sandbox.orphans()}", 20)


def _nothing_was_asked_twice(events: list[dict[str, Any]], seen: Counter[str], said: str) -> None:
    """Each request was seen once at the server, except those of steps that were started and not finished."""
    finished = {_step(event) for event in events if event["kind"] == "step_finished"}
    paid: Counter[str] = Counter()
    open_steps: Counter[str] = Counter()
    for event in events:
        sha256 = event["data"].get("request_sha256")
        if event["kind"] == "step_started" and sha256:
            (paid if _step(event) in finished else open_steps)[sha256] += 1
    assert paid, said
    assert max(paid.values()) == 1, f"{said}: a finished step was asked again"
    for sha256, times in seen.items():
        assert paid[sha256] <= times <= paid[sha256] + open_steps[sha256], f"{said}: {sha256} was seen {times} times"
    assert set(paid) <= set(seen), said


def _step(event: dict[str, Any]) -> tuple[object, ...]:
    return event["item"], event.get("attempt"), event["data"]["number"]
