"""claude-agent-sdk, with the Claude Code inside it, does a job with tools against our demo server.

It is the most demanding client there is for the wire: it reads the stream, runs the tools and sends everything back by
code that is not ours, and the server checks that thoughts came back unchanged and that every call was answered once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mnemosyne.agents import prompts
from mnemosyne.demo.sample import copy_sample
from peers import AGENT_SDK, running

FLAG = "MNEMOSYNE_AGENT_SDK"
if os.environ.get(FLAG) != "1":
    pytest.skip(f"{FLAG}=1 make voices installs claude-agent-sdk (365 MB) and runs this", allow_module_level=True)

JOB = Path(__file__).with_name("agent_sdk_job.py")
SECONDS = 300.0
PROMPT = prompts.execute(
    {"acceptance": [{"command": "python3 -m unittest tests.test_pricing"}], "pack": "", "requirements": []},
    task="t1",
    title="Finish shop.pricing",
    description="Finish the unfinished functions of shop/pricing.py.",
    scope=["shop/pricing.py"],
    attempt=1,
)


class Served:
    """Our demo server and the log of what it was asked."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@contextlib.contextmanager
def demo_server(folder: Path, *faults: dict[str, Any]) -> Iterator[Served]:
    log, script = folder / "requests.ndjson", folder / "faults.json"
    arguments: list[object] = [sys.executable, "-P", "-m", "mnemosyne.demo.server", "--log", log]
    if faults:
        script.write_text(json.dumps({"faults": faults}))
        arguments += ["--faults", script]
    with running(arguments, log=folder / "server.log") as url:
        yield Served(url, log)


def do_the_job(served: Served, folder: Path) -> dict[str, Any]:
    """Let the SDK finish one module of the sample; returns what it says of it."""
    project, home = folder / "project", folder / "home"
    home.mkdir()
    copy_sample(project)
    assert run_the_tests(project) != 0
    done = subprocess.run(
        [AGENT_SDK, JOB, served.url, project],
        input=PROMPT,
        env={**os.environ, "HOME": str(home), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert run_the_tests(project) == 0
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_the_tests(project: Path) -> int:
    command = [sys.executable, "-m", "unittest", "tests.test_pricing"]
    return subprocess.run(command, cwd=project, capture_output=True, check=False, timeout=SECONDS).returncode


def test_a_job_with_tools_is_completed(tmp_path: Path) -> None:
    with demo_server(tmp_path) as served:
        result = do_the_job(served, tmp_path)
        lines = served.lines()
    assert result["is_error"] is False
    assert result["text"].startswith("I finished shop/pricing.py")
    assert {(line["status"], line["completed"]) for line in lines} == {(200, True)}
    bodies = [line["body_sha256"] for line in lines]
    assert len(bodies) >= 4
    assert len(bodies) == len(set(bodies)), "nothing failed, so nothing is asked twice"


def test_a_job_with_tools_is_completed_through_our_faults(tmp_path: Path) -> None:
    faults = [
        {"fault": "status", "status": 529, "nth": 2},
        {"fault": "stream_error", "nth": 4},
        {"fault": "cut", "after_bytes": 200, "nth": 6},
    ]
    with demo_server(tmp_path, *faults) as served:
        result = do_the_job(served, tmp_path)
        met = [line["fault"] for line in served.lines() if line["fault"]]
    assert result["is_error"] is False
    assert met == ["status", "stream_error", "cut"]
