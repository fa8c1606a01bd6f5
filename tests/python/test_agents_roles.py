"""The Claude agents: what they send, what they make of the answer, what only lowers a verdict (TRUTH-1)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from journal_in_memory import MemoryJournal
from messages_server import MessagesServer, Reply, saying, using
from mnemosyne.agents import prompts
from mnemosyne.agents.agent_factory import create_agent
from mnemosyne.agents.base_agent import call_agent, working_on
from mnemosyne.agents.claude_agent import ClaudeAgent
from mnemosyne.agents.context import AgentContext, RunInfo
from mnemosyne.agents.orchestrator import Spec, _plan_check, _spec_problems, plan_problems
from mnemosyne.agents.reviewer import lowered
from mnemosyne.errors import AgentError, EnvironmentProblem, ModelError
from mnemosyne.models import AgentRole, Phase, Plan, PlanTask, WorkItem
from pydantic import JsonValue
from virtual_time import policy

Json = dict[str, JsonValue]

TASK = PlanTask(
    id="t1", title="Add totals", description="Sum it.", file_scope=["shop"], acceptance=[{"command": "make test"}]
)
SPEC: dict[str, Any] = {
    "summary": "s",
    "requirements": [{"id": "R1", "text": "x"}],
    "open_questions": [],
    "acceptance": ["works"],
}
FULL: dict[str, Any] = {
    "components": [{"name": "c", "files": ["a.py"], "responsibility": "r", "requirements": ["R1"]}],
    "constraints": [],
    "test_plan": [{"requirement": "R1", "command": "make test"}],
}


def plan(*tasks: dict[str, Any]) -> dict[str, Any]:
    whole = {"title": "t", "description": "", "depends_on": [], "file_scope": ["a.py"]}
    acceptance = [{"command": "make test", "timeout_seconds": 60}]
    return {"setup": [], "tasks": [{"acceptance": acceptance, **whole, **task} for task in tasks]}


async def played(
    role: str,
    phase: Phase,
    context: Json,
    *script: Reply,
    task: PlanTask | None = None,
    attempt: int = 1,
    config: Json | None = None,
    run: RunInfo | None = None,
    tools: Any = None,
) -> tuple[Json, MessagesServer]:
    journal = MemoryJournal()
    item = WorkItem(id="i1", description="d", phase=phase, role=role, context=context, attempt=attempt)
    around = AgentContext(item, epoch=1, task=task, upcalls=journal, run=run)
    around.tools = tools
    with MessagesServer(*script) as server:
        agent = create_agent(role, {"base_url": server.url, "api_key": "key", "model": "demo", **(config or {})})
        assert isinstance(agent, ClaudeAgent)
        agent.retry = policy()
        try:
            with working_on(around):
                return await call_agent(agent, item.model_dump(mode="json")), server
        finally:
            await agent.close()


def said(value: object) -> Reply:
    return saying(json.dumps(value))


def prompt_of(server: MessagesServer) -> str:
    return str(server.seen[0].body["messages"][0]["content"])


async def test_a_prompt_becomes_a_specification() -> None:
    context: Json = {"prompt": "make it so", "project": '<file path="a.py">\nx\n</file>\n', "feedback": "not that"}
    result, server = await played("orchestrator", Phase.PROMPT_TO_SPEC, context, said(SPEC))
    assert result["data"] == {"spec": SPEC}
    body = server.seen[0].body
    assert body["system"].startswith("You are the Orchestrator of mnemosyne")
    assert body["output_config"]["format"]["schema"]["title"] == "Spec"
    assert "<request>\nmake it so\n</request>" in prompt_of(server)
    assert '<project>\n<file path="a.py">\nx\n</file>\n</project>' in prompt_of(server)
    assert "<feedback>\nnot that\n</feedback>" in prompt_of(server)


async def test_a_specification_becomes_a_full_one_and_its_requirement_ids_are_checked() -> None:
    wrong = {**FULL, "test_plan": [{"requirement": "R9", "command": "x"}]}
    context: Json = {"prompt": "p", "spec": SPEC}
    result, server = await played("orchestrator", Phase.SPEC_TO_FULL_SPEC, context, said(wrong), said(FULL))
    assert result["data"] == {"full_spec": FULL}
    assert server.seen[0].body["output_config"]["format"]["schema"]["title"] == "FullSpec"
    assert "there is no requirement R9" in server.seen[1].body["messages"][2]["content"]
    assert "<feedback" not in prompt_of(server)


async def test_a_full_specification_becomes_a_plan_and_a_cycle_is_sent_back() -> None:
    cycle = plan({"id": "a", "depends_on": ["b"]}, {"id": "b", "depends_on": ["a"]})
    good = plan({"id": "a"}, {"id": "b", "depends_on": ["a"]})
    context: Json = {"prompt": "p", "spec": SPEC, "full_spec": FULL}
    result, server = await played("orchestrator", Phase.FULL_SPEC_TO_PLAN, context, said(cycle), said(good))
    assert result["data"] == {"plan": good}
    assert server.seen[0].body["output_config"]["format"]["schema"]["title"] == "Plan"
    assert "in a circle" in server.seen[1].body["messages"][2]["content"]
    assert "<full_spec>\n{" in prompt_of(server)


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ([{"id": "a"}, {"id": "a"}], "used twice"),
        ([{"id": "a", "depends_on": ["z"]}], 'depends on "z"'),
        ([{"id": "a", "depends_on": ["a"]}], "in a circle"),
        ([{"id": "a", "file_scope": ["../x"]}], "not inside the workspace"),
        ([{"id": "a", "file_scope": ["/etc"]}], "not inside the workspace"),
        ([{"id": "a", "file_scope": []}], "empty file_scope"),
        ([{"id": "a", "acceptance": [{"command": "true"}, {"command": "echo ok"}]}], "no command that can fail"),
        ([{"id": "a", "acceptance": [{"command": " exit 0 "}]}], "no command that can fail"),
    ],
)
def test_what_a_schema_cannot_say_about_a_plan_is_found(tasks: list[dict[str, Any]], problem: str) -> None:
    assert any(problem in found for found in plan_problems(Plan.model_validate(plan(*tasks))))


@pytest.mark.parametrize("command", ["echo x | grep -q y", "true && make test", "python3 -m unittest", "exit 0$(x)"])
def test_a_command_that_can_fail_is_no_problem(command: str) -> None:
    assert plan_problems(Plan.model_validate(plan({"id": "a", "acceptance": [{"command": command}]}))) == []


@pytest.mark.parametrize(
    ("descriptions", "missing"),
    [
        (["R1, R-2 and R3."], []),
        (["Serves R1.", "(R-2; R3)"], []),
        (["Serves R1.", "R-2"], ["R3"]),
        (["R1", "R33 R-22"], ["R-2", "R3"]),
        (["names none", "at all"], []),
    ],
)
def test_truth_1_a_requirement_that_no_task_names_is_missed(descriptions: list[str], missing: list[str]) -> None:
    spec: JsonValue = {"requirements": [{"id": name, "text": "x"} for name in ("R1", "R-2", "R3")]}
    tasks = [{"id": f"t{number}", "description": text} for number, text in enumerate(descriptions)]
    found = _plan_check(spec)(Plan.model_validate(plan(*tasks)))
    assert found == [f"no task names requirement {name} in its description" for name in missing]


@pytest.mark.parametrize("name", ["R 1", "R1.2", "R1:", "*"])
def test_an_id_that_no_task_could_name_is_found(name: str) -> None:
    (problem,) = _spec_problems(Spec.model_validate({**SPEC, "requirements": [{"id": name, "text": "x"}]}))
    assert "not one word" in problem


async def test_a_refusal_of_the_model_is_handed_on_with_its_words() -> None:
    with pytest.raises(ModelError, match="declined") as raised:
        await played("orchestrator", Phase.PROMPT_TO_SPEC, {"prompt": "x"}, saying("only the sample", "refusal"))
    assert "only the sample" in raised.value.reason


async def test_an_agent_with_a_wrong_base_url_is_not_charged() -> None:
    with pytest.raises(EnvironmentProblem):
        await played("orchestrator", Phase.PROMPT_TO_SPEC, {"prompt": "x"}, config={"base_url": "nowhere"})


async def test_a_phase_that_is_not_its_own_is_an_agent_error() -> None:
    with pytest.raises(AgentError, match="no work in phase"):
        await played("orchestrator", Phase.COMPLETE, {})


JUDGEMENT: dict[str, Any] = {
    "passed": True,
    "confidence": 0.9,
    "feedback": "",
    "requirements": [{"id": "R1", "met": True, "reason": ""}],
}


async def test_the_reviewer_judges_by_diff_and_evidence() -> None:
    context: Json = {"requirements": [{"id": "R1", "text": "x"}], "diff": "+ line", "evidence": [{"exit_code": 0}]}
    result, server = await played("reviewer", Phase.PLAN_TO_ARTIFACTS, context, said(JUDGEMENT), task=TASK)
    assert result["data"] == {**JUDGEMENT, "start_over": False}
    assert server.seen[0].body["system"].startswith("You are the Reviewer of mnemosyne")
    assert server.seen[0].body["output_config"]["format"]["schema"]["title"] == "Judgement"
    assert '<task id="t1">\nAdd totals\nSum it.\n</task>' in prompt_of(server)
    assert "<diff>\n+ line\n</diff>" in prompt_of(server)
    assert '"exit_code": 0' in prompt_of(server)


@pytest.mark.parametrize(
    ("change", "feedback"),
    [
        ({"passed": False, "feedback": "wrong"}, "wrong"),
        ({"passed": False}, "without a reason"),
        ({"requirements": [{"id": "R1", "met": False, "reason": "not there"}]}, "R1: not there"),
        ({"requirements": []}, "R1: it was not judged"),
        ({"confidence": 0.49}, "confidence was 0.49"),
        ({"passed": "yes"}, "without a reason"),
    ],
)
def test_truth_1_a_verdict_that_contradicts_itself_is_lowered(change: Json, feedback: str) -> None:
    found = lowered({**JUDGEMENT, **change}, [{"id": "R1"}])
    assert found["passed"] is False
    assert feedback in str(found["feedback"])


def test_truth_1_a_verdict_is_never_raised() -> None:
    assert lowered({**JUDGEMENT, "passed": False}, [])["passed"] is False
    assert lowered({**JUDGEMENT, "confidence": 0.5}, [{"id": "R1"}])["passed"] is True


def test_a_reviewer_may_say_start_over_but_only_of_what_it_rejects() -> None:
    over: Json = {**JUDGEMENT, "start_over": True}
    assert lowered(over, [{"id": "R1"}])["start_over"] is False
    assert lowered({**over, "passed": False}, [{"id": "R1"}])["start_over"] is True
    assert lowered({**over, "passed": False, "start_over": "yes"}, [])["start_over"] is False


class Outcome:
    content, is_error = "fine", False


class Tools:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Json]] = []

    def definitions(self) -> list[Json]:
        return [{"name": "run_command", "input_schema": {"type": "object"}}]

    async def run(self, name: str, input: Json) -> Outcome:
        self.calls.append((name, input))
        return Outcome()

    async def describe_interrupted(self, name: str, input: Json) -> str:
        raise AssertionError("nothing was interrupted")


async def test_the_executor_is_told_all_it_needs_and_works_with_the_tools() -> None:
    tools = Tools()
    context: Json = {
        "pack": '<file path="a.py">\n  x\n</file>', "requirements": [{"id": "R1"}], "feedback": "3 != 4",
        "acceptance": [{"command": "make test", "timeout_seconds": 5}],
    }  # fmt: skip
    script = [using(("u", "run_command", {"command": "make test"})), saying(" I made it. ")]
    result, server = await played(
        "executor", Phase.PLAN_TO_ARTIFACTS, context, *script, task=TASK, attempt=2, tools=tools
    )
    assert result["data"] == {"summary": "I made it."}
    assert tools.calls == [("run_command", {"command": "make test"})]
    prompt = prompt_of(server)
    for section in (
        '<task id="t1">\nAdd totals\nSum it.\n</task>',
        "<scope>\nshop\n</scope>",
        "<acceptance>\nmake test\n</acceptance>",
        '<context>\n<file path="a.py">\n  x\n</file>\n</context>',
        '<feedback attempt="1">\n3 != 4\n</feedback>',
    ):
        assert section in prompt
    assert "output_config" not in server.seen[0].body


def test_the_executor_is_told_how_a_checkout_is_prepared_if_it_is() -> None:
    about: dict[str, Any] = {"task": "t1", "title": "T", "description": "", "scope": ["a"], "attempt": 1}
    assert "<setup>\nmake deps\nmake more\n</setup>" in prompts.execute({}, **about, setup=["make deps", "make more"])
    assert "<setup>" not in prompts.execute({}, **about)


def test_a_rework_sees_in_short_what_was_tried_and_what_a_person_advised() -> None:
    about: dict[str, Any] = {"task": "t1", "title": "T", "description": "", "scope": ["a"], "attempt": 3}
    output = f"first line\n{'x' * 1000}\nlast line"
    tried: Json = {
        "tried": [
            {"attempt": 1, "summary": "I used a list.", "feedback": output},
            {"attempt": 2, "summary": None, "feedback": "no"},
        ],
        "feedback": "no",
        "rejected_commit": "c1",
    }
    prompt = prompts.execute(tried, **about)
    section = prompt.split("<tried>")[1].split("</tried>")[0]
    assert "attempt 1\nI used a list.\nnot enough: first line" in section
    assert "last line" in section
    assert len(section) < 1000
    assert "attempt 2\n(it said nothing)\nnot enough: no" in section
    assert "the accepted files alone" not in prompt
    assert "<guidance>" not in prompt
    fresh = prompts.execute({**tried, "rejected_commit": None, "note": "use a set"}, **about)
    assert "the accepted files alone" in fresh
    assert "<guidance>\nuse a set\n</guidance>" in fresh
    assert "<tried>" not in prompts.execute({"tried": []}, **about)


async def test_truth_1_a_used_up_turn_limit_is_no_success() -> None:
    script = [using((str(number), "run_command", {"command": "x"})) for number in range(2)]
    result, _ = await played(
        "executor", Phase.PLAN_TO_ARTIFACTS, {}, *script, task=TASK, tools=Tools(), config={"max_turns": 2}
    )
    assert result["success"] is False
    assert "turn limit" in str(result["error"])


async def test_an_executor_without_a_tree_says_so() -> None:
    with pytest.raises(AgentError, match="no tree"):
        await played("executor", Phase.PLAN_TO_ARTIFACTS, {}, task=TASK)


async def test_the_model_is_the_agents_own_else_the_runs_else_the_roles(tmp_path: Any) -> None:
    item = WorkItem(id="i", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    run = RunInfo("r", tmp_path, tmp_path, None, {"model": "of-the-run"})
    found = []
    for config, about in (({"model": "mine"}, run), ({}, run), ({}, None)):
        agent = create_agent(AgentRole.EXECUTOR, config)
        assert isinstance(agent, ClaudeAgent)
        with working_on(AgentContext(item, run=about)):
            found.append(agent.model)
    assert found == ["mine", "of-the-run", "claude-sonnet-5-5"]


async def test_secret_1_an_agent_made_by_another_inherits_its_server_and_key_only_together() -> None:
    item = WorkItem(id="i", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    context = AgentContext(item)
    context.config = {"base_url": "http://theirs", "api_key": "secret", "model": "demo"}
    with working_on(context):
        inherits, own = (
            create_agent("executor", {"max_turns": 3}),
            create_agent("executor", {"base_url": "http://mine"}),
        )
        assert isinstance(inherits, ClaudeAgent)
        assert isinstance(own, ClaudeAgent)
        assert inherits.settings == {**context.config, "max_turns": 3}
        assert own.settings == {"base_url": "http://mine"}


async def test_a_failing_server_is_the_models_fault() -> None:
    with pytest.raises(ModelError):
        await played(
            "orchestrator", Phase.PROMPT_TO_SPEC, {"prompt": "x"}, *[Reply(events=saying("cut").events[:4])] * 3
        )


def test_a_files_text_is_neither_escaped_nor_changed() -> None:
    assert prompts.file_section("a", "  <b>&\n\n") == '<file path="a">\n  <b>&\n\n</file>'
    assert prompts.file_section("a", "no end") == '<file path="a">\nno end\n</file>'
