"""The tools of an executor: read, write, edit, list, search, run a command; all confined to one tree.

A tool never raises for what the model did: a bad path, a missing key, a failing command go back to the model as text
with ``is_error``, because the model is who can do something about it (TRUTH-1: an error is never success).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from mnemosyne.guard import CommandResult, Guard
from mnemosyne.tools.confinement import OutsideTreeError, inside
from mnemosyne.tools.definitions import DEFINITIONS, READ_ONLY, check_input

__all__ = ["ToolOutcome", "Toolbox"]

_READ_CHARACTERS = 60_000
_FILE_BYTES = 10_000_000
_OUTPUT_BYTES = 30_000
_LISTED_FILES = 1_000
_MATCHES = 200
_SEARCH_SECONDS = 20.0
_COMMAND_SECONDS = 120.0
_COMMAND_SECONDS_MOST = 600.0
_DESCRIBED_FILES = 50
_SKIPPED = {".git", ".venv", "node_modules", "__pycache__", "target"}
_SEARCH_PROGRAM = Path(__file__).with_name("search_program.py")


@dataclass(frozen=True)
class ToolOutcome:
    """What goes back to the model."""

    content: str
    is_error: bool


class _RefusedError(Exception):
    """The call cannot be done, and nothing was; the text is for the model."""


class Toolbox:
    """The tools, bound to one tree."""

    def __init__(self, tree: Path, guard: Guard, *, tag: str) -> None:
        """Bind the tools.

        Args:
            tree: The root that no path may leave.
            guard: Runs commands.
            tag: Names the claim in whose name commands run, so that a newer claim can end them.
        """
        self._tree = tree.resolve()
        self._guard = guard
        self._tag = tag
        self._tools: Mapping[str, Callable[[dict[str, JsonValue]], Awaitable[ToolOutcome]]] = {
            "read_file": self._read_file,
            "write_file": self._write_file,
            "edit_file": self._edit_file,
            "list_files": self._list_files,
            "search": self._search,
            "run_command": self._run_command,
        }

    def definitions(self) -> list[dict[str, JsonValue]]:
        """Return the tools as the Messages API wants them."""
        return [dict(definition) for definition in DEFINITIONS]

    async def run(self, name: str, input: dict[str, JsonValue]) -> ToolOutcome:
        """Do one tool call. Never raises for what the model or the tree did wrong; cancelling ends a command."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolOutcome(f"there is no tool {name!r}; the tools are {', '.join(self._tools)}", True)
        if problem := check_input(name, input):
            return ToolOutcome(problem, True)
        try:
            return await tool(input)
        except (OutsideTreeError, _RefusedError, ValueError) as error:
            return ToolOutcome(str(error), True)
        except OSError as error:
            return ToolOutcome(f"{error.strerror or error}: {str(input.get('path', name))[:200]}", True)

    async def describe_interrupted(self, name: str, input: dict[str, JsonValue]) -> str:
        """Say that a call was interrupted, and what the files concerned look like now; runs nothing (ONCE-1)."""
        start = f"This call of {name} was interrupted when the process ended, and was not run again."
        if name in READ_ONLY:
            return f"{start} It changes nothing; call it again if you still need it."
        if name == "run_command":
            lines = [f"{start} The command may have run not at all, in part or whole, and is not running any more."]
            paths = self._files(self._tree)
            lines.append(f"The files of the tree are now (first {_DESCRIBED_FILES} of {len(paths)}):")
            lines += [self._describe(path) for path in paths[:_DESCRIBED_FILES]]
            return "\n".join(lines)
        try:
            path = inside(self._tree, str(input.get("path", "")))
        except (OutsideTreeError, ValueError) as error:
            return f"{start} {error}"
        lines = [f"{start} It may or may not have been done. The file is now:", self._describe(path)]
        content = input.get("content")
        if name == "write_file" and isinstance(content, str):
            same = path.is_file() and _sha256(path) == hashlib.sha256(content.encode()).hexdigest()
            lines.append("This is what the call was to write." if same else "This is not what the call was to write.")
        return "\n".join(lines)

    # -- the tools ----------------------------------------------------------------------------------------------

    async def _read_file(self, input: dict[str, JsonValue]) -> ToolOutcome:
        text = self._text_of(inside(self._tree, str(input["path"])), str(input["path"]))
        if len(text) > _READ_CHARACTERS:
            text = f"{text[:_READ_CHARACTERS]}\n[{len(text) - _READ_CHARACTERS} characters left out]"
        return ToolOutcome(text, False)

    async def _write_file(self, input: dict[str, JsonValue]) -> ToolOutcome:
        path = self._file_path(str(input["path"]))
        content = str(input["content"])
        existed = path.exists()
        self._write(path, content)
        verb = "replaced" if existed else "created"
        return ToolOutcome(f"{verb} {self._name(path)} ({len(content.encode())} bytes)", False)

    async def _edit_file(self, input: dict[str, JsonValue]) -> ToolOutcome:
        path = self._file_path(str(input["path"]))
        old, new = str(input["old"]), str(input["new"])
        if not old:
            raise _RefusedError("`old` must not be empty")
        text = self._text_of(path, str(input["path"]))
        # Counted with overlaps: in those too it is not clear which place is meant.
        count = sum(text.startswith(old, place) for place in _places(text, old))
        if count != 1:
            found = "was not found" if count == 0 else f"was found {count} times"
            raise _RefusedError(f"`old` {found} in {self._name(path)}; it must occur exactly once, nothing was changed")
        self._write(path, text.replace(old, new, 1))
        return ToolOutcome(f"edited {self._name(path)}", False)

    async def _list_files(self, input: dict[str, JsonValue]) -> ToolOutcome:
        folder = inside(self._tree, str(input.get("path", ".")))
        if not folder.is_dir():
            raise _RefusedError(f"{self._name(folder)} is not a folder")
        names = [self._name(path) for path in self._files(folder)]
        more = [f"[{len(names) - _LISTED_FILES} more]"] if len(names) > _LISTED_FILES else []
        return ToolOutcome("\n".join([*names[:_LISTED_FILES], *more]) or "[no files]", False)

    async def _search(self, input: dict[str, JsonValue]) -> ToolOutcome:
        start = inside(self._tree, str(input.get("path", ".")))
        if not start.exists():
            raise _RefusedError(f"{self._name(start)} does not exist")
        result = await self._guard.run(
            [
                *(self._guard.interpreter, "-I", "-S", str(_SEARCH_PROGRAM)),
                *(str(input["pattern"]), self._name(start), str(_MATCHES)),
            ],
            cwd=self._tree,
            timeout=_SEARCH_SECONDS,
            output_limit=_READ_CHARACTERS,
            tag=self._tag,
            merge_output=True,
        )
        text = result.stdout.decode("utf-8", "replace").rstrip("\n")
        if result.timed_out:
            text = f"{text}\n[ended by the time limit of {_SEARCH_SECONDS:g} s]".lstrip("\n")
        return ToolOutcome(text or "[no matches]", result.exit_code != 0)

    async def _run_command(self, input: dict[str, JsonValue]) -> ToolOutcome:
        seconds = float(str(input.get("timeout_seconds", _COMMAND_SECONDS)))
        if not 0 < seconds <= _COMMAND_SECONDS_MOST:
            raise _RefusedError(f"`timeout_seconds` must be above 0 and at most {_COMMAND_SECONDS_MOST:g}")
        result = await self._guard.run(
            ["/bin/sh", "-c", str(input["command"])],
            cwd=self._tree,
            # A repository that happens to lie above the tree is none of this command's business.
            env={**self._guard.environment(), "GIT_CEILING_DIRECTORIES": str(self._tree.parent)},
            timeout=seconds,
            output_limit=_OUTPUT_BYTES,
            tag=self._tag,
            merge_output=True,
        )
        return _command_outcome(result, seconds)

    # -- files --------------------------------------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        return path.relative_to(self._tree).as_posix()

    def _file_path(self, name: str) -> Path:
        path = inside(self._tree, name)
        if path == self._tree or path.is_dir():
            raise _RefusedError(f"{name} is a folder")
        return path

    def _text_of(self, path: Path, name: str) -> str:
        if path.is_dir():
            raise _RefusedError(f"{name} is a folder; use list_files")
        try:
            # Without O_NONBLOCK, opening a pipe that a command left in the tree would never return.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _RefusedError(f"{name} does not exist") from None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _RefusedError(f"{name} is not a regular file")
            if status.st_size > _FILE_BYTES:
                raise _RefusedError(f"{name} is too large ({status.st_size} bytes); use search or run_command")
            content = file.read()
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise _RefusedError(f"{name} is not a text file ({len(content)} bytes)") from None

    def _write(self, path: Path, text: str) -> None:
        """Write by temporary file and rename, so that a killed process leaves the old file or the new one."""
        content = text.encode("utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        # This name is no part of any commit (see workspace.py), so one that a killed process left does no harm.
        temporary = path.with_name(f".mnemosyne-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if path.exists():
                    os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
                file.write(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _files(self, folder: Path) -> list[Path]:
        """Return what is below a folder except folders, sorted; links are not followed."""
        found = []
        for below, directories, names in os.walk(folder):
            links = [name for name in directories if os.path.islink(os.path.join(below, name))]
            directories[:] = [name for name in directories if name not in _SKIPPED]
            found += [Path(below, name) for name in (*names, *links)]
        return sorted(found)

    def _describe(self, path: Path) -> str:
        name = self._name(path)
        if path.is_symlink():
            return f"{name}: a link to {os.readlink(path)}"
        if not path.exists():
            return f"{name}: does not exist"
        if not path.is_file():
            return f"{name}: not a regular file"
        return f"{name}: sha256 {_sha256(path)}, {path.stat().st_size} bytes"


def _places(text: str, old: str) -> list[int]:
    places, place = [], text.find(old)
    while place != -1:
        places.append(place)
        place = text.find(old, place + 1)
    return places


def _command_outcome(result: CommandResult, seconds: float) -> ToolOutcome:
    if result.timed_out:
        head = f"ended by the time limit of {seconds:g} s, with everything that it started"
    elif result.exit_code is None:
        head = "ended from outside"
    else:
        head = f"exit code: {result.exit_code}"
    output = result.stdout.decode("utf-8", "replace").rstrip("\n")
    return ToolOutcome(f"{head}\n{output}" if output else head, result.exit_code != 0)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
