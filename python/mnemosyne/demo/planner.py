"""The demo model as orchestrator and reviewer: structured answers that are computed from the files in the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mnemosyne.demo import prompt
from mnemosyne.demo.project import Module, Project, UnworkableError

__all__ = ["full_spec", "judgement", "plan", "spec"]

_GOAL = re.compile(
    r"\b(finish|complete|implement|fill in)\b.*\b(unfinished|functions?|modules?|project|code|rules?|docstrings?|"
    r"NotImplementedError)\b|\b(make|get|let|turn)\b.*\btests?\b.*\b(pass|green|succeed)",
    re.IGNORECASE | re.DOTALL,
)
_BEYOND = re.compile(
    r"\b(add|build|create|new|delete|remove|rename|refactor|rewrite|translate|deploy|publish|install|design|"
    r"migrate|convert|server|website|api)\b",
    re.IGNORECASE,
)
_ACCEPTANCE_SECONDS = 60


def _modules(parts: Mapping[str, str]) -> list[Module]:
    request = parts.get("request", "")
    if not _GOAL.search(request):
        raise UnworkableError("this request is something else")
    if beyond := _BEYOND.search(request):
        raise UnworkableError(f"this request asks for more ({beyond[0]!r})")
    return Project(prompt.files(parts.get("project", ""))).unfinished_modules()


def _commands(module: Module) -> list[str]:
    return [f"python3 -m unittest {test}" for test in module.tests]


def _requirements(modules: list[Module]) -> list[tuple[str, Module, str]]:
    """Every unfinished function, numbered: id, module, text."""
    due = [(module, module.requirement(function)) for module in modules for function in module.functions]
    return [(f"R{number}", module, text) for number, (module, text) in enumerate(due, start=1)]


def spec(parts: Mapping[str, str]) -> dict[str, object]:
    """One requirement per unfinished function."""
    modules = _modules(parts)
    due = _requirements(modules)
    return {
        "summary": f"Finish {len(due)} functions in {len(modules)} modules by the rules in their docstrings.",
        "requirements": [{"id": number, "text": text} for number, _, text in due],
        "open_questions": [],
        "acceptance": [command for module in modules for command in _commands(module)],
    }


def full_spec(parts: Mapping[str, str]) -> dict[str, object]:
    """One component per module, and the test that proves each requirement."""
    modules = _modules(parts)
    numbers = _numbers(parts, modules)
    return {
        "components": [
            {
                "name": module.name,
                "files": [module.path],
                "responsibility": module.purpose,
                "requirements": numbers[module.name],
            }
            for module in modules
        ],
        "constraints": ["Only the standard library is used.", "Tests and signatures stay as they are."],
        "test_plan": [
            {"requirement": number, "command": command}
            for module in modules
            for number in numbers[module.name]
            for command in _commands(module)
        ],
    }


def _numbers(parts: Mapping[str, str], modules: list[Module]) -> dict[str, list[str]]:
    """The ids that the spec gave to the requirements of each module; our own where it has none of that text."""
    given = prompt.load(parts.get("spec"), {})
    entries = given.get("requirements", []) if isinstance(given, dict) else []
    known = {entry.get("text"): str(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    numbers: dict[str, list[str]] = {module.name: [] for module in modules}
    for number, module, text in _requirements(modules):
        numbers[module.name].append(known.get(text, number))
    return numbers


def plan(parts: Mapping[str, str]) -> dict[str, object]:
    """One task per module; what imports waits for what it imports, all else may go on at once."""
    modules = _modules(parts)
    task_ids = {module.name: f"t{number}" for number, module in enumerate(modules, start=1)}
    return {"setup": [], "tasks": [_task(module, task_ids) for module in modules]}


def _task(module: Module, task_ids: Mapping[str, str]) -> dict[str, object]:
    due = "\n".join(f"- {module.requirement(function)}" for function in module.functions)
    return {
        "id": task_ids[module.name],
        "title": f"Finish {module.name}",
        "description": f"Finish the unfinished functions of {module.path} by the rules in their docstrings:\n{due}",
        "depends_on": [task_ids[name] for name in module.depends_on],
        "file_scope": [module.path],
        "acceptance": [{"command": command, "timeout_seconds": _ACCEPTANCE_SECONDS} for command in _commands(module)],
    }


def judgement(parts: Mapping[str, str]) -> dict[str, object]:
    """Judge by what was observed: the evidence must be green and the diff must not be empty."""
    evidence, requirements = prompt.load(parts.get("evidence"), []), prompt.load(parts.get("requirements"), [])
    observed = [entry for entry in evidence if isinstance(entry, dict)] if isinstance(evidence, list) else []
    red = [str(entry.get("command")) for entry in observed if entry.get("command") and entry.get("exit_code") != 0]
    green = [str(entry.get("command")) for entry in observed if entry.get("command") and entry.get("exit_code") == 0]
    changed = bool(re.search(r"^[+-](?!\+\+|--)", parts.get("diff", ""), re.MULTILINE))
    if not changed:
        reason = "the diff changes nothing"
    elif red or not green:
        reason = f"not green: {', '.join(red) or 'no command was run'}"
    else:
        reason = f"green: {', '.join(green)}"
    met = changed and bool(green) and not red
    due = [entry for entry in requirements if isinstance(entry, dict)] if isinstance(requirements, list) else []
    return {
        "passed": met,
        "confidence": 0.9 if met else 0.1,
        "feedback": "" if met else reason,
        "requirements": [{"id": str(entry.get("id")), "met": met, "reason": reason} for entry in due],
    }
