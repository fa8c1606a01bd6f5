"""The summary of a run: its form in ``--json``, and how it looks to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, cast

from mnemosyne.cli.hints import explain_command
from mnemosyne.cli.style import Style, one_line

if TYPE_CHECKING:
    from mnemosyne.models import Budget

__all__ = [
    "COLOURS",
    "BudgetForm",
    "ErrorForm",
    "EvidenceForm",
    "KillForm",
    "KillRequests",
    "LimitsForm",
    "ParkedForm",
    "PhaseForm",
    "SpentForm",
    "Summary",
    "TaskForm",
    "UsageForm",
    "add_usage",
    "budget_form",
    "empty_usage",
    "error_lines",
    "outcome",
    "stopped_lines",
    "summary_lines",
    "tokens_of",
    "waits_until",
]

COLOURS = {
    "done": "good",
    "accepted": "good",
    "failed": "bad",
    "conflict": "bad",
    "cancelled": "bad",
    "interrupted": "warn",
    "budget": "warn",
    "skipped": "warn",
    "stopped": "warn",
    "waiting": "warn",
}

_NOT_BEGUN = ("blocked", "ready", "skipped")
_LIVING = ("running", "paused", "waiting")
_UNDER_WAY = ("running", "reviewing")
_HASH = 12
"""Digits of a hash, enough to compare by eye; the whole is in ``show --evidence``."""
_SPENT: tuple[Literal["usd", "tokens", "calls", "seconds"], ...] = ("usd", "tokens", "calls", "seconds")
_LIMITED: tuple[Literal["usd", "tokens", "calls", "seconds", "depth"], ...] = (*_SPENT, "depth")
_MOST_SAID = 1_000
"""Characters of a message or a reason."""
_MOST_PROBLEMS = 20
"""Lines about a plan that is refused; ``--json`` has them all."""


class PhaseForm(TypedDict):
    """One phase."""

    name: str
    state: str
    seconds: float | None
    artifact: str | None


class EvidenceForm(TypedDict):
    """One thing that we saw ourselves; the keys are those of ``models.Evidence``."""

    kind: str
    command: str | None
    exit_code: int | None
    before_exit_code: int | None
    seconds: float
    path: str | None
    change: str | None
    sha256: str | None
    output: str | None
    """Of what has no command; the outputs of commands are in ``show --evidence``."""


class RequirementForm(TypedDict):
    """What the reviewer said of one requirement."""

    id: str
    met: bool
    reason: str


class ReviewForm(TypedDict):
    """The last judgement."""

    passed: bool
    confidence: float | None
    feedback: str
    requirements: list[RequirementForm] | None


class TaskForm(TypedDict):
    """One task."""

    id: str
    title: str
    state: str
    attempts: int
    depends_on: list[str]
    files: list[str]
    evidence: list[EvidenceForm]
    review: ReviewForm | None


class UsageForm(TypedDict):
    """What the run used; ``unknown_turns`` were under way when a process died."""

    turns: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    unknown_turns: int
    cost_usd: float


ParkedForm = TypedDict(
    "ParkedForm",
    {"item": str, "task": str | None, "role": str, "until": str, "class": str, "reason": str},
)
"""Work that waits for its time; ``until`` is UTC, RFC 3339."""


class LimitsForm(TypedDict):
    """Limits; None is no limit."""

    usd: float | None
    tokens: int | None
    calls: int | None
    seconds: float | None
    depth: int | None


class BudgetForm(LimitsForm):
    """What the run may use, and within it each task and each agent."""

    per_task: LimitsForm
    per_agent: LimitsForm


class SpentForm(TypedDict):
    """What counts against the budget: used, or set aside for what a crash cut off."""

    usd: float
    tokens: int
    calls: int
    seconds: float


class ErrorForm(TypedDict):
    """Why a run is not done."""

    code: str
    message: str
    reason: str
    hint: str
    problems: NotRequired[list[dict[str, str]]]
    """Everything that is wrong with what was given: ``code``, ``path``, ``value``, ``message`` and ``fix`` of each."""


class KillRequests(TypedDict):
    """``demo --kill``: requests by the log of the server, and answers by the events of the run."""

    requests: int
    answers: int
    sent_again: int
    paid_twice: int


class KillForm(KillRequests):
    """``demo --kill``: how often the run was killed and resumed, and what that cost."""

    kills: int


class Summary(TypedDict):
    """The last line of ``--json``, without ``type`` and ``schema``."""

    run: str | None
    state: str
    exit_code: int
    model: str | None
    demo: bool
    workspace: str | None
    phases: list[PhaseForm]
    tasks: list[TaskForm]
    usage: UsageForm
    parked: list[ParkedForm]
    budget: BudgetForm
    spent: SpentForm
    restarts: int
    resumes: int
    seconds: float
    error: ErrorForm | None
    resume: str | None
    kill: NotRequired[KillForm]


def empty_usage() -> UsageForm:
    """Return the usage of a run that never was."""
    return {
        "turns": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "unknown_turns": 0,
        "cost_usd": 0.0,
    }


def budget_form(budget: Budget | None) -> BudgetForm:
    """Return the form of a budget; None is one without limits."""
    from mnemosyne.models import Budget

    return cast("BudgetForm", (budget or Budget()).model_dump(mode="json"))


def tokens_of(usage: UsageForm) -> int:
    """Return all tokens, whatever their price."""
    read = usage["input_tokens"] + usage["cache_read_tokens"] + usage["cache_write_tokens"]
    return read + usage["output_tokens"]


def add_usage(total: UsageForm, usage: Mapping[str, object]) -> None:
    """Add what one turn used."""
    for key in ("turns", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        value = usage.get(key)
        if isinstance(value, int):
            total[key] += value
    cost = usage.get("cost_usd")
    if isinstance(cost, int | float):
        total["cost_usd"] += cost


def summary_lines(
    summary: Summary,
    style: Style,
    *,
    priced: bool = True,
    rejections: Mapping[str, Sequence[str]] | None = None,
    asked: bool = False,
) -> list[str]:
    """Return the summary for people.

    Args:
        summary: The summary.
        style: Of the stream it goes to.
        priced: Whether the price of the model is known; a cost of 0 would be a lie otherwise.
        rejections: Task -> why its earlier attempts were rejected, where that was seen.
        asked: Whether a person asked for it (``show``): then hashes, seconds and the reviewer's words are shown too.
    """
    state = summary["state"]
    head = f"{summary['run'] or 'no run'}  {summary['seconds']:.1f} s"
    lines = [style.row([(f"{state}  ", 0, COLOURS.get(state, "strong")), (head, 0, "strong")])]
    if summary["phases"]:
        lines += ["", style.paint("phases", "dim"), *(_phase(phase, state, style) for phase in summary["phases"])]
    if summary["tasks"]:
        lines += ["", style.paint("tasks", "dim")]
        width = max(len(one_line(task["id"])) for task in summary["tasks"])
        for task in summary["tasks"]:
            lines += _task(task, state, width, style, (rejections or {}).get(task["id"], ()), asked=asked)
    if summary["parked"]:
        lines += ["", style.paint("waiting", "dim"), *(_parked(parked, style) for parked in summary["parked"])]
    lines += ["", *_totals(summary, style, priced=priced)]
    return lines


def waits_until(until: object) -> str:
    """Return ``2026-11-26T19:15:31.000Z`` as people read it."""
    return f"{str(until)[:19].replace('T', ' ')} UTC"


def _parked(parked: ParkedForm, style: Style) -> str:
    what = one_line(parked["task"] or parked["item"])
    return style.row(
        [
            (f"  {what}", 16, "strong"),
            (f"until {waits_until(parked['until'])}  ", 0, "warn"),
            (f"{parked['class']}: {one_line(parked['reason'])}", 0, ""),
        ]
    )


def error_lines(error: ErrorForm) -> list[str]:
    """Return an error in the form of the command line: what, why, what next."""
    lines = [f"error[{error['code']}]: {_cut(error['message'])}"]
    problems = error.get("problems", [])
    if len(problems) > 1:  # one has been told in full
        lines += [f"  at {one_line(_problem(one))}" for one in problems[:_MOST_PROBLEMS]]
        lines += [f"  and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    elif error["reason"]:
        lines.append(f"  why: {_cut(error['reason'])}")
    return [*lines, f"  hint: {one_line(error['hint'] or explain_command(error['code']))}"]


def _problem(problem: Mapping[str, str]) -> str:
    shown = f" (it is {problem['value']})" if problem["value"] else ""
    return f"{problem['path'] or 'its top level'}: {problem['message']}{shown}; {problem['fix']}"


def stopped_lines(run: str, resume: str | None, style: Style) -> list[str]:
    """Return what is left to say of a run that was stopped at once."""
    lines = [f"{style.paint('interrupted', 'warn')}  {style.paint(run, 'strong')}"]
    return [*lines, f"{style.paint('resume'.ljust(10), 'dim')}{resume}"] if resume else lines


def _cut(text: str) -> str:
    """One line, and not a screen of it: a server, or a plan with a thousand tasks, may say more than helps."""
    line = one_line(text)
    return line if len(line) <= _MOST_SAID else f"{line[:_MOST_SAID]}..."


def _now(state: str, run_state: str) -> str:
    """The state of a part of a run: nothing is under way in a run that is not (TRUTH-2)."""
    return "stopped" if state in _UNDER_WAY and run_state not in _LIVING else state


def _phase(phase: PhaseForm, run_state: str, style: Style) -> str:
    state = _now(phase["state"], run_state)
    seconds = "" if phase["seconds"] is None else f"{phase['seconds']:.1f} s"
    return style.row(
        [
            (f"  {phase['name']}", 22, ""),
            (state, 10, COLOURS.get(state, "")),
            (seconds, -9, "dim"),
            (f"  {one_line(phase['artifact'] or '')}", 0, ""),
        ]
    )


def outcome(seen: EvidenceForm) -> tuple[str, str]:
    """Return what an observation of a command means, in two or three words, and its colour."""
    before = "" if seen["before_exit_code"] is None else _light(seen["before_exit_code"])
    if seen["kind"] == "base":
        return f"{before or 'cut off'} before", "bad"
    after = _light(seen["exit_code"])
    text = f"{before} -> {after}" if before else after
    with_old = " (old tests)" if seen["kind"] == "old_tests" else ""
    return f"{text}{with_old}", "good" if after == "green" else "bad"


def _task(
    task: TaskForm, run_state: str, width: int, style: Style, rejections: Sequence[str], *, asked: bool
) -> list[str]:
    state = _now(task["state"], run_state)
    begun = state not in _NOT_BEGUN and (state != "cancelled" or task["evidence"] or rejections)
    attempts = _many(task["attempts"], "attempt") if begun else ""
    lines = [
        style.row(
            [
                (f"  {one_line(task['id'])}", width + 4, "strong"),
                (state, 11, COLOURS.get(state, "")),
                (attempts, 12, ""),
                (one_line(task["title"]), 0, ""),
            ]
        )
    ]
    indent = " " * (width + 4)
    lines += [style.row([(f"{indent}{one_line(why)}", 0, "warn")]) for why in rejections]
    lines += [style.row([(f"{indent}{text}", 0, "")]) for text in _files(task, asked=asked)]
    lines += [_evidence(seen, indent, style, asked=asked) for seen in task["evidence"] if _is_telling(seen)]
    review = task["review"]
    if asked and review:
        lines += [_requirement(one, indent, style) for one in review["requirements"] or ()]
    return lines


def _files(task: TaskForm, *, asked: bool) -> list[str]:
    """The accepted files; whoever asks is told their hashes too, and what a task that failed had changed."""
    if not asked:
        return [one_line(path) for path in task["files"]]
    seen = [one for one in task["evidence"] if one["path"] and one["kind"] in ("accepted", "file")]
    accepted = [one for one in seen if one["kind"] == "accepted"]
    told = accepted if task["files"] else seen
    lines = [
        f"{'' if accepted else 'not accepted: '}{one_line(one['path'])}  "
        + (f"sha256 {one['sha256'][:_HASH]}" if one["sha256"] else str(one["change"]))
        for one in told
    ]
    return lines or [one_line(path) for path in task["files"]]


def _requirement(one: RequirementForm, indent: str, style: Style) -> str:
    met = ("met", "good") if one["met"] is True else ("not met", "bad")
    return style.row(
        [(f"{indent}{one_line(one['id'])}  ", 0, ""), (met[0], 8, met[1]), (one_line(one["reason"]), 0, "dim")]
    )


def _is_telling(seen: EvidenceForm) -> bool:
    """What is shown in short: the joined gate repeats the commands of other tasks, and a new test is to be expected."""
    if seen["kind"] in ("file", "accepted"):
        return False
    if seen["kind"] == "test":
        return seen["change"] != "added"
    return seen["kind"] == "acceptance" or seen["exit_code"] != 0 or not seen["command"]


def _evidence(seen: EvidenceForm, indent: str, style: Style, *, asked: bool) -> str:
    if not seen["command"]:
        what = f"{seen['kind']} {seen['change'] or ''}".strip()
        return style.row(
            [(indent, 0, ""), (f"{what}  ", 16, "warn"), (one_line(seen["path"] or seen["output"]), 0, "")]
        )
    text, colour = outcome(seen)
    seconds = f"{seen['seconds']:.2f} s  " if asked else ""
    return style.row(
        [(indent, 0, ""), (f"{text} ".ljust(16), 0, colour), (seconds, 0, "dim"), (one_line(seen["command"]), 0, "dim")]
    )


def _light(exit_code: int | None) -> str:
    """What an exit code means: green, red, or cut off (it did not end by itself)."""
    return "cut off" if exit_code is None else "green" if exit_code == 0 else "red"


def _totals(summary: Summary, style: Style, *, priced: bool) -> list[str]:
    usage = summary["usage"]
    read, written = usage["input_tokens"] + usage["cache_write_tokens"], usage["output_tokens"]
    turns = _many(usage["turns"], "turn")
    if usage["unknown_turns"]:
        turns += f", {usage['unknown_turns']} cut off"
    rows = [("tokens", f"{read:,} in, {usage['cache_read_tokens']:,} from cache, {written:,} out ({turns})")]
    rows.append(("cost", _cost(summary, priced=priced)))
    if budget := _budget(summary["budget"], summary["spent"]):
        rows.append(("budget", budget))
    trouble = ((summary["restarts"], "agent restart"), (summary["resumes"], "resume"))
    if any(count for count, _ in trouble):
        rows.append(("trouble", ", ".join(_many(count, what) for count, what in trouble if count)))
    rows.append(("model", summary["model"] or "the default of each role"))
    if summary["workspace"]:
        rows.append(("files", summary["workspace"]))
    lines = [style.row([(name, 10, "dim"), (one_line(text), 0, "")]) for name, text in rows]
    if summary["resume"]:
        lines.append(f"{style.paint('resume'.ljust(10), 'dim')}{summary['resume']}")  # never cut: it is to be copied
    return lines


def _cost(summary: Summary, *, priced: bool) -> str:
    if summary["demo"]:
        return "0.00 (demo model)"
    if not priced:
        return "unknown (no price is known for this model)"
    cost = summary["usage"]["cost_usd"]
    return f"{cost:.2f} USD" if cost >= 1 or cost == 0 else f"{cost:.4f} USD"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _budget(budget: BudgetForm, spent: SpentForm) -> str:
    """What is spent of each limit of the run, and what its parts may spend."""
    said = [
        f"{_amount(kind, spent[kind])} of {_limit(kind, budget[kind])}" for kind in _SPENT if budget[kind] is not None
    ]
    if budget["depth"] is not None:
        said.append(_limit("depth", budget["depth"]))
    for whom in ("task", "agent"):
        limits = budget["per_task" if whom == "task" else "per_agent"]
        said += [f"{_limit(kind, limits[kind])} per {whom}" for kind in _LIMITED if limits[kind] is not None]
    return ", ".join(said)


def _amount(kind: str, value: float) -> str:
    return f"{value:.2f}" if kind == "usd" else f"{value:,.1f}" if kind == "seconds" else f"{value:,}"


def _limit(kind: str, value: float | None) -> str:
    unit = {"usd": "USD", "depth": "deep"}.get(kind, kind)
    return f"{_amount(kind, value or 0)} {unit}"
