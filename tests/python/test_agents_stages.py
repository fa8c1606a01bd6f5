"""The harness around an agent, with real git and real commands: no class that takes a role's place can skip a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from journal_in_memory import MemoryJournal, PowerCut
from mnemosyne.agents.agent_factory import create_agent
from mnemosyne.agents.base_agent import AgentExecutionMixin
from mnemosyne.agents.context import AgentContext, RunInfo
from mnemosyne.agents.stages import Services, run_item
from mnemosyne.errors import AgentError, InvalidInput
from mnemosyne.guard import Guard
from mnemosyne.metrics import get_metrics_collector
from mnemosyne.models import Acceptance, Phase, PlanTask, WorkItem
from mnemosyne.workspace import Workspace
from pydantic import JsonValue

Json = dict[str, JsonValue]
CHECK = "python3 check.py"


def task(identifier: str = "t1", scope: list[str] | None = None, command: str = CHECK) -> PlanTask:
    scope = ["value.txt"] if scope is None else scope
    acceptance = [Acceptance(command=command, timeout_seconds=30)]
    return PlanTask(id=identifier, title="Set the value", file_scope=scope, acceptance=acceptance)


class Writing(AgentExecutionMixin):
    """An executor that writes files, and nothing else."""

    def __init__(self, **files: str) -> None:
        self.files = files
        self.calls: list[Json] = []

    async def execute_work(self, work_dict: Json) -> Json:
        self.calls.append(work_dict)
        assert self.context.tree is not None
        for name, text in self.files.items():
            (self.context.tree / name.replace("__", ".")).write_text(text)
        return {"success": True, "data": {"summary": "wrote"}}


class Saying(AgentExecutionMixin):
    def __init__(self, result: Json) -> None:
        self.result = result
        self.calls: list[Json] = []

    async def execute_work(self, work_dict: Json) -> Json:
        self.calls.append(work_dict)
        return self.result


class Reading(AgentExecutionMixin):
    """An executor that only looks at a file of its tree."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[str] = []

    async def execute_work(self, work_dict: Json) -> Json:
        assert self.context.tree is not None
        self.seen.append((self.context.tree / self.name).read_text())
        return {"success": True}


class Stage:
    """One run: items of it, one after the other, each with a journal of its own."""

    def __init__(self, root: Path, guard: Guard) -> None:
        self.workspace = root / "workspace"
        self.workspace.mkdir()
        (self.workspace / "value.txt").write_text("0\n")
        (self.workspace / "other.txt").write_text("other\n")
        (self.workspace / "check.py").write_text("v = open('value.txt').read()\nassert v == '1\\n', v\n")
        self.info = RunInfo("r1", self.workspace, root / "state", None, {})
        self.services = Services(lambda: guard, self._workspace)

    def _workspace(self, context: AgentContext) -> Workspace:
        return Workspace(
            workspace=self.workspace, directory=self.info.directory, guard=self.services.guard(), tag=context.item.id
        )

    async def run(
        self,
        kind: str,
        agent: AgentExecutionMixin | None,
        context: Json | None = None,
        *,
        about: PlanTask | None = None,
        journal: MemoryJournal | None = None,
        attempt: int = 1,
        accepted: tuple[Acceptance, ...] = (),
    ) -> dict[str, Any]:
        phases = {phase.value for phase in Phase}
        phase = Phase(kind) if kind in phases else Phase.PLAN_TO_ARTIFACTS
        about = about or task()
        journal = journal or MemoryJournal()
        item = WorkItem(
            id=f"r1.{about.id}.{kind}", description="d", phase=phase, role="executor", context=context or {},
            attempt=attempt,
        )  # fmt: skip
        around = AgentContext(
            item, epoch=journal.epoch, kind=kind, run=self.info, task=about, accepted=accepted, upcalls=journal
        )
        return await run_item(agent, around, self.services)

    async def executed(self, about: PlanTask | None = None, **files: str) -> Json:
        result = await self.run("execute", Writing(**files), about=about)
        assert result["success"], result
        data: Json = result["data"]
        return {"commit": data["commit"], "base_commit": data["base_commit"]}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    guard = Guard.start()
    try:
        yield Stage(tmp_path, guard)
    finally:
        await guard.close()


PASS: Json = {"success": True, "data": {"passed": True, "confidence": 0.9, "feedback": "", "requirements": []}}


async def test_execute_gives_the_agent_a_tree_and_commits_what_it_left(stage: Stage) -> None:
    agent = Writing(value__txt="1\n")
    result = await stage.run("execute", agent, {"pack": "p"})
    data = result["data"]
    assert (data["summary"], data["files"]) == ("wrote", ["value.txt"])
    given = agent.calls[0]["context"]
    assert isinstance(given, dict)
    assert (given["tree"], given["base_commit"], given["pack"]) == (data["tree"], data["base_commit"], "p")
    assert data["commit"] != data["base_commit"]
    assert (stage.workspace / "value.txt").read_text() == "0\n"


async def test_truth_1_an_empty_change_is_no_success(stage: Stage) -> None:
    result = await stage.run("execute", Writing())
    assert result["success"] is False
    assert "nothing was changed" in result["error"]
    assert "wrote" in result["error"]


async def test_a_result_without_success_is_handed_on(stage: Stage) -> None:
    result = await stage.run("execute", Saying({"success": False, "error": "cannot"}))
    assert (result["success"], result["error"]) == (False, "cannot")


async def test_what_an_attempt_that_gave_up_left_is_where_the_next_one_starts(stage: Stage) -> None:
    class GivingUp(Writing):
        async def execute_work(self, work_dict: Json) -> Json:
            await super().execute_work(work_dict)
            return {"success": False, "error": "turn limit used up"}

    first = await stage.run("execute", GivingUp(value__txt="half\n"))
    assert (first["success"], first["error"], first["data"]["files"]) == (False, "turn limit used up", ["value.txt"])
    looking = Reading("value.txt")
    rejected: Json = {"rejected_commit": first["data"]["commit"], "rejected_base": first["data"]["base_commit"]}
    await stage.run("execute", looking, rejected, attempt=2)
    assert looking.seen == ["half\n"]


@pytest.mark.parametrize("success", [True, False])
async def test_truth_1_an_agent_cannot_name_the_commit_itself(stage: Stage, success: bool) -> None:
    own: Json = {"commit": "f" * 40, "base_commit": "f" * 40, "tree": "/", "files": ["value.txt"]}
    result = await stage.run("execute", Saying({"success": success, "data": own, "error": "e"}))
    assert result["success"] is False
    assert (result["data"]["commit"], result["data"]["files"]) == (None, [])
    assert "f" * 40 not in str(result)


async def test_a_file_name_that_is_not_utf_8_is_no_success_and_says_which(stage: Stage) -> None:
    result = await stage.run("execute", Writing(value__txt="1\n", **{"odd\udcff": "x"}))
    assert result["success"] is False
    assert "not UTF-8: 'odd\\udcff'" in result["error"]
    assert result["data"]["commit"] is None


async def test_a_rework_starts_from_what_was_rejected(stage: Stage) -> None:
    first = await stage.executed(value__txt="2\n")
    looking = Reading("value.txt")
    rejected: Json = {"rejected_commit": first["commit"], "rejected_base": first["base_commit"]}
    await stage.run("execute", looking, rejected, attempt=2)
    await stage.run("execute", looking, {"rejected_commit": None, "rejected_base": None}, attempt=3)
    assert looking.seen == ["2\n", "0\n"]


async def test_a_resumed_execute_goes_on_in_the_same_tree(stage: Stage) -> None:
    journal, agent = MemoryJournal(), Writing(value__txt="1\n")
    journal.cut_after = 2  # the journal was read and the step of the tree is started
    with pytest.raises(PowerCut):
        await stage.run("execute", agent, journal=journal)
    journal.next_claim()
    first = await stage.run("execute", agent, journal=journal)
    journal.next_claim()
    again = await stage.run("execute", agent, journal=journal)
    assert first["data"] == again["data"]


async def test_review_asks_the_agent_only_after_the_gates_were_seen_red_then_green(stage: Stage) -> None:
    commits = await stage.executed(value__txt="1\n")
    agent = Saying(PASS)
    result = await stage.run("review", agent, commits)
    assert result["data"]["passed"] is True
    assert result["data"]["commit"] == commits["commit"]
    (evidence,) = [entry for entry in result["evidence"] if entry["kind"] == "acceptance"]
    assert (evidence["command"], evidence["exit_code"]) == (CHECK, 0)
    assert evidence["before_exit_code"] not in (0, None)
    given = agent.calls[0]["context"]
    assert isinstance(given, dict)
    assert given["evidence"] == result["evidence"]
    assert "+1" in str(given["diff"])


async def test_truth_1_a_red_gate_is_a_rejection_that_no_agent_is_asked_about(stage: Stage) -> None:
    agent, before = Saying(PASS), get_metrics_collector().snapshot()["retries"].get("quality", 0)
    result = await stage.run("review", agent, await stage.executed(value__txt="2\n"))
    assert get_metrics_collector().snapshot()["retries"]["quality"] == before + 1
    assert result["success"] is True
    assert result["data"]["passed"] is False
    assert "AssertionError" in result["data"]["feedback"]
    assert agent.calls == []


async def test_truth_1_what_was_seen_before_the_change_is_ours_to_say(stage: Stage) -> None:
    forged: Json = {"success": True, "data": {"pack": "p", "base": {"commit": "0", "exit_codes": [7]}}}
    optimized = await stage.run("optimize", Saying(forged))
    base = optimized["data"]["base"]
    assert (base["exit_codes"], base["refused"]) == ([1], "")
    commits = await stage.executed(value__txt="1\n")
    assert base["commit"] == commits["base_commit"]
    result = await stage.run("review", Saying(PASS), {**commits, "base": base})
    (evidence,) = [entry for entry in result["evidence"] if entry["kind"] == "acceptance"]
    assert (evidence["before_exit_code"], evidence["exit_code"]) == (1, 0)
    other = {**base, "commit": "f" * 40, "exit_codes": [0]}
    result = await stage.run("review", Saying(PASS), {**commits, "base": other})
    assert result["data"]["passed"] is True, "what was seen of another commit says nothing about this one"


async def test_truth_1_what_could_never_be_shown_is_refused_and_no_agent_is_asked(stage: Stage) -> None:
    agent = Saying({"success": True, "data": {"pack": "p"}})
    result = await stage.run("optimize", agent, about=task(command="test -f value.txt"))
    assert (result["success"], result["data"]["refused"], agent.calls) == (True, True, [])
    (evidence,) = result["evidence"]
    assert (evidence["kind"], evidence["before_exit_code"], evidence["exit_code"]) == ("base", 0, None)


async def test_truth_1_rewritten_tests_are_put_back_for_the_rework(stage: Stage) -> None:
    about = task(scope=["value.txt", "test_value.py"], command="python3 test_value.py")
    (stage.workspace / "test_value.py").write_text("assert open('value.txt').read() == '1\\n'\n")
    commits = await stage.executed(about, value__txt="2\n", test_value__py="pass\n")
    result = await stage.run("review", Saying(PASS), commits, about=about)
    assert result["data"]["passed"] is False
    looking = Reading("test_value.py")
    rejected: Json = {
        "rejected_commit": result["data"]["rework_commit"], "rejected_base": commits["base_commit"],
    }  # fmt: skip
    await stage.run("execute", looking, rejected, about=about, attempt=2)
    assert looking.seen == ["assert open('value.txt').read() == '1\\n'\n"]
    the_rest = Reading("value.txt")
    await stage.run("execute", the_rest, rejected, about=about, attempt=3)
    assert the_rest.seen == ["2\n"], "the rest of the change is kept"


async def test_truth_1_a_command_that_was_green_before_proves_nothing(stage: Stage) -> None:
    about = task(command="true")
    result = await stage.run("review", Saying(PASS), await stage.executed(about, value__txt="1\n"), about=about)
    assert result["data"]["passed"] is False


async def test_a_path_outside_the_scope_is_rejected(stage: Stage) -> None:
    agent = Saying(PASS)
    result = await stage.run("review", agent, await stage.executed(value__txt="1\n", other__txt="mine\n"))
    assert result["data"]["passed"] is False
    assert "other.txt" in result["data"]["feedback"]
    assert agent.calls == []


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        ({"passed": True}, True),
        ({"passed": False, "feedback": "no"}, False),
        ({"passed": True, "confidence": 0.2}, False),
        ({"passed": True, "requirements": [{"id": "R1", "met": False}]}, False),
    ],
)
async def test_an_outside_reviewer_can_lower_the_verdict(stage: Stage, verdict: Json, passed: bool) -> None:
    own: Json = {"success": True, "data": verdict, "evidence": [{"kind": "acceptance", "command": "made up"}]}
    result = await stage.run("review", Saying(own), await stage.executed(value__txt="1\n"))
    assert result["data"]["passed"] is passed
    assert all(entry["command"] != "made up" for entry in result["evidence"])


async def test_a_reviewer_without_a_verdict_is_an_agent_error_and_no_rejection(stage: Stage) -> None:
    with pytest.raises(AgentError, match="no verdict"):
        await stage.run("review", Saying({"success": True}), await stage.executed(value__txt="1\n"))


async def test_accept_brings_the_files_into_the_workspace(stage: Stage) -> None:
    commits = await stage.executed(value__txt="1\n")
    result = await stage.run("accept", None, commits)
    assert result["data"] == {
        "accepted": True, "conflict": False, "commit": commits["commit"], "files": ["value.txt"], "feedback": "",
    }  # fmt: skip
    assert (stage.workspace / "value.txt").read_text() == "1\n"
    joined, written = result["evidence"]
    assert (joined["kind"], written["kind"], written["path"]) == ("joined", "accepted", "value.txt")
    assert written["sha256"] == sha256(b"1\n").hexdigest()


async def test_a_file_that_the_user_changed_is_a_conflict_and_stays_theirs(stage: Stage) -> None:
    commits = await stage.executed(value__txt="1\n")
    (stage.workspace / "value.txt").write_text("the user's\n")
    data = (await stage.run("accept", None, commits))["data"]
    assert (data["accepted"], data["conflict"]) == (False, True)
    assert "value.txt" in data["feedback"]
    assert (stage.workspace / "value.txt").read_text() == "the user's\n"


async def test_the_joined_gate_runs_what_was_accepted_before_too(stage: Stage) -> None:
    commits = await stage.executed(value__txt="1\n")
    earlier = Acceptance(command="grep -q nothing value.txt")
    result = await stage.run("accept", None, commits, accepted=(earlier,))
    assert (result["data"]["accepted"], result["data"]["conflict"]) == (False, False)
    assert earlier.command in result["data"]["feedback"]
    assert (stage.workspace / "value.txt").read_text() == "0\n"


async def test_accept_refuses_what_is_outside_the_scope(stage: Stage) -> None:
    commits = await stage.executed(value__txt="1\n", other__txt="mine\n")
    data = (await stage.run("accept", None, commits))["data"]
    assert (data["accepted"], data["conflict"]) == (False, False)
    assert "other.txt" in data["feedback"]


async def test_two_changes_of_the_same_line_conflict_without_harm(stage: Stage) -> None:
    first, second = await stage.executed(value__txt="1\n"), await stage.executed(task("t2"), value__txt="3\n")
    assert (await stage.run("accept", None, first))["data"]["accepted"]
    data = (await stage.run("accept", None, second, about=task("t2")))["data"]
    assert (data["accepted"], data["conflict"]) == (False, False)
    assert "value.txt" in data["feedback"]
    assert (stage.workspace / "value.txt").read_text() == "1\n"


async def test_two_accepts_at_once_are_done_one_after_the_other_and_both_files_arrive(stage: Stage) -> None:
    other = task("t2", ["other.txt"], "grep -q new other.txt")
    first, second = await stage.executed(value__txt="1\n"), await stage.executed(other, other__txt="new\n")
    results = await asyncio.gather(stage.run("accept", None, first), stage.run("accept", None, second, about=other))
    assert [result["data"]["accepted"] for result in results] == [True, True]
    assert (stage.workspace / "value.txt").read_text() == "1\n"
    assert (stage.workspace / "other.txt").read_text() == "new\n"


async def test_once_1_an_accept_killed_after_every_upcall_is_finished_by_the_next_claim(tmp_path: Path) -> None:
    guard = Guard.start()
    try:
        cut, done = 0, False
        while not done:
            cut += 1
            root = tmp_path / str(cut)
            root.mkdir()
            stage = Stage(root, guard)
            commits = await stage.executed(value__txt="1\n")
            journal = MemoryJournal()
            journal.cut_after = cut
            try:
                await stage.run("accept", None, commits, journal=journal)
                done = True
            except PowerCut:
                journal.next_claim()
                result = await stage.run("accept", None, commits, journal=journal)
                assert result["data"]["accepted"] is True, f"cut after {cut}"
                assert result["data"]["files"] == ["value.txt"]
            assert (stage.workspace / "value.txt").read_text() == "1\n"
        assert cut > 10
    finally:
        await guard.close()


async def test_an_interrupted_accept_is_merged_again_if_another_task_was_accepted_meanwhile(stage: Stage) -> None:
    other = task("t2", ["other.txt"], "grep -q new other.txt")
    first, second = await stage.executed(value__txt="1\n"), await stage.executed(other, other__txt="new\n")
    for cut in (3, 5):  # after the merge, after the joined gate
        journal = MemoryJournal()
        journal.cut_after = cut
        with pytest.raises(PowerCut):
            await stage.run("accept", None, first, journal=journal)
    assert (await stage.run("accept", None, second, about=other))["data"]["accepted"]
    journal.next_claim()
    result = await stage.run("accept", None, first, journal=journal)
    assert result["data"]["accepted"] is True
    assert (stage.workspace / "value.txt").read_text() == "1\n"
    assert (stage.workspace / "other.txt").read_text() == "new\n"


async def test_optimize_stores_the_pack_that_the_agent_built_from_the_accepted_files(stage: Stage) -> None:
    (stage.workspace / "späti\u00e9.txt").write_text("odd name\n")
    journal = MemoryJournal()
    about = task(scope=["value.txt", "späti\u00e9.txt"])
    asked: Json = {"task": about.model_dump(mode="json"), "requirements": [], "spec": None, "feedback": None}
    result = await stage.run("optimize", create_agent("optimizer"), asked, about=about, journal=journal)
    pack = result["data"]["pack"]
    assert '<file path="value.txt">\n0\n</file>' in pack
    assert "odd name" in pack
    assert '<file path="check.py">' in pack  # the acceptance command names it
    assert "other.txt" not in pack
    assert journal.artifacts == {"pack-t1-1.md": pack.encode()}
    assert [reference["name"] for reference in result["artifacts"]] == ["pack-t1-1.md"]


async def test_a_file_name_that_is_not_utf_8_is_no_part_of_a_pack(stage: Stage) -> None:
    (stage.workspace / "odd\udcff").write_text("x\n")
    about = task(scope=["."])
    asked: Json = {"task": about.model_dump(mode="json")}
    result = await stage.run("optimize", create_agent("optimizer"), asked, about=about)
    assert '<file path="value.txt">' in result["data"]["pack"]
    assert "odd" not in result["data"]["pack"]


async def test_an_optimizer_without_a_pack_is_an_agent_error(stage: Stage) -> None:
    with pytest.raises(AgentError, match="no pack"):
        await stage.run("optimize", Saying({"success": True}))


@pytest.mark.parametrize("kind", ["prompt_to_spec", "spec_to_full_spec", "full_spec_to_plan"])
async def test_the_orchestrator_sees_the_project_as_it_was_when_first_asked(stage: Stage, kind: str) -> None:
    journal, agent = MemoryJournal(), Saying({"success": True})
    await stage.run(kind, agent, {"prompt": "p"}, journal=journal)
    journal.next_claim()
    (stage.info.directory / "git").rename(stage.info.directory / "away")
    await stage.run(kind, agent, {"prompt": "p"}, journal=journal)
    first, second = (call["context"] for call in agent.calls)
    assert isinstance(first, dict)
    assert '<file path="value.txt">\n0\n</file>' in str(first["project"])
    assert first == second


async def test_work_is_the_agent_alone_and_a_named_tree_gives_it_tools(stage: Stage) -> None:
    def tools_of(context: AgentContext) -> bool:
        return context.tools is not None

    class Looking(AgentExecutionMixin):
        look: Callable[[AgentContext], bool] = staticmethod(tools_of)

        async def execute_work(self, work_dict: Json) -> Json:
            return {"success": True, "data": {"tools": self.look(self.context)}}

    assert (await stage.run("work", Looking()))["data"] == {"tools": False}
    assert (await stage.run("work", Looking(), {"tree": str(stage.workspace)}))["data"] == {"tools": True}


@pytest.mark.parametrize(
    ("kind", "agent", "context"),
    [("dance", Writing(), {}), ("execute", None, {}), ("review", Saying(PASS), {}), ("accept", None, {})],
)
async def test_an_item_that_can_never_be_worked_on_is_bad_input(
    stage: Stage, kind: str, agent: AgentExecutionMixin | None, context: Json
) -> None:
    with pytest.raises(InvalidInput):
        await stage.run(kind, agent, context)
