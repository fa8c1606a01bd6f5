"""Agents from outside in a role's place: they may fail, they may be missing, and the tree lives on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from command import DemoServer, Sandbox

MOODY = '''
from pathlib import Path
from mnemosyne import AgentExecutionMixin, create_agent

COUNT = Path(__file__).with_name("raised")


class Moody(AgentExecutionMixin):
    """Raises five times, whoever it is by then, and does its work from then on."""

    async def execute_work(self, work):
        raised = len(COUNT.read_text()) if COUNT.exists() else 0
        if raised < 5:
            COUNT.write_text("x" * (raised + 1))
            raise RuntimeError(f"bad mood number {raised + 1}")
        return await create_agent("executor", self.config).execute_work(work)
'''

PLAIN = """
from mnemosyne import AgentExecutionMixin, create_agent


class Plain(AgentExecutionMixin):
    def __init__(self):
        self.inner = create_agent("executor")  # talks to the server that this agent is configured with

    async def execute_work(self, work):
        return await self.inner.execute_work(work)
"""


LIAR = """
class Liar:
    async def execute_work(self, work):
        return {"success": True, "data": {"summary": "all done"}}
"""


def test_sup_2_five_errors_restart_the_agent_and_no_work_is_lost(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "moody.py").write_text(MOODY)
    flags = ["--base-url", server.url, "--max-concurrent", "1", "--agent", "executor=moody:Moody"]
    done = sandbox.demo(*flags)
    assert done.exit_code == 0, done.err
    mine = [event for event in done.events if event["data"].get("agent_id", event.get("agent")) == "executor-1"]
    counts = [event["data"]["count"] for event in mine if event["kind"] == "agent_error_recorded"]
    assert counts == [1, 2, 3, 4, 5]
    assert any(event["kind"] == "agent_health_degraded" for event in mine)
    restarted = [event for event in mine if event["kind"] == "agent_restarted"]
    assert [event["data"]["generation"] for event in restarted] == [2]
    assert done.summary["restarts"] == 1
    completed = Counter(event["item"] for event in done.events if event["kind"] == "work_completed")
    assert set(completed.values()) == {1}
    assert (sandbox.root / "raised").read_text() == "x" * 5
    assert sandbox.sample_tests().returncode == 0


def test_sup_3_a_module_that_cannot_be_imported_degrades_its_role_until_the_file_is_fixed(
    sandbox: Sandbox, server: DemoServer
) -> None:
    module = sandbox.root / "late.py"
    module.write_text("import nothing_of_this_name\n")
    running = sandbox.start_demo("--base-url", server.url, "--agent", "executor=late:Plain")
    degraded = running.event("role_degraded")
    assert degraded["data"]["role"] == "executor"
    assert "nothing_of_this_name" in degraded["data"]["reason"]
    running.event("phase_completed", phase="full_spec_to_plan")  # the other roles go on
    _replace(module, PLAIN)
    running.event("role_recovered")
    done = running.finished()
    assert done.exit_code == 0, done.err
    assert sandbox.sample_tests().returncode == 0


def test_truth_1_an_agent_that_only_says_it_did_the_work_is_not_believed(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "liar.py").write_text(LIAR)
    done = sandbox.demo("--base-url", server.url, "--agent", "executor=liar:Liar")
    assert (done.exit_code, done.summary["state"]) == (1, "failed")
    states = {task["state"] for task in done.summary["tasks"]}
    assert "accepted" not in states
    assert {"failed", "skipped"} >= states
    assert max(task["attempts"] for task in done.summary["tasks"]) == 3
    shown = sandbox.run("show", done.summary["run"]).out
    for attempt in (1, 2, 3):
        assert f"attempt {attempt} " in shown  # and why it came to nothing


def _replace(module: Path, text: str) -> None:
    new = module.with_suffix(".new")
    new.write_text(text)
    new.replace(module)
