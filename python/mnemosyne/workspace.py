"""Trees of attempts, gates and acceptance: what git does for a run, in a shadow repository of the run's own.

The user's repository is never touched, not even read: its hooks, filters and configuration could run programs or
change bytes. The shadow repository lies in the run's directory and is used with an explicit ``GIT_DIR``:

```
<directory>/git/                  bare; refs/heads/accepted is what was accepted so far; complete or absent (renamed)
<directory>/trees/t1-1/           the tree of attempt 1 of task t1: plain files without a `.git`, so that a command
<directory>/trees/t1-1.index      in it cannot reach the shadow repository; its index
<directory>/trees/t1-1.json       its base; written last, so a tree without it is rebuilt
<directory>/gates/<random>/       throwaway checkouts
```

What the commands say of a commit is measured in ``gates``, in checkouts made here.
``Workspace.apply`` may be interrupted anywhere and run again (``kill -9`` included), and never overwrites
what the user changed. All git goes through the guard, several commands to one shell where they belong together: a round
trip costs about 5 ms, a git command 1.5 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeVar

from pydantic import JsonValue

from mnemosyne.errors import EnvironmentProblem, InvalidInput, MnemosyneError
from mnemosyne.guard import CommandResult, Guard

__all__ = [
    "BUILT_IN_EXCLUDES",
    "ApplyResult",
    "Change",
    "CommittedFiles",
    "FileChange",
    "Journal",
    "MergeResult",
    "Tree",
    "Workspace",
    "as_text",
    "check_access",
    "check_workspace",
    "outside_scope",
]

BUILT_IN_EXCLUDES = (
    ".git",
    ".hg",
    ".svn",
    ".env",
    ".env.local",
    ".venv",
    "venv",
    "node_modules",
    "target",
    "__pycache__",
    "*.py[co]",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".tox",
    ".nox",
    ".DS_Store",
)
"""What a workspace without a ``.gitignore`` of its own does not give to a run: things made, and things secret."""

Result = TypeVar("Result")

_TEMPORARY = ".mnemosyne-{}.tmp"
"""A file half written when a process was killed; the tools name theirs so too. Part of no snapshot and no commit."""

_ACCEPTED = "refs/heads/accepted"
_GIT_SECONDS = 300.0
_GATE_OUTPUT_BYTES = 200_000
_CONFLICT_BYTES = 8_000
_LISTED_FILES = 500
_CHUNK = 1 << 20

_CONFIG = """\
[core]
	repositoryformatversion = 0
	bare = true
	fileMode = true
	symlinks = true
	autocrlf = false
	safecrlf = false
	hooksPath = /dev/null
	attributesFile = /dev/null
	excludesFile = /dev/null
	fsmonitor = false
	logAllRefUpdates = false
	fsync = committed,reference
	fsyncMethod = batch
[gc]
	auto = 0
[maintenance]
	auto = false
[diff]
	renames = false
[merge]
	renames = false
	directoryRenames = false
[advice]
	addEmbeddedRepo = false
"""

# The bytes of a file are the bytes of a file: whatever a `.gitattributes` in the tree says, nothing is converted.
_ATTRIBUTES = "* -text !eol !crlf !ident !filter !working-tree-encoding !diff !merge !conflict-marker-size\n"

# What differs between $1 and $2, and the contents of both sides in the file $3.
_CHANGES_SCRIPT = """
git diff-tree -r -z --raw --no-abbrev --no-renames "$1" "$2"
git diff-tree -r --raw --no-abbrev --no-renames "$1" "$2" | cut -d' ' -f3,4 | tr ' ' '\\n' |
    git cat-file --batch > "$3"
"""


class Journal(Protocol):
    """``AgentContext.step``: runs a function once, and gives its first result ever after."""

    async def __call__(
        self, name: str, function: Callable[[], Awaitable[JsonValue]], *, input: JsonValue = None
    ) -> JsonValue: ...


@dataclass(frozen=True)
class Tree:
    """The files of one attempt."""

    path: Path
    base_commit: str
    """The accepted commit that it started from."""


@dataclass(frozen=True)
class FileChange:
    """One path that differs between two commits."""

    path: str
    status: Literal["A", "M", "D"]
    sha256: str | None
    """Of the content after; None for a deletion."""


@dataclass(frozen=True)
class MergeResult:
    """A commit merged onto the accepted branch; nothing has moved yet."""

    commit: str | None
    """The merged commit, or None if it conflicts."""
    conflict: str
    """What conflicts, with the conflicting lines."""
    onto: str
    """The accepted commit that it was merged onto: ``old`` of ``Workspace.apply``."""


@dataclass(frozen=True)
class ApplyResult:
    """Whether the accepted files are in the user's workspace."""

    conflict: str | None
    """Which files the user changed meanwhile; then nothing of ours is left in the workspace."""
    files: list[str]


@dataclass(frozen=True)
class _State:
    """What is at a path: a mode as git writes it, and the hash of the content (of a link: of its target)."""

    mode: str
    sha256: str

    def to_json(self) -> JsonValue:
        return [self.mode, self.sha256]

    @classmethod
    def from_json(cls, value: JsonValue) -> _State | None:
        return cls(str(value[0]), str(value[1])) if isinstance(value, list) else None


@dataclass(frozen=True)
class _Entry:
    """One path of a manifest."""

    path: str
    before: _State | None
    after: _State | None

    def reversed(self) -> _Entry:
        return _Entry(self.path, self.after, self.before)


@dataclass(frozen=True)
class Change:
    """One line of ``git diff-tree --raw``: modes and object names on both sides, zeros where there is nothing."""

    path: str
    status: Literal["A", "M", "D"]
    old_mode: str
    new_mode: str
    old_object: str
    new_object: str


class _Blobs:
    """The contents of changed files, in one file that ``git cat-file --batch`` wrote."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._hashes: dict[str, str] = {}
        self._by_hash: dict[str, str] = {}
        with file.open("rb") as stream:
            while line := stream.readline():
                name, kind, *rest = line.decode("ascii").split()
                if kind != "blob":
                    continue
                size = int(rest[0])
                self._places[name] = (stream.tell(), size)
                digest = hashlib.sha256()
                for chunk in _chunks(stream, size):
                    digest.update(chunk)
                self._hashes[name] = digest.hexdigest()
                self._by_hash[digest.hexdigest()] = name
                stream.read(1)

    def sha256(self, name: str) -> str | None:
        """Return the hash of the content of a git object; None if that is not a file's content."""
        return self._hashes.get(name)

    def content(self, sha256: str) -> Iterator[bytes]:
        """Yield the content that has this hash."""
        offset, size = self._places[self._by_hash[sha256]]
        with self._file.open("rb") as stream:
            stream.seek(offset)
            yield from _chunks(stream, size)


class Workspace:
    """The shadow repository of one run, and the user's workspace beside it."""

    def __init__(self, *, workspace: Path, directory: Path, guard: Guard, tag: str | None = None) -> None:
        """Touch nothing yet.

        Args:
            workspace: The user's directory.
            directory: The run's own directory in the state directory.
            guard: Runs git and the gates.
            tag: Names the claim in whose name commands run, so that a newer claim can end them.
        """
        self.workspace = workspace.resolve()
        self.directory = directory.resolve()
        self._git_directory = self.directory / "git"
        self._guard = guard
        self._tag = tag

    # -- the repository -----------------------------------------------------------------------------------------

    async def open(self) -> str:
        """Take the first snapshot of the workspace, unless that was done; return the accepted commit.

        Safe to call at the same time from several tasks: each builds a whole repository, one rename wins.

        Raises:
            InvalidInput: The workspace is not usable (MN-0107) or holds a nested repository (MN-0108).
            EnvironmentProblem: There is no usable git (MN-0207).
        """
        if not self._git_directory.is_dir():
            await _in_thread(check_workspace, self.workspace)
            self.directory.mkdir(parents=True, exist_ok=True)
            await self._take_first_snapshot()
        return await self.accepted()

    async def accepted(self) -> str:
        """Return the accepted commit of this moment."""
        return (await self._git('git rev-parse --verify "$1"', _ACCEPTED)).decode().strip()

    async def _take_first_snapshot(self) -> None:
        await self._require_git()
        new = self.directory / f"git.{secrets.token_hex(6)}"
        try:
            await self._git('env -u GIT_DIR git init -q --bare --template= "$1"', str(new))
            (new / "config").write_text(_CONFIG)
            (new / "info").mkdir(exist_ok=True)
            (new / "info" / "attributes").write_text(_ATTRIBUTES)
            (new / "info" / "exclude").write_text("\n".join(self._excludes()) + "\n")
            result = await self._try_git(
                """
                git add -A
                git ls-files -s -z | tr '\\0' '\\n' | sed -n 's/^160000 [^\t]*\t//p'
                commit=$(git commit-tree "$(git write-tree)" -m 'the workspace as it was')
                git update-ref "$1" "$commit"
                """,
                _ACCEPTED,
                cwd=self.workspace,
                env={"GIT_DIR": str(new), "GIT_WORK_TREE": str(self.workspace), "GIT_INDEX_FILE": str(new / "index")},
            )
            if result.exit_code != 0:
                raise InvalidInput(
                    f"the workspace {self.workspace} could not be read",
                    code="MN-0107",
                    reason=result.output,
                    hint="make its files readable, or name another folder with --workspace",
                )
            if nested := result.stdout.decode("utf-8", "replace").split("\n")[0]:
                raise _nested_repository(self.workspace, nested)
            with contextlib.suppress(OSError):
                # Fails if another task was first; then that repository is as good as this one.
                os.rename(new, self._git_directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    async def _require_git(self) -> None:
        if shutil.which("git", path=self._guard.environment()["PATH"]) is None:
            raise _no_git("no git was found on PATH")
        version = (await self._git("git --version")).decode()
        numbers = re.search(r"(\d+)\.(\d+)", version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < (2, 39):
            raise _no_git(f"{version.strip()} is too old")

    def _excludes(self) -> list[str]:
        excludes = [_TEMPORARY.format("*")]
        if not (self.workspace / ".gitignore").exists():
            excludes += BUILT_IN_EXCLUDES
        state = self.directory.parent.parent
        for own in (state, self.directory):
            if own.is_relative_to(self.workspace) and own != self.workspace:
                # A store that was put into the workspace is no part of it.
                name = f"/{own.relative_to(self.workspace).as_posix()}"
                store = name.removesuffix(".d")  # config.settings.state_directory: STORE.d is beside STORE
                excludes += [name, store, f"{store}-wal", f"{store}-shm"]
                break
        return excludes

    # -- trees of attempts --------------------------------------------------------------------------------------

    async def create_tree(self, task: str, attempt: int, *, rejected: tuple[str, str] | None = None) -> Tree:
        """Make the tree of an attempt: the accepted files, plus what was rejected, not committed.

        Idempotent: a tree that was finished is kept with whatever was done in it since, one that was not is rebuilt.

        Args:
            task: Id of the task.
            attempt: Number of the attempt.
            rejected: Base and commit of the attempt before; left out if it conflicts with what was accepted since.
        """
        path = self.directory / "trees" / f"{task}-{attempt}"
        record = _beside(path, "json")
        if record.exists() and path.is_dir():
            return Tree(path, str(json.loads(record.read_text())["base"]))
        await _in_thread(_remove, path, record, _beside(path, "index"), _beside(path, "index.lock"))
        path.mkdir(parents=True)
        output = await self._git(
            """
            base=$(git rev-parse --verify "$1")
            start=$base
            if [ -n "$2" ] && merged=$(git merge-tree --write-tree "$base" "$2" 2>/dev/null); then start=$merged; fi
            git read-tree "$start"
            git checkout-index -a -f -u -q
            echo "$base"
            """,
            _ACCEPTED,
            # Its parent is its base, so git finds the common ancestor by itself.
            rejected[1] if rejected else "",
            tree=path,
        )
        base = output.decode().strip()
        unfinished = _beside(path, "json.new")
        unfinished.write_text(json.dumps({"base": base}))
        unfinished.replace(record)
        return Tree(path, base)

    async def commit_tree(self, tree: Tree, message: str) -> tuple[str, list[FileChange]]:
        """Commit all that git would track; the same content gives the same commit.

        Returns:
            The commit, whose parent is the base of the tree, and what it changes; nothing, if that is empty.
        """
        # Whatever held it is gone: older claims are ended before a new one begins.
        _beside(tree.path, "index.lock").unlink(missing_ok=True)
        script = """
            git add -A
            commit=$(git commit-tree "$(git write-tree)" -p "$1" -m "$2")
            echo "$commit"
            set -- "$1" "$commit" "$3"
        """
        for last in (False, True):
            async with self._blob_file() as file:
                result = await self._try_git(
                    script + _CHANGES_SCRIPT, tree.base_commit, message, str(file), tree=tree.path
                )
                commit, _, raw = result.stdout.partition(b"\n")
                changes = _parse_changes(raw) if result.exit_code == 0 else []
                if result.exit_code == 0 and all(change.new_mode != "160000" for change in changes):
                    return commit.decode(), _file_changes(changes, await _in_thread(_Blobs, file))
            if last:
                break
            # An agent's `git init` in a folder, or a file without read permission: the tree is ours to put right.
            await _in_thread(_make_plain, tree.path)
        raise _git_failed(result)

    async def remove_tree(self, tree: Tree) -> None:
        """Remove a tree; its commits stay."""
        beside = [_beside(tree.path, suffix) for suffix in ("json", "index", "index.lock")]
        await _in_thread(_remove, *beside, tree.path)

    # -- looking ------------------------------------------------------------------------------------------------

    async def changes(self, base: str, commit: str) -> list[FileChange]:
        """Return what differs between two commits, by path."""
        async with self._changed_blobs(base, commit) as (changes, blobs):
            return _file_changes(changes, blobs)

    async def raw_changes(self, base: str, commit: str) -> list[Change]:
        """Return what differs between two commits as git objects, without reading their contents."""
        return _parse_changes(
            await self._git('git diff-tree -r -z --raw --no-abbrev --no-renames "$1" "$2"', base, commit)
        )

    async def diff(self, base: str, commit: str, limit: int = 60_000) -> str:
        """Return the difference as a patch; of one longer than ``limit`` bytes, the first and the last half."""
        result = await self._try_git('git diff-tree -r -p --no-renames "$1" "$2"', base, commit, output_limit=limit)
        if result.exit_code != 0:
            raise _git_failed(result)
        return result.stdout.decode("utf-8", "replace")

    async def overview(self, limit_bytes: int) -> str:
        """Return the accepted files as text for a prompt: the smallest whole, up to a limit, the others by name."""
        listing = await self._git('git ls-tree -r -l -z "$1"', _ACCEPTED)
        files: list[tuple[int, str, str]] = []
        others: list[str] = []
        for line in listing.split(b"\0")[:-1]:
            head, _, name = line.partition(b"\t")
            mode, _, object_name, length = head.decode("ascii").split()
            path = name.decode("utf-8", "replace")
            if mode == "120000":
                others.append(f"{path} (symbolic link)")
            else:
                files.append((int(length), path, object_name))
        files.sort()
        chosen: list[tuple[str, str]] = []
        room = limit_bytes
        while files and files[0][0] <= room:
            size, path, object_name = files.pop(0)
            room -= size
            chosen.append((path, object_name))
        texts = await self._texts([object_name for _, object_name in chosen])
        shown = {path: text for path, name in chosen if (text := texts[name]) is not None}
        others += [f"{path} (binary)" for path, _ in chosen if path not in shown]
        others += [f"{path} ({size} bytes)" for size, path, _ in files]
        return _format_overview(shown, sorted(others))

    async def _texts(self, names: list[str]) -> dict[str, str | None]:
        """Return the text of each object; None for what is not text."""
        async with self._blob_file() as file:
            stdin = "".join(f"{name}\n" for name in names).encode()
            await self._git('git cat-file --batch > "$1"', str(file), stdin=stdin)
            blobs = await _in_thread(_Blobs, file)
            return {name: as_text(b"".join(blobs.content(blobs.sha256(name) or ""))) for name in names}

    def files(self, commit: str) -> CommittedFiles:
        """Return the files of a commit, to be read without a checkout."""
        return CommittedFiles(self, commit)

    async def overlaid(self, commit: str, entries: Sequence[tuple[str, str, str]]) -> str:
        """Return the tree of a commit in which some paths hold something else.

        Args:
            entries: Mode, object name and path each, as in ``Change``; zeros take the path away.
        """
        # What goes away first, since a file may come where a folder was.
        lines = sorted(
            (f"{mode} {name}\t{path}" for mode, name, path in entries), key=lambda line: line[:6] != "000000"
        )
        index = self.directory / f"index.{secrets.token_hex(6)}"
        try:
            output = await self._git(
                """
                export GIT_INDEX_FILE="$1"
                git read-tree "$2"
                git update-index --replace -z --index-info
                git write-tree
                """,
                str(index),
                commit,
                stdin=b"".join(os.fsencode(line) + b"\0" for line in lines),
            )
        finally:
            index.unlink(missing_ok=True)
        return output.decode().strip()

    async def commit_of(self, tree: str, base: str, message: str) -> str:
        """Return a commit of ``tree`` whose parent is ``base``."""
        return (await self._git('git commit-tree "$1" -p "$2" -m "$3"', tree, base, message)).decode().strip()

    # -- checkouts --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def checkouts(self, *commits: str) -> AsyncIterator[list[Path]]:
        """Check commits or trees out, each into a throwaway folder of its own with a home beside it."""
        home = self.directory / "gates" / secrets.token_hex(6)
        paths = [home / f"{number}" / commit[:12] for number, commit in enumerate(commits)]
        try:
            for path in paths:
                path.mkdir(parents=True)
                (path.parent / "home").mkdir()
            await self._git(
                """
                export GIT_INDEX_FILE="$1/index" GIT_WORK_TREE=.
                shift
                while [ $# -gt 0 ]; do
                    cd "$2"
                    git read-tree "$1"
                    git checkout-index -a -q
                    shift 2
                done
                """,
                str(home),
                *(str(part) for pair in zip(commits, paths, strict=True) for part in pair),
            )
            yield paths
        finally:
            await _in_thread(_remove, home)

    async def run_command(self, path: Path, command: str, timeout: float) -> CommandResult:
        """Run a shell command in a checkout, as ``checkouts`` made it."""
        shared = self._guard.environment()
        result = await self._guard.run(
            ["/bin/sh", "-c", command],
            cwd=path,
            env={
                **shared,
                # Of its own: what an executor's commands left in theirs (`pip install --user`) must turn no gate green.
                "HOME": str(path.parent / "home"),
                # Downloads may be shared, else every gate would fetch them again.
                "XDG_CACHE_HOME": f"{shared['HOME']}/.cache",
                # A repository that happens to lie above the state directory is none of this command's business.
                "GIT_CEILING_DIRECTORIES": str(path.parent),
            },
            timeout=timeout,
            output_limit=_GATE_OUTPUT_BYTES,
            tag=self._tag,
            merge_output=True,
        )
        # The output goes into prompts, and a random path in it would tell the model nothing.
        text = result.stdout.replace(f"{path}/".encode(), b"").replace(str(path).encode(), b".")
        return replace(result, stdout=text)

    # -- acceptance ---------------------------------------------------------------------------------------------

    async def merge(self, base: str, commit: str, message: str) -> MergeResult:
        """Merge a gated commit onto the accepted branch of this moment, without moving it.

        If nothing was accepted since ``base``, the result is the very commit that was gated.
        """
        result = await self._try_git(
            """
            onto=$(git rev-parse --verify "$1")
            echo "$onto"
            if [ "$onto" = "$2" ]; then echo "$3"; exit 0; fi
            if git merge-base --is-ancestor "$3" "$onto"; then echo "$onto"; exit 0; fi
            code=0
            merged=$(git merge-tree --write-tree --name-only "$onto" "$3") || code=$?
            if [ "$code" = 0 ]; then
                git commit-tree "$merged" -p "$onto" -p "$3" -m "$4"
            elif [ "$code" = 1 ]; then
                echo
                printf '%s\n' "$merged" | tail -n +2
                echo
                git diff-tree -r -p --no-renames "$onto" "$(printf '%s\n' "$merged" | head -n 1)"
            else
                exit "$code"
            fi
            """,
            _ACCEPTED,
            base,
            commit,
            message,
            output_limit=_CONFLICT_BYTES,
        )
        if result.exit_code != 0:
            raise _git_failed(result)
        onto, merged, *rest = result.stdout.decode("utf-8", "replace").split("\n", 2)
        if merged:
            return MergeResult(merged, "", onto)
        text = f"This change conflicts with what was accepted since it began:\n{''.join(rest).strip()}"
        return MergeResult(None, text, onto)

    async def apply(self, old: str, new: str, journal: Journal) -> ApplyResult:
        """Bring an accepted commit into the user's workspace and move the accepted branch.

        Every step may be interrupted and run again. Four journaled steps: the manifest (per path its state before and
        after); the check, which says what is ours to write, because the user may have made the same change; the
        files, each by a temporary file and a rename; the branch, by compare-and-swap.

        Args:
            old: The accepted commit, ``MergeResult.onto``.
            new: The commit that passed the joined gate.
            journal: ``context.step``.
        """
        key: JsonValue = {"old": old, "new": new}
        async with contextlib.AsyncExitStack() as stack:
            change_list, blobs = await stack.enter_async_context(self._changed_blobs(old, new))

            async def manifest() -> JsonValue:
                return [
                    {
                        "path": change.path,
                        "before": _state_json(blobs, change.old_mode, change.old_object),
                        "after": _state_json(blobs, change.new_mode, change.new_object),
                    }
                    for change in change_list
                ]

            entries = _parse_manifest(await journal("accept_manifest", manifest, input=key))
            writer = _Writer(self.workspace, entries, blobs)

            async def check() -> JsonValue:
                if await self.accepted() not in (old, new):
                    return {"conflict": "another commit was accepted meanwhile", "write": []}
                return await _in_thread(writer.check)

            checked = await journal("accept_check", check, input=key)
            assert isinstance(checked, dict)
            assert isinstance(checked["write"], list)
            if checked["conflict"] is not None:
                return ApplyResult(str(checked["conflict"]), [])
            ours = {str(path) for path in checked["write"]}

            async def write() -> JsonValue:
                return await _in_thread(writer.write, ours)

            conflict = await journal("accept_files", write, input=key)
            if conflict is not None:
                return ApplyResult(str(conflict), [])

            async def move() -> JsonValue:
                await self._move_accepted(old, new)
                return None

            await journal("accept_branch", move, input=key)
            return ApplyResult(None, [entry.path for entry in entries])

    async def _move_accepted(self, old: str, new: str) -> None:
        # Only one task of a run is accepted at a time, so a lock that is there was left by a process that was killed.
        (self._git_directory / f"{_ACCEPTED}.lock").unlink(missing_ok=True)
        await self._git(
            'if [ "$(git rev-parse --verify "$1")" != "$2" ]; then git update-ref "$1" "$2" "$3"; fi',
            _ACCEPTED,
            new,
            old,
        )

    # -- git ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _blob_file(self) -> AsyncIterator[Path]:
        file = self.directory / f"blobs.{secrets.token_hex(6)}"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def _changed_blobs(self, base: str, commit: str) -> AsyncIterator[tuple[list[Change], _Blobs]]:
        async with self._blob_file() as file:
            changes = _parse_changes(await self._git(_CHANGES_SCRIPT, base, commit, str(file)))
            yield changes, await _in_thread(_Blobs, file)

    async def _git(self, script: str, *arguments: str, tree: Path | None = None, stdin: bytes = b"") -> bytes:
        result = await self._try_git(script, *arguments, tree=tree, stdin=stdin)
        if result.exit_code != 0 or result.truncated:
            raise _git_failed(result)
        return result.stdout

    async def _try_git(
        self,
        script: str,
        *arguments: str,
        tree: Path | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output_limit: int = 200_000_000,
    ) -> CommandResult:
        """Run git commands in one shell, with the shadow repository and nothing of the user's configuration."""
        environment = {**self._guard.environment(), **_GIT_ENVIRONMENT, "GIT_DIR": str(self._git_directory)}
        if tree is not None:
            environment.update({"GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(_beside(tree, "index"))})
        environment.update(env or {})
        return await self._guard.run(
            ["/bin/sh", "-c", f"set -eu\n{script}", "git", *arguments],
            cwd=cwd or tree or self.directory,
            env=environment,
            stdin=stdin,
            timeout=_GIT_SECONDS,
            output_limit=output_limit,
            tag=self._tag,
        )


class CommittedFiles:
    """The files of one commit, which never change: what is read here does not depend on when it is read."""

    def __init__(self, workspace: Workspace, commit: str) -> None:
        self._workspace = workspace
        self._commit = commit

    async def list_files(self) -> list[str]:
        """Return all paths, relative and sorted, but links and submodules, which are no files, and names that are not
        UTF-8, which a prompt cannot hold.
        """
        output = await self._workspace._git('git ls-tree -r -z "$1"', self._commit)
        entries = (line.partition(b"\t") for line in output.split(b"\0") if line)
        files = (name.decode("utf-8", "replace") for head, _, name in entries if head.startswith(b"100"))
        return sorted(name for name in files if "\N{REPLACEMENT CHARACTER}" not in name)

    async def read_files(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of those that exist; all at once, because each reading starts a process."""
        asked = [path for path in paths if "\n" not in path]  # the request is made of lines
        lines = [f"{self._commit}:{path}\n".encode() for path in asked]
        if not lines:
            return {}
        output = await self._workspace._git("git cat-file --batch", stdin=b"".join(lines))
        contents: dict[str, bytes] = {}
        position = 0
        for path in asked:
            end = output.index(b"\n", position)
            header, position = output[position:end], end + 1
            if header.endswith(b" missing"):
                continue
            size = int(header.rsplit(b" ", 1)[1])
            if b" blob " in header:
                contents[path] = output[position : position + size]
            position += size + 1
        return contents


_GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "mnemosyne",
    "GIT_AUTHOR_EMAIL": "mnemosyne@localhost",
    "GIT_COMMITTER_NAME": "mnemosyne",
    "GIT_COMMITTER_EMAIL": "mnemosyne@localhost",
    # Fixed, so that the same content has the same name when a step is run again.
    "GIT_AUTHOR_DATE": "946684800 +0000",
    "GIT_COMMITTER_DATE": "946684800 +0000",
    "LC_ALL": "C.UTF-8",
}


def check_workspace(path: Path) -> None:
    """Refuse a workspace that cannot be used; cheap, and before anything is stored.

    Raises:
        InvalidInput: It is no folder of a project that can be read and written (MN-0107), or a directory in it is a
            repository of its own (MN-0108), which git would take for one opaque entry.
    """
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise InvalidInput(
            f"the workspace {path} {what}", code="MN-0107", hint="create it, or name another with --workspace DIR"
        )
    # Everything in it is read, and may be sent to the model: keys, mail, whatever a home holds.
    if path.resolve() in (Path("/"), Path("~").expanduser().resolve()):
        raise InvalidInput(
            f"{path} cannot be the workspace",
            code="MN-0107",
            reason="it is not a project: everything in it would be read, and could be sent to the model",
            hint="go to the folder of your project, or name it with --workspace DIR",
        )
    check_access(path)
    excluded = {name for name in BUILT_IN_EXCLUDES if name != ".git"}
    for folder, directories, files in os.walk(path):
        if folder != str(path) and (".git" in directories or ".git" in files):
            raise _nested_repository(path, os.path.relpath(folder, path))
        directories[:] = [name for name in directories if name not in excluded and name != ".git"]


def check_access(path: Path) -> None:
    """Refuse a folder that the work could not be read from or written to, before anything is paid for.

    Raises:
        InvalidInput: It is barred (MN-0107).
    """
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidInput(
            f"the workspace {path} cannot be used",
            code="MN-0107",
            reason="you may not read and write it",
            hint="chmod u+rwx it, or name another with --workspace DIR",
        )


def outside_scope(paths: Iterable[str], file_scope: Sequence[str]) -> list[str]:
    """Return the paths that lie under none of the prefixes of a scope; an empty scope holds everything."""
    prefixes = [os.path.normpath(prefix) for prefix in file_scope]
    if not prefixes or "." in prefixes:
        return []
    return [path for path in paths if not any(path == one or path.startswith(f"{one}/") for one in prefixes)]


# -- parsing and wording -------------------------------------------------------------------------------------------


def _parse_changes(raw: bytes) -> list[Change]:
    changes = []
    fields = raw.split(b"\0")
    for head, name in zip(fields[::2], fields[1::2], strict=False):
        old_mode, new_mode, old_object, new_object, letter = head.decode("ascii").lstrip(":").split(" ")
        status: Literal["A", "M", "D"] = "A" if letter == "A" else "D" if letter == "D" else "M"
        changes.append(Change(os.fsdecode(name), status, old_mode, new_mode, old_object, new_object))
    return changes


def _file_changes(changes: list[Change], blobs: _Blobs) -> list[FileChange]:
    return [FileChange(change.path, change.status, blobs.sha256(change.new_object)) for change in changes]


def _state_json(blobs: _Blobs, mode: str, name: str) -> JsonValue:
    sha256 = blobs.sha256(name)
    return None if sha256 is None else _State(mode, sha256).to_json()


def _parse_manifest(value: JsonValue) -> list[_Entry]:
    assert isinstance(value, list)
    entries = []
    for one in value:
        assert isinstance(one, dict)
        entries.append(_Entry(str(one["path"]), _State.from_json(one["before"]), _State.from_json(one["after"])))
    return entries


def _format_overview(shown: Mapping[str, str], others: Sequence[str]) -> str:
    parts = []
    for path in sorted(shown):
        text = shown[path]
        end = "" if text.endswith("\n") or not text else "\n"
        parts.append(f'<file path="{path}">\n{text}{end}</file>\n')
    if others:
        listed = [
            *others[:_LISTED_FILES],
            *([f"and {len(others) - _LISTED_FILES} more"] if others[_LISTED_FILES:] else []),
        ]
        parts.append("<files_not_shown>\n" + "\n".join(listed) + "\n</files_not_shown>\n")
    return "".join(parts)


def as_text(content: bytes) -> str | None:
    """Return the text of a file, or None for what is none."""
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _nested_repository(workspace: Path, nested: str) -> InvalidInput:
    return InvalidInput(
        f"the workspace holds a nested repository: {nested}",
        code="MN-0108",
        reason=f"{workspace / nested} is a git repository of its own, and its files would not be part of the run",
        hint="name that folder with --workspace, or move it out of the workspace",
    )


def _no_git(reason: str) -> EnvironmentProblem:
    return EnvironmentProblem("git is needed", code="MN-0207", reason=reason, hint="install git 2.39 or newer")


def _git_failed(result: CommandResult) -> MnemosyneError:
    if result.truncated:
        return MnemosyneError(
            "git printed more than can be kept",
            code="MN-0602",
            hint="list what is generated in a .gitignore, or name a smaller folder with --workspace",
        )
    ended = "ended by the time limit" if result.timed_out else f"exit code {result.exit_code}"
    return EnvironmentProblem(
        "git failed in the run's own repository",
        code="MN-0602",
        reason=f"{ended}: {result.stderr.decode('utf-8', 'replace').strip()}",
        hint="look for a full disk or missing permissions, then `mnemosyne resume`",
    )


# -- files ---------------------------------------------------------------------------------------------------------


async def _in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Run what takes time in a thread, and to its end even where the caller is cancelled.

    A thread cannot be stopped. Left alone it would go on removing or writing files while the next claim of the same
    item, which begins when this one has ended, does the same.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_make_removable)
        else:
            path.unlink(missing_ok=True)


def _make_removable(function: Callable[[str], object], name: str, _: object) -> None:
    """A command may leave directories without write permission; they are ours to remove."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(name), 0o700)
        os.chmod(name, 0o700, follow_symlinks=False) if not os.path.islink(name) else None
        function(name)


def _make_plain(tree: Path) -> None:
    """Turn repositories inside a tree into plain folders, and make everything readable."""
    for folder, directories, files in os.walk(tree):
        for name in directories:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file() and not os.access(path, os.R_OK):
                path.chmod(path.stat().st_mode | stat.S_IRUSR | stat.S_IWUSR)
        if ".git" in directories or ".git" in files:
            _remove(Path(folder, ".git"))
            directories[:] = [name for name in directories if name != ".git"]


class _ChangedError(Exception):
    """Something in the workspace is neither as before nor as after."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class _Writer:
    """Moves the paths of a manifest in the user's workspace from before to after, or back."""

    def __init__(self, root: Path, entries: list[_Entry], blobs: _Blobs) -> None:
        self._root = root
        self._entries = entries
        self._blobs = blobs
        self._ending = {entry.path for entry in entries if entry.after is None}
        """Paths that go away; such a file or link may stand where another entry needs a folder."""
        self._beginning = {entry.path for entry in entries if entry.before is None}

    def check(self) -> JsonValue:
        """Say which paths are to be written, or what the user changed; writes nothing."""
        todo: list[JsonValue] = []
        changed = []
        with self._usable():
            for entry in self._entries:
                try:
                    if self._is_due(entry, self._ending):
                        todo.append(entry.path)
                except _ChangedError as problem:
                    changed.append(problem.path)
        return {"conflict": _conflict_text(changed) if changed else None, "write": [] if changed else todo}

    def write(self, ours: set[str]) -> str | None:
        """Write the paths that are ours, or put back what was written and say what the user changed."""
        entries = [entry for entry in self._entries if entry.path in ours]
        try:
            with self._usable():
                try:
                    # Looked at once more in one go, so that a conflict is usually found before anything is written.
                    for entry in entries:
                        self._is_due(entry, self._ending)
                    self._move(entries, self._ending)
                except _ChangedError as problem:
                    self._put_back(entries)
                    return _conflict_text([problem.path])
        finally:
            for entry in entries:
                self._discard_temporary(entry)
        return None

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """What the user's folder does not let us do is nobody's fault here, and can be put right."""
        try:
            # One that is gone, on a disk that is not mounted for one, is not made anew.
            os.scandir(self._root).close()
            yield
        except OSError as error:
            raise EnvironmentProblem(
                f"the workspace {self._root} could not be read or written",
                code="MN-0603",
                reason=str(error),
                hint="make room or give permission, then `mnemosyne resume`: it goes on where this stopped",
            ) from error

    def _put_back(self, entries: list[_Entry]) -> None:
        written = []
        for entry in entries:
            # Everything else is the user's now, or was never written.
            with contextlib.suppress(_ChangedError):
                if self._state(entry.reversed(), self._beginning) == entry.after:
                    written.append(entry.reversed())
        for entry in _in_order(written):
            with contextlib.suppress(_ChangedError):
                self._move([entry], self._beginning)

    def _move(self, entries: list[_Entry], ending: set[str]) -> None:
        folders: set[Path] = set()
        for entry in _in_order(entries):
            if not self._is_due(entry, ending):
                continue
            path = self._root / entry.path
            try:
                if entry.after is None:
                    path.unlink()
                    self._prune(path.parent)
                else:
                    self._replace(entry, path, entry.after, ending)
            except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as problem:
                # Somebody was faster, between the look and the rename.
                raise _ChangedError(entry.path) from problem
            folders.add(path.parent)
        for folder in folders:
            _sync_directory(folder)

    def _is_due(self, entry: _Entry, ending: set[str]) -> bool:
        """Return whether the path is still as before; False if it is as after.

        Raises:
            _ChangedError: It is neither.
        """
        state = self._state(entry, ending)
        if state == entry.after:
            return False
        if state == entry.before:
            return True
        raise _ChangedError(entry.path)

    def _state(self, entry: _Entry, ending: set[str]) -> _State | None:
        """Return what is at the path; None for nothing, or for something that ends before this path begins."""
        path = self._root
        for part in Path(entry.path).parts[:-1]:
            path /= part
            mode = _mode(path)
            if mode is None:
                return None
            if not stat.S_ISDIR(mode):
                # What should go away is gone, whatever stands there now; else never through a link, which may lead out.
                if entry.after is None or path.relative_to(self._root).as_posix() in ending:
                    return None
                raise _ChangedError(entry.path)
        path = self._root / entry.path
        mode = _mode(path)
        if mode is None:
            return None
        if stat.S_ISLNK(mode):
            return _State("120000", hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest())
        if stat.S_ISREG(mode):
            return _State("100755" if mode & stat.S_IXUSR else "100644", _sha256(path))
        if (
            stat.S_ISDIR(mode)
            and (entry.after is None or self._ends(path, ending))
            and None in (entry.before, entry.after)
        ):
            return None
        raise _ChangedError(entry.path)

    def _ends(self, folder: Path, ending: set[str]) -> bool:
        """Return whether every file below ``folder`` goes away."""
        for below, directories, files in os.walk(folder):
            links = [name for name in directories if os.path.islink(os.path.join(below, name))]
            for name in [*files, *links]:
                if Path(below, name).relative_to(self._root).as_posix() not in ending:
                    return False
        return True

    def _replace(self, entry: _Entry, path: Path, after: _State, ending: set[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary(entry)
        temporary.unlink(missing_ok=True)
        if after.mode == "120000":
            os.symlink(os.fsdecode(b"".join(self._blobs.content(after.sha256))), temporary)
        else:
            self._write_temporary(temporary, path, after)
        # Again, right before the rename: what is left of the race is the time between two system calls.
        self._is_due(entry, ending)
        if path.is_dir() and not path.is_symlink():
            _remove_empty_folders(path)
        os.replace(temporary, path)

    def _write_temporary(self, temporary: Path, path: Path, after: _State) -> None:
        executable = after.mode == "100755"
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o777 if executable else 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            mode = _mode(path)
            if mode is not None and stat.S_ISREG(mode):
                # The user's permissions stay; only the one bit that git knows may change.
                kept = stat.S_IMODE(mode)
                if bool(kept & stat.S_IXUSR) != executable:
                    kept = kept & ~0o111 | ((kept & 0o444) >> 2 if executable else 0)
                os.fchmod(file.fileno(), kept)
            for chunk in self._blobs.content(after.sha256):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _temporary(self, entry: _Entry) -> Path:
        """Always the same name for the same path, so that a second run cleans up after the first."""
        name = hashlib.sha256(os.fsencode(entry.path)).hexdigest()[:16]
        return (self._root / entry.path).parent / _TEMPORARY.format(name)

    def _discard_temporary(self, entry: _Entry) -> None:
        parent = (self._root / entry.path).parent
        if parent.resolve() == parent:
            with contextlib.suppress(OSError):
                self._temporary(entry).unlink(missing_ok=True)

    def _prune(self, folder: Path) -> None:
        """Remove folders that a deletion left empty, as git does."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _in_order(entries: list[_Entry]) -> list[_Entry]:
    """Deletions first, the deepest first, so that a file can take the place of a folder and the other way round."""
    return sorted(entries, key=lambda entry: (entry.after is not None, -entry.path.count("/"), entry.path))


def _conflict_text(paths: Sequence[str]) -> str:
    return f"changed in the workspace during the run: {', '.join(paths)}"


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_empty_folders(path: Path) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)


def _sync_directory(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
