"""A conversation of many turns over a real store, and how much the store holds at each of them.

Run as ``python long_conversation.py [TURNS]`` it prints the table of ``docs/performance.md``; ``make bench-history``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from messages_server import MessagesServer, Reply, saying, stream
from mnemosyne import AgentRole, AgentSpec, Orchestra, Phase, WorkItem
from pydantic import SecretStr

__all__ = ["CONTENT_BYTES", "Sample", "hold"]

CONTENT_BYTES = 2_000
"""What one turn adds to the conversation, beside some words around it: a file that is read."""


@dataclass(frozen=True)
class Sample:
    """The store when a request arrives.

    Attributes:
        turn: From 1.
        stored: Bytes of the database at the newest commit.
        request: Bytes of the request.
    """

    turn: int
    stored: int
    request: int


def hold(folder: Path, turns: int, at: Collection[int]) -> dict[int, Sample]:
    """Let an executor of ours hold a conversation of ``turns`` turns; returns samples of those in ``at``."""
    store, tree, samples = folder / "state" / "store.db", folder / "tree", dict[int, Sample]()
    tree.mkdir(parents=True)
    (tree / "notes.txt").write_text("n" * CONTENT_BYTES)

    def answer(body: dict[str, Any]) -> Reply:
        turn = 1 + sum(message["role"] == "assistant" for message in body["messages"])
        if turn in at:
            samples[turn] = Sample(turn, _bytes_of(store), len(json.dumps(body)))
        if turn == turns:
            return saying("that was all")
        use = {"type": "tool_use", "id": f"toolu_{turn}", "name": "read_file", "input": {"path": "notes.txt"}}
        return Reply(events=stream([{"type": "text", "text": f"again, {turn}"}, use], "tool_use"))

    with MessagesServer(answer=answer) as server:
        asyncio.run(_work(store, tree, server.url, turns))
    return samples


async def _work(store: Path, tree: Path, url: str, turns: int) -> None:
    executor = AgentSpec(source="mnemosyne.agents.executor:ExecutorAgent", config={"max_turns": turns})
    item = WorkItem(
        id="long",
        description="read it again and again",
        phase=Phase.PLAN_TO_ARTIFACTS,
        role=AgentRole.EXECUTOR,
        context={"tree": str(tree)},
    )
    agents = {AgentRole.EXECUTOR: executor}
    key = SecretStr("test-key-that-is-never-used")
    async with Orchestra(
        store=store, agents=agents, base_url=url, api_key=key, model="long", max_concurrent=1
    ) as orchestra:
        result = await (await orchestra.submit_work(item)).result()
    assert result.success, result.error


_COUNT = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0])
"""


def _bytes_of(store: Path) -> int:
    # In another process: two copies of SQLite in one, ours and Python's, undo each other's locks on the same file.
    return int(subprocess.check_output([sys.executable, "-I", "-S", "-c", _COUNT, str(store)]))


def main(turns: int) -> None:
    marks = [1, *range(turns // 8, turns + 1, turns // 8)]
    with tempfile.TemporaryDirectory() as folder:
        samples = hold(Path(folder), turns, marks)
    print("| turns | stored in all, kB | stored per turn, kB | request, kB |")
    print("|---|---|---|---|")
    for before, after in pairwise(samples[turn] for turn in marks):
        grown = (after.stored - before.stored) / (after.turn - before.turn) / 1000
        print(
            f"| {before.turn} to {after.turn} | {after.stored / 1000:.0f} | {grown:.1f} | {after.request / 1000:.0f} |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
