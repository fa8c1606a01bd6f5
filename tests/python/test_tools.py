"""The tools of an executor: confined to the tree, honest about what went wrong."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mnemosyne.guard import Guard
from mnemosyne.tools import Toolbox, ToolOutcome
from pydantic import JsonValue

SECRET = "the content of a file outside"


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    started = Guard.start(interpreter=sys.executable)
    yield started
    await started.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "a.py").write_text("first = 1\nsecond = 2\n")
    (tree / "README.md").write_text("read me\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(SECRET)
    (tree / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (tree / "folder").symlink_to(tmp_path / "outside")
    (tree / "dangling.txt").symlink_to(tmp_path / "outside" / "not-there.txt")
    (tree / "loop").symlink_to("loop")
    (tree / "src" / "up").symlink_to("../..")
    (tree / "inner.txt").symlink_to("src/a.py")
    return tree


@pytest.fixture
def tools(tree: Path, guard: Guard) -> Toolbox:
    return Toolbox(tree, guard, tag="item@1")


async def call(tools: Toolbox, name: str, **input: JsonValue) -> ToolOutcome:
    return await tools.run(name, input)


def everything(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() and not path.is_symlink() else ""
        for path in sorted(folder.rglob("*"))
    }


ESCAPES = [
    "../outside/secret.txt",
    "src/../../outside/secret.txt",
    "ABSOLUTE",
    "/etc/passwd",
    "link.txt",
    "folder/secret.txt",
    "folder",
    "src/up/outside/secret.txt",
    "..",
    "dangling.txt",
    "loop",
    "folder/new/deep.txt",
]
INPUTS: dict[str, dict[str, JsonValue]] = {
    "read_file": {},
    "write_file": {"content": "overwritten"},
    "edit_file": {"old": "content", "new": "overwritten"},
    "list_files": {},
    "search": {"pattern": "content"},
}


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("path", ESCAPES)
async def test_a_path_outside_the_tree_is_refused_and_nothing_happens(
    tools: Toolbox, tmp_path: Path, name: str, path: str
) -> None:
    before = everything(tmp_path)
    actual = str(tmp_path / "outside" / "secret.txt") if path == "ABSOLUTE" else path
    outcome = await tools.run(name, {"path": actual, **INPUTS[name]})
    assert outcome.is_error
    assert "MN-0601" in outcome.content
    assert SECRET not in outcome.content
    assert everything(tmp_path) == before


async def test_listing_and_searching_do_not_follow_links(tools: Toolbox) -> None:
    assert SECRET not in (await call(tools, "search", pattern="content")).content
    listing = (await call(tools, "list_files")).content.split("\n")
    assert {"src/a.py", "README.md", "folder", "link.txt"} <= set(listing)
    assert not [name for name in listing if name.startswith(("folder/", "src/up/"))]


async def test_links_and_absolute_paths_inside_the_tree_work(tools: Toolbox, tree: Path) -> None:
    assert (await call(tools, "read_file", path="inner.txt")).content == "first = 1\nsecond = 2\n"
    assert (await call(tools, "read_file", path=str(tree / "README.md"))).content == "read me\n"
    await call(tools, "write_file", path="inner.txt", content="through the link")
    assert (tree / "inner.txt").is_symlink()
    assert (tree / "src" / "a.py").read_text() == "through the link"


async def test_a_file_is_written_whole_with_its_folders_and_keeps_its_mode(tools: Toolbox, tree: Path) -> None:
    outcome = await call(tools, "write_file", path="new/deep/ü.txt", content="ü\r\n")
    assert outcome == ToolOutcome("created new/deep/ü.txt (4 bytes)", False)
    assert (tree / "new/deep/ü.txt").read_bytes() == "ü\r\n".encode()
    (tree / "README.md").chmod(0o755)
    assert (await call(tools, "write_file", path="README.md", content="x")).content.startswith("replaced README.md")
    assert (tree / "README.md").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(tree / "new/deep")) == ["ü.txt"]


async def test_a_write_that_was_killed_halfway_leaves_a_name_that_no_commit_takes(
    tools: Toolbox, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def killed(source: Path, target: Path) -> None:
        seen.append(Path(source).name)
        raise KeyboardInterrupt

    monkeypatch.setattr("mnemosyne.tools.toolbox.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        await tools.run("write_file", {"path": "new.txt", "content": "x"})
    assert fnmatch.fnmatch(seen[0], ".mnemosyne-*.tmp")


async def test_an_edit_replaces_the_one_place_and_keeps_line_ends(tools: Toolbox, tree: Path) -> None:
    (tree / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    assert await call(tools, "edit_file", path="dos.txt", old="two", new="2") == ToolOutcome("edited dos.txt", False)
    assert (tree / "dos.txt").read_bytes() == b"one\r\n2\r\n"


@pytest.mark.parametrize(
    ("old", "reason"), [("third", "not found"), (" = ", "2 times"), ("", "empty"), ("aa", "2 times")]
)
async def test_an_edit_that_does_not_match_exactly_once_changes_nothing(
    tools: Toolbox, tree: Path, old: str, reason: str
) -> None:
    (tree / "src" / "a.py").write_text("first = 1\nsecond = 2\naaa\n")
    outcome = await call(tools, "edit_file", path="src/a.py", old=old, new="x")
    assert outcome.is_error
    assert reason in outcome.content
    assert (tree / "src" / "a.py").read_text() == "first = 1\nsecond = 2\naaa\n"


async def test_what_cannot_be_read_is_said_so(tools: Toolbox, tree: Path) -> None:
    (tree / "binary").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tree / "pipe")
    for path, reason in [("missing", "does not exist"), ("src", "is a folder"), ("binary", "not a text file")]:
        outcome = await call(tools, "read_file", path=path)
        assert outcome.is_error
        assert reason in outcome.content
    outcome = await asyncio.wait_for(call(tools, "read_file", path="pipe"), 5)
    assert outcome.is_error
    assert "not a regular file" in outcome.content
    assert (await call(tools, "write_file", path="src", content="x")).is_error
    assert (await call(tools, "write_file", path="README.md/x", content="x")).is_error
    assert (await call(tools, "list_files", path="README.md")).is_error


async def test_long_content_is_cut_and_says_so(tools: Toolbox, tree: Path) -> None:
    (tree / "long.txt").write_text("x" * 100_000)
    outcome = await call(tools, "read_file", path="long.txt")
    assert outcome.content.endswith("[40000 characters left out]")
    outcome = await call(tools, "run_command", command="yes | head -c 1000000; echo end")
    assert len(outcome.content) < 40_000
    assert "bytes left out" in outcome.content
    assert outcome.content.endswith("end")


async def test_search_gives_path_line_and_text(tools: Toolbox, tree: Path) -> None:
    (tree / "binary").write_bytes(b"second\0")
    assert await call(tools, "search", pattern=r"^sec\w+ = \d") == ToolOutcome("src/a.py:2:second = 2", False)
    assert await call(tools, "search", pattern="second", path="README.md") == ToolOutcome("[no matches]", False)
    assert (await call(tools, "search", pattern="first", path="src/a.py")).content == "src/a.py:1:first = 1"
    bad = await call(tools, "search", pattern="(")
    assert bad.is_error
    assert "not a regular expression" in bad.content
    (tree / "many.txt").write_text("hit\n" * 500)
    many = (await call(tools, "search", pattern="hit")).content
    assert many.count("many.txt:") == 200
    assert "more than 200 matches" in many


async def test_a_pattern_that_backtracks_for_ever_does_not_hold_the_loop(
    tools: Toolbox, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnemosyne.tools.toolbox._SEARCH_SECONDS", 0.3)
    (tree / "evil.txt").write_text("a" * 60 + "!")
    outcome = await asyncio.wait_for(call(tools, "search", pattern="(a+)+$", path="evil.txt"), 5)
    assert outcome.is_error
    assert "time limit" in outcome.content


async def test_a_command_runs_in_the_tree_and_gives_its_exit_code(tools: Toolbox, tree: Path) -> None:
    outcome = await call(tools, "run_command", command="echo out; echo err >&2; pwd")
    assert outcome == ToolOutcome(f"exit code: 0\nout\nerr\n{tree}", False)
    assert await call(tools, "run_command", command="exit 3") == ToolOutcome("exit code: 3", True)
    assert (await call(tools, "run_command", command="git log")).is_error


async def test_secret_1_a_command_does_not_see_our_keys(tools: Toolbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hush-hush")
    assert "hush" not in (await call(tools, "run_command", command="env")).content


async def test_a_command_that_takes_too_long_is_ended(tools: Toolbox) -> None:
    outcome = await call(tools, "run_command", command="echo begun; sleep 60", timeout_seconds=0.3)
    assert outcome.is_error
    assert "time limit of 0.3 s" in outcome.content
    assert "begun" in outcome.content
    for seconds in (0, -1, 601):
        assert (await call(tools, "run_command", command="true", timeout_seconds=seconds)).is_error


async def test_commands_carry_the_tag_of_the_claim(tools: Toolbox, guard: Guard, tree: Path) -> None:
    command = "mkfifo pipe; touch begun; exec cat pipe"
    task = asyncio.create_task(call(tools, "run_command", command=command))
    seen = "while ! test -e begun; do sleep 0.01; done"
    assert (await guard.run(["/bin/sh", "-c", seen], cwd=tree, timeout=10)).exit_code == 0
    await guard.kill("item@1")
    assert await task == ToolOutcome("ended from outside", True)


@pytest.mark.parametrize(
    ("name", "input", "reason"),
    [
        ("no_such_tool", {}, "no tool 'no_such_tool'"),
        ("read_file", {}, "needs path"),
        ("read_file", {"path": 3}, "must be a string"),
        ("read_file", {"path": ""}, "must not be empty"),
        ("read_file", {"path": "a\0b"}, "zero byte"),
        ("read_file", {"path": "x" * 5000}, "too long"),
        ("write_file", {"path": "x", "content": None}, "must be a string"),
        ("edit_file", {"path": "README.md", "old": "read"}, "needs new"),
        ("run_command", {"command": "true", "cwd": "/"}, "no input cwd"),
        ("run_command", {"command": "true", "timeout_seconds": True}, "must be a number"),
    ],
)
async def test_bad_input_goes_back_to_the_model(
    tools: Toolbox, name: str, input: dict[str, JsonValue], reason: str
) -> None:
    outcome = await tools.run(name, input)
    assert outcome.is_error
    assert reason in outcome.content


def test_definitions_are_what_the_api_wants(tools: Toolbox) -> None:
    definitions = tools.definitions()
    assert [tool["name"] for tool in definitions] == [
        *("read_file", "write_file", "edit_file", "list_files", "search", "run_command"),
    ]
    for tool in definitions:
        assert set(tool) == {"name", "description", "input_schema"}
        schema = tool["input_schema"]
        assert isinstance(schema, dict)
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False


async def test_once_1_an_interrupted_write_is_described_and_not_done(tools: Toolbox, tree: Path) -> None:
    write: dict[str, JsonValue] = {"path": "README.md", "content": "new\n"}
    text = await tools.describe_interrupted("write_file", write)
    digest = hashlib.sha256(b"read me\n").hexdigest()
    assert "interrupted" in text
    assert f"README.md: sha256 {digest}, 8 bytes" in text
    assert "not what the call" in text
    assert (tree / "README.md").read_text() == "read me\n"
    await tools.run("write_file", write)
    assert "This is what the call was to write." in await tools.describe_interrupted("write_file", write)
    edit: dict[str, JsonValue] = {"path": "gone.txt", "old": "a", "new": "b"}
    assert "gone.txt: does not exist" in await tools.describe_interrupted("edit_file", edit)


async def test_once_1_an_interrupted_command_is_described_and_not_run(tools: Toolbox, tree: Path) -> None:
    text = await tools.describe_interrupted("run_command", {"command": "touch ran"})
    assert "interrupted" in text
    assert "src/a.py: sha256" in text
    assert "link.txt: a link to" in text
    assert not (tree / "ran").exists()


async def test_an_interrupted_call_of_anything_else_is_described_too(tools: Toolbox) -> None:
    assert "call it again" in await tools.describe_interrupted("search", {"pattern": "x"})
    assert "MN-0601" in await tools.describe_interrupted("write_file", {"path": "link.txt", "content": SECRET})
    assert "interrupted" in await tools.describe_interrupted("edit_file", {})
