"""Trees, gates and acceptance, with real git and real commands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from mnemosyne.config.settings import state_directory
from mnemosyne.errors import EnvironmentProblem, InvalidInput
from mnemosyne.guard import Guard
from mnemosyne.workspace import FileChange, Workspace, check_workspace, outside_scope
from project_files import FILES, FIXED, Files, change, snapshot, write
from pydantic import JsonValue


def git(folder: Path, *arguments: str) -> str:
    """The user's own git."""
    command = ["git", "-c", "user.name=user", "-c", "user.email=user@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


class Crash(BaseException):
    """The process dies here."""


class MemoryJournal:
    """What the store does for ``context.step``, with a place to die at."""

    def __init__(self) -> None:
        self.finished: dict[str, JsonValue] = {}
        self.crash_at: tuple[str, str] | None = None
        self.ran: list[str] = []

    async def __call__(
        self, name: str, function: Callable[[], Awaitable[JsonValue]], *, input: JsonValue = None
    ) -> JsonValue:
        key = f"{name} {json.dumps(input, sort_keys=True)}"
        if key not in self.finished:
            self._maybe_crash(name, "before")
            self.ran.append(name)
            output = await function()
            self._maybe_crash(name, "unknown")
            # Through text, as a store would keep it.
            self.finished[key] = json.loads(json.dumps(output))
            self._maybe_crash(name, "finished")
        return self.finished[key]

    def _maybe_crash(self, name: str, moment: str) -> None:
        if self.crash_at == (name, moment):
            self.crash_at = None
            raise Crash


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    started = Guard.start(interpreter=sys.executable)
    yield started
    await started.close()


@pytest.fixture
def user(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    write(folder, FILES)
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def workspace(user: Path, tmp_path: Path, guard: Guard) -> Workspace:
    return Workspace(workspace=user, directory=tmp_path / "state" / "runs" / "r-1", guard=guard)


async def accept(workspace: Workspace, files: Files, *, task: str = "t1") -> str:
    tree, commit = await change(workspace, files, task=task)
    merged = await workspace.merge(tree.base_commit, commit, task)
    assert merged.commit is not None
    result = await workspace.apply(merged.onto, merged.commit, MemoryJournal())
    assert result.conflict is None
    return merged.commit


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


# -- the first snapshot ----------------------------------------------------------------------------------------------


async def test_the_first_snapshot_holds_the_workspace_and_leaves_it_alone(workspace: Workspace, user: Path) -> None:
    before = snapshot(user)
    first = await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    assert snapshot(tree.path) == before == snapshot(user)
    assert tree.base_commit == first == await workspace.open() == await workspace.accepted()


async def test_a_second_process_finds_the_first_snapshot(workspace: Workspace, user: Path, guard: Guard) -> None:
    first = await workspace.open()
    write(user, {"later.txt": "x"})
    again = Workspace(workspace=user, directory=workspace.directory, guard=guard)
    assert await again.open() == first


async def test_an_empty_workspace_is_fine(tmp_path: Path, guard: Guard) -> None:
    (tmp_path / "empty").mkdir()
    workspace = Workspace(workspace=tmp_path / "empty", directory=tmp_path / "run", guard=guard)
    await workspace.open()
    await accept(workspace, {"new.txt": "new\n"})
    assert (tmp_path / "empty" / "new.txt").read_text() == "new\n"


async def test_open_by_several_tasks_at_once_makes_one_repository(workspace: Workspace, guard: Guard) -> None:
    others = [Workspace(workspace=workspace.workspace, directory=workspace.directory, guard=guard) for _ in range(4)]
    assert len(set(await asyncio.gather(*(one.open() for one in others)))) == 1
    assert [path.name for path in workspace.directory.iterdir()] == ["git"]


async def test_without_a_gitignore_what_is_made_or_secret_stays_out(workspace: Workspace, user: Path) -> None:
    write(
        user, {"node_modules/a/index.js": "x", "src/__pycache__/calc.pyc": "x", ".env": "KEY=1", "target/debug/a": "x"}
    )
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    names = set(snapshot(tree.path))
    assert {"src/calc.py", "README.md"} <= names
    assert not names & {"node_modules", "src/__pycache__", ".env", "target"}


async def test_a_gitignore_decides_alone(workspace: Workspace, user: Path) -> None:
    write(
        user,
        {".gitignore": "*.log\n", "a.log": "x", "target/kept.txt": "x", "sub/.gitignore": "b.txt\n", "sub/b.txt": "x"},
    )
    await workspace.open()
    names = set(snapshot((await workspace.create_tree("t1", 1)).path))
    assert {".gitignore", "target/kept.txt", "sub/.gitignore"} <= names
    assert not names & {"a.log", "sub/b.txt"}


async def test_a_store_inside_the_workspace_is_no_part_of_it(user: Path, guard: Guard) -> None:
    write(user, {"store.db": "x", "store.db-wal": "x"})
    workspace = Workspace(workspace=user, directory=state_directory(user / "store.db") / "runs" / "r-1", guard=guard)
    await workspace.open()
    names = set(snapshot((await workspace.create_tree("t1", 1)).path))
    assert "README.md" in names
    assert not [name for name in names if name.startswith("store")]


@pytest.mark.parametrize("kind", ["repository", "submodule"])
async def test_a_nested_repository_is_refused_by_name(workspace: Workspace, user: Path, kind: str) -> None:
    (user / "libraries" / "inner").mkdir(parents=True)
    if kind == "repository":
        git(user / "libraries" / "inner", "init", "-q")
    else:
        write(user, {"libraries/inner/.git": "gitdir: ../../.git/modules/inner\n"})
    with pytest.raises(InvalidInput, match="libraries/inner") as caught:
        check_workspace(user)
    assert caught.value.code == "MN-0108"
    assert caught.value.hint
    with pytest.raises(InvalidInput, match="libraries/inner"):
        await workspace.open()
    assert not (workspace.directory / "git").exists()


async def test_a_nested_repository_that_the_quick_look_skips_is_refused_too(workspace: Workspace, user: Path) -> None:
    inner = user / "node_modules" / "inner"
    write(user, {".gitignore": "*.log\n", "node_modules/inner/a.js": "x"})
    git(inner, "init", "-q")
    git(inner, "add", "-A")
    git(inner, "commit", "-q", "-m", "x")
    with pytest.raises(InvalidInput, match="node_modules/inner"):
        await workspace.open()


def test_a_workspace_that_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist") as caught:
        check_workspace(tmp_path / "missing")
    assert caught.value.code == "MN-0107"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="is not a directory"):
        check_workspace(tmp_path / "file")


async def test_the_users_repository_is_not_touched_and_its_settings_are_not_used(
    workspace: Workspace, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    evil = f"touch {marker}; cat"
    configuration = f'[filter "evil"]\n\tclean = {evil}\n\tsmudge = {evil}\n[core]\n\tfsmonitor = touch {marker}\n'
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(configuration)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(user / ".git" / "hooks"))
    write(user, {".gitattributes": "*.py filter=evil eol=crlf\n*.txt text\n$Id$ ident\n", "dos.txt": b"a\r\nb\r\n"})
    git(user, "init", "-q")
    with (user / ".git" / "config").open("a") as file:
        file.write(configuration)
    for hook in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change"):
        (user / ".git" / "hooks" / hook).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (user / ".git" / "hooks" / hook).chmod(0o755)
    before = snapshot(user / ".git")
    fresh = Workspace(workspace=user, directory=workspace.directory, guard=Guard.start(interpreter=sys.executable))
    await fresh.open()
    await accept(fresh, {**FIXED, "dos.txt": b"a\r\nc\r\n"})
    assert (user / "dos.txt").read_bytes() == b"a\r\nc\r\n"
    assert (user / "src/calc.py").read_text() == FIXED["src/calc.py"]
    assert snapshot(user / ".git") == before
    assert not marker.exists()
    await fresh._guard.close()


async def test_without_git_the_error_says_what_to_install(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem) as caught:
        await workspace.open()
    assert caught.value.code == "MN-0207"
    assert "2.39" in caught.value.hint


# -- trees of attempts -----------------------------------------------------------------------------------------------


async def test_a_tree_survives_a_crash_with_the_work_in_it(workspace: Workspace) -> None:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    write(tree.path, {"src/calc.py": "half done"})
    assert await workspace.create_tree("t1", 1) == tree
    assert (tree.path / "src/calc.py").read_text() == "half done"


async def test_a_tree_that_was_not_finished_is_built_again(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    (workspace.directory / "trees" / "t1-1.json").unlink()
    (workspace.directory / "trees" / "t1-1.index.lock").touch()
    write(tree.path, {"src/calc.py": None, "junk": "x"})
    assert await workspace.create_tree("t1", 1) == tree
    assert snapshot(tree.path) == snapshot(user)


async def test_a_commit_says_what_changed_and_is_the_same_when_made_again(workspace: Workspace) -> None:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    write(tree.path, {**FIXED, "src/other.py": None, "new/ünicode name.txt": "x"})
    (tree.path / "run.sh").chmod(0o644)
    commit, files = await workspace.commit_tree(tree, "t1: fix it")
    assert files == [
        FileChange("new/ünicode name.txt", "A", sha("x")),
        FileChange("run.sh", "M", sha("#!/bin/sh\necho run\n")),
        FileChange("src/calc.py", "M", sha("def add(a, b):\n    return a + b\n")),
        FileChange("src/other.py", "D", None),
    ]
    # A lock that a killed git left behind does not stop the next claim.
    (workspace.directory / "trees" / "t1-1.index.lock").touch()
    assert await workspace.commit_tree(tree, "t1: fix it") == (commit, files)
    assert await workspace.changes(tree.base_commit, commit) == files
    patch = await workspace.diff(tree.base_commit, commit)
    assert "-    return a - b\n+    return a + b\n" in patch
    assert len(await workspace.diff(tree.base_commit, commit, limit=100)) < 200


async def test_truth_1_an_empty_change_is_seen_as_empty(workspace: Workspace) -> None:
    await workspace.open()
    assert (await change(workspace, {}))[1] != await workspace.accepted()
    tree = await workspace.create_tree("t1", 1)
    assert (await workspace.commit_tree(tree, "t1"))[1] == []


async def test_a_file_half_written_by_a_killed_process_is_part_of_no_commit(workspace: Workspace, user: Path) -> None:
    write(user, {"src/.mnemosyne-0123456789abcdef.tmp": "half"})
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    write(tree.path, {**FIXED, "src/.mnemosyne-fedcba9876543210.tmp": "half"})
    _, changes = await workspace.commit_tree(tree, "t1")
    assert [change.path for change in changes] == ["src/calc.py"]
    assert not (tree.path / "src/.mnemosyne-0123456789abcdef.tmp").exists()


async def test_a_repository_made_inside_a_tree_becomes_plain_files(workspace: Workspace) -> None:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    write(tree.path, {"empty/a.txt": "a", "full/b.txt": "b"})
    for name in ("empty", "full", "."):
        git(tree.path / name, "init", "-q")
    git(tree.path / "full", "add", "-A")
    git(tree.path / "full", "commit", "-q", "-m", "x")
    _, files = await workspace.commit_tree(tree, "t1")
    assert [file.path for file in files] == ["empty/a.txt", "full/b.txt"]


async def test_a_tree_cannot_reach_the_shadow_repository(workspace: Workspace, guard: Guard) -> None:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    environment = {**guard.environment(), "GIT_CEILING_DIRECTORIES": str(tree.path.parent)}
    assert (await guard.run(["git", "log"], cwd=tree.path, env=environment)).exit_code == 128


async def test_a_rework_starts_from_the_rejected_diff(workspace: Workspace) -> None:
    await workspace.open()
    tree, rejected = await change(workspace, {**FIXED, "new.txt": "new\n", "README.md": None})
    await accept(workspace, {"src/other.py": "VALUE = 2\n"}, task="t2")
    rework = await workspace.create_tree("t1", 2, rejected=(tree.base_commit, rejected))
    assert rework.base_commit == await workspace.accepted() != tree.base_commit
    assert (rework.path / "src/calc.py").read_text() == FIXED["src/calc.py"]
    assert (rework.path / "src/other.py").read_text() == "VALUE = 2\n"
    assert (rework.path / "new.txt").exists()
    assert not (rework.path / "README.md").exists()
    # Not committed: what the next attempt commits is the whole change.
    _, files = await workspace.commit_tree(rework, "t1")
    assert [file.path for file in files] == ["README.md", "new.txt", "src/calc.py"]


async def test_a_rework_starts_fresh_where_the_rejected_diff_conflicts(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree, rejected = await change(workspace, {"src/other.py": "VALUE = 3\n", "new.txt": "new\n"})
    await accept(workspace, {"src/other.py": "VALUE = 2\n"}, task="t2")
    rework = await workspace.create_tree("t1", 2, rejected=(tree.base_commit, rejected))
    assert snapshot(rework.path) == snapshot(user)
    assert (await workspace.commit_tree(rework, "t1"))[1] == []


async def test_a_removed_tree_is_gone_and_its_commit_stays(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    (tree.path / "src").chmod(0o500)
    await workspace.remove_tree(tree)
    assert list((workspace.directory / "trees").iterdir()) == []
    assert await workspace.changes(tree.base_commit, commit)


def test_a_scope_is_made_of_whole_path_parts() -> None:
    paths = ["a.py", "src/b.py", "src2/c.py"]
    assert outside_scope(paths, ["src", "./a.py"]) == ["src2/c.py"]
    assert outside_scope(paths, ["src/", "src2//", "a.py"]) == []
    assert outside_scope(paths, ["."]) == outside_scope(paths, []) == []
    assert outside_scope(paths, ["../src"]) == paths


# -- acceptance ------------------------------------------------------------------------------------------------------


async def test_without_anything_accepted_between_the_gated_commit_itself_is_accepted(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    merged = await workspace.merge(tree.base_commit, commit, "t1")
    assert (merged.commit, merged.onto, merged.conflict) == (commit, tree.base_commit, "")


async def test_two_tasks_that_began_together_are_merged(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    one, other = await change(workspace, FIXED, task="t1"), await change(workspace, {"b/new.txt": "b"}, task="t2")
    journal = MemoryJournal()
    for (tree, commit), name in ((one, "t1"), (other, "t2")):
        merged = await workspace.merge(tree.base_commit, commit, name)
        assert merged == await workspace.merge(tree.base_commit, commit, name)
        assert merged.commit is not None
        assert (await workspace.apply(merged.onto, merged.commit, journal)).conflict is None
    assert (user / "b/new.txt").read_text() == "b"
    assert (user / "src/calc.py").read_text() == FIXED["src/calc.py"]
    # Merging again what is in already changes nothing.
    again = await workspace.merge(other[0].base_commit, other[1], "t2")
    assert again.commit == again.onto == await workspace.accepted()


async def test_a_merge_conflict_says_which_lines(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {"src/other.py": "VALUE = 3\n"})
    accepted = await accept(workspace, {"src/other.py": "VALUE = 2\n"}, task="t2")
    merged = await workspace.merge(tree.base_commit, commit, "t1")
    assert merged.commit is None
    assert merged.onto == accepted
    assert "src/other.py" in merged.conflict
    assert "VALUE = 2" in merged.conflict
    assert "+VALUE = 3" in merged.conflict
    assert await workspace.accepted() == accepted


BIG_CHANGE: Files = {
    "src/calc.py": "def add(a, b):\n    return a + b\n",
    "README.md": None,
    "deep/new/folder/file.txt": "new\n",
    "tool.sh": "#!/bin/sh\n",
    "src/other.py": "VALUE = 2\n",
    # A folder becomes a file, and a file becomes a folder.
    "tests/test_calc.py": None,
    "run.sh": None,
    "run.sh/inner.txt": "inner\n",
}


async def big_change(workspace: Workspace) -> tuple[str, str]:
    await workspace.open()
    tree = await workspace.create_tree("t1", 1)
    write(tree.path, BIG_CHANGE)
    (tree.path / "tests").rmdir()
    write(tree.path, {"tests": "now a file\n"})
    (tree.path / "tool.sh").chmod(0o755)
    (tree.path / "link").symlink_to("deep/new")
    commit, _ = await workspace.commit_tree(tree, "t1")
    return tree.base_commit, commit


async def test_accept_brings_every_kind_of_change_into_the_workspace(workspace: Workspace, user: Path) -> None:
    old, new = await big_change(workspace)
    write(user, {"mine.txt": "untracked", "src/untracked.py": "mine"})
    (user / "src/other.py").chmod(0o640)
    result = await workspace.apply(old, new, MemoryJournal())
    assert result.conflict is None
    assert "run.sh/inner.txt" in result.files
    assert "README.md" in result.files
    expected = snapshot(workspace.directory / "trees" / "t1-1")
    expected["mine.txt"] = ("file", False, b"untracked")
    expected["src/untracked.py"] = ("file", False, b"mine")
    assert snapshot(user) == expected
    assert (user / "src/other.py").stat().st_mode & 0o777 == 0o640
    assert await workspace.accepted() == new


STEPS = ["accept_manifest", "accept_check", "accept_files", "accept_branch"]


@pytest.mark.parametrize("moment", ["before", "unknown", "finished"])
@pytest.mark.parametrize("step", STEPS)
async def test_accept_can_crash_at_any_step_and_be_run_again(
    workspace: Workspace, user: Path, step: str, moment: str
) -> None:
    old, new = await big_change(workspace)
    journal = MemoryJournal()
    journal.crash_at = (step, moment)
    with pytest.raises(Crash):
        await workspace.apply(old, new, journal)
    assert (await workspace.apply(old, new, journal)).conflict is None
    assert snapshot(user) == snapshot(workspace.directory / "trees" / "t1-1")
    assert await workspace.accepted() == new
    # What was recorded as finished was not done again.
    repeated = [step] if moment == "unknown" else []
    assert sorted(journal.ran) == sorted([*STEPS, *repeated])
    # And once more, with nothing to do.
    assert (await workspace.apply(old, new, journal)).conflict is None


KILLED = """
import asyncio, json, os, signal, sys
from pathlib import Path
from mnemosyne import workspace as module
from mnemosyne.guard import Guard

user, directory, journal_file, old, new, count = sys.argv[1:]
remaining = int(count)

def dying(function):
    def replaced(*arguments, **keywords):
        global remaining
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return replaced

async def journal(name, function, *, input=None):
    finished = json.loads(Path(journal_file).read_text())
    if name not in finished:
        if name == "accept_files":
            # From here each rename and each deletion may be the last thing this process does.
            os.replace, Path.unlink = dying(os.replace), dying(Path.unlink)
        finished[name] = await function()
        Path(journal_file).write_text(json.dumps(finished))
    return finished[name]

async def main():
    guard = Guard.start(interpreter=sys.executable)
    workspace = module.Workspace(workspace=Path(user), directory=Path(directory), guard=guard)
    result = await workspace.apply(old, new, journal)
    await guard.close()
    print(result.conflict)

asyncio.run(main())
"""


async def kill_in_accept(workspace: Workspace, journal: Path, old: str, new: str, count: int) -> int:
    arguments = [str(workspace.workspace), str(workspace.directory), str(journal), old, new, str(count)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode in (0, -9), stderr.decode()
    return process.returncode or 0


async def test_accept_can_be_killed_between_any_two_files_and_be_run_again(
    workspace: Workspace, user: Path, tmp_path: Path
) -> None:
    old, new = await big_change(workspace)
    expected = snapshot(workspace.directory / "trees" / "t1-1")
    journal = tmp_path / "journal.json"
    journal.write_text("{}")
    kills = 0
    # Each run dies one write later than the one before, on top of what that one left.
    for count in range(1, 40):
        code = await kill_in_accept(workspace, journal, old, new, count)
        if code == 0:
            break
        kills += 1
    assert kills >= 3
    assert snapshot(user) == expected
    assert await workspace.accepted() == new


async def test_a_file_that_the_user_changed_is_a_conflict_and_nothing_is_written(
    workspace: Workspace, user: Path
) -> None:
    old, new = await big_change(workspace)
    write(user, {"src/other.py": "VALUE = 'mine'\n"})
    before = snapshot(user)
    result = await workspace.apply(old, new, MemoryJournal())
    assert result.conflict is not None
    assert "src/other.py" in result.conflict
    assert result.files == []
    assert snapshot(user) == before
    assert await workspace.accepted() == old


@pytest.mark.parametrize(
    "mine",
    [
        pytest.param({"src/other.py": None}, id="deleted"),
        pytest.param({"README.md": "changed, and to be deleted"}, id="changed-where-deleted"),
        pytest.param({"tool.sh": "my own"}, id="made-where-added"),
        pytest.param({"deep": "a file where a folder is due"}, id="file-in-the-way"),
        pytest.param({"tests/mine.py": "in a folder that becomes a file"}, id="folder-in-the-way"),
        pytest.param({"link/x": "a folder where a link is due"}, id="folder-where-link"),
    ],
)
async def test_nothing_of_the_users_is_overwritten_or_lost(workspace: Workspace, user: Path, mine: Files) -> None:
    old, new = await big_change(workspace)
    write(user, mine)
    before = snapshot(user)
    assert (await workspace.apply(old, new, MemoryJournal())).conflict is not None
    assert snapshot(user) == before


async def test_a_changed_permission_bit_is_a_change_of_the_user(workspace: Workspace, user: Path) -> None:
    old, new = await big_change(workspace)
    (user / "src/other.py").chmod(0o755)
    assert (await workspace.apply(old, new, MemoryJournal())).conflict is not None


async def test_accept_never_writes_through_a_link_out_of_the_workspace(
    workspace: Workspace, user: Path, tmp_path: Path
) -> None:
    old, new = await big_change(workspace)
    (tmp_path / "outside").mkdir()
    (user / "deep").symlink_to(tmp_path / "outside")
    assert (await workspace.apply(old, new, MemoryJournal())).conflict is not None
    assert list((tmp_path / "outside").iterdir()) == []


async def test_what_was_written_is_put_back_when_the_user_was_faster(
    workspace: Workspace, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await big_change(workspace)
    before = snapshot(user)
    real, calls = os.replace, 0

    def replace_while_the_user_works(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        real(source, target)
        if calls == 2:
            for name in ("src/calc.py", "src/other.py", "tool.sh"):
                if (user / name).resolve() != Path(target):
                    write(user, {name: "the user's\n"})

    monkeypatch.setattr("mnemosyne.workspace.os.replace", replace_while_the_user_works)
    result = await workspace.apply(old, new, MemoryJournal())
    assert result.conflict is not None
    after = snapshot(user)
    users = {name for name, (_, _, content) in after.items() if content == b"the user's\n"}
    assert len(users) >= 2
    assert {name: value for name, value in after.items() if name not in users} == {
        name: value for name, value in before.items() if name not in users
    }
    assert await workspace.accepted() == old


async def test_a_file_saved_while_ours_is_being_written_beside_it_is_kept(
    workspace: Workspace, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    # The last thing before the look and the rename.
    monkeypatch.setattr("mnemosyne.workspace.os.fsync", lambda _: write(user, {"src/calc.py": "just saved\n"}))
    assert (await workspace.apply(tree.base_commit, commit, MemoryJournal())).conflict is not None
    assert (user / "src/calc.py").read_text() == "just saved\n"


async def test_a_conflict_after_a_crash_puts_back_only_what_is_ours(workspace: Workspace, user: Path) -> None:
    old, new = await big_change(workspace)
    # The user made one of the changes himself before us: that one is not ours to undo.
    write(user, {"src/calc.py": FIXED["src/calc.py"]})
    before = snapshot(user)
    journal = MemoryJournal()
    journal.crash_at = ("accept_files", "unknown")
    with pytest.raises(Crash):
        await workspace.apply(old, new, journal)
    assert snapshot(user) != before
    write(user, {"src/other.py": "mine\n"})
    result = await workspace.apply(old, new, journal)
    assert result.conflict is not None
    assert "src/other.py" in result.conflict
    assert snapshot(user) == {**before, "src/other.py": ("file", False, b"mine\n")}
    assert await workspace.accepted() == old
    assert (await workspace.apply(old, new, journal)).conflict == result.conflict


async def test_the_same_change_by_the_user_is_no_conflict(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    write(user, FIXED)
    assert (await workspace.apply(tree.base_commit, commit, MemoryJournal())).conflict is None


async def test_a_branch_lock_left_by_a_killed_git_does_not_stop_the_resume(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    (workspace.directory / "git" / "refs" / "heads" / "accepted.lock").touch()
    assert (await workspace.apply(tree.base_commit, commit, MemoryJournal())).conflict is None
    assert await workspace.accepted() == commit


async def test_a_branch_that_moved_on_is_never_moved_back(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    accepted = await accept(workspace, {"src/other.py": "VALUE = 2\n"}, task="t2")
    result = await workspace.apply(tree.base_commit, commit, MemoryJournal())
    assert result.conflict is not None
    assert await workspace.accepted() == accepted
    assert (user / "src/calc.py").read_text() == FILES["src/calc.py"]


async def test_a_workspace_that_cannot_be_written_is_an_environment_problem(
    workspace: Workspace, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await big_change(workspace)
    journal = MemoryJournal()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mnemosyne.workspace.os.replace", full)
        with pytest.raises(EnvironmentProblem, match="could not be read or written") as caught:
            await workspace.apply(old, new, journal)
    assert caught.value.code == "MN-0603"
    assert "No space" in caught.value.reason
    assert (await workspace.apply(old, new, journal)).conflict is None
    assert snapshot(user) == snapshot(workspace.directory / "trees" / "t1-1")


async def test_fence_1_an_accept_that_is_cancelled_while_it_writes_has_ended_when_it_says_so(
    workspace: Workspace, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await big_change(workspace)
    journal, writing = MemoryJournal(), threading.Event()
    replace = os.replace

    def slow(source: Path, target: Path) -> None:
        writing.set()
        time.sleep(0.02)
        replace(source, target)

    monkeypatch.setattr("mnemosyne.workspace.os.replace", slow)
    accepting = asyncio.create_task(workspace.apply(old, new, journal))
    await asyncio.to_thread(writing.wait)
    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    then = snapshot(user)
    await asyncio.sleep(0.2)
    assert snapshot(user) == then
    assert (await workspace.apply(old, new, journal)).conflict is None
    assert snapshot(user) == snapshot(workspace.directory / "trees" / "t1-1")


async def test_a_workspace_that_is_gone_is_not_made_anew(workspace: Workspace, user: Path) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {"new/file.txt": "x"})
    user.rename(user.with_name("away"))
    journal = MemoryJournal()
    with pytest.raises(EnvironmentProblem) as caught:
        await workspace.apply(tree.base_commit, commit, journal)
    assert caught.value.code == "MN-0603"
    assert not user.exists()
    user.with_name("away").rename(user)
    assert (await workspace.apply(tree.base_commit, commit, journal)).conflict is None
    assert (user / "new/file.txt").read_text() == "x"


async def test_a_workspace_that_cannot_be_read_is_an_environment_problem_too(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await big_change(workspace)

    def forbidden(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mnemosyne.workspace._sha256", forbidden)
    with pytest.raises(EnvironmentProblem) as caught:
        await workspace.apply(old, new, MemoryJournal())
    assert caught.value.code == "MN-0603"


# -- the overview ----------------------------------------------------------------------------------------------------


async def test_the_overview_shows_the_smallest_files_and_names_the_others(workspace: Workspace, user: Path) -> None:
    write(user, {"big.txt": "x" * 5000, "picture.png": b"\x89PNG\0\0", "no_end.txt": "no line end"})
    await workspace.open()
    text = await workspace.overview(1000)
    assert '<file path="README.md">\na sample\n</file>\n' in text
    assert '<file path="no_end.txt">\nno line end\n</file>\n' in text
    assert text.index('"README.md"') < text.index('"src/calc.py"')
    assert "<files_not_shown>\nbig.txt (5000 bytes)\npicture.png (binary)\n</files_not_shown>\n" in text
    assert "xxxx" not in text
    assert "<files_not_shown>" in await workspace.overview(0)
