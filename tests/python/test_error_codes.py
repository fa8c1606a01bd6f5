"""One catalogue for both languages: each code that can be raised has a page, and each page a test that raises it.

Below are the tests for the codes that no other test meets on its way.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import mnemosyne
import pytest
from mnemosyne import errors
from mnemosyne.agents.agent_factory import create_agent
from mnemosyne.agents.base_agent import working_on
from mnemosyne.agents.context import AgentContext, LocalUpcalls
from mnemosyne.cli import explain, kill, main
from mnemosyne.cli.options import new_parser
from mnemosyne.config import settings
from mnemosyne.config.secrets import SecretsManager
from mnemosyne.errors import EnvironmentProblem, MnemosyneError, from_wire
from mnemosyne.guard import Guard
from mnemosyne.llm import client
from mnemosyne.llm.session import ClaudeSession, SessionOptions
from mnemosyne.models import Phase, WorkItem
from mnemosyne.workspace import Workspace

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "mnemosyne"
CODE = re.compile(r"MN-[0-9]{4}")
RUST_CODES = dict(
    re.findall(r'pub const (\w+): Code = "(MN-\d{4})"', (ROOT / "rust/core/src/error.rs").read_text(encoding="utf-8"))
)


def rust_files() -> Iterator[tuple[str, str]]:
    """The code and the tests of every Rust file."""
    for path in (ROOT / "rust").rglob("*.rs"):
        text = path.read_text(encoding="utf-8")
        whole = "conformance" in str(path) or "tests" in path.parts or path.name.endswith("tests.rs")
        code, _, tests = ("", "", text) if whole else text.partition("#[cfg(test)]")
        yield code, tests


def python_code() -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def raised_in_python() -> set[str]:
    """Codes in strings that are code; what a docstring mentions is not raised by it."""
    found: set[str] = set()
    for _, tree in python_code():
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.update(CODE.findall(node.value))
    return found


def all_tests() -> str:
    parts = [tests for _, tests in rust_files()]
    parts += [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    parts += [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.rs")]
    return "\n".join(parts)


def test_every_code_that_can_be_raised_has_a_page_and_every_page_a_code() -> None:
    rust = {RUST_CODES[name] for code, _ in rust_files() for name in re.findall(r"\bcodes::([A-Z_]+)", code)}
    assert explain.codes() == sorted(raised_in_python() | rust)


def test_rust_names_its_codes_in_one_file() -> None:
    elsewhere = [
        code for code, _ in rust_files() if CODE.search(re.sub(r"//.*", "", code)) and "pub mod codes" not in code
    ]
    assert elsewhere == []
    assert len(set(RUST_CODES.values())) == len(RUST_CODES)


def test_every_page_has_a_test_that_raises_its_code() -> None:
    tests = all_tests()
    names = {code: name for name, code in RUST_CODES.items()}
    unproved = [
        code
        for code in explain.codes()
        if code not in tests and not (code in names and re.search(rf"\bcodes::{names[code]}\b", tests))
    ]
    assert unproved == []


@pytest.mark.parametrize("code", explain.codes())
def test_a_page_says_what_happened_how_it_is_raised_and_what_to_do(code: str) -> None:
    lines = explain.page(code).splitlines()
    assert re.fullmatch(rf"# {code}: \S.{{8,80}}\S", lines[0])
    raised = re.fullmatch(r"Raised as `(\w+)`; exit code ([1234])\.", lines[2])
    assert raised is not None
    kind = getattr(errors, raised[1])
    assert issubclass(kind, MnemosyneError)
    assert mnemosyne.cli._exit_code(kind.__new__(kind)) == int(raised[2])
    assert "What to do:" in lines
    assert lines[-1].startswith(("- ", "  "))
    assert all(len(line) <= 120 for line in lines)
    assert len(lines) <= 20, "a page is short"


def test_a_page_names_the_class_that_python_raises() -> None:
    wrong = []
    for path, tree in python_code():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            codes = [
                key.value.value for key in node.keywords if key.arg == "code" and isinstance(key.value, ast.Constant)
            ]
            kind = getattr(errors, node.func.id, None)
            for code in codes:
                page = explain.page(str(code))
                named = getattr(errors, page.split("`")[1])
                if kind is not None and not issubclass(kind, named) and not issubclass(named, kind):
                    wrong.append(f"{path.name}: {code} is a {kind.__name__}, the page says {named.__name__}")
    assert wrong == []


def hints() -> set[str]:
    """Every text that recommends a command: hints of both languages, pages, documents, the advice of the box."""
    found = {explain.page(code) for code in explain.codes()}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        found.update(re.findall(r"^mnemosyne [^#\n]*", text, re.MULTILINE))
        found.update(re.findall(r"`(mnemosyne [^`\n]*)`", text))
    for code, _ in rust_files():
        found.update(re.findall(r'"([^"]*\bmnemosyne [^"]*)"', code))
    for _, tree in python_code():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
    return found


_NO_COMMANDS = ("was", "could", "is", "and", "offline")
"""Words that follow the name in a sentence about the program."""


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a verb and of the verbs below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    nested = {flag for action in below for verb in action.choices.values() for flag in _flags(verb)}
    return {*parser._option_string_actions, *nested}


def test_every_command_in_a_hint_exists_with_its_flags() -> None:
    verbs = next(action for action in new_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    flags = {name: {*new_parser()._option_string_actions, *_flags(verb)} for name, verb in verbs.items()}
    unknown = []
    for text in hints():
        for command in re.findall(
            r"(?:^|(?<=`)|(?<=[→:;,] )|(?<=then ))mnemosyne ((?:--?)?[a-z][\w-]*(?: [^`,;()]+)?)", text
        ):
            verb, _, rest = command.partition("`")[0].partition(" ")
            verb = verb.strip("`.:,")
            if verb.startswith("-") or verb in _NO_COMMANDS:
                continue
            given = re.findall(r"(?<![\w-])--[a-z-]*[a-z]", re.sub(r'"[^"]*(?:"|$)', "", rest))
            unknown += [f"{command}: {flag}" for flag in given if flag not in flags.get(verb, ())]
            unknown += [] if verb in verbs else [command]
    assert not unknown, unknown


def test_explain_shows_a_page_lists_all_and_refuses_what_is_no_code(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("MN-0203", "mn-0203", "0203"):
        assert main(["explain", given]) == 0
        assert capsys.readouterr().out == explain.page("MN-0203")
    assert main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == explain.codes()
    assert main(["explain", "MN-0203", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["type"], said["code"], said["text"]) == ("explanation", "MN-0203", explain.page("MN-0203"))
    for given in ("MN-9999", "../errors", "", "MN-0203/.."):
        assert main(["explain", given]) == 2
        assert capsys.readouterr().err.startswith("error[MN-0610]: ")


# -- codes that no other test meets --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    started = Guard.start()
    yield started
    await started.close()


@contextlib.contextmanager
def raises(code: str) -> Iterator[None]:
    with pytest.raises(MnemosyneError) as caught:
        yield
    assert caught.value.code == code
    assert caught.value.message


def test_the_interpreter_that_is_named_or_looked_for_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOSYNE_PYTHON", "/nowhere/python3")
    with raises("MN-0150"):
        settings.interpreter()
    monkeypatch.delenv("MNEMOSYNE_PYTHON")
    # As in a program that embeds Python, on a machine without another one.
    monkeypatch.setattr(sys, "executable", "/nowhere/program")
    monkeypatch.setattr(sys, "base_exec_prefix", "/nowhere")
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with raises("MN-0250"):
        settings.interpreter()


def test_a_key_file_that_is_not_there_or_open_to_others(tmp_path: Path) -> None:
    with raises("MN-0151"):
        SecretsManager(tmp_path / "nowhere", None, None).resolve()
    key = tmp_path / "key"
    key.write_text("a-key-of-mine")
    key.chmod(0o640)
    with raises("MN-0251"):
        SecretsManager(key, None, None).resolve()


def test_a_role_that_does_not_exist() -> None:
    with raises("MN-0153"):
        create_agent("manager")


def test_an_error_of_the_environment_without_a_code_of_its_own() -> None:
    assert EnvironmentProblem("no network").code == "MN-0200"
    assert type(from_wire({"kind": "environment", "message": "no network"})) is EnvironmentProblem


async def test_a_demo_that_ends_without_a_summary(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "not_python").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    (tmp_path / "not_python").chmod(0o755)
    ended = await guard.run([str(tmp_path / "not_python")], cwd=tmp_path, env={}, timeout=10.0, tag="t")
    problem = kill._no_summary(ended)
    assert (problem.code, problem.reason) == ("MN-0162", "broken")


def test_python_that_cannot_start_a_loop_is_an_error_of_the_environment() -> None:
    script = """
import asyncio, sys
sys.modules["mnemosyne.loop"] = None
import mnemosyne
from mnemosyne.errors import MnemosyneError
class Agent(mnemosyne.AgentExecutionMixin):
    async def execute_work(self, work_dict): return {"success": True}
async def main():
    try:
        await mnemosyne.ClaudeAgentBridge.spawn("executor", "some:Agent")
    except MnemosyneError as error:
        print(error.code)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "MN-0209", ended.stderr


def test_the_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with raises("MN-0210"):
        client._load()


async def test_the_command_of_a_run_outlives_the_process_that_drove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnemosyne.orchestra.GUARD_PATIENCE", 0.05)
    lock = tmp_path / "store.db.d" / "boots" / "b-1.guard"
    lock.parent.mkdir(parents=True)
    orchestra = mnemosyne.Orchestra(store=tmp_path / "store.db", model="demo")

    async def snapshot(_: str) -> object:
        return {"owner": {"boot": "b-1", "alive": False}}

    monkeypatch.setattr(orchestra, "_snapshot", snapshot)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with raises("MN-0255"):
            await orchestra._wait_until_gone("r-1", None)


async def test_a_helper_process_that_says_nothing(guard: Guard, tmp_path: Path) -> None:
    with raises("MN-0256"):
        await guard.spawn(["/bin/sh", "-c", "exit 1"], cwd=tmp_path, env={}, tag="t")


async def test_direct_work_has_no_store_and_no_project() -> None:
    with raises("MN-0311"):
        await LocalUpcalls().call({"op": "artifact"})
    item = WorkItem(id="i", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="optimizer")
    with working_on(AgentContext(item)):
        with raises("MN-0313"):
            await create_agent("optimizer").execute_work(item.model_dump(mode="json"))
        with raises("MN-0312"):
            await create_agent("executor").execute_work(item.model_dump(mode="json"))
    with raises("MN-0314"):
        await create_agent("executor").execute_work(item.model_dump(mode="json"))


async def test_the_tree_of_an_attempt_was_removed(tmp_path: Path) -> None:
    from mnemosyne.agents.stages import _give_tree

    services = SimpleNamespace(guard=lambda: None)
    item = WorkItem(id="i", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    with raises("MN-0253"):
        _give_tree(AgentContext(item), services, tmp_path / "gone")  # type: ignore[arg-type]


async def test_a_journal_of_another_form(tmp_path: Path) -> None:
    class Journal:
        item = WorkItem(id="i", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")

        async def journaled(self, *_: object, **__: object) -> object:
            return "not an object"

    session = ClaudeSession(client.Client({}), Journal(), SessionOptions("demo", "system"))  # type: ignore[arg-type]
    with raises("MN-0409"):
        await session.query("hello")


async def test_the_runs_own_repository_is_broken(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "a.txt").write_text("a")
    workspace = Workspace(workspace=tmp_path / "workspace", directory=tmp_path / "state", guard=guard, tag="t")
    await workspace.open()
    for head in (tmp_path / "state").rglob("HEAD"):
        head.write_text("nonsense")
    with raises("MN-0602"):
        await workspace.accepted()
