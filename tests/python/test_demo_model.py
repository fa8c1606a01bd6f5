"""The demo model is a pure function of the request, knows nothing of the sample, and learns only from failing tests."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from mnemosyne.agents import prompts
from mnemosyne.agents.orchestrator import FullSpec, Spec
from mnemosyne.agents.reviewer import Judgement
from mnemosyne.demo import rules, wire
from mnemosyne.demo.model import ABILITIES, answer
from mnemosyne.demo.sample import DEMO_PROMPT, copy_sample, free_directory, is_sample
from mnemosyne.errors import InvalidInput
from mnemosyne.guard import Guard
from mnemosyne.models import Plan, PlanTask
from mnemosyne.tools.toolbox import Toolbox
from pydantic import BaseModel, JsonValue

Body = dict[str, object]
Answer = TypeVar("Answer", bound=BaseModel)

EXECUTOR_TOOLS = [
    {"name": name, "description": name, "input_schema": {"type": "object", "properties": {}}}
    for name in ("read_file", "write_file", "edit_file", "list_files", "search", "run_command")
]


# --- a tiny harness: the prompts of the agents, tools on a real folder, tests for real ------------------------------


def overview(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return "\n".join(prompts.file_section(str(path.relative_to(folder)), path.read_text()) for path in files)


def asked(prompt: str, folder: Path) -> str:
    return prompts.prompt_to_spec({"prompt": prompt, "project": overview(folder)})


def structured(title: str, prompt: str) -> Body:
    schema = {"title": title, "type": "object", "properties": {}, "additionalProperties": False}
    return {
        "model": "demo",
        "max_tokens": 16_000,
        "system": prompts.ORCHESTRATOR,
        "messages": [{"role": "user", "content": prompt}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }


def ask(body: Body) -> wire.Reply:
    """Ask as over the wire: the request is checked, must not change, and always gets the same reply."""
    before = copy.deepcopy(body)
    reply = answer(wire.check_request(body, "2026-10-21"))
    assert answer(copy.deepcopy(body)) == reply
    assert body == before
    return reply


def ask_for(model: type[Answer], prompt: str) -> Answer:
    reply = ask(structured(model.__name__, prompt))
    assert reply.stop_reason == "end_turn", reply
    return model.model_validate_json(str(reply.content[-1]["text"]))


def run(folder: Path, command: str) -> tuple[int, str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def use_tool(folder: Path, name: str, given: dict[str, str]) -> tuple[str, bool]:
    file = folder / given.get("path", ".")
    if name == "list_files":
        paths = sorted(path for path in file.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return "\n".join(str(path.relative_to(folder)) for path in paths), False
    if name == "run_command":
        code, output = run(folder, given["command"])
        return f"exit code {code}\n{output}", code != 0
    if name == "write_file":
        file.write_text(given["content"])
        return "written", False
    text = file.read_text()
    if name == "read_file":
        return text, False
    assert name == "edit_file"
    assert text.count(given["old"]) == 1
    file.write_text(text.replace(given["old"], given["new"]))
    return "edited", False


def commands(task: PlanTask) -> list[str]:
    return [entry.command for entry in task.acceptance]


def execution(folder: Path, task: PlanTask, feedback: str | None) -> Body:
    context: dict[str, JsonValue] = {
        "pack": overview(folder),
        "requirements": [],
        "acceptance": [{"command": command} for command in commands(task)],
        "feedback": feedback,
    }
    prompt = prompts.execute(
        context,
        task=task.id,
        title=task.title,
        description=task.description,
        scope=task.file_scope,
        attempt=1 if feedback is None else 2,
    )
    return {
        "model": "demo",
        "max_tokens": 16_000,
        "system": prompts.EXECUTOR,
        "messages": [{"role": "user", "content": prompt}],
        "tools": EXECUTOR_TOOLS,
    }


def execute(
    folder: Path,
    task: PlanTask,
    feedback: str | None = None,
    tool: Callable[[Path, str, dict[str, str]], tuple[str, bool]] = use_tool,
) -> tuple[str, list[str]]:
    """Let the model work until it ends its turn; returns its last words and the tools it used."""
    body, used = execution(folder, task, feedback), list[str]()
    messages = body["messages"]
    assert isinstance(messages, list)
    for _ in range(20):
        reply = ask(body)
        if reply.stop_reason != "tool_use":
            assert reply.stop_reason == "end_turn"
            return str(reply.content[-1]["text"]), used
        messages.append({"role": "assistant", "content": list(reply.content)})
        results = []
        for block in reply.content:
            if block["type"] == "tool_use":
                content, is_error = tool(folder, str(block["name"]), block["input"])  # type: ignore[arg-type]
                used.append(str(block["name"]))
                results.append(
                    {"type": "tool_result", "tool_use_id": block["id"], "content": content, "is_error": is_error}
                )
        messages.append({"role": "user", "content": results})
    raise AssertionError("the model does not come to an end")


def make_plan(folder: Path, prompt: str = DEMO_PROMPT) -> Plan:
    context: dict[str, JsonValue] = {"prompt": prompt, "project": overview(folder)}
    spec = ask_for(Spec, prompts.prompt_to_spec(context))
    context["spec"] = spec.model_dump(mode="json")
    full_spec = ask_for(FullSpec, prompts.spec_to_full_spec(context))
    context["full_spec"] = full_spec.model_dump(mode="json")
    due = {requirement.id for requirement in spec.requirements}
    assert due == {number for component in full_spec.components for number in component.requirements}
    assert due == {entry.requirement for entry in full_spec.test_plan}
    return ask_for(Plan, prompts.full_spec_to_plan(context))


def finish(folder: Path, *, with_feedback: bool = True) -> dict[str, int]:
    """Walk the whole way, three attempts per task at most; returns the attempts of the tasks that were accepted."""
    attempts: dict[str, int] = {}
    for task in make_plan(folder).tasks:
        if not all(dependency in attempts for dependency in task.depends_on):
            continue
        feedback = None
        for attempt in (1, 2, 3):
            execute(folder, task, feedback)
            red = [output for code, output in (run(folder, command) for command in commands(task)) if code]
            if not red:
                attempts[task.id] = attempt
                break
            feedback = "\n".join(red) if with_feedback else None
    return attempts


def all_tests_pass(folder: Path) -> bool:
    return run(folder, "python3 -m unittest discover")[0] == 0


def rename(folder: Path, changes: Iterable[tuple[str, str]]) -> None:
    """Replace whole words in every file and path of the project."""
    for old, new in changes:
        end = r"(?![\w.]*\d)" if old[0].isdigit() else r"(?!\w)"
        word = re.compile(rf"(?<!\w){re.escape(old)}{end}")
        for path in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True):
            text = path.read_text()
            path.write_text(word.sub(new, text))
            name = re.sub(rf"(?<![a-z]){re.escape(old)}(?![a-z])", new, str(path.relative_to(folder)))
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    copy_sample(folder)
    return folder


# --- the main way -----------------------------------------------------------------------------------------------


def test_the_sample_is_red_at_first_in_every_test_module(sample: Path) -> None:
    for task in make_plan(sample).tasks:
        for command in commands(task):
            assert run(sample, command)[0] != 0, command


def test_the_plan_has_two_parallel_tasks_a_join_and_one_after(sample: Path) -> None:
    tasks = {task.file_scope[0]: task for task in make_plan(sample).tasks}
    first, second = tasks["shop/discounts.py"], tasks["shop/pricing.py"]
    join, last = tasks["shop/invoice.py"], tasks["shop/report.py"]
    assert first.depends_on == second.depends_on == []
    assert sorted(join.depends_on) == sorted([first.id, second.id])
    assert last.depends_on == [join.id]
    assert commands(join) == ["python3 -m unittest tests.test_invoice"]
    assert len(tasks) == 4


def test_a_whole_run_finishes_with_one_rework_caused_by_a_red_test(sample: Path) -> None:
    attempts = finish(sample)
    assert sorted(attempts.values()) == [1, 1, 1, 2]
    assert all_tests_pass(sample)


def test_without_the_feedback_in_the_prompt_the_bug_comes_back_and_the_task_fails(sample: Path) -> None:
    attempts = finish(sample, with_feedback=False)
    assert len(attempts) == 1, "of two independent tasks one is accepted, what needs the other is skipped"
    assert not all_tests_pass(sample)


def test_feedback_without_the_failing_assertion_does_not_help(sample: Path) -> None:
    task = make_plan(sample).tasks[0]
    execute(sample, task)
    execute(sample, task, "1 test failed, please look again")
    assert run(sample, commands(task)[0])[0] != 0


def test_feedback_about_another_function_does_not_help(sample: Path) -> None:
    task = make_plan(sample).tasks[0]
    execute(sample, task)
    code, output = run(sample, commands(task)[0])
    assert code != 0
    execute(sample, task, output.replace("discounted", "something_else"))
    assert run(sample, commands(task)[0])[0] != 0


def test_the_rework_also_succeeds_from_a_fresh_tree(sample: Path) -> None:
    task = make_plan(sample).tasks[0]
    source = sample / task.file_scope[0]
    unfinished = source.read_text()
    execute(sample, task)
    _, output = run(sample, commands(task)[0])
    source.write_text(unfinished)
    execute(sample, task, output)
    assert run(sample, commands(task)[0])[0] == 0


def test_the_executor_looks_before_it_writes_and_checks_before_it_reports(sample: Path) -> None:
    words, used = execute(sample, make_plan(sample).tasks[0])
    assert used == ["list_files", "read_file", "edit_file", "run_command"]
    assert "shop/discounts.py" in words


async def test_the_real_tools_lead_to_the_same_file(sample: Path, tmp_path: Path) -> None:
    copy_sample(tmp_path / "other")
    task = make_plan(sample).tasks[1]
    execute(sample, task)
    guard = Guard.start(lock=tmp_path / "lock")
    loop = asyncio.get_running_loop()

    def tool(folder: Path, name: str, given: dict[str, str]) -> tuple[str, bool]:
        toolbox = Toolbox(folder, guard, tag="test")
        call = asyncio.run_coroutine_threadsafe(toolbox.run(name, dict(given)), loop)
        outcome = call.result(timeout=30)
        return outcome.content, outcome.is_error

    try:
        words, used = await asyncio.to_thread(execute, tmp_path / "other", task, None, tool)
    finally:
        await guard.close()
    assert "Green" in words
    assert used == ["list_files", "read_file", "write_file", "run_command"]
    path = task.file_scope[0]
    assert (tmp_path / "other" / path).read_text() == (sample / path).read_text()


def test_tools_of_another_client_are_called_by_the_names_that_it_gave_them(sample: Path) -> None:
    body = execution(sample, make_plan(sample).tasks[0], None)
    body["tools"] = [{**tool, "name": f"mcp__files__{tool['name']}"} for tool in EXECUTOR_TOOLS]
    first = ask(body)
    names = [str(block["name"]) for block in first.content if block["type"] == "tool_use"]
    assert names[0] == "mcp__files__list_files"
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "cannot be read", "is_error": True}
        for block in first.content
        if block["type"] == "tool_use"
    ]
    turns = [{"role": "assistant", "content": list(first.content)}, {"role": "user", "content": results}]
    again = ask({**body, "messages": [*body["messages"], *turns]})  # type: ignore[misc]
    asked = [block["name"] for block in again.content if block["type"] == "tool_use"]
    assert asked == ["mcp__files__read_file"], "it knows its own call again, and tries once more"


def test_a_red_check_is_reported_as_red(sample: Path) -> None:
    plan = make_plan(sample)
    words, _ = execute(sample, plan.tasks[2])
    assert "still red" in words


def test_an_interrupted_command_is_run_again_and_an_interrupted_edit_is_looked_at_first(sample: Path) -> None:
    interrupted: set[str] = set()

    def tool(folder: Path, name: str, given: dict[str, str]) -> tuple[str, bool]:
        if name in ("edit_file", "run_command") and name not in interrupted:
            interrupted.add(name)
            if name == "edit_file":
                use_tool(folder, name, given)
            return "The call was interrupted; the file is now sha256 0123, 12 bytes.", True
        return use_tool(folder, name, given)

    words, used = execute(sample, make_plan(sample).tasks[0], tool=tool)
    assert used == ["list_files", "read_file", "edit_file", "read_file", "run_command", "run_command"]
    assert "still red" not in words


def test_a_file_that_can_never_be_read_ends_in_an_honest_report(sample: Path) -> None:
    words, _ = execute(sample, make_plan(sample).tasks[0], tool=lambda folder, name, given: ("no such file", True))
    assert "could not finish" in words


# --- nothing of the sample is known to the model ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        [("discounted", "reduced"), ("line_price", "cost"), ("receipt", "ticket"), ("with_tax", "gross")],
        [("shop", "bakery"), ("discounts", "rebates"), ("pricing", "tariff"), ("invoice", "bill"), ("report", "till")],
        [("quantity", "pieces"), ("amount", "euros"), ("basket", "order"), ("unit_price", "each"), ("rate", "levy")],
        [
            ("10", "12"),
            ("9", "11"),
            ("50", "70"),
            ("51", "71"),
            ("100.0", "300.0"),
            ("90.0", "264.0"),
            ("80.0", "240.0"),
        ],
        [("from 10 on", "up to 10"), ("more than 50", "more than 50")],
    ],
    ids=["functions", "modules", "parameters", "values", "another ambiguous phrase"],
)
def test_a_renamed_project_is_finished_as_well(sample: Path, changes: list[tuple[str, str]]) -> None:
    if changes[0][0] == "10":
        # 12 percent of 300 is 36: the tests below still say what the rules say.
        rename(sample, changes)
        invoice = sample / "tests/test_invoice.py"
        invoice.write_text(invoice.read_text().replace("27.0", "26.4").replace("56.4", "55.68"))
        report = sample / "tests/test_report.py"
        report.write_text(report.read_text().replace("56.40", "55.68"))
    elif changes[0][0] == "from 10 on":
        write_few_pieces_project(sample)
    else:
        rename(sample, changes)
    attempts = finish(sample)
    assert max(attempts.values()) == 2
    assert all_tests_pass(sample)


def write_few_pieces_project(folder: Path) -> None:
    """Turn the discount into a surcharge for few pieces, which is said with the other ambiguous phrase."""
    source = folder / "shop/discounts.py"
    text = source.read_text()
    start, end = text.index("    - for a quantity of more"), text.index("    - otherwise")
    source.write_text(text[:start] + "    - for a quantity up to 10: amount plus 10 percent\n" + text[end:])
    (folder / "tests/test_discounts.py").write_text(
        "import unittest\n\nfrom shop.discounts import discounted\n\n\nclass SurchargeTest(unittest.TestCase):\n"
        "    def test_ten_are_few(self) -> None:\n        self.assertEqual(discounted(100.0, 10), 110.0)\n\n"
        "    def test_eleven_are_not(self) -> None:\n        self.assertEqual(discounted(100.0, 11), 100.0)\n"
    )
    rename(folder, [("12.0", "13.2"), ("27.0", "30.0"), ("56.4", "62.4"), ("56.40", "62.40")])
    report = folder / "tests/test_report.py"
    report.write_text(report.read_text().replace("56.40", "62.40"))


def test_the_model_holds_no_name_of_the_sample() -> None:
    package = Path(rules.__file__).parent
    words = {
        word
        for path in (package / "sample").rglob("*.py")
        for word in re.findall(r"def ([a-z_]+)|/(?:test_)?([a-z]+)\.py", f"{path.read_text()}\n{path}")
        for word in word
        if word
    } - {"__init__"}
    assert {"discounted", "invoice", "receipt"} <= words
    for path in package.glob("*.py"):
        found = set(re.findall(r"\w+", path.read_text())) & words
        assert not found, (path.name, found)


def test_what_has_more_than_one_unfinished_test_or_module_import_style_is_planned_as_well(tmp_path: Path) -> None:
    files = {
        "kitchen/__init__.py": "",
        "kitchen/oven.py": 'def heat(x):\n    """Rule: x times 2."""\n    raise NotImplementedError("soon")\n',
        "kitchen/cook.py": "from . import oven\nfrom .oven import heat\n\n\ndef meal(x):\n"
        '    """Rule: heat of x."""\n    raise NotImplementedError\n',
        "test_oven.py": "import unittest\nimport kitchen.oven\n\n\nclass T(unittest.TestCase):\n"
        "    def test(self):\n        self.assertEqual(kitchen.oven.heat(2), 4)\n",
        "test_cook.py": "import unittest\nfrom kitchen import cook, oven\n\n\nclass T(unittest.TestCase):\n"
        "    def test(self):\n        self.assertEqual(cook.meal(3), 6)\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [(task.file_scope, task.depends_on, commands(task)) for task in make_plan(tmp_path).tasks] == [
        (["kitchen/oven.py"], [], ["python3 -m unittest test_oven"]),
        (["kitchen/cook.py"], ["t1"], ["python3 -m unittest test_cook"]),
    ]
    finish(tmp_path)
    assert all_tests_pass(tmp_path)


# --- judgement ----------------------------------------------------------------------------------------------------

DIFF = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2"


@pytest.mark.parametrize(
    ("exit_code", "diff", "met"),
    [(0, DIFF, True), (1, DIFF, False), (None, DIFF, False), (0, "", False)],
    ids=["green", "red", "killed", "empty diff"],
)
def test_the_judgement_follows_the_evidence_and_the_diff(exit_code: int | None, diff: str, met: bool) -> None:
    evidence: list[JsonValue] = [
        {"kind": "acceptance", "command": "check", "exit_code": exit_code, "before_exit_code": 1},
        {"kind": "scope", "command": None, "exit_code": None},
    ]
    judgement = judge({"requirements": [{"id": "R1"}, {"id": "R2"}], "diff": diff, "evidence": evidence})
    assert judgement.passed is met
    assert [(entry.id, entry.met) for entry in judgement.requirements] == [("R1", met), ("R2", met)]
    assert bool(judgement.feedback) is not met


def test_a_judgement_without_any_command_is_no_success() -> None:
    assert not judge({"requirements": [], "diff": DIFF, "evidence": []}).passed


def judge(context: dict[str, JsonValue]) -> Judgement:
    return ask_for(Judgement, prompts.review(context, task="t1", title="Finish it", description=""))


# --- refusals -----------------------------------------------------------------------------------------------------


def refusal(body: Body) -> str:
    reply = ask(body)
    assert reply.stop_reason == "refusal"
    text = str(reply.content[-1]["text"])
    assert text.startswith(ABILITIES)
    return text


@pytest.mark.parametrize(
    "prompt",
    [
        "Write a web shop in Rust.",
        "What is the capital of France?",
        "Delete the tests.",
        "Finish the unfinished functions and add a website.",
        "Translate the docstrings of all functions.",
    ],
)
def test_another_prompt_is_refused_in_words_that_say_what_is_possible(sample: Path, prompt: str) -> None:
    refusal(structured("Spec", asked(prompt, sample)))


@pytest.mark.parametrize(
    "prompt", ["Complete every function that still raises NotImplementedError", "make the tests green", DEMO_PROMPT]
)
def test_a_paraphrase_is_understood(sample: Path, prompt: str) -> None:
    assert len(make_plan(sample, prompt).tasks) == 4


def test_a_project_without_unfinished_functions_is_refused(sample: Path) -> None:
    finish(sample)
    text = refusal(structured("Spec", asked(DEMO_PROMPT, sample)))
    assert "no unfinished function" in text


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        ("shop/pricing.py", "Rule: unit_price times quantity", "Rule: guess the price", "cannot read the rule"),
        ("tests/test_report.py", "from shop.report import receipt", "receipt = str", "no test imports"),
        ("shop/pricing.py", '"""What things', 'import shop.report\n"""What things', "circle"),
        ("shop/pricing.py", "def line_price", "def def line_price", "not valid Python"),
    ],
)
def test_a_project_that_cannot_be_finished_is_refused_with_the_reason(
    sample: Path, path: str, old: str, new: str, reason: str
) -> None:
    file = sample / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    body = structured("Plan", asked(DEMO_PROMPT, sample))
    assert reason in refusal(body)


def test_free_talk_an_unknown_schema_and_unknown_tools_are_refused(sample: Path) -> None:
    talk: Body = {"model": "demo", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
    refusal(talk)
    refusal(structured("Poem", asked(DEMO_PROMPT, sample)))
    work = execution(sample, make_plan(sample).tasks[0], None)
    refusal(work | {"tools": [EXECUTOR_TOOLS[0]]})


# --- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("a plus b times c", "a + b * c"),
        ("a minus b divided by 2, rounded to 1 digit", "round(a - b / 2, 1)"),
        ("a plus b minus 10 percent", "(a + b) * (100 - 10) / 100"),
        ("f of a, b and c", "f(a, b, c)"),
        ("the sum of f of a and b for every a and b in c", "sum(f(a, b) for a, b in c)"),
        ('"{a}!" for every a in b', '[f"{a}!" for a in b]'),
        ('rows and then "end", one per line', '"\\n".join([*rows, f"end"])'),
    ],
)
def test_words_become_expressions(words: str, code: str) -> None:
    assert rules.parse(f"Rule: {words}.").cases[0].value == code


@pytest.mark.parametrize("words", ["", "a plus", "a b", '"{a.b}"', '"{a!r}"', '"{f(1)}"', "f of", "__import__('os')"])
def test_other_words_are_not_guessed_at(words: str) -> None:
    with pytest.raises(rules.UnreadableError):
        rules.parse(f"Rule: {words}")


def test_the_evaluator_runs_arithmetic_and_nothing_else() -> None:
    assert rules.evaluate("def f(a):\n    if a > 2:\n        return a * 2\n    return round(a / 3, 1)", [1]) == 0.3
    for body in ("return open('x')", "return a.b", "return [a for a in b]", "return a ** 9", "pass", "return f(a)"):
        with pytest.raises(rules.UnreadableError):
            rules.evaluate(f"def f(a):\n    {body}", [1])


def test_an_example_is_read_from_what_unittest_prints() -> None:
    output = (
        'Traceback (most recent call last):\n  File "x.py", line 3, in test\n'
        "    self.assertEqual(90.0, area(100.0, -1), 'why')\n    ^^^^^^^^^^^^\nAssertionError: 90.0 != 100.0 : why\n"
    )
    assert rules.examples(output) == [rules.Example("area", (100.0, -1), 100.0, 90.0)]
    assert rules.examples("AssertionError: 1 != 2") == []
    assert rules.examples(output.replace("-1", "variable")) == []


# --- the sample's folder ------------------------------------------------------------------------------------------


def test_the_next_free_directory_is_numbered_and_nothing_is_overwritten(tmp_path: Path) -> None:
    assert free_directory(tmp_path) == tmp_path / "mnemosyne-demo"
    copy_sample(tmp_path / "mnemosyne-demo")
    assert free_directory(tmp_path) == tmp_path / "mnemosyne-demo-2"
    (tmp_path / "mnemosyne-demo-2").write_text("a file of the user")
    assert free_directory(tmp_path) == tmp_path / "mnemosyne-demo-3"


def test_a_finished_sample_is_still_a_sample_and_is_not_reset(sample: Path) -> None:
    finish(sample)
    assert is_sample(sample)
    assert copy_sample(sample) == []
    assert all_tests_pass(sample)


def test_a_folder_with_anything_foreign_is_no_sample_and_stays_untouched(sample: Path) -> None:
    (sample / "shop/report.py").unlink()
    (sample / "notes.txt").write_text("mine")
    assert not is_sample(sample)
    with pytest.raises(InvalidInput):
        copy_sample(sample)
    assert not (sample / "shop/report.py").exists()


@pytest.mark.parametrize("path", ["README.md", "tests/test_report.py", "shop/pricing.py"])
def test_a_sample_file_with_foreign_content_makes_the_folder_foreign(sample: Path, path: str) -> None:
    file = sample / path
    file.write_text(file.read_text().replace("a", "o"))
    assert not is_sample(sample)


def test_a_file_or_nothing_is_no_sample_and_an_empty_folder_holds_nothing_foreign(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert not is_sample(tmp_path / "file")
    assert not is_sample(tmp_path / "absent")
    assert is_sample(tmp_path / "empty")
