"""The demo model as executor: look, write, check, tell; each step is read off the conversation so far.

There is no state: which step is next follows from the tool results in the request. Leaf modules look so simple that
a first attempt only imports them; what builds on other modules, and every rework, is checked with the acceptance
commands. That is how a hasty reading (``rules``) gets as far as the review, as it does in life.
What it learns, it learns from the feedback in the prompt alone: take that out, and the mistake comes back.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnemosyne.demo import prompt, rules
from mnemosyne.demo.project import functions, imported_names, module_name
from mnemosyne.demo.prompt import Call

__all__ = ["Turn", "next_turn"]

_PATIENCE = 3
_INTERRUPTED = re.compile(r"interrupted", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """What the executor does next.

    Attributes:
        says: A thought where it calls tools, its last words where it does not.
        uses: Tool names and their inputs.
    """

    says: str
    uses: Sequence[tuple[str, dict[str, object]]] = ()


@dataclass(frozen=True)
class _View:
    """What the conversation shows.

    Attributes:
        known: Text of the files, as last read or written by us.
        failures: Reads and writes that failed, by path.
        checks: Results of the commands that ran since the last change; only the latest of each.
        runs: How often each command was run.
        paths: Every path that the tools or the context named.
    """

    known: Mapping[str, str]
    failures: Mapping[str, int]
    checks: Mapping[str, Call]
    runs: Mapping[str, int]
    paths: frozenset[str]


def next_turn(parts: Mapping[str, str], calls: Sequence[Call]) -> Turn:
    """Return the next step of the task in ``parts`` after ``calls``."""
    view = _look(parts, calls)
    scope = [line.strip() for line in parts.get("scope", "").splitlines() if line.strip()]
    if not calls:
        reads = [("read_file", _input(path=path)) for path in scope if path.endswith(".py")]
        return Turn("I look at the project and at the files of my scope first.", [("list_files", {}), *reads])
    mine = sorted(path for path in view.paths if path.endswith(".py") and _is_in(path, scope))
    if not mine:
        return Turn("I could not finish: there is no Python file in my scope.")
    if hopeless := [path for path in mine if view.failures.get(path, 0) >= _PATIENCE]:
        return Turn(f"I could not finish: {', '.join(hopeless)} can not be read or written.")
    if unread := [path for path in mine if path not in view.known]:
        return Turn("I need to see the present text.", [("read_file", _input(path=path)) for path in unread])
    known = rules.examples(parts.get("feedback", ""))
    changes = [use for path in mine for use in _changes(path, view.known[path], known)]
    if changes:
        return Turn(_why(known), changes)
    return _check(parts, view, mine)


def _look(parts: Mapping[str, str], calls: Sequence[Call]) -> _View:
    known: dict[str, str] = {}
    failures: dict[str, int] = {}
    checks: dict[str, Call] = {}
    runs: dict[str, int] = {}
    paths = set(prompt.files(parts.get("context", "")))
    for call in calls:
        path, command = _path(call), str(call.input.get("command", ""))
        if call.name == "run_command":
            checks[command] = call
            runs[command] = runs.get(command, 0) + 1
        elif call.name == "list_files":
            paths |= {posixpath.normpath(word) for word in call.result.split() if word.endswith(".py")}
        elif call.failed:
            known.pop(path, None)
            failures[path] = failures.get(path, 0) + 1
        else:
            checks = checks if call.name == "read_file" else {}
            known[path] = _text_after(call, known.get(path, ""))
    return _View(known, failures, checks, runs, frozenset(paths | set(known) | set(failures)))


def _text_after(call: Call, before: str) -> str:
    if call.name == "read_file":
        return call.result
    if call.name == "write_file":
        return str(call.input.get("content", ""))
    return before.replace(str(call.input.get("old", "")), str(call.input.get("new", "")), 1)


def _changes(path: str, text: str, known: Sequence[rules.Example]) -> list[tuple[str, dict[str, object]]]:
    """The tool uses that bring one file to what its docstrings and the examples demand."""
    edits: list[tuple[str, str]] = []
    try:
        found = functions(text)
    except SyntaxError:
        return []
    for function in found:
        about = [example for example in known if example.function == function.name]
        refuted = any(not rules.agrees(function.source, example) for example in about)
        if not (function.unfinished or refuted):
            continue
        try:
            rule = rules.parse(function.docstring)
        except rules.UnreadableError:
            continue
        source = function.with_body(rules.choose(rule, function.header, about))
        if source != function.source:
            edits.append((function.source, source))
    if len(edits) > 1:
        for old, new in edits:
            text = text.replace(old, new, 1)
        return [("write_file", _input(path=path, content=text.rstrip("\n") + "\n"))]
    return [("edit_file", _input(path=path, old=old, new=new)) for old, new in edits]


def _why(known: Sequence[rules.Example]) -> str:
    if not known:
        return "I write what the docstrings say."
    return "I misread a rule: " + "; ".join(str(example) for example in known) + "."


def _check(parts: Mapping[str, str], view: _View, mine: Sequence[str]) -> Turn:
    """Run what is left to run, then tell what was seen, red as well as green."""
    is_rework = "feedback" in parts
    if is_rework or any(_builds_on_others(view, path) for path in mine):
        commands = [line.strip() for line in parts.get("acceptance", "").splitlines() if line.strip()]
    else:
        modules = ", ".join(module_name(path) for path in mine)
        commands = [f"python3 -c {shlex.quote(f'import {modules}')}"]
    due = [command for command in commands if command not in view.checks or _was_interrupted(view, command)]
    if due:
        uses = [("run_command", _input(command=command)) for command in due]
        return Turn("I check what I wrote.", uses)
    red = [command for command in commands if view.checks[command].failed]
    files = ", ".join(mine)
    if red:
        return Turn(f"I worked on {files}, but this is still red: {'; '.join(red)}.")
    return Turn(f"I finished {files} by the rules of the docstrings. Green: {'; '.join(commands)}.")


def _was_interrupted(view: _View, command: str) -> bool:
    call = view.checks[command]
    return call.failed and bool(_INTERRUPTED.search(call.result)) and view.runs[command] < _PATIENCE


def _builds_on_others(view: _View, path: str) -> bool:
    imported = imported_names(ast.parse(view.known[path]), path) if _parses(view.known[path]) else set()
    candidates = {name.replace(".", "/") + ending for name in imported for ending in (".py", "/__init__.py")}
    return bool(candidates & view.paths)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _is_in(path: str, scope: Sequence[str]) -> bool:
    return any(path == entry or path.startswith(entry.rstrip("/") + "/") for entry in scope)


def _path(call: Call) -> str:
    return posixpath.normpath(str(call.input.get("path", "")))


def _input(**values: object) -> dict[str, object]:
    return values
