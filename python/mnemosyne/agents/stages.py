"""What happens around an agent, by the kind of its item.

The agent is anybody's class. The tree it works in, the commit it is judged by, the gates and the acceptance are ours,
so that taking a role's place can neither skip a gate nor raise a verdict (TRUTH-1).

``execute``  makes the attempt's tree, calls the agent, commits. A commit without a change is no success; one of an
             agent that gave up is where the next attempt starts.
``review``   runs the gates; only if they are green is the agent asked, and it can only lower the verdict.
``accept``   no agent: merge, joined gate, scope, into the user's workspace. One at a time for each run.
``optimize`` runs the task's commands before anybody is paid: where they could never show that it was done, it is
refused. Then the agent gets the accepted files to read, and its pack is stored. The orchestrator's three kinds get an
overview of the project. ``work`` is the agent alone.

Every result of ours that a later step depends on is a journaled step, so a resumed claim takes the same way (and asks
the model the same question) even where the world has moved on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from pydantic import JsonValue

from mnemosyne.agents.base_agent import AgentExecutionMixin, call_agent, working_on
from mnemosyne.agents.claude_agent import ClaudeAgent
from mnemosyne.agents.context import AgentContext
from mnemosyne.agents.reviewer import lowered
from mnemosyne.errors import AgentError, EnvironmentProblem, Fenced, InvalidInput, ModelParked
from mnemosyne.llm import prefetch
from mnemosyne.logging_config import get_logger
from mnemosyne.metrics import get_metrics_collector
from mnemosyne.models import Acceptance, Evidence, WorkResult
from mnemosyne.validation import validate_review_artifact

if TYPE_CHECKING:
    from mnemosyne.gates import Before, GateReport
    from mnemosyne.guard import Guard
    from mnemosyne.workspace import FileChange, Workspace

__all__ = ["Services", "log_failure", "run_item"]

Json = dict[str, JsonValue]

_log = get_logger("mnemosyne.agents")

OVERVIEW_BYTES = 120_000  # of the project, as the Orchestrator sees it: about 40 000 tokens
_STARTS_COMMANDS = frozenset({"optimize", "execute", "review", "accept"})
_CHANGES = {"A": "added", "M": "changed", "D": "deleted"}
_LISTED_FILES = 500  # of a change; beyond it evidence only counts them
_SAID = 500  # characters of an executor's last words that the error about an empty change quotes


@dataclass(frozen=True)
class Services:
    """What the harness needs besides the agent; one object for one loop.

    Attributes:
        guard: Gives the guard, which starts and ends every command; not asked for work that starts none, because the
            guard is a process.
        workspace_for: Makes the workspace of a context's run. Give it ``tag=context.item.id``: before an item is worked
            on, everything that an older claim of it started under that tag is ended.
        accepting: A lock for each run. The runtime lets only one item of a run accept at a time already; two at once
            would be able to lose files, so here it is made sure a second time.
    """

    guard: Callable[[], Guard]
    workspace_for: Callable[[AgentContext], Workspace]
    accepting: dict[str, asyncio.Lock] = field(default_factory=dict)


async def run_item(agent: AgentExecutionMixin | None, context: AgentContext, services: Services) -> Json:
    """Work on one item and return its result as a complete ``WorkResult`` dict.

    Args:
        agent: Not used for ``accept``, and may be None there.

    Raises:
        InvalidInput: The item can never be worked on.
        ModelError, EnvironmentProblem, BudgetExceeded, Fenced: Nobody's fault here; the agent is not charged.
        Exception: Whatever else the agent raised, unchanged.
    """
    work = cast(Json, context.item.model_dump(mode="json"))
    if isinstance(agent, ClaudeAgent):
        prefetch()
    if context.kind in _STARTS_COMMANDS:
        await services.guard().kill(context.item.id)
    context.config = getattr(agent, "config", {})
    metrics, item = get_metrics_collector(), context.item
    metrics.start_work_item(item.id, context.agent_id, item.phase, role=item.role)
    with working_on(context):
        _log.info("%s begins", context.kind)
        try:
            result = await _staged(agent, context, services, work)
        except BaseException as error:
            metrics.finish_work_item(item.id, success=False, error_type=type(error).__name__)
            with contextlib.suppress(BaseException):  # what telling of it raises must not take its place
                log_failure(agent, context, error)
            raise
        succeeded = bool(result["success"])
        metrics.finish_work_item(item.id, success=succeeded, error_type=None if succeeded else "unsuccessful")
        _log.info("%s ended%s", context.kind, "" if succeeded else f" without success: {result.get('error')}")
    return result


def log_failure(agent: AgentExecutionMixin | None, context: AgentContext, error: BaseException) -> None:
    """Log what an item ended with: as a box of advice, where it is somebody's error."""
    if isinstance(error, Fenced | ModelParked | asyncio.CancelledError) or not isinstance(error, Exception):
        _log.warning("%s was left: %s: %s", context.kind, type(error).__name__, error)
    elif _log.isEnabledFor(logging.ERROR):
        from mnemosyne.error_context import create_error_context

        box = create_error_context(
            error,
            item=context.item,
            agent_id=context.agent_id or None,
            generation=context.generation,
            run=context.run.id if context.run is not None else None,
            task=context.task.id if context.task is not None else None,
            session_active=isinstance(agent, ClaudeAgent),
        )
        _log.error("%s failed\n%s", context.kind, box.format(), exc_info=error)


async def _staged(agent: AgentExecutionMixin | None, context: AgentContext, services: Services, work: Json) -> Json:
    if context.kind == "accept":
        return _complete(_counted(context, await _accept(context, services)))
    if agent is None:
        raise InvalidInput(f"an item of kind {context.kind!r} needs an agent", code="MN-0117")
    match context.kind:
        case "execute":
            return _complete(await _execute(agent, context, services, work))
        case "review":
            return _complete(_counted(context, await _review(agent, context, services, work)))
        case "optimize":
            return _complete(await _optimize(agent, context, services, work))
        case "prompt_to_spec" | "spec_to_full_spec" | "full_spec_to_plan":
            return await _orchestrate(agent, context, services, work)
        case "work":
            return await _work(agent, context, services, work)
        case other:
            raise InvalidInput(f"there is no kind of item {other!r}", code="MN-0117")


async def _orchestrate(agent: AgentExecutionMixin, context: AgentContext, services: Services, work: Json) -> Json:
    if context.run is not None:
        workspace = services.workspace_for(context)

        async def overview() -> JsonValue:
            await workspace.open()
            return await workspace.overview(OVERVIEW_BYTES)

        _context(work)["project"] = await context.step("project", overview)
    return await call_agent(agent, work)


async def _optimize(agent: AgentExecutionMixin, context: AgentContext, services: Services, work: Json) -> Json:
    from mnemosyne import gates

    workspace = services.workspace_for(context)
    commit = await workspace.open()
    context.files = workspace.files(commit)
    acceptance = _acceptance(context, _context(work))

    async def base() -> JsonValue:
        before = await gates.measure_base(workspace, commit, setup=context.setup, acceptance=acceptance)
        present = frozenset(await workspace.files(commit).list_files())
        refused = gates.refusal(before, acceptance=acceptance, file_scope=_scope(context), present=present)
        return {"commit": commit, "refused": refused, **_measured(before)}

    seen = _object(await context.step("base", base, input={"commit": commit}))
    if seen["refused"]:
        # Nobody is paid for what could not be shown to be done.
        data: Json = {"refused": True, "feedback": seen["refused"]}
        return {"success": True, "data": data, "evidence": _base_evidence(seen, acceptance)}
    result = await call_agent(agent, work)
    if result["success"]:
        _data(result)["base"] = seen
        pack = _data(result).get("pack")
        if not isinstance(pack, str):
            raise AgentError(
                f"{type(agent).__name__} returned no pack",
                code="MN-0307",
                hint='put the text into data: {"pack": "..."}',
            )
        name = f"pack-{_task_name(context)}-{context.attempt}.md"
        reference = await context.artifact(name, pack)
        result["artifacts"] = [*_list(result.get("artifacts")), reference.model_dump(mode="json")]
    return result


async def _execute(agent: AgentExecutionMixin, context: AgentContext, services: Services, work: Json) -> Json:
    from mnemosyne.workspace import Tree

    workspace, asked = services.workspace_for(context), _context(work)
    await workspace.open()

    async def make() -> JsonValue:
        made = await workspace.create_tree(_task_name(context), context.attempt, rejected=_rejected(asked))
        return {"path": str(made.path), "base_commit": made.base_commit}

    recorded = _object(await context.step("tree", make))
    tree = Tree(path=Path(str(recorded["path"])), base_commit=str(recorded["base_commit"]))
    asked["tree"], asked["base_commit"] = str(tree.path), tree.base_commit
    _give_tree(context, services, tree.path)
    result = await call_agent(agent, work)
    data = _data(result)
    # What came of it is ours to say. An attempt that gave up is committed too: the next one starts from there.
    data |= {"commit": None, "base_commit": tree.base_commit, "tree": str(tree.path), "files": []}
    commit, changes = await workspace.commit_tree(tree, _message(context))
    files = [change.path for change in changes]
    problem = _unusable(files, str(data.get("summary") or ""))
    if problem:
        result["evidence"] = [Evidence(kind="change", output=problem).model_dump(mode="json")]
    else:
        data |= {"commit": commit, "files": list[JsonValue](files)}
        result["evidence"] = _file_evidence("file", changes)
    if problem and result["success"]:
        result["success"], result["error"] = False, problem
    return result


def _unusable(files: list[str], said: str) -> str:
    """Say why these changed files are no result; empty if they are one."""
    if not files:
        return "nothing was changed" + (f"; the executor said: {said[:_SAID]}" if said else "")
    odd = [name for name in files if not _is_utf8(name)]
    return f"these file names are not UTF-8: {', '.join(map(ascii, odd))}" if odd else ""


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


async def _review(agent: AgentExecutionMixin, context: AgentContext, services: Services, work: Json) -> Json:
    from mnemosyne.gates import run_gates

    workspace, asked = services.workspace_for(context), _context(work)
    await workspace.open()
    base, commit = _commit(asked, "base_commit"), _commit(asked, "commit")
    acceptance, scope = _acceptance(context, asked), _scope(context)

    async def measure() -> JsonValue:
        report = await run_gates(
            workspace,
            base,
            commit,
            setup=context.setup,
            acceptance=acceptance,
            file_scope=scope,
            known=_known(asked.get("base"), base),
        )
        return _report(report)

    seen = _object(await context.step("gates", measure, input={"base_commit": base, "commit": commit}))
    if not seen["passed"]:
        data: Json = {
            "passed": False,
            "confidence": 1.0,
            "feedback": seen["feedback"],
            "requirements": [],
            "commit": commit,
            "rework_commit": seen["rework_commit"],
        }
        return {"success": True, "data": data, "evidence": seen["evidence"]}
    asked["evidence"], asked["diff"] = seen["evidence"], await workspace.diff(base, commit)
    if context.tree is None and isinstance(named := asked.get("tree"), str):
        context.tree = Path(named)
    result = await call_agent(agent, work)
    if not result["success"]:
        return result
    verdict = _data(result)
    if wrong := validate_review_artifact(verdict).errors:
        raise AgentError(
            f"{type(agent).__name__} returned no verdict",
            code="MN-0307",
            reason="; ".join(map(str, wrong)),
            hint='put it into data: {"passed": true, "confidence": 0.9, "feedback": "", "requirements": []}',
        )
    result["data"] = {"confidence": 1.0, "requirements": [], **lowered(verdict, None), "commit": commit}
    # Evidence is what we saw ourselves; an agent's own is not put beside it.
    result["evidence"] = seen["evidence"]
    return result


async def _accept(context: AgentContext, services: Services) -> Json:
    if context.run is None:
        raise InvalidInput("there is no run to accept into", code="MN-0117")
    async with services.accepting.setdefault(context.run.id, asyncio.Lock()):
        return await _accept_alone(context, services.workspace_for(context))


async def _accept_alone(context: AgentContext, workspace: Workspace) -> Json:
    from mnemosyne.gates import joined_gate
    from mnemosyne.workspace import outside_scope

    asked = dict(context.item.context)
    await workspace.open()
    commit = _commit(asked, "commit")
    merged = await _merged(context, workspace, commit)
    old, new = str(merged["old"]), merged["commit"]
    if not isinstance(new, str):
        return _not_accepted(str(merged["conflict"]))
    scope, changes = _scope(context), await workspace.changes(old, new)
    outside = outside_scope([change.path for change in changes], scope)
    if outside:
        return _not_accepted("the change goes outside its file scope: " + ", ".join(outside))

    async def joined() -> JsonValue:
        acceptance = [*_acceptance(context, asked), *context.accepted]
        report = await joined_gate(workspace, old, new, setup=context.setup, acceptance=acceptance, file_scope=scope)
        return _report(report)

    seen = _object(await context.step("joined", joined, input={"commit": new}))
    if not seen["passed"]:
        return _not_accepted(str(seen["feedback"]), evidence=seen["evidence"])
    applied = await workspace.apply(old, new, context.step)
    if applied.conflict is not None:
        return _not_accepted(applied.conflict, conflict=True, evidence=seen["evidence"])
    data: Json = {"accepted": True, "conflict": False, "commit": new, "files": list(applied.files), "feedback": ""}
    evidence = [*_list(seen["evidence"]), *_file_evidence("accepted", changes)]
    return {"success": True, "data": data, "evidence": evidence}


async def _merged(context: AgentContext, workspace: Workspace, commit: str) -> Json:
    """Return the merge to go on with: ``{"old", "commit", "conflict"}``.

    A resumed claim reads its merge back. That one still holds if the accepted commit is the one it started from, or is
    already the merge itself (killed between moving the branch and committing the result). If another task was accepted
    in between, it is merged again; the files that were written before are found to be in place.
    """

    async def merge() -> JsonValue:
        made = await workspace.merge(_commit(context.item.context, "base_commit"), commit, _message(context))
        return {"old": made.onto, "commit": made.commit, "conflict": made.conflict}

    while True:
        merged = _object(await context.step("merge", merge, input={"commit": commit}))
        if await workspace.accepted() in (merged["old"], merged["commit"]):
            return merged


async def _work(agent: AgentExecutionMixin, context: AgentContext, services: Services, work: Json) -> Json:
    named = context.item.context.get("tree")
    if isinstance(named, str):
        _give_tree(context, services, Path(named))
    return await call_agent(agent, work)


def _give_tree(context: AgentContext, services: Services, path: Path) -> None:
    from mnemosyne.tools import Toolbox

    if not path.is_dir():
        raise EnvironmentProblem(
            f"the tree {path} is gone",
            code="MN-0253",
            hint="do not remove the state directory while a run can be resumed",
        )
    context.tree = path
    context.tools = Toolbox(path, services.guard(), tag=context.item.id)


def _counted(context: AgentContext, result: Json) -> Json:
    """Count gates and verdicts, and work that they rejected: it is done again (class ``quality``)."""
    metrics, data = get_metrics_collector(), _data(result)
    if False in (data.get("passed"), data.get("accepted")):
        metrics.count_retry("quality")
    if isinstance(passed := data.get("passed"), bool):
        confidence = data.get("confidence")
        sure = float(confidence) if isinstance(confidence, int | float) else 0.0
        metrics.record_review(context.item.id, passed=passed, confidence=sure)
    codes = [entry.get("exit_code") for entry in _list(result.get("evidence")) if _is_gate(entry)]
    green = codes.count(0)
    metrics.record_gates(context.item.id, passed=green, failed=len(codes) - green)
    return result


def _is_gate(entry: JsonValue) -> TypeGuard[Json]:
    return isinstance(entry, dict) and entry.get("kind") in ("acceptance", "old_tests", "joined")


def _not_accepted(feedback: str, *, conflict: bool = False, evidence: JsonValue = None) -> Json:
    data: Json = {"accepted": False, "conflict": conflict, "commit": None, "files": [], "feedback": feedback}
    return {"success": True, "data": data, "evidence": evidence or []}


def _report(report: GateReport) -> JsonValue:
    return {
        "passed": report.passed,
        "evidence": [entry.model_dump(mode="json") for entry in report.evidence],
        "feedback": report.feedback,
        "rework_commit": report.rework_commit,
    }


def _measured(before: Before) -> Json:
    return {
        "setup": [entry.model_dump(mode="json") for entry in before.setup],
        "exit_codes": list[JsonValue](before.exit_codes),
    }


def _known(seen: JsonValue, base: str) -> Before | None:
    """Return what the optimize item measured, if it was of the commit that this attempt started from."""
    from mnemosyne.gates import Before

    if not isinstance(seen, dict) or seen.get("commit") != base:
        return None
    setup = [Evidence.model_validate(entry) for entry in _list(seen.get("setup"))]
    codes = [code if isinstance(code, int) else None for code in _list(seen.get("exit_codes"))]
    return Before(setup, codes)


def _base_evidence(seen: Json, acceptance: Sequence[Acceptance]) -> list[JsonValue]:
    codes = _list(seen["exit_codes"])
    commands = [
        Evidence(kind="base", command=one.command, before_exit_code=code if isinstance(code, int) else None)
        for one, code in zip(acceptance, codes, strict=False)
    ]
    return [*_list(seen["setup"]), *(entry.model_dump(mode="json") for entry in commands)]


def _file_evidence(kind: str, changes: Sequence[FileChange]) -> list[JsonValue]:
    """What a change did to files, with the hashes of what is in them now."""
    shown = [
        Evidence(kind=kind, path=change.path, change=_CHANGES[change.status], sha256=change.sha256)
        for change in changes[:_LISTED_FILES]
    ]
    if more := len(changes) - len(shown):
        shown.append(Evidence(kind=kind, output=f"and {more} more files"))
    return [entry.model_dump(mode="json") for entry in shown]


def _rejected(asked: Json) -> tuple[str, str] | None:
    base, commit = asked.get("rejected_base"), asked.get("rejected_commit")
    return (base, commit) if isinstance(base, str) and isinstance(commit, str) else None


def _acceptance(context: AgentContext, asked: Mapping[str, JsonValue]) -> list[Acceptance]:
    if context.task is not None:
        return list(context.task.acceptance)
    return [Acceptance.model_validate(entry) for entry in _list(asked.get("acceptance"))]


def _scope(context: AgentContext) -> list[str]:
    return list(context.task.file_scope if context.task is not None else context.item.file_scope)


def _task_name(context: AgentContext) -> str:
    return context.task.id if context.task is not None else context.item.id


def _message(context: AgentContext) -> str:
    title = context.task.title if context.task is not None else context.item.description
    return f"{_task_name(context)}: {title}"


def _commit(asked: Mapping[str, JsonValue], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"the item has no {key}", code="MN-0117")
    return value


def _context(work: Json) -> Json:
    return cast(Json, work["context"])


def _data(result: Json) -> Json:
    return cast(Json, result["data"])


def _object(value: JsonValue) -> Json:
    if not isinstance(value, dict):
        raise InvalidInput("a recorded step cannot be read", code="MN-0117", reason="it is not an object")
    return value


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _complete(result: Json) -> Json:
    return cast(Json, WorkResult.model_validate(result).model_dump())
