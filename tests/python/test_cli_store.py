"""``mnemosyne store``: the real store, filled by an orchestra whose agent is in this file."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra
from mnemosyne.cli import main
from mnemosyne.models import Phase, WorkItem
from pydantic import SecretStr


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"id": work_dict["id"]}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with three items that are done."""
    path = tmp_path / "store.db"

    async def fill() -> None:
        agents = {role: AgentSpec(source=Echo) for role in AgentRole}
        async with Orchestra(
            store=path, agents=agents, base_url="http://127.0.0.1:9", api_key=SecretStr("k")
        ) as orchestra:
            for number in range(3):
                item = WorkItem(
                    id=f"i-{number}", description="x", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR
                )
                await (await orchestra.submit_work(item)).result()

    asyncio.run(fill())
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    found: dict[str, Any] = json.loads(lines[0])
    assert found["type"] == "store"
    return found


def test_check_says_what_is_in_a_sound_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "store", "check", "--store", str(store))
    assert (found["items"], found["live_items"], found["findings"]) == (3, 0, [])
    assert main(["store", "check", "--store", str(store)]) == 0
    assert "is sound" in capsys.readouterr().out


def test_check_of_a_store_that_broke_a_promise_is_exit_3_and_says_what(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In a process of its own: two copies of SQLite in one process do not see each other's locks.
    change = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()"
    subprocess.run([sys.executable, "-c", change, store, "DELETE FROM events WHERE sequence = 3"], check=True)
    assert main(["store", "check", "--store", str(store)]) == 3
    streams = capsys.readouterr()
    assert "event 3 is missing" in streams.out
    assert "error[MN-0215]" in streams.err


def test_a_backup_is_a_sound_store_and_overwrites_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = store.with_name("copy.db")
    found = answer(capsys, "store", "backup", str(copy), "--store", str(store))
    assert (found["backup"], found["bytes"]) == (str(copy), copy.stat().st_size)
    assert answer(capsys, "store", "check", "--store", str(copy))["items"] == 3
    assert main(["store", "backup", str(copy), "--store", str(store)]) == 3
    assert "error[MN-0214]" in capsys.readouterr().err


def test_prune_forgets_what_ended_so_long_ago_and_the_trees_of_runs_that_are_gone(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = store.with_name("store.db.d") / "runs"
    for name, age in (("r-old", 40), ("r-young", 0)):
        (trees / name / "shadow").mkdir(parents=True)
        stamp = datetime.now(UTC).timestamp() - age * 86_400
        os.utime(trees / name, (stamp, stamp))
    kept = answer(capsys, "store", "prune", "--store", str(store))
    assert (kept["items"], kept["trees"]) == (0, 1)
    assert [tree.name for tree in trees.iterdir()] == ["r-young"]
    gone = answer(capsys, "store", "prune", "--older-than", "0", "--store", str(store))
    assert gone["items"] == 3
    found = answer(capsys, "store", "check", "--store", str(store))
    assert (found["items"], found["findings"]) == (0, [])


@pytest.mark.parametrize("verb", ["check", "prune"])
def test_asking_about_a_store_that_is_not_there_makes_none(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", verb, "--store", str(tmp_path / "store.db")]) == 3
    assert "error[MN-0203]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_store_without_a_verb_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store"]) == 2
    assert "error[MN-0115]" in capsys.readouterr().err
