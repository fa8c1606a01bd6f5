"""The prompts of mnemosyne as the demo model reads them: sections between tags that stand alone on their lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Call", "calls", "files", "load", "own_name", "sections", "user_text"]

_OPENING = re.compile(r"<([a-z_]+)(?: [^>]*)?>")
_FILE = re.compile(r'<file path="([^"]+)">')


@dataclass(frozen=True)
class Call:
    """A tool use of an earlier turn, with its result."""

    name: str
    input: Mapping[str, object]
    result: str
    failed: bool


def _blocks(message: object) -> list[dict[str, object]]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _messages(body: Mapping[str, object]) -> list[object]:
    found = body.get("messages")
    return found if isinstance(found, list) else []


def _text(content: object) -> str:
    return "\n".join(str(block.get("text", "")) for block in _blocks({"content": content}) if block["type"] == "text")


def user_text(body: Mapping[str, object]) -> str:
    """Return what the user wrote, tool results left out."""
    turns = [turn for turn in _messages(body) if isinstance(turn, dict) and turn.get("role") == "user"]
    return "\n".join(_text(turn.get("content")) for turn in turns)


def sections(text: str) -> dict[str, str]:
    """Return the text of each section by its tag; what stands in a section is never taken for a tag."""
    found: dict[str, str] = {}
    tag, lines = "", list[str]()
    for line in text.splitlines():
        opening = _OPENING.fullmatch(line.strip())
        if not tag and opening:
            tag, lines = opening[1], []
        elif tag and line.strip() == f"</{tag}>":
            found.setdefault(tag, "\n".join(lines))
            tag = ""
        else:
            lines.append(line)
    return found


def files(section: str) -> dict[str, str]:
    """Return the files of a ``<project>`` or ``<context>`` section by path."""
    found: dict[str, str] = {}
    path, lines = "", list[str]()
    for line in section.splitlines():
        opening = _FILE.fullmatch(line.strip())
        if not path and opening:
            path, lines = opening[1], []
        elif path and line.strip() == "</file>":
            found[path] = "\n".join(lines) + "\n"
            path = ""
        else:
            lines.append(line)
    return found


def calls(body: Mapping[str, object]) -> list[Call]:
    """Return the tool uses of the conversation so far, in order."""
    return list(_calls(body))


def _calls(body: Mapping[str, object]) -> Iterator[Call]:
    blocks = [block for turn in _messages(body) for block in _blocks(turn)]
    results = {block.get("tool_use_id"): block for block in blocks if block["type"] == "tool_result"}
    for block in blocks:
        given = block.get("input")
        if block["type"] == "tool_use" and isinstance(given, dict) and block.get("id") in results:
            result = results[block["id"]]
            yield Call(
                own_name(str(block["name"])), given, _text(result.get("content")), result.get("is_error") is True
            )


def own_name(tool: str) -> str:
    """Return the name of a tool without its server's: other clients write ``mcp__files__read_file``."""
    return tool.rpartition("__")[2] if tool.startswith("mcp__") else tool


def load(text: str | None, default: object = None) -> object:
    """Return the JSON value in ``text``, or ``default`` where it is none."""
    try:
        return json.loads(text or "")
    except ValueError:
        return default
