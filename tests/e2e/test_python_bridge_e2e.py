"""Python's bridge with the real Claude agents, against the demo server; the names are those of ``tests/rust``.

With ``MNEMOSYNE_LIVE=1`` and a key the same tests ask the real API.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import DemoServer
from mnemosyne import AgentExecutionMixin, AgentSpec, ClaudeAgentBridge, WorkItem, create_agent
from mnemosyne.demo.sample import copy_sample
from mnemosyne.errors import AgentError, WorkTimeout
from pydantic import ValidationError

EXECUTOR = "mnemosyne.agents.executor:ExecutorAgent"
REVIEWER = "mnemosyne.agents.reviewer:ReviewerAgent"
LIVE = os.environ.get("MNEMOSYNE_LIVE") == "1"
TEST = "python3 -m unittest tests.test_pricing"
DIFF = """--- a/shop/pricing.py
+++ b/shop/pricing.py
@@ -1,2 +1,2 @@
 def unit_price(cents, count):
-    raise NotImplementedError
+    return cents / count
"""

Config = dict[str, Any]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoServer | None]:
    """The demo server; None where the real API is to be asked."""
    server = None if LIVE else serving(tmp_path / "server")
    yield server
    if server is not None:
        server.close()


@pytest.fixture
def claude(demo: DemoServer | None) -> Config:
    """What an agent is configured with."""
    return {} if demo is None else {"base_url": demo.url, "model": "demo"}


def serving(folder: Path, *arguments: str) -> DemoServer:
    folder.mkdir()
    return DemoServer(folder, *arguments)


def work(number: str, tree: Path | None, **more: Any) -> WorkItem:
    context = {"acceptance": [{"command": TEST}], **({"tree": str(tree)} if tree is not None else {})}
    about = {"id": number, "description": "Finish shop.pricing", "phase": "plan_to_artifacts", "role": "executor"}
    return WorkItem.model_validate({**about, "file_scope": ["shop/pricing.py"], "context": context, **more})


def sample(folder: Path) -> Path:
    copy_sample(folder)
    return folder


def is_green(tree: Path) -> bool:
    words = [sys.executable, *TEST.split()[1:]]
    return subprocess.run(words, cwd=tree, capture_output=True, check=False, timeout=60).returncode == 0


class Together(AgentExecutionMixin):
    """An executor that begins when so many of its kind have work: it ends only if they are at work at the same time."""

    barrier = asyncio.Barrier(4)

    async def execute_work(self, work_dict: Config) -> Config:
        await asyncio.wait_for(type(self).barrier.wait(), 30)
        return await create_agent("executor", self.config).execute_work(work_dict)


async def test_simple_work_execution_with_claude(claude: Config, tmp_path: Path) -> None:
    tree = sample(tmp_path / "tree")
    assert not is_green(tree)
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=EXECUTOR, config=claude)) as bridge:
        assert bridge.agent_id == "executor-1"
        result = await bridge.send_work(work("w-1", tree))
        health = bridge.health()
    assert result.success
    assert result.data["summary"]
    assert result.usage is not None
    assert result.usage.output_tokens > 0
    assert is_green(tree)
    assert (health.state, health.is_healthy, health.error_count, health.generation) == ("idle", True, 0, 1)


async def test_error_recovery_with_invalid_work(claude: Config, demo: DemoServer | None, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="priority"):
        work("w-0", None, priority=11)
    tree = sample(tmp_path / "tree")
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=EXECUTOR, config=claude)) as bridge:
        with pytest.raises(AgentError) as raised:
            await bridge.send_work(work("w-1", None))
        assert "no tree to work in" in str(raised.value)
        assert (bridge.health().error_count, bridge.health().is_healthy) == (1, True)
        assert demo is None or demo.requests() == [], "nothing was paid for what could not be done"
        result = await bridge.send_work(work("w-2", tree))
        assert result.success
        assert (bridge.health().error_count, bridge.generation) == (0, 1), "a success empties the window"
    assert is_green(tree)


async def test_concurrent_work_processing(claude: Config, tmp_path: Path) -> None:
    trees = [sample(tmp_path / f"tree-{number}") for number in range(4)]
    spec = AgentSpec(source=Together, in_flight=4, config=claude)
    async with await ClaudeAgentBridge.spawn("executor", spec) as bridge:
        sent = (bridge.send_work(work(f"w-{number}", tree)) for number, tree in enumerate(trees))
        results = await asyncio.gather(*sent)
    assert [result.success for result in results] == [True] * 4
    assert [is_green(tree) for tree in trees] == [True] * 4


async def test_reviewer_agent_quality_checks(claude: Config) -> None:
    requirements = [{"id": "R1", "text": "unit_price divides the cents by the count"}]
    green = [{"kind": "acceptance", "command": TEST, "exit_code": 0, "before_exit_code": 1}]
    red = [{**green[0], "exit_code": 1, "output": "FAILED (errors=1)"}]

    def review(number: str, evidence: list[Config], diff: str) -> WorkItem:
        context = {"requirements": requirements, "diff": diff, "evidence": evidence}
        return work(number, None, role="reviewer", context=context)

    async with await ClaudeAgentBridge.spawn("reviewer", AgentSpec(source=REVIEWER, config=claude)) as bridge:
        good = (await bridge.send_work(review("w-1", green, DIFF))).data
        bad = (await bridge.send_work(review("w-2", red, DIFF))).data
        empty = (await bridge.send_work(review("w-3", green, ""))).data
    assert (good["passed"], good["requirements"][0]["id"]) == (True, "R1")
    assert good["confidence"] >= 0.5
    for rejected in (bad, empty):
        assert rejected["passed"] is False
        assert rejected["feedback"]


async def test_work_timeout_handling(claude: Config, tmp_path: Path) -> None:
    tree = sample(tmp_path / "tree")
    limit, hanging, config = 0.05, None, claude
    if not LIVE:
        (tmp_path / "faults.json").write_text(json.dumps({"faults": [{"fault": "hang", "nth": 1}]}))
        hanging = serving(tmp_path / "hanging", "--faults", str(tmp_path / "faults.json"))
        limit, config = 1.0, {**claude, "base_url": hanging.url}
    async with await ClaudeAgentBridge.spawn("executor", AgentSpec(source=EXECUTOR, config=config)) as bridge:
        with pytest.raises(WorkTimeout):
            await bridge.send_work(work("w-1", tree, timeout_seconds=limit))
        assert bridge.health().error_count == 1
        result = await bridge.send_work(work("w-2", tree))
    assert result.success
    assert is_green(tree)
    if hanging is not None:
        hanging.close()
