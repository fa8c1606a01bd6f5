"""A conversation of many turns over a real store, and how much the store holds at each of them.

Run as ``python long_conversation.py [TURNS]`` it prints the table of ``docs/performance.md``; ``make bench-history``.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
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
        stored: Bytes of the database, its write-ahead log included once it is written back.
        request: Bytes of the request.
    """

    turn: int
    stored: int
    request: int


def hold(folder: Path, turns: int) -> list[Sample]:
    """Let an executor of ours hold a conversation of ``turns`` turns; returns a sample for each."""
    store, tree, samples = folder / "state" / "store.db", folder / "tree", list[Sample]()
    tree.mkdir(parents=True)
    (tree / "notes.txt").write_text("n" * CONTENT_BYTES)

    def answer(body: dict[str, Any]) -> Reply:
        turn = len(samples) + 1
        samples.append(Sample(turn, _bytes_of(store), len(json.dumps(body))))
        if turn == turns:
            return saying("that was all")
        use = {"type": "tool_use", "id": f"toolu_{turn}", "name": "read_file", "input": {"path": "notes.txt"}}
        return Reply(events=stream([{"type": "text", "text": f"again, {turn}"}, use], "tool_use"))

    with MessagesServer(answer=answer) as server:
        asyncio.run(_work(store, tree, server.url, turns))
    assert len(samples) == turns
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


def _bytes_of(store: Path) -> int:
    # A reader's page count is that of the newest commit, wherever its pages lie by now.
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return int(
            connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
        )
    finally:
        connection.close()


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples = hold(Path(folder), turns)
    print("| turns | stored in all, kB | stored per turn, kB | request, kB |")
    print("|---|---|---|---|")
    step = turns // 8
    for first, last in zip(range(0, turns, step), range(step, turns + 1, step), strict=True):
        before, after = samples[max(first - 1, 0)], samples[last - 1]
        grown = (after.stored - before.stored) / (after.turn - before.turn) / 1000
        print(
            f"| {before.turn} to {after.turn} | {after.stored / 1000:.0f} | {grown:.1f} | {after.request / 1000:.0f} |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
