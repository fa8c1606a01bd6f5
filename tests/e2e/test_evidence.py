"""Success that did not happen is never reported (TRUTH-1): who claims it is put into the real command, and fails.

Executors of a user's take the executor's place with ``--agent``. What only a model can do (a denied tool, an error as
an answer, turns without end, made-up output) is done by a scripted server that speaks the Messages API.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from hashlib import sha256

import pytest
from command import DemoServer, Finished, Line, Sandbox
from messages_server import MessagesServer, Reply, saying, using

LIARS = '''
from mnemosyne import AgentExecutionMixin, create_agent

RIGHT = """def discounted(amount, quantity):
    if quantity > 50:
        return amount - amount * 20 / 100
    return amount - amount * 10 / 100 if quantity >= 10 else amount
"""
WRONG = "def discounted(amount, quantity):\\n    return amount\\n"
ANYTHING = "import unittest\\n\\n\\nclass T(unittest.TestCase):\\n    def test(self):\\n        pass\\n"


class Liar(AgentExecutionMixin):
    """Does what its ``files`` say, and reports success in any case."""

    files = {}

    async def execute_work(self, work):
        for name, text in self.files.items():
            path = self.context.tree / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        return {"success": True, "data": {"summary": "Ran 4 tests: OK. All done."}}


class Idle(Liar):
    pass


class Red(Liar):
    files = {"shop/discounts.py": WRONG}


class Rewriter(Liar):
    files = {"shop/discounts.py": WRONG, "tests/test_discounts.py": ANYTHING}


class Deleter(Liar):
    files = {"shop/discounts.py": WRONG, "tests/test_discounts.py": None}


class Skipper(Liar):
    files = {"shop/discounts.py": WRONG, "tests/test_discounts.py": "import unittest\\n\\n\\n@unittest.skip('later')\\n"
             "class DiscountsTest(unittest.TestCase):\\n    def test(self):\\n        assert False\\n"}


class Wanderer(Liar):
    files = {"shop/discounts.py": RIGHT, "README.md": "mine now\\n"}


class Guided(Liar):
    """Is wrong until a person says how it is done."""

    async def execute_work(self, work):
        told = str(work["context"].get("note") or "")
        self.files = {"shop/discounts.py": RIGHT if "ten is enough" in told else WRONG}
        return await super().execute_work(work)


class Hasty(AgentExecutionMixin):
    """The executor, with three turns only."""

    async def execute_work(self, work):
        return await create_agent("executor", {**self.config, "max_turns": 3}).execute_work(work)


class Planner(AgentExecutionMixin):
    """The orchestrator, but of its plan only the first task, changed."""

    change = {}

    async def execute_work(self, work):
        result = await create_agent("orchestrator", self.config).execute_work(work)
        plan = result["data"].get("plan")
        if plan:
            plan["tasks"] = [{**plan["tasks"][0], **self.change}]
        return result


class First(Planner):
    pass


class Wide(Planner):
    change = {"file_scope": ["shop", "tests"]}


class WideAll(Planner):
    change = {"file_scope": ["shop", "tests"],
              "acceptance": [{"command": "for one in tests/test_d*.py; do "
                              "test ! -e $one || python3 -m unittest $one || exit 1; done"}]}


class NothingProved(Planner):
    change = {"acceptance": [{"command": "true"}, {"command": "python3 -m unittest || true"}]}


class GreenAlready(Planner):
    change = {"acceptance": [{"command": "python3 -c 'import shop'"}]}
'''

WRONG = "def discounted(amount, quantity):\n    return amount\n"


def lied(sandbox: Sandbox, executor: str, planner: str = "First") -> Finished:
    """The demo, with classes of ours in the place of the executor and of the planner."""
    (sandbox.root / "liars.py").write_text(LIARS, "utf-8")
    return sandbox.demo("--agent", f"executor=liars:{executor}", "--agent", f"orchestrator=liars:{planner}")


def failed_task(finished: Finished, attempts: int = 3) -> Line:
    """The only task of a run that failed, as its summary shows it."""
    assert finished.exit_code == 1, finished.err
    summary = finished.summary
    assert (summary["state"], summary["error"]["code"]) == ("failed", "MN-0701")
    (task,) = summary["tasks"]
    assert (task["state"], task["attempts"], task["files"]) == ("failed", attempts, [])
    assert task["evidence"], "what was seen is said"
    return dict(task)


def seen(task: Line, kind: str) -> list[Line]:
    return [entry for entry in task["evidence"] if entry["kind"] == kind]


def shown(sandbox: Sandbox, finished: Finished, *flags: str) -> str:
    """What a person is shown of the run afterwards."""
    answer = sandbox.run("show", finished.summary["run"], *flags)
    assert answer.exit_code == 0, answer.err
    return answer.out


def untouched(sandbox: Sandbox) -> None:
    """Nothing of what was claimed reached the user's files."""
    assert "NotImplementedError" in (sandbox.workspace / "shop" / "discounts.py").read_text()
    assert "tenth_piece" in (sandbox.workspace / "tests" / "test_discounts.py").read_text()
    assert "mine now" not in (sandbox.workspace / "README.md").read_text()


# -- executors that report success ------------------------------------------------------------------------------------


def test_truth_1_success_without_a_change_is_none(sandbox: Sandbox) -> None:
    finished = lied(sandbox, "Idle")
    (change,) = seen(failed_task(finished), "change")
    assert change["output"].startswith("nothing was changed; the executor said: Ran 4 tests: OK")
    assert "change  " in shown(sandbox, finished)
    assert "nothing was changed" in shown(sandbox, finished)


def test_truth_1_a_file_that_was_written_while_the_tests_are_red_is_no_success(sandbox: Sandbox) -> None:
    finished = lied(sandbox, "Red")
    task = failed_task(finished)
    (acceptance,) = seen(task, "acceptance")
    assert (acceptance["before_exit_code"], acceptance["exit_code"]) == (1, 1)
    assert acceptance["seconds"] > 0
    (file,) = seen(task, "file")
    assert (file["path"], file["change"]) == ("shop/discounts.py", "changed")
    assert file["sha256"] == sha256(WRONG.encode()).hexdigest()
    short = shown(sandbox, finished)
    assert "red -> red" in short
    assert f"not accepted: shop/discounts.py  sha256 {file['sha256'][:12]}" in short
    full = shown(sandbox, finished, "--evidence", "t1")
    assert [f"attempt {number} rejected" in full for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert "from 10 on means that 10 is enough" in full, "the output of the command"
    assert f"sha256 {file['sha256']}" in full
    assert "exit code 1 -> 1" in full
    assert "executor Ran 4 tests: OK. All done." in full, "what was claimed stands beside what was seen"
    assert f"mnemosyne retry {finished.summary['run']} t1" in full
    untouched(sandbox)


@pytest.mark.parametrize(
    ("executor", "planner", "change"),
    [("Rewriter", "Wide", "rewritten"), ("Skipper", "Wide", "skipped"), ("Deleter", "WideAll", "deleted")],
)
def test_truth_1_tests_that_were_rewritten_skipped_or_deleted_do_not_count(
    sandbox: Sandbox, executor: str, planner: str, change: str
) -> None:
    finished = lied(sandbox, executor, planner)
    task = failed_task(finished)
    assert [(one["path"], one["change"]) for one in seen(task, "test")] == [("tests/test_discounts.py", change)]
    short = shown(sandbox, finished)
    assert f"test {change}" in short
    assert [one["exit_code"] for one in seen(task, "acceptance")] == [0], "by itself it is green"
    assert [one["exit_code"] for one in seen(task, "old_tests")] == [1]
    assert "red (old tests)" in short
    untouched(sandbox)


def test_truth_1_a_file_outside_the_scope_rejects_a_change_that_works(sandbox: Sandbox) -> None:
    finished = lied(sandbox, "Wanderer")
    task = failed_task(finished)
    assert [one["exit_code"] for one in seen(task, "acceptance")] == [0]
    (scope,) = seen(task, "scope")
    assert scope["output"] == "README.md"
    assert "outside the task's scope" in finished.summary["error"]["reason"]
    untouched(sandbox)


# -- plans that prove nothing ----------------------------------------------------------------------------------------


def test_truth_1_a_given_plan_whose_acceptance_cannot_fail_is_refused_with_advice(sandbox: Sandbox) -> None:
    sandbox.workspace.mkdir()
    plan = {"tasks": [{"id": "t1", "title": "x", "file_scope": ["x"], "acceptance": [{"command": "true"}]}]}
    (sandbox.root / "plan.json").write_text(json.dumps(plan))
    flags = ["--plan", "plan.json", "--workspace", str(sandbox.workspace), "--model", "demo", "--json"]
    refused = sandbox.run("orchestrate", *flags)
    assert refused.exit_code == 2
    error = refused.summary["error"]
    assert (error["code"], refused.summary["run"]) == ("MN-0120", None)
    assert "a lint rule or a size limit" in error["hint"]
    assert not sandbox.run("runs", "--json").out, "nothing was stored"


def test_truth_1_a_planner_that_insists_on_such_a_plan_fails_the_run(sandbox: Sandbox) -> None:
    finished = lied(sandbox, "Red", "NothingProved")
    assert finished.exit_code == 1
    assert finished.summary["tasks"] == []
    assert "no command that can fail" in finished.summary["error"]["reason"]


def test_truth_1_commands_that_are_green_before_the_change_are_refused_before_anybody_is_paid(sandbox: Sandbox) -> None:
    finished = lied(sandbox, "Red", "GreenAlready")
    task = failed_task(finished, attempts=1)
    assert [(one["before_exit_code"], one["exit_code"]) for one in seen(task, "base")] == [(0, None)]
    assert not [one for one in finished.events if one["kind"] == "work_started" and one["role"] == "executor"]
    assert "No acceptance command was red before the change" in finished.summary["error"]["reason"]
    assert "green before" in shown(sandbox, finished)
    assert "attempt 1 refused" in shown(sandbox, finished, "--evidence", "t1")


# -- models that claim it --------------------------------------------------------------------------------------------

PROJECT = {
    "shop.py": "def price():\n    raise NotImplementedError\n",
    "test_shop.py": "import unittest\nfrom shop import price\n\n\nclass ShopTest(unittest.TestCase):\n"
    "    def test_price(self):\n        self.assertEqual(price(), 3)\n",
}  # fmt: skip
PLAN = {
    "tasks": [
        {
            "id": "t1",
            "title": "Finish shop",
            "file_scope": ["shop.py"],
            "acceptance": [{"command": "python3 -m unittest test_shop", "timeout_seconds": 60}],
        }
    ]
}


def asked(sandbox: Sandbox, answer: Callable[[Line], Reply], *flags: str) -> Finished:
    """Run the plan with a model that answers so."""
    sandbox.workspace.mkdir()
    for name, text in PROJECT.items():
        (sandbox.workspace / name).write_text(text)
    (sandbox.root / "plan.json").write_text(json.dumps(PLAN))
    (sandbox.root / "liars.py").write_text(LIARS, "utf-8")
    with MessagesServer(answer=answer) as server:
        where = ["--workspace", str(sandbox.workspace), "--base-url", server.url, "--model", "scripted"]
        return sandbox.run("orchestrate", "--plan", "plan.json", "--json", *where, *flags)


def results(body: Line) -> list[Line]:
    """The results of tools in the last message of a request."""
    content = body["messages"][-1]["content"]
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if block["type"] == "tool_result"]


def test_truth_1_a_denied_tool_and_the_word_done_are_no_success(sandbox: Sandbox) -> None:
    denied: list[str] = []

    def answer(body: Line) -> Reply:
        if not results(body):
            return using(("toolu_1", "write_file", {"path": "../../shop.py", "content": "x"}))
        denied.extend(str(one["content"]) for one in results(body) if one.get("is_error"))
        return saying("I have finished shop.py; all tests pass.")

    finished = asked(sandbox, answer)
    (change,) = seen(failed_task(finished), "change")
    assert "nothing was changed" in change["output"]
    assert len(denied) == 3, "the tool was refused in every attempt, and the model was told"
    assert (sandbox.workspace / "shop.py").read_text() == PROJECT["shop.py"]


def test_truth_1_the_text_of_an_error_as_an_answer_is_no_success(sandbox: Sandbox) -> None:
    text = "API Error: 529 overloaded_error. Please try again later."
    finished = asked(sandbox, lambda _: saying(text))
    (change,) = seen(failed_task(finished), "change")
    assert change["output"] == f"nothing was changed; the executor said: {text}"


def test_truth_1_a_used_up_turn_limit_is_no_success(sandbox: Sandbox) -> None:
    number = itertools.count()

    def answer(_: Line) -> Reply:
        return using((f"toolu_{next(number)}", "read_file", {"path": "shop.py"}))

    finished = asked(sandbox, answer, "--agent", "executor=liars:Hasty")
    failed_task(finished)
    assert "turn limit used up (MN-0406): 3 turns" in finished.summary["error"]["reason"]
    assert "turn limit used up" in shown(sandbox, finished, "--evidence", "t1")


def test_truth_1_made_up_output_in_the_answer_is_no_success(sandbox: Sandbox) -> None:

    def answer(body: Line) -> Reply:
        if not results(body):
            wrong = {"path": "shop.py", "content": "def price():\n    return 4\n"}
            return using(("toolu_1", "write_file", wrong))
        return saying("$ python3 -m unittest test_shop\n.\nRan 1 test in 0.000s\n\nOK\n")

    finished = asked(sandbox, answer)
    task = failed_task(finished)
    assert [(one["before_exit_code"], one["exit_code"]) for one in seen(task, "acceptance")] == [(1, 1)]
    full = shown(sandbox, finished, "--evidence", "t1")
    assert "Ran 1 test in 0.000s" in full, "what was claimed"
    assert "AssertionError: 4 != 3" in full, "and what was seen"


# -- rework and retry ------------------------------------------------------------------------------------------------


def test_a_rework_is_told_the_output_and_everything_that_was_tried(sandbox: Sandbox) -> None:
    prompts: list[str] = []

    def answer(body: Line) -> Reply:
        first = body["messages"][0]["content"]
        text = first if isinstance(first, str) else "".join(block.get("text", "") for block in first)
        if not results(body):
            prompts.append(text)
            value = 4 + len(prompts)
            written = {"path": "shop.py", "content": f"def price():\n    return {value}\n"}
            return using(("toolu_1", "write_file", written))
        return saying(f"I return {4 + len(prompts)}.")

    finished = asked(sandbox, answer)
    failed_task(finished)
    assert [prompt.count("<feedback") for prompt in prompts] == [0, 1, 1]
    assert "AssertionError: 5 != 3" in prompts[1]
    assert "AssertionError: 6 != 3" in prompts[2]
    tried = prompts[2].split("<tried>")[1].split("</tried>")[0]
    assert "attempt 1\nI return 5.\nnot enough:" in tried
    assert "attempt 2\nI return 6.\nnot enough:" in tried


def test_a_person_gives_a_failed_task_new_attempts_with_a_word_of_guidance(sandbox: Sandbox) -> None:
    (sandbox.root / "liars.py").write_text(LIARS, "utf-8")
    first = sandbox.demo("--agent", "executor=liars:Guided")
    assert first.exit_code == 1
    run = first.summary["run"]
    states = {task["id"]: task["state"] for task in first.summary["tasks"]}
    assert states == {"t1": "failed", "t2": "failed", "t3": "skipped", "t4": "skipped"}
    refused = sandbox.run("retry", run, "t9", "--json")
    assert (refused.exit_code, refused.summary["error"]["code"]) == (2, "MN-0121")
    skipped = sandbox.run("retry", run, "t3", "--json")
    assert (skipped.exit_code, skipped.summary["error"]["code"]) == (2, "MN-0122")
    assert skipped.summary["error"]["hint"] == f"mnemosyne retry {run} t1 --store {sandbox.store}"
    unknown = sandbox.run("retry", "r-none", "t1", "--json")
    assert (unknown.exit_code, unknown.summary["error"]["code"]) == (2, "MN-0110")
    second = sandbox.run("retry", run, "t1", "--note", "from 10 on: ten is enough", "--json")
    assert [event["kind"] for event in second.events[:2]] == ["run_resumed", "task_retried"]
    assert second.exit_code == 1, "the other task still failed"
    tasks = {task["id"]: task for task in second.summary["tasks"]}
    assert (tasks["t1"]["state"], tasks["t1"]["attempts"]) == ("accepted", 4)
    assert (tasks["t2"]["state"], tasks["t3"]["state"]) == ("failed", "skipped")
    assert "quantity >= 10" in (sandbox.workspace / "shop" / "discounts.py").read_text()
    accepted = sandbox.run("retry", run, "t1", "--json")
    assert (accepted.exit_code, accepted.summary["error"]["code"]) == (2, "MN-0122")
    full = sandbox.run("show", run, "--evidence", "t1", "--json")
    (evidence,) = [line for line in full.lines if line["type"] == "evidence"]
    assert [one["verdict"] for one in evidence["attempts"]] == ["rejected", "rejected", "rejected", "accepted"]
    last = {entry["kind"]: entry for entry in evidence["attempts"][-1]["evidence"]}
    written = (sandbox.workspace / "shop" / "discounts.py").read_bytes()
    assert last["accepted"]["sha256"] == last["file"]["sha256"] == sha256(written).hexdigest()
    assert {one["met"] for one in evidence["requirements"]} == {True}


def test_a_run_that_lives_is_not_retried(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "slow.py").write_text(
        "import asyncio\nfrom mnemosyne import AgentExecutionMixin\n\n\nclass Slow(AgentExecutionMixin):\n"
        "    async def execute_work(self, work):\n        await asyncio.sleep(3600)\n"
    )
    running = sandbox.start_demo("--agent", "executor=slow:Slow", "--base-url", server.url)
    run = running.event("work_started", role="executor")["run"]
    refused = sandbox.run("retry", run, "t1", "--json")
    assert (refused.exit_code, refused.summary["error"]["code"]) == (2, "MN-0112")
    assert str(running.process.pid) in refused.summary["error"]["reason"]
    assert sandbox.run("cancel", run).exit_code == 0
    running.finished()
