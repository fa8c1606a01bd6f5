"""``mnemosyne show RUN --conversation TASK``: what was said and done for one task, by every role and in every attempt.

What a model or a program said is shown with its control characters made visible, and always indented: it can neither
move the cursor nor pass for a line of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from mnemosyne.cli.drive import finished_summary
from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import Style, one_line, visible_lines

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.llm.transcript import Entry

__all__ = ["show_conversation"]

_INDENT = " " * 6
_STATES = {
    "started": "under way",
    "unknown": "interrupted: the process ended before this was recorded",
}


def show_conversation(options: Options, output: Output, run: str, subject: str) -> int:
    """Show the conversations of a task, or of a phase by its name."""
    from mnemosyne.llm.transcript import entries
    from mnemosyne.orchestra import read_journals, show_run

    store = store_path(options)
    journals = asyncio.run(read_journals(store, run, subject))
    style = Style(sys.stdout)
    if not journals:
        output.text([f"{one_line(subject)} has not begun"])
    for place, journal in enumerate(journals):
        if place:
            output.text([""])
        head = {key: journal[key] for key in ("item", "kind", "role", "attempt", "state", "claims")}
        output.block("conversation", {"run": run, "subject": subject, **head}, _head(head, style))
        steps = journal["steps"]
        assert isinstance(steps, list)
        for entry in entries(step for step in steps if isinstance(step, dict)):
            form = {"run": run, "item": head["item"], "attempt": head["attempt"], "role": head["role"]}
            output.block("entry", {**form, **asdict(entry)}, _lines(entry, style))
    if output.as_json:
        output.summary(finished_summary(asyncio.run(show_run(store, run)), options), with_error=True)
    return 0


def _head(head: Mapping[str, JsonValue], style: Style) -> Iterator[str]:
    claims = head["claims"]
    often = f", claimed {claims} times" if isinstance(claims, int) and claims > 1 else ""
    title = f"{head['kind']}, attempt {head['attempt']}"
    yield (
        style.paint(title, "strong")
        + f"  {head['role']}, {head['state']}{often}  "
        + style.paint(one_line(head["item"]), "dim")
    )


def _lines(entry: Entry, style: Style) -> Iterator[str]:
    what, details = _title(entry)
    marks = [_STATES[entry.state]] if entry.state in _STATES else []
    marks += [f"failed: {one_line(entry.error)}"] if entry.error is not None else []
    if entry.spent_unknown:
        marks.append(f"what it used is unknown, {entry.reserved_tokens or 0:,} tokens are charged")
    told = "  ".join(part for part in (details, style.paint("; ".join(marks), "warn")) if part)
    content = list(_content(entry, style))
    if content:
        yield ""
    yield f"{style.paint(f'{entry.number:>4}', 'dim')}  {style.paint(what, 'strong')}  {told}".rstrip()
    yield from content


def _title(entry: Entry) -> tuple[str, str]:
    body = entry.body
    match entry.kind:
        case "prompt":
            return "prompt", f"to {one_line(body['model'])}" if "model" in body else ""
        case "answer":
            return "answer", "  ".join(part for part in (_usage(body), _stopped(body)) if part)
        case "tool":
            how = "is_error" if body.get("is_error") else ""
            told = "  (not run again)" if body.get("interrupted") and entry.state == "finished" else ""
            name = one_line(body.get("name"))
            return "result", f"of {name} {one_line(body.get('tool_use_id'))}  {how}".rstrip() + told
        case "compaction":
            return "compaction", _shortened(body.get("output"))
        case _:
            return "step", one_line(entry.name)


def _usage(body: Mapping[str, JsonValue]) -> str:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return ""
    names = {"input_tokens": "in", "cache_read_tokens": "from cache", "cache_write_tokens": "to cache"}
    names["output_tokens"] = "out"
    return ", ".join(
        f"{count:,} {name}" for key, name in names.items() if isinstance(count := usage.get(key), int) and count
    )


def _stopped(body: Mapping[str, JsonValue]) -> str:
    reason = body.get("stop_reason")
    return f"({one_line(reason)})" if reason else ""


def _shortened(recipe: JsonValue) -> str:
    """How the conversation was shortened; nothing of what is shown here was lost, only the model no longer sees it."""
    results = recipe.get("results") if isinstance(recipe, dict) else None
    if isinstance(results, list):
        return f"{len(results)} results left out or clipped, to fit the model's context window"
    return "the conversation goes on from a summary, to fit the model's context window"


def _content(entry: Entry, style: Style) -> Iterator[str]:
    body = entry.body
    match entry.kind:
        case "prompt":
            if body.get("tools"):
                tools = body["tools"]
                names = ", ".join(one_line(tool) for tool in tools) if isinstance(tools, list) else ""
                yield from _part("tools", names, style)
            if body.get("system"):
                yield from _part("system", str(body["system"]), style)
            yield from _part("user", str(body.get("text", "")), style)
        case "answer":
            blocks = body.get("content")
            for block in blocks if isinstance(blocks, list) else []:
                if isinstance(block, dict):
                    yield from _block(block, style)
        case "tool" if "content" in body:
            yield from _indented(str(body["content"]))
        case "compaction" if isinstance(output := body.get("output"), dict) and "text" in output:
            yield from _indented(str(output["text"]))
        case _:
            return


def _block(block: Mapping[str, JsonValue], style: Style) -> Iterator[str]:
    match block.get("type"):
        case "text":
            yield from _indented(str(block.get("text", "")))
        case "thinking":
            yield from _part("thinking", str(block.get("thinking") or "(not shown by the server)"), style)
        case "tool_use":
            yield f"{_INDENT}{style.paint('call', 'dim')} {one_line(block.get('name'))} {one_line(block.get('id'))}"
            given = block.get("input")
            for key, value in given.items() if isinstance(given, dict) else [("input", given)]:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                yield from _part(one_line(key), text, style, deeper=True)
        case other:
            yield from _part(one_line(other), json.dumps(block, ensure_ascii=False), style)


def _part(name: str, text: str, style: Style, *, deeper: bool = False) -> Iterator[str]:
    """A name and a text: on one line if it is one, else below the name."""
    indent = _INDENT + ("  " if deeper else "")
    lines = visible_lines(text)
    if len(lines) == 1:
        yield f"{indent}{style.paint(name, 'dim')}: {lines[0]}"
        return
    yield f"{indent}{style.paint(name, 'dim')}:"
    yield from (f"{indent}  {line}".rstrip() for line in lines)


def _indented(text: str) -> Iterator[str]:
    return (f"{_INDENT}{line}".rstrip() for line in visible_lines(text))
