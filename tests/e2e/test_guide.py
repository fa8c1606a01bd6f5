"""The guide for people who write agents: every block of it is run, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import SECONDS, Sandbox

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "agents.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("number", "said"), [(0, "Hello, world"), (1, "3 words")])
def test_a_block_of_the_guide_runs_as_printed(sandbox: Sandbox, number: int, said: str) -> None:
    ran = sandbox.run_python(f"import asyncio\n\n{BLOCKS[number]}\n\nasyncio.run(main())\n", SECONDS)
    assert (ran.returncode, ran.stdout.strip()) == (0, said), ran.stderr


def test_all_blocks_are_run() -> None:
    assert len(BLOCKS) == 2
