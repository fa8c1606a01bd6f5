"""A journal read as the conversation that it recorded: who said what, which tools ran, what it cost.

The journal holds each thing once: the opening, each answer, each result. A tool's step names its call only by a hash,
so the call itself, which stands in the answer before, is found by that. What an interrupted process left behind is
said as such: an answer that nobody recorded, a tool whose effect nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from mnemosyne.canonical import sha256_json

__all__ = ["Entry", "call_of", "entries"]

JsonObject = dict[str, JsonValue]
Kind = Literal["prompt", "answer", "tool", "compaction", "step"]


@dataclass(frozen=True)
class Entry:
    """One step of a journal, as people read it.

    Attributes:
        number: Of the step within its attempt.
        kind: ``prompt`` (said to the model), ``answer`` (of the model), ``tool`` (a result), ``compaction`` (the
            conversation was shortened), ``step`` (anything else that the harness or an agent recorded).
        state: ``finished``, ``failed``, ``started`` (under way) or ``unknown`` (its process ended before its end was
            recorded).
        sha256: Of its input; for an answer that of the request.
        body: What it holds, by kind: of a prompt ``text`` (and, where it opens a conversation, ``model``, ``system``,
            ``tools``); of an answer ``content``, ``stop_reason``, ``usage``; of a tool ``tool_use_id``, ``input``,
            ``content``, ``is_error`` and whether it was ``interrupted``; of a compaction and a step its ``output``.
        error: Why it failed.
        reserved_tokens: What was set aside for it.
        spent_unknown: Nobody knows what it used, so all that was set aside is charged.
    """

    number: int
    kind: Kind
    name: str
    state: str
    sha256: str
    body: JsonObject = field(default_factory=dict)
    error: str | None = None
    reserved_tokens: int | None = None
    spent_unknown: bool = False


def call_of(block: Mapping[str, JsonValue]) -> JsonObject:
    """Return what identifies a call of a tool: the input of its step."""
    return {
        "tool_use_id": str(block.get("id", "")),
        "name": str(block.get("name", "")),
        "input": block.get("input"),
    }


def entries(steps: Iterable[JsonObject]) -> Iterator[Entry]:
    """Read the steps of one item, in their order."""
    calls: dict[str, JsonObject] = {}
    interrupted: set[str] = set()
    for step in steps:
        entry = _entry(step, calls, interrupted)
        if entry.kind == "answer":
            calls = {sha256_json(call_of(block)): block for block in _blocks(entry.body) if _is_call(block)} or calls
        elif entry.kind == "tool" and entry.state == "unknown":
            interrupted.add(entry.sha256)
        yield entry


def _entry(step: JsonObject, calls: Mapping[str, JsonObject], interrupted: set[str]) -> Entry:
    name, kind, output = str(step["name"]), str(step["kind"]), step.get("output")
    sha256 = str(step["input_sha256"])
    recorded = output if isinstance(output, dict) else {}
    shown: Kind = "step"
    body: JsonObject = {"output": output} if output is not None else {}
    if kind == "turn":
        shown, body = "answer", {key: recorded[key] for key in ("content", "stop_reason", "usage") if key in recorded}
    elif kind == "tool":
        shown, body = "tool", {**_call(calls.get(sha256), name), **recorded, "interrupted": sha256 in interrupted}
    elif name == "prompt":
        shown, body = "prompt", _prompt(recorded)
    elif name == "compaction":
        shown = "compaction"
    error, reserved = step.get("error"), step.get("reserved")
    tokens = reserved.get("tokens") if isinstance(reserved, dict) else None
    number = step["number"]
    assert isinstance(number, int)
    return Entry(
        number=number,
        kind=shown,
        name=name,
        state=str(step["state"]),
        sha256=sha256,
        body=body,
        error=error if isinstance(error, str) else None,
        reserved_tokens=tokens if isinstance(tokens, int) else None,
        spent_unknown=step.get("spent_unknown") is True,
    )


def _prompt(recorded: JsonObject) -> JsonObject:
    """The text, and what a conversation was opened with where this is its beginning."""
    if "messages" not in recorded:
        return {"text": _text(recorded)} if recorded else {}
    messages, tools = recorded["messages"], recorded.get("tools")
    texts = [_text(message) for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    listed = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    opening = {"model": recorded.get("model"), "system": recorded.get("system"), "tools": list[JsonValue](listed)}
    return {"text": "\n".join(texts), **opening}


def _text(message: JsonObject) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _call(block: JsonObject | None, name: str) -> JsonObject:
    if block is None:
        return {"tool_use_id": "", "name": name.removeprefix("tool:"), "input": None}
    return call_of(block)


def _blocks(body: JsonObject) -> list[JsonObject]:
    content = body.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _is_call(block: JsonObject) -> bool:
    return block.get("type") == "tool_use"
