"""A scripted model with a narrow window: its executor runs commands that append a line, its reviewer is content.

A pure function of the request, like every model here: whoever asks the same gets the same, call ids included. Each
command appends the id of its own call, so a command that ran twice for one call is a line that stands there twice.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from messages_server import Reply, failing, stream
from mnemosyne.canonical import sha256_json

__all__ = ["APPENDS", "LAST_WORDS", "answer_with", "make_project", "plan"]

Body = Mapping[str, Any]

APPENDS = (2, 1, 0, 1)
"""Appending commands in each turn of an executor; the turn without one writes the file that the task is about."""

_WINDOW = 13_000
"""Bytes of messages that fit. A command prints 6,000, so in the middle of a task the conversation is shortened."""

LAST_WORDS = "It is done.\x1b[2J\r\u202eend"
"""With what a hostile text would do to a terminal: clear it, overwrite a line, turn the direction of writing."""

_CHECK = """\
import importlib, sys

found = importlib.import_module(sys.argv[1]).VALUE
assert found == 3, f"VALUE is {found}, not 3"
"""

_APPEND = """\
import json, os, sys, urllib.request

def stands(place):
    request = urllib.request.Request({url!r} + "/tool", json.dumps({{"place": place}}).encode())
    urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request, timeout=60).read()

stands("tool begun")
with open({lines!r}, "a") as file:
    file.write(sys.argv[1] + "\\n")
    file.flush()
    os.fsync(file.fileno())
stands("tool done")
print("." * 6000)
"""


def make_project(folder: Path, tasks: int) -> None:
    """Make a small project with one unfinished module for each task."""
    folder.mkdir()
    (folder / "check.py").write_text(_CHECK)
    for number in range(1, tasks + 1):
        (folder / f"part{number}.py").write_text("VALUE = 1\n")


def plan(tasks: int) -> dict[str, Any]:
    """Return the plan for :func:`make_project`; its tasks can be worked on at the same time."""
    return {
        "tasks": [
            {
                "id": f"t{number}",
                "title": f"Finish part{number}",
                "description": f"Make VALUE of part{number} 3.",
                "file_scope": [f"part{number}.py"],
                "acceptance": [{"command": f"python3 check.py part{number}"}],
            }
            for number in range(1, tasks + 1)
        ]
    }


def answer_with(script: Path, lines: Path, proxy: str) -> Any:
    """Write the appending command to ``script``, and return the model that uses it.

    Args:
        script: Where the command goes.
        lines: The file it appends to.
        proxy: Base URL of the proxy that it tells where it stands.
    """
    script.write_text(_APPEND.format(url=proxy, lines=str(lines)))

    def answer(body: dict[str, Any]) -> Reply:
        if len(json.dumps(body["messages"])) > _WINDOW:
            return failing(400, "invalid_request_error", "prompt is too long")
        blocks, stop = _judgement(body) if "output_config" in body else _work(body, script)
        size = len(json.dumps(body))
        return Reply(events=stream(blocks, stop, input_tokens=size // 4, output_tokens=len(json.dumps(blocks)) // 4))

    return answer


def _work(body: Body, script: Path) -> tuple[list[dict[str, Any]], str]:
    messages = body["messages"]
    task = re.search(r'<task id="t(\d+)">', messages[0]["content"])
    assert task is not None
    turn = sum(message["role"] == "assistant" for message in messages)
    # The command that was interrupted is lost, whatever became of it; a file that may not be written is written again.
    lost = turn > len(APPENDS) and "is not what the call was to write" in json.dumps(messages[-1])
    if turn >= len(APPENDS) and not lost:
        return [{"type": "text", "text": LAST_WORDS}], "end_turn"
    name = sha256_json(list(messages))[:20]
    if lost or not APPENDS[turn]:
        given = {"path": f"part{task[1]}.py", "content": "VALUE = 3\n"}
        return [{"type": "tool_use", "id": f"toolu_{name}", "name": "write_file", "input": given}], "tool_use"
    identifiers = [f"toolu_{name}_{index}" for index in range(APPENDS[turn])]
    calls = [(i, {"command": f"{sys.executable} -I {script} {i}"}) for i in identifiers]
    return [{"type": "tool_use", "id": i, "name": "run_command", "input": given} for i, given in calls], "tool_use"


def _judgement(body: Body) -> tuple[list[dict[str, Any]], str]:
    """Pass, in whatever form is asked for."""
    plain = {"boolean": False, "number": 1.0, "integer": 1, "string": "", "array": [], "object": {}}
    asked = body["output_config"]["format"]["schema"]["properties"]
    verdict = {name: plain[kind.get("type", "string")] for name, kind in asked.items()} | {"passed": True}
    listed = re.search(r"<requirements>\n(.*?)\n</requirements>", body["messages"][0]["content"], re.DOTALL)
    assert listed is not None
    met = [{"id": requirement["id"], "met": True, "reason": "seen"} for requirement in json.loads(listed[1])]
    return [{"type": "text", "text": json.dumps(verdict | {"requirements": met})}], "end_turn"
