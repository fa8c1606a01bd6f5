"""Everything that is wrong with what was given, all at once and before it costs money.

Each check returns a :class:`Report`: *errors*, for which it is refused, each with its path, its value and its fix, and
apart from them *warnings*, which are only shown. What is not yet a plan or an item (JSON of a user's or a model's) is
read here too, so that a misspelt key and a circle of dependencies are told in one answer.

The rules about plans and work items are those of ``rust/core/src/validation.rs`` and ``plan.rs``, which decide what the
store takes; both are held to ``tests/shared/validation.json``. Warnings are for people, so only this side has them.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeVar

from mnemosyne.acceptance import can_fail
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel, JsonValue

    from mnemosyne.models import AgentHealth, Plan, WorkItem

__all__ = [
    "LARGEST_TEXT",
    "Finding",
    "Report",
    "check_prompt",
    "validate_agent_state",
    "validate_optimization_request",
    "validate_review_artifact",
    "validate_work_item",
    "validate_work_plan",
]

LARGEST_TEXT = 1_000_000
"""Bytes of a prompt or a description; more than any model reads, and it would be sent several times."""
_MOST_ENTRIES = 10_000
_LARGEST_CONTEXT = 10_000_000
"""Bytes of an item's context, as JSON."""
_LONGEST_ID = 200
_LONGEST_COMMAND = 3600.0
"""Seconds that an acceptance command may ask for."""
_MOST_SHOWN = 60
"""Characters of a value that a finding repeats."""
_MOST_TOLD = 20
"""Problems that the reason names; ``problems`` has them all."""
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_PLAN, _CYCLE, _DANGLING, _DUPLICATE = "MN-0103", "MN-0104", "MN-0105", "MN-0106"
_ITEM, _PROVES_NOTHING, _RESULT = "MN-0117", "MN-0120", "MN-0307"
_AGENT_STATE = "MN-0303"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that may be meant otherwise.

    Attributes:
        code: ``MN-####`` of an error; empty for a warning.
        path: Where it stands: ``tasks[0].depends_on[1]``; empty where the whole is meant.
        value: What stands there, shortened.
        message: What is wrong with it.
        fix: What to write instead.
    """

    code: str
    path: str
    value: str
    message: str
    fix: str

    def __str__(self) -> str:
        shown = f" (it is {self.value})" if self.value else ""
        return f"{self.path or 'its top level'}: {self.message}{shown}; {self.fix}"


@dataclass
class Report:
    """What a check found.

    Attributes:
        what: What was checked, for messages: ``plan``.
        errors: Why it is refused; empty if it is not.
        warnings: What is better asked again.
    """

    what: str
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def raise_for_errors(self) -> None:
        """Refuse what has errors.

        Raises:
            InvalidInput: With the code of the first error, and all of them in ``problems``.
        """
        if not self.errors:
            return
        first, *others = self.errors
        place = f"{first.path or 'its top level'}: {first.message}"
        message = f"the {self.what} cannot be used at {place}"
        if others:
            message = f"the {self.what} has {len(self.errors)} problems, the first at {place}"
        raise InvalidInput(
            message,
            code=first.code,
            reason="; ".join(
                f"also at {other.path or 'its top level'}: {other.message}" for other in others[:_MOST_TOLD]
            ),
            hint=f"{first.fix}; nothing was stored",
            problems=[asdict(finding) for finding in self.errors],
        )

    def _add(self, code: str, path: str, value: object, message: str, fix: str) -> None:
        self.errors.append(Finding(code, path, _shown(value), message, fix))

    def _warn(self, path: str, value: object, message: str, fix: str) -> None:
        self.warnings.append(Finding("", path, _shown(value), message, fix))


def check_prompt(text: str) -> None:
    """Refuse a prompt that no model could read.

    Raises:
        InvalidInput: It is empty (MN-0101), or too long or no text (MN-0102).
    """
    if not text.strip():
        raise InvalidInput(
            "the prompt is empty",
            code="MN-0101",
            hint='mnemosyne orchestrate "what you want", or @FILE, or - for stdin',
        )
    reason = ""
    try:
        if len(text.encode("utf-8")) > LARGEST_TEXT:
            reason = f"it holds more than {LARGEST_TEXT:,} bytes"
    except UnicodeEncodeError:
        reason = "it is not valid UTF-8"
    if "\0" in text:
        reason = "it holds a NUL character, so it is no text"
    if reason:
        hint = "put long material into files of the workspace, and say where it is"
        raise InvalidInput("the prompt cannot be read", code="MN-0102", reason=reason, hint=hint)


# -- plans ---------------------------------------------------------------------------------------------------------


def validate_work_plan(plan: Plan | JsonValue) -> Report:
    """Check a plan: its form, ids used twice, dependencies on nothing and in circles, scopes, and what proves it.

    Args:
        plan: A plan, or what should become one: JSON of a user's or of a model's.

    Returns:
        Errors under MN-0103 to MN-0106 and MN-0120. Warnings: vague words with a better question, tasks that change the
        same files without waiting for each other, and tasks beside others without a scope, which run alone.
    """
    from mnemosyne.models import Plan

    report = Report("plan")
    found = _read(Plan, plan, report, _PLAN)
    if found is None:
        return report
    if len(found.tasks) > _MOST_ENTRIES:
        fix = "give 1 to 10,000 tasks; one task is done in one go by one agent"
        report._add(_PLAN, "tasks", len(found.tasks), "there are more than 10,000 tasks", fix)
        return report
    places = _check_ids(found, report)
    _check_dependencies(found, places, report)
    for at, command in enumerate(found.setup):
        if not command.strip() or "\0" in command:
            fix = "write a shell command, or take the entry out"
            report._add(_PLAN, f"setup[{at}]", command, "this is no command", fix)
    for at in range(len(found.tasks)):
        _check_task(found, at, report)
    _warn_of_overlaps(found, places, report)
    return report


def _check_ids(plan: Plan, report: Report) -> dict[str, int]:
    places: dict[str, int] = {}
    for at, task in enumerate(plan.tasks):
        if places.setdefault(task.id, at) != at:
            message = f"the task id {_quoted(task.id)} is used twice"
            report._add(_DUPLICATE, f"tasks[{at}].id", task.id, message, "choose another id")
    return places


def _check_dependencies(plan: Plan, places: Mapping[str, int], report: Report) -> None:
    for at, task in enumerate(plan.tasks):
        for number, name in enumerate(task.depends_on):
            if name not in places:
                report._add(
                    _DANGLING,
                    f"tasks[{at}].depends_on[{number}]",
                    name,
                    f"task {_quoted(task.id)} depends on {_quoted(name)}, which is no task of the plan",
                    _did_you_mean(name, places) or "name a task of the plan, or take the entry out",
                )
    edges = [
        [places[name] for name in task.depends_on if name in places] if places[task.id] == at else []
        for at, task in enumerate(plan.tasks)
    ]
    for cycle in _cycles(edges, [places[name] for name in sorted(places)]):
        names = [plan.tasks[at].id for at in cycle]
        fix = "take one of these dependencies out, or split a task"
        message = f"the tasks {_circle(names)} depend on each other in a circle"
        report._add(_CYCLE, f"tasks[{cycle[0]}].depends_on", names[1], message, fix)


def _cycles(depends_on: Sequence[Sequence[int]], order: Iterable[int]) -> Iterator[list[int]]:
    """Yield circles that share no task, each as a closed walk.

    Tasks are taken away while they depend on nothing that is left; what cannot be taken away depends on a circle.
    """
    dependents: list[list[int]] = [[] for _ in depends_on]
    for at, dependencies in enumerate(depends_on):
        for dependency in dependencies:
            dependents[dependency].append(at)
    waiting = [len(dependencies) for dependencies in depends_on]
    left = [True] * len(depends_on)
    free = [at for at, count in enumerate(waiting) if count == 0]
    for start in order:
        while True:
            while free:
                at = free.pop()
                if left[at]:
                    left[at] = False
                    for dependent in dependents[at]:
                        waiting[dependent] -= 1
                        if waiting[dependent] == 0:
                            free.append(dependent)
            if not left[start]:
                break
            cycle = _walk(start, depends_on, left)
            free.extend(cycle)
            yield [*cycle, cycle[0]]


def _walk(start: int, depends_on: Sequence[Sequence[int]], left: Sequence[bool]) -> list[int]:
    step_of, path = {start: 0}, [start]
    while True:
        following = next(at for at in depends_on[path[-1]] if left[at])
        if following in step_of:
            return path[step_of[following] :]
        step_of[following] = len(path)
        path.append(following)


def _check_task(plan: Plan, at: int, report: Report) -> None:
    task, path = plan.tasks[at], f"tasks[{at}]"
    if not _TASK_ID.fullmatch(task.id):
        fix = "use 1 to 64 letters, digits, dots, dashes and underscores, and a letter or digit first"
        report._add(_PLAN, f"{path}.id", task.id, "this is no id of a task", fix)
    if not task.title.strip() or "\0" in task.title:
        fix = "say in one line what the task makes"
        report._add(_PLAN, f"{path}.title", task.title, "this is no title", fix)
    if "\0" in task.description:
        report._add(_PLAN, f"{path}.description", "", "it holds a NUL character, so it is no text", "take it out")
    _check_scope(_PLAN, f"{path}.", task.file_scope, report, task.id)
    for number, acceptance in enumerate(task.acceptance):
        where = f"{path}.acceptance[{number}]"
        if "\0" in acceptance.command:
            report._add(_PLAN, f"{where}.command", "", "it holds a NUL character, so it is no command", "take it out")
        if not 0 < acceptance.timeout_seconds <= _LONGEST_COMMAND:
            fix = "give a number of seconds above 0, at most 3600"
            report._add(_PLAN, f"{where}.timeout_seconds", acceptance.timeout_seconds, "it is no time limit", fix)
    commands = [acceptance.command for acceptance in task.acceptance]
    if not any(command.strip() for command in commands):
        fix = "give a shell command that fails before the change and succeeds after it"
        message = f"task {_quoted(task.id)} has no acceptance command"
        report._add(_PLAN, f"{path}.acceptance", "", message, fix)
    elif not any(can_fail(command) for command in commands):
        report._add(
            _PROVES_NOTHING,
            f"{path}.acceptance",
            commands[0],
            f"task {_quoted(task.id)} is proved by no command that can fail ({commands[0]})",
            "add one that fails before the change and succeeds after it, such as a test, or for a refactoring a new "
            "test, a lint rule or a size limit",
        )
    if not task.file_scope and len(plan.tasks) > 1:
        fix = "name the paths that it may change, so that other tasks can be worked on meanwhile"
        report._warn(f"{path}.file_scope", "", "without a scope the task may change everything, and so runs alone", fix)
    if len(set(task.depends_on)) < len(task.depends_on):
        report._warn(f"{path}.depends_on", "", "a task is named twice", "name it once")
    if _may_be_vague(f"{task.title}\n{task.description}"):
        _warn_of_vague_words(f"{path}.title", task.title, report)
        _warn_of_vague_words(f"{path}.description", task.description, report)


def _check_scope(code: str, prefix: str, scope: Sequence[str], report: Report, task: str | None = None) -> None:
    for at, path in enumerate(scope):
        if not _is_inside(path):
            message = "it is not inside the workspace"
            if task is not None:
                message = f"task {_quoted(task)} names the path {_quoted(path)}, which is not inside the workspace"
            fix = "name a path inside the workspace, relative to it"
            report._add(code, f"{prefix}file_scope[{at}]", path, message, fix)


def _is_inside(path: str) -> bool:
    """A relative path without a step upwards, and not into a repository's own files, which no tree holds."""
    return not path.startswith("/") and "\0" not in path and not {"..", ".git"} & set(path.split("/"))


def _warn_of_overlaps(plan: Plan, places: Mapping[str, int], report: Report) -> None:
    """Two tasks that change the same files and do not wait for each other are worked on one after the other."""
    owners: dict[str, int] = {}
    for at, task in enumerate(plan.tasks):
        for scope in task.file_scope:
            parts = scope.strip("/").split("/")
            prefixes = ("/".join(parts[:length]) for length in range(1, len(parts) + 1))
            other = next((owners[prefix] for prefix in prefixes if prefix in owners), None)
            if other is None or other == at:
                owners[scope.strip("/")] = at
            elif plan.tasks[other].id not in task.depends_on and task.id not in plan.tasks[other].depends_on:
                report._warn(
                    f"tasks[{at}].file_scope",
                    scope,
                    f"task {_quoted(plan.tasks[other].id)} changes it too, so they are worked on one after the other",
                    "give each its own files, or let one depend on the other",
                )


_VAGUE: Mapping[str, str] = {
    "appropriate": "which one is it?",
    "as needed": "when is it needed?",
    "better": "what can one see that is different afterwards?",
    "clean up": "what is to be gone, and how does one see that?",
    "easy to use": "who does what, in how many steps?",
    "efficient": "how much time or memory at most, for how much input?",
    "etc": "what are the others?",
    "fast": "how many seconds at most, for how much input?",
    "flexible": "which two cases must it serve?",
    "improve": "what can one see that is different afterwards?",
    "intuitive": "who does what, in how many steps?",
    "nice": "what can one see that is different afterwards?",
    "optimize": "what is measured, and which figure is enough?",
    "properly": "what would be wrong?",
    "robust": "which failures must it survive, and how?",
    "scalable": "how many, and how long may it take then?",
    "secure": "who must not be able to do what?",
    "simple": "what is it to leave out?",
    "somehow": "in which way?",
    "support for all": "which ones?",
    "user-friendly": "who does what, in how many steps?",
    "various": "which ones?",
}
"""Words that two people understand differently, each with the question whose answer would take its place."""
_VAGUE_WORDS = re.compile(rf"\b(?:{'|'.join(map(re.escape, _VAGUE))})\b", re.IGNORECASE)


def _may_be_vague(text: str) -> bool:
    """Whether it is worth looking with the pattern, which takes ten times as long."""
    lowered = text.lower()
    for word in _VAGUE:  # noqa: SIM110 - a generator would cost twice as much, for each task of a plan
        if word in lowered:
            return True
    return False


def _warn_of_vague_words(path: str, text: str, report: Report) -> None:
    for word in dict.fromkeys(found.lower() for found in _VAGUE_WORDS.findall(text)):
        report._warn(path, word, f"the word {_quoted(word)} can mean many things", f"say instead: {_VAGUE[word]}")


# -- work items ----------------------------------------------------------------------------------------------------


def validate_work_item(item: WorkItem | JsonValue) -> Report:
    """Check a work item of a user's own.

    Args:
        item: An item, or what should become one.

    Returns:
        Errors under MN-0117, and MN-0104 for an item that depends on itself; warnings about vague words.
    """
    from mnemosyne.models import WorkItem

    report = Report("work item")
    found = _read(WorkItem, item, report, _ITEM)
    if found is None:
        return report
    if not found.id.strip() or len(found.id) > _LONGEST_ID or _has_control(found.id):
        fix = "give it an id of 1 to 200 printable characters that is unique in the store"
        report._add(_ITEM, "id", found.id, "this is no id", fix)
    _check_words("description", found.description, report)
    if not 0 <= found.priority <= 10:
        report._add(_ITEM, "priority", found.priority, "it is out of range", "use 0 (last) to 10 (first)")
    if len(found.depends_on) > _MOST_ENTRIES:
        message, fix = "it has more than 10,000 entries", "depend on fewer items"
        report._add(_ITEM, "depends_on", len(found.depends_on), message, fix)
    for at, name in enumerate(found.depends_on[:_MOST_ENTRIES]):
        if not name.strip():
            fix = "name a work item, or take the entry out"
            report._add(_ITEM, f"depends_on[{at}]", name, "this is no id", fix)
        elif name == found.id:
            report._add(_CYCLE, f"depends_on[{at}]", name, "the item depends on itself", "take the entry out")
    _check_scope(_ITEM, "", found.file_scope, report)
    if not (math.isfinite(found.timeout_seconds) and found.timeout_seconds > 0):
        fix = "give a positive number of seconds"
        report._add(_ITEM, "timeout_seconds", found.timeout_seconds, "it is no time limit", fix)
    if found.attempt < 1:
        report._add(_ITEM, "attempt", found.attempt, "attempts are counted from 1", "leave it out")
    _check_context(found.context, report)
    _warn_of_vague_words("description", found.description, report)
    return report


def _check_words(path: str, text: str, report: Report) -> None:
    if not text.strip():
        report._add(_ITEM, path, "", "it is empty", "say what is to be done")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        report._add(_ITEM, path, "", "it is not valid UTF-8", "take out what is no character")
        return
    if size > LARGEST_TEXT:
        fix = "put long material into files, and say where they are"
        report._add(_ITEM, path, text, "it holds more than 1,000,000 bytes", fix)
    if "\0" in text:
        report._add(_ITEM, path, "", "it holds a NUL character, so it is no text", "take it out")


def _check_context(context: Mapping[str, JsonValue], report: Report) -> None:
    try:
        size = len(json.dumps(context, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))
    except (ValueError, TypeError, RecursionError) as error:
        report._add(_ITEM, "context", "", f"it is not JSON: {str(error)[:100]}", "use JSON values only")
        return
    if size > _LARGEST_CONTEXT:
        fix = "put large material into files, and name them in the context"
        report._add(_ITEM, "context", "", "it holds more than 10,000,000 bytes as JSON", fix)


# -- what agents are and give --------------------------------------------------------------------------------------


def validate_agent_state(health: AgentHealth | JsonValue) -> Report:
    """Check whether an agent can be given work now.

    Args:
        health: What :meth:`~mnemosyne.bridge.ClaudeAgentBridge.health` returned.

    Returns:
        Errors under MN-0303 for a state in which it takes none; warnings for one that is about to be restarted or has
        been silent for longer than two heartbeats.
    """
    from mnemosyne.models import AgentHealth

    report = Report("agent's state")
    found = _read(AgentHealth, health, report, _AGENT_STATE)
    if found is None:
        return report
    fixes = {
        "quarantined": "correct the agent, then restart it: bridge.restart()",
        "degraded": "correct its cause; it is tried again by itself",
        "stopped": "spawn a new bridge",
    }
    if found.state in fixes:
        message = f"the agent is {found.state}" + (f": {found.last_error}" if found.last_error else "")
        report._add(_AGENT_STATE, "state", found.state, message, fixes[found.state])
    if found.should_restart or not found.is_healthy:
        message = f"{found.error_count} errors in the last 60 s; five restart it"
        report._warn("error_count", found.error_count, message, "look at last_error, and correct the agent")
    if found.heartbeat_age_seconds is not None and found.heartbeat_age_seconds > 2.0:
        fix = "an agent that blocks the loop should be a plain def, which is run in a thread"
        report._warn("heartbeat_age_seconds", round(found.heartbeat_age_seconds, 1), "its loop is held up", fix)
    return report


def validate_review_artifact(data: JsonValue) -> Report:
    """Check what a reviewer returned as ``data`` (TRUTH-1: a verdict that is not one passes nothing).

    Returns:
        Errors under MN-0307: ``passed`` is no boolean, ``confidence`` no number from 0 to 1, ``feedback`` no text,
        ``requirements`` no list of objects. A warning for a rejection that does not say why.
    """
    report = Report("reviewer's verdict")
    if not isinstance(data, dict):
        report._add(_RESULT, "", data, "it is not an object", _VERDICT)
        return report
    if not isinstance(data.get("passed"), bool):
        report._add(_RESULT, "passed", data.get("passed"), "it is not true or false", _VERDICT)
    confidence = data.get("confidence", 1.0)
    is_number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    if not is_number or not 0 <= confidence <= 1:  # type: ignore[operator]
        report._add(_RESULT, "confidence", confidence, "it is not a number from 0 to 1", "for example 0.9")
    feedback = data.get("feedback")
    if feedback is not None and not isinstance(feedback, str):
        report._add(_RESULT, "feedback", feedback, "it is not text", "say in words what is missing")
    requirements = data.get("requirements", [])
    if not isinstance(requirements, list):
        report._add(_RESULT, "requirements", requirements, "it is not a list", "leave it out, or give a list")
    else:
        for at, entry in enumerate(requirements):
            if not isinstance(entry, dict):
                fix = 'give objects: {"id": "R1", "satisfied": true, "evidence": "..."}'
                report._add(_RESULT, f"requirements[{at}]", entry, "it is not an object", fix)
    if data.get("passed") is False and not str(feedback or "").strip():
        fix = "say what is missing: it is all that the next attempt learns of this one"
        report._warn("feedback", "", "a rejection without feedback helps nobody", fix)
    return report


_VERDICT = 'put it into data: {"passed": true, "confidence": 0.9, "feedback": "", "requirements": []}'


def validate_optimization_request(context: JsonValue) -> Report:
    """Check the context of an item for the Optimizer.

    Returns:
        Errors under MN-0117: ``task`` is no object, ``feedback`` is no text, a path of its scope is not
        inside the workspace.
    """
    report = Report("optimization request")
    if not isinstance(context, dict):
        report._add(_ITEM, "", context, "it is not an object", 'give {"task": {"id": "t1", "title": "..."}}')
        return report
    task = context.get("task")
    if task is not None and not isinstance(task, dict):
        report._add(_ITEM, "task", task, "it is not an object", 'give {"id": "t1", "title": "..."}')
    if isinstance(task, dict):
        scope = task.get("file_scope", [])
        if isinstance(scope, list) and all(isinstance(path, str) for path in scope):
            _check_scope(_ITEM, "task.", [str(path) for path in scope], report)
        else:
            report._add(_ITEM, "task.file_scope", scope, "it is not a list of paths", "give a list of texts")
    feedback = context.get("feedback")
    if feedback is not None and not isinstance(feedback, str):
        report._add(_ITEM, "feedback", feedback, "it is not text", "give the reviewer's words, or leave it out")
    return report


# -- reading -------------------------------------------------------------------------------------------------------

_Read = TypeVar("_Read", bound="BaseModel")

_SAID: Mapping[str, tuple[str, str]] = {
    "extra_forbidden": ("unknown key", "take it out"),
    "missing": ("this key is missing", "add it"),
    "model_type": ("a JSON object is due", "write { ... }"),
    "dict_type": ("a JSON object is due", "write { ... }"),
    "list_type": ("a list is due", "write [ ... ]"),
    "string_type": ("a text is due", 'write it in quotes: "..."'),
    "string_too_short": ("it is empty", "say what is meant"),
    "too_short": ("it is empty", "give at least one"),
    "string_pattern_mismatch": (
        "only letters, digits, dots, dashes and underscores, and a letter or digit first",
        "choose another id",
    ),
}
"""Where pydantic speaks of its own types; by the type of the problem."""


def _read(model: type[_Read], value: object, report: Report, code: str) -> _Read | None:
    """Return ``value`` as a model; None where it has not the form, of which the report then tells."""
    from pydantic import ValidationError

    if isinstance(value, model):
        return value
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            report._add(code, "", "", "it is nested too deeply", "write it flatter")
            return None
        for problem in error.errors(include_url=False, include_context=False):
            message, fix = _SAID.get(problem["type"], ("", "correct the value"))
            message = message or problem["msg"][:1].lower() + problem["msg"][1:]
            path = _path(problem["loc"])
            if problem["type"] == "extra_forbidden":
                fix = _did_you_mean(str(problem["loc"][-1]), _fields(model, problem["loc"])) or fix
            shown = "" if problem["type"] in ("missing", "extra_forbidden") else problem["input"]
            report._add(code, path, shown, message, fix)
        return None


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that stand where an unknown one was found."""
    import typing

    for part in location[:-1]:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        kind: object = model.model_fields[part].annotation
        inner = [one for one in typing.get_args(kind) if hasattr(one, "model_fields")]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known)[:_MOST_SHOWN], 1, 0.75)
    return f"did you mean {close[0]}?" if close else ""


def _circle(names: Sequence[str]) -> str:
    most = 10
    rest = f" -> … ({len(names) - most} more)" if len(names) > most else ""
    return " -> ".join(names[:most]) + rest


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _has_control(text: str) -> bool:
    return any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)


def _shown(value: object) -> str:
    if value is None or value == "":
        return ""
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = "".join(char if char.isprintable() else " " for char in text[: 2 * _MOST_SHOWN])
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
