"""``mnemosyne show RUN --evidence TASK``: everything that was seen and said of one task, attempt by attempt."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from mnemosyne.cli.drive import finished_summary
from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import Style, one_line, visible_lines
from mnemosyne.cli.summary import COLOURS, outcome

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.cli.summary import EvidenceForm

__all__ = ["show_evidence"]

Json = Mapping[str, "JsonValue"]

_FAILED = ("failed", "conflict")
_INDENT = " " * 6


def show_evidence(options: Options, output: Output, run: str, task: str) -> int:
    """Show the evidence of a task."""
    from mnemosyne.orchestra import read_evidence, show_run

    store = store_path(options)
    found = asyncio.run(read_evidence(store, run, task))
    output.block("evidence", {"run": run, **found}, _lines(run, found, Style(sys.stdout)))
    if output.as_json:
        output.summary(finished_summary(asyncio.run(show_run(store, run)), options), with_error=True)
    return 0


def _lines(run: str, found: Json, style: Style) -> Iterator[str]:
    task = cast("Json", found["task"])
    state = str(task["state"])
    title = f"{style.paint(one_line(task['id']), 'strong')}  {style.paint(state, COLOURS.get(state, ''))}"
    yield f"{title}  {one_line(task['title'])}"
    requirements = _list(found["requirements"])
    if requirements:
        yield ""
        yield style.paint("requirements", "dim")
    for one in requirements:
        met = ("met", "good") if one.get("met") is True else ("not met", "bad")
        yield f"  {one_line(one.get('id'))}  {style.paint(*met)}  {one_line(one.get('text'))}"
        yield f"{_INDENT}{one_line(one.get('reason'))}"
    for attempt in _list(found["attempts"]):
        yield ""
        yield from _attempt(attempt, style)
    if state in _FAILED:
        yield ""
        yield f"{style.paint('retry'.ljust(10), 'dim')}mnemosyne retry {run} {one_line(task['id'])} --note '...'"


def _attempt(attempt: Json, style: Style) -> Iterator[str]:
    verdict = str(attempt["verdict"])
    head = f"attempt {attempt['attempt']} {verdict}"
    colour = "good" if verdict == "accepted" else "warn"
    commit = f"  commit {str(attempt['commit'])[:12]}" if attempt.get("commit") else ""
    yield f"{style.paint(head, colour)}{style.paint(commit, 'dim')}"
    feedback = str(attempt.get("feedback") or "")
    if attempt.get("summary"):
        yield from _told("executor", str(attempt["summary"]), style)
    for seen in _list(attempt["evidence"]):
        yield from _seen(seen, feedback, style)
    review = attempt.get("review")
    if isinstance(review, dict) and review.get("requirements"):
        said = "passes it" if review.get("passed") else "rejects it"
        yield f"  {style.paint('reviewer', 'dim')} {said}, confidence {review.get('confidence')}"
        for one in _list(review["requirements"]):
            met = "met" if one.get("met") is True else "not met"
            yield f"{_INDENT}{one_line(one.get('id'))} {met}: {one_line(one.get('reason'))}"
    if feedback:
        yield from _told("why", feedback, style)


def _seen(seen: Json, feedback: str, style: Style) -> Iterator[str]:
    kind = str(seen["kind"])
    output = str(seen.get("output") or "")
    if seen.get("command"):
        light, colour = outcome(cast("EvidenceForm", seen))
        codes = [str(seen[key]) for key in ("before_exit_code", "exit_code") if seen.get(key) is not None]
        told = f"exit code {' -> '.join(codes)}" if codes else "no exit code"
        yield style.row(
            [
                (f"  {kind}", 14, "dim"),
                (light, 16, colour),
                (f"{told}, {seen.get('seconds')} s  ", 0, "dim"),
                (one_line(seen["command"]), 0, ""),
            ]
        )
        # The feedback repeats what is red: once is enough.
        if output and output not in feedback:
            yield from (f"{_INDENT}{line}".rstrip() for line in visible_lines(output))
    elif seen.get("path"):
        digest = f"  sha256 {seen['sha256']}" if seen.get("sha256") else ""
        yield style.row(
            [
                (f"  {kind}", 14, "dim"),
                (str(seen.get("change") or ""), 16, ""),
                (f"{one_line(seen['path'])}{digest}", 0, ""),
            ]
        )
    else:
        yield from _told(kind, output, style)


def _told(name: str, text: str, style: Style) -> Iterator[str]:
    lines = visible_lines(text)
    if len(lines) == 1:
        yield f"  {style.paint(name, 'dim')} {lines[0]}"
        return
    yield f"  {style.paint(name, 'dim')}"
    yield from (f"{_INDENT}{line}".rstrip() for line in lines)


def _list(value: JsonValue) -> Sequence[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
