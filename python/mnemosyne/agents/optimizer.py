"""The Optimizer: chooses what an executor is shown before it begins, under a cap in bytes.

It asks no model. What a task needs first can be read off the task: the files it may change, the tests that will judge
it, what those import, the files that a failing output names. A model would cost a turn per task and choose less
repeatably, and the executor can still read whatever else it wants with its tools. The same task over the same accepted
files gives the same pack, to the byte. Feedback is used here to choose files; its text has a section of its own in the
executor's prompt.

Files are never cut: a half file misleads. One that does not fit is named instead.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence

from pydantic import JsonValue

from mnemosyne.agents import prompts
from mnemosyne.agents.base_agent import AgentExecutionMixin
from mnemosyne.agents.claude_agent import item_context
from mnemosyne.agents.context import ProjectFiles
from mnemosyne.errors import AgentError
from mnemosyne.validation import validate_optimization_request
from mnemosyne.workspace import as_text

__all__ = ["PACK_BYTES", "OptimizerAgent", "build_pack", "imported_files", "named_in"]

PACK_BYTES = 65_536

_LARGEST_SCOPE = 200  # files; a scope that is a whole project is not worth reading through before the cap is met
_NAME = re.compile(r"[A-Za-z0-9_.\-/]+")


class OptimizerAgent(AgentExecutionMixin):
    """Builds the context pack of a task."""

    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return ``data`` with the ``pack``."""
        if self.context.files is None:
            raise AgentError(
                "the Optimizer has no project to read",
                code="MN-0313",
                reason="the item belongs to no run",
                hint="submit a prompt or a plan with Orchestra.submit; its tasks come with a project",
            )
        context = item_context(work_dict)
        validate_optimization_request(context).raise_for_errors()
        task, feedback = context.get("task"), context.get("feedback")
        fields = task if isinstance(task, dict) else {}
        pack = await build_pack(
            self.context.files,
            scope=_strings(fields.get("file_scope")),
            commands=_commands(fields.get("acceptance")),
            feedback=feedback if isinstance(feedback, str) else "",
            earlier=_earlier(context.get("earlier")),
        )
        return {"success": True, "data": {"pack": pack}}


async def build_pack(
    files: ProjectFiles,
    *,
    scope: Sequence[str],
    commands: Sequence[str],
    feedback: str = "",
    earlier: Sequence[str] = (),
) -> str:
    """Return the pack: most important files first, at most ``PACK_BYTES`` bytes in all.

    Args:
        scope: Path prefixes that the task may change.
        commands: The acceptance commands; files and test modules named in them are included.
        feedback: Output of a rejected attempt; project files that it names are included.
        earlier: Files that earlier tasks changed.
    """
    present = await files.list_files()
    known = set(present)
    own = [path for path in present if any(_covers(prefix, path) for prefix in scope)][:_LARGEST_SCOPE]
    tests = [path for command in commands for path in named_in(command, present)]
    contents = await files.read_files(_unique([*own, *tests]))
    imported = [found for path, content in contents.items() for found in imported_files(path, content, known)]
    mentioned = [path for path in _NAME.findall(feedback) if path in known]
    others = [path for path in _unique([*imported, *mentioned, *earlier]) if path in known and path not in contents]
    contents |= await files.read_files(others)
    return _packed(_unique([*own, *tests, *others]), contents)


def named_in(command: str, present: Sequence[str]) -> list[str]:
    """Return the project's files that a shell command names: paths, folders, and dotted module names."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unbalanced quote: the shell will say so, here it only means fewer hints
        words = command.split()
    found: list[str] = []
    for word in words:
        path = posixpath.normpath(word.split("::")[0])  # pytest names a test as path::name
        found += [name for name in present if name == path or (path != "." and name.startswith(f"{path}/"))]
        found += _module(word, set(present))
    return _unique(found)


def imported_files(path: str, content: bytes, known: set[str]) -> list[str]:
    """Return the project's files that a Python file imports, directly; nothing for other languages."""
    if not path.endswith(".py"):
        return []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []
    folder = posixpath.dirname(path)
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [file for name in node.names for file in _resolved(name.name, folder, known)]
        elif isinstance(node, ast.ImportFrom):
            found += _from(node, folder, known)
    return [file for file in _unique(found) if file != path]


def _from(node: ast.ImportFrom, folder: str, known: set[str]) -> list[str]:
    module = node.module or ""
    if not node.level:
        return [
            file
            for name in [module, *(f"{module}.{alias.name}" for alias in node.names)]
            for file in _resolved(name, folder, known)
        ]
    base = folder
    for _ in range(node.level - 1):
        base = posixpath.dirname(base)
    names = [module, *(".".join(part for part in (module, alias.name) if part) for alias in node.names)]
    return [file for name in names for file in _at(posixpath.join(base, name.replace(".", "/")), known)]


def _resolved(module: str, folder: str, known: set[str]) -> list[str]:
    """Look from the top, from ``src``, and from the importing file's folder upwards: no import path is configured."""
    roots = ["", "src"]
    while folder:
        roots.append(folder)
        folder = posixpath.dirname(folder)
    for root in roots:
        if found := _at(posixpath.join(root, module.replace(".", "/")), known):
            return found
    return []


def _at(path: str, known: set[str]) -> list[str]:
    path = posixpath.normpath(path)
    return [name for name in (f"{path}.py", f"{path}/__init__.py") if name in known]


def _module(word: str, known: set[str]) -> list[str]:
    # tests.test_shop.CartTest.test_total: the longest prefix that is a module.
    parts = word.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return _at(word, known) if word.isidentifier() else []
    for length in range(len(parts), 0, -1):
        if found := _at("/".join(parts[:length]), known):
            return found
    return []


def _packed(order: Iterable[str], contents: dict[str, bytes]) -> str:
    left, shown, omitted = PACK_BYTES, [], []
    for path in order:
        content = contents.get(path)
        if content is None:
            continue
        text = as_text(content)
        entry = prompts.file_section(path, text) if text is not None else None
        size = len(entry.encode("utf-8")) + 1 if entry is not None else 0
        if entry is None or size > left:
            omitted.append(path)
            continue
        shown.append(entry)
        left -= size
    if omitted:
        # The list of names has to fit as well; when even that does not, the tools still find the files.
        note = prompts.section("omitted", "\n".join(omitted))
        if len(note.encode("utf-8")) <= left:
            shown.append(note)
    return "\n".join(shown)


def _covers(prefix: str, path: str) -> bool:
    prefix = posixpath.normpath(prefix)
    return prefix == "." or path == prefix or path.startswith(f"{prefix}/")


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _strings(value: JsonValue) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _commands(acceptance: JsonValue) -> list[str]:
    entries = acceptance if isinstance(acceptance, list) else []
    commands = [entry.get("command") if isinstance(entry, dict) else entry for entry in entries]
    return [command for command in commands if isinstance(command, str)]


def _earlier(value: JsonValue) -> list[str]:
    tasks = value if isinstance(value, list) else []
    return [path for task in tasks if isinstance(task, dict) for path in _strings(task.get("files"))]
