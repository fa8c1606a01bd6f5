"""One item that fails, followed by its id through one log: Rust's lines and Python's, in the order of their times."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

from command import DemoServer, Sandbox
from messages_server import MessagesServer, failing, saying, using

KEY = "canary-5e4d3c2b1a0f99887766"
SHAKY = '''
from pathlib import Path
from mnemosyne import AgentExecutionMixin, create_agent

SEEN = Path(__file__).with_name("seen")


class Shaky(AgentExecutionMixin):
    """Raises once, with a key in its words, and does its work from then on."""

    async def execute_work(self, work):
        if not SEEN.exists():
            SEEN.touch()
            raise RuntimeError("the executor lost its way, key " + self.config["api_key"])
        return await create_agent("executor", self.config).execute_work(work)
'''

PROGRAM = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from mnemosyne import AgentRole, AgentSpec, Orchestra, WorkItem
from mnemosyne.logging_config import configure_logging
from shaky import Shaky


async def main():
    configure_logging()
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Shaky, instances=1)}
    key = SecretStr(sys.stdin.read())
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, base_url=sys.argv[2], api_key=key) as orchestra:
        about = {"id": "unlucky-1", "description": "look", "phase": "plan_to_artifacts", "role": "executor"}
        work = await orchestra.submit_work(WorkItem(**about, context={"tree": str(Path("tree").absolute())}))
        print((await work.result()).success)


asyncio.run(main())
"""


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_a_failing_item_is_traced_from_its_claim_to_its_verdict_by_its_id(sandbox: Sandbox) -> None:
    (sandbox.root / "shaky.py").write_text(SHAKY)
    (sandbox.root / "key").write_text(KEY)
    (sandbox.root / "key").chmod(0o600)
    faults = [{"fault": "status", "status": 529, "role": "executor", "nth": 1}]
    (sandbox.root / "faults.json").write_text(json.dumps({"faults": faults}))
    log = sandbox.root / "mnemosyne.log"
    flags = ["--faults", str(sandbox.root / "faults.json"), "--agent", "executor=shaky:Shaky", "--max-concurrent", "1"]
    flags += ["--api-key-file", str(sandbox.root / "key"), "--json", "--workspace", str(sandbox.workspace)]
    done = sandbox.run("demo", *flags, MNEMOSYNE_LOG_FILE=str(log), MNEMOSYNE_LOG_FORMAT="json")
    assert done.exit_code == 0, done.err
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    lines = lines_of(log)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    failed = next(event for event in done.events if event["kind"] == "agent_error_recorded")
    item = next(event["item"] for event in done.events if event["kind"] == "agent_failed")
    assert failed
    mine = [line for line in lines if line.get("item") == item]
    runs = {line.get("run") for line in mine if not line["message"].startswith("agent_")}
    assert runs == {done.summary["run"]}, "events of agents belong to no run"
    assert {line["logger"] for line in mine} >= {"mnemosyne.events", "mnemosyne.agents"}, "Rust's and Python's"
    said = [f"{line['logger']} {line['message'].split(' ')[0]}" for line in mine]
    expected = [
        "mnemosyne.events work_started",
        "mnemosyne.agents execute",  # begins
        "mnemosyne.agents execute",  # failed, with the box
        "mnemosyne.events agent_failed",
        "mnemosyne.events work_started",  # the same item, the next claim
        "mnemosyne.agents execute",
        "mnemosyne.events work_completed",
    ]
    rest = iter(said)
    assert all(step in rest for step in expected), said
    [box] = [line for line in mine if "Troubleshooting:" in line["message"]]
    assert (box["level"], box["role"], box["epoch"], box["agent"]) == ("ERROR", "executor", 1, "executor-1")
    assert box["message"].startswith("execute failed\n┌─ error[MN-0301]: RuntimeError ")
    assert "RuntimeError: the executor lost its way" in box["exception"]
    assert "mnemosyne retry" in box["message"]
    assert [line["epoch"] for line in mine if line["message"].startswith("work_started")] == [1, 2]
    turns = [line for line in lines if line["message"].startswith("turn (step")]
    assert any("failed" in line["message"] and line["level"] == "WARNING" for line in turns), "the overload"
    assert any("tokens in" in line["message"] for line in turns)


def test_an_item_that_meets_all_that_can_go_wrong_is_one_grep_in_the_order_of_time(sandbox: Sandbox) -> None:
    """An exception, a wall of 529, a tool outside the workspace; submit, claim, each turn, box, retry and verdict."""
    (sandbox.root / "shaky.py").write_text(SHAKY)
    (sandbox.root / "example.py").write_text(PROGRAM)
    (sandbox.root / "tree").mkdir()
    outside = using(("toolu_1", "read_file", {"path": "../../etc/passwd"}))
    wall = [failing(529, "overloaded_error", "try later")] * 3
    with MessagesServer(*wall, outside, saying("I was not allowed to.")) as server:
        words = [sys.executable, "example.py", str(sandbox.store), server.url]
        log = sandbox.root / "mnemosyne.log"
        done = sandbox.run_words(words, given=KEY, MNEMOSYNE_LOG_FILE=str(log), MNEMOSYNE_LOG_LEVEL="info")
    assert done.exit_code == 0, done.err
    lines = [line for line in log.read_text().splitlines() if "item=unlucky-1 " in line]  # grep unlucky-1
    times = [line.split(" ")[0] for line in lines]
    assert times == sorted(times)
    wanted = [
        "mnemosyne.orchestra .*submitted",  # Python
        "mnemosyne.events .*epoch=1.*work_started",  # Rust
        "mnemosyne.agents .*work begins",
        "mnemosyne.agents .*work failed",
        "error\\[MN-0301\\]: RuntimeError",
        "Troubleshooting:",
        "RuntimeError: the executor lost its way",
        "mnemosyne.events .*agent_failed",
        "mnemosyne.events .*epoch=2.*work_started",  # the retry
        "mnemosyne.agents .*epoch=2.*turn .*failed: .*529",
        "turn .*failed: .*529",
        "turn .*failed: .*529",
        "turn .*done, .*tokens in",
        "tool tool:read_file .*refused.*outside the tree",
        "turn .*done, .*tokens in",
        "mnemosyne.agents .*work ended",
        "mnemosyne.events .*epoch=2.*work_completed",  # the verdict
    ]
    rest = iter(lines)
    missing = [step for step in wanted if not any(re.search(step, line) for line in rest)]
    assert missing == [], "\n".join(lines)


def test_without_being_asked_for_a_log_the_command_writes_none(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "shaky.py").write_text(SHAKY)
    done = sandbox.demo("--base-url", server.url, "--agent", "executor=shaky:Shaky")
    assert (done.exit_code, done.err) == (0, "")
