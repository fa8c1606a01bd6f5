"""A job for claude-agent-sdk, run by the interpreter that has it: a prompt, a folder, and five tools on that folder.

    agent_sdk_job.py BASE_URL FOLDER < PROMPT

Prints one JSON object about the result message.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, create_sdk_mcp_server, query, tool

FOLDER = Path(sys.argv[2])
QUIET = (
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_AUTOUPDATER",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_TELEMETRY",
)


def said(text: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "is_error": is_error}


@tool("list_files", "The files of the project.", {})
async def list_files(_: dict[str, Any]) -> dict[str, Any]:
    return said("\n".join(sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py"))))


@tool("read_file", "The text of a file.", {"path": str})
async def read_file(given: dict[str, Any]) -> dict[str, Any]:
    return said((FOLDER / given["path"]).read_text())


@tool("write_file", "Write a file.", {"path": str, "content": str})
async def write_file(given: dict[str, Any]) -> dict[str, Any]:
    (FOLDER / given["path"]).write_text(given["content"])
    return said("written")


@tool("edit_file", "Replace a text in a file.", {"path": str, "old": str, "new": str})
async def edit_file(given: dict[str, Any]) -> dict[str, Any]:
    path = FOLDER / given["path"]
    before = path.read_text()
    if before.count(given["old"]) != 1:
        return said("the text is not there once", is_error=True)
    path.write_text(before.replace(given["old"], given["new"]))
    return said("edited")


@tool("run_command", "Run a command.", {"command": str})
async def run_command(given: dict[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_shell(
        given["command"], cwd=FOLDER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return said(f"exit code {process.returncode}\n{output.decode()}", is_error=process.returncode != 0)


async def main() -> None:
    tools = [list_files, read_file, write_file, edit_file, run_command]
    home = os.environ["HOME"]
    options = ClaudeAgentOptions(
        model="demo",
        cwd=FOLDER,
        mcp_servers={"files": create_sdk_mcp_server("files", tools=tools)},
        tools=[],
        allowed_tools=[f"mcp__files__{entry.name}" for entry in tools],
        setting_sources=[],
        max_turns=20,
        env={
            "ANTHROPIC_BASE_URL": sys.argv[1],
            "ANTHROPIC_API_KEY": "any",
            "CLAUDE_CONFIG_DIR": f"{home}/.claude",
            "CLAUDE_CODE_MAX_RETRIES": "4",
            **dict.fromkeys(QUIET, "1"),
        },
    )
    async for message in query(prompt=sys.stdin.read(), options=options):
        if isinstance(message, ResultMessage):
            print(json.dumps({"is_error": message.is_error, "turns": message.num_turns, "text": message.result}))


asyncio.run(main())
