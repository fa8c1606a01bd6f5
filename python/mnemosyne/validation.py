"""Everything that is wrong with what was given, all at once and before it costs money.

Each check returns a ``Report``: *errors*, for which it is refused, each with its path, its value and its fix, and
apart from them *warnings*, which are only shown. What is not yet a plan or an item (JSON of a user's or a model's) is
read here too, so that a misspelt key and a circle of dependencies are told in one answer.

What a plan and a work item must be is judged in one place, ``rust/core/src/validation.rs`` and ``plan.rs``, which
decides what the store takes; this side reads and explains. Both are held to ``tests/shared/validation.json``.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel, JsonValue

    from mnemosyne.models import AgentHealth, Plan, WorkItem

__all__ = [
    "LARGEST_TEXT",
    "Finding",
    "Report",
    "check_prompt",
    "read_form",
    "read_json",
    "validate_agent_state",
    "validate_optimization_request",
    "validate_review_artifact",
    "validate_work_item",
    "validate_work_plan",
]

LARGEST_TEXT = 1_000_000
"""Bytes of a prompt or a description; more than any model reads, and it would be sent several times."""
_MOST_SHOWN = 60
"""Characters of a value that a finding repeats."""
_MOST_TOLD = 20
"""Problems that the reason names; ``problems`` has them all."""

_PLAN, _DANGLING, _ITEM, _RESULT = "MN-0103", "MN-0105", "MN-0117", "MN-0307"
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


# -- plans and work items ------------------------------------------------------------------------------------------


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
    if found is not None:
        _judge("plan", found, report, _PLAN)
    ids = [task.id for task in found.tasks] if found is not None else []
    report.errors = [
        replace(error, fix=_did_you_mean(error.value, ids) or error.fix) if error.code == _DANGLING else error
        for error in report.errors
    ]
    return report


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
    if found is not None:
        _judge("work_item", found, report, _ITEM)
    return report


def _judge(kind: Literal["plan", "work_item"], found: BaseModel, report: Report, code: str) -> None:
    """Ask Rust, which decides what the store takes. Here it took 4 ms for a plan of 100 tasks, there 0.5."""
    from mnemosyne import _core

    try:
        if kind == "plan":
            errors, warnings = _core.judge_plan(found)
        else:
            errors, warnings = _core.judge_work_item(found.model_dump_json(warnings=False))
    except (ValueError, TypeError, RecursionError) as error:
        # A model that was changed after it was made, or text that is no Unicode: pydantic names what it can.
        if _read(type(found), found.model_dump(warnings=False), report, code) is not None:
            place = next((name for name, value in found if not _is_json(value)), "")
            report._add(code, place, "", f"it is not JSON: {str(error)[:100]}", "use JSON values only")
        return
    for told, known in ((errors, report.errors), (warnings, report.warnings)):
        known += [Finding(code, path, _shown(value), message, fix) for code, path, value, message, fix in told]


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


# -- what agents are and give --------------------------------------------------------------------------------------


def validate_agent_state(health: AgentHealth | JsonValue) -> Report:
    """Check whether an agent can be given work now.

    Args:
        health: What ``health`` returned.

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
            for at, path in enumerate(scope):
                if not _is_inside(str(path)):
                    fix = "name a path inside the workspace, relative to it"
                    report._add(_ITEM, f"task.file_scope[{at}]", path, "it is not inside the workspace", fix)
        else:
            report._add(_ITEM, "task.file_scope", scope, "it is not a list of paths", "give a list of texts")
    feedback = context.get("feedback")
    if feedback is not None and not isinstance(feedback, str):
        report._add(_ITEM, "feedback", feedback, "it is not text", "give the reviewer's words, or leave it out")
    return report


def _is_inside(path: str) -> bool:
    """A relative path without a step upwards, and not into a repository's own files, which no tree holds."""
    return not path.startswith("/") and "\0" not in path and not {"..", ".git"} & set(path.split("/"))


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


def read_json(text: str) -> JsonValue:
    """Read JSON, without what it allows and nobody means: of two equal keys the first would be lost without a word.

    Raises:
        ValueError: It is no JSON, or a key is given twice.
    """
    try:
        found: JsonValue = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def read_form(model: type[_Read], value: object, what: str, code: str) -> _Read:
    """Return ``value`` as a model.

    Raises:
        InvalidInput: It has not the form; all that is wrong is in ``problems``, under ``code``.
    """
    report = Report(what)
    found = _read(model, value, report, code)
    report.raise_for_errors()
    assert found is not None  # else there was an error
    return found


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


def _shown(value: object) -> str:
    if value is None or value == "":
        return ""
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = "".join(char if char.isprintable() else " " for char in text[: 2 * _MOST_SHOWN])
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
