"""The offline demo model: a pure function from a request of the Messages API to a reply.

No turn counter, no memory, no clock, no randomness, and nothing about the sample: the same request always gets the
same reply, and every name and value in it comes out of the request. A request is recognised by what it asks for: the
title of its output schema (``Spec``, ``FullSpec``, ``Plan``, ``Judgement``), or the tools of an executor together
with a ``<task>``. Whatever else is asked gets a refusal that says what the model can do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from mnemosyne.demo import planner, prompt, worker
from mnemosyne.demo.project import UnworkableError
from mnemosyne.demo.wire import Block, Reply, digest, sign

__all__ = ["ABILITIES", "PURPOSES", "answer", "purpose"]

ABILITIES = (
    "I am the offline demo model of mnemosyne, not Claude. I can do one thing: finish the unfinished functions of a "
    "small Python project whose docstrings say in plain words what is due, and whose unittest tests import them. "
    "`mnemosyne demo` shows it. For anything else, use a real model."
)
_TOOLS = frozenset({"list_files", "read_file", "write_file", "edit_file", "run_command"})
_STRUCTURED: Mapping[str, tuple[str, Callable[[Mapping[str, str]], dict[str, object]]]] = {
    "Spec": ("I read the project and list what is unfinished.", planner.spec),
    "FullSpec": ("I group the requirements by module.", planner.full_spec),
    "Plan": ("I order the modules by their imports.", planner.plan),
    "Judgement": ("I judge by the evidence and the diff.", planner.judgement),
}

_PURPOSE_OF_TITLE = {
    "Spec": ("orchestrator", "prompt_to_spec"),
    "FullSpec": ("orchestrator", "spec_to_full_spec"),
    "Plan": ("orchestrator", "full_spec_to_plan"),
    "Judgement": ("reviewer", "plan_to_artifacts"),
}
_WORK = ("executor", "plan_to_artifacts")
PURPOSES = (*_PURPOSE_OF_TITLE.values(), _WORK)
"""Role and phase of the requests that can be told apart."""


def purpose(body: Mapping[str, object]) -> tuple[str, str]:
    """Return for which role and in which phase a request is; two empty texts where that cannot be told."""
    title = _schema_title(body)
    if title is not None:
        return _PURPOSE_OF_TITLE.get(title, ("", ""))
    return _WORK if _is_work(body, prompt.sections(prompt.user_text(body))) else ("", "")


def answer(body: Mapping[str, object]) -> Reply:
    """Return the reply to a request that ``check_request`` let through."""
    parts = prompt.sections(prompt.user_text(body))
    title = _schema_title(body)
    if title is not None and title in _STRUCTURED and (parts.keys() & {"request", "evidence"}):
        thought, write = _STRUCTURED[title]
        try:
            text = json.dumps(write(parts), ensure_ascii=False)
        except UnworkableError as reason:
            return _refusal(str(reason))
        return Reply([_thought(body, thought), {"type": "text", "text": text}])
    if title is None and _is_work(body, parts):
        return _work(body, parts)
    return _refusal("this request is something else")


def _work(body: Mapping[str, object], parts: Mapping[str, str]) -> Reply:
    turn = worker.next_turn(parts, prompt.calls(body))
    if not turn.uses:
        return Reply([{"type": "text", "text": turn.says}])
    # An id must be new in the conversation and the same whenever the same request comes again.
    name, offered = digest(body["messages"])[:20], _offered(body)
    uses: list[Block] = [
        {"type": "tool_use", "id": f"toolu_{name}_{index}", "name": offered[tool], "input": given}
        for index, (tool, given) in enumerate(turn.uses)
    ]
    return Reply([_thought(body, turn.says), *uses], "tool_use")


def _refusal(reason: str) -> Reply:
    return Reply([{"type": "text", "text": f"{ABILITIES} I refuse this one: {reason}."}], "refusal")


def _thought(body: Mapping[str, object], text: str) -> Block:
    """A thinking block; empty unless the request wants to see thoughts, as with the real models."""
    thinking = body.get("thinking")
    shown = text if isinstance(thinking, dict) and thinking.get("display") == "summarized" else ""
    return {"type": "thinking", "thinking": shown, "signature": sign(shown)}


def _schema_title(body: Mapping[str, object]) -> str | None:
    config = body.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    return str(schema.get("title", "")) if isinstance(schema, dict) else None


def _is_work(body: Mapping[str, object], parts: Mapping[str, str]) -> bool:
    return "task" in parts and _offered(body).keys() >= _TOOLS


def _offered(body: Mapping[str, object]) -> dict[str, str]:
    """The tools that may be called: the name that we know -> the name in this request."""
    tools = body.get("tools")
    names = [str(tool.get("name")) for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return {prompt.own_name(name): name for name in names}
