"""One item that fails, followed by its id through one log: Rust's lines and Python's, in the order of their times."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from command import DemoServer, Sandbox

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


def test_without_being_asked_for_a_log_the_command_writes_none(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "shaky.py").write_text(SHAKY)
    done = sandbox.demo("--base-url", server.url, "--agent", "executor=shaky:Shaky")
    assert (done.exit_code, done.err) == (0, "")
